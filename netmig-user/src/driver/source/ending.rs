//! The two ends of a move at the source: the container taken back, or gone to the target.
use std::{
    fs::{self},
    sync::{PoisonError, atomic::Ordering},
    time::Instant,
};

use netmig_common::Mode;
use netmig_core::container::{Container, SourcePolicy};
use tracing::info;

use super::{hold::Returning, steps::Steps};
use crate::{
    agent::{local::Told, paths},
    engine::{cgroup, job::Job},
    gate::{self, Gate},
    net,
    runtime::{self},
    sock,
};

impl Steps {
    /// Takes the container back: gate `pass`, sockets as they were, the dump cancelled, re-armed, thawed last. What is left, in words.
    pub fn undo(&self) -> Vec<String> {
        self.over.store(true, Ordering::SeqCst);
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::new();
        let container = self.state().container.clone();
        self.stop_streams();
        // It asks for the state itself, which must not be held while it is waited for.
        let copying = self.state().copying.take();
        if copying.is_some_and(|copying| copying.join().is_err()) {
            left.push("the thread that copies files panicked".to_owned());
        }
        // Whoever reads them has seen by then that the move is over.
        drop(self.reading());
        let gate = self.take_gate();
        let mut kept = self.state().kept.take();
        self.as_it_came_out(kept.as_mut(), &mut left);
        // Of another move of the same container nothing may be touched.
        let begun = Job::adopt(&self.job_dir()).is_some();
        match (&kept, &container) {
            (Some(kept), _) => left.extend(kept.undo().iter().map(ToString::to_string)),
            (None, Some(_)) if begun => left.extend(self.leave_repair()),
            _ => {}
        }
        left.extend(self.speak_again());
        let returning = gate
            .as_ref()
            .and_then(|gate| self.reopen_gate(gate, kept.as_mut(), &mut left));
        // An agent that takes the move up has read nothing, but finds the tasks as they were left.
        let stopped = kept.is_some() || begun && container.as_ref().is_some_and(is_frozen);
        left.extend(self.wake(stopped));
        self.state().reopened = Some(Instant::now());
        self.state().pace = None;
        self.end_engine(1, &mut left);
        if let Some(container) = &container {
            let runtime = runtime::of(container.manager);
            if begun {
                left.extend(
                    runtime
                        .after_abort(container)
                        .iter()
                        .map(ToString::to_string),
                );
            }
            let disarmed = self.state().disarmed.take();
            if let Some(disarmed) = disarmed {
                left.extend(runtime.rearm(&disarmed).iter().map(ToString::to_string));
            }
            if let Some(cgroup) = &container.cgroup
                && begun
                && let Err(e) = cgroup::thaw(cgroup)
            {
                left.push(e.to_string());
            }
        }
        if let (Some(returning), Some(gate)) = (returning, &gate) {
            left.extend(returning.finish(gate, self.life.epoch));
        }
        left.extend(self.end_silence());
        self.detach(gate, &mut left);
        left
    }

    /// An agent that was killed while it read sockets has left them in repair.
    fn leave_repair(&self) -> Vec<String> {
        let pids = match self.holders() {
            Ok(pids) => pids,
            Err(e) => return vec![format!("{e:#}")],
        };
        let (found, failed) = sock::leave_repair(&pids);
        if found > 0 {
            info!(mv = %self.id, sockets = found, "taken out of repair, where an earlier agent has left them");
        }
        failed.iter().map(ToString::to_string).collect()
    }

