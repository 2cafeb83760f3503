//! Next hop objects: dump, and the requests that make and remove them. Routes lean on them and some of them on routes, so [`super::route`]
//! brings both to the image's.
use std::collections::{BTreeSet, HashMap};

use netmig_core::image::v1::net::{NextHopObject, Resilient, Way};

use super::{
    Doing, Error,
    attr::{self, Attrs, Message, af, u16_at, u32_at},
    netlink::{self, Netlink, Reply},
    uapi::*,
};

/// All objects by their numbers, and what of them cannot be carried.
pub fn dump(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
) -> Result<(Vec<NextHopObject>, Vec<String>), Error> {
    // struct nhmsg: every family.
    let replies = nl
        .dump(RTM_GETNEXTHOP, &Message::new(&[0; 8]))
        .doing(|| "reading the next hop objects".to_owned())?;
    let (mut all, mut lost) = (Vec::new(), Vec::new());
    for reply in &replies {
        let mut strange = Vec::new();
        let object =
            parse(reply, names, &mut strange).doing(|| "reading a next hop object".to_owned())?;
        if strange.is_empty() {
            all.push(object);
        } else {
            lost.push(format!("next hop object {object}: {}", strange.join(", ")));
        }
    }
    lost.extend(without_all_members(&mut all));
    all.sort_by_key(|object| object.id);
    Ok((all, lost))
}

/// The numbers of those objects.
pub fn ids(objects: &[NextHopObject]) -> BTreeSet<u32> {
    objects.iter().map(|object| object.id).collect()
}

/// A group one of whose members is not carried is another group.
fn without_all_members(all: &mut Vec<NextHopObject>) -> Vec<String> {
    let there = ids(all);
    let mut lost = Vec::new();
    all.retain(|object| {
        let Way::Group { members, .. } = &object.way else {
            return true;
        };
        let whole = members.iter().all(|(id, _)| there.contains(id));
        if !whole {
            lost.push(format!(
                "next hop object {object}: one of its members is not carried"
            ));
        }
        whole
    });
    lost
}

/// Makes one. What it leads through must be up, and its gateway be reachable.
pub fn add(
    nl: &mut Netlink,
    object: &NextHopObject,
    indices: &HashMap<String, u32>,
) -> Result<Result<(), netlink::Error>, Error> {
    let index = |link: &String| {
        indices.get(link).copied().ok_or_else(|| {
            Error::Refused(vec![format!(
                "next hop object {object} leads through link {link}, which is not there"
            )])
        })
    };
    let family = object.family.map_or(0, af);
    // struct nhmsg: family, scope (the kernel's), protocol, reserved, flags.
    let header = |flags: u32| {
        let mut header = [family, 0, object.protocol, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&flags.to_ne_bytes());
        Message::new(&header).u32(NHA_ID, object.id)
    };
    let request = match &object.way {
        Way::Blackhole => header(0).bytes(NHA_BLACKHOLE, &[]),
        Way::Single {
            link,
            gateway,
            onlink,
        } => header(if *onlink { RTNH_F_ONLINK } else { 0 })
            .maybe(link.as_ref().map(index).transpose()?, |m, oif| {
                m.u32(NHA_OIF, oif)
            })
            .maybe(*gateway, |m, gateway| m.ip(NHA_GATEWAY, gateway)),
        Way::Group { members, resilient } => {
            let rows: Vec<u8> = members.iter().flat_map(|row| member(*row)).collect();
            header(0)
                .bytes(NHA_GROUP, &rows)
                .maybe(*resilient, |m, resilient| {
                    let inner = Message::default()
                        .u16(NHA_RES_GROUP_BUCKETS, resilient.buckets)
                        .u32(NHA_RES_GROUP_IDLE_TIMER, resilient.idle)
                        .u32(NHA_RES_GROUP_UNBALANCED_TIMER, resilient.unbalanced);
                    m.u16(NHA_GROUP_TYPE, NEXTHOP_GRP_TYPE_RES)
                        .nested(NHA_RES_GROUP, &inner)
                })
        }
    };
    let request = if object.fdb {
        request.bytes(NHA_FDB, &[])
    } else {
        request
    };
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    Ok(nl.request(RTM_NEWNEXTHOP, flags, request))
}

