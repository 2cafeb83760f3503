//! What the network remembers of the traffic: counters and sets of packet filters, tracked connections. Made beside the engine's restore.
use std::{thread, time::Instant};

use anyhow::{Context, Result, anyhow};
use netmig_core::image::v1::conntrack::{Connection, Remembered};
use tracing::debug;

use super::steps::Steps;
use crate::net::{
    conntrack::{self, Present},
    service::here,
    traffic,
};

impl Steps {
    /// Begins to make it behind the closed gate; [`Steps::traffic_remembered`] waits for the end.
    pub(super) fn remember_traffic(&self, remembered: Remembered) {
        let mut state = self.state();
        let netns = state.netns.clone();
        state.tracked.extend(remembered.host.iter().cloned());
        let connections = remembered.connections.iter();
        state
            .translated
            .extend(connections.flat_map(Connection::translated));
        let behind = state.question.as_ref().is_some_and(|q| q.behind.is_some());
        // What this host has seen of a container that lives elsewhere has led it nowhere.
        let present = if behind {
            Present::Replace
        } else {
            Present::Keep
        };
        state.remembering = Some(thread::spawn(move || {
            let netns = netns.context("the container's network has not been made")?;
            Ok(traffic::make(&netns, &remembered, present)?)
        }));
    }

    /// Waits until it is made, if there is any.
    pub(super) fn traffic_remembered(&self) -> Result<()> {
        let Some(thread) = self.state().remembering.take() else {
            return Ok(());
        };
        let began = Instant::now();
        let warnings = thread
            .join()
            .map_err(|_| anyhow!("the thread that makes filters and tracked connections panicked"))?
            .context("making what the network remembers of the traffic")?;
        debug!(mv = %self.id, waited = ?began.elapsed(), "filters and tracked connections made");
        self.state().warnings.extend(warnings);
        Ok(())
    }

    /// This host forgets again what it was told to track. What could not be removed, in words.
    pub(super) fn forget_traffic(&self) -> Vec<String> {
        // A thread that is still at it would make it anew.
        let mut left: Vec<_> = self
            .traffic_remembered()
            .err()
            .map(|e| format!("{e:#}"))
            .into_iter()
            .collect();
        let (mut tracked, question) = {
            let mut state = self.state();
            (std::mem::take(&mut state.tracked), state.question.clone())
        };
        // An earlier agent may have made some.
        if let Some(question) = question
            && let Some(behind) = &question.behind
        {
            match here::moving(behind, &question.network) {
                Ok(found) => tracked.extend(found),
                Err(e) => left.push(e.to_string()),
            }
        }
        match conntrack::forget(&tracked) {
            Ok(still) => left.extend(still),
            Err(e) => left.push(e.to_string()),
        }
        left
    }
}
