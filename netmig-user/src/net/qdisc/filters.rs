//! Filters on queueing disciplines, in the form in which the kernel takes them again. What it shows besides (counters, times, whether a
//! device does the work) is left out.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use netmig_core::image::v1::net::{Discipline, Filter};

use super::tcmsg;
use crate::net::{
    Doing, Error,
    attr::{Attrs, Message, Raw, u32_at},
    netlink::{self, Netlink, Reply},
    uapi::{TCA_KIND, TCA_OPTIONS},
};

const TCA_CHAIN: u16 = 11;

/// Where `clsact` has its filters (TC_H_MIN_INGRESS, TC_H_MIN_EGRESS).
const CLSACT: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

/// TCA_CLS_FLAGS_SKIP_HW, _SKIP_SW, _VERBOSE: the others say what became of them.
const SETTABLE_FLAGS: u32 = 1 << 0 | 1 << 1 | 1 << 4;

/// A kind of filter that takes what it shows.
struct Kind {
    name: &'static str,
    /// The attribute that holds its actions.
    actions: u16,
    /// The attribute that holds TCA_CLS_FLAGS_*.
    flags: Option<u16>,
    /// Attributes that are shown only.
    shown: &'static [u16],
    /// An older form of an action, whose tables are not shown.
    police: Option<u16>,
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "basic",
        actions: 3,
        flags: None,
        shown: &[5, 6],
        police: Some(4),
    },
    Kind {
        name: "flower",
        actions: 3,
        flags: Some(22),
        // TCA_FLOWER_IN_HW_COUNT
        shown: &[86],
        police: None,
    },
    Kind {
        name: "fw",
        actions: 4,
        flags: None,
        shown: &[],
        police: Some(2),
    },
    Kind {
        name: "matchall",
        actions: 2,
        flags: Some(3),
        shown: &[4, 5],
        police: None,
    },
    Kind {
        name: "u32",
        actions: 7,
        flags: Some(11),
        shown: &[9, 12],
        police: Some(6),
    },
];

/// Actions that take what they show: name, the attribute that begins with struct tc_gen, and that with their times.
const ACTIONS: [(&str, u16, u16); 9] = [
    ("connmark", 1, 2),
    ("csum", 1, 2),
    ("gact", 2, 1),
    ("mirred", 2, 1),
    ("nat", 1, 2),
    ("pedit", 2, 1),
    ("skbedit", 2, 1),
    ("skbmod", 2, 1),
    ("vlan", 2, 1),
];
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_ACT_INDEX: u16 = 3;
const TCA_ACT_COOKIE: u16 = 6;
const TCA_ACT_FLAGS: u16 = 7;
const TCA_ACT_HW_STATS: u16 = 8;
/// struct tc_mirred: ifindex behind struct tc_gen and eaction.
const MIRRED_DEVICE: std::ops::Range<usize> = 24..28;

const TCA_FLOWER_KEY_ETH_TYPE: u16 = 8;
/// ETH_P_8021Q, ETH_P_8021AD.
const VLAN: [u16; 2] = [0x8100, 0x88a8];

const TCA_U32_HASH: u16 = 2;
const TC_U32_ROOT: u32 = 0xfff0_0000;

