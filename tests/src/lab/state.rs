//! What is written down of a lab, so that another process can find it: `/run/netmig-lab/NAME/state.json`.
use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::options::check_name;
use crate::{Error, NamespaceHost};

const LABS: &str = "/run/netmig-lab";

/// How long a keeper may take to end its hosts.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// `netmig.lab/1`.
    pub schema: String,
    /// The lab's name.
    pub name: String,
    /// The process that holds it together.
    pub keeper: Keeper,
    /// The test root that its hosts stand on.
    pub root: PathBuf,
    /// Its hosts; empty until they are up.
    pub hosts: Vec<HostState>,
}

/// What is known of a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostState {
    /// Its name.
    pub name: String,
    /// The process id of its PID 1 as this machine counts.
    pub pid: i32,
    /// Its address in 192.0.2.0/24.
    pub ipv4: String,
    /// Its address in 2001:db8::/64.
    pub ipv6: String,
}

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeper {
    /// Its process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc(5), `starttime`).
    pub started: u64,
}

/// The names of all labs that are up or have left something in [`LABS`].
///
/// # Errors
/// [`Error::File`] if the directory is there and cannot be read.
pub fn labs() -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(LABS) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::file("listing", LABS))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::file("listing", LABS))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(super) fn directory(name: &str) -> PathBuf {
    Path::new(LABS).join(name)
}

/// Makes the lab's directory, which no other lab has then; what a dead lab of this name left is removed first.
pub(super) fn claim(name: &str) -> Result<PathBuf, Error> {
    fs::create_dir_all(LABS).map_err(Error::file("creating", LABS))?;
    let path = directory(name);
    match fs::create_dir(&path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            match State::load(name) {
                Ok(state) if !state.keeper.alive() => super::sweep(name)?,
                _ => return Err(Error::Exists(name.to_owned())),
            }
            fs::create_dir(&path).map_err(Error::file("creating", &path))?;
        }
        other => other.map_err(Error::file("creating", &path))?,
    }
    Ok(path)
}

impl State {
    pub(super) fn load(name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let path = directory(name).join("state.json");
        match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::Missing(name.to_owned())),
            other => {
                let bytes = other.map_err(Error::file("reading", &path))?;
                serde_json::from_slice(&bytes)
                    .map_err(|e| Error::file("understanding", path)(e.into()))
            }
        }
    }

    /// Writes it whole or not at all.
    pub(super) fn save(&self) -> io::Result<()> {
        let path = directory(&self.name).join("state.json");
        let half = path.with_extension("half");
        fs::write(&half, serde_json::to_vec_pretty(self)?)?;
        fs::rename(half, path)
    }

    pub(super) fn namespace_hosts(&self) -> Vec<NamespaceHost> {
        let socket = |name: &str| directory(&self.name).join(format!("{name}.sock"));
        self.hosts
            .iter()
            .map(|host| NamespaceHost::new(host.name.clone(), socket(&host.name), host.pid))
            .collect()
    }
}

impl Keeper {
    /// This process.
    pub(super) fn own() -> io::Result<Self> {
        let pid = std::process::id().cast_signed();
        match start_time(pid)? {
            Some(started) => Ok(Self { pid, started }),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether it still runs.
    #[must_use]
    pub fn alive(self) -> bool {
        matches!(start_time(self.pid), Ok(Some(started)) if started == self.started)
    }

    /// Ends it: asks first, and kills it if that does not help.
    pub(super) fn stop(self) -> io::Result<()> {
        // SAFETY: pidfd_open takes two integers and gives a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ESRCH) => Ok(()),
                _ => Err(error),
            };
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the descriptor was made just now and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Looked at after the descriptor is held: from here on the number cannot mean another process.
        if !self.alive() {
            return Ok(());
        }
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            // SAFETY: pidfd_send_signal reads no memory when its info is null.
            let sent = unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    fd.as_raw_fd(),
                    signal,
                    std::ptr::null::<libc::siginfo_t>(),
                    0,
                )
            };
            if sent < 0 {
                let error = io::Error::last_os_error();
                return match error.raw_os_error() {
                    Some(libc::ESRCH) => Ok(()),
                    _ => Err(error),
                };
            }
            let timeout = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
            if poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)? > 0 {
                return Ok(());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// Field 22 of /proc/PID/stat; none if there is no such process, or it is a zombie.
fn start_time(pid: i32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    // The second field, the name in parentheses, may hold anything.
    let mut rest = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    if rest.next() == Some("Z") {
        return Ok(None);
    }
    rest.nth(18)
        .and_then(|field| field.parse().ok())
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat without start time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = Keeper::own().expect("this process");
        assert!(own.alive());
        let earlier = Keeper {
            started: own.started - 1,
            ..own
        };
        assert!(!earlier.alive());
        earlier
            .stop()
            .expect("nothing to stop, and this process not touched");
    }
}
