//! The engine at the target: its start, its moments, its end.
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use netmig_core::machine::target::Event;
use tokio::sync::oneshot;

use super::{super::answer, steps::Steps};
use crate::{
    agent::{pace::Pace, paths},
    engine::{
        criu::hook::{self, HookCall, HookReply},
        job::{Job, Status},
    },
};

/// How often a step looks whether the program has loaded its state.
const GLANCE: Duration = Duration::from_millis(1);

impl Steps {
    /// Starts the engine's restore, which waits before it reads an image ([`hook::Action::Images`]).
    pub fn warm(&self) -> Result<()> {
        self.state().pace = Some(Pace::ahead());
        let _running = self.exclusive()?;
        if !self.state().complete {
            let job = self.start_engine()?;
            self.state().warm = Some(job);
        }
        Ok(())
    }

    fn start_engine(&self) -> Result<Job> {
        let container = self.container()?;
        let (kit, created) = {
            let mut state = self.state();
            state.restoring = true;
            state.made.engine = true;
            state.kit_and_record()?
        };
        self.remember();
        kit.stage_record(&created)?;
        let exe = paths::program().context("finding this program")?;
        let command = kit.restore_command(&container, &created)?;
        Ok(Job::start(&exe, &self.job_dir(), &command)?)
    }

    /// Runs the engine's restore to its end, the images being whole; why it failed, if it did.
    pub fn rebuild(&self) -> Result<Option<String>> {
        let running = self.exclusive()?;
        let warm = {
            let mut state = self.state();
            state.begun = Some(Instant::now());
            state.complete = true;
            state.warm.take()
        };
        let job = match warm {
            Some(job) => job,
            None => self.start_engine()?,
        };
        drop(running);
        self.give_images();
        let status = job.wait(Duration::MAX);
        if status == Status::Exited(0) || self.over.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let state = self.state();
        let what = state
            .kit
            .as_ref()
            .map_or("the restore", |kit| kit.words()[1]);
        let mut why = vec![format!("{what} ended with {status:?}: {}", job.stderr())];
        why.extend(state.unstaged.clone());
        why.extend(state.kit.iter().flat_map(|kit| kit.why(5)));
        Ok(Some(why.join("\n")))
    }

    /// Lets the runtime go on that waits for images, if it does and they are whole.
    pub fn give_images(&self) {
        let mut state = self.state();
        if !state.complete {
            return;
        }
        let Some(reply) = state.reader.take() else {
            return;
        };
        let staged = state.kit_and_record();
        drop(state);
        match staged.and_then(|(kit, created)| Ok(kit.stage_images(&created)?)) {
            Ok(()) => answer(reply, 0),
            Err(e) => {
                self.state().unstaged = Some(format!("{e:#}"));
                answer(reply, 1);
            }
        }
    }

    /// How an engine that an earlier agent started ended; none if it was told to end.
    pub fn adopted(&self) -> Option<Event> {
        let status =
            Job::adopt(&self.job_dir()).map_or(Status::Lost, |job| job.wait(Duration::MAX));
        match status {
            _ if self.over.load(Ordering::SeqCst) => None,
            Status::Exited(0) => Some(Event::EngineRunning),
            status => Some(Event::EngineGone(format!(
                "the runtime's restore ended with {status:?}"
            ))),
        }
    }

    pub(super) fn job_dir(&self) -> PathBuf {
        paths::run(self.id).join("restore")
    }

    /// A moment of the engine. What it means to the machine; none if it was answered here.
    pub fn hook(
        self: &Arc<Self>,
        call: &HookCall,
        reply: oneshot::Sender<HookReply>,
    ) -> Option<Event> {
        if self.over.load(Ordering::SeqCst) {
            answer(reply, 1);
            return None;
        }
        let mut state = self.state();
        match call.action {
            hook::Action::Loaded if state.loading => {
                // The step that rebuilds the sockets waits for it.
                (state.loading, state.moment) = (false, Some(reply));
                None
            }
            hook::Action::Loaded => {
                // It asks an agent that was restarted.
                state.made.init_pid = call.init_pid;
                state.moment = Some(reply);
                Some(Event::EngineRebuilt)
            }
            hook::Action::Images => {
                state.reader = Some(reply);
                drop(state);
                let steps = self.clone();
                thread::spawn(move || steps.give_images());
                None
            }
            hook::Action::PostRestore => {
                state.made.init_pid = call.init_pid;
                state.moment = Some(reply);
                drop(state);
                self.remember();
                Some(Event::EngineRebuilt)
            }
            hook::Action::PreResume => {
                state.moment = Some(reply);
                Some(Event::EngineReady)
            }
            _ => {
                answer(reply, 0);
                None
            }
        }
    }

    /// Under `handoff`: hands the program its state and its sockets, now that they are filled, and waits until it has loaded them. An engine
    /// that fails says so by its end.
    pub(super) fn load(&self) -> Result<()> {
        self.state().loading = true;
        self.go_on();
        while self.state().loading {
            if self.over.load(Ordering::SeqCst) {
                bail!("the move is being given up");
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Lets the engine go on to its last moment.
    pub fn engine_release(&self) {
        self.go_on();
    }

    /// Lets the engine resume the tasks.
    pub fn engine_resume(&self) {
        self.go_on();
    }

    pub(super) fn go_on(&self) {
        let reply = self.state().moment.take();
        if let Some(reply) = reply {
            answer(reply, 0);
        }
    }
}