/// What lies on a discipline: what is carried, and what is not, in words.
pub fn dump(
    nl: &mut Netlink,
    index: u32,
    of: &Discipline,
    names: &HashMap<u32, String>,
) -> Result<(Vec<Filter>, Vec<String>), Error> {
    let doing = || format!("reading the filters of the {of}");
    let (mut seen, mut lost) = (Vec::new(), Vec::new());
    for parent in parents(of) {
        let request = Message::new(&tcmsg(index, 0, parent));
        let replies = match nl.dump(libc::RTM_GETTFILTER, &request) {
            // Some filters the kernel itself cannot show.
            Err(netlink::Error::Kernel { errno, .. }) => {
                let why = std::io::Error::from_raw_os_error(errno);
                lost.push(format!("filters on the {of} cannot be read: {why}: not carried, set them up at the target"));
                continue;
            }
            other => other.doing(doing)?,
        };
        for reply in &replies {
            seen.extend(parse(reply).doing(doing)?);
        }
    }
    for priority in ambiguous(&seen) {
        seen.retain(|f| f.kind != "u32" || f.priority != priority);
        lost.push(format!(
            "u32 filters of preference {priority} on the {of}: they lie in several places, and the kernel shows each of them in all of these: \
             not carried, set them up at the target, or give those of each place a preference of their own"
        ));
    }
    let mut all = Vec::new();
    let roots = roots(&seen);
    let alone = |head: &Filter| {
        !seen
            .iter()
            .any(|f| f.handle != 0 && group(f) == group(head))
    };
    for filter in &seen {
        match taken(filter, &roots, names).doing(doing)? {
            Taken::Filter(filter) => all.push(filter),
            // What is shown first of each priority. Of fw it is all there may be: marks are the classes themselves.
            Taken::Head if filter.kind == "fw" && alone(filter) => all.push(filter.clone()),
            Taken::Head => {}
            Taken::Not(why) => lost.push(format!("{filter} on the {of}: {why}")),
        }
    }
    // Tables of u32 before what lies in them.
    all.sort_by_key(|f| (f.parent, f.chain, f.priority, !is_table(f)));
    Ok((all, lost))
}

/// Makes the filters of a discipline that has none.
pub fn make(
    nl: &mut Netlink,
    index: u32,
    of: &Discipline,
    indices: &HashMap<String, u32>,
) -> Vec<Error> {
    let mut failed = Vec::new();
    for filter in &of.filters {
        let doing = || format!("setting up the {filter} on the {of}");
        let made = request(filter, index, indices).and_then(|request| {
            let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            nl.request(libc::RTM_NEWTFILTER, flags, request)
        });
        failed.extend(made.doing(doing).err());
    }
    failed
}

fn parents(of: &Discipline) -> Vec<u32> {
    match of.kind.as_str() {
        "clsact" => CLSACT.to_vec(),
        _ => [of.handle]
            .into_iter()
            .chain(of.classes.iter().map(|c| c.handle))
            .collect(),
    }
}

fn parse(reply: &Reply) -> Result<Option<Filter>, netlink::Error> {
    if reply.kind != libc::RTM_NEWTFILTER {
        return Ok(None);
    }
    let (header, attrs) = reply.split::<20>()?;
    let info = u32_at(&header, 16);
    let mut filter = Filter {
        parent: u32_at(&header, 12),
        chain: 0,
        priority: (info >> 16) as u16,
        // In network order, as a 16-bit number in the lower half.
        protocol: u16::from_be(info as u16),
        handle: u32_at(&header, 8),
        kind: String::new(),
        options: Vec::new(),
        devices: Vec::new(),
    };
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            TCA_KIND => filter.kind = attr.text(),
            TCA_OPTIONS => filter.options = attr.value.to_vec(),
            TCA_CHAIN => filter.chain = attr.u32()?,
            _ => {}
        }
    }
    Ok(Some(filter))
}

enum Taken {
    Filter(Filter),
    /// A priority as such.
    Head,
    /// Not carried.
    Not(String),
}

fn group(filter: &Filter) -> (u32, u32, u16) {
    (filter.parent, filter.chain, filter.priority)
}

fn is_table(filter: &Filter) -> bool {
    filter.kind == "u32" && filter.handle != 0 && filter.handle & 0x000f_ffff == 0
}

/// The priorities with which filters of u32 lie in several places of a discipline (on the sides of clsact, on classes, in chains). All its
/// tables are in one list (tc_u_common_ptr()), and of that all with the priority are shown (u32_walk()).
fn ambiguous(seen: &[Filter]) -> BTreeSet<u16> {
    let mut places = BTreeMap::<u16, BTreeSet<_>>::new();
    for filter in seen.iter().filter(|f| f.kind == "u32") {
        let place = (filter.parent, filter.chain);
        places.entry(filter.priority).or_default().insert(place);
    }
    places.retain(|_, places| places.len() > 1);
    places.into_keys().collect()
}

/// Of each priority of u32 the table that comes with it: the first to be made, and the last to be shown (u32_init(), u32_walk()).
fn roots(seen: &[Filter]) -> BTreeMap<(u32, u32, u16), u32> {
    let tables = seen.iter().filter(|f| is_table(f));
    tables.map(|f| (group(f), f.handle)).collect()
}

