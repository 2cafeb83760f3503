//! Links: what a dump says of them, and the requests that make and change them.
use std::{collections::HashMap, ops::RangeInclusive, os::fd::RawFd};

use netmig_core::image::v1::net::{IFF_UP, Link, LinkKind, Mac, Setting};

use super::{
    Doing, Error,
    attr::{Attr, Attrs, Message, u16_at, u32_at},
    netlink::{self, Netlink, Reply},
    uapi::*,
};

/// Flags that an administrator sets; the others say what the device does at the moment.
const SETTABLE: u32 = (libc::IFF_UP
    | libc::IFF_DEBUG
    | libc::IFF_NOTRAILERS
    | libc::IFF_NOARP
    | libc::IFF_PROMISC
    | libc::IFF_ALLMULTI
    | libc::IFF_MULTICAST
    | libc::IFF_DYNAMIC) as u32;

/// Devices that a tunnel module puts into every namespace by itself: they are there at the target, or their module is not.
const FALLBACK: [&str; 11] = [
    "tunl0",
    "gre0",
    "gretap0",
    "erspan0",
    "ip_vti0",
    "ip6_vti0",
    "sit0",
    "ip6tnl0",
    "ip6gre0",
    "ip6gretap0",
    "ip6erspan0",
];

/// Kinds that live in one namespace alone, and the numbers of those of their attributes that can be given to the kernel; the others are
/// states. A link's parent is in none of them, see [`LinkKind::Virtual`].
const VIRTUAL: [(&str, &[RangeInclusive<u16>]); 5] = [
    // IFLA_BR_*: without the identities of the spanning tree, timers, group address, flush, querier's state, learnt entries.
    ("bridge", &[1..=9, 22..=39, 41..=46, 49..=49]),
    ("ifb", &[]),
    ("vlan", &[1..=5]),
    ("vrf", &[1..=1]),
    // IFLA_VXLAN_*, without IFLA_VXLAN_LINK.
    ("vxlan", &[1..=2, 4..=34]),
];

/// Whether a link of that kind can be made as [`LinkKind::Virtual`].
pub fn is_virtual(kind: &str) -> bool {
    VIRTUAL.iter().any(|(known, _)| *known == kind)
}

/// A link as one namespace shows it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Index in this namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// ARPHRD_*.
    pub hardware: u16,
    /// IFF_*.
    pub flags: u32,
    /// MAC.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: u32,
    /// Transmit queue.
    pub txqueuelen: u32,
    /// Group.
    pub group: u32,
    /// GSO limits: bytes, segments.
    pub gso: (Option<u32>, Option<u32>),
    /// Alias.
    pub alias: Option<String>,
    /// Alternative names.
    pub altnames: Vec<String>,
    /// rtnetlink's kind; none for a physical device and for `lo`.
    pub kind: Option<String>,
    /// Attributes of that kind, undecoded.
    pub data: Vec<u8>,
    /// IFLA_LINK: the other end or the parent, as an index in the namespace `netnsid`, or in this one.
    pub link: Option<u32>,
    /// IFLA_LINK_NETNSID.
    pub netnsid: Option<i32>,
    /// Index of the bridge or bond it is enslaved to.
    pub master: Option<u32>,
    /// IN6_ADDR_GEN_MODE_*.
    pub addr_gen_mode: Option<u8>,
}