    /// The gate passes again, what was held first. What is delivered goes on beside: datagrams wait for tasks that read them.
    fn reopen_gate(
        &self,
        gate: &Gate,
        mut kept: Option<&mut sock::Kept>,
        left: &mut Vec<String>,
    ) -> Option<Returning> {
        // Before anything from outside comes to a connection that still is the agent's.
        let mut put_back = || {
            let kept = kept.as_deref_mut()?;
            let put = self.netns().and_then(|netns| Ok(kept.put_back(&netns)?));
            Some(put.unwrap_or_else(|e| vec![format!("{e:#}")]))
        };
        let mut gone = Vec::new();
        let held = gate
            .reclaim(self.life.epoch)
            .map_err(anyhow::Error::from)
            .and_then(|()| {
                self.return_held(gate, &mut || gone.extend(put_back().unwrap_or_default()))
            });
        left.append(&mut gone);
        let opened = match held {
            Ok(Some(returning)) => return Some(returning),
            Ok(None) => gate.set_mode(Mode::Pass, self.life.epoch, None),
            Err(e) => {
                left.push(format!("held packets are dropped: {e:#}"));
                gate.set_mode(Mode::Pass, self.life.epoch, None)
            }
        };
        if let Err(e) = opened {
            left.push(format!("opening the gate: {e}"));
        }
        left.extend(put_back().unwrap_or_default());
        left.extend(self.deliver_stored(gate));
        None
    }

    /// The container lives at the target: its processes here end behind the closed gate, its record is kept or removed, its network goes.
    pub fn clean(&self) -> Vec<String> {
        self.over.store(true, Ordering::SeqCst);
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::new();
        self.stop_streams();
        self.state().pace = None;
        let gate = self.take_gate();
        let hold = self.state().hold.clone();
        if let Some(hold) = &hold {
            hold.hand_over();
        }
        // Orphans would hold the connections' addresses until their retries are over, and a move back could not bind them.
        let mut kept = self.state().kept.take();
        self.as_it_came_out(kept.as_mut(), &mut left);
        left.extend(
            kept.into_iter()
                .flat_map(sock::Kept::silence)
                .map(|e| e.to_string()),
        );
        let container = self.state().container.clone();
        if let Some(container) = &container {
            left.extend(self.bar(container));
        }
        self.end_engine(0, &mut left);
        let Some(container) = container else {
            return left;
        };
        if let Some(cgroup) = &container.cgroup
            && cgroup.exists()
            && let Err(e) = cgroup::kill(cgroup)
        {
            left.push(e.to_string());
        }
        let policy = if self.spec.remove_source {
            SourcePolicy::Remove
        } else {
            SourcePolicy::Keep
        };
        match runtime::of(container.manager).after_release(&container, policy, &self.spec.to) {
            Ok(after) => {
                if let Some(name) = &after.kept_as {
                    self.feed
                        .tell(Told::Note(format!("the source's record is kept as {name}")));
                }
                left.extend(after.warnings);
            }
            Err(e) => left.push(e.to_string()),
        }
        left.extend(self.lift());
        if let Some(hold) = &hold {
            left.extend(hold.close(gate.as_ref()));
        }
        left.extend(self.retire_services());
        left.extend(self.forget_traffic());
        if let Some(netns) = container.netns.as_ref().filter(|path| path.exists()) {
            left.extend(self.retries_as_before());
            let (links, network, ours) = {
                let state = self.state();
                (
                    state.links.clone(),
                    state.network.clone().unwrap_or_default(),
                    netns.starts_with("/run/netns"),
                )
            };
            left.extend(
                net::depart(netns, &links, &network, ours)
                    .iter()
                    .map(ToString::to_string),
            );
        }
        left.extend(self.end_silence());
        self.detach(gate, &mut left);
        left
    }

    /// Whoever starts the container here when it ends gets an error, and the segment hears nothing of it.
    fn bar(&self, container: &Container) -> Vec<String> {
        let runtime = runtime::of(container.manager).bar(container, &self.spec.to);
        let frames = net::stray::bar(self.id, &self.state().links);
        let runtime = runtime
            .err()
            .map(|e| format!("while it ended, the container could have been started here: {e}"));
        runtime
            .into_iter()
            .chain(frames.err().map(|e| e.to_string()))
            .collect()
    }

