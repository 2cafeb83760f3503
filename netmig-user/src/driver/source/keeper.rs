//! The keeper at the source: begun when the gate has closed, sealed before the grant; what it has promised outlives the agent.
use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netmig_common::FlowKey;
use netmig_core::image::v1::sock::Sockets;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    super::hold::{self, Store},
    steps::Steps,
};
use crate::{
    agent::paths,
    gate::{Gate, hold::Packet},
    net,
    sock::{self, Live, Look},
};

/// When the sockets are read after the closing: at once, and when what had passed the gate before has been delivered, even on a busy machine.
const LOOKS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(10)];

/// What would end the container's connections, and is off.
#[derive(Serialize, Deserialize)]
struct Calm {
    timers: Vec<sock::Calmed>,
    /// Retries that they had; none if those were left alone.
    retries: Option<u32>,
}

impl Steps {
    /// Answers the peers from now on, beside what follows: whatever fails here, the move goes on without it.
    pub(super) fn keep(self: &Arc<Self>) {
        let steps = self.clone();
        let closed = Instant::now();
        self.looking.store(true, Ordering::SeqCst);
        thread::spawn(move || {
            for (look, wait) in LOOKS.into_iter().enumerate() {
                thread::sleep(wait);
                let looked = steps.look(look == 0, closed);
                steps.looking.store(false, Ordering::SeqCst);
                match looked {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(e) => {
                        warn!(mv = %steps.id, "peers are not answered: {e:#}");
                        break;
                    }
                }
            }
            // Without a keeper the stack's own ACKs go on until the dump.
            if steps.can_keep().unwrap_or(false)
                && let Err(e) = steps.fall_quiet()
            {
                warn!(mv = %steps.id, "the dump of the sockets waits for the gate: {e:#}");
            }
            if let Err(e) = steps.calm() {
                warn!(mv = %steps.id, "connections of the container may give up in a long blackout: {e:#}");
            }
        });
    }

