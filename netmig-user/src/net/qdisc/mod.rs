//! Traffic shaping: queueing disciplines, their classes, and the filters on them.
use std::collections::HashMap;

use netmig_core::image::v1::net::{Class, Discipline, Link, TC_H_ROOT};

use super::{
    Doing, Error,
    attr::{Message, u32_at},
    link, namespace,
    netlink::{self, Netlink, Reply},
    open, stand_in,
    uapi::{TCA_EGRESS_BLOCK, TCA_INGRESS_BLOCK, TCA_KIND, TCA_OPTIONS},
};

mod filters;
mod options;

/// Kinds that take what they show, and whether somebody makes their classes. Not among them: red, gred, choke and sfb do not show their
/// table, netem not its distribution.
const CARRIED: [(&str, bool); 16] = [
    ("bfifo", false),
    ("cake", false),
    ("clsact", false),
    ("codel", false),
    ("drr", true),
    ("fq", false),
    ("fq_codel", false),
    ("fq_pie", false),
    ("hfsc", true),
    ("htb", true),
    ("ingress", false),
    ("pfifo", false),
    ("pie", false),
    ("prio", false),
    ("sfq", false),
    ("tbf", false),
];

/// What somebody has set up on the links of the namespace, and what of it is not carried, in words. Queues that the kernel gives to a link
/// by itself have no handle (dev_activate()).
pub fn dump(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
) -> Result<(Vec<Discipline>, Vec<String>), Error> {
    let all = found(nl, names)?;
    let (mut carried, mut lost) = (Vec::new(), Vec::new());
    for (index, discipline) in &all {
        if !is_carried(discipline, &all) {
            lost.push(format!(
                "link {} has a queueing discipline {} {:x}: (with its classes and filters): not carried, set it up at the target",
                discipline.link,
                discipline.kind,
                discipline.handle >> 16,
            ));
            continue;
        }
        let mut discipline = discipline.clone();
        if has_classes(&discipline.kind) {
            discipline.classes = classes(nl, *index, &discipline)?;
        }
        let strange;
        (discipline.filters, strange) = filters::dump(nl, *index, &discipline, names)?;
        lost.extend(strange);
        carried.push(discipline);
    }
    carried.sort();
    lost.sort();
    Ok((carried, lost))
}

/// Makes the disciplines of the namespace's links those of `wanted`. What failed; what lies on it is missing, too.
pub fn converge(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
    indices: &HashMap<String, u32>,
    wanted: &[Discipline],
) -> Vec<Error> {
    let mut failed = Vec::new();
    let index = |d: &Discipline| indices.get(&d.link).copied().unwrap_or_default();
    match found(nl, names) {
        Ok(there) => {
            let spare = |d: &Discipline| {
                d.parent == TC_H_ROOT
                    && !wanted
                        .iter()
                        .any(|w| (&w.link, w.handle, &w.kind) == (&d.link, d.handle, &d.kind))
            };
            for (index, discipline) in there.iter().filter(|(_, d)| spare(d)) {
                let request = Message::new(&tcmsg(*index, discipline.handle, TC_H_ROOT));
                let deleted = nl.request(libc::RTM_DELQDISC, 0, request);
                failed.extend(deleted.doing(|| format!("removing the {discipline}")).err());
            }
        }
        Err(e) => failed.push(e),
    }
    let mut made: Vec<&Discipline> = Vec::new();
    let mut waiting: Vec<_> = wanted.iter().collect();
    loop {
        let is_ready = |d: &&Discipline| {
            d.below()
                .is_none_or(|below| made.iter().any(|m| m.link == d.link && m.handle == below))
        };
        let (ready, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_ready);
        if ready.is_empty() {
            break;
        }
        for discipline in ready {
            match make(nl, index(discipline), discipline) {
                Ok(()) => made.push(discipline),
                Err(e) => failed.push(e),
            }
        }
        waiting = later;
    }
    // They may lead to classes of others, and to links.
    for discipline in made {
        failed.extend(filters::make(nl, index(discipline), discipline, indices));
    }
    failed
}

/// Sets them up in a scratch namespace that has links of these names, and reads them again. What this host's kernel cannot make or makes
/// differently, in words.
///
/// # Errors
/// If the scratch namespace cannot be made.
pub fn rehearse(shaping: &[Discipline], links: &[Link]) -> Result<Vec<String>, Error> {
    if shaping.is_empty() {
        return Ok(Vec::new());
    }
    namespace::scratch(|| {
        stand_in::make(links)?;
        let mut nl = open()?;
        let seen = link::dump(&mut nl)?;
        let (names, indices) = (link::names(&seen), link::indices(&seen));
        let mut against: Vec<_> = converge(&mut nl, &names, &indices, shaping)
            .iter()
            .map(without)
            .collect();
        let (found, _) = dump(&mut nl, &names)?;
        for wanted in shaping {
            let is = |f: &&Discipline| (&f.link, f.handle) == (&wanted.link, wanted.handle);
            if found.iter().find(is).is_some_and(|f| f != wanted) {
                against.push(format!(
                    "the {wanted} has other settings when it is set up here"
                ));
            }
        }
        Ok(against)
    })
}

