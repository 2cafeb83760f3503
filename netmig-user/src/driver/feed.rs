//! What a move tells its clients: all of it so far to one that joins late, then as it comes.
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::agent::local::Told;

/// A move's voice. Clones speak with the same one.
#[derive(Clone, Default)]
pub struct Feed(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    told: Vec<Told>,
    followers: Vec<UnboundedSender<Told>>,
}

impl Feed {
    /// Tells all followers. Byte counts are not kept for late ones, everything else is.
    pub fn tell(&self, told: Told) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .followers
            .retain(|follower| follower.send(told.clone()).is_ok());
        if !matches!(told, Told::Bytes { .. }) {
            state.told.push(told);
        }
    }

    /// Everything told so far, then what comes.
    pub fn follow(&self) -> UnboundedReceiver<Told> {
        let (tx, rx) = unbounded_channel();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The receiver is in our hand: sending to it cannot fail.
        if state.told.iter().all(|told| tx.send(told.clone()).is_ok()) {
            state.followers.push(tx);
        }
        rx
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_follower_hears_all_but_old_byte_counts() {
        let feed = Feed::default();
        feed.tell(Told::Note("one".into()));
        feed.tell(Told::Bytes {
            sent: 1,
            total: None,
        });
        let mut rx = feed.follow();
        feed.tell(Told::Note("two".into()));
        let mut notes = Vec::new();
        while let Ok(told) = rx.try_recv() {
            match told {
                Told::Note(text) => notes.push(text),
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!(notes, ["one", "two"]);
    }
}
