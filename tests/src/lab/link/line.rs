//! What becomes of a packet on a line: a rule without a clock or a device, the same for the same seed.
use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// How late a reordered packet is: what is sent within this time after it arrives before it.
const LATE: Duration = Duration::from_millis(1);

/// A line between two places. The default is a cable: nothing is delayed, limited or lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// There and back; half of it each way.
    pub rtt: Duration,
    /// Each way; none: no limit.
    pub rate: Option<Rate>,
    /// How long a packet waits at most for its turn at the rate; one that would wait longer is dropped. None: no limit.
    pub queue: Option<Duration>,
    /// Share of packets that are lost behind the queue.
    pub loss: Share,
    /// Share of packets that come 1 ms late, behind what was sent after them.
    pub reorder: Share,
    /// Share of packets that come twice.
    pub duplicate: Share,
    /// Decides which packets; the directions decide apart from each other.
    pub seed: u64,
}

/// Bits a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate(pub u64);

/// A share from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Share(f64);

/// A text that is no rate, time or share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct Unreadable {
    text: String,
    wanted: &'static str,
}

impl Line {
    /// Whether super-packets have to be cut before they come here: one lost, late or dropped would be forty.
    #[must_use]
    pub fn cuts(&self) -> bool {
        self.rate.is_some()
            || [self.loss, self.reorder, self.duplicate]
                .iter()
                .any(|share| share.0 > 0.0)
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It would have waited too long for its turn.
    Full,
    /// Lost on the way.
    Lost,
    /// It arrives.
    Arrives {
        /// When, ns on the clock of [`Way::send`].
        at: u64,
        /// Twice.
        twice: bool,
        /// Behind what was sent after it.
        late: bool,
    },
}

/// One direction of a line.
#[derive(Debug, Clone)]
pub(super) struct Way {
    line: Line,
    random: Random,
    /// When the sender has sent all that it has so far.
    free_at: u64,
}

impl Way {
    /// Direction `number` of `line`.
    pub(super) fn new(line: Line, number: u64) -> Self {
        Self {
            line,
            random: Random::new(line.seed.wrapping_mul(2).wrapping_add(number)),
            free_at: 0,
        }
    }

    /// A packet of `bytes` (with its link header) is sent at `now`, ns.
    pub(super) fn send(&mut self, now: u64, bytes: usize) -> Fate {
        // One number for each question and packet, whatever the answers: the n-th packet's luck does not depend on another's fate.
        let [lost, late, twice] = [self.line.loss, self.line.reorder, self.line.duplicate]
            .map(|share| self.random.below_one() < share.0);
        let begins = self.free_at.max(now);
        if let Some(queue) = self.line.queue
            && begins - now > nanoseconds(queue)
        {
            return Fate::Full;
        }
        let sent = begins + self.line.rate.map_or(0, |rate| rate.nanoseconds(bytes));
        self.free_at = sent;
        if lost {
            return Fate::Lost;
        }
        let late_by = if late { nanoseconds(LATE) } else { 0 };
        Fate::Arrives {
            at: sent + nanoseconds(self.line.rtt) / 2 + late_by,
            twice,
            late,
        }
    }
}

impl Rate {
    /// How long it takes to send so many bytes.
    fn nanoseconds(self, bytes: usize) -> u64 {
        let bits = u128::try_from(bytes).unwrap_or(u128::MAX) * 8;
        u64::try_from(bits * 1_000_000_000 / u128::from(self.0)).unwrap_or(u64::MAX)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// `20ms`, `150us`, `1.5s`.
///
/// # Errors
/// Another text.
pub fn time(text: &str) -> Result<Duration, Unreadable> {
    let wanted = "a time, as in 20ms, 150us or 1.5s";
    let seconds = number(text, wanted, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)])?;
    Duration::try_from_secs_f64(seconds).map_err(|_| unreadable(text, wanted))
}

impl FromStr for Rate {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let wanted = "a rate, as in 64kbit, 400mbit or 2.5gbit";
        let units = [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9), ("bit", 1.0)];
        let bits = number(text, wanted, &units)?;
        if !(1.0..=1e15).contains(&bits) {
            return Err(unreadable(text, wanted));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked just above"
        )]
        Ok(Self(bits as u64))
    }
}

impl FromStr for Share {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let wanted = "a share, as in 0.5% (at most 100%)";
        let share = number(text, wanted, &[("%", 0.01)])?;
        if share > 1.0 {
            return Err(unreadable(text, wanted));
        }
        Ok(Self(share))
    }
}