impl Seen {
    /// A number among the attributes of its kind.
    pub fn data_attr(&self, kind: u16) -> Option<Attr<'_>> {
        Attrs(&self.data).flatten().find(|a| a.kind == kind)
    }

    /// Whether it was put there by a tunnel module and nobody uses it.
    pub fn is_fallback(&self) -> bool {
        self.flags & IFF_UP == 0 && FALLBACK.contains(&self.name.as_str())
    }

    /// Whether it is the namespace's loopback.
    pub fn is_loopback(&self) -> bool {
        // IFF_LOOPBACK is a small positive constant.
        self.flags & libc::IFF_LOOPBACK as u32 != 0
    }

    fn settings(&self, kind: &str) -> Vec<Setting> {
        let settable = |number: u16| {
            VIRTUAL
                .iter()
                .any(|(known, ranges)| *known == kind && ranges.iter().any(|r| r.contains(&number)))
        };
        Attrs(&self.data)
            .flatten()
            .filter(|a| settable(a.kind))
            .filter_map(|a| {
                let off_by_itself = matches!(
                    (kind, a.kind),
                    ("bridge", IFLA_BR_VLAN_FILTERING)
                        | (
                            "vxlan",
                            IFLA_VXLAN_REMCSUM_TX | IFLA_VXLAN_REMCSUM_RX | IFLA_VXLAN_TTL_INHERIT
                        )
                );
                // That it is named at all counts as a wish: for a part that the kernel lacks, for bits of the header, for a flag.
                if off_by_itself && *a.value == [0] {
                    return None;
                }
                let value = match (kind, a.value.first_chunk::<4>()) {
                    // struct ifla_vlan_flags: written with a mask of all bits, read with those that there are (vlan_dev_change_flags()).
                    ("vlan", Some(flags)) if a.kind == IFLA_VLAN_FLAGS => {
                        [*flags, VLAN_FLAGS.to_ne_bytes()].concat()
                    }
                    // Written as a number, read as a flag without content.
                    ("vxlan", _) if a.kind == IFLA_VXLAN_TTL_INHERIT => Vec::new(),
                    // struct br_boolopt_multi: values, and which are meant. It names all that the kernel knows, and refuses those for
                    // which it lacks a part, on or off; a new bridge has none on.
                    ("bridge", Some(on)) if a.kind == IFLA_BR_MULTI_BOOLOPT => {
                        if *on == [0; 4] {
                            return None;
                        }
                        on.repeat(2)
                    }
                    _ => a.value.to_vec(),
                };
                Some(Setting {
                    number: a.kind,
                    value,
                })
            })
            .collect()
    }

    /// What travels of it; `names` are those of all links of its namespace.
    pub fn image(&self, names: &HashMap<u32, String>) -> Link {
        let here = self.link.filter(|_| self.netnsid.is_none());
        let named = |index: u32| names.get(&index).cloned();
        let number = |kind| self.data_attr(kind);
        let kind = match self.kind.as_deref() {
            None if self.is_loopback() => LinkKind::Loopback,
            None => LinkKind::Other("physical".to_owned()),
            Some("veth") => match here.and_then(named) {
                Some(other) => LinkKind::Pair { other },
                None => LinkKind::Veth,
            },
            Some("macvlan") => LinkKind::Macvlan {
                mode: number(IFLA_MACVLAN_MODE)
                    .and_then(|a| a.u32().ok())
                    .unwrap_or_default(),
                flags: number(IFLA_MACVLAN_FLAGS)
                    .and_then(|a| a.u16().ok())
                    .unwrap_or_default(),
            },
            Some("ipvlan") => LinkKind::Ipvlan {
                mode: number(IFLA_IPVLAN_MODE)
                    .and_then(|a| a.u16().ok())
                    .unwrap_or_default(),
                flags: number(IFLA_IPVLAN_FLAGS)
                    .and_then(|a| a.u16().ok())
                    .unwrap_or_default(),
            },
            Some("dummy") => LinkKind::Dummy,
            // One that lies on a link of another namespace is not the container's alone.
            Some(kind) if is_virtual(kind) && self.netnsid.is_none() => LinkKind::Virtual {
                kind: kind.to_owned(),
                parent: here.and_then(named),
                settings: self.settings(kind),
            },
            Some(other) => LinkKind::Other(other.to_owned()),
        };
        Link {
            name: self.name.clone(),
            index: self.index,
            kind,
            mac: self.mac.filter(|_| !self.is_loopback()),
            mtu: self.mtu,
            flags: self.flags & SETTABLE,
            txqueuelen: self.txqueuelen,
            group: self.group,
            master: self.master.and_then(named),
            gso_max_size: self.gso.0.filter(|size| *size != 65536),
            gso_max_segs: self.gso.1.filter(|segs| *segs != 65535),
            alias: self.alias.clone(),
            altnames: self.altnames.clone(),
            addr_gen_mode: self.addr_gen_mode,
        }
    }
}

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
    let data = settings.iter().fold(Message::default(), |m, setting| {
        m.bytes(setting.number, &setting.value)
    });
    let data = match parent {
        Some(parent) if kind == "vxlan" => data.u32(IFLA_VXLAN_LINK, parent),
        _ => data,
    };
    let info = Message::default()
        .text(IFLA_INFO_KIND, kind)
        .nested(IFLA_INFO_DATA, &data);
    let request = Message::link(index, 0, 0)
        .text(IFLA_IFNAME, &link.name)
        .u32(IFLA_TXQLEN, link.txqueuelen)
        .maybe(link.mac, |m, mac| m.bytes(IFLA_ADDRESS, &mac.0))
        .maybe(parent.filter(|_| kind == "vlan"), |m, parent| {
            m.u32(IFLA_LINK, parent)
        })
        .nested(IFLA_LINKINFO, &info);
    nl.request(
        libc::RTM_NEWLINK,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        request,
    )
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
    let info = Message::default()
        .text(IFLA_INFO_KIND, kind)
        .maybe(data, |m, data| m.nested(IFLA_INFO_DATA, data));
    let request = Message::link(index, 0, 0)
        .text(IFLA_IFNAME, &link.name)
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

