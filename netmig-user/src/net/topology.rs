//! Where a container's links hang on this host, and whether its addresses can live on another one.
//!
//! A container keeps its addresses when its link is bridged to a segment that the other host reaches too. Where this host routes or
//! translates for it, they mean nothing elsewhere: refused, by name, with the way out; but for a bridge that leads nowhere else, whose host
//! moves the addresses by which peers know the container ([`super::service`]). Published ports and namespaces shared with other
//! containers are the runtime's knowledge and judged there.
use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File},
    net::IpAddr,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use netmig_core::{
    id::MoveId,
    image::v1::net::{self, Mac, Network},
    proto::Attach,
    service::Subnet,
};
use serde::{Deserialize, Serialize};

use super::{
    Doing, Error, addr,
    link::{self, Seen},
    namespace,
    netlink::Netlink,
    nexthop, open, route, sysctl,
    uapi::IPVLAN_MODE_L2,
};
use crate::sys::netns::within;

/// A link of a container and its end on the host: where the gate goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Name inside the container's namespace.
    pub name: String,
    /// Index inside the container's namespace.
    pub ifindex: u32,
    /// MAC inside.
    pub mac: Option<Mac>,
    /// What it hangs on.
    pub kind: LinkKind,
}

/// What a link hangs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// A pair whose other end is in the caller's namespace.
    Veth {
        /// Index of that end.
        host_ifindex: u32,
        /// Its name.
        host_name: String,
        /// The bridge that it is enslaved to.
        parent: Option<String>,
    },
    /// On a parent device of the caller's namespace: the gate goes onto the link itself, inside.
    Macvlan {
        /// The parent.
        parent: Option<String>,
    },
    /// As macvlan, with the parent's MAC.
    Ipvlan {
        /// The parent.
        parent: Option<String>,
        /// IPVLAN_MODE_*.
        mode: u16,
    },
    /// A device that leads nowhere outside, by itself.
    Dummy,
    /// Anything else, in words.
    Other(String),
    /// A physical device: the gate goes onto it, inside.
    Physical,
}

impl Link {
    /// Bridge or parent device on the host.
    pub fn parent(&self) -> Option<&str> {
        match &self.kind {
            LinkKind::Veth { parent, .. }
            | LinkKind::Macvlan { parent }
            | LinkKind::Ipvlan { parent, .. } => parent.as_deref(),
            LinkKind::Loopback | LinkKind::Dummy | LinkKind::Other(_) | LinkKind::Physical => None,
        }
    }

    /// Name of the device on the host that carries its frames, if it has one of its own.
    pub fn host_name(&self) -> Option<&str> {
        match &self.kind {
            LinkKind::Veth { host_name, .. } => Some(host_name),
            _ => None,
        }
    }
}

/// The links of a container and what speaks against a move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// By index, `lo` first.
    pub links: Vec<Link>,
    /// Bridges that lead nowhere but to this host, which is the container's gateway there.
    pub behind: Vec<Subnet>,
    /// Reasons why its network cannot live on another host, each with the way out.
    pub refusals: Vec<String>,
    /// Links that cannot be made there, and what they are. The container may go without them.
    pub unfit: Vec<(String, String)>,
    /// What will be different there, without being a reason.
    pub warnings: Vec<String>,
}

impl Topology {
    /// The devices of the target that take the place of physical ones, as the operator has mapped them; what of that does not fit, in words.
    pub fn mapped(&self, map: &[Attach]) -> (Vec<Attach>, Vec<String>) {
        let mut against = Vec::new();
        let physical = |name: &str| {
            self.links
                .iter()
                .any(|l| l.name == name && l.kind == LinkKind::Physical)
        };
        for Attach { link, .. } in map.iter().filter(|m| !physical(&m.link)) {
            against.push(format!(
                "--map-link {link}: the container has no physical device {link}; leave it out"
            ));
        }
        for link in self.links.iter().filter(|l| l.kind == LinkKind::Physical) {
            if !map.iter().any(|m| m.link == link.name) {
                against.push(format!(
                    "link {} is a physical device of this host, which stays here: --map-link {}=DEVICE names the one of the target that takes its place",
                    link.name, link.name
                ));
            }
        }
        let fitting = map.iter().filter(|m| physical(&m.link));
        (fitting.cloned().collect(), against)
    }

