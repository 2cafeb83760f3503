//! The container's network: links, addresses, routes, rules, neighbours, sysctls, traffic shaping.
//!
//! Numbers that rtnetlink defines (flags, scopes, protocols, tables, types) are kept as the kernel's own values; what names another
//! object of the same namespace (a link) names it by its name, so that nothing depends on an index of one host.
use std::{fmt, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::filter::Filters;

mod address;
mod link;
mod mac;
mod nexthop;
mod partial;
mod shaping;

pub use address::{Address, Prefix};
pub use link::{IFF_UP, Link, LinkKind, PortVlan, Setting};
pub use mac::{BadMac, Mac};
pub use nexthop::{NextHopObject, Resilient, Way};
pub use shaping::{Class, Discipline, Filter, TC_H_INGRESS, TC_H_ROOT};

/// The network of one namespace. Two dumps of equal namespaces are equal, except for what counts down ([`Network::timeless`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// Links by index, `lo` first.
    pub links: Vec<Link>,
    /// Addresses, link by link, in the kernel's order within a link: which one is primary, and which is chosen as source, depends on it.
    pub addresses: Vec<Address>,
    /// Next hop objects by their numbers.
    #[serde(default)]
    pub nexthops: Vec<NextHopObject>,
    /// Routes of all tables, sorted, without those of the local table that the kernel makes for each address.
    pub routes: Vec<Route>,
    /// All policy rules, the three default ones too: a container may have removed them. In the kernel's order.
    pub rules: Vec<Rule>,
    /// Permanent neighbours and proxy entries, sorted.
    pub neighbours: Vec<Neighbour>,
    /// Static entries of the forwarding tables of bridges and VXLANs, sorted.
    #[serde(default)]
    pub forwarding: Vec<Forwarding>,
    /// Neighbours that were learnt: a hint, by which the first packet to them need not wait for an answer. Sorted.
    #[serde(default)]
    pub learnt: Vec<Neighbour>,
    /// Sysctls under net/ that differ from a fresh namespace's, or that a fresh namespace takes from its host; sorted by path.
    pub sysctls: Vec<Sysctl>,
    /// Queueing disciplines that somebody has set up, sorted by link and handle.
    #[serde(default)]
    pub shaping: Vec<Discipline>,
    /// Packet filters.
    #[serde(default)]
    pub filters: Filters,
    /// What the dump has seen and cannot carry, in words for the report. Each names its object.
    pub not_carried: Vec<String>,
}

impl Network {
    /// The same network without the lifetimes that count down, without what is learnt, and without what an ipvlan has from its host: two dumps at different
    /// moments, or of the same container on two hosts, compare equal.
    pub fn timeless(mut self) -> Self {
        for address in &mut self.addresses {
            address.valid = address.valid.map(|_| 0);
            address.preferred = address.preferred.map(|_| 0);
        }
        for route in &mut self.routes {
            route.expires = route.expires.map(|_| 0);
        }
        for link in &mut self.links {
            link.mac = link.mac.filter(|_| !link.kind.has_hosts_mac());
        }
        self.learnt.clear();
        self
    }

    /// The link of that name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.name == name)
    }

    /// The addresses of one link.
    pub fn addresses_of<'a>(&'a self, link: &'a str) -> impl Iterator<Item = &'a Address> {
        self.addresses.iter().filter(move |a| a.link == link)
    }
}

/// IPv4 or IPv6.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// AF_INET.
    Inet,
    /// AF_INET6.
    Inet6,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Table.
    pub table: u32,
    /// RTN_*: unicast, blackhole, ...
    pub kind: u8,
    /// Destination; length 0 is the default route.
    pub destination: Prefix,
    /// Source prefix (IPv6 only).
    pub source: Option<Prefix>,
    /// TOS it applies to; 0: any.
    pub tos: u8,
    /// RT_SCOPE_* (IPv4).
    pub scope: u8,
    /// RTPROT_*: who made it.
    pub protocol: u8,
    /// Metric.
    pub priority: Option<u32>,
    /// Preferred source address.
    pub prefsrc: Option<IpAddr>,
    /// ICMPV6_ROUTER_PREF_* (IPv6).
    pub preference: Option<u8>,
    /// Seconds until it goes; none: never.
    pub expires: Option<u32>,
    /// RTAX_* by number.
    pub metrics: Vec<Metric>,
    /// Where it leads: none for a blackhole, several for multipath.
    pub next_hops: Vec<NextHop>,
    /// The next hop object that says where it leads, instead of `next_hops`.
    #[serde(default)]
    pub nexthop: Option<u32>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        for hop in &self.next_hops {
            if let Some(gateway) = hop.gateway {
                write!(f, " via {gateway}")?;
            }
            if let Some(link) = &hop.link {
                write!(f, " dev {link}")?;
            }
        }
        if let Some(id) = self.nexthop {
            write!(f, " nhid {id}")?;
        }
        write!(f, " table {}", self.table)
    }
}

/// A route's metric (RTAX_*).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Metric {
    /// RTAX_* number.
    pub kind: u16,
    /// Its bytes as the kernel takes them: a number in the host's order, or the name of a congestion control.
    pub value: MetricValue,
}

/// Value of a [`Metric`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MetricValue {
    /// Everything but RTAX_CC_ALGO.
    Number(u32),
    /// RTAX_CC_ALGO.
    Text(String),
}

