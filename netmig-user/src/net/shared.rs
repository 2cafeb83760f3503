//! What lies on a device of this host already, in whichever namespace. Macvlans and ipvlans exclude each other there, as both take what the device receives
//! (netdev_rx_handler_register()), and all ipvlans of a device have one mode: the last one made decides for all (ipvlan_set_port_mode()).
use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use netmig_core::image::v1::net::{Link, LinkKind};

use super::{
    Error,
    link::{self, Seen},
    namespace, open, topology,
    uapi::IFLA_IPVLAN_MODE,
};
use crate::sys::netns::within;

/// Why a macvlan or ipvlan cannot be made on `parent`.
pub fn objections(wanted: &Link, parent: &Seen) -> Result<Vec<String>, Error> {
    let mode = match &wanted.kind {
        LinkKind::Macvlan { .. } => None,
        LinkKind::Ipvlan { mode, .. } => Some(*mode),
        _ => return Ok(Vec::new()),
    };
    let (link, name) = (&wanted.name, &parent.name);
    let mut found = Vec::new();
    if parent.master.is_some() {
        found.push(format!(
            "link {link}: {name} is a port of another device here, which takes all that it receives; attach the link to that one, or to another"
        ));
    }
    let others = lying_on(parent)?;
    let macvlan = |o: &Seen| matches!(o.kind.as_deref(), Some("macvlan" | "macvtap"));
    let other = others.iter().find(|o| macvlan(o) == mode.is_some());
    if let Some(other) = other {
        found.push(format!(
            "link {link} is a {}, and {name} carries a {} ({}) here: one device cannot have both; attach the link to another one",
            wanted.kind,
            other.kind.as_deref().unwrap_or_default(),
            other.name
        ));
    } else if let Some(mode) = mode {
        let another = |o: &&Seen| {
            let theirs = o.data_attr(IFLA_IPVLAN_MODE).and_then(|a| a.u16().ok());
            theirs.is_some_and(|theirs| theirs != mode)
        };
        found.extend(others.iter().find(another).map(|other| {
            format!(
                "link {link} is an ipvlan of mode {}, and {} on {name} here is of another one: all of a device have the same; attach the link to another device",
                name_of(mode),
                other.name
            )
        }));
    }
    Ok(found)
}

fn name_of(mode: u16) -> &'static str {
    match mode {
        0 => "l2",
        1 => "l3",
        _ => "l3s",
    }
}

/// Macvlans and ipvlans on a device of the calling thread's namespace.
fn lying_on(parent: &Seen) -> Result<Vec<Seen>, Error> {
    let own = namespace::own()?;
    let mut all = Vec::new();
    for file in topology::namespaces() {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let ours = namespace::same(&path, Path::new(namespace::OWN))?;
        // One that cannot be entered shows nothing.
        all.extend(within(&path, || children(parent, &own, ours)).unwrap_or_default());
    }
    Ok(all)
}

/// Those in the calling thread's namespace; `ours` if it is the device's own.
fn children(parent: &Seen, host: &File, ours: bool) -> Result<Vec<Seen>, Error> {
    let mut nl = open()?;
    let host = link::netnsid(&mut nl, host.as_raw_fd(), false).unwrap_or_default();
    let there = |l: &Seen| {
        if ours {
            l.netnsid.is_none()
        } else {
            l.netnsid.is_some() && l.netnsid == host
        }
    };
    let mut links = link::dump(&mut nl)?;
    links.retain(|l| {
        let kind = l.kind.as_deref();
        let taking = matches!(kind, Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap"));
        taking && l.link == Some(parent.index) && there(l)
    });
    Ok(links)
}
