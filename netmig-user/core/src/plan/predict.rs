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
    /// Bytes that are sent while the container stands: its memory.
    pub frozen_bytes: u64,
    /// Bytes that are copied before, while it runs.
    pub running_bytes: u64,
    /// The link, if it was measured.
    pub rate: Option<Rate>,
    /// Blackout in ms; without a rate: without the time on the link, so at least this.
    pub blackout_ms: f64,
}

pub(super) fn predict(memory_bytes: u64, file_bytes: u64, rate: Option<Rate>) -> Prediction {
    let memory = memory_bytes as f64;
    // Images are sent while they are written: the slower of the two counts.
    let write_ms = memory / DUMP_RATE * 1e3;
    let (send_ms, crossings_ms) = match rate {
        Some(rate) => (
            memory / rate.bytes_per_s.max(1.0) * 1e3,
            rate.rtt_ms * CROSSINGS,
        ),
        None => (0.0, 0.0),
    };
    let blackout_ms = FIXED_MS + write_ms.max(send_ms) + memory / RESTORE_RATE * 1e3 + crossings_ms;
    Prediction {
        frozen_bytes: memory_bytes,
        running_bytes: file_bytes,
        rate,
        blackout_ms,
    }
}

impl Prediction {
    pub(super) fn objection(&self, max_blackout_ms: Option<u64>) -> Option<Objection> {
        let limit = max_blackout_ms.filter(|limit| self.blackout_ms > *limit as f64)?;
        let reason = format!(
            "a blackout of {:.0} ms is predicted, --max-blackout allows {limit} ms",
            self.blackout_ms
        );
        Some(Objection::new(
            "blackout",
            reason,
            "allow more, or move when the container holds less memory",
            false,
        ))
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frozen_bytes,
            running_bytes,
            rate,
            blackout_ms,
        } = self;
        write!(
            f,
            "{} copied while it runs, {} while it stands",
            Bytes(*running_bytes),
            Bytes(*frozen_bytes)
        )?;
        match rate {
            Some(rate) => write!(
                f,
                ", at {}/s: a blackout of about {blackout_ms:.0} ms",
                Bytes(rate.bytes_per_s as u64)
            ),
            None => write!(
                f,
                ": a blackout of at least {blackout_ms:.0} ms (the link was not measured)"
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
