//! What went wrong, sorted the way a report counts it.
use std::io;

use serde::{Deserialize, Serialize};

/// Counts of failures, and the first one in words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// Time-outs, refused connections, wrong replies: all that is neither of the following.
    pub errors: u64,
    /// The other end reset or closed a connection that this end still used.
    pub resets: u64,
    /// Bytes (streams), values (redis) or datagrams (UDP) that are not what was sent.
    pub corrupt: u64,
    /// The first of all, for a person.
    pub first: Option<String>,
}

impl Failures {
    /// Counts `error`, which ended `what`.
    pub fn io(&mut self, what: &str, error: &io::Error) {
        use io::ErrorKind as K;
        match error.kind() {
            K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe | K::UnexpectedEof => {
                self.resets += 1
            }
            _ => self.errors += 1,
        }
        self.note(|| format!("{what}: {error}"));
    }

    /// Counts `n` corrupt units, if there are any.
    pub fn corrupt(&mut self, what: &str, n: u64) {
        if n > 0 {
            self.corrupt += n;
            self.note(|| format!("{what}: {n} corrupt"));
        }
    }

    /// Adds another connection's.
    pub fn merge(&mut self, other: &Self) {
        self.errors += other.errors;
        self.resets += other.resets;
        self.corrupt += other.corrupt;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }

    /// Nothing went wrong.
    #[must_use]
    pub fn none(&self) -> bool {
        self.errors == 0 && self.resets == 0 && self.corrupt == 0
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        self.first.get_or_insert_with(text);
    }
}
