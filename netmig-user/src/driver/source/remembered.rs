//! What the network remembers of the traffic: counters and sets of packet filters, tracked connections. Read while the engine dumps.
use std::{sync::Arc, thread, time::Instant};

use anyhow::{Context, Result, anyhow};
use netmig_core::{image::v1::conntrack::Remembered, proto::ToTarget, service::Behind};
use tracing::debug;

use super::steps::Steps;
use crate::net::{conntrack, traffic};

impl Steps {
    /// Begins to read it: the tasks are stopped and the gate is closed, so nothing counts any more.
    pub(super) fn read_traffic(self: &Arc<Self>) {
        let steps = self.clone();
        self.state().remembering = Some(thread::spawn(move || steps.traffic()));
    }

    /// Waits until it is read, and keeps it for [`Steps::remembered`].
    pub(super) fn traffic_read(&self) -> Result<()> {
        let Some(thread) = self.state().remembering.take() else {
            return Ok(());
        };
        let began = Instant::now();
        let read = thread
            .join()
            .map_err(|_| anyhow!("the thread that reads filters and tracked connections panicked"))?
            .context("reading what the network remembers of the traffic")?;
        debug!(mv = %self.id, waited = ?began.elapsed(), connections = read.connections.len(), "filters and tracked connections read");
        let mut state = self.state();
        state.tracked.clone_from(&read.host);
        state.remembered = (!read.is_empty()).then(|| Box::new(read));
        Ok(())
    }

    /// The message for the target, if there is anything to tell.
    pub fn remembered(&self) -> Option<ToTarget> {
        self.state().remembered.take().map(ToTarget::Remembered)
    }

    /// This host forgets the container's connections. What could not be removed, in words.
    pub(super) fn forget_traffic(&self) -> Vec<String> {
        let tracked = std::mem::take(&mut self.state().tracked);
        conntrack::forget(&tracked).unwrap_or_else(|e| vec![e.to_string()])
    }

    fn traffic(&self) -> Result<Remembered> {
        let netns = self.netns()?;
        let network = self.state().network.clone().unwrap_or_default();
        let behind = self.state().behind.clone();
        let services = behind.as_ref().map(Behind::addresses);
        let read = traffic::read(&netns, &network, &services.unwrap_or_default())?;
        if behind.is_some() {
            self.be_lenient(&read.host);
        }
        Ok(read)
    }
}
