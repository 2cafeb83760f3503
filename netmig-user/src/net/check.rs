//! What a target finds before anything is made: each with what to do.
use std::path::Path;

use netmig_core::{
    id::MoveId,
    image::v1::net::{Link, LinkKind, Network, Way},
    proto::Attach,
};

use super::{
    Error, addr, filter,
    hostfilter::{self, Passed},
    link::{self, Seen},
    namespace, nexthop, open, physical, qdisc, shared, sysctl, topology,
    uapi::{IFLA_BR_STP_STATE, IFLA_BR_VLAN_FILTERING},
};
use crate::sys::netns::within;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Reasons why the network cannot be made here.
    pub objections: Vec<String>,
    /// What will be different, without being a reason.
    pub warnings: Vec<String>,
}

/// Whether `network` can be made in the namespace at `netns` (there or not) with links on the parents of `attach` in the caller's.
/// Changes nothing.
///
/// # Errors
/// If the host's own links cannot be read.
pub fn objections(
    netns: &Path,
    network: &Network,
    attach: &[Attach],
    tag: MoveId,
) -> Result<Found, Error> {
    let mut found = Found::default();
    let host = link::dump(&mut open()?)?;
    let inside = if namespace::exists(netns)? {
        Some(within(netns, || link::dump(&mut open()?))?)
    } else {
        None
    };
    let mut passed = Passed::default();
    for wanted in &network.links {
        if !valid(wanted) {
            found.objections.push(format!(
                "{:?} is no name that a {} link can have",
                wanted.name, wanted.kind
            ));
            continue;
        }
        kind(wanted, &mut found);
        if let Some(inside) = &inside {
            in_use(netns, wanted, inside, &mut found);
        }
        if !wanted.kind.lies_outside() && !wanted.kind.is_physical() {
            continue;
        }
        let Some(parent) = attach
            .iter()
            .find(|a| a.link == wanted.name)
            .map(|a| &a.parent)
        else {
            if wanted.kind == LinkKind::Physical {
                found.objections.push(format!(
                    "link {} is a physical device, which cannot be made here: --map-link {}=DEVICE names the one of this host that takes its place",
                    wanted.name, wanted.name
                ));
                continue;
            }
            found.objections.push(format!("link {}: it is not said what it is attached to here; name a bridge or parent device", wanted.name));
            continue;
        };
        match host
            .iter()
            .find(|h| h.name == *parent || h.altnames.contains(parent))
        {
            None => found.objections.push(missing(wanted, parent)),
            Some(device) if wanted.kind == LinkKind::Physical => {
                let (own, _) = addr::dump(&mut open()?, &link::names(&host))?;
                let against = physical::objections(wanted, device, &host, &own);
                found.objections.extend(against);
            }
            Some(parent) => {
                on_parent(wanted, parent, &host, tag, &mut found);
                found.objections.extend(shared::objections(wanted, parent)?);
                passed.add(parent, &host);
            }
        }
    }
    dangling(network, &mut found);
    found.warnings.extend(hostfilter::concerns(&passed)?);
    found.warnings.extend(sysctl::lacking(&network.sysctls)?);
    if found.objections.is_empty() {
        let against = filter::rehearse(&network.filters, &network.links)?;
        if network.filters.partial {
            found.warnings.extend(against);
        } else {
            found.objections.extend(against);
        }
        let against = qdisc::rehearse(&network.shaping, &network.links)?;
        found.warnings.extend(against);
    }
    Ok(found)
}

/// dev_valid_name(), and that the loopback of every namespace is `lo`. A name becomes a part of a path below /proc/sys/net.
fn valid(wanted: &Link) -> bool {
    let name = wanted.name.as_str();
    let valid = !matches!(name, "" | "." | "..")
        && name.len() < libc::IFNAMSIZ
        && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace());
    valid && (wanted.kind == LinkKind::Loopback) == (name == "lo")
}

/// Leaves out the links of kinds that cannot be made on any host, and what needs a link that is not there: each in words.
pub fn leave_out(network: &mut Network) -> Vec<String> {
    network.leave_out(|link| {
        unknown(link).then(|| format!("it is a {} device, which cannot be made here", link.kind))
    })
}

fn unknown(wanted: &Link) -> bool {
    match &wanted.kind {
        LinkKind::Virtual { kind, .. } => !link::is_virtual(kind),
        LinkKind::Other(_) => true,
        _ => false,
    }
}

fn kind(wanted: &Link, found: &mut Found) {
    if matches!(&wanted.kind, LinkKind::Virtual { kind, .. } if kind == "tun")
        && !link::tun::possible()
    {
        found.objections.push(format!(
            "link {} is a tun device, and this host has no {}; load the module (modprobe tun)",
            wanted.name,
            link::tun::DEVICE
        ));
    }
    if unknown(wanted) {
        found.objections.push(format!(
            "link {} is a {} device, which cannot be made here; remove it from the container",
            wanted.name, wanted.kind
        ));
    }
}

fn in_use(netns: &Path, wanted: &Link, inside: &[Seen], found: &mut Found) {
    if wanted.kind != LinkKind::Loopback && inside.iter().any(|l| l.name == wanted.name) {
        found.objections.push(format!(
            "network namespace {} has a link {} already; remove it (ip -n NAME link del {}), or use another namespace",
            netns.display(),
            wanted.name,
            wanted.name,
        ));
    }
}

