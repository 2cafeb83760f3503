//! The links of the namespace, down, with what enslaves one to another.
use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, RawFd},
};

use netmig_core::image::v1::net::{self, LinkKind, Network, Sysctl};

use super::{
    super::{
        Doing, Error, bridging, link, namespace,
        netlink::{self, Netlink},
        open, physical, sysctl, txqueue,
    },
    Created, Parent,
};

/// Both must be 0 for an address without duplicate address detection (addrconf_dad_begin()): its owner is the same as before.
pub(super) const ALL_ACCEPT_DAD: &str = "ipv6/conf/all/accept_dad";

/// Inside: sysctls of the namespace and all links, down. Gives warnings, and the sysctls to restore when the addresses are there.
pub(super) fn make_links(
    network: &Network,
    parents: &[Parent],
    created: &Created,
    host: RawFd,
) -> Result<(Vec<String>, Vec<Sysctl>), Error> {
    let mut nl = open()?;
    let mut warnings = sysctl::set_whole(&network.sysctls)?;
    for wanted in in_order(network)? {
        let other = match &wanted.kind {
            LinkKind::Pair { other } => network.link(other).map(|other| other.index),
            _ => None,
        };
        // A device of a tunnel module, which every namespace has (making a link may load one), or one that was there. Asked to make a link
        // with such an index, the kernel takes the request for one about that device, and has one thing or another against it.
        let mut taken = false;
        for index in [wanted.index].into_iter().chain(other) {
            taken |= link::exists(&mut nl, index)
                .doing(|| format!("looking for index {index} of link {}", wanted.name))?;
        }
        let mut make = |index| {
            txqueue::fitting(wanted, |wanted| {
                make_link(&mut nl, network, wanted, index, parents, created, host)
            })
        };
        make(if taken { 0 } else { wanted.index })
            .doing(|| format!("making link {} ({})", wanted.name, wanted.kind))?;
        if taken {
            warnings.push(format!(
                "link {}: its index {} is in use here, it has another one",
                wanted.name, wanted.index
            ));
        }
    }
    let mut quieted = Vec::new();
    quiet(ALL_ACCEPT_DAD, &mut quieted)?;
    let indices = link::indices(&link::dump(&mut nl)?);
    for wanted in &network.links {
        let index = indices.get(&wanted.name).copied().unwrap_or_default();
        let plain;
        let wanted = match wanted.kind {
            // What its driver can do, and how its host calls it besides, is its own.
            LinkKind::Physical => {
                plain = net::Link {
                    gso_max_size: None,
                    gso_max_segs: None,
                    altnames: Vec::new(),
                    ..wanted.clone()
                };
                &plain
            }
            _ => wanted,
        };
        let shorter = txqueue::fitting(wanted, |wanted| link::dress(&mut nl, index, wanted))
            .doing(|| format!("setting up link {}", wanted.name))?;
        warnings.extend(shorter);
        warnings.extend(sysctl::set_link(&network.sysctls, &wanted.name)?);
        // `lo` detects no duplicates and solicits no routers. With use_tempaddr the kernel would add a temporary address to each that it is to manage
        // (manage_tempaddrs()), beside those that come along.
        for name in ["accept_dad", "router_solicitations", "use_tempaddr"] {
            if wanted.kind != LinkKind::Loopback {
                quiet(&format!("ipv6/conf/{}/{name}", wanted.name), &mut quieted)?;
            }
        }
    }
    let index = |name: &str| indices.get(name).copied().unwrap_or_default();
    for wanted in &network.links {
        settle(&mut nl, wanted, &indices)
            .doing(|| format!("giving link {} its settings", wanted.name))?;
    }
    for wanted in &network.links {
        let Some(master) = &wanted.master else {
            continue;
        };
        link::enslave(&mut nl, index(&wanted.name), index(master))
            .doing(|| format!("enslaving link {} to {master}", wanted.name))?;
        link::settle_port(&mut nl, index(&wanted.name), &wanted.port).doing(|| {
            format!(
                "giving link {} its settings as a port of {master}",
                wanted.name
            )
        })?;
    }
    for wanted in &network.links {
        bridging::set_vlans(&mut nl, index(&wanted.name), wanted)
            .doing(|| format!("setting the VLANs of link {}", wanted.name))?;
    }
    Ok((warnings, quieted))
}

/// What of a link's settings is given when it is there.
fn settle(
    nl: &mut Netlink,
    wanted: &net::Link,
    indices: &HashMap<String, u32>,
) -> Result<(), netlink::Error> {
    let LinkKind::Virtual { kind, settings, .. } = &wanted.kind else {
        return Ok(());
    };
    let index = indices.get(&wanted.name).copied().unwrap_or_default();
    match kind.as_str() {
        "bond" => link::settle_bond(nl, index, settings, indices),
        link::wireguard::KIND => link::wireguard::set(index, settings),
        _ => Ok(()),
    }
}

/// By itself, or because it was taken from the host.
fn is_there(link: &net::Link) -> bool {
    matches!(link.kind, LinkKind::Loopback | LinkKind::Physical)
}

