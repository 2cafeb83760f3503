//! The machine's timers on tokio's clock.
use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::task::JoinHandle;

/// Timers by name, none of which runs at first; setting one again replaces it. All stop when this is dropped.
pub struct Timers<T>(HashMap<T, JoinHandle<()>>);

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Copy + Eq + Hash + Send + 'static> Timers<T> {
    /// Calls `fire` after `ms` milliseconds unless the timer is set again or cleared before.
    pub fn set(&mut self, timer: T, ms: u64, fire: impl FnOnce(T) + Send + 'static) {
        let task = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            fire(timer);
        });
        if let Some(old) = self.0.insert(timer, task) {
            old.abort();
        }
    }

    /// Stops it.
    pub fn clear(&mut self, timer: T) {
        if let Some(old) = self.0.remove(&timer) {
            old.abort();
        }
    }
}

impl<T> Drop for Timers<T> {
    fn drop(&mut self) {
        self.0.values().for_each(JoinHandle::abort);
    }
}
