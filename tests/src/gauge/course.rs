//! What a peer saw, over time, and what of it is a move's.
use serde::{Deserialize, Serialize};

use crate::peers::clock::ms;

/// Throughput is taken over so long, ns.
const WINDOW_NS: u64 = 10_000_000;
/// What counts as the throughput before.
const SHARE: f64 = 0.9;
/// Before it is disturbed it is measured so long, ns.
const BEFORE_NS: u64 = 300_000_000;
/// So long after the opening a congestion window still counts as the move's, ns.
const AFTERMATH_NS: u64 = 100_000_000;

/// A number that changes, CLOCK_REALTIME ns.
#[derive(Clone, Debug, Default)]
pub struct Course(Vec<(u64, u64)>);

/// A move, as its report and the agents' logs have it; CLOCK_REALTIME ns.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Moment {
    /// Until then nothing was disturbed.
    pub calm_ns: u64,
    /// The gate closed.
    pub closed_ns: u64,
    /// The gate opened.
    pub opened_ns: u64,
    /// Of the line: a byte sent at the moment of the opening is acknowledged here so much later than it arrives.
    pub half_rtt_ns: u64,
}

/// What one connection, or some of them, felt. None: it does not apply, or has not happened yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Felt {
    /// From the opening to the arrival of the first new byte at the container, ms; of several connections the longest.
    pub first_in_ms: Option<f64>,
    /// The same at the peer.
    pub first_out_ms: Option<f64>,
    /// From the opening to the end of the first 10 ms with 90 % of the throughput before, all connections together, at the container, ms.
    pub regained_in_ms: Option<f64>,
    /// The same at the peer.
    pub regained_out_ms: Option<f64>,
    /// The longest request that was under way in the blackout, ms.
    pub request_ms: Option<f64>,
    /// Smallest congestion windows of the peer from the closing to 100 ms behind the opening, as a part of those before; all connections together.
    pub window_kept: Option<f64>,
    /// Throughput before, in both directions together, bytes a second.
    pub before: f64,
}

impl Course {
    /// It is `value` at `now_ns`.
    pub fn add(&mut self, now_ns: u64, value: u64) {
        if self.0.last().is_none_or(|(_, last)| *last != value) {
            self.0.push((now_ns, value));
        }
    }

    /// The first change behind `at_ns`.
    fn change_after(&self, at_ns: u64) -> Option<u64> {
        let behind = self.0.partition_point(|(t, _)| *t <= at_ns);
        self.0.get(behind).map(|(t, _)| *t)
    }

    fn at(&self, at_ns: u64) -> Option<u64> {
        let behind = self.0.partition_point(|(t, _)| *t <= at_ns);
        self.0[..behind].last().map(|(_, value)| *value)
    }

    fn smallest_within(&self, from_ns: u64, to_ns: u64) -> Option<u64> {
        let within = self.0.iter().filter(|(t, _)| (from_ns..=to_ns).contains(t));
        within
            .map(|(_, value)| *value)
            .chain(self.at(from_ns))
            .min()
    }
}

/// From `opened_ns` to the first change of the one that changes last, ms.
pub fn first<'a>(courses: impl Iterator<Item = &'a Course>, opened_ns: u64) -> Option<f64> {
    courses
        .map(|course| Some(course.change_after(opened_ns)? - opened_ns))
        .try_fold(None, |longest, one| one.map(|one| longest.max(Some(one))))
        .flatten()
        .map(ms)
}

/// Bytes a second until `calm_ns`, all together.
#[expect(clippy::cast_precision_loss, reason = "bytes of some seconds")]
pub fn rate<'a>(courses: impl Iterator<Item = &'a Course>, calm_ns: u64) -> f64 {
    let bytes: u64 = courses
        .map(|course| {
            let from = course.at(calm_ns.saturating_sub(BEFORE_NS)).unwrap_or(0);
            course.at(calm_ns).unwrap_or(0).saturating_sub(from)
        })
        .sum();
    bytes as f64 * 1e9 / BEFORE_NS as f64
}