    /// What a target must attach each link to.
    pub fn attach(&self) -> Vec<Attach> {
        let attach = |l: &Link| {
            Some(Attach {
                link: l.name.clone(),
                parent: l.parent()?.to_owned(),
            })
        };
        self.links.iter().filter_map(attach).collect()
    }
}

/// The links of the namespace at `netns` and their ends in the caller's.
///
/// # Errors
/// As [`super::snapshot()`].
pub fn links(netns: &Path) -> Result<Vec<Link>, Error> {
    if namespace::same(netns, Path::new(namespace::OWN))? {
        return Ok(Vec::new());
    }
    let inside = within(netns, || link::dump(&mut open()?))?;
    let mut nl = open()?;
    let host = link::dump(&mut nl)?;
    let file =
        File::open(netns).doing(|| format!("opening network namespace {}", netns.display()))?;
    let id = link::netnsid(&mut nl, file.as_raw_fd(), false)
        .doing(|| format!("asking for the id of network namespace {}", netns.display()))?;
    let own = namespace::own()?;
    let ours = within(netns, || {
        link::netnsid(&mut open()?, own.as_raw_fd(), false)
            .doing(|| "asking for the id of the own network namespace".to_owned())
    })?;
    Ok(inside
        .iter()
        .filter(|l| !l.is_fallback())
        .map(|l| resolve(l, &inside, &host, id, ours))
        .collect())
}

/// The links of the namespace at `netns`, and whether its network can live on another host.
///
/// # Errors
/// As [`super::snapshot()`].
pub fn topology(netns: &Path) -> Result<Topology, Error> {
    if namespace::same(netns, Path::new(namespace::OWN))? {
        let refusal = "the container uses the host's own network (host network): its addresses are the host's and stay here; \
                       give it a network of its own, on a bridge or macvlan that both hosts have";
        return Ok(Topology {
            refusals: vec![refusal.to_owned()],
            ..Topology::default()
        });
    }
    let links = links(netns)?;
    let network = within(netns, || {
        let mut nl = open()?;
        let names = link::names(&link::dump(&mut nl)?);
        let (addresses, _) = addr::dump(&mut nl, &names)?;
        let (nexthops, _) = nexthop::dump(&mut nl, &names)?;
        let (routes, _) = route::dump(&mut nl, &names, &nexthops)?;
        Ok::<_, Error>(Network {
            addresses,
            nexthops,
            routes,
            ..Network::default()
        })
    })?;
    let mut nl = open()?;
    let host = link::dump(&mut nl)?;
    let (own, _) = addr::dump(&mut nl, &link::names(&host))?;
    let mut found = Topology {
        links,
        ..Topology::default()
    };
    for link in found.links.clone() {
        judge(&link, &network, &host, &own, &mut nl, &mut found)?;
    }
    Ok(found)
}

/// Name of the host's end of the `index`th link of a move: unique on the host, and at most 15 bytes.
pub fn host_name(tag: MoveId, index: u32) -> String {
    let MoveId([a, b, c, d, ..]) = tag;
    format!("nm{a:02x}{b:02x}{c:02x}{d:02x}-{index}")
}

/// Alternative name of the host's end of the `index`th link of a move: carries the whole id, so that it is found again.
pub fn host_altname(tag: MoveId, index: u32) -> String {
    format!("netmig-{tag}-{index}")
}

/// The move that an alternative name of [`host_altname`] carries.
pub(super) fn move_of(altname: &str) -> Option<MoveId> {
    let (id, index) = altname.strip_prefix("netmig-")?.split_once('-')?;
    index.parse::<u32>().ok()?;
    id.parse().ok()
}

