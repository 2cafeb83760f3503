//! A runtime's command run under a tiny supervisor of its own session, so that it outlives an agent that is killed and can be adopted again.
//!
//! The supervisor is this binary once more, in [`supervise_main`]. Everything that there is to know lies in the job's directory:
//! `command.json`, `supervisor` and `pid` (pid and start time), `stdout`, `stderr`, and at the end `status`, each written whole or not at all.
use std::{
    fs, io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{ForkResult, Pid, fork, setsid},
};
use serde::{Deserialize, Serialize};

/// First argument by which the binary knows that it is to be a supervisor; the job's directory follows.
pub const SUPERVISE: &str = "supervise";

/// How often a waiter looks for the end.
const GLANCE: Duration = Duration::from_millis(5);

/// Starting, adopting or ending a job failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the job's directory.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The supervisor did not come up.
    #[error("starting the supervisor of {command}: {why}")]
    Supervisor {
        /// The command it was to run.
        command: String,
        /// Why it failed.
        why: String,
    },
    /// The command could not be killed.
    #[error("killing process group {pid} of {command}: {source}")]
    Kill {
        /// Process group.
        pid: i32,
        /// The command.
        command: String,
        /// Why it failed.
        source: nix::Error,
    },
}

/// Where the standard output and error of a command go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Into the files `stdout` and `stderr` of the job.
    Files,
    /// To /dev/null: what the command starts lives on with these descriptors (`runc restore --detach`).
    Null,
}

/// A command to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables added to the agent's own environment.
    pub env: Vec<(String, String)>,
    /// Working directory, if it matters.
    pub cwd: Option<PathBuf>,
    /// Standard output and error.
    pub output: Output,
}

impl Command {
    /// A command with nothing special.
    #[must_use]
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            output: Output::Files,
        }
    }

    /// The command for `std`, with everything set but standard streams.
    ///
    /// # Panics
    /// If `argv` is empty.
    #[must_use]
    pub fn std(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .envs(self.env.iter().map(|(k, v)| (k, v)));
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        command
    }
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It runs (or is about to).
    Running,
    /// It ended with this code.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// Its supervisor is gone and left no status: killed together with it, or the host was restarted.
    Lost,
}

/// One command under its supervisor.
#[derive(Debug, PartialEq, Eq)]
pub struct Job {
    dir: PathBuf,
}

impl Job {
    /// Starts `command` under a supervisor, which is `exe supervise DIR`. `dir` is made; it must not hold another job.
    ///
    /// # Errors
    /// The directory cannot be written, or the supervisor does not start. A command that cannot be executed is no error here: it ends with
    /// status 127 and the reason in `stderr`.
    pub fn start(exe: &Path, dir: &Path, command: &Command) -> Result<Self, Error> {
        let supervisor = |why: String| Error::Supervisor {
            command: command.argv.join(" "),
            why,
        };
        if command.argv.is_empty() {
            return Err(supervisor("there is no command".into()));
        }
        fs::create_dir_all(dir).map_err(|e| file("creating", dir, e))?;
        let json = serde_json::to_vec_pretty(command).map_err(|e| supervisor(e.to_string()))?;
        write_whole(&dir.join("command.json"), &json)?;
        let status = std::process::Command::new(exe)
            .arg(SUPERVISE)
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|e| supervisor(format!("{}: {e}", exe.display())))?;
        if !status.success() {
            return Err(supervisor(format!("{} ended with {status}", exe.display())));
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Takes up a job that an earlier agent started; none where `dir` holds none.
    #[must_use]
    pub fn adopt(dir: &Path) -> Option<Self> {
        dir.join("supervisor").exists().then(|| Self {
            dir: dir.to_owned(),
        })
    }

    /// Pid of the command, once it has been started.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        Some(Process::read(&self.dir.join("pid"))?.pid)
    }

    /// How it stands now.
    #[must_use]
    pub fn status(&self) -> Status {
        if let Some(status) = self.written() {
            return status;
        }
        let lives = Process::read(&self.dir.join("supervisor")).is_some_and(|p| p.lives());
        // The supervisor may have written its last word between the two looks.
        if lives {
            Status::Running
        } else {
            self.written().unwrap_or(Status::Lost)
        }
    }