/// One way that a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NextHop {
    /// Name of the link.
    pub link: Option<String>,
    /// Gateway; may be of the other family (RTA_VIA).
    pub gateway: Option<IpAddr>,
    /// Weight of a multipath route minus one, as rtnh_hops.
    pub hops: u8,
    /// RTNH_F_ONLINK: the gateway is on the link even if no address says so.
    pub onlink: bool,
    /// IPv4 realm.
    pub realm: Option<u32>,
}

/// One policy rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Lower is asked first.
    pub priority: u32,
    /// FR_ACT_*.
    pub action: u8,
    /// Table of FR_ACT_TO_TBL.
    pub table: u32,
    /// Matches what does not match.
    pub invert: bool,
    /// Source.
    pub source: Option<Prefix>,
    /// Destination.
    pub destination: Option<Prefix>,
    /// TOS; 0: any.
    pub tos: u8,
    /// Incoming link, by name: it need not exist.
    pub iif: Option<String>,
    /// Outgoing link.
    pub oif: Option<String>,
    /// Mark and mask.
    pub fwmark: Option<(u32, u32)>,
    /// First and last user id.
    pub uids: Option<(u32, u32)>,
    /// IP protocol.
    pub ip_protocol: Option<u8>,
    /// First and last source port.
    pub sports: Option<(u16, u16)>,
    /// First and last destination port.
    pub dports: Option<(u16, u16)>,
    /// Bits of the source port that count, if not all (Linux 6.15).
    pub sport_mask: Option<u16>,
    /// Bits of the destination port that count, if not all (Linux 6.15).
    pub dport_mask: Option<u16>,
    /// DSCP (Linux 6.14).
    pub dscp: Option<u8>,
    /// Bits of the DSCP that count, if not all six (Linux 6.15).
    pub dscp_mask: Option<u8>,
    /// IPv6 flow label and mask (Linux 6.14).
    pub flowlabel: Option<(u32, u32)>,
    /// Priority of the rule that FR_ACT_GOTO leads to.
    pub goto: Option<u32>,
    /// Routes with a shorter or equal prefix are ignored.
    pub suppress_prefixlen: Option<u32>,
    /// Routes over links of this group are ignored.
    pub suppress_ifgroup: Option<u32>,
    /// Tunnel id.
    pub tun_id: Option<u64>,
    /// Table by the l3mdev of the packet.
    pub l3mdev: bool,
    /// IPv4 realm.
    pub realm: Option<u32>,
    /// RTPROT_*.
    pub protocol: u8,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} priority {}", self.family, self.priority)?;
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        if let Some(destination) = self.destination {
            write!(f, " to {destination}")?;
        }
        write!(f, " table {}", self.table)
    }
}

/// A permanent neighbour, or an address that the namespace answers for (proxy).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Neighbour {
    /// Link; none for a proxy entry of every link.
    pub link: Option<String>,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// An entry of the proxy table.
    pub proxy: bool,
    /// It is a router (IPv6).
    pub router: bool,
}

/// A static entry of the forwarding table of a bridge (on one of its ports), or of a VXLAN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Forwarding {
    /// The port, the bridge, or the VXLAN.
    pub link: String,
    /// Where frames to this MAC go; of a VXLAN all zeroes: to all others.
    pub mac: Mac,
    /// NUD_*: 0x40 leads to the port, 0x80 to this namespace itself (of a VXLAN: it does not go).
    pub state: u16,
    /// NTF_*: 2 for the device's own table, 4 for that of its bridge.
    pub flags: u8,
    /// VLAN, if it is of one.
    pub vlan: Option<u16>,
    /// The other end of the VXLAN.
    pub remote: Option<IpAddr>,
    /// Its port, if not the device's.
    pub port: Option<u16>,
    /// The network identifier there, if not the device's.
    pub vni: Option<u32>,
    /// The network identifier here, of a device that has many.
    pub source_vni: Option<u32>,
    /// Name of the link through which the other end is reached.
    pub via: Option<String>,
    /// The next hop object instead of all that.
    pub nexthop: Option<u32>,
}

/// One sysctl.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Sysctl {
    /// Path below net/, e.g. `ipv4/conf/eth0/rp_filter`.
    pub path: String,
    /// Content without the final newline.
    pub value: String,
    /// It is as in a fresh namespace of the source host, and carried because the target's host may give another value.
    pub inherited: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_knows_what_lies_in_it() {
        let net = |a: &str, len| Prefix {
            address: a.parse().unwrap(),
            len,
        };
        assert!(net("192.0.2.0", 24).contains("192.0.2.255".parse().unwrap()));
        assert!(!net("192.0.2.0", 25).contains("192.0.2.128".parse().unwrap()));
        assert!(net("0.0.0.0", 0).contains("198.51.100.1".parse().unwrap()));
        assert!(!net("0.0.0.0", 0).contains("2001:db8::1".parse().unwrap()));
        assert!(net("2001:db8::", 32).contains("2001:db8:1::".parse().unwrap()));
        assert!(net("::", 0).contains("2001:db8:1::".parse().unwrap()));
        assert!(!net("2001:db8::1", 128).contains("2001:db8::2".parse().unwrap()));
    }
}
