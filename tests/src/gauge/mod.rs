//! The gauge: what the peers of a program feel of its moves, with one kind of load at a time. `cargo xtask bench gate` makes figures of it.
//!
//! The program (`netmig-peer gauge-server`) moves by the engine `handoff`, so that the network is what is measured, or inside a container.
//! A second one that stays where it is, under a little of the same load at the same time, says what the machine does by itself.
pub mod client;
pub mod course;
mod datagrams;
pub mod server;
mod stage;
pub mod wire;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use course::{Felt, Moment};
pub use stage::{Cell, Engine, Moved, Parts, Stage};

/// The program's name, and its namespace's.
const NAME: &str = "gauge";
/// For connections and datagrams.
pub const PORT: u16 = 7200;
/// Of a socket for datagrams at either end, bytes: what setsockopt is asked for, of which the kernel makes twice as much.
pub const RECEIVE_BUFFER: usize = 16 << 20;

/// What the peers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// They send, always.
    Inbound,
    /// The container sends, always.
    Outbound,
    /// Both at once on each connection.
    Both,
    /// 64 bytes there and back, one request at a time on each connection.
    Requests,
    /// Datagrams at a steady rate, both ways.
    Datagrams,
}

impl Load {
    /// Whether a peer is always sending.
    #[must_use]
    pub fn fills_inbound(self) -> bool {
        matches!(self, Self::Inbound | Self::Both)
    }

    /// Whether the container is.
    #[must_use]
    pub fn fills_outbound(self) -> bool {
        matches!(self, Self::Outbound | Self::Both)
    }
}

/// How all went, once every stream has come to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Errors, resets, and bytes or datagrams that are not what was sent.
    pub broken: u64,
    /// The first of that in words.
    pub first_failure: Option<String>,
    /// Segments that the peer sent again.
    pub by_peer: u64,
    /// Segments that the container sent again.
    pub by_container: u64,
    /// Of the peer's kernel: how often the container did not have what it had said that it had (TcpExtTCPSACKReneging).
    pub reneging: u64,
    /// Segments that the peer's kernel had already (TcpExtTCPDSACKOldSent and TCPDSACKOfoSent): sent again, whoever counted it.
    pub known_already: u64,
    /// Payload in both directions, bytes.
    pub bytes: u64,
    /// With [`Load::Datagrams`].
    pub datagrams: Option<Exchanged>,
}

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchanged {
    /// By the peer.
    pub sent: u64,
    /// By the container.
    pub sent_back: u64,
    /// From the first to the last of them, ns.
    pub took_ns: u64,
    /// By the container.
    pub received: u64,
    /// By the peer, each of them once.
    pub back: u64,
    /// Twice, or behind a later one, in either direction.
    pub out_of_place: u64,
}
