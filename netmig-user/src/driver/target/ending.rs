//! The two ends of a move at the target: settled, or discarded.
use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use netmig_core::container::Manager;

use super::{super::answer, steps::Steps};
use crate::{
    agent::paths,
    engine::{
        cgroup,
        criu::hook,
        job::{Job, Status},
    },
    gate::{self},
    net,
    runtime::{self, podman},
};

/// Longest time that the runtime may take to end after it was told how.
const ENDING: Duration = Duration::from_secs(60);

impl Steps {
    /// Removes all that was made, the engine's processes first. What could not be removed, in words.
    pub fn discard(&self) -> Vec<String> {
        self.over.store(true, Ordering::SeqCst);
        self.arrived.broken("the move is being given up".to_owned());
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::new();
        // First of all, behind the closed gate: at `pre-resume` CRIU does not look at the hook's answer and would let the tasks run.
        let init_pid = self.state().made.init_pid;
        if let Some(pid) = init_pid {
            left.extend(kill_tasks(pid));
        }
        let mut state = self.state();
        for reply in [state.moment.take(), state.reader.take()]
            .into_iter()
            .flatten()
        {
            answer(reply, 1);
        }
        drop(state);
        if let Some(job) = Job::adopt(&self.job_dir()) {
            let (status, told) = hook::undo(&job, &paths::run(self.id), ENDING);
            left.extend(told);
            if status == Status::Running {
                left.push(format!(
                    "the runtime's restore has not ended {ENDING:?} after it was told to; it is killed"
                ));
                left.extend(job.kill().err().map(|e| e.to_string()));
            }
        }
        let made = self.state().made.clone();
        let manager = self.manager();
        if let (Some(created), Some(manager)) = (&made.container, manager) {
            left.extend(
                runtime::of(manager)
                    .discard(created)
                    .iter()
                    .map(ToString::to_string),
            );
        }
        if let Some(image) = &made.image {
            left.extend(podman::image::remove(image).err().map(|e| e.to_string()));
        }
        left.extend(self.forget_traffic());
        if let Some(network) = &made.network {
            left.extend(net::remove(network).iter().map(ToString::to_string));
        }
        left.extend(self.detach());
        left.extend(self.remove_run());
        left
    }

    /// The move is over; what is not needed any more goes. What could not be removed, in words.
    pub fn forget(&self, here: bool) -> Vec<String> {
        let mut left = Vec::new();
        if here {
            let made = self.state().made.container.clone();
            let manager = self.manager();
            if let (Some(created), Some(manager)) = (&made, manager) {
                left.extend(
                    runtime::of(manager)
                        .settle(created)
                        .iter()
                        .map(ToString::to_string),
                );
            }
            left.extend(self.detach());
        }
        // Also where nothing was made, because the source refused: a discard has not run then.
        left.extend(self.remove_run());
        left
    }

    fn manager(&self) -> Option<Manager> {
        let state = self.state();
        state.question.as_ref().map(|q| q.container.manager)
    }

    pub(super) fn detach(&self) -> Vec<String> {
        let gate = self.state().gate.take();
        let mut left = self.end_hold(gate.as_ref());
        let errors = match gate {
            Some(gate) => gate.detach().err().unwrap_or_default(),
            None => gate::clear(&paths::pins(self.id)),
        };
        left.extend(errors.iter().map(ToString::to_string));
        left
    }

    pub(super) fn remove_run(&self) -> Vec<String> {
        let dir = paths::run(self.id);
        let mut left = unmount_below(&dir);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                left.push(format!("removing {}: {e}", dir.display()));
            }
            _ => {}
        }
        left
    }
}

/// Unmounts what stands below `dir`: a CRIU that was killed leaves its view of the control groups there. What could not be done, in words.
pub(super) fn unmount_below(dir: &std::path::Path) -> Vec<String> {
    let mounts = match std::fs::read_to_string("/proc/self/mounts") {
        Ok(mounts) => mounts,
        Err(e) => return vec![format!("reading /proc/self/mounts: {e}")],
    };
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below = points.filter(|point| std::path::Path::new(point).starts_with(dir));
    // The last mounted first: it may stand on an earlier one.
    let mut below: Vec<_> = below.collect();
    below.reverse();
    below
        .into_iter()
        .filter_map(|point| {
            let gone = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            Some(format!("unmounting {point}: {}", gone.err()?))
        })
        .collect()
}

/// Kills every task of the container whose first task is `init_pid`, by its cgroup. What could not be done, in words.
pub(super) fn kill_tasks(init_pid: i32) -> Option<String> {
    // It is gone already.
    let cgroup = cgroup::of(init_pid).ok()?;
    cgroup::kill(&cgroup).err().map(|e| e.to_string())
}
