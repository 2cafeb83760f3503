//! What a hook process of CRIU says to the agent, and the agent to it.
//!
//! CRIU runs its action script at each of its action points and waits for it. The script is a link to this binary in the move's directory; it
//! is started seven times in a restore, so only the moments that matter go to the agent ([`Action::waits`]), the others return at once.
use std::{
    env, fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::engine::job::{Job, Status};

/// How long a hook may take to end after it was told to undo.
const ENDS: Duration = Duration::from_secs(3);

/// CRIU's action points (`CRTOOLS_SCRIPT_ACTION`, criu/action-scripts.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Dump: before any task is seized; everything runs.
    PreDump,
    /// Dump: the tasks are stopped, nothing has been read yet.
    NetworkLock,
    /// Dump: all images are written, the tasks are stopped. Exit 0: they are killed. Exit 1: the dump is cancelled and they run on.
    PostDump,
    /// netmig's own, of the runtime's shim: CRIU is about to be started and will read the images. Exit 1: it is not started.
    Images,
    /// Restore: before anything.
    PreRestore,
    /// Restore: the first task exists, its namespaces are being made.
    SetupNamespaces,
    /// Restore: namespaces are there.
    PostSetupNamespaces,
    /// Restore: every task is in CRIU's restorer, every descriptor in place. Exit 1: the restore fails and nothing is left.
    PostRestore,
    /// Dump that is undone, or restore: CRIU would let the network go.
    NetworkUnlock,
    /// Restore: the last moment before the tasks run. The exit code is not looked at.
    PreResume,
    /// Restore: the tasks run.
    PostResume,
    /// Handoff, not a point of CRIU's: the program at the target has loaded its state and its descriptors.
    Loaded,
}

/// Which end of the move a hook belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// It leaves here.
    Source,
    /// It arrives here.
    Target,
}

impl Action {
    /// By CRIU's own name; none for one that this version does not know (and so has nothing to do at).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pre-dump" => Self::PreDump,
            "network-lock" => Self::NetworkLock,
            "post-dump" => Self::PostDump,
            "pre-restore" => Self::PreRestore,
            "setup-namespaces" => Self::SetupNamespaces,
            "post-setup-namespaces" => Self::PostSetupNamespaces,
            "post-restore" => Self::PostRestore,
            "network-unlock" => Self::NetworkUnlock,
            "pre-resume" => Self::PreResume,
            "post-resume" => Self::PostResume,
            _ => return None,
        })
    }

    /// Whether the hook goes to the agent and waits for its word at this point.
    #[must_use]
    pub fn waits(self, side: Side) -> bool {
        match side {
            Side::Source => matches!(self, Self::PreDump | Self::NetworkLock | Self::PostDump),
            Side::Target => matches!(self, Self::Images | Self::PostRestore | Self::PreResume),
        }
    }
}

/// One moment, as the hook process hands it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookCall {
    /// The moment.
    pub action: Action,
    /// Pid of the container's first task as this host sees it (`CRTOOLS_INIT_PID`); none before one exists.
    pub init_pid: Option<i32>,
    /// Where the images are (`CRTOOLS_IMAGE_DIR`), the link of /proc that CRIU gives resolved.
    pub image_dir: Option<PathBuf>,
}

impl HookCall {
    /// The moment of a runtime's shim.
    #[must_use]
    pub fn images() -> Self {
        Self {
            action: Action::Images,
            init_pid: None,
            image_dir: None,
        }
    }

    /// Reads the variables that CRIU sets; none if they do not name a known action.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        Self::read(|name| env::var(name).ok())
    }

    fn read(var: impl Fn(&str) -> Option<String>) -> Option<Self> {
        Some(Self {
            action: Action::named(&var("CRTOOLS_SCRIPT_ACTION")?)?,
            init_pid: var("CRTOOLS_INIT_PID").and_then(|pid| pid.parse().ok()),
            // Under crun and runc it is /proc/PID/fd/N of the runtime, which is no name for another process once the runtime is gone.
            image_dir: var("CRTOOLS_IMAGE_DIR")
                .map(|dir| std::fs::read_link(&dir).unwrap_or_else(|_| dir.into())),
        })
    }
}

/// The agent's word: exit code of the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookReply {
    /// 0: go on. 1: undo.
    pub code: u8,
}

/// Waits at most `limit` for the runtime's command after the hook in the move's directory `dir` was told to undo. A hook that does not end by itself
/// (somebody has stopped it) is killed, which CRIU takes for exit 1: the container would wait for it with everything else. What was done and what
/// could not be, in words.
pub fn undo(job: &Job, dir: &Path, limit: Duration) -> (Status, Vec<String>) {
    let mut told = Vec::new();
    if job.wait(ENDS.min(limit)) == Status::Running {
        match kill_all(&dir.join("hook")) {
            Ok(0) => {}
            Ok(_) => told.push(format!(
                "netmig's hook had not ended {ENDS:?} after it was told to; it is killed"
            )),
            Err(e) => told.push(format!("ending netmig's hook: {e}")),
        }
    }
    (job.wait(limit), told)
}

/// Kills the processes that run `script` under this very name; how many.
fn kill_all(script: &Path) -> io::Result<usize> {
    let mut killed = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile has none.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).next() != Some(script.as_os_str().as_bytes()) {
            continue;
        }
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) => killed += 1,
            Err(nix::Error::ESRCH) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(killed)
}

/// One call of netavark by podman, as the shim hands it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetavarkCall {
    /// `setup`, `teardown` or `update`.
    pub command: String,
    /// The network namespace that podman made (`/run/netns/netns-...`); none for commands without one.
    pub netns: Option<PathBuf>,
    /// What podman wrote to standard input: the networks, as JSON.
    pub stdin: Vec<u8>,
}

/// What the shim is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetavarkReply {
    /// Print this and end with 0.
    Answer(Vec<u8>),
    /// Print netavark's error JSON with this text and end with 1.
    Fail(String),
    /// Run the real netavark with the same input.
    PassOn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_criu_sets() {
        let vars = |name: &str| {
            Some(match name {
                "CRTOOLS_SCRIPT_ACTION" => "post-restore".to_owned(),
                "CRTOOLS_INIT_PID" => "453".to_owned(),
                "CRTOOLS_IMAGE_DIR" => "/no/such/link".to_owned(),
                _ => return None,
            })
        };
        let call = HookCall::read(vars).unwrap();
        assert_eq!(
            call,
            HookCall {
                action: Action::PostRestore,
                init_pid: Some(453),
                image_dir: Some("/no/such/link".into())
            }
        );
        assert!(call.action.waits(Side::Target) && !call.action.waits(Side::Source));
    }

    #[test]
    fn first_moments_of_a_restore_have_no_pid() {
        let vars = |name: &str| match name {
            "CRTOOLS_SCRIPT_ACTION" => Some("pre-restore".to_owned()),
            "CRTOOLS_INIT_PID" => Some(String::new()),
            _ => None,
        };
        let call = HookCall::read(vars).unwrap();
        assert_eq!((call.init_pid, call.image_dir), (None, None));
        assert!(!call.action.waits(Side::Target));
    }

    #[test]
    fn unknown_moment_is_nothing_to_do() {
        assert_eq!(HookCall::read(|_| Some("orphan-pts-master".into())), None);
    }
}
