//! What the container belongs to: podman, runc, crun, or nothing (bare).
//!
//! A runtime keeps its container through the move: netmig asks it what it has ([`Runtime::inspect`]), has it make the same at the target
//! ([`Runtime::create`]), and has it run CRIU at both ends ([`crate::engine::criu`]). Nothing of its state is written behind its back.
use std::{
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use netmig_core::container::{Container, Manager, Mount, MountFate, SourcePolicy};
use serde::{Deserialize, Serialize};

use crate::engine::{self, Engine, cgroup, criu};

pub mod bare;
pub mod oci;
pub mod podman;
pub mod systemd;
pub mod tool;

/// How long killed tasks may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// What a runtime was asked for failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is missing or failed.
    #[error(transparent)]
    Tool(#[from] tool::Error),
    /// There is no such container.
    #[error("{manager} knows no container {name:?}{hint}")]
    NoSuchContainer {
        /// `podman`, `runc` or `crun`.
        manager: &'static str,
        /// As the user named it.
        name: String,
        /// What else it might be, beginning with `; `, or nothing.
        hint: String,
    },
    /// It is there, but does not run.
    #[error("container {name} is {state}: only a running container can be moved; start it first")]
    NotRunning {
        /// Its name.
        name: String,
        /// Its state, in the runtime's word.
        state: String,
    },
    /// A file.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of the runtime's is not what it should be.
    #[error("{path} cannot be read: {why}")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The target cannot make the container.
    #[error("{0}")]
    Refused(String),
    /// The cgroup of the container.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The engine's kit.
    #[error(transparent)]
    Engine(#[from] criu::Error),
    /// A program that hands itself over.
    #[error(transparent)]
    Handoff(#[from] engine::handoff::Error),
}

impl Error {
    pub(crate) fn file(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// What the user said about the container's mounts: `--mount DST=copy|shared|refuse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts(pub Vec<(PathBuf, MountFate)>);

impl Mounts {
    /// The fate of one mount: what the user said of its destination, else `default`.
    #[must_use]
    pub fn fate(&self, destination: &Path, default: MountFate) -> MountFate {
        self.0
            .iter()
            .rev()
            .find(|(d, _)| d == destination)
            .map_or(default, |(_, fate)| *fate)
    }

    /// Destinations that the user named and that the container does not have.
    #[must_use]
    pub fn unknown(&self, mounts: &[Mount]) -> Vec<String> {
        let unknown = self
            .0
            .iter()
            .filter(|(d, _)| !mounts.iter().any(|m| m.destination == *d));
        unknown
            .map(|(d, _)| format!("the container has no mount at {}", d.display()))
            .collect()
    }
}

/// A running container, and what stands against moving it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The container.
    pub container: Container,
    /// Each a reason why it cannot be moved, with a way out.
    pub objections: Vec<String>,
    /// What will be different afterwards.
    pub warnings: Vec<String>,
    /// Bytes of its image's layers on this host, for a target that lacks it; 0 where the runtime has no images.
    pub image_bytes: u64,
}

/// What a target says to a container before anything is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Each a reason why it cannot be made here, with a way out.
    pub objections: Vec<String>,
    /// What will be different afterwards.
    pub warnings: Vec<String>,
    /// The image is not here: it must be sent before the container can be made.
    pub lacks_image: bool,
}

/// What was changed at the source so that nothing starts the container again while it is being moved; enough to change it back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disarmed {
    /// The container, by full id.
    pub id: String,
    /// The restart policy that it had (as `podman update --restart` takes it).
    pub restart: Option<String>,
    /// The health check's action that it had.
    pub health: Option<String>,
    /// The systemd unit whose restart was switched off.
    pub unit: Option<String>,
    /// What could not be disarmed, or will be different, in words.
    pub warnings: Vec<String>,
}

/// A container's record at the target: known to its runtime, without processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedContainer {
    /// Who manages it.
    pub manager: Manager,
    /// Full id, which under podman is not the one at the source.
    pub id: String,
    /// Its name.
    pub name: String,
    /// podman's directory of it.
    pub static_dir: Option<PathBuf>,
    /// Its writable layer.
    pub upper: Option<PathBuf>,
    /// Root directory of a bundle.
    pub rootfs: Option<PathBuf>,
    /// Its log file.
    pub log: Option<PathBuf>,
    /// Its mounts, with the sources of this host.
    pub mounts: Vec<Mount>,
    /// The cgroup path that the images name, and the one here, as the host's root cgroup namespace sees them.
    pub cgroup_from: Option<String>,
    /// See `cgroup_from`.
    pub cgroup_to: Option<String>,
    /// The network namespace that it will join, where one must be there before the restore. podman makes its own for netavark networks and says so to the netavark shim.
    pub netns: Option<PathBuf>,
    /// Named volumes that did not exist before.
    pub made_volumes: Vec<String>,
    /// Directories that did not exist before, outermost first.
    pub made_dirs: Vec<PathBuf>,
}

impl CreatedContainer {
    /// Its cgroup v2 directory on this host, which is there as soon as the restore has begun.
    #[must_use]
    pub fn cgroup(&self) -> Option<PathBuf> {
        let path = self.cgroup_to.as_deref()?.trim_start_matches('/');
        // Nothing but a cgroup of its own is ever killed.
        (!path.is_empty()).then(|| Some(cgroup::mount().ok()??.join(path)))?
    }

    /// Kills what a restore left running. A CRIU that was killed after it made the tasks leaves them, and no runtime knows of them any more.
    pub(crate) fn kill_tasks(&self) -> Result<(), Error> {
        let Some(cgroup) = self.cgroup().filter(|cgroup| cgroup.exists()) else {
            return Ok(());
        };
        cgroup::kill(&cgroup)?;
        let until = Instant::now() + KILLED_WITHIN;
        while cgroup.exists() && !cgroup::pids(&cgroup)?.is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
        }
        match std::fs::remove_dir(&cgroup) {
            // The runtime has been quicker, or has cgroups below it that are its own to remove.
            Err(e)
                if !matches!(
                    e.raw_os_error(),
                    Some(libc::ENOENT | libc::EBUSY | libc::ENOTEMPTY)
                ) =>
            {
                Err(Error::file("removing", &cgroup, e))
            }
            _ => Ok(()),
        }
    }
}

