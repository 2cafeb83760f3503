//! What one client says when it is done.
use serde::{Deserialize, Serialize};

use super::{
    failure::Failures,
    pauses::{Pause, Pauses},
};

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Verified SET/GET without pause.
    Redis,
    /// A verified byte stream.
    Bulk,
    /// A stream of a program that knows nothing of netmig; its bytes are counted, not checked.
    Iperf3,
    /// Connections that say nothing.
    Idle,
    /// Datagrams and their echo.
    Udp,
    /// Verified SET/GET inside the container.
    Loopback,
}

/// Which way the payload goes, as the container sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the container.
    Inbound,
    /// From the container.
    Outbound,
    /// Requests there, answers back.
    Both,
}

/// A peer's row in the JSON of `cargo xtask run`. A figure that does not exist for the kind is null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Unique in a run, e.g. `redis-v6`.
    pub name: String,
    /// What it does.
    pub kind: Kind,
    /// Which way the payload goes.
    pub direction: Direction,
    /// Requests answered and checked.
    pub operations: Option<u64>,
    /// Payload checked, bytes.
    pub bytes: u64,
    /// See [`Failures::errors`].
    pub errors: u64,
    /// See [`Failures::resets`].
    pub resets: u64,
    /// See [`Failures::corrupt`].
    pub corrupt: u64,
    /// The longest time without progress on any of its connections.
    pub longest_pause_ms: f64,
    /// Segments that the sender of the payload sent again.
    pub retransmits: Option<u64>,
    /// The sender's congestion window (segments) when the longest stall began.
    pub cwnd_before: Option<u32>,
    /// The sender's smallest congestion window from there to 100 ms after the stall.
    pub cwnd_after: Option<u32>,
    /// Datagrams sent.
    pub sent: Option<u64>,
    /// Different datagrams that came back.
    pub received: Option<u64>,
}

/// A row with what a person wants to know beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What goes into the table.
    pub row: Row,
    /// Connections that the client has opened in all; more than it holds at a time means that some broke.
    pub connects: u64,
    /// Its longest pauses, longest first.
    pub pauses: Vec<Pause>,
    /// Datagrams that came back twice.
    pub duplicated: u64,
    /// Datagrams overtaken by a later one.
    pub reordered: u64,
    /// The first failure in words.
    pub first_failure: Option<String>,
}

impl Outcome {
    /// An outcome with the figures that every kind has.
    #[must_use]
    pub fn new(
        name: &str,
        kind: Kind,
        direction: Direction,
        failures: &Failures,
        pauses: &Pauses,
    ) -> Self {
        Self {
            row: Row {
                name: name.to_owned(),
                kind,
                direction,
                operations: None,
                bytes: 0,
                errors: failures.errors,
                resets: failures.resets,
                corrupt: failures.corrupt,
                longest_pause_ms: pauses.longest_ms(),
                retransmits: None,
                cwnd_before: None,
                cwnd_after: None,
                sent: None,
                received: None,
            },
            connects: 0,
            pauses: pauses.longest(),
            duplicated: 0,
            reordered: 0,
            first_failure: failures.first.clone(),
        }
    }

    /// The longest pause that touches the time from `from_ns` to `to_ns` (CLOCK_REALTIME), if one of the kept does.
    #[must_use]
    pub fn pause_within(&self, from_ns: u64, to_ns: u64) -> Option<Pause> {
        self.pauses
            .iter()
            .copied()
            .filter(|p| p.began_ns < to_ns && from_ns < p.ended_ns)
            .max_by_key(Pause::len_ns)
    }

    /// No error, reset or corrupt byte. (Lost datagrams are told by `sent` and `received`.)
    #[must_use]
    pub fn clean(&self) -> bool {
        self.row.errors == 0 && self.row.resets == 0 && self.row.corrupt == 0
    }
}
