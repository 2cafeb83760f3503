//! What a plan must know of a container's tasks: what CRIU cannot carry, and how much memory there is to carry. Sockets, Unix ones with a peer outside
//! too, are the matter of the sock module.
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{cgroup, task};

/// A task cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of tasks.
    #[error(transparent)]
    Task(#[from] task::Error),
    /// A file of /proc.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Number of processes.
    pub tasks: usize,
    /// Bytes of memory that the engine will write, as an estimate from above: private and shared pages in memory or swap, without pages of files.
    pub memory_bytes: u64,
    /// Each a reason why the engine cannot carry the container, with a way out; which task it is about is named.
    pub objections: Vec<String>,
    /// What will be different afterwards.
    pub warnings: Vec<String>,
}

/// Walks all tasks of the pid namespace of `init_pid`, while they run. A task that ends meanwhile is left out.
///
/// # Errors
/// `init_pid` is gone.
pub fn walk(init_pid: i32) -> Result<Facts, Error> {
    let pids = task::tasks(init_pid)?;
    let home = namespaces(init_pid)?;
    let mut facts = Facts {
        tasks: pids.len(),
        ..Facts::default()
    };
    let own = cgroup::of(init_pid).ok();
    for &pid in &pids {
        if let (Some(own), Ok(other)) = (&own, cgroup::of(pid))
            && *own != other
        {
            let objection = format!(
                "{} is in a cgroup of its own ({}), which is not made at the target",
                who(pid),
                other.display()
            );
            facts.objections.push(objection);
        }
        let Ok(found) = look(pid, init_pid, &home) else {
            continue;
        };
        facts.memory_bytes += memory(pid).unwrap_or(0);
        facts.objections.extend(found);
    }
    if let Some(bytes) = cgroup::of(init_pid)
        .ok()
        .as_deref()
        .and_then(cgroup::memory)
    {
        // memory.current counts page cache too, which stays; the sum over tasks counts shared pages once a task.
        facts.memory_bytes = facts.memory_bytes.min(bytes);
    }
    Ok(facts)
}

/// Links of /proc/PID/ns by name.
fn namespaces(pid: i32) -> Result<BTreeMap<String, PathBuf>, Error> {
    let dir = PathBuf::from(format!("/proc/{pid}/ns"));
    let error = |source| Error::File {
        what: "reading",
        path: dir.clone(),
        source,
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        found.insert(
            entry.file_name().to_string_lossy().into_owned(),
            fs::read_link(entry.path()).map_err(error)?,
        );
    }
    Ok(found)
}

/// What stands against one task.
fn look(pid: i32, init_pid: i32, home: &BTreeMap<String, PathBuf>) -> Result<Vec<String>, Error> {
    let who = who(pid);
    let mut found = Vec::new();
    for (name, place) in namespaces(pid)? {
        // CRIU carries nested mount, UTS and IPC namespaces; pid, user and time ones not, and netmig rebuilds one network.
        let matters = ["pid", "user", "net", "time"].contains(&name.as_str());
        if matters && home.get(&name).is_some_and(|own| *own != place) {
            found.push(format!("{who} is in a {name} namespace of its own inside the container: nested ones are not carried; end it"));
        }
    }
    if session_from_outside(pid, init_pid) {
        found.push(format!(
            "{who} was started from outside (exec): end that session"
        ));
    }
    let dir = PathBuf::from(format!("/proc/{pid}/fd"));
    let entries = fs::read_dir(&dir).map_err(|source| Error::File {
        what: "listing",
        path: dir,
        source,
    })?;
    for entry in entries.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let text = target.to_string_lossy();
        let fd = entry.file_name().to_string_lossy().into_owned();
        found.extend(descriptor(&who, &fd, &text, &entry.path()));
    }
    Ok(found)
}

