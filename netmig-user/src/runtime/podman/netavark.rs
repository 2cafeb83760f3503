//! netavark's part of a container's network at the target: podman asks for it, netmig has it.
//!
//! podman makes a network namespace (`/run/netns/netns-UUID`), calls `netavark setup PATH` with the networks as JSON on standard input, and keeps what comes
//! back as the container's status. Only at the restore: so the agent either builds the container's links in that namespace when the call comes, or has
//! built them before in a namespace of its own and puts that in the place of podman's ([`put_in_place`]), off the blackout's path.
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

/// podman's question cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What podman wrote is not what netavark 1.x reads.
    #[error("what podman says to netavark cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// An address is in none of the network's subnets.
    #[error("address {address} is in no subnet of network {network}")]
    NoSubnet {
        /// The address.
        address: IpAddr,
        /// Name of the network.
        network: String,
    },
    /// A mount of the namespace.
    #[error("{what} {path}: {source}")]
    Mount {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

#[derive(Deserialize)]
struct Options {
    networks: BTreeMap<String, PerNetwork>,
    network_info: BTreeMap<String, Info>,
}

#[derive(Deserialize)]
struct PerNetwork {
    #[serde(default)]
    static_ips: Option<Vec<IpAddr>>,
    #[serde(default)]
    static_mac: Option<String>,
    interface_name: String,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    subnets: Option<Vec<Subnet>>,
}

#[derive(Deserialize)]
struct Subnet {
    /// `192.0.2.0/24`.
    subnet: String,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

#[derive(Serialize)]
struct Status {
    dns_search_domains: Vec<String>,
    dns_server_ips: Vec<IpAddr>,
    interfaces: BTreeMap<String, Interface>,
}

#[derive(Serialize)]
struct Interface {
    mac_address: String,
    subnets: Vec<Assigned>,
}

#[derive(Serialize)]
struct Assigned {
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    ipnet: String,
}

/// What netavark would print on `setup` with `stdin`, for links that netmig makes. The addresses are those that podman's own IPAM gave, the static ones.
///
/// # Errors
/// `stdin` cannot be read, or an address fits no subnet.
pub fn status(stdin: &[u8]) -> Result<Vec<u8>, Error> {
    let options: Options = serde_json::from_slice(stdin)?;
    let mut answer = BTreeMap::new();
    for (name, network) in options.networks {
        let subnets = options
            .network_info
            .get(&name)
            .and_then(|info| info.subnets.as_deref())
            .unwrap_or_default();
        let mut assigned = Vec::new();
        for address in network.static_ips.unwrap_or_default() {
            let Some((prefix, gateway)) = subnets.iter().find_map(|subnet| subnet.holds(address))
            else {
                return Err(Error::NoSubnet {
                    address,
                    network: name,
                });
            };
            assigned.push(Assigned {
                gateway,
                ipnet: format!("{address}/{prefix}"),
            });
        }
        let interface = Interface {
            mac_address: network.static_mac.unwrap_or_default(),
            subnets: assigned,
        };
        let interfaces = BTreeMap::from([(network.interface_name, interface)]);
        answer.insert(
            name,
            Status {
                dns_search_domains: Vec::new(),
                dns_server_ips: Vec::new(),
                interfaces,
            },
        );
    }
    Ok(serde_json::to_vec(&answer)?)
}

impl Subnet {
    /// Prefix length and gateway, if the address is in it.
    fn holds(&self, address: IpAddr) -> Option<(u8, Option<IpAddr>)> {
        let (base, prefix) = self.subnet.split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        let same = match (base.parse().ok()?, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32_u32.checked_sub(prefix.into())?;
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128_u32.checked_sub(prefix.into())?;
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => return None,
        };
        same.then_some((prefix, self.gateway))
    }
}

/// Puts the namespace at `ours` in the place of the one that podman made at `podmans`: whoever opens that path from now on gets ours, and podman's own,
/// empty one goes. podman undoes it as it would its own.
///
/// # Errors
/// A mount or unmount failed; `podmans` is as it was if it is the first.
pub fn put_in_place(ours: &Path, podmans: &Path) -> Result<(), Error> {
    let at = |what, path: &Path, e: nix::Error| Error::Mount {
        what,
        path: path.to_owned(),
        source: e.into(),
    };
    umount2(podmans, MntFlags::MNT_DETACH)
        .map_err(|e| at("unmounting podman's namespace at", podmans, e))?;
    mount(
        Some(ours),
        podmans,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|e| at("mounting the network namespace at", podmans, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From podman 5.4.2 for netavark 1.14.
    const SETUP: &[u8] = include_bytes!("fixtures/netavark-setup.json");
    const STATUS: &str = include_str!("fixtures/netavark-status.json");

    #[test]
    fn says_what_netavark_said() {
        let ours: serde_json::Value = serde_json::from_slice(&status(SETUP).unwrap()).unwrap();
        let netavarks: serde_json::Value = serde_json::from_str(STATUS).unwrap();
        assert_eq!(ours, netavarks);
    }

    #[test]
    fn both_families_find_their_subnet() {
        let text = String::from_utf8(SETUP.to_vec()).unwrap();
        let text = text.replace(r#"["192.0.2.10"]"#, r#"["192.0.2.10","2001:db8::10"]"#);
        let text = text.replace(
            r#""subnets":["#,
            r#""subnets":[{"subnet":"2001:db8::/64","gateway":"2001:db8::1"},"#,
        );
        let answer: serde_json::Value =
            serde_json::from_slice(&status(text.as_bytes()).unwrap()).unwrap();
        assert_eq!(
            answer["lan"]["interfaces"]["eth0"]["subnets"][1]["ipnet"],
            "2001:db8::10/64"
        );
        assert_eq!(
            answer["lan"]["interfaces"]["eth0"]["subnets"][1]["gateway"],
            "2001:db8::1"
        );
    }

    #[test]
    fn foreign_address_is_named() {
        let text = String::from_utf8(SETUP.to_vec())
            .unwrap()
            .replace(r#"["192.0.2.10"]"#, r#"["198.51.100.1"]"#);
        assert_eq!(
            status(text.as_bytes()).unwrap_err().to_string(),
            "address 198.51.100.1 is in no subnet of network lan"
        );
    }
}
