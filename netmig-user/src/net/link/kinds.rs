//! Kinds of links that live in one namespace alone: which of their attributes are settings, and in what form these are taken.
use std::{collections::HashMap, ops::RangeInclusive};

use netmig_core::image::v1::net::Setting;

use super::super::{attr::Attrs, uapi::*};

/// One of them.
struct Kind {
    name: &'static str,
    /// The numbers of those of its attributes that can be given to the kernel; the others are states.
    settings: &'static [RangeInclusive<u16>],
    /// How the kernel is told what it lies on.
    parent: Parent,
}

/// Where a request names the link that another one lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// It lies on none.
    None,
    /// IFLA_LINK.
    Link,
    /// An attribute of the kind.
    Data(u16),
}

const fn kind(
    name: &'static str,
    settings: &'static [RangeInclusive<u16>],
    parent: Parent,
) -> Kind {
    Kind {
        name,
        settings,
        parent,
    }
}

/// IFLA_GRE_*, without IFLA_GRE_LINK.
const GRE: &[RangeInclusive<u16>] = &[2..=24];
/// IFLA_IPTUN_*, without IFLA_IPTUN_LINK.
const IPTUN: &[RangeInclusive<u16>] = &[2..=20];
/// IFLA_GRE_LINK, IFLA_IPTUN_LINK.
const TUNNEL_LINK: Parent = Parent::Data(1);

const VIRTUAL: [Kind; 18] = [
    // IFLA_BOND_*: without the active slave and the state of 802.3ad. All but the mode are given when it is there (super::bond).
    kind("bond", &[1..=1, 3..=22, 24..=33], Parent::None),
    // IFLA_BR_*: without the identities of the spanning tree, timers, group address, flush, querier's state, learnt entries.
    kind("bridge", &[1..=9, 22..=39, 41..=46, 49..=49], Parent::None),
    kind("erspan", GRE, TUNNEL_LINK),
    // IFLA_GENEVE_*
    kind("geneve", &[1..=14], Parent::None),
    kind("gre", GRE, TUNNEL_LINK),
    kind("gretap", GRE, TUNNEL_LINK),
    kind("ifb", &[], Parent::None),
    kind("ip6erspan", GRE, TUNNEL_LINK),
    kind("ip6gre", GRE, TUNNEL_LINK),
    kind("ip6gretap", GRE, TUNNEL_LINK),
    kind("ip6tnl", IPTUN, TUNNEL_LINK),
    kind("ipip", IPTUN, TUNNEL_LINK),
    kind("sit", IPTUN, TUNNEL_LINK),
    // IFLA_TUN_*: without IFLA_TUN_PERSIST, which all that are made have, and the queues.
    kind("tun", &[1..=5, 7..=7], Parent::None),
    kind("vlan", &[1..=5], Parent::Link),
    kind("vrf", &[1..=1], Parent::None),
    // IFLA_VXLAN_*, without IFLA_VXLAN_LINK.
    kind("vxlan", &[1..=2, 4..=34], Parent::Data(IFLA_VXLAN_LINK)),
    // Its settings are read and given by another protocol (super::wireguard).
    kind("wireguard", &[], Parent::None),
];

/// IFLA_BRPORT_*: without its state (the spanning tree's, or up), flushing, timers and identities, its backup (a link), counts.
const BRIDGE_PORT: [RangeInclusive<u16>; 6] = [2..=12, 25..=25, 27..=33, 37..=37, 39..=40, 42..=43];
/// IFLA_BOND_SLAVE_QUEUE_ID, IFLA_BOND_SLAVE_PRIO.
const BOND_PORT: [RangeInclusive<u16>; 2] = [5..=5, 9..=9];

fn known(name: &str) -> Option<&'static Kind> {
    VIRTUAL.iter().find(|known| known.name == name)
}

/// Whether a link of that kind can be made as [`netmig_core::image::v1::net::LinkKind::Virtual`].
pub fn is_virtual(kind: &str) -> bool {
    known(kind).is_some()
}

/// How a link of that kind is told what it lies on.
pub fn parent(kind: &str) -> Parent {
    known(kind).map_or(Parent::None, |known| known.parent)
}

/// What can be given to the kernel of the attributes `data` that it has shown of a link; `names` are those of the links of its namespace.
pub fn settings(kind: &str, data: &[u8], names: &HashMap<u32, String>) -> Vec<Setting> {
    let ranges = known(kind).map_or(&[][..], |known| known.settings);
    Attrs(data)
        .flatten()
        .filter(|a| ranges.iter().any(|range| range.contains(&a.kind)))
        .filter_map(|a| {
            Some(Setting {
                number: a.kind,
                value: taken(kind, a.kind, a.value, names)?,
            })
        })
        .collect()
}

/// What can be given of the attributes that a link has as a port of a master of that kind.
pub fn of_port(master: &str, data: &[u8]) -> Vec<Setting> {
    let ranges: &[_] = match master {
        "bridge" => &BRIDGE_PORT,
        "bond" => &BOND_PORT,
        _ => &[],
    };
    Attrs(data)
        .flatten()
        .filter(|a| ranges.iter().any(|range| range.contains(&a.kind)))
        .map(|a| Setting {
            number: a.kind,
            value: a.value.to_vec(),
        })
        .collect()
}

/// The form in which a setting is taken, where it is shown in another; none if it is not to be named at all.
fn taken(kind: &str, number: u16, shown: &[u8], names: &HashMap<u32, String>) -> Option<Vec<u8>> {
    let off_by_itself = matches!(
        (kind, number),
        ("bridge", IFLA_BR_VLAN_FILTERING)
            | ("geneve", IFLA_GENEVE_TTL_INHERIT)
            | (
                "vxlan",
                IFLA_VXLAN_REMCSUM_TX | IFLA_VXLAN_REMCSUM_RX | IFLA_VXLAN_TTL_INHERIT
            )
    );
    // That it is named at all counts as a wish: for a part that the kernel lacks, for bits of the header, for a flag, against another setting.
    if off_by_itself && *shown == [0] {
        return None;
    }
    match (kind, shown.first_chunk::<4>()) {
        // struct ifla_vlan_flags: written with a mask of all bits, read with those that there are (vlan_dev_change_flags()).
        ("vlan", Some(flags)) if number == IFLA_VLAN_FLAGS => {
            Some([*flags, VLAN_FLAGS.to_ne_bytes()].concat())
        }
        // Written as a number, read as a flag without content.
        ("vxlan", _) if number == IFLA_VXLAN_TTL_INHERIT => Some(Vec::new()),
        // struct br_boolopt_multi: values, and which are meant. It names all that the kernel knows, and refuses those for
        // which it lacks a part, on or off; a new bridge has none on.
        ("bridge", Some(on)) if number == IFLA_BR_MULTI_BOOLOPT => {
            (*on != [0; 4]).then(|| on.repeat(2))
        }
        ("bond", Some(index)) if number == IFLA_BOND_PRIMARY => names
            .get(&u32::from_ne_bytes(*index))
            .map(|name| name.clone().into_bytes()),
        _ => Some(shown.to_vec()),
    }
}