/// Removes one, and with it the routes that name it; one that is gone already is no error.
pub fn delete(nl: &mut Netlink, object: &NextHopObject) -> Result<(), netlink::Error> {
    let request = Message::new(&[0; 8]).u32(NHA_ID, object.id);
    match nl.request(RTM_DELNEXTHOP, 0, request) {
        // A group goes with its last member.
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// struct nexthop_grp: number, weight less one, its upper byte (Linux 6.12), nothing.
fn member((id, weight): (u32, u16)) -> [u8; 8] {
    let [low, high] = weight.to_le_bytes();
    let id = id.to_ne_bytes();
    [id[0], id[1], id[2], id[3], low, high, 0, 0]
}

fn members(value: &[u8]) -> Vec<(u32, u16)> {
    value
        .as_chunks::<8>()
        .0
        .iter()
        .map(|row| (u32_at(row, 0), u16::from_le_bytes([row[4], row[5]])))
        .collect()
}

fn resilient(attrs: Attrs<'_>) -> Result<Resilient, netlink::Error> {
    let mut found = Resilient {
        buckets: 0,
        idle: 0,
        unbalanced: 0,
    };
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            NHA_RES_GROUP_BUCKETS if attr.value.len() == 2 => {
                found.buckets = u16_at(attr.value, 0);
            }
            NHA_RES_GROUP_IDLE_TIMER => found.idle = attr.u32()?,
            NHA_RES_GROUP_UNBALANCED_TIMER => found.unbalanced = attr.u32()?,
            _ => {}
        }
    }
    Ok(found)
}

fn parse(
    reply: &Reply,
    names: &HashMap<u32, String>,
    strange: &mut Vec<String>,
) -> Result<NextHopObject, netlink::Error> {
    let (header, attrs) = reply.split::<8>()?;
    let mut object = NextHopObject {
        id: 0,
        family: attr::family(header[0]),
        protocol: header[2],
        fdb: false,
        way: Way::Blackhole,
    };
    let (mut link, mut gateway, mut blackhole) = (None, None, false);
    let (mut group, mut spread) = (None, None);
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            NHA_ID => object.id = attr.u32()?,
            NHA_GROUP => group = Some(members(attr.value)),
            NHA_BLACKHOLE => blackhole = true,
            NHA_OIF => {
                let index = attr.u32()?;
                link = names.get(&index).cloned();
                if link.is_none() {
                    strange.push(format!("its link {index} is not there"));
                }
            }
            NHA_GATEWAY => gateway = Some(attr.ip()?),
            NHA_FDB => object.fdb = true,
            NHA_RES_GROUP => spread = Some(resilient(attr.nested())?),
            NHA_ENCAP => strange.push("its encapsulation is not carried".to_owned()),
            NHA_GROUP_TYPE if attr.value.len() == 2 => match u16_at(attr.value, 0) {
                NEXTHOP_GRP_TYPE_MPATH | NEXTHOP_GRP_TYPE_RES => {}
                kind => strange.push(format!("groups of type {kind} are unknown")),
            },
            // What the request may ask for, and counting in hardware.
            NHA_ENCAP_TYPE | NHA_OP_FLAGS | NHA_HW_STATS_ENABLE | NHA_HW_STATS_USED => {}
            kind => strange.push(format!("attribute {kind} is unknown")),
        }
    }
    object.way = match group {
        Some(members) => Way::Group {
            members,
            resilient: spread,
        },
        None if blackhole => Way::Blackhole,
        None => Way::Single {
            link,
            gateway,
            onlink: u32_at(&header, 4) & RTNH_F_ONLINK != 0,
        },
    };
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_one_of_its_members_is_named() {
        let object = |id, way| NextHopObject {
            id,
            family: None,
            protocol: 0,
            fdb: false,
            way,
        };
        let group = |members: &[u32]| Way::Group {
            members: members.iter().map(|id| (*id, 0)).collect(),
            resilient: None,
        };
        let mut all = vec![
            object(1, Way::Blackhole),
            object(7, group(&[1])),
            object(8, group(&[1, 2])),
        ];
        assert_eq!(
            without_all_members(&mut all),
            ["next hop object 8 group 1/2: one of its members is not carried"]
        );
        assert_eq!(ids(&all), BTreeSet::from([1, 7]));
    }

    #[test]
    fn weights_of_two_bytes() {
        let row = (0x0102_0304, 0x0506);
        assert_eq!(members(&member(row)), [row]);
        assert_eq!(member(row)[4..6], [6, 5]);
    }
}