/// A failure, for who reads what the container lacks.
pub fn without(failed: &Error) -> String {
    format!("{failed}; the container goes on without it")
}

fn has_classes(kind: &str) -> bool {
    CARRIED
        .iter()
        .any(|(known, classes)| *known == kind && *classes)
}

/// With all that it lies on.
fn is_carried(discipline: &Discipline, all: &[(u32, Discipline)]) -> bool {
    let known = CARRIED.iter().any(|(kind, _)| *kind == discipline.kind);
    known
        && discipline.below().is_none_or(|below| {
            below != discipline.handle
                && all.iter().any(|(_, other)| {
                    (&other.link, other.handle) == (&discipline.link, below)
                        && is_carried(other, all)
                })
        })
}

fn found(nl: &mut Netlink, names: &HashMap<u32, String>) -> Result<Vec<(u32, Discipline)>, Error> {
    let replies = match nl.dump(libc::RTM_GETQDISC, &Message::new(&tcmsg(0, 0, 0))) {
        // A kernel without traffic control shapes nothing.
        Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        other => other.doing(|| "reading the queueing disciplines".to_owned())?,
    };
    replies
        .iter()
        .filter_map(|reply| parse(reply, names).transpose())
        .collect::<Result<_, _>>()
        .doing(|| "reading a queueing discipline".to_owned())
}

fn parse(
    reply: &Reply,
    names: &HashMap<u32, String>,
) -> Result<Option<(u32, Discipline)>, netlink::Error> {
    let (header, attrs) = reply.split::<20>()?;
    let (index, handle) = (u32_at(&header, 4), u32_at(&header, 8));
    let Some(link) = names.get(&index).filter(|_| handle != 0) else {
        return Ok(None);
    };
    let mut discipline = Discipline {
        link: link.clone(),
        handle,
        parent: u32_at(&header, 12),
        kind: String::new(),
        options: Vec::new(),
        classes: Vec::new(),
        filters: Vec::new(),
    };
    let mut shares = false;
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            TCA_KIND => discipline.kind = attr.text(),
            TCA_OPTIONS => discipline.options = attr.value.to_vec(),
            TCA_INGRESS_BLOCK | TCA_EGRESS_BLOCK => shares = true,
            _ => {}
        }
    }
    if shares {
        // Which is no kind that can be made.
        discipline
            .kind
            .push_str(" (its filters are a block that it shares)");
    }
    discipline.options = options::taken(&discipline.kind, &discipline.options)?;
    Ok(Some((index, discipline)))
}

fn classes(nl: &mut Netlink, index: u32, of: &Discipline) -> Result<Vec<Class>, Error> {
    let doing = || format!("reading the classes of the {of}");
    let request = Message::new(&tcmsg(index, 0, of.handle));
    let replies = nl.dump(libc::RTM_GETTCLASS, &request).doing(doing)?;
    let mut all = Vec::new();
    for reply in &replies {
        let (header, attrs) = reply.split::<20>().doing(doing)?;
        let mut class = Class {
            handle: u32_at(&header, 8),
            parent: u32_at(&header, 12),
            options: Vec::new(),
        };
        for attr in attrs {
            let attr = attr.doing(doing)?;
            if attr.kind == TCA_OPTIONS {
                class.options = attr.value.to_vec();
            }
        }
        // That of hfsc itself has no number of its own.
        if class.handle != of.handle {
            all.push(class);
        }
    }
    all.sort();
    Ok(all)
}

fn make(nl: &mut Netlink, index: u32, discipline: &Discipline) -> Result<(), Error> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let request = |handle, parent, options: &[u8]| {
        let message = Message::new(&tcmsg(index, handle, parent)).text(TCA_KIND, &discipline.kind);
        match options {
            [] => message,
            options => message.bytes(options::number(&discipline.kind), options),
        }
    };
    let Discipline {
        handle,
        parent,
        options,
        classes,
        ..
    } = discipline;
    nl.request(
        libc::RTM_NEWQDISC,
        flags,
        request(*handle, *parent, options),
    )
    .doing(|| format!("setting up the {discipline}"))?;
    let mut made = vec![TC_H_ROOT, *handle];
    let mut waiting: Vec<_> = classes.iter().collect();
    while !waiting.is_empty() {
        let (ready, later): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|c: &&Class| made.contains(&c.parent));
        let doing = |c: &Class| {
            format!(
                "setting up class {:x}:{:x} of the {discipline}",
                c.handle >> 16,
                c.handle & 0xffff
            )
        };
        if let ([], [stray, ..]) = (&ready[..], &later[..]) {
            return Err(netlink::Error::Malformed(
                "the class that it lies in is not there".into(),
            ))
            .doing(|| doing(stray));
        }
        for class in ready {
            let message = request(class.handle, class.parent, &class.options);
            nl.request(libc::RTM_NEWTCLASS, flags, message)
                .doing(|| doing(class))?;
            made.push(class.handle);
        }
        waiting = later;
    }
    Ok(())
}

/// struct tcmsg.
fn tcmsg(index: u32, handle: u32, parent: u32) -> [u8; 20] {
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    header
}
