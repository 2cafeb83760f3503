//! When what happened, for the report.
use std::time::{Duration, Instant, SystemTime};

use netmig_core::machine::source::Phase;

/// Now, in microseconds since 1970: logs of both hosts can be laid beside each other, and beside what a peer saw, as far as their clocks agree.
pub fn unix_us() -> u128 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_micros())
}

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
    /// What of the opening the target spent on telling the segment where the container is.
    pub announcing: Duration,
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
            announcing: Duration::ZERO,
            reopened: None,
        }
    }

    /// A phase begins, and the one before ends.
    pub fn phase(&mut self, phase: Phase) {
        self.phases.push((phase, Instant::now()));
    }

    /// Each phase with its length in ms up to now, in the order in which they began; the announcement, which the target makes while it opens,
    /// is a phase of its own.
    pub fn phases(&self) -> Vec<(Phase, f64)> {
        let announcing = self.announcing.as_secs_f64() * 1e3;
        let mut phases = Vec::new();
        for (phase, ms) in self.marked() {
            if phase == Phase::Open {
                let announcing = announcing.min(ms);
                phases.push((phase, ms - announcing));
                phases.push((Phase::Announce, announcing));
            } else {
                phases.push((phase, ms));
            }
        }
        phases
    }

    fn marked(&self) -> Vec<(Phase, f64)> {
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

    #[test]
    fn the_announcement_is_taken_out_of_the_opening() {
        let mut clock = Clock::start();
        clock.phase(Phase::Open);
        clock.phase(Phase::Clean);
        clock.announcing = Duration::from_millis(2);
        let t = Instant::now();
        for (mark, at) in clock.phases.iter_mut().zip([0, 30]) {
            mark.1 = t + Duration::from_millis(at);
        }
        let phases = clock.phases();
        let of = |i: usize| (phases[i].0, phases[i].1.round());
        assert_eq!(
            (of(0), of(1)),
            ((Phase::Open, 28.0), (Phase::Announce, 2.0))
        );
        assert_eq!(phases[2].0, Phase::Clean);
        clock.announcing = Duration::from_secs(1);
        let phases = clock.phases();
        assert_eq!((phases[0].1, phases[1].1.round()), (0.0, 30.0));
    }

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
