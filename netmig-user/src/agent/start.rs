//! Finding the resident agent, or starting it.
use std::{
    env,
    fs::{self, File, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio::net::UnixStream;

use super::paths;

/// No agent answers and none could be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/run/netmig` cannot be made: not root, as a rule.
    #[error(
        "making {path}: {source}\nnetmig works on network namespaces and other processes' sockets: run it as root"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process could not be started.
    #[error("starting the agent: {0}")]
    Spawn(io::Error),
    /// It was started and does not listen.
    #[error("the agent does not answer at {socket} after {waited:?}; its log is {log}")]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// How long.
        waited: Duration,
        /// Its log.
        log: PathBuf,
    },
}

/// What an agent takes of the environment of whoever starts it. It is the host's and outlives its starter, which may be a hook of a move that is over
/// by then: with `CONTAINERS_CONF_OVERRIDE` of that move, say, no podman would work any more.
const ENVIRONMENT: [&str; 8] = [
    "HOME",
    "LANG",
    "LOGNAME",
    "NETMIG_LOG",
    "PATH",
    "RUST_BACKTRACE",
    "TMPDIR",
    "USER",
];

/// How long a started agent has until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to the host's agent; starts it if none listens.
///
/// # Errors
/// The agent can neither be reached nor started.
pub async fn connect() -> Result<UnixStream, Error> {
    let socket = paths::socket();
    if let Ok(stream) = UnixStream::connect(&socket).await {
        return Ok(stream);
    }
    let begun = Instant::now();
    spawn()?;
    loop {
        match UnixStream::connect(&socket).await {
            Ok(stream) => return Ok(stream),
            Err(_) if begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(10)).await
            }
            Err(_) => {
                return Err(Error::Silent {
                    socket,
                    waited: PATIENCE,
                    log: paths::log(),
                });
            }
        }
    }
}

/// Starts an agent in a session and a cgroup of its own. Two started at once settle it by the lock: one goes on, the other ends.
fn spawn() -> Result<(), Error> {
    let run = paths::run_moves();
    fs::create_dir_all(&run).map_err(|source| Error::Directory { path: run, source })?;
    let mut command = detached(&["agent", "--resident"]).map_err(Error::Spawn)?;
    let child = command.spawn().map_err(Error::Spawn)?;
    // The child lives on by itself; a thread takes its exit status if we should outlive it.
    std::thread::spawn(move || {
        let mut child = child;
        child.wait()
    });
    Ok(())
}

/// This program with other arguments, in a session of its own and with an environment that is the host's; it writes to the agent's log.
pub(super) fn detached(args: &[&str]) -> io::Result<Command> {
    let log = open_log()?;
    let mut command = Command::new(paths::program()?);
    command
        .args(args)
        .env_clear()
        .envs(
            ENVIRONMENT
                .iter()
                .filter_map(|name| Some((name, env::var_os(name)?))),
        )
        .stdin(Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log)
        .current_dir("/");
    // SAFETY: setsid is async-signal-safe and touches nothing of the parent.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        })
    };
    Ok(command)
}

fn open_log() -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(paths::log())
}