fn taken(
    filter: &Filter,
    roots: &BTreeMap<(u32, u32, u16), u32>,
    names: &HashMap<u32, String>,
) -> Result<Taken, netlink::Error> {
    let not = |why: &str| {
        Ok(Taken::Not(format!(
            "{why}: not carried, set it up at the target"
        )))
    };
    let Some(kind) = KINDS.iter().find(|kind| kind.name == filter.kind) else {
        return match filter.handle {
            0 => Ok(Taken::Head),
            _ => not(
                "filters of this kind cannot be read in a form in which they could be given back",
            ),
        };
    };
    if filter.handle == 0 {
        return Ok(Taken::Head);
    }
    let root = roots
        .get(&group(filter))
        .copied()
        .filter(|_| kind.name == "u32");
    if root == Some(filter.handle) {
        return Ok(Taken::Head);
    }
    let mut filter = filter.clone();
    let mut strange = None;
    let mut devices = Vec::new();
    let mut options = Vec::new();
    for attr in Raw(&filter.options) {
        let (number, flags, value) = attr?;
        let mut value = value.to_vec();
        if kind.shown.contains(&number) {
            continue;
        }
        if kind.police == Some(number) {
            strange = Some("it polices in the old form, without an action".to_owned());
        }
        if kind.flags == Some(number) && value.len() == 4 {
            let given = u32_at(&value, 0) & SETTABLE_FLAGS;
            if given == 0 {
                continue;
            }
            value = given.to_ne_bytes().to_vec();
        }
        if number == kind.actions {
            value = actions(&value, names, &mut devices, &mut strange)?;
        }
        // The number of the table that comes with a priority is the kernel's choice: it is named as such.
        if let Some(root) = root
            && kind.name == "u32"
            && number == TCA_U32_HASH
            && value.len() == 4
            && u32_at(&value, 0) & 0xfff0_0000 == root & 0xfff0_0000
        {
            let hash = u32_at(&value, 0) & 0x000f_ffff | TC_U32_ROOT;
            value = hash.to_ne_bytes().to_vec();
            filter.handle &= 0xfff;
        }
        push(&mut options, number | flags, &value);
    }
    if let Some(why) = strange {
        return not(&why);
    }
    (filter.options, filter.devices) = (options, devices);
    Ok(Taken::Filter(filter))
}

/// A list of actions without what is shown only; the devices that they lead to are put into `devices`.
fn actions(
    list: &[u8],
    names: &HashMap<u32, String>,
    devices: &mut Vec<String>,
    strange: &mut Option<String>,
) -> Result<Vec<u8>, netlink::Error> {
    let mut all = Vec::new();
    for attr in Raw(list) {
        let (number, flags, action) = attr?;
        let name = Attrs(action)
            .flatten()
            .find(|a| a.kind == TCA_ACT_KIND)
            .map(|a| a.text())
            .unwrap_or_default();
        let Some((_, general, times)) = ACTIONS.iter().find(|(known, ..)| *known == name) else {
            *strange = Some(format!(
                "its action {name} is not one that can be given back"
            ));
            continue;
        };
        let mut one = Vec::new();
        for attr in Raw(action) {
            let (inner, inner_flags, value) = attr?;
            match inner {
                TCA_ACT_KIND | TCA_ACT_INDEX | TCA_ACT_COOKIE | TCA_ACT_FLAGS
                | TCA_ACT_HW_STATS => {
                    push(&mut one, inner | inner_flags, value);
                }
                TCA_ACT_OPTIONS => {
                    let mut options = Vec::new();
                    for attr in Raw(value) {
                        let (kind, kind_flags, value) = attr?;
                        let mut value = value.to_vec();
                        if kind == *times {
                            continue;
                        }
                        // struct tc_gen: how many refer to it, and how many filters.
                        if kind == *general && value.len() >= 20 {
                            value[12..20].fill(0);
                        }
                        if kind == *general && name == "mirred" && value.len() >= MIRRED_DEVICE.end
                        {
                            let device = u32_at(&value, MIRRED_DEVICE.start);
                            match names.get(&device) {
                                Some(name) => devices.push(name.clone()),
                                None => {
                                    *strange =
                                        Some("it leads to a link that is not there".to_owned())
                                }
                            }
                            value[MIRRED_DEVICE].fill(0);
                        }
                        push(&mut options, kind | kind_flags, &value);
                    }
                    push(&mut one, inner | inner_flags, &options);
                }
                _ => {}
            }
        }
        push(&mut all, number | flags, &one);
    }
    Ok(all)
}

