//! When what happened, for the report.
use std::time::Instant;

use netmig_core::machine::source::Phase;

/// Marks of one move on this host's monotonic clock.
pub struct Clock {
    begun: Instant,
    phases: Vec<(Phase, Instant)>,
    /// The gate closed.
    pub closed: Option<Instant>,
    /// The grant went out.
    pub granted: Option<Instant>,
    /// The target's word came in.
    pub released: Option<Instant>,
    /// The gate passed here again, after a move that was undone.
    pub reopened: Option<Instant>,
}

impl Clock {
    /// Begins now.
    pub fn start() -> Self {
        Self {
            begun: Instant::now(),
            phases: Vec::new(),
            closed: None,
            granted: None,
            released: None,
            reopened: None,
        }
    }

    /// A phase begins, and the one before ends.
    pub fn phase(&mut self, phase: Phase) {
        self.phases.push((phase, Instant::now()));
    }

    /// Each phase with its length in ms up to now, in the order in which they began.
    pub fn phases(&self) -> Vec<(Phase, f64)> {
        let ends = self
            .phases
            .iter()
            .skip(1)
            .map(|(_, at)| *at)
            .chain([Instant::now()]);
        self.phases
            .iter()
            .zip(ends)
            .map(|((phase, from), to)| (*phase, (to - *from).as_secs_f64() * 1e3))
            .collect()
    }

    /// Milliseconds since the start.
    pub fn total_ms(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() * 1e3
    }

    /// From the gate's close here to its opening at the target, in ms. The hosts' clocks need not agree: the time between the grant's
    /// leaving and the word's arrival, less what the target says it took to open, is two crossings of the link; one of them counts.
    pub fn blackout_ms(&self, open_us: u64) -> Option<f64> {
        let (closed, granted, released) = (self.closed?, self.granted?, self.released?);
        let open = open_us as f64 / 1e3;
        let crossings = ((released - granted).as_secs_f64() * 1e3 - open).max(0.0);
        Some((granted - closed).as_secs_f64() * 1e3 + crossings / 2.0 + open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_blackout_counts_one_crossing() {
        let t = Instant::now();
        let mut clock = Clock::start();
        clock.closed = Some(t);
        clock.granted = Some(t + Duration::from_millis(100));
        clock.released = Some(t + Duration::from_millis(130));
        let ms = clock.blackout_ms(10_000).expect("all marks are set");
        assert!((ms - 120.0).abs() < 1e-6, "{ms}");
    }
}
