//! Making a container's network at the target, silent until its gate stands.
//!
//! namespace -> sysctls of the namespace -> links, down -> the caller attaches the gate -> links up -> addresses -> routes -> rules ->
//! neighbours -> traffic shaping -> packet filters -> what was kept quiet meanwhile (duplicate address detection, router solicitations) as the image has it.
use std::{
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use netmig_core::{
    id::MoveId,
    image::v1::net::{self, LinkKind, Mac, Network, Sysctl},
    proto::Attach,
};
use serde::{Deserialize, Serialize};

use super::{
    Doing, Error, Link, check, link, namespace,
    netlink::{self, Netlink},
    open, remove, snapshot, sysctl,
    times::Times,
    topology, txqueue,
    uapi::IN6_ADDR_GEN_MODE_NONE,
};
use crate::sys::netns::within;

mod fill;

use fill::fill;

/// Both must be 0 for an address without duplicate address detection (addrconf_dad_begin()): its owner is the same as before.
const ALL_ACCEPT_DAD: &str = "ipv6/conf/all/accept_dad";

/// What was made, and how to undo it: to be journalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The namespace.
    pub netns: PathBuf,
    /// Whether it was made too.
    pub made_netns: bool,
    /// The links made in it, and their ends on the host.
    pub made: Vec<Made>,
    /// A namespace that was there: its network before.
    pub before: Option<Network>,
    /// The values of the sysctls before that were changed in such a namespace.
    pub sysctls_before: Vec<Sysctl>,
    /// The links of the namespace as they stand: where the gate is, what is announced.
    pub links: Vec<Link>,
    /// What could not be made as it was, in words.
    pub warnings: Vec<String>,
}

/// One link that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Its name inside.
    pub link: String,
    /// Its MAC inside.
    pub mac: Option<Mac>,
    /// Its end on the host, if it is a pair.
    pub host: Option<HostEnd>,
}

/// The end of a veth on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEnd {
    /// Name.
    pub name: String,
    /// Alternative name, with the whole move id.
    pub altname: String,
    /// MAC.
    pub mac: Mac,
}

/// What [`create()`] would make: to be journalled before it, so that [`remove()`] finds everything even after a crash halfway.
///
/// # Errors
/// If a namespace that is there cannot be read.
pub fn intent(netns: &Path, network: &Network, tag: MoveId) -> Result<Created, Error> {
    let there = namespace::exists(netns)?;
    let (before, sysctls_before) = if there {
        within(netns, || {
            Ok::<_, Error>((
                Some(snapshot::here(&mut Times::default())?),
                values(network)?,
            ))
        })?
    } else {
        (None, Vec::new())
    };
    let made = network
        .links
        .iter()
        .filter(|l| l.kind != LinkKind::Loopback)
        .map(|l| Made {
            link: l.name.clone(),
            mac: l.mac,
            host: (l.kind == LinkKind::Veth).then(|| HostEnd {
                name: topology::host_name(tag, l.index),
                altname: topology::host_altname(tag, l.index),
                mac: host_mac(tag, l.index),
            }),
        });
    Ok(Created {
        netns: netns.to_owned(),
        made_netns: !there,
        made: made.collect(),
        before,
        sysctls_before,
        links: Vec::new(),
        warnings: Vec::new(),
    })
}

/// Makes `network` in the namespace at `netns`, which is made too if it is not there, with its links attached as `attach` says to devices
/// of the caller's namespace. `before_up` runs when all links exist and none has been up.
///
/// # Errors
/// [`Error::Refused`] before anything is made; else the step that failed, everything having been undone ([`Error::Undo`] if not).
pub fn create(
    netns: &Path,
    network: &Network,
    attach: &[Attach],
    tag: MoveId,
    before_up: &mut dyn FnMut(&[Link]) -> Result<(), String>,
) -> Result<Created, Error> {
    create_timed(
        netns,
        network,
        attach,
        tag,
        before_up,
        &mut Times::default(),
    )
}

