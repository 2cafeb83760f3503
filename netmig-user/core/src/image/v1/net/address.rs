//! Addresses.
use std::{fmt, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An address and the number of its leading bits that count.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Prefix {
    /// Address.
    pub address: IpAddr,
    /// Bits.
    pub len: u8,
}

impl Prefix {
    /// Whether `address` lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let leading = |a: u128, b: u128, width: u32| {
            let shift = width.saturating_sub(u32::from(self.len));
            shift >= width || (a ^ b) >> shift == 0
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => leading(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => leading(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// One address of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Address {
    /// Name of the link.
    pub link: String,
    /// The link's own address and its netmask.
    pub local: Prefix,
    /// The other end's address, on a point-to-point address.
    pub peer: Option<IpAddr>,
    /// IPv4 broadcast address.
    pub broadcast: Option<IpAddr>,
    /// IPv4 label, if it is not the link's name.
    pub label: Option<String>,
    /// RT_SCOPE_*.
    pub scope: u8,
    /// The IFA_F_* flags that can be given to the kernel (nodad, noprefixroute, mngtmpaddr, home, autojoin).
    pub flags: u32,
    /// Seconds that it stays valid; none: for ever.
    pub valid: Option<u32>,
    /// Seconds until it is deprecated; none: never.
    pub preferred: Option<u32>,
    /// Metric of its prefix route, if set.
    pub metric: Option<u32>,
    /// IFAPROT_*: who made it.
    pub protocol: u8,
}

impl Address {
    /// As `ip address add LOCAL dev LINK` without more gives it: global, for ever.
    pub fn new(link: &str, local: Prefix) -> Self {
        Self {
            link: link.to_owned(),
            local,
            peer: None,
            broadcast: None,
            label: None,
            scope: 0,
            flags: 0,
            valid: None,
            preferred: None,
            metric: None,
            protocol: 0,
        }
    }
}