/// From `opened_ns` to the end of the first 10 ms behind it with 90 % of `rate` bytes a second, all together, ms.
#[expect(clippy::cast_precision_loss, reason = "bytes of some seconds")]
pub fn regained<'a>(
    courses: impl Iterator<Item = &'a Course>,
    opened_ns: u64,
    rate: f64,
) -> Option<f64> {
    let mut grown: Vec<(u64, u64)> = Vec::new();
    for course in courses {
        let behind = course.0.partition_point(|(t, _)| *t <= opened_ns);
        let mut last = course.at(opened_ns).unwrap_or(0);
        for (t, value) in &course.0[behind..] {
            grown.push((*t, value.saturating_sub(last)));
            last = *value;
        }
    }
    grown.sort_unstable();
    let enough = rate * SHARE * WINDOW_NS as f64 / 1e9;
    let (mut from, mut within) = (0, 0);
    for (t, bytes) in &grown {
        within += bytes;
        while grown[from].0 + WINDOW_NS < *t {
            within -= grown[from].1;
            from += 1;
        }
        if within as f64 >= enough {
            return Some(ms((*t - opened_ns).max(WINDOW_NS)));
        }
    }
    None
}

/// The longest of `requests` (begin, end) that was under way in the blackout, ms.
pub fn longest_request(requests: &[(u64, u64)], moment: &Moment) -> Option<f64> {
    requests
        .iter()
        .filter(|(begin, end)| *begin < moment.opened_ns && moment.closed_ns < *end)
        .map(|(begin, end)| end - begin)
        .max()
        .map(ms)
}

/// See [`Felt::window_kept`].
#[expect(clippy::cast_precision_loss, reason = "congestion windows are small")]
pub fn window_kept<'a>(courses: impl Iterator<Item = &'a Course>, moment: &Moment) -> Option<f64> {
    let (mut before, mut after) = (0, 0);
    for course in courses {
        before += course.at(moment.calm_ns)?;
        after += course.smallest_within(moment.closed_ns, moment.opened_ns + AFTERMATH_NS)?;
    }
    (before > 0).then(|| after as f64 / before as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn course(values: &[(u64, u64)]) -> Course {
        let mut course = Course::default();
        for (at, value) in values {
            course.add(at * MS, *value);
        }
        course
    }

    fn near(figure: Option<f64>, expected: f64) {
        let figure = figure.expect("a figure");
        assert!((figure - expected).abs() < 1e-6, "{figure} != {expected}");
    }

    #[test]
    fn the_first_byte_is_that_of_the_connection_that_waits_longest() {
        let a = course(&[(0, 1), (100, 5), (103, 6)]);
        let b = course(&[(0, 1), (100, 5), (250, 6)]);
        near(first([&a].into_iter(), 101 * MS), 2.0);
        near(first([&a, &b].into_iter(), 101 * MS), 149.0);
        assert_eq!(first([&a, &b].into_iter(), 110 * MS), None);
        assert_eq!(first([].into_iter(), 0), None);
    }

    #[test]
    fn throughput_is_regained_at_the_end_of_the_first_full_window() {
        // 1000 bytes each ms until 400, and from 600 on after a slow start.
        let mut values: Vec<_> = (0..=400).map(|t| (t, t * 1000)).collect();
        values.push((610, 401_000));
        values.extend((650..700).map(|t| (t, 401_000 + (t - 649) * 1000)));
        let one = course(&values);
        let before = rate([&one].into_iter(), 400 * MS);
        assert!((before - 1e6).abs() < 1.0, "{before}");
        near(regained([&one].into_iter(), 600 * MS, before), 58.0);
        // A burst does not count for less than the window.
        let burst = course(&[(0, 0), (601, 1_000_000)]);
        near(regained([&burst].into_iter(), 600 * MS, before), 10.0);
        assert_eq!(regained([&one].into_iter(), 695 * MS, before), None);
    }

    #[test]
    fn a_request_counts_if_it_was_under_way_in_the_blackout() {
        let moment = Moment {
            calm_ns: 90 * MS,
            closed_ns: 100 * MS,
            opened_ns: 400 * MS,
            half_rtt_ns: 0,
        };
        let requests = [(0, 99), (98, 402), (50, 60), (401, 900)].map(|(a, b)| (a * MS, b * MS));
        near(longest_request(&requests, &moment), 304.0);
        assert_eq!(longest_request(&requests[2..], &moment), None);
    }

    #[test]
    fn windows_are_those_from_the_closing_to_a_little_behind_the_opening() {
        let moment = Moment {
            calm_ns: 90 * MS,
            closed_ns: 100 * MS,
            opened_ns: 400 * MS,
            half_rtt_ns: 0,
        };
        let kept = course(&[(0, 10), (50, 40), (700, 1)]);
        let lost = course(&[(0, 40), (450, 1), (480, 44)]);
        near(window_kept([&kept].into_iter(), &moment), 1.0);
        near(window_kept([&lost].into_iter(), &moment), 1.0 / 40.0);
        near(
            window_kept([&kept, &lost].into_iter(), &moment),
            41.0 / 80.0,
        );
    }
}
