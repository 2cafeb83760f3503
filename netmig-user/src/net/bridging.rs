//! Forwarding: static entries of bridges and VXLANs, and the VLANs that a bridge lets pass at its ports.
use std::collections::HashMap;

use netmig_core::image::v1::net::{Forwarding, Link, LinkKind, Mac, PortVlan};

use super::{
    Doing, Error,
    attr::{Message, u16_at, u32_at},
    link::Seen,
    netlink::{self, Netlink, Reply},
    uapi::*,
};

/// BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED: the others are the kernel's.
const SETTABLE: u16 = 0x02 | 0x04;

/// The static entries, sorted. Those of a bridge that are there by themselves, for the MACs of the bridge and its ports, are not written.
pub fn dump(
    nl: &mut Netlink,
    links: &[Seen],
    names: &HashMap<u32, String>,
) -> Result<Vec<Forwarding>, Error> {
    let kind = |index: u32| {
        links
            .iter()
            .find(|l| l.index == index)
            .and_then(|l| l.kind.as_deref())
    };
    // The kernel is asked only where there is something that forwards.
    if !links
        .iter()
        .any(|l| matches!(l.kind.as_deref(), Some("bridge" | "vxlan")))
    {
        return Ok(Vec::new());
    }
    let replies = nl
        .dump(libc::RTM_GETNEIGH, &Message::new(&header(0, 0, 0)))
        .doing(|| "reading the forwarding tables".to_owned())?;
    let mut all = Vec::new();
    for reply in &replies {
        let parsed = parse(reply, names).doing(|| "reading a forwarding entry".to_owned())?;
        let Some((index, master, mut entry)) = parsed else {
            continue;
        };
        match master {
            Some(master) => {
                let own =
                    |l: &Seen| (l.index == index || l.index == master) && l.mac == Some(entry.mac);
                if links.iter().any(own) {
                    continue;
                }
                entry.flags |= if master == index {
                    NTF_SELF
                } else {
                    NTF_MASTER
                };
            }
            // Others show by that what their own filter lets in.
            None if kind(index) != Some("vxlan") => continue,
            None => {}
        }
        all.push(entry);
    }
    all.sort();
    Ok(all)
}

/// Adds the entries of `wanted` that are not there.
pub fn add(
    nl: &mut Netlink,
    links: &[Seen],
    names: &HashMap<u32, String>,
    indices: &HashMap<String, u32>,
    wanted: &[Forwarding],
) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    let there = dump(nl, links, names)?;
    for entry in wanted.iter().filter(|w| !there.contains(w)) {
        let step = || {
            format!(
                "adding forwarding entry {} of link {}",
                entry.mac, entry.link
            )
        };
        let index = |name: &String| {
            indices
                .get(name)
                .copied()
                .ok_or_else(|| netlink::Error::Malformed(format!("link {name} is not there")))
        };
        let device = index(&entry.link).doing(step)?;
        let via = entry.via.as_ref().map(index).transpose().doing(step)?;
        let request = Message::new(&header(device, entry.state, entry.flags))
            .bytes(NDA_LLADDR, &entry.mac.0)
            .maybe(entry.vlan, |m, v| m.u16(NDA_VLAN, v))
            .maybe(entry.remote, |m, v| m.ip(NDA_DST, v))
            .maybe(entry.port, |m, v| m.be16(NDA_PORT, v))
            .maybe(entry.vni, |m, v| m.u32(NDA_VNI, v))
            .maybe(entry.source_vni, |m, v| m.u32(NDA_SRC_VNI, v))
            .maybe(via, |m, v| m.u32(NDA_IFINDEX, v))
            .maybe(entry.nexthop, |m, v| m.u32(NDA_NH_ID, v));
        // Frames to all others of a VXLAN have several ways.
        let several = entry.mac == Mac([0; 6]) || entry.mac.0[0] & 1 != 0;
        let more = if several && entry.nexthop.is_none() && entry.flags & NTF_MASTER == 0 {
            libc::NLM_F_APPEND
        } else {
            libc::NLM_F_EXCL
        };
        nl.request(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | more, request)
            .doing(step)?;
    }
    Ok(())
}

/// Reads into `links` the VLANs that bridges let pass at their ports and to themselves.
pub fn vlans(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
    links: &mut [Link],
) -> Result<(), Error> {
    if !links.iter().any(is_bridge) {
        return Ok(());
    }
    let found = read_vlans(nl).doing(|| "reading the VLANs of bridges".to_owned())?;
    for link in links {
        let of = |index: &u32| names.get(index).is_some_and(|name| *name == link.name);
        link.vlans = found
            .iter()
            .filter(|(index, _)| of(index))
            .map(|(_, vlan)| *vlan)
            .collect();
        link.vlans.sort();
    }
    Ok(())
}

