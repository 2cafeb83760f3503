//! Starting a program in its network namespace, so that the sockets it makes by itself are there too.
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    os::{
        fd::AsFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sched::{CloneFlags, setns},
    unistd,
};

use super::{Error, cgroup, file, programs};

/// What to start and where.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Program and arguments.
    pub command: &'a [String],
    /// Working directory.
    pub directory: Option<&'a Path>,
    /// Variables added to this process's environment.
    pub environment: &'a BTreeMap<String, String>,
    /// Network namespace.
    pub netns: &'a Path,
    /// cgroup, which is there.
    pub cgroup: &'a Path,
    /// Where its output is appended.
    pub log: &'a Path,
}

/// Starts it in a session of its own.
///
/// # Errors
/// Namespace, cgroup or log cannot be opened, or the program cannot be executed.
pub fn spawn(start: &Start<'_>) -> Result<Child, Error> {
    let open = |path: &Path, options: &mut OpenOptions| {
        options.open(path).map_err(|e| file("opening", path, e))
    };
    let log = open(
        start.log,
        OpenOptions::new().create(true).append(true).mode(0o600),
    )?;
    let errors = log
        .try_clone()
        .map_err(|e| file("duplicating", start.log, e))?;
    let netns = open(start.netns, OpenOptions::new().read(true))?;
    let procs = open(
        &start.cgroup.join("cgroup.procs"),
        OpenOptions::new().write(true),
    )?;
    let program = Path::new(&start.command[0]);
    let mut command = Command::new(program);
    command
        .args(&start.command[1..])
        .envs(start.environment)
        .env(programs::VARIABLE, programs::SOCKET)
        .current_dir(start.directory.unwrap_or(Path::new("/")))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    // SAFETY: setsid, write and setns are async-signal-safe, and both files were opened before.
    unsafe {
        command.pre_exec(move || {
            unistd::setsid()?;
            unistd::write(procs.as_fd(), b"0")?;
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(())
        })
    };
    command.spawn().map_err(|e| file("starting", program, e))
}

/// The cgroup of a program that netmig starts, as a path in the hierarchy.
#[must_use]
pub fn cgroup_of(name: &str) -> String {
    format!("/netmig-handoff-{name}")
}

/// Its directory.
///
/// # Errors
/// There is no cgroup2.
pub fn cgroup_dir(name: &str) -> Result<PathBuf, Error> {
    let mount = cgroup::mount()?.ok_or_else(|| {
        Error::Unfit("there is no cgroup2 mount to keep the program together".to_owned())
    })?;
    Ok(mount.join(cgroup_of(name).trim_start_matches('/')))
}

/// Puts this process into the program's cgroup: it ends with the program when a move is discarded.
pub(super) fn enter_cgroup(name: &str) -> Result<(), Error> {
    let path = cgroup_dir(name)?.join("cgroup.procs");
    File::options()
        .write(true)
        .open(&path)
        .and_then(|mut procs| procs.write_all(b"0"))
        .map_err(|e| file("entering", &path, e))
}

/// The last lines of a log, for an operator.
#[must_use]
pub fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(1024)..]).into_owned();
    text.trim().to_owned()
}
