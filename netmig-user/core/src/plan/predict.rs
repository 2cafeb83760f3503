//! How long the blackout will be, as far as it can be known before.
use super::Objection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// From the gate's close to its opening for a container of almost no memory, in ms: the engine's dump and restore of a small redis took
/// 93 and 75 ms, its release 18, the sockets 1 at each end.
const FIXED_MS: f64 = 190.0;
/// What an engine writes to a file system in memory, in bytes per second: 200 MB took 230 ms.
const DUMP_RATE: f64 = 870e6;
/// What it reads back into new processes, in bytes per second.
const RESTORE_RATE: f64 = 1_400e6;
/// A message there and its answer back, of which two are in the blackout: images and grant.
const CROSSINGS: f64 = 1.5;

/// A link as measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Round trip in ms.
    pub rtt_ms: f64,
}

/// What a move will take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Prediction {
    /// Bytes that are sent while the container stands: what of its memory has not gone ahead. Before the first round all of it, which is an
    /// upper bound.
    pub frozen_bytes: u64,
    /// Bytes that are copied before, while it runs.
    pub running_bytes: u64,
    /// The link, if it was measured.
    pub rate: Option<Rate>,
    /// Blackout in ms if no memory is left to send: it is written and read all the same.
    pub least_ms: f64,
    /// Blackout in ms with `frozen_bytes`; without a rate: without the time on the link.
    pub blackout_ms: f64,
}

impl Prediction {
    pub(super) fn new(memory_bytes: u64, running_bytes: u64, rate: Option<Rate>) -> Self {
        Self {
            frozen_bytes: memory_bytes,
            running_bytes,
            rate,
            // No figure here is as exact as its digits.
            least_ms: blackout_ms(memory_bytes, 0, rate).ceil(),
            blackout_ms: blackout_ms(memory_bytes, memory_bytes, rate).ceil(),
        }
    }

    pub(super) fn objection(&self, max_blackout_ms: Option<u64>) -> Option<Objection> {
        let limit = max_blackout_ms.filter(|limit| self.least_ms > *limit as f64)?;
        let reason = format!(
            "a blackout of at least {:.0} ms is predicted, --max-blackout allows {limit} ms",
            self.least_ms
        );
        Some(Objection::new(
            "blackout",
            reason,
            "allow more, or move when the container holds less memory",
            false,
        ))
    }
}

/// Blackout in ms of a container with `memory_bytes`, of which `frozen_bytes` are still to be sent when it is stopped.
pub fn blackout_ms(memory_bytes: u64, frozen_bytes: u64, rate: Option<Rate>) -> f64 {
    let memory = memory_bytes as f64;
    // Images are sent while they are written: the slower of the two counts.
    let write_ms = memory / DUMP_RATE * 1e3;
    let (send_ms, crossings_ms) = match rate {
        Some(rate) => (
            frozen_bytes as f64 / rate.bytes_per_s.max(1.0) * 1e3,
            rate.rtt_ms * CROSSINGS,
        ),
        None => (0.0, 0.0),
    };
    FIXED_MS + write_ms.max(send_ms) + memory / RESTORE_RATE * 1e3 + crossings_ms
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frozen_bytes,
            running_bytes,
            rate,
            least_ms,
            blackout_ms,
        } = self;
        write!(
            f,
            "{} copied while it runs, at most {} while it stands",
            Bytes(*running_bytes),
            Bytes(*frozen_bytes)
        )?;
        match rate {
            Some(Rate {
                bytes_per_s,
                rtt_ms,
            }) => write!(
                f,
                ", at {}/s and {rtt_ms:.1} ms there and back: a blackout of {least_ms:.0} to {blackout_ms:.0} ms",
                Bytes(*bytes_per_s as u64)
            ),
            None => write!(
                f,
                ": a blackout of at least {least_ms:.0} ms (the link was not measured)"
            ),
        }
    }
}

/// Bytes for people.
pub(crate) struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut n, mut unit) = (self.0 as f64, "B");
        for larger in ["KiB", "MiB", "GiB", "TiB"] {
            if n < 1024.0 {
                break;
            }
            (n, unit) = (n / 1024.0, larger);
        }
        if unit == "B" {
            write!(f, "{n} B")
        } else {
            write!(f, "{n:.1} {unit}")
        }
    }
}
