//! A verified byte stream in either direction.
//!
//! The client says in one [`Request`] which way and how fast; then frames of the pattern stream go that way. A frame is its payload's
//! length (u32, big-endian) and the payload. Length 0 ends the stream and is followed by a [`Closing`] as JSON (its length as u32
//! first): outbound from the server at the client's half-close, inbound as the server's answer to the client's end.
mod client;
pub(crate) mod congestion;
mod frame;
mod server;

pub use client::stream;
pub use server::serve;

use serde::{Deserialize, Serialize};

use super::{Direction, tcp_info::Course};

/// The port that `netmig-peer bulk-server` listens on by default.
pub const PORT: u16 = 5202;

/// What the client wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Inbound: the client sends. Outbound: the server sends.
    pub direction: Direction,
    /// Which stream of [`super::pattern`].
    pub seed: u64,
    /// Bytes a second, 0 for as fast as it goes.
    pub rate: u64,
}

/// What the server says at the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Closing {
    /// Payload bytes sent (outbound) or received (inbound).
    bytes: u64,
    /// Bytes received that were not the stream's.
    corrupt: u64,
    /// The sender's course, if the server was the sender.
    course: Option<Course>,
}
