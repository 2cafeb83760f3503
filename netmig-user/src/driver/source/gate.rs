//! The gate at the source: attached, drained, closed under a renewed lease, granted.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netmig_common::{Mode, Side};
use netmig_core::machine::source::Done;
use tracing::{info, warn};

use super::{
    super::{clock::unix_us, hint::hint, hold, points},
    steps::{GLANCE, Steps},
};
use crate::{
    agent::{
        guard,
        local::{Drain, Told},
        paths,
    },
    engine::{self, criu::hook},
    gate::Gate,
    net, sock,
};

/// A peer that has sent no payload for so long has stopped.
pub(super) const SILENCE: Duration = Duration::from_millis(2);

impl Steps {
    /// The gate, in mode `pass`, at every link and `lo`.
    pub fn attach(&self) -> Result<Done> {
        let netns = self.netns()?;
        let links = net::links(&netns)?;
        let points = points::of(&links, &netns);
        let network = self.state().network.clone().unwrap_or_default();
        let places = hold::places(&links, &network, &points);
        self.state().links = links;
        let gate = Gate::attach(
            self.id,
            Side::Source,
            Mode::Pass,
            self.life.epoch,
            &points,
            &paths::pins(self.id),
        )?;
        self.prepare_silence()?;
        let hold = self.begin_hold(&gate, places);
        let mut state = self.state();
        (state.gate, state.hold) = (Some(gate), hold);
        drop(state);
        let container = self.container()?;
        let exe = paths::program().context("finding this program")?;
        let kit = engine::prepare(
            &paths::run(self.id),
            hook::Side::Source,
            &container,
            self.id,
            &exe,
        )
        .context("making the engine ready")?;
        self.state().kit = Some(kit);
        if let Err(e) = guard::start(self.id) {
            self.feed.tell(Told::Note(format!(
                "nobody takes the move up by itself if the agent dies, for its guardian cannot be started: {e}"
            )));
        }
        Ok(Done::Attached)
    }

    /// Lets data in flight settle, for the flows that [`Drain`](crate::agent::local::Drain) names.
    pub fn drain(self: &Arc<Self>) -> Result<Done> {
        self.expect_hold();
        let begun = Instant::now();
        let drained = self.drain_now();
        let took_us = begun.elapsed().as_micros();
        info!(mv = %self.id, took_us, quiet = ?drained.as_ref().ok(), "drained");
        drained.map(|_| Done::Drained)
    }

    /// Whether everything was quiet in time.
    fn drain_now(self: &Arc<Self>) -> Result<bool> {
        let netns = self.netns()?;
        let mut drain = self.spec.drain;
        if drain == Drain::Auto && self.can_keep()? {
            // What peers have in flight is owned when it comes: they need not be stopped before.
            drain = Drain::Out;
        }
        let chosen: Vec<_> = sock::flows(&netns)?
            .iter()
            .map(|flow| hint(flow, drain))
            .filter(|(_, scales)| scales.stop_peer || scales.stop_container)
            .collect();
        if chosen.is_empty() {
            return Ok(true);
        }
        let mut keys = Vec::new();
        let state = self.state();
        let gate = state.gate.as_ref().context("no gate stands")?;
        for (key, scales) in &chosen {
            gate.hint(key, scales)?;
            keys.push(*key);
        }
        // Connections without a hint are left alone.
        gate.drain_all(false, false)?;
        gate.set_mode(Mode::Drain, self.life.epoch, Some(self.lease()))?;
        drop(state);
        self.keep_the_lease();
        let limit = Duration::from_millis(self.spec.drain_limit_ms);
        let until = Instant::now() + limit;
        while Instant::now() < until && !self.over.load(Ordering::SeqCst) {
            thread::sleep(GLANCE);
            let state = self.state();
            let progress = state
                .gate
                .as_ref()
                .context("no gate stands")?
                .progress(SILENCE)?;
            drop(state);
            if !keys.iter().any(|key| progress.busy.contains(key)) {
                return Ok(true);
            }
        }
        self.feed.tell(Told::Note(format!(
            "data was still in flight after {} ms of drain",
            self.spec.drain_limit_ms
        )));
        Ok(false)
    }