fn resolve(
    seen: &Seen,
    inside: &[Seen],
    host: &[Seen],
    id: Option<i32>,
    ours: Option<i32>,
) -> Link {
    // The other end or parent, if it is in the caller's namespace. A link of this namespace has no id beside its index.
    let outside = seen
        .link
        .filter(|_| seen.netnsid.is_some() && seen.netnsid == ours);
    let outside = outside.and_then(|index| host.iter().find(|h| h.index == index));
    let name_of = |index: u32| {
        host.iter()
            .find(|h| h.index == index)
            .map(|h| h.name.clone())
    };
    let parent = || outside.map(|h| h.name.clone());
    let kind = match seen.image(&link::names(inside)).kind {
        net::LinkKind::Loopback => LinkKind::Loopback,
        // What comes in there comes from another link of the namespace.
        net::LinkKind::Dummy | net::LinkKind::Pair { .. } | net::LinkKind::Virtual { .. } => {
            LinkKind::Dummy
        }
        net::LinkKind::Veth => match outside {
            // The index alone may be another device's: that one must point back at this link.
            Some(end) if end.link == Some(seen.index) && end.netnsid == id => LinkKind::Veth {
                host_ifindex: end.index,
                host_name: end.name.clone(),
                parent: end.master.and_then(name_of),
            },
            _ => LinkKind::Other(
                "veth whose other end is not in this host's own network namespace".to_owned(),
            ),
        },
        net::LinkKind::Macvlan { .. } => LinkKind::Macvlan { parent: parent() },
        net::LinkKind::Ipvlan { mode, .. } => LinkKind::Ipvlan {
            parent: parent(),
            mode,
        },
        net::LinkKind::Other(kind) => LinkKind::Other(format!("{kind} device")),
        net::LinkKind::Physical => LinkKind::Physical,
    };
    Link {
        name: seen.name.clone(),
        ifindex: seen.index,
        mac: seen.mac.filter(|_| !seen.is_loopback()),
        kind,
    }
}

fn judge(
    link: &Link,
    network: &Network,
    host: &[Seen],
    own: &[net::Address],
    nl: &mut Netlink,
    found: &mut Topology,
) -> Result<(), Error> {
    let name = &link.name;
    let elsewhere =
        "attach the container to a bridge or macvlan on a segment that both hosts are on";
    match &link.kind {
        // What takes the place of a physical one is for the operator to say (Topology::mapped()).
        LinkKind::Loopback | LinkKind::Dummy | LinkKind::Physical => {}
        LinkKind::Other(what) => found.unfit.push((name.clone(), what.clone())),
        LinkKind::Macvlan { parent: None } | LinkKind::Ipvlan { parent: None, .. } => {
            let what = if matches!(link.kind, LinkKind::Macvlan { .. }) { "a macvlan" } else { "an ipvlan" };
            found.refusals.push(format!("link {name} is {what} whose parent is not in this host's own network namespace; {elsewhere}"));
        }
        // Nobody on the segment asks for its addresses: a router leads them to this host.
        LinkKind::Ipvlan { mode, .. } if *mode != IPVLAN_MODE_L2 => found.refusals.push(format!(
            "link {name} is an ipvlan that is routed to (mode l3 or l3s), and its routes lead to this host; use mode l2, or {elsewhere}"
        )),
        LinkKind::Macvlan { parent: Some(_) } | LinkKind::Ipvlan { .. } => {}
        LinkKind::Veth { host_name, parent: None, .. } => found.refusals.push(format!(
            "link {name} ({host_name} on this host) is enslaved to no bridge: this host routes for it; {elsewhere}"
        )),
        LinkKind::Veth { host_name, parent: Some(parent), .. } => {
            bridged(name, host_name, parent, network, host, own, nl, found)?;
        }
    }
    Ok(())
}