fn parse(reply: &Reply) -> Result<Seen, netlink::Error> {
    let (header, attrs) = reply.split::<16>()?;
    let mut seen = Seen {
        hardware: u16_at(&header, 2),
        index: u32_at(&header, 4),
        flags: u32_at(&header, 8),
        ..Seen::default()
    };
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            IFLA_IFNAME => seen.name = attr.text(),
            IFLA_ADDRESS => seen.mac = attr.mac(),
            IFLA_MTU => seen.mtu = attr.u32()?,
            IFLA_TXQLEN => seen.txqueuelen = attr.u32()?,
            IFLA_GROUP => seen.group = attr.u32()?,
            IFLA_GSO_MAX_SIZE => seen.gso.0 = Some(attr.u32()?),
            IFLA_GSO_MAX_SEGS => seen.gso.1 = Some(attr.u32()?),
            IFLA_IFALIAS => seen.alias = Some(attr.text()).filter(|a| !a.is_empty()),
            IFLA_LINK => seen.link = Some(attr.u32()?).filter(|i| *i != 0),
            IFLA_LINK_NETNSID => seen.netnsid = Some(attr.i32()?),
            IFLA_MASTER => seen.master = Some(attr.u32()?),
            IFLA_PROP_LIST => {
                for name in attr.nested() {
                    let name = name?;
                    if name.kind == IFLA_ALT_IFNAME {
                        seen.altnames.push(name.text());
                    }
                }
                seen.altnames.sort();
            }
            IFLA_LINKINFO => {
                for info in attr.nested() {
                    let info = info?;
                    match info.kind {
                        IFLA_INFO_KIND => seen.kind = Some(info.text()),
                        IFLA_INFO_DATA => seen.data = info.value.to_vec(),
                        _ => {}
                    }
                }
            }
            IFLA_AF_SPEC => {
                for family in attr.nested() {
                    let family = family?;
                    if i32::from(family.kind) == libc::AF_INET6 {
                        for inner in family.nested() {
                            let inner = inner?;
                            if inner.kind == IFLA_INET6_ADDR_GEN_MODE {
                                seen.addr_gen_mode = Some(inner.u8()?);
                            }
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Ok(seen)
}
