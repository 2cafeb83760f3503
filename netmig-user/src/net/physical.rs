//! Physical devices (a virtual function of one, too): a device of the target takes the place of the container's, as the operator maps them.
//!
//! Such a device cannot be made. It is taken out of its host's namespace, under the name, the index and the MAC that the container knows, and
//! goes back as it was when that is undone. At the source it goes back to its host, with the MAC of its maker: two stations with one MAC disturb
//! each other. Left in a namespace that ends, it would go to the first namespace of all (default_device_exit_net()).
use std::os::fd::RawFd;

use netmig_core::image::v1::net::{self, IFF_UP, Mac};
use serde::{Deserialize, Serialize};

use super::{
    Doing, Error,
    attr::Message,
    link::{self, Seen},
    netlink::{self, Netlink},
    open,
    uapi::{IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_NET_NS_FD, IFLA_NEW_IFINDEX},
};

/// How a device of this host was before the container had it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it was up.
    pub up: bool,
}

impl Taken {
    /// How it is now.
    pub fn of(device: &Seen) -> Self {
        Self {
            name: device.name.clone(),
            index: device.index,
            mac: device.mac,
            mtu: device.mtu,
            up: device.flags & IFF_UP != 0,
        }
    }
}

/// What speaks against giving `device` of this host to the container as `wanted`; `host` are this host's links, `own` its addresses.
pub fn objections(
    wanted: &net::Link,
    device: &Seen,
    host: &[Seen],
    own: &[net::Address],
) -> Vec<String> {
    let (link, name) = (&wanted.name, &device.name);
    let mut found = Vec::new();
    if device.is_loopback() || device.kind.is_some() {
        let kind = device.kind.as_deref().unwrap_or("loopback");
        found.push(format!(
            "link {link} is a physical device, {name} is a {kind} device here; map it to a physical one, or to a virtual function of one"
        ));
    }
    if let Some(master) = device.master {
        let master = host.iter().find(|h| h.index == master);
        let master = master.map_or("another link", |m| m.name.as_str());
        found.push(format!(
            "link {link}: {name} is a port of {master} here; take it out (ip link set {name} nomaster), or map the link to another device"
        ));
    }
    if let Some(address) = (own.iter()).find(|a| a.link == *name && a.scope < libc::RT_SCOPE_LINK) {
        found.push(format!(
            "link {link}: {name} has this host's own address {}, which it would lose; take it off, or map the link to another device",
            address.local
        ));
    }
    if let Some(other) = (host.iter()).find(|h| h.link == Some(device.index) && h.netnsid.is_none())
    {
        found.push(format!(
            "link {link}: {} lies on {name} here, and would go with it; map the link to another device",
            other.name
        ));
    }
    if let Some(mac) = wanted.mac
        && let Some(other) = (host.iter()).find(|h| h.mac == Some(mac) && h.index != device.index)
    {
        found.push(format!(
            "link {link} has the MAC {mac}, which {} has here already; two stations with one MAC disturb each other: give {} another one",
            other.name, other.name,
        ));
    }
    found
}

/// Whether a device of this host is there and down: nothing can be asked through it.
///
/// # Errors
/// If the links cannot be read.
pub fn is_down(device: &str) -> Result<bool, Error> {
    let seen = link::find(&mut open()?, device)?;
    Ok(seen.is_some_and(|device| device.flags & IFF_UP == 0))
}

/// Puts the device of that index of the caller's namespace into the one behind `netns`, down, as the container knows it. Gives warnings.
pub fn take(
    nl: &mut Netlink,
    device: u32,
    netns: RawFd,
    wanted: &net::Link,
) -> Result<Vec<String>, netlink::Error> {
    link::down(nl, device)?;
    let mut warnings = Vec::new();
    if let Some(mac) = wanted.mac
        && let Err(e) = set_mac(nl, device, mac)
    {
        warnings.push(format!(
            "link {}: the device here does not take the MAC {mac} ({e}), it keeps its own",
            wanted.name
        ));
    }
    match put(nl, device, netns, &wanted.name, Some(wanted.index)) {
        Err(e) if e.errno() == Some(libc::EBUSY) => {
            put(nl, device, netns, &wanted.name, None)?;
            warnings.push(format!(
                "link {}: its index {} is in use here, it has another one",
                wanted.name, wanted.index
            ));
        }
        other => other?,
    }
    Ok(warnings)
}

/// From the container's namespace, in which it is called: gives the device that is `name` here back to the host's namespace, as it was.
/// One that is not here is no error.
pub fn give_back(name: &str, host: RawFd, was: &Taken) -> Result<(), Error> {
    let mut nl = open()?;
    let Some(device) = link::find(&mut nl, name)?.filter(|d| d.kind.is_none() && !d.is_loopback())
    else {
        return Ok(());
    };
    let step = || format!("giving {name} back to this host as {}", was.name);
    link::down(&mut nl, device.index).doing(step)?;
    let request = Message::link(device.index, 0, 0).u32(IFLA_MTU, was.mtu);
    nl.request(libc::RTM_SETLINK, 0, request).doing(step)?;
    if let Some(mac) = was.mac.filter(|mac| device.mac != Some(*mac)) {
        set_mac(&mut nl, device.index, mac).doing(step)?;
    }
    // The host may have given its index or its name to another one meanwhile.
    let other = format!("nm-{}", was.name.chars().take(12).collect::<String>());
    let index = Some(was.index);
    let mut tried = Ok(());
    for (name, index) in [(&was.name, index), (&was.name, None), (&other, None)] {
        tried = put(&mut nl, device.index, host, name, index);
        match &tried {
            Err(e) if matches!(e.errno(), Some(libc::EEXIST | libc::EBUSY)) => {}
            _ => break,
        }
    }
    tried.doing(step)
}

