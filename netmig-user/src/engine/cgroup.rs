//! The container's cgroup (v2): freeze, thaw, kill.
//!
//! A frozen cgroup keeps the tasks stopped when CRIU or its hook dies and ptrace lets them go; SIGKILL still works on frozen v2 tasks.
use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

const GLANCE: Duration = Duration::from_millis(1);

/// A cgroup file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The tasks did not stop in time.
    #[error("{path} is not frozen after {ms} ms: a task is in an uninterruptible wait")]
    Timeout {
        /// The cgroup.
        path: PathBuf,
        /// How long was waited.
        ms: u128,
    },
    /// No cgroup v2 directory for the process.
    #[error("process {pid} has no cgroup under a cgroup2 mount: cgroup v2 is needed")]
    NoUnified {
        /// The process.
        pid: i32,
    },
}

/// Freezes `cgroup` with all below it, and waits until every task is stopped. Tasks that ptrace holds count as stopped as soon as they are seen
/// to be (`cgroup_enter_frozen`), so with tasks under CRIU use [`freeze_now`].
///
/// # Errors
/// The file cannot be written, or a task does not stop within `limit`; then the cgroup is thawed again.
pub fn freeze(cgroup: &Path, limit: Duration) -> Result<(), Error> {
    freeze_now(cgroup)?;
    let begin = Instant::now();
    while !frozen(cgroup)? {
        if begin.elapsed() >= limit {
            thaw(cgroup)?;
            return Err(Error::Timeout {
                path: cgroup.to_owned(),
                ms: limit.as_millis(),
            });
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// Sets `cgroup.freeze` without waiting: tasks stopped by ptrace stay in that stop, and enter the frozen state the moment they leave it.
///
/// # Errors
/// The file cannot be written.
pub fn freeze_now(cgroup: &Path) -> Result<(), Error> {
    write(&cgroup.join("cgroup.freeze"), "1")
}

/// Lets the tasks run. A cgroup that is gone is no error: then nothing is frozen.
///
/// # Errors
/// The file is there and cannot be written.
pub fn thaw(cgroup: &Path) -> Result<(), Error> {
    let path = cgroup.join("cgroup.freeze");
    if path.exists() {
        write(&path, "0")
    } else {
        Ok(())
    }
}

/// Whether every task of `cgroup` and below is frozen (`frozen 1` in cgroup.events).
///
/// # Errors
/// The file cannot be read.
pub fn frozen(cgroup: &Path) -> Result<bool, Error> {
    let events = read(&cgroup.join("cgroup.events"))?;
    Ok(events.lines().any(|line| line == "frozen 1"))
}

/// Kills all tasks of `cgroup` and below, also frozen ones. `cgroup.kill` is there since 5.14; before, every pid is signalled.
///
/// # Errors
/// The cgroup cannot be read or written.
pub fn kill(cgroup: &Path) -> Result<(), Error> {
    let path = cgroup.join("cgroup.kill");
    if path.exists() {
        return write(&path, "1");
    }
    for pid in pids(cgroup)? {
        match nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        ) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(e) => {
                let path = cgroup.join("cgroup.procs");
                return Err(Error::File {
                    what: "killing a task of",
                    path,
                    source: e.into(),
                });
            }
        }
    }
    Ok(())
}

/// Pids of all tasks in `cgroup` and below.
///
/// # Errors
/// The cgroup cannot be read.
pub fn pids(cgroup: &Path) -> Result<Vec<i32>, Error> {
    let mut found: Vec<i32> = read(&cgroup.join("cgroup.procs"))?
        .lines()
        .filter_map(|l| l.parse().ok())
        .collect();
    let list = |source| Error::File {
        what: "listing",
        path: cgroup.to_owned(),
        source,
    };
    for entry in fs::read_dir(cgroup).map_err(list)? {
        let entry = entry.map_err(list)?;
        if entry.file_type().map_err(list)?.is_dir() {
            found.extend(pids(&entry.path())?);
        }
    }
    Ok(found)
}

/// The cgroup v2 directory of a process: line `0::` of /proc/PID/cgroup under the cgroup2 mount.
///
/// # Errors
/// The process is gone, or there is no cgroup2 mount.
pub fn of(pid: i32) -> Result<PathBuf, Error> {
    let mount = mount()?.ok_or(Error::NoUnified { pid })?;
    let text = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or(Error::NoUnified { pid })?;
    Ok(mount.join(path.trim_start_matches('/')))
}

/// The caller's own cgroup v2, as a path in the hierarchy.
///
/// # Errors
/// /proc cannot be read, or there is no cgroup v2.
pub fn own() -> Result<String, Error> {
    let text = read(Path::new("/proc/self/cgroup"))?;
    let pid = i32::try_from(std::process::id()).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(ToOwned::to_owned)
        .ok_or(Error::NoUnified { pid })
}

/// Where cgroup2 is mounted.
///
/// # Errors
/// /proc/self/mounts cannot be read.
pub fn mount() -> Result<Option<PathBuf>, Error> {
    let mounts = read(Path::new("/proc/self/mounts"))?;
    Ok(mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| place.into())
    }))
}

/// Bytes of memory charged to `cgroup` (`memory.current`), if it has a memory controller.
#[must_use]
pub fn memory(cgroup: &Path) -> Option<u64> {
    fs::read_to_string(cgroup.join("memory.current"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File {
        what: "reading",
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| Error::File {
        what: "writing",
        path: path.to_owned(),
        source,
    })
}
