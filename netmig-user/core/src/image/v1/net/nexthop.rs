//! Next hops that are objects of their own, which routes name by their number.
use std::{fmt, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Family;

/// A next hop object, or a group of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NextHopObject {
    /// Its number, by which routes and groups name it.
    pub id: u32,
    /// IPv4 or IPv6; none of a group.
    pub family: Option<Family>,
    /// RTPROT_*: who made it.
    pub protocol: u8,
    /// It is for entries of a VXLAN's forwarding table, not for routes.
    pub fdb: bool,
    /// Where it leads.
    pub way: Way,
}

/// Where a [`NextHopObject`] leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Nowhere.
    Blackhole,
    /// Through a link, to a gateway.
    Single {
        /// Name of the link; none of one for a forwarding table.
        link: Option<String>,
        /// Gateway.
        gateway: Option<IpAddr>,
        /// RTNH_F_ONLINK: the gateway is on the link even if no address says so.
        onlink: bool,
    },
    /// Through one of several objects.
    Group {
        /// Their numbers, and the weight of each minus one.
        members: Vec<(u32, u16)>,
        /// A flow keeps its member when others come and go; which flow has which is not carried.
        resilient: Option<Resilient>,
    },
}

/// How a resilient group spreads flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resilient {
    /// Number of buckets.
    pub buckets: u16,
    /// NHA_RES_GROUP_IDLE_TIMER, in hundredths of a second.
    pub idle: u32,
    /// NHA_RES_GROUP_UNBALANCED_TIMER, in hundredths of a second.
    pub unbalanced: u32,
}

impl fmt::Display for NextHopObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        match &self.way {
            Way::Blackhole => write!(f, " blackhole"),
            Way::Single { link, gateway, .. } => {
                if let Some(gateway) = gateway {
                    write!(f, " via {gateway}")?;
                }
                if let Some(link) = link {
                    write!(f, " dev {link}")?;
                }
                Ok(())
            }
            Way::Group { members, .. } => {
                let ids: Vec<_> = members.iter().map(|(id, _)| id.to_string()).collect();
                write!(f, " group {}", ids.join("/"))
            }
        }
    }
}
