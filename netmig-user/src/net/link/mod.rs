//! Links: what a dump says of them, and the requests that make and change them.
use std::{collections::HashMap, os::fd::RawFd};

use netmig_core::image::v1::net::{IFF_UP, Link, Mac, Setting};

use super::{
    Doing, Error,
    attr::Message,
    netlink::{self, Netlink},
    uapi::*,
};

mod kinds;
mod seen;
pub mod tun;
pub mod wireguard;

use kinds::Parent;
pub use kinds::is_virtual;
pub use seen::Seen;
use seen::{SETTABLE, parse};

/// All links of the namespace, by index.
pub fn dump(nl: &mut Netlink) -> Result<Vec<Seen>, Error> {
    let request = Message::link(0, 0, 0).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    let mut all = nl
        .dump(libc::RTM_GETLINK, &request)
        .and_then(|replies| replies.iter().map(parse).collect::<Result<Vec<_>, _>>())
        .doing(|| "reading the links".to_owned())?;
    all.sort_by_key(|l| l.index);
    Ok(all)
}

/// The link of that name or alternative name, if there is one.
pub fn find(nl: &mut Netlink, name: &str) -> Result<Option<Seen>, Error> {
    // IFLA_IFNAME finds proper names only, and names of 16 bytes and more are alternative ones.
    let by = |kind| Message::link(0, 0, 0).text(kind, name);
    let mut ask = |kind| match nl.get(libc::RTM_GETLINK, by(kind)) {
        Ok(reply) => reply.as_ref().map(parse).transpose(),
        Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    };
    let found = if name.len() < libc::IFNAMSIZ {
        ask(IFLA_IFNAME)
    } else {
        Ok(None)
    };
    match found {
        Ok(None) => ask(IFLA_ALT_IFNAME),
        other => other,
    }
    .doing(|| format!("looking for link {name}"))
}

