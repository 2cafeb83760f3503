//! What a packet filter remembers of connections: the kernel's conntrack table.
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{filter::Filters, net::Setting};

/// What the network remembers of the traffic so far, read when the container stands still.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The packet filters, if they are not any more as the question had them: a counter suffices.
    pub filters: Option<Filters>,
    /// Connections that the container's namespace tracks.
    pub connections: Vec<Connection>,
    /// Connections of the container that the source host tracks, on their way through its bridge.
    pub host: Vec<Connection>,
    /// What is expected of those that the namespace tracks.
    pub expected: Vec<Expectation>,
    /// What is expected of those that the source host tracks.
    pub host_expected: Vec<Expectation>,
}

impl Remembered {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.filters.is_none()
            && self.connections.is_empty()
            && self.host.is_empty()
            && self.expected.is_empty()
            && self.host_expected.is_empty()
    }
}

/// One tracked connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Connection {
    /// Its packets in the direction of the first one.
    pub original: Tuple,
    /// Its packets in the other direction. It is not the original's reverse where addresses are translated.
    pub reply: Tuple,
    /// The IPS_* bits that can be given to the kernel: seen reply, assured, fixed timeout.
    pub status: u32,
    /// Seconds until it is forgotten, without a packet.
    pub timeout: u32,
    /// Mark.
    pub mark: u32,
    /// Zone of both directions.
    pub zone: u16,
    /// Label bits, as the kernel writes them; empty: none is set.
    pub labels: Vec<u8>,
    /// Name of the helper that reads along (`ftp`).
    pub helper: Option<String>,
    /// State of TCP.
    pub tcp: Option<TcpState>,
    /// What a helper has inserted into the stream, in the original and the reply direction.
    pub adjusted: (Option<Adjustment>, Option<Adjustment>),
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.original)
    }
}

/// A connection that a helper has seen announced inside of another one (the data of FTP, the media of SIP), and that has not begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Expectation {
    /// The connection that it was announced in, in its original direction.
    pub master: Tuple,
    /// CTA_EXPECT_* by number, as the kernel writes and reads them.
    pub settings: Vec<Setting>,
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {}", self.master)
    }
}

/// A connection whose ends its socket knows by other addresses than the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translated {
    /// Local and peer as the socket has them.
    pub socket: (SocketAddr, SocketAddr),
    /// The same ends in a packet that comes from the network.
    pub network: (SocketAddr, SocketAddr),
}

impl Connection {
    /// Whether an address or port of it is translated.
    pub fn is_translated(&self) -> bool {
        !self.translated().is_empty()
    }

    /// How a socket of this namespace would have it, if anything is translated: once for a socket that was called, once for one that has
    /// called. One of them there is.
    pub fn translated(&self) -> Vec<Translated> {
        let ends = |tuple: &Tuple| match tuple.key {
            Key::Ports {
                source,
                destination,
            } => Some((
                SocketAddr::new(tuple.source, source),
                SocketAddr::new(tuple.destination, destination),
            )),
            Key::Icmp { .. } | Key::None => None,
        };
        let (Some(there), Some(back)) = (ends(&self.original), ends(&self.reply)) else {
            return Vec::new();
        };
        if (there.1, there.0) == back {
            return Vec::new();
        }
        vec![
            Translated {
                socket: back,
                network: (there.1, there.0),
            },
            Translated {
                socket: there,
                network: (back.1, back.0),
            },
        ]
    }
}

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// What tells it from others between the same addresses.
    pub key: Key,
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (self.source, self.destination);
        match self.key {
            Key::Ports {
                source: from,
                destination: to,
            } => write!(
                f,
                "protocol {} {source} port {from} -> {destination} port {to}",
                self.protocol
            ),
            Key::Icmp { id, .. } => write!(
                f,
                "protocol {} {source} -> {destination} id {id}",
                self.protocol
            ),
            Key::None => write!(f, "protocol {} {source} -> {destination}", self.protocol),
        }
    }
}

/// What tells a connection from others between the same addresses.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// TCP, UDP, UDP-Lite, SCTP, DCCP, and GRE's keys.
    Ports {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Identifier.
        id: u16,
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Other protocols: nothing.
    None,
}

/// TCP as conntrack sees it. Its windows are not readable: they are learnt anew from the next packets.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct TcpState {
    /// TCP_CONNTRACK_*: 3 is established.
    pub state: u8,
    /// Window scale of the original and the reply direction.
    pub wscale: (u8, u8),
    /// IP_CT_TCP_FLAG_* of the original and the reply direction.
    pub flags: (u8, u8),
}

/// Bytes inserted into a stream by a helper, in front of a sequence number and behind it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Adjustment {
    /// Sequence number of the last change.
    pub position: u32,
    /// Bytes inserted before it (two's complement).
    pub before: u32,
    /// Bytes inserted after it.
    pub after: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_behind_a_redirection_has_other_ends_than_its_packets() {
        let tuple = |source: &str, from, destination: &str, to| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 6,
            key: Key::Ports {
                source: from,
                destination: to,
            },
        };
        let mut connection = Connection {
            original: tuple("192.0.2.20", 4000, "192.0.2.10", 80),
            reply: tuple("192.0.2.10", 8080, "192.0.2.20", 4000),
            status: 0,
            timeout: 1,
            mark: 0,
            zone: 0,
            labels: Vec::new(),
            helper: None,
            tcp: None,
            adjusted: (None, None),
        };
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let server = connection.translated()[0];
        assert_eq!(
            server.socket,
            (at("192.0.2.10:8080"), at("192.0.2.20:4000"))
        );
        assert_eq!(server.network, (at("192.0.2.10:80"), at("192.0.2.20:4000")));
        connection.reply = tuple("192.0.2.10", 80, "192.0.2.20", 4000);
        assert_eq!(connection.translated(), []);
    }
}