/// As [`create()`]; says how long each part took.
pub(super) fn create_timed(
    netns: &Path,
    network: &Network,
    attach: &[Attach],
    tag: MoveId,
    before_up: &mut dyn FnMut(&[Link]) -> Result<(), String>,
    times: &mut Times,
) -> Result<Created, Error> {
    let found = times.part("check", || check::objections(netns, network, attach, tag))?;
    if !found.objections.is_empty() {
        return Err(Error::Refused(found.objections));
    }
    let mut created = intent(netns, network, tag)?;
    created.warnings = found.warnings;
    match build(network, attach, &mut created, before_up, times) {
        Ok(()) => Ok(created),
        Err(cause) => {
            let left = remove::remove(&created);
            if left.is_empty() {
                Err(cause)
            } else {
                Err(Error::Undo {
                    cause: Box::new(cause),
                    left,
                })
            }
        }
    }
}

fn build(
    network: &Network,
    attach: &[Attach],
    created: &mut Created,
    before_up: &mut dyn FnMut(&[Link]) -> Result<(), String>,
    times: &mut Times,
) -> Result<(), Error> {
    if created.made_netns {
        times.part("namespace", || namespace::make(&created.netns))?;
    }
    let netns = created.netns.clone();
    let host = namespace::own()?;
    let parents = parents(network, attach)?;
    let (warnings, quieted) = times.part("links", || {
        within(&netns, || {
            make_links(network, &parents, created, host.as_raw_fd())
        })
    })?;
    created.warnings.extend(warnings);
    let ends = times.part("links", || dress_host_ends(created, &parents))?;
    created.links = topology::links(&netns)?;
    before_up(&created.links).map_err(Error::BeforeUp)?;
    let mut nl = open()?;
    for (index, name) in &ends {
        link::up(&mut nl, *index).doing(|| format!("bringing up {name} on the host"))?;
    }
    for warning in within(&netns, || fill(network, &quieted, times))? {
        // The check has said it already.
        if !created.warnings.contains(&warning) {
            created.warnings.push(warning);
        }
    }
    Ok(())
}

/// For each link its parent on the host: index and name.
fn parents(network: &Network, attach: &[Attach]) -> Result<Vec<(String, u32, String)>, Error> {
    let mut nl = open()?;
    let mut found = Vec::new();
    for link in network
        .links
        .iter()
        .filter(|l| matches!(l.kind, LinkKind::Veth | LinkKind::Macvlan { .. }))
    {
        let parent = attach
            .iter()
            .find(|a| a.link == link.name)
            .map(|a| a.parent.as_str())
            .unwrap_or_default();
        let seen = link::find(&mut nl, parent)?.ok_or_else(|| {
            Error::Refused(vec![format!(
                "link {}: {parent} has gone from this host meanwhile",
                link.name
            )])
        })?;
        found.push((link.name.clone(), seen.index, parent.to_owned()));
    }
    Ok(found)
}

/// Inside: sysctls of the namespace and all links, down. Gives warnings, and the sysctls to restore when the addresses are there.
fn make_links(
    network: &Network,
    parents: &[(String, u32, String)],
    created: &Created,
    host: RawFd,
) -> Result<(Vec<String>, Vec<Sysctl>), Error> {
    let mut nl = open()?;
    let mut warnings = sysctl::set_whole(&network.sysctls)?;
    for wanted in in_order(network)? {
        let mut make = |index| {
            txqueue::fitting(wanted, |wanted| {
                make_link(&mut nl, network, wanted, index, parents, created, host)
            })
        };
        match make(wanted.index) {
            Err(e) if e.errno() == Some(libc::EBUSY) => {
                make(0).doing(|| format!("making link {}", wanted.name))?;
                warnings.push(format!(
                    "link {}: its index {} is in use here, it has another one",
                    wanted.name, wanted.index
                ));
            }
            other => {
                other.doing(|| format!("making link {} ({})", wanted.name, wanted.kind))?;
            }
        }
    }
    let mut quieted = Vec::new();
    quiet(ALL_ACCEPT_DAD, &mut quieted)?;
    let indices = link::indices(&link::dump(&mut nl)?);
    for wanted in &network.links {
        let index = indices.get(&wanted.name).copied().unwrap_or_default();
        let shorter = txqueue::fitting(wanted, |wanted| link::dress(&mut nl, index, wanted))
            .doing(|| format!("setting up link {}", wanted.name))?;
        warnings.extend(shorter);
        warnings.extend(sysctl::set_link(&network.sysctls, &wanted.name)?);
        // `lo` detects no duplicates and solicits no routers.
        for name in ["accept_dad", "router_solicitations"] {
            if wanted.kind != LinkKind::Loopback {
                quiet(&format!("ipv6/conf/{}/{name}", wanted.name), &mut quieted)?;
            }
        }
    }
    for wanted in &network.links {
        let Some(master) = &wanted.master else {
            continue;
        };
        let index = |name: &str| indices.get(name).copied().unwrap_or_default();
        link::enslave(&mut nl, index(&wanted.name), index(master))
            .doing(|| format!("enslaving link {} to {master}", wanted.name))?;
    }
    Ok((warnings, quieted))
}