fn request(
    filter: &Filter,
    index: u32,
    indices: &HashMap<String, u32>,
) -> Result<Message, netlink::Error> {
    let mut header = tcmsg(index, filter.handle, filter.parent);
    let info = u32::from(filter.priority) << 16 | u32::from(filter.protocol.to_be());
    header[16..20].copy_from_slice(&info.to_ne_bytes());
    let mut message = Message::new(&header).text(TCA_KIND, &filter.kind);
    if filter.chain != 0 {
        message = message.u32(TCA_CHAIN, filter.chain);
    }
    if filter.options.is_empty() {
        return Ok(message);
    }
    let mut options = led(filter, indices)?;
    // It is shown without the type of a frame with a tag, and takes what it says of the tag only with it (fl_set_key()).
    let says = |number| Attrs(&options).flatten().any(|a| a.kind == number);
    if filter.kind == "flower" && VLAN.contains(&filter.protocol) && !says(TCA_FLOWER_KEY_ETH_TYPE)
    {
        push(
            &mut options,
            TCA_FLOWER_KEY_ETH_TYPE,
            &filter.protocol.to_be_bytes(),
        );
    }
    Ok(message.bytes(TCA_OPTIONS, &options))
}

/// The options with the indices that the links have here.
fn led(filter: &Filter, indices: &HashMap<String, u32>) -> Result<Vec<u8>, netlink::Error> {
    if filter.devices.is_empty() {
        return Ok(filter.options.clone());
    }
    let kind = KINDS.iter().find(|kind| kind.name == filter.kind);
    let mut devices = filter.devices.iter();
    let mut next = || {
        let name = devices.next().map(String::as_str).unwrap_or_default();
        let missing =
            || netlink::Error::Malformed(format!("it leads to link {name:?}, which is not there"));
        indices.get(name).copied().ok_or_else(missing)
    };
    rebuilt(&filter.options, &mut |number, list| {
        if kind.is_none_or(|kind| kind.actions != number) {
            return Ok(None);
        }
        let list = rebuilt(list, &mut |_, action| {
            let is_mirred = Attrs(action)
                .flatten()
                .any(|a| a.kind == TCA_ACT_KIND && a.text() == "mirred");
            if !is_mirred {
                return Ok(None);
            }
            let action = rebuilt(action, &mut |inner, options| {
                if inner != TCA_ACT_OPTIONS {
                    return Ok(None);
                }
                let options = rebuilt(options, &mut |number, parameters| {
                    if number != 2 || parameters.len() < MIRRED_DEVICE.end {
                        return Ok(None);
                    }
                    let mut parameters = parameters.to_vec();
                    parameters[MIRRED_DEVICE].copy_from_slice(&next()?.to_ne_bytes());
                    Ok(Some(parameters))
                })?;
                Ok(Some(options))
            })?;
            Ok(Some(action))
        })?;
        Ok(Some(list))
    })
}

type Change<'a> = &'a mut dyn FnMut(u16, &[u8]) -> Result<Option<Vec<u8>>, netlink::Error>;

/// The same attributes with what `change` gives in the place of their values.
fn rebuilt(attrs: &[u8], change: Change<'_>) -> Result<Vec<u8>, netlink::Error> {
    let mut all = Vec::new();
    for attr in Raw(attrs) {
        let (number, flags, value) = attr?;
        let changed = change(number, value)?;
        push(
            &mut all,
            number | flags,
            changed.as_deref().unwrap_or(value),
        );
    }
    Ok(all)
}

fn push(all: &mut Vec<u8>, number: u16, value: &[u8]) {
    all.extend(Message::default().bytes(number, value).as_bytes());
}
