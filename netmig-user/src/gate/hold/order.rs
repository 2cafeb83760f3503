//! The order at an opening, in a handle that outlives the borrow of its gate.
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use netmig_common::{DONE, Mode, OWNED, REDIRECTED};
use netmig_core::id::Epoch;

use crate::gate::{Error, shared::Shared, word::Word};

/// The counts by which an opening gate decides, and its mode. For the threads that deliver what is held.
#[derive(Clone)]
pub struct Order {
    counts: Arc<Shared>,
    word: Arc<Word>,
}

impl Order {
    pub(in crate::gate) fn new(counts: &Arc<Shared>, word: &Arc<Word>) -> Self {
        Self {
            counts: counts.clone(),
            word: word.clone(),
        }
    }

    /// As [`Gate::done`](crate::gate::Gate::done).
    pub fn done(&self, packets: u64) {
        self.counts.counts()[DONE as usize].fetch_add(packets, Ordering::SeqCst);
    }

    /// `packets` more are owned: their payload is about to be acknowledged.
    pub fn own(&self, packets: u64) {
        self.counts.counts()[OWNED as usize].fetch_add(packets, Ordering::SeqCst);
    }

    /// How many packets are owned, also by an agent that is gone.
    #[must_use]
    pub fn owned(&self) -> u64 {
        self.counts.counts()[OWNED as usize].load(Ordering::SeqCst)
    }

    /// As [`Gate::pending`](crate::gate::Gate::pending).
    #[must_use]
    pub fn pending(&self) -> u64 {
        // In this order: what is done was redirected before.
        let done = self.counts.counts()[DONE as usize].load(Ordering::SeqCst);
        self.redirected().saturating_sub(done)
    }

    /// How many packets the programs have redirected so far, barriers included.
    #[must_use]
    pub fn redirected(&self) -> u64 {
        self.counts.counts()[REDIRECTED as usize].load(Ordering::SeqCst)
    }

    /// Counts one packet more as redirected: until it is [`Order::done`], an opening gate goes on holding, even if nothing else is held.
    /// For packets that the gate does not know of, because they come from another host.
    pub fn barrier(&self) {
        self.counts.counts()[REDIRECTED as usize].fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the gate is in mode `opening`.
    ///
    /// # Errors
    /// If the mode word holds what no version wrote.
    pub fn opening(&self) -> Result<bool, Error> {
        self.word.read().map(|word| word.mode == Mode::Opening)
    }

    /// Somebody is still delivering: a gate in mode `opening` stays in it, at most for `limit` from now on. Nothing in any other mode.
    ///
    /// # Errors
    /// [`Error::Stale`]; [`Error::Word`].
    pub fn go_on(&self, epoch: Epoch, limit: Duration) -> Result<(), Error> {
        self.word.go_on_opening(epoch, limit)
    }
}