    /// What the container's stack had to acknowledge has been acknowledged: nothing of it passes any more. The wait for programs that have
    /// seen otherwise is beside the engine's dump, and not before that of the sockets.
    pub(super) fn fall_quiet(&self) -> Result<()> {
        match &self.state().gate {
            Some(gate) => gate.let_acks_pass(false)?,
            None => return Ok(()),
        }
        Gate::settle()?;
        let hold = self.state().hold.clone();
        if let Some(hold) = hold {
            let since = hold.still();
            if let Some(gate) = &self.state().gate {
                gate.stands_since(since)?;
            }
        }
        self.quiet.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether peers can be answered in the blackout.
    pub(super) fn can_keep(&self) -> Result<bool> {
        let state = self.state();
        Ok(state.hold.as_ref().is_some_and(|hold| hold.can_keep()))
    }

    /// False if there is nothing to look at any more.
    fn look(&self, first: bool, closed: Instant) -> Result<bool> {
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
        let begun = Instant::now();
        let look = if first { Look::First } else { Look::Again };
        let live = sock::live(&netns, &self.holders()?, look)?;
        drop(alone);
        if !first {
            hold.keep_again(&live, false);
            return Ok(true);
        }
        let state = self.state();
        let gate = state.gate.as_ref().context("no gate stands")?;
        let connections = live.len();
        let took = begun.elapsed();
        hold.keep(gate, live, &self.owned())?;
        info!(mv = %self.id, connections, ?took, after = ?closed.elapsed(), "peers are answered");
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

    /// Switches off the timers by which the container's own connections would give up, and remembers them first.
    fn calm(&self) -> Result<()> {
        let netns = self.netns()?;
        let _alone = self.reading();
        if self.over.load(Ordering::SeqCst) || self.state().kept.is_some() {
            return Ok(());
        }
        let pids = self.holders()?;
        let calm = Calm {
            timers: sock::timers(&netns, &pids)?,
            retries: sock::retries(&netns)?,
        };
        let path = self.timers();
        fs::write(&path, serde_json::to_vec(&calm)?)
            .with_context(|| format!("writing {}", path.display()))?;
        if calm.retries.is_some() {
            sock::allow_retries(&netns, None)?;
        }
        sock::calm(&netns, &pids, &calm.timers)?;
        self.state().calmed = calm.timers;
        Ok(())
    }

    /// What was switched off, also by an earlier agent; none if it never came to that.
    fn calmed(&self) -> Result<Option<Calm>> {
        let path = self.timers();
        match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read
                .map_err(anyhow::Error::from)
                .and_then(|bytes| Ok(Some(serde_json::from_slice(&bytes)?)))
                .with_context(|| format!("timers as of {}", path.display())),
        }
    }

    /// The namespace stays though the container has left: its next connections are to have as many retries as others. What failed, in words.
    pub(super) fn retries_as_before(&self) -> Option<String> {
        let put = || match self.calmed()?.and_then(|calm| calm.retries) {
            Some(retries) => Ok(sock::allow_retries(&self.netns()?, Some(retries))?),
            None => anyhow::Ok(()),
        };
        put().err().map(|e| format!("{e:#}"))
    }

    /// Puts into the image what was switched off before it was made.
    pub(super) fn as_calmed(&self, sockets: &mut Sockets) {
        let calmed: HashMap<_, _> = self
            .state()
            .calmed
            .iter()
            .map(|timers| (hold::key(timers.local, timers.peer), *timers))
            .collect();
        for tcp in &mut sockets.tcp {
            if let Some(timers) = calmed.get(&hold::key(tcp.local, tcp.peer)) {
                timers.put_back(&mut tcp.common);
            }
        }
    }

    /// The container stays, and the gate is open: timers are what they were, also where an earlier agent has switched them off. If its tasks
    /// are `stopped` still, its connections send again what the closed gate has dropped. What failed, in words.
    pub(super) fn wake(&self, stopped: bool) -> Vec<String> {
        let Ok(netns) = self.netns() else {
            return Vec::new();
        };
        let pids = match self.holders() {
            Ok(pids) => pids,
            Err(e) => return vec![format!("{e:#}")],
        };
        let mut left = Vec::new();
        if stopped {
            let (_, failed) = sock::resend(&netns, &pids);
            left.extend(failed.iter().map(ToString::to_string));
        }
        let rouse = || match self.calmed()? {
            Some(calm) => Ok(sock::rouse(&netns, &pids, &calm.timers)?),
            None => anyhow::Ok(()),
        };
        left.extend(rouse().err().map(|e| format!("{e:#}")));
        left.extend(self.retries_as_before());
        left
    }

    /// Where the timers lie that are off.
    fn timers(&self) -> PathBuf {
        paths::run(self.id).join("timers")
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

    /// Delivers what an earlier agent had promised and this one has not held, past a gate that passes, and tells the true window to whomever it
    /// had answered. What failed, in words.
    pub(super) fn deliver_stored(&self, gate: &Gate) -> Vec<String> {
        let path = self.owned();
        // The file goes before the tasks may run: they must not find a socket in repair.
        let delivered = Store::read(&path)
            .with_context(|| format!("reading {}", path.display()))
            .and_then(|packets| {
                let told = gate.told()?;
                if packets.is_empty() && told.is_empty() {
                    return Ok(Vec::new());
                }
                self.deliver_packets(gate, packets, &told)
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
        packets: Vec<(u16, Packet)>,
        told: &[FlowKey],
    ) -> Result<Vec<String>> {
        let netns = self.netns()?;
        let pids = self.holders()?;
        let links = net::links(&netns)?;
        let network = self.state().network.clone().unwrap_or_default();
        let points: Vec<_> = gate.points().cloned().collect();
        let places = hold::places(&links, &network, &points);
        info!(mv = %self.id, packets = packets.len(), "delivering what an earlier agent has acknowledged");
        let mut left = hold::deliver_stored(gate, &places, packets, told, &netns, pids)?;
        left.extend(self.remove_owned());
        Ok(left)
    }
}
