//! Connections of a host itself.
use std::{collections::HashMap, fs, net::IpAddr};

use netmig_core::{image::v1::sock::Endpoint, socket::State};

use super::{diag, error::Error};

/// A TCP connection of a host, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConnection {
    /// Its own end, IPv4-mapped addresses as IPv4.
    pub local: Endpoint,
    /// The other end, likewise.
    pub peer: Endpoint,
    /// Name of a program that holds it; empty if none is found.
    pub program: String,
}

impl HostConnection {
    /// Whether this host is reached by it, or reaches another one for a move.
    pub fn leads_here(&self) -> bool {
        ["ssh", "netmig"]
            .iter()
            .any(|name| self.program.starts_with(name))
    }
}

/// The TCP connections of the calling thread's namespace that have one of `addresses` as their own.
///
/// # Errors
/// If sock_diag cannot be read.
pub fn connections_at(addresses: &[IpAddr]) -> Result<Vec<HostConnection>, Error> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let over = |state| matches!(state, State::Listen | State::Close | State::TimeWait);
    let mut found = Vec::new();
    for socket in diag::tcp()?.iter().filter(|s| !over(s.state)) {
        let ends = (socket.local.endpoint(), socket.peer.endpoint());
        let (Some(local), Some(peer)) = ends else {
            continue;
        };
        let (local, peer) = (local.canonical(), peer.canonical());
        if addresses.contains(&local.ip) {
            found.push((socket.inode, local, peer));
        }
    }
    let programs = if found.is_empty() {
        HashMap::new()
    } else {
        programs()
    };
    Ok(found
        .into_iter()
        .map(|(inode, local, peer)| HostConnection {
            local,
            peer,
            program: programs.get(&inode).cloned().unwrap_or_default(),
        })
        .collect())
}

/// Names of the programs that hold sockets, by inode. What ends meanwhile holds none.
fn programs() -> HashMap<u64, String> {
    let mut found = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.map(|entry| entry.path()) {
        let Ok(name) = fs::read_to_string(process.join("comm")) else {
            continue;
        };
        let descriptors = fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        for descriptor in descriptors {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'));
            if let Some(inode) = inode.and_then(|inode| inode.parse().ok()) {
                found
                    .entry(inode)
                    .or_insert_with(|| name.trim_end().to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_host_s_connections_are_found_by_their_own_address_with_their_program() {
        // An address of the loopback that nobody else uses.
        let at: IpAddr = "127.83.17.5".parse().unwrap();
        let listener = TcpListener::bind((at, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        let client = TcpStream::connect(to).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let found = connections_at(&[at]).unwrap();
        let ours = found.iter().find(|c| c.local.port == to.port()).unwrap();
        assert_eq!(ours.peer.port, client.local_addr().unwrap().port());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(!ours.program.is_empty(), "{ours:?}");
        let ssh = |program: &str| HostConnection {
            program: program.to_owned(),
            ..ours.clone()
        };
        assert!(
            ssh("sshd-session").leads_here()
                && ssh("netmig-user").leads_here()
                && !ssh("nginx").leads_here()
        );
        assert_eq!(connections_at(&[]).unwrap(), []);
    }
}