/// Index of the link of that name, if there is one.
pub fn index(nl: &mut Netlink, name: &str) -> Result<Option<u32>, netlink::Error> {
    match nl.get(
        libc::RTM_GETLINK,
        Message::link(0, 0, 0).text(IFLA_IFNAME, name),
    ) {
        Ok(Some(reply)) => Ok(Some(parse(&reply)?.index)),
        Ok(None) => Ok(None),
        Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Names of the links of a namespace, by index.
pub fn names(links: &[Seen]) -> HashMap<u32, String> {
    links.iter().map(|l| (l.index, l.name.clone())).collect()
}

/// Indices by name.
pub fn indices(links: &[Seen]) -> HashMap<String, u32> {
    links.iter().map(|l| (l.name.clone(), l.index)).collect()
}

/// Where the other end of a new veth goes.
pub struct HostEnd<'a> {
    /// Its name there.
    pub name: &'a str,
    /// Its MAC.
    pub mac: Mac,
    /// The namespace it goes to.
    pub netns: RawFd,
}

/// Makes a veth in the namespace of `nl`: this end is the container's, down; with `index` 0 the kernel chooses one.
///
/// veth_newlink() honours an index for the end that is made in the namespace of the request, so the request is made inside.
pub fn add_veth(
    nl: &mut Netlink,
    link: &Link,
    index: u32,
    host: &HostEnd<'_>,
) -> Result<(), netlink::Error> {
    let peer = Message::link(0, 0, 0)
        .text(IFLA_IFNAME, host.name)
        .bytes(IFLA_ADDRESS, &host.mac.0)
        .u32(IFLA_MTU, link.mtu)
        .bytes(IFLA_NET_NS_FD, &host.netns.to_ne_bytes());
    let data = Message::default().nested(VETH_INFO_PEER, &peer);
    add(nl, link, index, "veth", Some(&data), None)
}

/// Makes a macvlan in the namespace of `nl`, down, on `parent`: its index and the id of its namespace as seen from this one.
pub fn add_macvlan(
    nl: &mut Netlink,
    link: &Link,
    index: u32,
    parent: (u32, i32),
    mode: u32,
    flags: u16,
) -> Result<(), netlink::Error> {
    let data = Message::default()
        .u32(IFLA_MACVLAN_MODE, mode)
        .u16(IFLA_MACVLAN_FLAGS, flags);
    add(nl, link, index, "macvlan", Some(&data), Some(parent))
}

/// Makes an ipvlan in the namespace of `nl`, down; `parent` as for a macvlan, whose MAC it takes. The driver takes no other one.
pub fn add_ipvlan(
    nl: &mut Netlink,
    link: &Link,
    index: u32,
    parent: (u32, i32),
    mode: u16,
    flags: u16,
) -> Result<(), netlink::Error> {
    let data = Message::default()
        .u16(IFLA_IPVLAN_MODE, mode)
        .u16(IFLA_IPVLAN_FLAGS, flags);
    let link = Link {
        mac: None,
        ..link.clone()
    };
    add(nl, &link, index, "ipvlan", Some(&data), Some(parent))
}

/// Makes a pair with both ends in the namespace of `nl`, down.
pub fn add_pair(
    nl: &mut Netlink,
    link: &Link,
    index: u32,
    other: &Link,
    other_index: u32,
) -> Result<(), netlink::Error> {
    let peer = Message::link(other_index, 0, 0)
        .text(IFLA_IFNAME, &other.name)
        .maybe(other.mac, |m, mac| m.bytes(IFLA_ADDRESS, &mac.0))
        .u32(IFLA_MTU, other.mtu);
    let data = Message::default().nested(VETH_INFO_PEER, &peer);
    add(nl, link, index, "veth", Some(&data), None)
}

/// Makes a link of one of the kinds that live in one namespace alone, down; `parent` is the index of the link that it lies on.
pub fn add_virtual(
    nl: &mut Netlink,
    link: &Link,
    index: u32,
    kind: &str,
    parent: Option<u32>,
    settings: &[Setting],
) -> Result<(), netlink::Error> {
    // Of a bond only the mode is given before it is there: see settle_bond().
    let data = settings
        .iter()
        .filter(|s| (kind != "bond" || s.number == IFLA_BOND_MODE) && kind != "wireguard")
        .fold(Message::default(), |m, setting| {
            m.bytes(setting.number, &setting.value)
        });
    let lies_on = kinds::parent(kind);
    let data = match (parent, lies_on) {
        (Some(parent), Parent::Data(number)) => data.u32(number, parent),
        _ => data,
    };
    let info = Message::default()
        .text(IFLA_INFO_KIND, kind)
        .nested(IFLA_INFO_DATA, &data);
    let request = Message::link(index, 0, 0)
        .text(IFLA_IFNAME, &link.name)
        .u32(IFLA_TXQLEN, link.txqueuelen)
        .maybe(link.mac, |m, mac| m.bytes(IFLA_ADDRESS, &mac.0))
        .maybe(parent.filter(|_| lies_on == Parent::Link), |m, parent| {
            m.u32(IFLA_LINK, parent)
        })
        .nested(IFLA_LINKINFO, &info);
    nl.request(
        libc::RTM_NEWLINK,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        request,
    )
}

/// Gives a bond what of its settings it has not by itself, before anything is enslaved to it. Only that: what a mode does not know is
/// refused even where it is what it would be anyway (bond_opt_check_deps()).
pub fn settle_bond(
    nl: &mut Netlink,
    index: u32,
    settings: &[Setting],
    indices: &HashMap<String, u32>,
) -> Result<(), netlink::Error> {
    let names = indices
        .iter()
        .map(|(name, at)| (*at, name.clone()))
        .collect();
    let now = kinds::settings("bond", &by_index(nl, index)?.data, &names);
    let mut data = Message::default();
    for wanted in settings.iter().filter(|wanted| !now.contains(wanted)) {
        data = match wanted.number {
            IFLA_BOND_PRIMARY => {
                let name = String::from_utf8_lossy(&wanted.value);
                let missing =
                    || netlink::Error::Malformed(format!("its primary {name} is not there"));
                let primary = indices.get(&*name).ok_or_else(missing)?;
                data.u32(IFLA_BOND_PRIMARY, *primary)
            }
            number => data.bytes(number, &wanted.value),
        };
    }
    if data.as_bytes().is_empty() {
        return Ok(());
    }
    let info = Message::default()
        .text(IFLA_INFO_KIND, "bond")
        .nested(IFLA_INFO_DATA, &data);
    let request = Message::link(index, 0, 0).nested(IFLA_LINKINFO, &info);
    nl.request(libc::RTM_NEWLINK, 0, request)
}

/// Gives a link that is enslaved what of its settings as a port it has not by itself.
pub fn settle_port(
    nl: &mut Netlink,
    index: u32,
    settings: &[Setting],
) -> Result<(), netlink::Error> {
    let (master, data) = by_index(nl, index)?.port;
    let now = kinds::of_port(&master, &data);
    let data = settings
        .iter()
        .filter(|wanted| !now.contains(wanted))
        .fold(Message::default(), |m, wanted| {
            m.bytes(wanted.number, &wanted.value)
        });
    if data.as_bytes().is_empty() {
        return Ok(());
    }
    let info = Message::default()
        .text(IFLA_INFO_SLAVE_KIND, &master)
        .nested(IFLA_INFO_SLAVE_DATA, &data);
    let request = Message::link(index, 0, 0).nested(IFLA_LINKINFO, &info);
    nl.request(libc::RTM_NEWLINK, 0, request)
}

/// Whether there is a link with that index.
pub fn exists(nl: &mut Netlink, index: u32) -> Result<bool, netlink::Error> {
    match nl.get(libc::RTM_GETLINK, Message::link(index, 0, 0)) {
        Err(e) if e.errno() == Some(libc::ENODEV) => Ok(false),
        other => Ok(other?.is_some()),
    }
}

fn by_index(nl: &mut Netlink, index: u32) -> Result<Seen, netlink::Error> {
    match nl.get(libc::RTM_GETLINK, Message::link(index, 0, 0))? {
        Some(reply) => parse(&reply),
        None => Err(netlink::Error::Malformed("it is not there".into())),
    }
}

/// Makes a dummy, down.
pub fn add_dummy(nl: &mut Netlink, link: &Link, index: u32) -> Result<(), netlink::Error> {
    add(nl, link, index, "dummy", None, None)
}

fn add(
    nl: &mut Netlink,
    link: &Link,
    index: u32,
    kind: &str,
    data: Option<&Message>,
    parent: Option<(u32, i32)>,
) -> Result<(), netlink::Error> {
    // Without a name the kernel chooses one.
    let named = Some(link.name.as_str()).filter(|name| !name.is_empty());
    let info = Message::default()
        .text(IFLA_INFO_KIND, kind)
        .maybe(data, |m, data| m.nested(IFLA_INFO_DATA, data));
    let request = Message::link(index, 0, 0)
        .maybe(named, |m, name| m.text(IFLA_IFNAME, name))
        .u32(IFLA_MTU, link.mtu)
        .u32(IFLA_TXQLEN, link.txqueuelen)
        .maybe(link.mac, |m, mac| m.bytes(IFLA_ADDRESS, &mac.0))
        .maybe(parent, |m, (index, netnsid)| {
            m.u32(IFLA_LINK, index)
                .bytes(IFLA_LINK_NETNSID, &netnsid.to_ne_bytes())
        })
        .nested(IFLA_LINKINFO, &info);
    nl.request(
        libc::RTM_NEWLINK,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        request,
    )
}

/// Gives the link of that index what creation does not take: MTU of `lo`, flags except IFF_UP, group, GSO limits, alias, alternative names.
/// No IPv6 address is generated when it comes up, until [`set_addr_gen_mode`].
pub fn dress(nl: &mut Netlink, index: u32, link: &Link) -> Result<(), netlink::Error> {
    let change = SETTABLE & !IFF_UP;
    let request = Message::link(index, link.flags & change, change)
        .u32(IFLA_MTU, link.mtu)
        .u32(IFLA_TXQLEN, link.txqueuelen)
        .u32(IFLA_GROUP, link.group)
        .maybe(link.gso_max_size, |m, v| m.u32(IFLA_GSO_MAX_SIZE, v))
        .maybe(link.gso_max_segs, |m, v| m.u32(IFLA_GSO_MAX_SEGS, v))
        .maybe(link.alias.as_deref(), |m, v| m.text(IFLA_IFALIAS, v));
    nl.request(libc::RTM_SETLINK, 0, request)?;
    for altname in &link.altnames {
        add_altname(nl, index, altname)?;
    }
    if link.addr_gen_mode.is_some() {
        set_addr_gen_mode(nl, index, IN6_ADDR_GEN_MODE_NONE)?;
    }
    Ok(())
}

/// Gives a link one more name.
pub fn add_altname(nl: &mut Netlink, index: u32, altname: &str) -> Result<(), netlink::Error> {
    let names = Message::default().text(IFLA_ALT_IFNAME, altname);
    let request = Message::link(index, 0, 0).nested(IFLA_PROP_LIST, &names);
    nl.request(
        RTM_NEWLINKPROP,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_APPEND,
        request,
    )
}

/// Sets how IPv6 addresses are generated. Unlike the sysctl of that name this generates none at once (inet6_set_link_af()).
pub fn set_addr_gen_mode(nl: &mut Netlink, index: u32, mode: u8) -> Result<(), netlink::Error> {
    let inet6 = Message::default().u8(IFLA_INET6_ADDR_GEN_MODE, mode);
    // AF_INET6 fits the type of an attribute.
    let spec = Message::default().nested(libc::AF_INET6 as u16, &inet6);
    nl.request(
        libc::RTM_SETLINK,
        0,
        Message::link(index, 0, 0).nested(IFLA_AF_SPEC, &spec),
    )
}

/// Brings a link up.
pub fn up(nl: &mut Netlink, index: u32) -> Result<(), netlink::Error> {
    nl.request(libc::RTM_SETLINK, 0, Message::link(index, IFF_UP, IFF_UP))
}

/// Takes a link down.
pub fn down(nl: &mut Netlink, index: u32) -> Result<(), netlink::Error> {
    nl.request(libc::RTM_SETLINK, 0, Message::link(index, 0, IFF_UP))
}

/// Enslaves a link to a bridge.
pub fn enslave(nl: &mut Netlink, index: u32, master: u32) -> Result<(), netlink::Error> {
    nl.request(
        libc::RTM_SETLINK,
        0,
        Message::link(index, 0, 0).u32(IFLA_MASTER, master),
    )
}

/// Deletes a link; one that is gone already is no error.
pub fn delete(nl: &mut Netlink, index: u32) -> Result<(), netlink::Error> {
    match nl.request(libc::RTM_DELLINK, 0, Message::link(index, 0, 0)) {
        Err(e) if e.errno() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// The id that the namespace of `nl` has for the namespace `netns`, made if `make`; none if it has none.
pub fn netnsid(nl: &mut Netlink, netns: RawFd, make: bool) -> Result<Option<i32>, netlink::Error> {
    let by_fd = || Message::new(&[0; 4]).bytes(NETNSA_FD, &netns.to_ne_bytes());
    let read = |nl: &mut Netlink| -> Result<Option<i32>, netlink::Error> {
        let Some(reply) = nl.get(libc::RTM_GETNSID, by_fd())? else {
            return Ok(None);
        };
        let (_, attrs) = reply.split::<4>()?;
        for attr in attrs {
            let attr = attr?;
            if attr.kind == NETNSA_NSID {
                return Ok(Some(attr.i32()?).filter(|id| *id >= 0));
            }
        }
        Ok(None)
    };
    match read(nl)? {
        None if make => {
            nl.request(
                libc::RTM_NEWNSID,
                0,
                by_fd().bytes(NETNSA_NSID, &(-1i32).to_ne_bytes()),
            )?;
            read(nl)
        }
        found => Ok(found),
    }
}