    pub(super) fn lease(&self) -> Duration {
        Duration::from_millis(self.spec.lease_ms)
    }

    /// Mode `closed`, with a lease that is renewed as long as this agent lives.
    pub fn close(self: &Arc<Self>) -> Result<Done> {
        let mut state = self.state();
        let gate = state.gate.as_ref().context("no gate stands")?;
        gate.let_acks_pass(true)?;
        gate.set_mode(Mode::Closed, self.life.epoch, Some(self.lease()))?;
        info!(mv = %self.id, at_us = unix_us(), "the gate is closed");
        // The tasks are stopped: the last difference of the files goes over while the engine writes its images.
        let steps = self.clone();
        state.copying = Some(thread::spawn(move || steps.copy_files(true)));
        drop(state);
        self.keep();
        self.read_traffic();
        self.keep_the_lease();
        Ok(Done::Closed)
    }

    /// Renews the lease from now on, until a grant or the end: as long as this agent lives. Whoever has the state may be at something that takes longer
    /// than the lease, so that is asked for once.
    pub(super) fn keep_the_lease(self: &Arc<Self>) {
        let stop = Arc::new(AtomicBool::new(false));
        let gate_lease = {
            let mut state = self.state();
            let (Some(gate), None) = (&state.gate, &state.renewing) else {
                return;
            };
            let lease = gate.lease();
            state.renewing = Some(stop.clone());
            lease
        };
        let (mv, epoch, lease) = (self.id, self.life.epoch, self.lease());
        thread::spawn(move || {
            let pause = (lease / 4).min(Duration::from_millis(500));
            loop {
                thread::sleep(pause);
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // Between the two the container may have been granted, or taken back and its gate opened: then there is nothing to renew.
                if let Err(e) = gate_lease.renew(epoch, lease) {
                    return warn!(%mv, "the gate's lease is not renewed: {e}");
                }
            }
        });
    }

    /// Compare-and-set in the gate.
    pub fn grant(&self) -> Result<Done> {
        let hold = self.state().hold.clone();
        if let Some(hold) = hold {
            hold.seal()?;
        }
        self.fall_silent()?;
        let mut state = self.state();
        if let Some(stop) = state.renewing.take() {
            stop.store(true, Ordering::SeqCst);
        }
        state
            .gate
            .as_ref()
            .context("no gate stands")?
            .grant(self.life.epoch)?;
        if let Some(hold) = &state.hold {
            hold.granted();
        }
        Ok(Done::Granted)
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use netmig_common::Side;

    use super::{super::alone, *};
    use crate::gate::tests::lab::{FIRST, host_side, lab};

    /// Steps hold it while they ask the kernel for something, which may take its time.
    #[test]
    fn the_lease_is_renewed_whoever_has_the_state() {
        lab(|lab| {
            lab.bridge(&["moving"]);
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let _entered = runtime.enter();
            let steps = alone::steps();
            let (point, pins) = (host_side("h-moving"), lab.pins("gate"));
            let points = slice::from_ref(&point);
            let gate = Gate::attach(steps.id, Side::Source, Mode::Closed, FIRST, points, &pins);
            let gate = gate.expect("a gate");
            let closed = gate.set_mode(Mode::Closed, FIRST, Some(steps.lease()));
            closed.expect("closed");
            steps.state().gate = Some(gate);
            steps.keep_the_lease();
            let state = steps.state();
            thread::sleep(3 * steps.lease());
            let gate = state.gate.as_ref().expect("it is there");
            assert_eq!(gate.mode().expect("a word").mode, Mode::Closed);
            drop(state);
            steps.stop_streams();
            thread::sleep(2 * steps.lease());
            let state = steps.state();
            let gate = state.gate.as_ref().expect("it is there");
            assert_eq!(gate.mode().expect("a word").mode, Mode::Expired);
        });
    }
}