/// A number that is not negative, with one of the units.
fn number(text: &str, wanted: &'static str, units: &[(&str, f64)]) -> Result<f64, Unreadable> {
    units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .filter(|(digits, _)| digits.chars().all(|c| c.is_ascii_digit() || c == '.'))
        .and_then(|(digits, factor)| Some(digits.parse::<f64>().ok()? * factor))
        .ok_or_else(|| unreadable(text, wanted))
}

fn unreadable(text: &str, wanted: &'static str) -> Unreadable {
    Unreadable {
        text: text.to_owned(),
        wanted,
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rtt {:?}", self.rtt)?;
        if let Some(Rate(bits)) = self.rate {
            write!(f, ", {bits} bit/s")?;
        }
        if let Some(queue) = self.queue {
            write!(f, ", queue {queue:?}")?;
        }
        for (what, share) in [
            ("lost", self.loss),
            ("reordered", self.reorder),
            ("doubled", self.duplicate),
        ] {
            if share.0 > 0.0 {
                write!(f, ", {:.3} % {what}", share.0 * 100.0)?;
            }
        }
        write!(f, ", seed {}", self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn line() -> Line {
        Line {
            rtt: Duration::from_millis(20),
            ..Line::default()
        }
    }

    fn arrives(at: u64) -> Fate {
        Fate::Arrives {
            at,
            twice: false,
            late: false,
        }
    }

    #[test]
    fn a_cable_delays_by_half_of_the_round_trip_and_cuts_nothing() {
        let mut way = Way::new(line(), 0);
        assert_eq!(way.send(5 * MS, 1500), arrives(15 * MS));
        assert_eq!(way.send(5 * MS, 60_000), arrives(15 * MS));
        assert!(!line().cuts());
    }

    #[test]
    fn packets_wait_for_their_turn_and_a_full_queue_takes_no_more() {
        // 1000 bytes take 1 ms at 8 Mbit/s.
        let mut way = Way::new(
            Line {
                rate: Some(Rate(8_000_000)),
                queue: Some(Duration::from_millis(2)),
                ..Line::default()
            },
            0,
        );
        for n in 1..=3 {
            assert_eq!(way.send(0, 1000), arrives(n * MS));
        }
        assert_eq!(way.send(0, 1000), Fate::Full, "it would wait 3 ms");
        assert_eq!(way.send(MS, 1000), arrives(4 * MS), "it waits 2 ms");
        assert_eq!(way.send(10 * MS, 500), arrives(10 * MS + MS / 2), "idle");
    }

    #[test]
    fn shares_are_met_and_the_same_for_the_same_seed() {
        let line = Line {
            loss: "2%".parse().expect("a share"),
            reorder: "10%".parse().expect("a share"),
            duplicate: "1%".parse().expect("a share"),
            seed: 7,
            ..line()
        };
        let run = |line, number| {
            let mut way = Way::new(line, number);
            (0..50_000)
                .map(|n| way.send(n * MS, 1500))
                .collect::<Vec<_>>()
        };
        let fates = run(line, 0);
        assert_eq!(fates, run(line, 0));
        assert_ne!(fates, run(line, 1), "the other direction");
        assert_ne!(fates, run(Line { seed: 8, ..line }, 0), "another seed");
        let count = |is: fn(&Fate) -> bool| fates.iter().filter(|f| is(f)).count();
        assert!((900..1100).contains(&count(|f| *f == Fate::Lost)));
        let late = count(|f| matches!(f, Fate::Arrives { late: true, .. }));
        assert!((4600..5200).contains(&late), "{late}");
        let twice = count(|f| matches!(f, Fate::Arrives { twice: true, .. }));
        assert!((400..600).contains(&twice), "{twice}");
        assert!(line.cuts());
    }

    #[test]
    fn a_late_packet_comes_behind_the_next() {
        let mut way = Way::new(
            Line {
                reorder: "100%".parse().expect("a share"),
                ..Line::default()
            },
            0,
        );
        let Fate::Arrives { at, late: true, .. } = way.send(0, 100) else {
            panic!("it is late");
        };
        assert_eq!(at, MS);
    }

    #[test]
    fn units_are_read_and_nonsense_is_named() {
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(time("150us"), Ok(Duration::from_micros(150)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!("400mbit".parse(), Ok(Rate(400_000_000)));
        assert_eq!("2.5gbit".parse(), Ok(Rate(2_500_000_000)));
        assert_eq!("0.1%".parse::<Share>(), Ok(Share(0.001)));
        for bad in ["", "20", "ms", "-1ms", "1e99s", "5 ms", "1.2.3s"] {
            let said = time(bad).expect_err(bad).to_string();
            assert!(said.contains(&format!("{bad:?}")), "{said}");
        }
        for bad in ["0mbit", "10", "nanbit", "1e99gbit", "99999999gbit"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        for bad in ["1", "101%", "-1%", "%"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
    }
}
