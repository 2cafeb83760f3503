//! Joins a machine to the world: performs its actions, brings it the events, keeps its journal.
use std::{fs::File, io::Read};

use anyhow::{Context, Result};
use netmig_core::id::{Epoch, Life};

pub mod bulk;
pub mod clock;
pub mod feed;
pub mod hold;
pub mod journal;
pub mod look;
pub mod points;
pub mod source;
pub mod target;
pub mod timers;

/// Random bytes of the kernel.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(bytes)
}

/// A new life with a move.
fn life(epoch: Epoch) -> Result<Life> {
    Ok(Life {
        epoch,
        nonce: u64::from_ne_bytes(random()?),
    })
}