    /// Waits for the end for at most `timeout`; [`Status::Running`] if it has not come.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> Status {
        // None: longer than the clock can count, so without an end.
        let until = Instant::now().checked_add(timeout);
        loop {
            let status = self.status();
            if status != Status::Running || until.is_some_and(|until| Instant::now() >= until) {
                return status;
            }
            thread::sleep(GLANCE);
        }
    }

    /// Kills the command and what it started in its process group. What it detached (conmon, the container) is not in it.
    ///
    /// # Errors
    /// The signal could not be sent to a group that is there.
    pub fn kill(&self) -> Result<(), Error> {
        let Some(process) = Process::read(&self.dir.join("pid")).filter(Process::lives) else {
            return Ok(());
        };
        match killpg(Pid::from_raw(process.pid), Signal::SIGKILL) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(source) => {
                let command = self.dir.display().to_string();
                Err(Error::Kill {
                    pid: process.pid,
                    command,
                    source,
                })
            }
        }
    }

    /// What the command wrote to standard error, for an operator; at most the last 4096 bytes.
    #[must_use]
    pub fn stderr(&self) -> String {
        let text = fs::read(self.dir.join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..])
            .trim()
            .to_owned()
    }

    /// Directory of the job.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn written(&self) -> Option<Status> {
        serde_json::from_slice(&fs::read(self.dir.join("status")).ok()?).ok()
    }
}

/// The supervisor: runs the command of the job in `dir`, writes its end, and ends. The first process returns at once, the supervisor itself is
/// its child in a session of its own, so that whoever started it has nothing to reap.
///
/// Must be called before the process has a second thread.
#[must_use]
pub fn supervise_main(dir: &Path) -> ExitCode {
    // SAFETY: called first thing in main, before any thread was started, so the child may go on as an ordinary process.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => {
            let known = Process::of(child.as_raw())
                .is_some_and(|p| p.write(&dir.join("supervisor")).is_ok());
            if known {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Ok(ForkResult::Child) => match setsid()
            .map_err(io::Error::from)
            .and_then(|_| supervise(dir))
        {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(_) => ExitCode::FAILURE,
    }
}

fn supervise(dir: &Path) -> io::Result<()> {
    let command: Command = serde_json::from_slice(&fs::read(dir.join("command.json"))?)?;
    let stderr = fs::File::create(dir.join("stderr"))?;
    let mut std = command.std();
    std.stdin(Stdio::null()).process_group(0);
    match command.output {
        Output::Files => std
            .stdout(fs::File::create(dir.join("stdout"))?)
            .stderr(stderr.try_clone()?),
        Output::Null => std.stdout(Stdio::null()).stderr(Stdio::null()),
    };
    let status = match std.spawn() {
        Ok(mut child) => {
            if let Some(process) = i32::try_from(child.id()).ok().and_then(Process::of) {
                process.write(&dir.join("pid")).map_err(io::Error::other)?;
            }
            let status = child.wait()?;
            status.code().map_or_else(
                || Status::Signaled(status.signal().unwrap_or_default()),
                Status::Exited,
            )
        }
        Err(e) => {
            io::Write::write_all(
                &mut &stderr,
                format!("{}: {e}\n", command.argv[0]).as_bytes(),
            )?;
            Status::Exited(127)
        }
    };
    write_whole(&dir.join("status"), &serde_json::to_vec(&status)?).map_err(io::Error::other)
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since boot.
    start: u64,
}

impl Process {
    /// Also of one that has ended and is not yet reaped: a command may be quicker than whoever notes its pid.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Self::look(pid).map(|(process, _)| process)
    }

    pub(crate) fn lives(&self) -> bool {
        Self::look(self.pid).is_some_and(|(now, ended)| now.start == self.start && !ended)
    }

    fn look(pid: i32) -> Option<(Self, bool)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, spaces and parentheses too: count from its end.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        let state = fields.next()?;
        Some((
            Self {
                pid,
                start: fields.nth(18)?.parse().ok()?,
            },
            matches!(state, "Z" | "X"),
        ))
    }

    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn write(&self, path: &Path) -> Result<(), Error> {
        let json = serde_json::to_vec(self).map_err(|e| file("encoding", path, e.into()))?;
        write_whole(path, &json)
    }
}

pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    fs::write(&new, bytes).map_err(|e| file("writing", &new, e))?;
    fs::rename(&new, path).map_err(|e| file("renaming to", path, e))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        what,
        path: path.to_owned(),
        source,
    }
}
