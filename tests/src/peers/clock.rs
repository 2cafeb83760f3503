//! CLOCK_REALTIME in nanoseconds: the one clock that all hosts of a machine and their containers share. CRIU restores processes into a
//! time namespace in which CLOCK_MONOTONIC goes on from where it was at the dump (time_namespaces(7)): a process that has moved does not
//! see its own pause on it.
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since 1970, 0 if the clock cannot be read (it always can).
#[must_use]
pub fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(t.tv_nsec()).unwrap_or(0)
    })
}

/// Nanoseconds as milliseconds with microseconds kept.
#[must_use]
pub fn ms(ns: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of a day fit into the mantissa"
    )]
    let us = (ns / 1_000) as f64;
    us / 1_000.0
}