    /// The record is secured: it has no network here any more.
    fn lift(&self) -> Option<String> {
        let links = self.state().links.clone();
        match net::stray::lift(self.id, &links) {
            Ok(0) => None,
            Ok(frames) => Some(format!(
                "somebody tried to start the container here when it had left, and failed (frames of its network dropped: {frames}); \
                 end what supervises it on this host"
            )),
            Err(e) => Some(e.to_string()),
        }
    }

    /// Nothing of the move is needed any more on this host but its record.
    pub fn forget(&self) -> Vec<String> {
        let mut left = Vec::new();
        let hold = self.state().hold.take();
        if let Some(hold) = hold {
            hold.stop(None);
        }
        let container = self.state().container.clone();
        if let Some(container) = &container {
            let claim = paths::claims().join(&container.id);
            if fs::read_to_string(&claim).is_ok_and(|mv| mv == self.id.to_string())
                && let Err(e) = fs::remove_file(&claim)
            {
                left.push(format!("removing {}: {e}", claim.display()));
            }
        }
        match std::fs::remove_dir_all(paths::run(self.id)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                left.push(format!("removing {}: {e}", paths::run(self.id).display()))
            }
            _ => {}
        }
        left
    }

    /// From here on the report lists the sockets as they were at the freeze.
    fn as_it_came_out(&self, kept: Option<&mut sock::Kept>, left: &mut Vec<String>) {
        let before = self.rows();
        match kept.map(|kept| kept.rows(&before)) {
            Some(Ok(rows)) if !rows.is_empty() => self.state().rows = rows,
            Some(Err(e)) => left.push(format!("the report has the sockets of the plan: {e}")),
            _ => {}
        }
    }

    pub(super) fn stop_streams(&self) {
        let mut state = self.state();
        state.images = None;
        if let Some(stop) = state.renewing.take() {
            stop.store(true, Ordering::SeqCst);
        }
        if let Some(streaming) = state.streaming.take() {
            streaming.stop.store(true, Ordering::SeqCst);
        }
    }

    /// The gate of this agent's life, or the one that an earlier agent left pinned.
    pub(super) fn take_gate(&self) -> Option<Gate> {
        let gate = self.state().gate.take();
        gate.or_else(|| Gate::reopen(self.id, &paths::pins(self.id)).ok())
    }

    pub(super) fn detach(&self, gate: Option<Gate>, left: &mut Vec<String>) {
        let errors = match gate {
            Some(gate) => {
                match gate.counters() {
                    Ok(counters) => {
                        let mut state = self.state();
                        state.dropped = dropped(&counters);
                        state.answered = counters.inbound.answered;
                    }
                    Err(e) => left.push(e.to_string()),
                }
                gate.detach().err().unwrap_or_default()
            }
            None => gate::clear(&paths::pins(self.id)),
        };
        left.extend(errors.iter().map(ToString::to_string));
    }
}

fn is_frozen(container: &Container) -> bool {
    let cgroup = container.cgroup.as_ref();
    cgroup.is_some_and(|cgroup| cgroup::frozen(cgroup).unwrap_or(false))
}

pub(super) fn dropped(counters: &netmig_common::Counters) -> u64 {
    [counters.inbound, counters.outbound, counters.loopback]
        .iter()
        .map(netmig_common::Tally::dropped_packets)
        .sum()
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::{super::alone, *};

    #[tokio::test]
    async fn an_undo_waits_for_a_copy_that_begins_only_now() {
        let steps = alone::steps();
        let copying = thread::spawn({
            let steps = steps.clone();
            move || {
                while !steps.over.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                // The undo has come to the wait for this thread.
                thread::sleep(Duration::from_millis(200));
                steps.container().map(drop)
            }
        });
        steps.state().copying = Some(copying);
        let undone = tokio::task::spawn_blocking(move || steps.undo());
        let left = tokio::time::timeout(Duration::from_secs(20), undone).await;
        let left = left
            .unwrap_or_else(|_| {
                eprintln!("the undo hangs");
                std::process::abort()
            })
            .expect("no panic");
        assert_eq!(left, Vec::<String>::new());
    }
}
