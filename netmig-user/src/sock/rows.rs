//! Every socket as a row: class, owners, fate.
use std::{collections::HashSet, os::fd::OwnedFd};

use netmig_core::socket::{ARRIVALS, Class, ECN, Engine, Fate, Kind, Owner, Row, State, rule_for};

use super::{
    accept, adrift, common,
    diag::{self, Found},
    error::Error,
    holders::Held,
    option::{self, Fresh},
    survey,
};
use crate::sys::sockopt;

/// All rows of the caller's namespace: what the kernel lists, and what the processes hold besides.
pub(super) fn rows(held: &Held, engine: Engine) -> Result<Vec<Row>, Error> {
    // What the kernel has to be asked once is asked now, and not in a blackout.
    if !adrift::readable() || !accept::supported() {
        tracing::debug!("this kernel does not let all sockets move that no process holds");
    }
    if let Some(why) = survey::unreadable() {
        tracing::debug!("every value of a connection is read by a system call: {why}");
    }
    let found = diag::all()?;
    let mut fresh = Fresh::default();
    let mut rows = Vec::with_capacity(found.len());
    for socket in &found {
        let mut row = row(socket, held, engine)?;
        let inet = matches!(socket.kind, Kind::Tcp | Kind::Udp | Kind::UdpLite);
        if inet
            && let Some(owners) = held.get(socket.inode)
            // A running process may have closed it meanwhile.
            && let Ok(fd) = held.duplicate(owners)
        {
            row.options = options(&fd, socket, &mut fresh)?;
        }
        rows.push(row);
    }
    rows.extend(unlisted(&found, held, engine)?);
    Ok(rows)
}

/// Rows of sockets that the processes hold and no list has: neither bound nor connected, of a family without sock_diag, or made in
/// another namespace.
pub(super) fn unlisted(found: &[Found], held: &Held, engine: Engine) -> Result<Vec<Row>, Error> {
    let listed: HashSet<u64> = found.iter().map(|f| f.inode).collect();
    let mut rows = Vec::new();
    for (inode, owners) in held.iter().filter(|(inode, _)| !listed.contains(inode)) {
        if let Ok(fd) = held.duplicate(owners) {
            rows.push(by_descriptor(&fd, inode, owners, engine)?);
        }
    }
    Ok(rows)
}

/// One row, without options.
pub(super) fn row(socket: &Found, held: &Held, engine: Engine) -> Result<Row, Error> {
    let class = classify(socket, held);
    let fate = match rule_for(class, engine).verdict.into() {
        Fate::MovesWithout(what) => without(what, socket),
        fate => fate,
    };
    Ok(Row {
        kind: socket.kind,
        state: socket.state,
        local: socket.local.to_string(),
        peer: socket.peer.to_string(),
        inode: socket.inode,
        owners: held.get(socket.inode).unwrap_or_default().to_vec(),
        rqueue: socket.rqueue,
        wqueue: socket.wqueue,
        options: Vec::new(),
        class,
        fate,
    })
}

/// What a class moves without is no loss to a socket that does not have it.
fn without(mut what: Vec<String>, socket: &Found) -> Fate {
    what.retain(|what| match what.as_str() {
        ECN => socket.ecn,
        ARRIVALS => socket.rqueue > 0,
        _ => true,
    });
    if what.is_empty() {
        Fate::Moves
    } else {
        Fate::MovesWithout(what)
    }
}

/// What the rules look at.
pub(super) fn classify(socket: &Found, held: &Held) -> Class {
    let owned = held.get(socket.inode).is_some();
    match socket.kind {
        Kind::Tcp => tcp(socket, owned),
        _ if socket.kernel => Class::Kernel,
        _ if !owned => Class::Foreign,
        Kind::Mptcp => Class::Mptcp,
        Kind::Udp if socket.wqueue > 0 => Class::UdpCorked,
        Kind::Udp if socket.rqueue > 0 => Class::UdpQueued,
        Kind::Udp => Class::Udp,
        Kind::UdpLite => Class::UdpLite,
        Kind::Ping => Class::Ping,
        Kind::Raw => Class::Raw,
        Kind::Sctp => Class::Sctp,
        Kind::Unix => match socket.unix_peer {
            // A peer that is not accepted yet has no inode.
            Some(peer) if peer != 0 && held.get(peer).is_none() => Class::UnixOutside,
            _ => Class::Unix,
        },
        Kind::Packet => Class::Packet,
        Kind::Netlink => Class::Netlink,
        Kind::Vsock => Class::Vsock,
        Kind::Xdp => Class::Xdp,
        Kind::Smc => Class::Smc,
        Kind::Family(_) => Class::Other,
    }
}

