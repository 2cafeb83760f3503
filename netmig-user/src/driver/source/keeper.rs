//! The keeper at the source: begun when the gate has closed, sealed before the grant; what it has promised outlives the agent.
use std::{
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use netmig_core::{image::v1::sock::Sockets, socket::Engine};
use tracing::{info, warn};

use super::{
    super::hold::{self, Delivery, Promised, Store},
    steps::Steps,
};
use crate::{
    agent::paths,
    engine::task,
    gate::Gate,
    net,
    sock::{self, Live},
};

/// When the sockets are read after the closing: at once, and when what had passed the gate before has been delivered, even on a busy machine.
const LOOKS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(10)];

impl Steps {
    /// Answers the peers from now on, beside what follows: whatever fails here, the move goes on without it.
    pub(super) fn keep(self: &Arc<Self>) {
        let steps = self.clone();
        thread::spawn(move || {
            for (look, wait) in LOOKS.into_iter().enumerate() {
                thread::sleep(wait);
                match steps.look(look == 0) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(e) => return warn!(mv = %steps.id, "peers are not answered: {e:#}"),
                }
            }
        });
    }

    /// Whether peers can be answered in the blackout.
    pub(super) fn can_keep(&self) -> Result<bool> {
        // Under `handoff` nobody has named the holder of the sockets when the gate closes.
        let criu = self.container()?.manager.engine() == Engine::Criu;
        let state = self.state();
        Ok(criu && state.hold.as_ref().is_some_and(|hold| hold.can_keep()))
    }

    /// False if there is nothing to look at any more.
    fn look(&self, first: bool) -> Result<bool> {
        let container = self.container()?;
        let netns = self.netns()?;
        let hold = self.state().hold.clone();
        let Some(hold) = hold.filter(|_| self.can_keep().unwrap_or(false)) else {
            return Ok(false);
        };
        let alone = self.reading();
        // The dump says more, and after the end of the blackout the tasks run.
        if self.over.load(Ordering::SeqCst) || self.state().kept.is_some() {
            return Ok(false);
        }
        let live = sock::live(&netns, &task::tasks(container.init_pid)?)?;
        drop(alone);
        if !first {
            hold.keep_again(&live, false);
            return Ok(true);
        }
        let state = self.state();
        let gate = state.gate.as_ref().context("no gate stands")?;
        hold.keep(gate, live, &self.owned())?;
        Ok(true)
    }

    /// The sockets as they were dumped: nothing is on its way to them any more.
    pub(super) fn keep_dumped(&self, sockets: &Sockets) {
        let hold = self.state().hold.clone();
        if let Some(hold) = hold {
            let live: Vec<_> = sockets.tcp.iter().filter_map(Live::of).collect();
            hold.keep_again(&live, true);
        }
    }

    /// The right to put the container's sockets into repair.
    pub(super) fn reading(&self) -> MutexGuard<'_, ()> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where packets lie that peers think delivered.
    pub(super) fn owned(&self) -> PathBuf {
        paths::run(self.id).join("owned")
    }

    /// All that was promised is delivered.
    pub(super) fn remove_owned(&self) -> Option<String> {
        let path = self.owned();
        let removed = Store::remove(&path);
        Some(format!("removing {}: {}", path.display(), removed.err()?))
    }

    /// Delivers what an earlier agent had promised and this one has not held, past a gate that passes. What failed, in words.
    pub(super) fn deliver_stored(&self, gate: &Gate) -> Vec<String> {
        let path = self.owned();
        // The file goes before the tasks may run: they must not find a socket in repair.
        let delivered = Store::read(&path)
            .with_context(|| format!("reading {}", path.display()))
            .and_then(|packets| {
                if packets.is_empty() {
                    return Ok(Vec::new());
                }
                self.deliver_packets(gate, packets)
            });
        match delivered {
            Ok(left) => left,
            Err(e) => vec![format!(
                "peers' data was acknowledged and not delivered: {e:#}"
            )],
        }
    }

    fn deliver_packets(
        &self,
        gate: &Gate,
        packets: Vec<(u16, crate::gate::hold::Packet)>,
    ) -> Result<Vec<String>> {
        let container = self.container()?;
        let netns = self.netns()?;
        let pids = task::tasks(container.init_pid)?;
        let links = net::links(&netns)?;
        let network = self.state().network.clone().unwrap_or_default();
        let points: Vec<_> = gate.points().cloned().collect();
        let places = hold::places(&links, &network, &points);
        let injectors = hold::injectors(places.iter().map(|(link, point)| (*link, point)))?;
        let mut delivery = Delivery::new(injectors, gate.order(), &netns);
        let live = sock::live(&netns, &pids)?;
        info!(mv = %self.id, packets = packets.len(), "delivering what an earlier agent has acknowledged");
        let mut promised = Promised::of(&live, packets.iter().cloned(), &netns, pids);
        let mut left = promised.make_room();
        for (link, packet) in packets {
            delivery.give(link, packet, false);
        }
        left.extend(promised.keep(&mut delivery));
        left.extend(self.remove_owned());
        Ok(left)
    }
}
