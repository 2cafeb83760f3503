//! Removal: of what [`super::create()`] made, and at the source of what the container leaves behind. Goes on after an error and reports all.
use std::{os::fd::AsRawFd, path::Path};

use netmig_core::{
    id::MoveId,
    image::v1::net::{IFF_UP, LinkKind, Network},
};

use super::{
    Created, Doing, Error, Link, addr,
    create::{HostEnd, Made},
    filter,
    link::{self, Seen},
    namespace, neigh,
    netlink::Netlink,
    open,
    physical::{self, Taken},
    qdisc, route, rule, sysctl, topology,
};
use crate::sys::netns::within;

/// Removes everything of `created` that is there. Can be called again, and after a crash with what [`super::intent`] gave.
pub fn remove(created: &Created) -> Vec<Error> {
    let mut left = Vec::new();
    note(&mut left, remove_host_ends(created));
    match namespace::exists(&created.netns) {
        Ok(true) => {
            note(&mut left, give_back(created));
            note(
                &mut left,
                within(&created.netns, || Ok::<_, Error>(empty(created))),
            );
        }
        Ok(false) => {}
        Err(e) => left.push(e),
    }
    if created.made_netns
        && let Err(e) = namespace::remove(&created.netns)
    {
        left.push(e);
    }
    left
}

/// At the source, when the container lives elsewhere: removes its links (host ends and, with them, what the bridge has learnt on their
/// ports), what this host knows of its addresses, and the namespace's name if netmig made it.
pub fn depart(netns: &Path, links: &[Link], network: &Network, netns_is_ours: bool) -> Vec<Error> {
    let mut left = Vec::new();
    let there = namespace::exists(netns).unwrap_or_else(|e| {
        left.push(e);
        false
    });
    if there {
        note(&mut left, give_home(netns, links));
        note(
            &mut left,
            within(netns, || Ok::<_, Error>(delete_inside(links))),
        );
    }
    note(
        &mut left,
        open().map(|mut nl| leave_host(&mut nl, links, network)),
    );
    if netns_is_ours && let Err(e) = namespace::remove(netns) {
        left.push(e);
    }
    left
}

/// A link on this host that carries the mark of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The move that made it.
    pub mv: MoveId,
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
}

/// All links of the caller's namespace that netmig made, by the move id in their alternative names: a container that moved here hangs on
/// one of them, and what belongs to no move is left over.
///
/// # Errors
/// If the links cannot be read.
pub fn marked() -> Result<Vec<Marked>, Error> {
    let mark = |seen: &Seen| {
        seen.altnames
            .iter()
            .find_map(|name| topology::move_of(name))
    };
    let links = link::dump(&mut open()?)?;
    Ok(links
        .iter()
        .filter_map(|l| {
            Some(Marked {
                mv: mark(l)?,
                ifindex: l.index,
                name: l.name.clone(),
            })
        })
        .collect())
}

fn note(left: &mut Vec<Error>, step: Result<Vec<Error>, Error>) {
    match step {
        Ok(errors) => left.extend(errors),
        Err(e) => left.push(e),
    }
}

/// The devices that were taken from this host.
fn give_back(created: &Created) -> Result<Vec<Error>, Error> {
    let mut nl = open()?;
    let mut taken = Vec::new();
    for made in &created.made {
        // One that is still here was never taken.
        if let Some(was) = &made.taken
            && link::find(&mut nl, &was.name)?.is_none()
        {
            taken.push((made, was));
        }
    }
    if taken.is_empty() {
        return Ok(Vec::new());
    }
    let host = namespace::own()?;
    let mut left = within(&created.netns, || {
        let back = |(made, was): &(&Made, &Taken)| {
            physical::give_back(&made.link, host.as_raw_fd(), was).err()
        };
        Ok::<_, Error>(taken.iter().filter_map(back).collect::<Vec<_>>())
    })?;
    left.extend(
        taken
            .iter()
            .filter_map(|(_, was)| physical::settle(was).err()),
    );
    Ok(left)
}

/// The physical devices among the links of a container that lives elsewhere.
fn give_home(netns: &Path, links: &[Link]) -> Result<Vec<Error>, Error> {
    let physical = |l: &&Link| l.kind == topology::LinkKind::Physical;
    if !links.iter().any(|l| physical(&l)) {
        return Ok(Vec::new());
    }
    let host = namespace::own()?;
    within(netns, || {
        let back = |l: &Link| physical::depart(&l.name, host.as_raw_fd()).err();
        Ok(links.iter().filter(physical).filter_map(back).collect())
    })
}