/// Makes the VLANs of a link those of `wanted`: a port, or a bridge itself.
pub fn set_vlans(nl: &mut Netlink, index: u32, wanted: &Link) -> Result<(), netlink::Error> {
    if wanted.vlans.is_empty() && wanted.port.is_empty() && !is_bridge(wanted) {
        return Ok(());
    }
    let itself = is_bridge(wanted) && wanted.master.is_none();
    let there: Vec<_> = read_vlans(nl)?
        .into_iter()
        .filter(|(of, _)| *of == index)
        .map(|(_, vlan)| vlan)
        .collect();
    let mut change = |kind, vlan: &PortVlan| {
        let info = [vlan.flags.to_ne_bytes(), vlan.id.to_ne_bytes()].concat();
        let mut spec = Message::default();
        if itself {
            spec = spec.u16(IFLA_BRIDGE_FLAGS, BRIDGE_FLAGS_SELF);
        }
        let spec = spec.bytes(IFLA_BRIDGE_VLAN_INFO, &info);
        let mut header = [0; 16];
        header[0] = libc::AF_BRIDGE as u8;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        nl.request(kind, 0, Message::new(&header).nested(IFLA_AF_SPEC, &spec))
    };
    for vlan in there.iter().filter(|vlan| !wanted.vlans.contains(vlan)) {
        change(libc::RTM_DELLINK, vlan)?;
    }
    for vlan in wanted.vlans.iter().filter(|vlan| !there.contains(vlan)) {
        change(libc::RTM_SETLINK, vlan)?;
    }
    Ok(())
}

fn is_bridge(link: &Link) -> bool {
    matches!(&link.kind, LinkKind::Virtual { kind, .. } if kind == "bridge")
}

fn read_vlans(nl: &mut Netlink) -> Result<Vec<(u32, PortVlan)>, netlink::Error> {
    let mut header = [0; 16];
    header[0] = libc::AF_BRIDGE as u8;
    let request = Message::new(&header).u32(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN);
    let mut all = Vec::new();
    for reply in nl.dump(libc::RTM_GETLINK, &request)? {
        let (header, attrs) = reply.split::<16>()?;
        let index = u32_at(&header, 4);
        for attr in attrs {
            let attr = attr?;
            if attr.kind != IFLA_AF_SPEC {
                continue;
            }
            for info in attr.nested() {
                let info = info?;
                if info.kind == IFLA_BRIDGE_VLAN_INFO && info.value.len() >= 4 {
                    let vlan = PortVlan {
                        id: u16_at(info.value, 2),
                        flags: u16_at(info.value, 0) & SETTABLE,
                    };
                    all.push((index, vlan));
                }
            }
        }
    }
    // A bridge that is a port of another is shown as both.
    all.sort();
    all.dedup();
    Ok(all)
}

/// struct ndmsg.
fn header(index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = libc::AF_BRIDGE as u8;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// Index of its link, that of its bridge if it is of one, and the entry; none if it is learnt.
fn parse(
    reply: &Reply,
    names: &HashMap<u32, String>,
) -> Result<Option<(u32, Option<u32>, Forwarding)>, netlink::Error> {
    let (header, attrs) = reply.split::<12>()?;
    let (index, state, flags) = (u32_at(&header, 4), u16_at(&header, 8), header[10]);
    let static_ = state & (NUD_NOARP | NUD_PERMANENT) != 0 && flags & NTF_EXT_LEARNED == 0;
    let Some(link) = names.get(&index).filter(|_| static_) else {
        return Ok(None);
    };
    let mut entry = Forwarding {
        link: link.clone(),
        mac: Mac([0; 6]),
        state,
        flags,
        vlan: None,
        remote: None,
        port: None,
        vni: None,
        source_vni: None,
        via: None,
        nexthop: None,
    };
    let mut master = None;
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            NDA_LLADDR => match attr.mac() {
                Some(mac) => entry.mac = mac,
                None => return Ok(None),
            },
            NDA_MASTER => master = Some(attr.u32()?),
            NDA_VLAN => entry.vlan = Some(attr.u16()?),
            NDA_DST => entry.remote = Some(attr.ip()?),
            NDA_PORT => entry.port = Some(attr.be16()?),
            NDA_VNI => entry.vni = Some(attr.u32()?),
            NDA_SRC_VNI => entry.source_vni = Some(attr.u32()?),
            NDA_IFINDEX => entry.via = names.get(&attr.u32()?).cloned(),
            NDA_NH_ID => entry.nexthop = Some(attr.u32()?),
            _ => {}
        }
    }
    Ok(Some((index, master, entry)))
}