fn missing(wanted: &Link, parent: &str) -> String {
    match wanted.kind {
        LinkKind::Veth => format!(
            "link {}: there is no bridge {parent} here; make it (ip link add {parent} type bridge; ip link set {parent} up) with a port on \
             the container's segment, or attach the link to another bridge",
            wanted.name,
        ),
        LinkKind::Physical => format!(
            "link {}: there is no device {parent} here (in this host's own network namespace); map the link to another one",
            wanted.name
        ),
        _ => format!(
            "link {}: there is no parent device {parent} here; attach the link to another one",
            wanted.name
        ),
    }
}

fn on_parent(wanted: &Link, parent: &Seen, host: &[Seen], tag: MoveId, found: &mut Found) {
    let (link, name) = (&wanted.name, &parent.name);
    if wanted.kind == LinkKind::Veth {
        if parent.kind.as_deref() != Some("bridge") {
            let kind = parent.kind.as_deref().unwrap_or("physical");
            found.objections.push(format!("link {link}: {name} is a {kind} device here, a bridge is needed; attach the link to a bridge"));
        }
        let ours = topology::host_name(tag, wanted.index);
        if host
            .iter()
            .any(|h| h.name == ours || h.altnames.contains(&ours))
        {
            found.objections.push(format!(
                "link {link}: the name {ours} of its end on this host is in use, by an earlier attempt of this move; remove it (ip link del {ours})"
            ));
        }
        let on = |kind| {
            parent
                .data_attr(kind)
                .is_some_and(|a| a.value.iter().any(|b| *b != 0))
        };
        if on(IFLA_BR_STP_STATE) {
            found.warnings.push(format!("bridge {name} runs the spanning tree protocol: its new port for {link} forwards only after the forward delay"));
        }
        if on(IFLA_BR_VLAN_FILTERING) {
            found.warnings.push(format!("bridge {name} filters VLANs: its new port for {link} is in the bridge's default VLAN"));
        }
    }
    if !net_up(parent) {
        found.objections.push(format!(
            "link {link}: {name} is down here; bring it up (ip link set {name} up)"
        ));
    }
    if wanted.mtu > parent.mtu {
        found.objections.push(format!(
            "link {link} has an MTU of {}, {name} only {} here; raise it (ip link set {name} mtu {}), and that of its ports",
            wanted.mtu, parent.mtu, wanted.mtu,
        ));
    }
    if let Some(mac) = wanted.mac.filter(|_| !wanted.kind.has_hosts_mac())
        && let Some(other) = host.iter().find(|h| h.mac == Some(mac))
    {
        found.objections.push(format!(
            "link {link} has the MAC {mac}, which {} has here already; two stations with one MAC disturb each other: give {} another one",
            other.name, other.name,
        ));
    }
}

fn net_up(link: &Seen) -> bool {
    link.flags & netmig_core::image::v1::net::IFF_UP != 0
}

/// An image may come from anywhere: what names a link that is not in it is found here and not halfway.
fn dangling(network: &Network, found: &mut Found) {
    let mut need = |what: String, link: &str| {
        if network.link(link).is_none() {
            found.objections.push(format!(
                "{what} needs link {link}, which the container does not have"
            ));
        }
    };
    for link in &network.links {
        let on = match &link.kind {
            LinkKind::Virtual { parent, .. } => parent.as_ref(),
            LinkKind::Pair { other } => Some(other),
            _ => None,
        };
        for on in on.into_iter().chain(&link.master) {
            need(format!("link {}", link.name), on);
        }
    }
    for address in &network.addresses {
        need(format!("address {}", address.local), &address.link);
    }
    for object in &network.nexthops {
        if let Way::Single {
            link: Some(link), ..
        } = &object.way
        {
            need(format!("next hop object {object}"), link);
        }
    }
    for route in &network.routes {
        for hop in &route.next_hops {
            if let Some(link) = &hop.link {
                need(format!("route {route}"), link);
            }
        }
    }
    for neighbour in &network.neighbours {
        if let Some(link) = &neighbour.link {
            need(format!("neighbour {}", neighbour.address), link);
        }
    }
    for neighbour in &network.learnt {
        if let Some(link) = &neighbour.link {
            need(format!("learnt neighbour {}", neighbour.address), link);
        }
    }
    for entry in &network.forwarding {
        for link in [&entry.link].into_iter().chain(&entry.via) {
            need(format!("forwarding entry {}", entry.mac), link);
        }
    }
    let ids = nexthop::ids(&network.nexthops);
    let mut need = |what: String, id: u32| {
        if !ids.contains(&id) {
            found.objections.push(format!(
                "{what} needs next hop object {id}, which the container does not have"
            ));
        }
    };
    for object in &network.nexthops {
        if let Way::Group { members, .. } = &object.way {
            for (id, _) in members {
                need(format!("next hop object {object}"), *id);
            }
        }
    }
    for route in &network.routes {
        if let Some(id) = route.nexthop {
            need(format!("route {route}"), id);
        }
    }
}