/// What has become of the source's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AfterRelease {
    /// Name under which it is kept; none if it was removed.
    pub kept_as: Option<String>,
    /// What could not be done, or is to be known, in words.
    pub warnings: Vec<String>,
}

/// A container's runtime, on this host.
pub trait Runtime: Send + Sync {
    /// Looks at a running container. Changes nothing.
    ///
    /// # Errors
    /// There is none of this name, it does not run, or the runtime is missing or fails.
    fn inspect(&self, name: &str, mounts: &Mounts) -> Result<Inspected, Error>;

    /// At the target: what stands against making `container` here. Changes nothing.
    ///
    /// # Errors
    /// The runtime is missing or fails.
    fn accepts(&self, container: &Container) -> Result<Accepted, Error>;

    /// At the source: nothing shall start the container again by itself.
    ///
    /// # Errors
    /// Something that would start it again could not be switched off; all that was is switched on again.
    fn disarm(&self, container: &Container) -> Result<Disarmed, Error>;

    /// Undoes [`Runtime::disarm`]; goes on after an error and gives them all.
    fn rearm(&self, disarmed: &Disarmed) -> Vec<Error>;

    /// At the target: makes the container known to its runtime, without its processes.
    ///
    /// podman calls netavark meanwhile, which asks the agent: answer `setup` with [`podman::netavark::status`] and do nothing, and `teardown` with nothing.
    ///
    /// # Errors
    /// The runtime refuses; what was made is removed.
    fn create(&self, container: &Container, engine: &dyn Engine)
    -> Result<CreatedContainer, Error>;

    /// Removes what [`Runtime::create`] made; goes on after an error and gives them all.
    fn discard(&self, created: &CreatedContainer) -> Vec<Error>;

    /// At the target, after the restore: what is left over of it, and what the runtime needs to take over.
    fn settle(&self, created: &CreatedContainer) -> Vec<Error>;

    /// At the source, at `released`, while the checkpoint still runs: from the container's end on nobody can start it here, a supervisor that waits for
    /// just that neither. Said again, it changes nothing. `target` names where it went.
    ///
    /// # Errors
    /// A file of the runtime could not be written.
    fn bar(&self, container: &Container, target: &str) -> Result<(), Error>;

    /// At the source, after `released` and the end of the checkpoint: the record is kept, barred for good, or removed. `target` as in [`Runtime::bar`].
    ///
    /// # Errors
    /// The record could not be secured against a start.
    fn after_release(
        &self,
        container: &Container,
        policy: SourcePolicy,
        target: &str,
    ) -> Result<AfterRelease, Error>;

    /// At the source, after a dump that was cancelled: removes what podman left of it.
    fn after_abort(&self, container: &Container) -> Vec<Error>;
}

/// The runtime that a manager names.
#[must_use]
pub fn of(manager: Manager) -> &'static dyn Runtime {
    match manager {
        Manager::Podman => &podman::Podman,
        Manager::Runc => &oci::Direct(criu::flags::Oci::Runc),
        Manager::Crun => &oci::Direct(criu::flags::Oci::Crun),
        Manager::Bare => &bare::Bare,
    }
}

/// Removes a file or a directory tree; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let result = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("removing", path, e)),
        _ => Ok(()),
    }
}

/// Makes a directory with all above it; gives the outermost one that was not there.
pub(crate) fn make_dir(dir: &Path) -> Result<Option<PathBuf>, Error> {
    let made = dir
        .ancestors()
        .take_while(|dir| !dir.exists())
        .last()
        .map(Path::to_owned);
    std::fs::create_dir_all(dir).map_err(|e| Error::file("creating", dir, e))?;
    Ok(made)
}

/// At the target: the sources of bind mounts that are copied must be there before the container is made. Gives what was not there, outermost.
pub(crate) fn make_bind_sources(container: &Container) -> Result<Vec<PathBuf>, Error> {
    let mut made = Vec::new();
    for mount in container
        .mounts
        .iter()
        .filter(|m| m.kind == "bind" && m.fate == MountFate::Copy)
    {
        let Some(source) = mount.source.as_deref().filter(|source| !source.exists()) else {
            continue;
        };
        if mount.file {
            let above = source.parent().map(make_dir).transpose()?.flatten();
            std::fs::write(source, "").map_err(|e| Error::file("creating", source, e))?;
            made.push(above.unwrap_or_else(|| source.to_owned()));
        } else {
            made.extend(make_dir(source)?);
        }
    }
    Ok(made)
}