/// The links to be made, each behind the one that it lies on; of a pair the first.
fn in_order(network: &Network) -> Result<Vec<&net::Link>, Error> {
    let mut waiting: Vec<_> = network.links.iter().filter(|l| !is_there(l)).collect();
    let there: Vec<_> = network.links.iter().filter(|l| is_there(l)).collect();
    let mut ordered: Vec<&net::Link> = Vec::new();
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|link| {
            let made = |name: &String| {
                let mut all = there.iter().chain(&ordered);
                all.any(|o| o.name == *name)
            };
            let ready = match &link.kind {
                LinkKind::Virtual {
                    parent: Some(parent),
                    ..
                } => made(parent),
                _ => true,
            };
            if ready {
                ordered.push(link);
            }
            !ready
        });
        if waiting.len() == before {
            let names: Vec<_> = waiting.iter().map(|l| l.name.as_str()).collect();
            return Err(Error::Refused(vec![format!(
                "links {} lie on each other in a circle",
                names.join(", ")
            )]));
        }
    }
    let second = |at: usize, link: &net::Link| matches!(&link.kind, LinkKind::Pair { other } if ordered[..at].iter().any(|o| o.name == *other));
    Ok((0..ordered.len())
        .filter(|at| !second(*at, ordered[*at]))
        .map(|at| ordered[at])
        .collect())
}

fn make_link(
    nl: &mut Netlink,
    network: &Network,
    wanted: &net::Link,
    index: u32,
    parents: &[Parent],
    created: &Created,
    host: RawFd,
) -> Result<(), netlink::Error> {
    let parent = parents
        .iter()
        .find(|p| p.link == wanted.name)
        .map(|p| p.seen.index)
        .unwrap_or_default();
    let end = created
        .made
        .iter()
        .find(|m| m.link == wanted.name)
        .and_then(|m| m.host.as_ref());
    match (&wanted.kind, end) {
        (LinkKind::Veth, Some(end)) => link::add_veth(
            nl,
            wanted,
            index,
            &link::HostEnd {
                name: &end.name,
                mac: end.mac,
                netns: host,
            },
        ),
        (LinkKind::Macvlan { mode, flags }, _) => {
            on_parent(nl, host, wanted, index, |nl, wanted, index, host| {
                link::add_macvlan(nl, wanted, index, (parent, host), *mode, *flags)
            })
        }
        (LinkKind::Ipvlan { mode, flags }, _) => {
            on_parent(nl, host, wanted, index, |nl, wanted, index, host| {
                link::add_ipvlan(nl, wanted, index, (parent, host), *mode, *flags)
            })
        }
        (LinkKind::Dummy, _) => link::add_dummy(nl, wanted, index),
        (LinkKind::Pair { other }, _) => {
            let other = network.link(other).ok_or_else(|| {
                netlink::Error::Malformed(format!("its other end {other} is not in the image"))
            })?;
            let other_index = if index == 0 { 0 } else { other.index };
            link::add_pair(nl, wanted, index, other, other_index)
        }
        (
            LinkKind::Virtual {
                kind,
                parent,
                settings,
            },
            _,
        ) => {
            let parent = match parent {
                Some(name) => link::index(nl, name)?,
                None => None,
            };
            if kind == "tun" {
                link::tun::add(nl, wanted, index, settings)
            } else {
                link::add_virtual(nl, wanted, index, kind, parent, settings)
            }
        }
        (kind, _) => Err(netlink::Error::Malformed(format!(
            "a {kind} device cannot be made"
        ))),
    }
}

/// Makes a link that lies on a device of the host, by `add`: socket, link, index, and the id of the host's namespace.
///
/// Before Linux 6.15 the kernel makes such a link in the namespace of that device first (rtnl_newlink_create()), where its name or its index is in use as a rule.
/// Then it is made in a scratch namespace, with what name and index there are, and is given its own on the way from there.
fn on_parent(
    nl: &mut Netlink,
    host: RawFd,
    wanted: &net::Link,
    index: u32,
    add: impl Fn(&mut Netlink, &net::Link, u32, i32) -> Result<(), netlink::Error> + Sync,
) -> Result<(), netlink::Error> {
    let id = host_id(nl, host)?;
    match add(nl, wanted, index, id) {
        Err(e) if matches!(e.errno(), Some(libc::EBUSY | libc::EEXIST)) => {}
        other => return other,
    }
    let inside = namespace::own().map_err(in_words)?;
    let nameless = net::Link {
        name: String::new(),
        ..wanted.clone()
    };
    let made = namespace::scratch(|| {
        let mut nl = open()?;
        let id = host_id(&mut nl, host).doing(|| "asking for the host".to_owned())?;
        Ok(add(&mut nl, &nameless, 0, id).and_then(|()| {
            let links = link::dump(&mut nl).map_err(in_words)?;
            let made = links.iter().find(|l| l.netnsid.is_some());
            let made = made.ok_or_else(|| in_words("what was made is not there"))?;
            let index = Some(index).filter(|index| *index != 0);
            physical::put(&mut nl, made.index, inside.as_raw_fd(), &wanted.name, index)
        }))
    });
    made.map_err(in_words)?
}

fn in_words(error: impl std::fmt::Display) -> netlink::Error {
    netlink::Error::Io(io::Error::other(error.to_string()))
}

/// The id that the namespace of `nl` has for the host's.
fn host_id(nl: &mut Netlink, host: RawFd) -> Result<i32, netlink::Error> {
    let unknown = || netlink::Error::Malformed("the host's namespace has no id".into());
    link::netnsid(nl, host, true)?.ok_or_else(unknown)
}

/// Sets a sysctl to 0 and notes what it was.
fn quiet(path: &str, quieted: &mut Vec<Sysctl>) -> Result<(), Error> {
    if let Some(value) = sysctl::read(path)?
        && value != "0"
    {
        sysctl::write(path, "0")?;
        quieted.push(Sysctl {
            path: path.to_owned(),
            value,
            inherited: false,
        });
    }
    Ok(())
}
