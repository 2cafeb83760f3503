//! What can go wrong with a lab.
use std::{io, path::PathBuf, process::ExitStatus};

/// An error of the lab. Each names what was tried on what; the cause is its source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the machine or of a host could not be used.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A command could not be started in a host.
    #[error("starting `{command}` on host {host}")]
    Spawn {
        /// The host's name.
        host: String,
        /// The command line.
        command: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The connection to a host, over which commands run, is gone.
    #[error("talking to host {host}")]
    Host {
        /// The host's name.
        host: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A command that had to succeed did not.
    #[error("`{command}` on host {host}: {status}\n{stderr}")]
    Command {
        /// The host's name.
        host: String,
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its standard error, or its output if that is empty.
        stderr: String,
    },
    /// A command ran longer than its limit and was killed.
    #[error("`{command}` on host {host} did not end within {seconds} s and was killed\n{stderr}")]
    Timeout {
        /// The host's name.
        host: String,
        /// The command line.
        command: String,
        /// The limit.
        seconds: u64,
        /// Its standard error until then.
        stderr: String,
    },
    /// A lab's name holds something else than lower-case letters, digits and `-`, or is too long.
    #[error("`{0}` is no name for a lab: 1 to 32 of a-z, 0-9 and -")]
    Name(String),
    /// A lab of this name is up already.
    #[error("lab {0} is up already; `cargo xtask lab down --name {0}` ends it")]
    Exists(String),
    /// There is no lab of this name.
    #[error("there is no lab {0}; `cargo xtask lab up --name {0}` makes one")]
    Missing(String),
    /// There is no test root file system.
    #[error("there is no test root at {}; `cargo xtask setup` makes one", .0.display())]
    Root(PathBuf),
    /// The program that becomes the keeper and PID 1 of each host was not found.
    #[error("the lab's helper program was not found beside {}; `cargo build -p netmig-lab` builds it", .0.display())]
    Helper(PathBuf),
    /// The lab did not come up; what the keeper said.
    #[error("lab {name} did not come up: {message}")]
    Up {
        /// The lab's name.
        name: String,
        /// The keeper's message and log.
        message: String,
    },
    /// What is left of a lab after it went down.
    #[error("lab {name} left behind: {}", left.join("; "))]
    Left {
        /// The lab's name.
        name: String,
        /// Each thing that could not be removed, with the reason.
        left: Vec<String>,
    },
}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