/// In the host's namespace, behind [`give_back`]: the rest of how it was.
pub fn settle(was: &Taken) -> Result<(), Error> {
    if !was.up {
        return Ok(());
    }
    let mut nl = open()?;
    match link::find(&mut nl, &was.name)? {
        Some(device) => link::up(&mut nl, device.index)
            .doing(|| format!("bringing up {} again on the host", was.name)),
        None => Ok(()),
    }
}

/// The source's device, in the container's namespace, in which it is called, goes back to its host, down, with its maker's MAC.
pub fn depart(name: &str, host: RawFd) -> Result<(), Error> {
    let mut nl = open()?;
    let Some(device) = link::find(&mut nl, name)? else {
        return Ok(());
    };
    let was = Taken {
        name: name.to_owned(),
        index: device.index,
        mtu: device.mtu,
        mac: device.permanent_mac.or(device.mac),
        up: false,
    };
    give_back(name, host, &was)
}

fn set_mac(nl: &mut Netlink, index: u32, mac: Mac) -> Result<(), netlink::Error> {
    let request = Message::link(index, 0, 0).bytes(IFLA_ADDRESS, &mac.0);
    nl.request(libc::RTM_SETLINK, 0, request)
}

/// Moves a link of the namespace of `nl` into the one behind `netns`, under this name; without an index it keeps its own, or has another.
pub fn put(
    nl: &mut Netlink,
    device: u32,
    netns: RawFd,
    name: &str,
    index: Option<u32>,
) -> Result<(), netlink::Error> {
    let request = Message::link(device, 0, 0)
        .bytes(IFLA_NET_NS_FD, &netns.to_ne_bytes())
        .text(IFLA_IFNAME, name)
        .maybe(index, |m, index| m.u32(IFLA_NEW_IFINDEX, index));
    nl.request(libc::RTM_SETLINK, 0, request)
}

#[cfg(test)]
mod tests {
    use netmig_core::{
        image::v1::net::{Address, Link, LinkKind, Prefix},
        proto::Attach,
    };

    use super::*;
    use crate::net::{self, Topology};

    #[test]
    fn what_is_mapped_is_a_physical_device_and_each_is() {
        let link = |name: &str, kind| net::Link {
            name: name.into(),
            ifindex: 2,
            mac: None,
            kind,
        };
        let topology = Topology {
            links: vec![
                link("lo", net::LinkKind::Loopback),
                link("wan", net::LinkKind::Physical),
                link("eth0", net::LinkKind::Dummy),
            ],
            ..Topology::default()
        };
        let map = |link: &str| Attach {
            link: link.into(),
            parent: "ens5".into(),
        };
        assert_eq!(topology.mapped(&[map("wan")]), (vec![map("wan")], vec![]));
        let (fitting, against) = topology.mapped(&[map("eth0")]);
        assert!(fitting.is_empty());
        assert_eq!(
            against,
            [
                "--map-link eth0: the container has no physical device eth0; leave it out",
                "link wan is a physical device of this host, which stays here: --map-link wan=DEVICE names the one of the target that takes its place",
            ]
        );
    }

    #[test]
    fn a_device_that_the_host_needs_is_not_taken() {
        let wanted = Link {
            mac: Some(Mac([2, 0, 0, 0, 0, 9])),
            flags: 1,
            ..Link::new("eth1", 3, LinkKind::Physical)
        };
        let device = |name: &str, index| Seen {
            name: name.into(),
            index,
            ..Seen::default()
        };
        let spare = device("ens5", 5);
        let with = |link: &Seen| objections(&wanted, link, &[device("br0", 2)], &[]);
        assert!(with(&spare).is_empty());
        let port = Seen {
            master: Some(2),
            ..spare.clone()
        };
        assert!(with(&port)[0].starts_with("link eth1: ens5 is a port of br0 here; "));
        let dummy = Seen {
            kind: Some("dummy".into()),
            ..spare.clone()
        };
        assert!(
            with(&dummy)[0]
                .starts_with("link eth1 is a physical device, ens5 is a dummy device here; ")
        );
        let above = Seen {
            link: Some(5),
            mac: wanted.mac,
            ..device("ens5.7", 9)
        };
        let found = objections(&wanted, &spare, &[above], &[]);
        assert!(
            found[0].contains("ens5.7 lies on ens5 here")
                && found[1].contains("which ens5.7 has here already"),
            "{found:?}"
        );
        let address = Address::new(
            "ens5",
            Prefix {
                address: "192.0.2.1".parse().unwrap(),
                len: 24,
            },
        );
        assert!(
            objections(&wanted, &spare, &[], &[address])[0]
                .contains("this host's own address 192.0.2.1/24")
        );
    }
}
