//! The longest times in which a peer saw nothing happen.
use serde::{Deserialize, Serialize};

use super::clock::{self, ms};

/// Pauses shorter than this are a scheduler's, and not kept one by one.
const WORTH_KEEPING_NS: u64 = 5_000_000;
/// How many of the longest are kept.
const KEPT: usize = 16;

/// A time without progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The last progress before it, CLOCK_REALTIME ns.
    pub began_ns: u64,
    /// The first progress after it, CLOCK_REALTIME ns.
    pub ended_ns: u64,
}

impl Pause {
    /// Its length in ns.
    #[must_use]
    pub fn len_ns(&self) -> u64 {
        self.ended_ns.saturating_sub(self.began_ns)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.began_ns < other.ended_ns && other.began_ns < self.ended_ns
    }
}

/// Collects pauses between calls of [`Pauses::progress`].
#[derive(Debug, Clone, Default)]
pub struct Pauses {
    last_ns: Option<u64>,
    longest_ns: u64,
    kept: Vec<Pause>,
}

impl Pauses {
    /// Something happened now.
    pub fn progress(&mut self) {
        self.progress_at(clock::now_ns());
    }

    /// Something happened at `now_ns`.
    pub fn progress_at(&mut self, now_ns: u64) {
        if let Some(began_ns) = self.last_ns.replace(now_ns) {
            self.add(Pause {
                began_ns,
                ended_ns: now_ns,
            });
        }
    }

    /// The clock runs, but nobody waits for anything until the next progress.
    pub fn rest(&mut self) {
        self.last_ns = None;
    }

    /// Adds what another connection saw.
    pub fn merge(&mut self, other: &Self) {
        self.longest_ns = self.longest_ns.max(other.longest_ns);
        for &pause in &other.kept {
            self.add(pause);
        }
    }

    /// The longest pause of all, ms.
    #[must_use]
    pub fn longest_ms(&self) -> f64 {
        ms(self.longest_ns)
    }

    /// The longest pauses, longest first; of those that overlap (connections that waited for the same thing) the longest stands for all.
    #[must_use]
    pub fn longest(&self) -> Vec<Pause> {
        let mut sorted = self.kept.clone();
        sorted.sort_by_key(|p| std::cmp::Reverse(p.len_ns()));
        sorted
    }

    fn add(&mut self, pause: Pause) {
        let len = pause.len_ns();
        self.longest_ns = self.longest_ns.max(len);
        if len < WORTH_KEEPING_NS
            || self
                .kept
                .iter()
                .any(|k| k.overlaps(&pause) && k.len_ns() >= len)
        {
            return;
        }
        self.kept.retain(|k| !k.overlaps(&pause));
        self.kept.push(pause);
        if self.kept.len() > KEPT
            && let Some(shortest) = (0..self.kept.len()).min_by_key(|&i| self.kept[i].len_ns())
        {
            self.kept.swap_remove(shortest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn overlapping_pauses_count_once_and_apart_ones_stay() {
        let mut a = Pauses::default();
        for t in [0, 10, 310, 320, 500] {
            a.progress_at(t * MS);
        }
        let mut b = Pauses::default();
        for t in [5, 12, 290, 495] {
            b.progress_at(t * MS);
        }
        a.merge(&b);
        assert!((a.longest_ms() - 300.0).abs() < 1e-9);
        let kept: Vec<_> = a
            .longest()
            .iter()
            .map(|p| (p.began_ns / MS, p.ended_ns / MS))
            .collect();
        assert_eq!(kept[0], (10, 310));
        assert!(kept.contains(&(290, 495)) || kept.contains(&(320, 500)));
    }

    #[test]
    fn rest_is_no_pause() {
        let mut p = Pauses::default();
        p.progress_at(0);
        p.rest();
        p.progress_at(900 * MS);
        p.progress_at(901 * MS);
        assert!((p.longest_ms() - 1.0).abs() < 1e-9);
    }
}
