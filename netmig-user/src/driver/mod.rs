//! Joins a machine to the world: performs its actions, brings it the events, keeps its journal.
use std::{fs::File, io::Read};

use anyhow::{Context, Result};
use netmig_core::id::{Epoch, Life};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::engine::criu::hook::HookReply;

pub mod bulk;
pub mod by_hand;
pub mod clock;
pub mod feed;
pub mod hint;
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

/// A word to a hook that waits for it.
fn answer(reply: oneshot::Sender<HookReply>, code: u8) {
    if reply.send(HookReply { code }).is_err() {
        warn!("a hook left before it was answered");
    }
}

/// A step's news to its move.
fn tell<T>(tx: &mpsc::UnboundedSender<T>, input: T) {
    if tx.send(input).is_err() {
        warn!("a step ended after its move");
    }
}
