//! Links.
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mac;

/// What kind of device a link is, as seen from inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// One end of a pair; the other is on the host.
    Veth,
    /// On a parent device of the host.
    Macvlan {
        /// MACVLAN_MODE_*: 4 is bridge.
        mode: u32,
        /// MACVLAN_FLAG_*.
        flags: u16,
    },
    /// On a parent device of the host, with the parent's own MAC.
    Ipvlan {
        /// IPVLAN_MODE_*.
        mode: u16,
        /// IPVLAN_F_*.
        flags: u16,
    },
    /// A device without another end.
    Dummy,
    /// One end of a pair whose other end is in the namespace too.
    Pair {
        /// Name of the other end.
        other: String,
    },
    /// A device that lives in the namespace alone: bridge, bond, vlan, vrf, ifb, a tunnel, a persistent tun.
    Virtual {
        /// rtnetlink's kind.
        kind: String,
        /// Name of the link that it lies on, if it lies on one.
        parent: Option<String>,
        /// Its settings, by the number that they have among the attributes of the kind (wireguard: WGDEVICE_A_*). What names a link
        /// (IFLA_BOND_PRIMARY) has its name.
        settings: Vec<Setting>,
    },
    /// Anything else: rtnetlink's kind.
    Other(String),
    /// A physical device, or a virtual function of one: rtnetlink knows no kind of it.
    Physical,
}

impl LinkKind {
    /// Whether it lies on a bridge or device of the host, or has its other end there.
    pub fn lies_outside(&self) -> bool {
        matches!(
            self,
            Self::Veth | Self::Macvlan { .. } | Self::Ipvlan { .. }
        )
    }

    /// Whether its MAC is that of the host's device on which it lies, and another one on another host.
    pub fn has_hosts_mac(&self) -> bool {
        matches!(self, Self::Ipvlan { .. })
    }

    /// Whether it is a physical device.
    pub fn is_physical(&self) -> bool {
        matches!(self, Self::Physical)
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Veth => "veth",
            Self::Macvlan { .. } => "macvlan",
            Self::Ipvlan { .. } => "ipvlan",
            Self::Dummy => "dummy",
            Self::Pair { .. } => "veth",
            Self::Virtual { kind, .. } => kind,
            Self::Other(kind) => kind,
            Self::Physical => "physical",
        })
    }
}

/// A setting of a link, as the kernel writes and reads it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Setting {
    /// IFLA_*: its number.
    pub number: u16,
    /// Its bytes; numbers are in the order of the architecture, which both hosts have in common.
    pub value: Vec<u8>,
}

/// Without its bytes, which may be a key: what is written to a log must not have it.
impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.number, self.value.len())
    }
}

/// A VLAN that a bridge lets pass at one of its ports, or to itself.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct PortVlan {
    /// Its id.
    pub id: u16,
    /// BRIDGE_VLAN_INFO_PVID (2), BRIDGE_VLAN_INFO_UNTAGGED (4).
    pub flags: u16,
}

/// One link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Link {
    /// Name inside the namespace.
    pub name: String,
    /// Index inside the namespace: programs hold it, as the scope of a link-local address for one.
    pub index: u32,
    /// Kind of device.
    pub kind: LinkKind,
    /// MAC, if the device has one of six bytes.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// The IFF_* flags that an administrator sets (IFF_UP, IFF_NOARP, IFF_PROMISC, IFF_ALLMULTI, IFF_MULTICAST, ...).
    pub flags: u32,
    /// Length of the transmit queue in packets.
    pub txqueuelen: u32,
    /// Interface group.
    pub group: u32,
    /// Name of the bridge or VRF of the namespace that it is enslaved to.
    pub master: Option<String>,
    /// Largest GSO packet in bytes, if it was lowered or raised from the kernel's 65536.
    pub gso_max_size: Option<u32>,
    /// Most segments of a GSO packet, if changed from the kernel's 65535.
    pub gso_max_segs: Option<u32>,
    /// ifalias.
    pub alias: Option<String>,
    /// Alternative names, sorted.
    pub altnames: Vec<String>,
    /// IN6_ADDR_GEN_MODE_* of the link; none without IPv6.
    pub addr_gen_mode: Option<u8>,
    /// Its settings as a port of `master`: IFLA_BRPORT_* of a bridge, IFLA_BOND_SLAVE_* of a bond.
    #[serde(default)]
    pub port: Vec<Setting>,
    /// The VLANs that the bridge lets pass here: at a port, or to the bridge itself. Sorted.
    #[serde(default)]
    pub vlans: Vec<PortVlan>,
}

/// `IFF_UP`.
pub const IFF_UP: u32 = 1;

impl Link {
    /// A link of that kind with nothing set, down.
    pub fn new(name: &str, index: u32, kind: LinkKind) -> Self {
        Self {
            name: name.to_owned(),
            index,
            kind,
            mac: None,
            mtu: 1500,
            flags: 0,
            txqueuelen: 1000,
            group: 0,
            master: None,
            gso_max_size: None,
            gso_max_segs: None,
            alias: None,
            altnames: Vec::new(),
            addr_gen_mode: None,
            port: Vec::new(),
            vlans: Vec::new(),
        }
    }

    /// Whether it is administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }
}
