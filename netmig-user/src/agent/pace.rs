//! How much processor time the agent and what it starts get beside the others on this host: little while a move copies under a container that
//! serves, much while its peers wait.
use std::{
    fs, io,
    sync::{Mutex, PoisonError},
};

use tracing::warn;

/// The agent's cgroup.
pub const CGROUP: &str = "/sys/fs/cgroup/netmig-agent";
/// Where the scheduler groups processes by session (`CONFIG_SCHED_AUTOGROUP`): the niceness of the agent's group, sched(7).
const AUTOGROUP: &str = "/proc/self/autogroup";

/// Moves that copy, moves whose peers wait.
static MOVES: Mutex<[usize; 2]> = Mutex::new([0; 2]);

/// What a move needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Little,
    Much,
}

/// A move's claim, for as long as it lives.
#[derive(Debug)]
pub struct Pace(Need);

impl Pace {
    /// The container serves, and there is time.
    #[must_use]
    pub fn behind() -> Self {
        Self::new(Need::Little)
    }

    /// The container stands, and every millisecond is its peers'.
    #[must_use]
    pub fn ahead() -> Self {
        Self::new(Need::Much)
    }

    fn new(need: Need) -> Self {
        change(|moves| moves[need as usize] += 1);
        Self(need)
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        change(|moves| moves[self.0 as usize] -= 1);
    }
}

/// Niceness and cgroup weight with so many moves of either kind: one whose peers wait decides.
fn figures(moves: [usize; 2]) -> (i32, u32) {
    match moves {
        [0, 0] => (0, 100),
        [_, 0] => (15, 10),
        [_, _] => (-10, 1000),
    }
}

fn change(by: impl FnOnce(&mut [usize; 2])) {
    let mut moves = MOVES.lock().unwrap_or_else(PoisonError::into_inner);
    let before = figures(*moves);
    by(&mut moves);
    let (nice, weight) = figures(*moves);
    if (nice, weight) == before {
        return;
    }
    put(AUTOGROUP, &nice.to_string());
    put(&format!("{CGROUP}/cpu.weight"), &weight.to_string());
}

/// Not every kernel has either; then the scheduler's own fairness must do.
fn put(path: &str, value: &str) {
    match fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
    {
        Err(e) if e.kind() != io::ErrorKind::NotFound => warn!("writing {value} to {path}: {e}"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_peers_come_before_copies() {
        assert_eq!(figures([0, 0]), (0, 100));
        assert_eq!(figures([2, 0]).0, 15);
        assert_eq!(figures([2, 1]).0, -10);
    }

    #[test]
    fn a_claim_ends_with_its_move() {
        let nice = || {
            let text = fs::read_to_string(AUTOGROUP).ok()?;
            text.split_whitespace().last()?.parse::<i32>().ok()
        };
        if nice().is_none() {
            return;
        }
        let copying = Pace::behind();
        assert_eq!(nice(), Some(15));
        let waiting = Pace::ahead();
        assert_eq!(nice(), Some(-10));
        drop(copying);
        assert_eq!(nice(), Some(-10));
        drop(waiting);
        assert_eq!(nice(), Some(0));
    }
}
