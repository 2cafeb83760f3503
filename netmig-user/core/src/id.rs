//! Identifiers that every frame, hook call, pin, journal record and path carries.
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// 128 random bits that name one move; written as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MoveId(pub [u8; 16]);

impl fmt::Display for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MoveId({self})")
    }
}

/// A text that is not 32 hex digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a move id: 32 hex digits are expected")]
pub struct BadMoveId(pub String);

impl FromStr for MoveId {
    type Err = BadMoveId;

    fn from_str(s: &str) -> Result<Self, BadMoveId> {
        let bad = || BadMoveId(s.to_owned());
        if s.len() != 32 || !s.is_ascii() {
            return Err(bad());
        }
        let mut id = [0; 16];
        for (i, b) in id.iter_mut().enumerate() {
            *b = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(id))
    }
}

/// Counts the lives of a move on one host: 1 at its start, one more each time an agent takes it up again from its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u32);

/// One life of an agent with a move. The epoch alone does not tell two lives apart if the first died before its first record was on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Life {
    /// Which life, by the journal.
    pub epoch: Epoch,
    /// Random, drawn when the agent takes the move up.
    pub nonce: u64,
}
