//! The tasks of a container: all processes of the pid namespace of its first one.
use std::{fs, io, path::PathBuf};

/// /proc could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}")]
pub struct Error {
    /// What was tried.
    pub what: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Pids, as the caller's own pid namespace sees them, of every process in the pid namespace of `init_pid` or in one below it, `init_pid` first.
///
/// A process that ends meanwhile is left out. For a list that holds, the tasks must be stopped.
///
/// # Errors
/// `init_pid` is gone, or /proc cannot be listed.
pub fn tasks(init_pid: i32) -> Result<Vec<i32>, Error> {
    let ns = pid_namespace(init_pid)?;
    let mut found = Vec::new();
    let mut nested = Vec::new();
    for pid in all_pids()? {
        match pid_namespace(pid) {
            Ok(other) if other == ns => found.push(pid),
            // Deeper namespaces show in the NSpid line: one level more than the caller's own for each.
            Ok(_) if level(pid) > level(init_pid) => nested.push(pid),
            _ => {}
        }
    }
    for pid in nested {
        if descends(pid, &found) {
            found.push(pid);
        }
    }
    found.sort_unstable_by_key(|&pid| (pid != init_pid, pid));
    Ok(found)
}

/// Pid of a process as the innermost pid namespace that it lives in sees it.
///
/// # Errors
/// The process is gone.
pub fn in_ns_pid(pid: i32) -> Result<i32, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let text = fs::read_to_string(&path).map_err(|source| Error {
        what: "reading",
        path: path.clone(),
        source,
    })?;
    ns_pids(&text).last().copied().ok_or_else(|| Error {
        what: "finding NSpid in",
        path,
        source: io::ErrorKind::InvalidData.into(),
    })
}

/// The processes of this host, as they are listed at the moment.
///
/// # Errors
/// /proc cannot be read.
pub(crate) fn all_pids() -> Result<Vec<i32>, Error> {
    let error = |source| Error {
        what: "listing",
        path: "/proc".into(),
        source,
    };
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").map_err(error)? {
        let entry = entry.map_err(error)?;
        pids.extend(
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    Ok(pids)
}

fn pid_namespace(pid: i32) -> Result<PathBuf, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/pid"));
    fs::read_link(&path).map_err(|source| Error {
        what: "reading",
        path,
        source,
    })
}

fn level(pid: i32) -> usize {
    fs::read_to_string(format!("/proc/{pid}/status")).map_or(0, |text| ns_pids(&text).len())
}

fn ns_pids(status: &str) -> Vec<i32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .map(|pids| {
            pids.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect()
        })
        .unwrap_or_default()
}

/// Whether a parent of `pid` is one of `known`.
fn descends(mut pid: i32, known: &[i32]) -> bool {
    // A pid namespace nests at most 32 deep, but its processes may be children of children: stop at init.
    while pid > 1 {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            return false;
        };
        let parent = text
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .and_then(|p| p.trim().parse().ok());
        let Some(parent) = parent else { return false };
        if known.contains(&parent) {
            return true;
        }
        pid = parent;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_namespace_holds_this_process() {
        let me = i32::try_from(std::process::id()).unwrap();
        let all = tasks(me).unwrap();
        assert_eq!(all[0], me);
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(in_ns_pid(me).unwrap(), *ns_pids(&status).last().unwrap());
    }

    #[test]
    fn innermost_pid_is_last() {
        assert_eq!(
            ns_pids("Name:\tx\nNSpid:\t4711\t12\t1\nNSpgid:\t4711\n"),
            [4711, 12, 1]
        );
    }

    #[test]
    fn gone_process_is_named() {
        let error = tasks(i32::MAX).unwrap_err().to_string();
        assert!(error.contains("/proc/2147483647/ns/pid"), "{error}");
    }
}
