//! Datagram sockets: which groups they have joined, and what waits in their queues.
use std::{fmt, net::IpAddr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{super::queue, Common, Endpoint};

/// A UDP or UDP-Lite socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Udp {
    /// Descriptors, options, buffers.
    pub common: Common,
    /// UDP-Lite (RFC 3828).
    pub lite: bool,
    /// Own address; port 0: not bound.
    pub local: Endpoint,
    /// Where it is connected to.
    pub peer: Option<Endpoint>,
    /// Receive queue, oldest first.
    pub queue: Vec<Datagram>,
    /// Datagrams of the queue that could not be read.
    pub lost: u32,
    /// Multicast groups that it has joined.
    pub groups: Vec<Membership>,
}

/// A multicast group that a socket has joined (RFC 3678).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Interface index at the source; see [`Sockets::interfaces`].
    pub interface: u32,
    /// The group.
    pub group: IpAddr,
    /// `sources` are those that are not wanted (MCAST_EXCLUDE); else the only ones that are.
    pub exclude: bool,
    /// Of the group's family.
    pub sources: Vec<IpAddr>,
}

/// A datagram that waited to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Who sent it.
    pub from: Endpoint,
    /// The address it was sent to.
    pub to: IpAddr,
    /// Time to live or hop limit that it came with.
    pub ttl: u8,
    /// Type of service or traffic class that it came with.
    pub tos: u8,
    /// Payload.
    #[serde(with = "queue")]
    pub data: Bytes,
}

impl fmt::Display for Udp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.lite { "udplite" } else { "udp" };
        match self.peer {
            Some(peer) => write!(f, "{kind} {} -> {peer}", self.local),
            None => write!(f, "{kind} {}", self.local),
        }
    }
}