/// The links to be made, each behind the one that it lies on; of a pair the first.
fn in_order(network: &Network) -> Result<Vec<&net::Link>, Error> {
    let mut waiting: Vec<_> = network
        .links
        .iter()
        .filter(|l| l.kind != LinkKind::Loopback)
        .collect();
    let mut ordered: Vec<&net::Link> = Vec::new();
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|link| {
            let made = |name: &String| ordered.iter().any(|o| o.name == *name);
            let ready = match &link.kind {
                LinkKind::Virtual {
                    parent: Some(parent),
                    ..
                } => made(parent) || parent == "lo",
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
    parents: &[(String, u32, String)],
    created: &Created,
    host: RawFd,
) -> Result<(), netlink::Error> {
    let parent = || {
        parents
            .iter()
            .find(|(link, ..)| *link == wanted.name)
            .map(|(_, index, _)| *index)
            .unwrap_or_default()
    };
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
            let id = link::netnsid(nl, host, true)?.ok_or_else(|| {
                netlink::Error::Malformed("the host's namespace has no id".into())
            })?;
            link::add_macvlan(nl, wanted, index, (parent(), id), *mode, *flags)
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

/// On the host: the move's id, no IPv6 of its own, and the bridge.
fn dress_host_ends(
    created: &Created,
    parents: &[(String, u32, String)],
) -> Result<Vec<(u32, String)>, Error> {
    let mut nl = open()?;
    let mut ends = Vec::new();
    for made in &created.made {
        let Some(end) = &made.host else { continue };
        let step = |what: &str| {
            format!(
                "{what} {}, the end of link {} on the host",
                end.name, made.link
            )
        };
        let seen = link::find(&mut nl, &end.name)?
            .ok_or_else(|| netlink::Error::Malformed("it is not there".into()))
            .doing(|| step("looking for"))?;
        link::add_altname(&mut nl, seen.index, &end.altname).doing(|| step("naming"))?;
        if seen.addr_gen_mode.is_some() {
            link::set_addr_gen_mode(&mut nl, seen.index, IN6_ADDR_GEN_MODE_NONE)
                .doing(|| step("keeping IPv6 addresses from"))?;
        }
        if let Some((_, bridge, name)) = parents.iter().find(|(link, ..)| *link == made.link) {
            link::enslave(&mut nl, seen.index, *bridge)
                .doing(|| format!("{} to bridge {name}", step("enslaving")))?;
        }
        ends.push((seen.index, end.name.clone()));
    }
    Ok(ends)
}

/// The values here of the sysctls that making `network` may change.
fn values(network: &Network) -> Result<Vec<Sysctl>, Error> {
    let paths = network
        .sysctls
        .iter()
        .map(|s| s.path.as_str())
        .chain([ALL_ACCEPT_DAD]);
    let mut values = Vec::new();
    for path in paths {
        if let Some(value) = sysctl::read(path)? {
            values.push(Sysctl {
                path: path.to_owned(),
                value,
                inherited: false,
            });
        }
    }
    Ok(values)
}

/// Begins with fe, as libvirt's taps do: a bridge without a MAC of its own takes the lowest among its ports', and must not change it.
fn host_mac(tag: MoveId, index: u32) -> Mac {
    let MoveId([a, b, c, d, e, ..]) = tag;
    // The low byte suffices: indices of one namespace differ by less.
    Mac([0xfe, a, b, c, d, e ^ index as u8])
}