fn tcp(socket: &Found, owned: bool) -> Class {
    match socket.state {
        State::TimeWait => adrift::classify(socket),
        State::SynRecv => Class::TcpSynRecv,
        _ if socket.ulp == "mptcp" => Class::MptcpPath,
        // close() leaves no socket in these two states: one without an inode has not been accepted yet.
        State::Established | State::CloseWait if socket.inode == 0 => {
            if accept::supported() {
                Class::TcpEmbryo
            } else {
                Class::TcpEmbryoStuck
            }
        }
        _ if socket.inode == 0 => adrift::classify(socket),
        _ if !owned => Class::TcpElsewhere,
        _ if !socket.ulp.is_empty() => Class::TcpUlp,
        State::Established => Class::TcpEstablished,
        State::CloseWait => Class::TcpCloseWait,
        State::FinWait1 | State::FinWait2 | State::Closing | State::LastAck => Class::TcpShut,
        State::SynSent => Class::TcpSynSent,
        State::Listen => Class::TcpListen,
        State::Close => Class::TcpClosed,
    }
}

/// The row of a socket of which only a descriptor is known.
fn by_descriptor(fd: &OwnedFd, inode: u64, owners: &[Owner], engine: Engine) -> Result<Row, Error> {
    let int = |name| {
        sockopt::int(fd, libc::SOL_SOCKET, name).map_err(|source| Error::Proc {
            what: format!("socket {inode}"),
            source,
        })
    };
    let (domain, protocol) = (int(libc::SO_DOMAIN)?, int(libc::SO_PROTOCOL)?);
    const MPTCP: i32 = 262;
    let kind = match (domain, protocol) {
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => Kind::Tcp,
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => Kind::Udp,
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDPLITE) => Kind::UdpLite,
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_SCTP) => Kind::Sctp,
        (libc::AF_INET | libc::AF_INET6, MPTCP) => Kind::Mptcp,
        (libc::AF_INET, libc::IPPROTO_ICMP) | (libc::AF_INET6, libc::IPPROTO_ICMPV6)
            if int(libc::SO_TYPE)? == libc::SOCK_DGRAM =>
        {
            Kind::Ping
        }
        (libc::AF_INET | libc::AF_INET6, _) => Kind::Raw,
        (libc::AF_UNIX, _) => Kind::Unix,
        (libc::AF_PACKET, _) => Kind::Packet,
        (libc::AF_NETLINK, _) => Kind::Netlink,
        (libc::AF_VSOCK, _) => Kind::Vsock,
        (libc::AF_XDP, _) => Kind::Xdp,
        (43, _) => Kind::Smc,
        (other, _) => Kind::Family(u16::try_from(other).unwrap_or(0)),
    };
    let class = match kind {
        _ if !here(fd)? => Class::OtherNetns,
        Kind::Tcp => Class::TcpClosed,
        Kind::Mptcp => Class::Mptcp,
        Kind::Udp => Class::Udp,
        Kind::UdpLite => Class::UdpLite,
        Kind::Ping => Class::Ping,
        Kind::Raw => Class::Raw,
        Kind::Sctp => Class::Sctp,
        Kind::Unix => Class::Unix,
        Kind::Packet => Class::Packet,
        Kind::Netlink => Class::Netlink,
        Kind::Vsock => Class::Vsock,
        Kind::Xdp => Class::Xdp,
        Kind::Smc => Class::Smc,
        Kind::Family(_) => Class::Other,
    };
    Ok(Row {
        kind,
        state: State::Close,
        local: String::new(),
        peer: String::new(),
        inode,
        owners: owners.to_vec(),
        rqueue: 0,
        wqueue: 0,
        options: Vec::new(),
        class,
        fate: rule_for(class, engine).verdict.into(),
    })
}

/// Whether a socket was made in the caller's network namespace.
fn here(fd: &OwnedFd) -> Result<bool, Error> {
    use nix::sys::stat::{fstat, stat};
    // Refused in a namespace of another user namespace: another one in any case.
    let Ok(theirs) = sockopt::netns_of(fd) else {
        return Ok(false);
    };
    let theirs = fstat(theirs).map_err(std::io::Error::from)?;
    let ours = stat("/proc/thread-self/ns/net").map_err(std::io::Error::from)?;
    Ok(theirs.st_ino == ours.st_ino)
}

fn options(
    fd: &OwnedFd,
    socket: &Found,
    fresh: &mut Fresh,
) -> Result<Vec<(String, String)>, Error> {
    // SO_PRIORITY is always read; it is worth a mention only if it was set.
    let unset = |(name, value): &(String, String)| name == "SO_PRIORITY" && value == "0";
    let settings = fresh.differing(fd, common::sort(socket), socket.v6)?;
    let mut options: Vec<_> = settings
        .iter()
        .map(option::describe)
        .filter(|o| !unset(o))
        .collect();
    for (name, number) in [
        ("SO_REUSEADDR", libc::SO_REUSEADDR),
        ("SO_REUSEPORT", libc::SO_REUSEPORT),
    ] {
        let value = sockopt::int(fd, libc::SOL_SOCKET, number)?;
        if value != 0 {
            options.push((name.to_owned(), value.to_string()));
        }
    }
    Ok(options)
}
