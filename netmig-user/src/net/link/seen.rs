//! A link as a dump shows it, and what travels of it.
use std::collections::HashMap;

use netmig_core::image::v1::net::{IFF_UP, Link, LinkKind, Mac};

use super::{
    super::{
        attr::{Attr, Attrs, u16_at, u32_at},
        netlink::{self, Reply},
        uapi::*,
    },
    kinds::{self, Parent, is_virtual},
};

/// Flags that an administrator sets; the others say what the device does at the moment.
pub(super) const SETTABLE: u32 = (libc::IFF_UP
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
    /// The MAC that its maker gave it.
    pub permanent_mac: Option<Mac>,
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
    /// Kind of its master, and attributes as one of that master's ports, undecoded.
    pub port: (String, Vec<u8>),
    /// IN6_ADDR_GEN_MODE_*.
    pub addr_gen_mode: Option<u8>,
    /// Whether it has a carrier, up or not.
    pub carrier: bool,
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

    /// Whether a program holds a queue of this tun device: without one it would have no carrier (__tun_detach()), or not be there.
    fn is_held(&self) -> bool {
        let persistent = self
            .data_attr(IFLA_TUN_PERSIST)
            .is_some_and(|a| *a.value != [0]);
        self.carrier || !persistent
    }

    /// Index of the link of its namespace that a link of such a kind lies on. A VXLAN says so in no other place than its own attributes.
    fn lies_on(&self, kind: &str) -> Option<u32> {
        match kinds::parent(kind) {
            Parent::None => None,
            Parent::Link => self.link,
            Parent::Data(number) => self
                .data_attr(number)
                .and_then(|a| a.u32().ok())
                .filter(|index| *index != 0),
        }
    }

    /// What travels of it; `names` are those of all links of its namespace.
    pub fn image(&self, names: &HashMap<u32, String>) -> Link {
        let here = self.link.filter(|_| self.netnsid.is_none());
        let named = |index: u32| names.get(&index).cloned();
        let number = |kind| self.data_attr(kind);
        let kind = match self.kind.as_deref() {
            None if self.is_loopback() => LinkKind::Loopback,
            None => LinkKind::Physical,
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
            Some("tun") if self.is_held() => LinkKind::Other("tun (a program holds it)".to_owned()),
            // One that lies on a link of another namespace is not the container's alone.
            Some(kind) if is_virtual(kind) && self.netnsid.is_none() => LinkKind::Virtual {
                kind: kind.to_owned(),
                parent: self.lies_on(kind).and_then(named),
                settings: kinds::settings(kind, &self.data, names),
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
            port: kinds::of_port(&self.port.0, &self.port.1),
            vlans: Vec::new(),
        }
    }
}

/// Reads one of a dump.
pub(super) fn parse(reply: &Reply) -> Result<Seen, netlink::Error> {
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
            IFLA_PERM_ADDRESS => seen.permanent_mac = attr.mac(),
            IFLA_MTU => seen.mtu = attr.u32()?,
            IFLA_TXQLEN => seen.txqueuelen = attr.u32()?,
            IFLA_GROUP => seen.group = attr.u32()?,
            IFLA_GSO_MAX_SIZE => seen.gso.0 = Some(attr.u32()?),
            IFLA_GSO_MAX_SEGS => seen.gso.1 = Some(attr.u32()?),
            IFLA_IFALIAS => seen.alias = Some(attr.text()).filter(|a| !a.is_empty()),
            IFLA_LINK => seen.link = Some(attr.u32()?).filter(|i| *i != 0),
            IFLA_LINK_NETNSID => seen.netnsid = Some(attr.i32()?),
            IFLA_CARRIER => seen.carrier = attr.u8()? != 0,
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
                        IFLA_INFO_SLAVE_KIND => seen.port.0 = info.text(),
                        IFLA_INFO_SLAVE_DATA => seen.port.1 = info.value.to_vec(),
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
