//! The engine at the source: its start, its moments, its images, its end.
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use netmig_core::{
    machine::source::{Done, Event},
    socket,
};
use tokio::sync::oneshot;
use tracing::warn;

use super::{
    super::{answer, bulk},
    steps::{GLANCE, Steps},
};
use crate::{
    agent::{local::Told, pace::Pace, paths},
    engine::{
        cgroup,
        criu::hook::{self, HookCall, HookReply},
        job::{Job, Status},
    },
};

/// The thread that sends growing images.
pub(super) struct Streaming {
    pub(super) stop: Arc<AtomicBool>,
    pub(super) thread: thread::JoinHandle<Result<bulk::Sender>>,
}

/// Longest time that the runtime may take to end after it was told how.
pub(super) const ENDING: Duration = Duration::from_secs(60);

/// Longest wait for tasks to stop before CRIU is let at them.
const STOPPED_WITHIN: Duration = Duration::from_millis(50);

impl Steps {
    /// Runs the engine's dump to its end. Why it ended, if it was not told to.
    pub fn freeze(&self) -> Result<Option<String>> {
        self.state().pace = Some(Pace::ahead());
        let container = self.container()?;
        let kit = self
            .state()
            .kit
            .clone()
            .context("the engine has not been made ready")?;
        let exe = paths::program().context("finding this program")?;
        let job = Job::start(&exe, &self.job_dir(), &kit.checkpoint_command(&container)?)?;
        self.stream_images();
        let status = job.wait(Duration::MAX);
        if self.over.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let mut why = vec![format!(
            "{} ended with {status:?}: {}",
            kit.words()[0],
            job.stderr()
        )];
        why.extend(kit.why(5));
        Ok(Some(why.join("\n")))
    }

    /// Waits for the end of an engine that an earlier agent started; why it ended, if it was not told to.
    pub fn adopted(&self) -> Option<String> {
        let status = Job::adopt(&self.job_dir())?.wait(Duration::MAX);
        (!self.over.load(Ordering::SeqCst))
            .then(|| format!("the runtime's checkpoint ended with {status:?}"))
    }

    pub(super) fn job_dir(&self) -> PathBuf {
        paths::run(self.id).join("checkpoint")
    }

    /// Sends memory pages while the engine writes them.
    pub(super) fn stream_images(&self) {
        let mut state = self.state();
        let Some(mut images) = state.images.take() else {
            return;
        };
        let feed = self.feed.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if images.grown()? {
                    feed.tell(Told::Bytes {
                        sent: images.sent(),
                        total: None,
                    });
                } else {
                    thread::sleep(GLANCE);
                }
            }
            Ok(images)
        });
        state.streaming = Some(Streaming { stop, thread });
    }

    /// What is not yet sent of images and files.
    pub fn send_rest(&self) -> Result<Done> {
        let container = self.container()?;
        let kit = self
            .state()
            .kit
            .clone()
            .context("the engine has not been made ready")?;
        kit.collect_extras(&container)?;
        let streaming = self
            .state()
            .streaming
            .take()
            .context("no images are being sent")?;
        streaming.stop.store(true, Ordering::SeqCst);
        let mut images = streaming
            .thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that sends images panicked"))??;
        let (files, bytes) = images.rest()?;
        self.state().image_bytes = images.sent();
        drop(images);
        let copying = self
            .state()
            .copying
            .take()
            .context("no files are being copied")?;
        copying
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that copies files panicked"))??;
        Ok(Done::Sent { files, bytes })
    }

    /// A moment of the engine. What it means to the machine; none if it was answered here.
    pub fn hook(&self, call: &HookCall, reply: oneshot::Sender<HookReply>) -> Option<Event> {
        let event = match call.action {
            hook::Action::PreDump => Event::EngineStarting,
            hook::Action::NetworkLock => Event::EngineFrozen,
            hook::Action::PostDump => Event::EngineDumped,
            _ => {
                answer(reply, 0);
                return None;
            }
        };
        if self.over.load(Ordering::SeqCst) {
            answer(reply, 1);
            return None;
        }
        let mut state = self.state();
        state.helper = call.init_pid.or(state.helper);
        if call.action == hook::Action::PostDump {
            state.dumped = Some(reply);
        } else {
            state.moment = Some((call.action, reply));
        }
        Some(event)
    }

    /// Lets the engine go on from `pre-dump` or `network-lock`.
    pub fn engine_go_on(self: &Arc<Self>) {
        if let Err(e) = self.hold_datagrams() {
            // Some may be lost in a receive buffer, no more.
            warn!(mv = %self.id, "holding datagrams: {e:#}");
        }
        let Some((action, reply)) = self.state().moment.take() else {
            return;
        };
        if action == hook::Action::PreDump
            && let Err(e) = self.stop()
        {
            // Then CRIU does it, and takes longer.
            warn!(mv = %self.id, "{e:#}");
        }
        answer(reply, 0);
    }

    /// Stops the tasks by their cgroup, for CRIU to find them so: it looks for the end of a freeze of its own every 100 ms only
    /// (`freeze_processes`), and all that time nobody answers the peers. It lets them go on to where it wants them, and leaves the cgroup frozen.
    fn stop(&self) -> Result<()> {
        let container = self.container()?;
        let cgroup = container.cgroup.as_ref();
        if container.manager.engine() == socket::Engine::Criu
            && let Some(cgroup) = cgroup
        {
            tokio::task::block_in_place(|| cgroup::freeze(cgroup, STOPPED_WITHIN))?;
        }
        Ok(())
    }

    /// Tells the engine's hook how to end, and waits for the runtime. A hook that has lost its agent comes again and is answered by [`Self::hook`].
    pub(super) fn end_engine(&self, code: u8, left: &mut Vec<String>) {
        let mut state = self.state();
        // `over` is set: a hook that comes from now on is told by its own call.
        for reply in [
            state.moment.take().map(|(_, reply)| reply),
            state.dumped.take(),
        ]
        .into_iter()
        .flatten()
        {
            answer(reply, code);
        }
        drop(state);
        let Some(job) = Job::adopt(&self.job_dir()) else {
            return;
        };
        let status = if code == 0 {
            job.wait(ENDING)
        } else {
            let (status, told) = hook::undo(&job, &paths::run(self.id), ENDING);
            left.extend(told);
            status
        };
        match status {
            Status::Running => {
                left.push(format!("the runtime's checkpoint has not ended {ENDING:?} after it was told to; it is killed"));
                if let Err(e) = job.kill() {
                    left.push(e.to_string());
                }
            }
            Status::Exited(0) if code == 0 => {}
            status if code == 0 => left.push(format!(
                "the runtime's checkpoint ended with {status:?}: {}",
                job.stderr()
            )),
            _ => {}
        }
    }
}