#[expect(
    clippy::too_many_arguments,
    reason = "what a host knows, read once for all links"
)]
fn bridged(
    name: &str,
    host_name: &str,
    parent: &str,
    network: &Network,
    host: &[Seen],
    own: &[net::Address],
    nl: &mut Netlink,
    found: &mut Topology,
) -> Result<(), Error> {
    let Some(bridge) = host.iter().find(|h| h.name == parent) else {
        return Ok(());
    };
    if bridge.kind.as_deref() != Some("bridge") {
        let kind = bridge.kind.as_deref().unwrap_or("physical");
        found.refusals.push(format!("link {name} is enslaved to {parent}, a {kind} device: only bridges are handled; use a bridge"));
        return Ok(());
    }
    let gateways = || {
        let hops = network.routes.iter().flat_map(|r| &r.next_hops);
        let objects = network.nexthops.iter().map(|object| match &object.way {
            net::Way::Single { link, gateway, .. } => (link.as_deref(), *gateway),
            _ => (None, None),
        });
        hops.map(|h| (h.link.as_deref(), h.gateway))
            .chain(objects)
            .filter(|(link, _)| *link == Some(name))
            .filter_map(|(_, gateway)| gateway)
            .collect::<BTreeSet<IpAddr>>()
    };
    let uplink = uplinks(bridge, host, nl)?;
    let here = own.iter().filter(|a| a.link == parent);
    let ours: Vec<_> = here
        .filter(|a| gateways().contains(&a.local.address))
        .map(|a| a.local)
        .collect();
    if uplink.is_empty() && !ours.is_empty() {
        found.behind.push(Subnet {
            link: name.to_owned(),
            parent: parent.to_owned(),
            gateways: ours,
        });
        return Ok(());
    }
    for gateway in gateways() {
        if let Some(ours) = own
            .iter()
            .find(|a| a.local.address == gateway && !link_local(gateway))
        {
            let forwards = forwards(gateway)?;
            found.refusals.push(format!(
                "link {name} reaches other networks through {gateway}, which is this host's own address on {}{}: its subnet is routed \
                 or translated (NAT) by this host; let the container's gateway be a router on the segment of {parent}, or attach it to \
                 a bridge whose segment has one",
                ours.link,
                if forwards { "" } else { " (although this host does not forward)" },
            ));
        }
    }
    if uplink.is_empty() {
        let routed = own.iter().any(|a| {
            a.link == parent
                && network
                    .addresses_of(name)
                    .any(|c| a.local.contains(c.local.address))
        });
        found.refusals.push(format!(
            "link {name}: bridge {parent} has no uplink port ({host_name} and other containers only){}: the other host cannot be on \
             its segment; add an interface of that segment to {parent} (ip link set IFACE master {parent})",
            if routed { ", its subnet is this host's alone" } else { "" },
        ));
    }
    for what in network
        .addresses_of(name)
        .filter(|a| a.local.address.is_ipv6() && a.valid.is_some())
    {
        found.warnings.push(format!("address {} of link {name} was given by a router and expires unless it is renewed at the target", what.local));
    }
    Ok(())
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// Whether this host forwards for the family of that address.
pub(super) fn forwards(gateway: IpAddr) -> Result<bool, Error> {
    let path = if gateway.is_ipv4() {
        "ipv4/ip_forward"
    } else {
        "ipv6/conf/all/forwarding"
    };
    Ok(sysctl::read(path)?.is_some_and(|v| v != "0"))
}

/// Ports of a bridge that may lead off this host: everything but veths into namespaces that this host can see.
///
/// A host may itself be a container: its own uplink is then a veth whose other end lies in a namespace above, which no process and
/// no name here refers to.
fn uplinks(bridge: &Seen, host: &[Seen], nl: &mut Netlink) -> Result<Vec<String>, Error> {
    let ports: Vec<_> = host
        .iter()
        .filter(|h| h.master == Some(bridge.index))
        .collect();
    let local = if ports.iter().all(|p| p.kind.as_deref() == Some("veth")) {
        visible(nl)
    } else {
        HashSet::new()
    };
    let leads_off = |port: &&&Seen| match port.kind.as_deref() {
        Some("veth") => port.netnsid.is_some_and(|id| !local.contains(&id)),
        // A tap is a virtual machine of this host, as a rule; a VPN's or a tunnel's end as well.
        _ => true,
    };
    Ok(ports
        .iter()
        .filter(leads_off)
        .map(|p| p.name.clone())
        .collect())
}

/// The ids of all network namespaces that a process or a name on this host refers to.
fn visible(nl: &mut Netlink) -> HashSet<i32> {
    namespaces()
        .filter_map(|file| link::netnsid(nl, file.as_raw_fd(), false).ok().flatten())
        .collect()
}

/// All network namespaces that a process or a name on this host refers to, each once.
pub(super) fn namespaces() -> impl Iterator<Item = File> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut seen = HashSet::new();
    // What vanishes while it is read is no namespace any more.
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|b| b.is_ascii_digit())
        {
            paths.push(entry.path().join("ns/net"));
        }
    }
    for directory in ["/run/netns", "/var/run/netns", "/run/docker/netns"] {
        paths.extend(
            fs::read_dir(directory)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path()),
        );
    }
    paths.into_iter().filter_map(move |path| {
        let meta = fs::metadata(&path).ok()?;
        seen.insert((meta.dev(), meta.ino()))
            .then(|| File::open(path).ok())
            .flatten()
    })
}
