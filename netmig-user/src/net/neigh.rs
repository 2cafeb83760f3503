//! Permanent neighbours and proxy entries, and those that were learnt, as a hint.
use std::{collections::HashMap, net::IpAddr, path::Path};

use netmig_core::image::v1::net::{Family, Mac, Neighbour};

use super::{
    Doing, Error,
    attr::{Message, af, family, u16_at, u32_at},
    netlink::{self, Netlink, Reply},
    open,
    uapi::*,
};
use crate::sys::netns::within;

/// More hints than that do not travel: a table has 1024 by itself (gc_thresh3).
const HINTS: usize = 1024;
/// States of a neighbour that has answered once.
const NUD_KNOWN: u16 = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE;

/// All permanent neighbours and proxy entries, sorted.
pub fn dump(nl: &mut Netlink, names: &HashMap<u32, String>) -> Result<Vec<Neighbour>, Error> {
    let mut all = Vec::new();
    for wanted in [Family::Inet, Family::Inet6] {
        for proxy in [false, true] {
            let replies = nl
                .dump(
                    libc::RTM_GETNEIGH,
                    &Message::new(&header(af(wanted), 0, 0, if proxy { NTF_PROXY } else { 0 })),
                )
                .doing(|| format!("reading the neighbours of {wanted:?}"))?;
            for reply in &replies {
                all.extend(
                    parse(reply, names, NUD_PERMANENT)
                        .doing(|| "reading a neighbour".to_owned())?,
                );
            }
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Makes the permanent neighbours and proxy entries those of `wanted`.
pub fn converge(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
    indices: &HashMap<String, u32>,
    wanted: &[Neighbour],
) -> Result<(), Error> {
    let existing = dump(nl, names)?;
    for neighbour in existing.iter().filter(|e| !wanted.contains(e)) {
        nl.request(
            libc::RTM_DELNEIGH,
            0,
            message(neighbour, indices, NUD_PERMANENT)?,
        )
        .doing(|| format!("removing neighbour {}", neighbour.address))?;
    }
    for neighbour in wanted.iter().filter(|w| !existing.contains(w)) {
        nl.request(
            libc::RTM_NEWNEIGH,
            libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            message(neighbour, indices, NUD_PERMANENT)?,
        )
        .doing(|| format!("adding neighbour {}", neighbour.address))?;
    }
    Ok(())
}

/// The neighbours that were learnt and have answered, sorted: at most [`HINTS`].
pub fn learnt(nl: &mut Netlink, names: &HashMap<u32, String>) -> Result<Vec<Neighbour>, Error> {
    let mut all = Vec::new();
    for wanted in [Family::Inet, Family::Inet6] {
        let replies = nl
            .dump(
                libc::RTM_GETNEIGH,
                &Message::new(&header(af(wanted), 0, 0, 0)),
            )
            .doing(|| format!("reading the neighbours of {wanted:?}"))?;
        for reply in &replies {
            let neighbour = parse(reply, names, NUD_KNOWN);
            let neighbour = neighbour.doing(|| "reading a neighbour".to_owned())?;
            all.extend(neighbour.filter(|n| n.mac.is_some() && n.link.is_some()));
        }
    }
    all.sort();
    all.truncate(HINTS);
    Ok(all)
}

/// Tells the namespace where neighbours were. Such an entry is believed until it is used, and then asked for while packets go there already
/// (NUD_STALE, neigh_event_send()), so that a first packet does not wait for the answer to a question. What is known better stays.
pub fn hint(
    nl: &mut Netlink,
    indices: &HashMap<String, u32>,
    learnt: &[Neighbour],
) -> Result<(), Error> {
    for neighbour in learnt {
        let request = message(neighbour, indices, NUD_STALE)?;
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        match nl.request(libc::RTM_NEWNEIGH, flags, request) {
            Err(e) if e.errno() == Some(libc::EEXIST) => {}
            other => other.doing(|| format!("adding learnt neighbour {}", neighbour.address))?,
        }
    }
    Ok(())
}

/// The entry of `address` on the link `index` is this, whatever it was. `state` is NUD_*.
pub fn set(
    nl: &mut Netlink,
    index: u32,
    address: IpAddr,
    mac: Mac,
    state: u16,
) -> Result<(), netlink::Error> {
    let family = if address.is_ipv4() {
        Family::Inet
    } else {
        Family::Inet6
    };
    let entry = Message::new(&header(af(family), index, state, 0))
        .ip(NDA_DST, address)
        .bytes(NDA_LLADDR, &mac.0);
    nl.request(
        libc::RTM_NEWNEIGH,
        libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        entry,
    )
}

/// Forgets what a host has learnt of `address` on the link `index`; nothing known is no error.
pub fn forget(
    nl: &mut Netlink,
    index: u32,
    address: std::net::IpAddr,
) -> Result<(), netlink::Error> {
    let family = if address.is_ipv4() {
        Family::Inet
    } else {
        Family::Inet6
    };
    match nl.request(
        libc::RTM_DELNEIGH,
        0,
        Message::new(&header(af(family), index, 0, 0)).ip(NDA_DST, address),
    ) {
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Forgets every neighbour of the namespace at `netns` that was asked for and has not answered.
///
/// What a socket wanted to send while the gate was closed left such an entry: nobody heard the question, and it is repeated only after
/// `retrans_time_ms`, a second as a rule, during which nothing goes to that neighbour. Without the entry the next packet asks at once.
///
/// # Errors
/// The table cannot be read, or an entry not be removed.
pub fn forget_unresolved(netns: &Path) -> Result<usize, Error> {
    within(netns, || {
        let mut nl = open()?;
        let mut forgotten = 0;
        for wanted in [Family::Inet, Family::Inet6] {
            let replies = nl
                .dump(
                    libc::RTM_GETNEIGH,
                    &Message::new(&header(af(wanted), 0, 0, 0)),
                )
                .doing(|| format!("reading the neighbours of {wanted:?}"))?;
            for reply in &replies {
                let Some((index, address)) =
                    unresolved(reply).doing(|| "reading a neighbour".to_owned())?
                else {
                    continue;
                };
                forget(&mut nl, index, address)
                    .doing(|| format!("forgetting the unresolved neighbour {address}"))?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    })
}

fn unresolved(reply: &Reply) -> Result<Option<(u32, IpAddr)>, netlink::Error> {
    let (header, attrs) = reply.split::<12>()?;
    let (index, state) = (u32_at(&header, 4), u16_at(&header, 8));
    if family(header[0]).is_none() || state & (NUD_INCOMPLETE | NUD_FAILED) == 0 {
        return Ok(None);
    }
    for attr in attrs {
        let attr = attr?;
        if attr.kind == NDA_DST {
            return Ok(Some((index, attr.ip()?)));
        }
    }
    Ok(None)
}

fn message(
    neighbour: &Neighbour,
    indices: &HashMap<String, u32>,
    state: u16,
) -> Result<Message, Error> {
    let index = match &neighbour.link {
        None => 0,
        Some(link) => *indices.get(link).ok_or_else(|| {
            Error::Refused(vec![format!(
                "neighbour {} is on link {link}, which is not there",
                neighbour.address
            )])
        })?,
    };
    let family = if neighbour.address.is_ipv4() {
        Family::Inet
    } else {
        Family::Inet6
    };
    let flags =
        if neighbour.proxy { NTF_PROXY } else { 0 } | if neighbour.router { NTF_ROUTER } else { 0 };
    let state = if neighbour.proxy { 0 } else { state };
    Ok(Message::new(&header(af(family), index, state, flags))
        .ip(NDA_DST, neighbour.address)
        .maybe(neighbour.mac, |m, mac| m.bytes(NDA_LLADDR, &mac.0)))
}

/// struct ndmsg.
fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// One in any of `states`, or of the proxy table.
fn parse(
    reply: &Reply,
    names: &HashMap<u32, String>,
    states: u16,
) -> Result<Option<Neighbour>, netlink::Error> {
    let (header, attrs) = reply.split::<12>()?;
    let (index, state, flags) = (u32_at(&header, 4), u16_at(&header, 8), header[10]);
    let proxy = flags & NTF_PROXY != 0;
    if family(header[0]).is_none() || !(proxy || state & states != 0) {
        return Ok(None);
    }
    let link = match index {
        0 => None,
        _ => match names.get(&index) {
            Some(name) => Some(name.clone()),
            None => return Ok(None),
        },
    };
    let (mut address, mut mac) = (None, None);
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            NDA_DST => address = Some(attr.ip()?),
            NDA_LLADDR => mac = attr.mac(),
            _ => {}
        }
    }
    Ok(address.map(|address| Neighbour {
        link,
        address,
        mac,
        proxy,
        router: flags & NTF_ROUTER != 0,
    }))
}
