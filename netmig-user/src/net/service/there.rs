//! The target's look: the container's gateway, its subnet and the service addresses on this host.
use std::{net::IpAddr, path::Path, time::Duration};

use netmig_core::{
    image::v1::net::{Address, IFF_UP, Mac, Neighbour, Network, Prefix},
    service::{Behind, Service, Subnet},
};

use super::{
    super::{
        Doing, Error, addr, clashes, filter, hostfilter, link, neigh, open, probe::ask,
        topology::forwards, uapi::NUD_STALE,
    },
    here::{device, inside},
    rules,
};
use crate::sys::netns::within;

/// How often a service address is asked for before nobody counts as having it.
const TRIES: u32 = 5;

/// What the target finds.
#[derive(Clone, Debug, Default)]
pub struct There {
    /// What stands against it, with what to do.
    pub objections: Vec<String>,
    /// What will be different.
    pub warnings: Vec<String>,
    /// Service addresses that this host has by itself.
    pub shared: Vec<IpAddr>,
}

/// Looks at this host. An answer to each question on a segment is waited for so long.
///
/// # Errors
/// If addresses or packet filters cannot be read.
pub fn look(behind: &Behind, network: &Network, limit: Duration) -> Result<There, Error> {
    let mut found = There::default();
    let mut nl = open()?;
    let links = link::dump(&mut nl)?;
    let (own, _) = addr::dump(&mut nl, &link::names(&links))?;
    for subnet in &behind.subnets {
        found.objections.extend(gateways(subnet, &own)?);
        let bridge = links.iter().find(|l| l.name == subnet.parent);
        found
            .objections
            .extend(pinned(subnet, network, bridge.and_then(|b| b.mac)));
        // What else is wrong with the bridge stands among the objections to the link.
        if let Ok(answers) = clashes(&subnet.parent, &subnet.link, network, limit) {
            found.objections.extend(answers.iter().map(|answer| {
                let who = if answer.own { "the container itself".to_owned() } else { answer.mac.to_string() };
                format!(
                    "{} of the container is in use on {} here, by {who}: behind this host nobody else may have it; {}",
                    answer.address,
                    subnet.parent,
                    if answer.own { "part the two bridges" } else { "take it off there" }
                )
            }));
        }
    }
    for service in &behind.services {
        let address = service.address.local.address;
        if let Some(here) = own.iter().find(|a| a.local.address == address) {
            found.shared.push(address);
            found
                .objections
                .extend(contested(service, &here.link, limit)?);
        } else if let Err(objection) = takes(service, &own, limit)? {
            found.objections.push(objection);
        }
    }
    let filters = filter::dump()?;
    for lost in &filters.lost {
        found.warnings.push(format!(
            "which rules of this host translate is not wholly known: {lost}"
        ));
    }
    let here = rules::translating(&filters, &inside(network));
    found.warnings.extend(rules::missing(&behind.rules, &here));
    found.warnings.extend(hostfilter::forwarded(&filters));
    Ok(found)
}

/// Gateways that the container is not to ask for, at a MAC that is not this host's.
fn pinned(subnet: &Subnet, network: &Network, mac: Option<Mac>) -> Vec<String> {
    let pinned = network.neighbours.iter().filter(|n| of_gateway(n, subnet));
    let elsewhere =
        pinned.filter_map(|n| n.mac.filter(|there| Some(*there) != mac).map(|m| (n, m)));
    elsewhere
        .map(|(n, there)| {
            format!(
                "the container has {}, its gateway by link {}, permanently at {there}, which is not {} here; give both hosts' {} that MAC (ip link set {} address {there}), \
                 or take the entry away",
                n.address, subnet.link, subnet.parent, subnet.parent, subnet.parent
            )
        })
        .collect()
}

fn of_gateway(neighbour: &Neighbour, subnet: &Subnet) -> bool {
    let gateway = |g: &Prefix| g.address == neighbour.address;
    neighbour.link.as_ref() == Some(&subnet.link) && subnet.gateways.iter().any(gateway)
}

/// Takes out of `network`, which is to be made here, what the container has learnt of its gateways: that they were the source. What goes there would be lost
/// until it has asked in vain, for IPv6 some 10 s.
pub fn forget_source(behind: &Behind, network: &mut Network) {
    for subnet in &behind.subnets {
        let learnt = network.learnt.iter();
        let source: Vec<_> = learnt
            .filter(|n| of_gateway(n, subnet))
            .map(|n| n.mac)
            .collect();
        let of_source =
            |n: &Neighbour| n.link.as_ref() == Some(&subnet.link) && source.contains(&n.mac);
        network.learnt.retain(|n| !of_source(n));
    }
}

