//! Making a container's network at the target, silent until its gate stands.
//!
//! namespace -> sysctls of the namespace -> links, down -> the caller attaches the gate -> links up -> addresses -> routes -> rules ->
//! neighbours -> traffic shaping -> packet filters -> what was kept quiet meanwhile (duplicate address detection, router solicitations) as the image has it.
use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use netmig_core::{
    id::MoveId,
    image::v1::net::{LinkKind, Mac, Network, Sysctl},
    proto::Attach,
};
use serde::{Deserialize, Serialize};

use super::{
    Doing, Error, Link, check, link, namespace, netlink, open,
    physical::{self, Taken},
    remove, snapshot, sysctl,
    times::Times,
    topology,
    uapi::IN6_ADDR_GEN_MODE_NONE,
};
use crate::sys::netns::within;

mod fill;
mod links;

use fill::fill;
use links::{ALL_ACCEPT_DAD, make_links};

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
    /// The device of the host that it is, if it was taken from there.
    #[serde(default)]
    pub taken: Option<Taken>,
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
pub fn intent(
    netns: &Path,
    network: &Network,
    attach: &[Attach],
    tag: MoveId,
) -> Result<Created, Error> {
    let devices = parents(network, attach, LinkKind::is_physical)?;
    let lent = parents(network, attach, LinkKind::has_hosts_mac)?;
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
            mac: (lent.iter())
                .find(|parent| parent.link == l.name)
                .map_or(l.mac, |parent| parent.seen.mac),
            host: (l.kind == LinkKind::Veth).then(|| HostEnd {
                name: topology::host_name(tag, l.index),
                altname: topology::host_altname(tag, l.index),
                mac: host_mac(tag, l.index),
            }),
            taken: (devices.iter())
                .find(|d| d.link == l.name)
                .map(|d| Taken::of(&d.seen)),
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
    let mut created = intent(netns, network, attach, tag)?;
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
    let file =
        File::open(&netns).doing(|| format!("opening network namespace {}", netns.display()))?;
    for device in parents(network, attach, LinkKind::is_physical)? {
        let Some(wanted) = network.link(&device.link) else {
            continue;
        };
        let taken = physical::take(&mut open()?, device.seen.index, file.as_raw_fd(), wanted);
        let step = || format!("taking {} for link {}", device.name, device.link);
        created.warnings.extend(taken.doing(step)?);
    }
    let parents = parents(network, attach, LinkKind::lies_outside)?;
    let (warnings, quieted) = times.part("links", || {
        within(&netns, || {
            make_links(network, &parents, created, host.as_raw_fd())
        })
    })?;
    warn(created, warnings);
    let ends = times.part("links", || dress_host_ends(created, &parents))?;
    created.links = topology::links(&netns)?;
    before_up(&created.links).map_err(Error::BeforeUp)?;
    let mut nl = open()?;
    for (index, name) in &ends {
        link::up(&mut nl, *index).doing(|| format!("bringing up {name} on the host"))?;
    }
    let warnings = within(&netns, || fill(network, &quieted, times))?;
    warn(created, warnings);
    Ok(())
}

/// The check has said some of it already.
fn warn(created: &mut Created, warnings: Vec<String>) {
    for warning in warnings {
        if !created.warnings.contains(&warning) {
            created.warnings.push(warning);
        }
    }
}

/// A device of the host that a link is attached to, or that it is.
struct Parent {
    link: String,
    seen: link::Seen,
    /// As the operator names it.
    name: String,
}

/// For each link of such a kind its parent on the host.
fn parents(
    network: &Network,
    attach: &[Attach],
    of: fn(&LinkKind) -> bool,
) -> Result<Vec<Parent>, Error> {
    let mut nl = open()?;
    let mut found = Vec::new();
    for link in network.links.iter().filter(|l| of(&l.kind)) {
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
        found.push(Parent {
            link: link.name.clone(),
            seen,
            name: parent.to_owned(),
        });
    }
    Ok(found)
}

/// On the host: the move's id, no IPv6 of its own, and the bridge.
fn dress_host_ends(created: &Created, parents: &[Parent]) -> Result<Vec<(u32, String)>, Error> {
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
        if let Some(bridge) = parents.iter().find(|p| p.link == made.link) {
            link::enslave(&mut nl, seen.index, bridge.seen.index)
                .doing(|| format!("{} to bridge {}", step("enslaving"), bridge.name))?;
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