/// What stands against one descriptor.
fn descriptor(who: &str, fd: &str, target: &str, link: &Path) -> Option<String> {
    if let Some(kind) = target.strip_prefix("anon_inode:") {
        let kind = kind.trim_matches(['[', ']']);
        return match kind {
            "io_uring" => Some(format!(
                "{who} uses io_uring (fd {fd}), which cannot be carried: turn it off in the program"
            )),
            "bpf-map" | "bpf-prog" | "bpf_link" | "bpf-link" | "perf_event" | "userfaultfd"
            | "kvm-vm" | "kvm-vcpu" | "fanotify" | "seccomp notify" => Some(format!(
                "{who} holds a descriptor of kind {kind} (fd {fd}), which cannot be carried"
            )),
            _ => None,
        };
    }
    if !target.starts_with('/') {
        return None;
    }
    let meta = fs::metadata(link).ok()?;
    let (kind, number) = (meta.file_type(), meta.rdev());
    if kind.is_block_device() {
        return Some(format!(
            "{who} has the block device {target} open (fd {fd}): close it"
        ));
    }
    if !kind.is_char_device() {
        return None;
    }
    match (nix::sys::stat::major(number), nix::sys::stat::minor(number)) {
        // null, zero, full, random, urandom, kmsg.
        (1, 3 | 5 | 7 | 8 | 9 | 11) => None,
        // Unix98 pty, tty, console, ptmx.
        (136..=143, _) | (4, _) | (5, _) => Some(format!(
            "{who} has the terminal {target} open (fd {fd}): run the container without one"
        )),
        (10, 200) => Some(format!(
            "{who} has a tun or tap device open (fd {fd}): its link is not carried"
        )),
        _ => Some(format!(
            "{who} has the device {target} open (fd {fd}): its state is not carried; close it"
        )),
    }
}

/// A process whose parent is outside the container and that is not its first one was put there by `exec`.
fn session_from_outside(pid: i32, init_pid: i32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .and_then(|p| p.trim().parse::<i32>().ok());
    let inside = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    match parent {
        Some(parent) if pid != init_pid => {
            inside(parent) != inside(init_pid) && inside(pid) == inside(init_pid)
        }
        _ => false,
    }
}

/// `redis-server (pid 1 in the container)`.
fn who(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let inside = task::in_ns_pid(pid).unwrap_or(pid);
    format!("{} (pid {inside} in the container)", name.trim())
}

/// Bytes that the engine writes of a process: anonymous and shared memory in RAM and swap. Shared memory counts for its part (PSS).
fn memory(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(
        ["Pss_Anon:", "Pss_Shmem:", "SwapPss:"]
            .iter()
            .filter_map(|name| kilobytes(&text, name))
            .sum(),
    )
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_walked() {
        let me = i32::try_from(std::process::id()).unwrap();
        let home = namespaces(me).unwrap();
        look(me, me, &home).unwrap();
        assert!(memory(me).unwrap() > 4096);
    }

    #[test]
    fn descriptors_that_cannot_be_carried() {
        let none = Path::new("/dev/null");
        assert!(
            descriptor("x", "3", "anon_inode:[io_uring]", none)
                .unwrap()
                .contains("io_uring")
        );
        assert_eq!(descriptor("x", "3", "anon_inode:[eventpoll]", none), None);
        assert_eq!(descriptor("x", "3", "socket:[1]", none), None);
        assert_eq!(descriptor("x", "0", "/dev/null", none), None);
        let tty = Path::new("/dev/tty");
        if tty.exists() {
            assert!(
                descriptor("x", "0", "/dev/tty", tty)
                    .unwrap()
                    .contains("terminal")
            );
        }
    }

    #[test]
    fn memory_by_kinds() {
        let text = "Pss: 900 kB\nPss_Anon:            100 kB\nPss_Shmem:            20 kB\nSwapPss:               0 kB\n";
        assert_eq!(kilobytes(text, "Pss_Anon:"), Some(100 << 10));
        assert_eq!(kilobytes(text, "Pss_Missing:"), None);
    }
}