fn remove_host_ends(created: &Created) -> Result<Vec<Error>, Error> {
    let mut left = Vec::new();
    let mut nl = open()?;
    let host = link::dump(&mut nl)?;
    for end in created.made.iter().filter_map(|m| m.host.as_ref()) {
        for seen in host.iter().filter(|h| is(h, end)) {
            let step = link::delete(&mut nl, seen.index)
                .doing(|| format!("deleting {} on the host", seen.name));
            left.extend(step.err());
        }
    }
    Ok(left)
}

/// By the alternative name, which carries the move's id; a crash may have come before it was given: then by name and MAC.
fn is(seen: &Seen, end: &HostEnd) -> bool {
    seen.altnames.contains(&end.altname) || (seen.name == end.name && seen.mac == Some(end.mac))
}

/// Inside: deletes the links that were made, and brings a namespace that was there before back to what it was.
fn empty(created: &Created) -> Vec<Error> {
    let mut left = Vec::new();
    let step = open().and_then(|mut nl| {
        for seen in link::dump(&mut nl)? {
            if created
                .made
                .iter()
                .any(|m| m.link == seen.name && m.mac == seen.mac)
            {
                left.extend(
                    link::delete(&mut nl, seen.index)
                        .doing(|| format!("deleting link {}", seen.name))
                        .err(),
                );
            }
        }
        if let Some(before) = &created.before {
            bring_back(&mut nl, before, created, &mut left)?;
        }
        Ok(())
    });
    left.extend(step.err());
    left
}

fn bring_back(
    nl: &mut Netlink,
    before: &Network,
    created: &Created,
    left: &mut Vec<Error>,
) -> Result<(), Error> {
    let seen = link::dump(nl)?;
    let (names, indices) = (link::names(&seen), link::indices(&seen));
    left.extend(filter::converge(&before.filters).err());
    left.extend(sysctl::set_whole(&created.sysctls_before).err());
    left.extend(sysctl::set_link(&created.sysctls_before, "lo").err());
    left.extend(addr::converge(nl, &names, &indices, &before.addresses).err());
    left.extend(route::converge(nl, &names, &indices, &before.nexthops, &before.routes).err());
    left.extend(rule::converge(nl, &before.rules).err());
    left.extend(neigh::converge(nl, &names, &indices, &before.neighbours).err());
    left.extend(qdisc::converge(nl, &names, &indices, &before.shaping));
    if let Some(lo) = before.links.iter().find(|l| l.kind == LinkKind::Loopback) {
        left.extend(
            link::dress(nl, lo.index, lo)
                .doing(|| "setting up link lo".to_owned())
                .err(),
        );
        if let Some(mode) = lo.addr_gen_mode {
            left.extend(
                link::set_addr_gen_mode(nl, lo.index, mode)
                    .doing(|| "setting up link lo".to_owned())
                    .err(),
            );
        }
        if lo.flags & IFF_UP == 0 {
            left.extend(
                link::down(nl, lo.index)
                    .doing(|| "taking down link lo".to_owned())
                    .err(),
            );
        }
    }
    Ok(())
}

fn delete_inside(links: &[Link]) -> Vec<Error> {
    let mut left = Vec::new();
    let step = open().and_then(|mut nl| {
        for seen in link::dump(&mut nl)?.iter().filter(|s| !s.is_loopback()) {
            if links
                .iter()
                .any(|l| l.name == seen.name && l.mac == seen.mac)
            {
                left.extend(
                    link::delete(&mut nl, seen.index)
                        .doing(|| format!("deleting link {}", seen.name))
                        .err(),
                );
            }
        }
        Ok(())
    });
    left.extend(step.err());
    left
}

fn leave_host(nl: &mut Netlink, links: &[Link], network: &Network) -> Vec<Error> {
    let mut left = Vec::new();
    for at in links {
        // A pair goes as a whole: normally its end here went with the one inside.
        if let topology::LinkKind::Veth {
            host_ifindex,
            host_name,
            ..
        } = &at.kind
        {
            match link::find(nl, host_name) {
                Ok(Some(end))
                    if end.index == *host_ifindex && end.kind.as_deref() == Some("veth") =>
                {
                    left.extend(
                        link::delete(nl, end.index)
                            .doing(|| format!("deleting {host_name} on the host"))
                            .err(),
                    );
                }
                Ok(_) => {}
                Err(e) => left.push(e),
            }
        }
        let Some(parent) = at.parent() else { continue };
        match link::find(nl, parent) {
            Ok(Some(parent)) => {
                for address in network.addresses_of(&at.name).map(|a| a.local.address) {
                    let step = neigh::forget(nl, parent.index, address);
                    left.extend(
                        step.doing(|| format!("forgetting neighbour {address} on {}", parent.name))
                            .err(),
                    );
                }
            }
            Ok(None) => {}
            Err(e) => left.push(e),
        }
    }
    left
}
