//! A container behind its host's address translation: what its peers know instead of it, and what of the host must be the same elsewhere.
use std::{fmt, net::IpAddr, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::v1::net::{Address, Mac, Prefix};

/// An address of the source host by which peers know the container, as the operator names it: `192.0.2.50`, or `192.0.2.50%eth1` where
/// the target's device has another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The address.
    pub address: IpAddr,
    /// The target's device; none: of the same name as the source's.
    pub device: Option<String>,
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, device) = match text.split_once('%') {
            Some((_, "")) => return Err(format!("{text:?} names no device behind the %")),
            Some((address, device)) => (address, Some(device.to_owned())),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| {
            format!("{address:?} is no IPv4 or IPv6 address; ADDRESS or ADDRESS%DEVICE is expected")
        })?;
        let bad = match address {
            IpAddr::V4(a) => a.is_link_local() || a.is_multicast() || a.is_broadcast(),
            IpAddr::V6(a) => a.is_unicast_link_local() || a.is_multicast(),
        };
        if bad || address.is_loopback() || address.is_unspecified() {
            return Err(format!(
                "{address} is no address that peers elsewhere could use"
            ));
        }
        Ok(Self { address, device })
    }
}

/// What lies between a container and its peers on the source host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Addresses of the host by which peers know the container.
    pub services: Vec<Service>,
    /// The bridges that no peer is on.
    pub subnets: Vec<Subnet>,
    /// Rules of the host's packet filters that translate for the container, or name it; without what counts.
    pub rules: Vec<String>,
}

impl Behind {
    /// Whether a link of the container hangs on a bridge that no peer is on.
    pub fn hides(&self, link: &str) -> bool {
        self.subnets.iter().any(|subnet| subnet.link == link)
    }

    /// Its service addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let services = self.services.iter();
        services.map(|s| s.address.local.address).collect()
    }

    /// Those of its services whose address the target does not have by itself.
    pub fn moving(&self, shared: &[IpAddr]) -> Vec<Service> {
        let services = self.services.iter();
        services
            .filter(|s| !shared.contains(&s.address.local.address))
            .cloned()
            .collect()
    }
}

/// An address of the source host by which peers know the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// As the source's device has it.
    pub address: Address,
    /// MAC of that device; none where it has none.
    pub mac: Option<Mac>,
    /// The target's device.
    pub device: String,
}

/// A bridge of the source host that leads nowhere else: what is on it reaches others through the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The container's link.
    pub link: String,
    /// The bridge.
    pub parent: String,
    /// The host's own addresses on it that the container's routes lead to.
    pub gateways: Vec<Prefix>,
}

/// What a plan says of a service address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Planned {
    /// The address and its netmask.
    pub address: Prefix,
    /// The source's device.
    pub from: String,
    /// The target's device.
    pub to: String,
    /// It is taken off the one and put onto the other. False: both hosts have it, and whoever leads packets to them decides.
    pub moves: bool,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            from,
            to,
            moves,
        } = self;
        match moves {
            true => write!(f, "{address} moves from {from} to {to} there"),
            false => write!(
                f,
                "{address} is on both hosts ({from}): its connections move, and whoever leads packets to the hosts decides which one gets them"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_name_its_device_at_the_target() {
        let read = |text: &str| text.parse::<Asked>();
        let plain = read("192.0.2.50").unwrap();
        assert_eq!(
            (plain.address.to_string().as_str(), plain.device),
            ("192.0.2.50", None)
        );
        let named = read("2001:db8::50%br1").unwrap();
        assert_eq!(
            (named.address.to_string().as_str(), named.device.as_deref()),
            ("2001:db8::50", Some("br1"))
        );
        for (text, word) in [
            ("192.0.2.50%", "no device"),
            ("192.0.2.0/24", "no IPv4 or IPv6 address"),
            ("web", "no IPv4 or IPv6 address"),
            ("127.0.0.1", "peers elsewhere"),
            ("fe80::1%br0", "peers elsewhere"),
            ("0.0.0.0", "peers elsewhere"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(word), "{text}: {said}");
        }
    }
}