/// Tells the namespace at `netns`, whose links hang on this host, that its gateways are this host. Not before: a bridge may take its MAC from its ports.
///
/// # Errors
/// If an entry cannot be made.
pub fn lead_here(behind: &Behind, netns: &Path) -> Result<(), Error> {
    let mut nl = open()?;
    for subnet in &behind.subnets {
        let bridge = link::find(&mut nl, &subnet.parent)?;
        let Some(mac) = bridge.and_then(|bridge| bridge.mac) else {
            continue;
        };
        within(netns, || {
            let mut nl = open()?;
            let Some(inside) = link::find(&mut nl, &subnet.link)? else {
                return Ok(());
            };
            for Prefix { address, .. } in &subnet.gateways {
                neigh::set(&mut nl, inside.index, *address, mac, NUD_STALE)
                    .doing(|| format!("telling the container that {address} is at {mac}"))?;
            }
            Ok::<_, Error>(())
        })?;
    }
    Ok(())
}

fn gateways(subnet: &Subnet, own: &[Address]) -> Result<Vec<String>, Error> {
    let Subnet {
        link,
        parent,
        gateways,
    } = subnet;
    let mut found = Vec::new();
    for gateway in gateways {
        let there = own.iter().find(|a| a.local.address == gateway.address);
        match there {
            Some(a) if a.link == *parent && a.local == *gateway => {}
            Some(a) => found.push(format!(
                "{gateway}, the container's gateway by link {link}, is {} on {} here: it has to be {gateway} on {parent}, as at the source",
                a.local, a.link
            )),
            None => found.push(format!(
                "this host does not have {gateway}, the container's gateway by link {link}; give it to {parent} (ip addr add {gateway} dev {parent})"
            )),
        }
        if !forwards(gateway.address)? {
            let (family, setting) = match gateway.address {
                IpAddr::V4(_) => ("IPv4", "net.ipv4.ip_forward"),
                IpAddr::V6(_) => ("IPv6", "net.ipv6.conf.all.forwarding"),
            };
            found.push(format!("this host does not forward {family}, and the container's packets go through it; set {setting} to 1"));
        }
    }
    found.dedup();
    Ok(found)
}

/// Whether this host can take the service address: the source has it on the device's segment, and nobody else.
fn takes(service: &Service, own: &[Address], limit: Duration) -> Result<Result<(), String>, Error> {
    let (address, name) = (service.address.local, &service.device);
    let say = |why: String| Ok(Err(why));
    let Some((seen, mac)) = device(name)? else {
        return say(format!(
            "service address {address} has no Ethernet device {name} here to go to; --service-address {}%DEVICE names another one",
            address.address
        ));
    };
    if seen.flags & IFF_UP == 0 {
        return say(format!(
            "service address {address} would go to {name}, which is down here; bring it up (ip link set {name} up)"
        ));
    }
    // Where the source's device answers to no question there is nothing to ask for, and it objects itself.
    let Some(source) = service.mac else {
        return Ok(Ok(()));
    };
    let mut answers: Vec<Mac> = Vec::new();
    for _ in 0..TRIES {
        ask(seen.index, mac, &[address.address], limit, |_, mac| {
            if !answers.contains(&mac) {
                answers.push(mac);
            }
        })
        .doing(|| format!("asking on {name} for service address {address}"))?;
        if !answers.is_empty() {
            break;
        }
    }
    if let Some(third) = answers.iter().find(|mac| **mac != source) {
        return say(format!(
            "service address {address} is in use by {third} on {name}, which is not the source's {} ({source}): find that host and take the address off it",
            service.address.link
        ));
    }
    if answers.is_empty() {
        return say(format!(
            "nobody answers for service address {address} on {name}: it is not on the segment of the source's {}; --service-address {}%DEVICE names another device",
            service.address.link, address.address
        ));
    }
    let same = |a: &&Address| a.link == *name && overlaps(&a.local, &address);
    Ok(match own.iter().find(same) {
        Some(other) if other.local.len != address.len => Err(format!(
            "service address {address} would go to {name}, which has {} of the same network with another netmask; give both hosts the same one",
            other.local
        )),
        _ => Ok(()),
    })
}

/// Why it is no address of both hosts in peace: they answer for it on one segment, and nobody would be told that it has moved.
fn contested(service: &Service, name: &str, limit: Duration) -> Result<Option<String>, Error> {
    let address = service.address.local.address;
    let (Some((seen, mac)), Some(source)) = (device(name)?, service.mac) else {
        return Ok(None);
    };
    let mut answers = false;
    ask(seen.index, mac, &[address], limit, |_, mac| {
        answers |= mac == source
    })
    .doing(|| format!("asking on {name} for service address {address}"))?;
    Ok(answers.then(|| {
        format!(
            "service address {address} is on {name} here, and the source answers for it on the same segment: whoever asks for it gets the one or the other;              take it off here, and the move brings it (ip addr del {address} dev {name})"
        )
    }))
}

fn overlaps(a: &Prefix, b: &Prefix) -> bool {
    let host = |p: &Prefix| p.len == if p.address.is_ipv4() { 32 } else { 128 };
    !host(a) && !host(b) && (a.contains(b.address) || b.contains(a.address))
}
