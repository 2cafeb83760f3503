//! By what a lab can be seen on the machine.
use std::{collections::BTreeSet, fs, path::Path};

use netmig_lab::Lab;

use crate::wait_until;

/// By what a lab could be seen on the machine, noted while it is up.
pub struct Traces {
    name: String,
    /// `net:[4026532000]` and the like of its keeper and hosts.
    namespaces: BTreeSet<String>,
}

impl Traces {
    pub fn of(lab: &Lab) -> Self {
        let pids = lab
            .hosts()
            .iter()
            .map(|host| host.pid())
            .chain([lab.state().keeper.pid]);
        let mut all = pids
            .flat_map(|pid| namespaces(format!("/proc/{pid}")))
            .collect::<BTreeSet<_>>();
        for own in namespaces("/proc/self") {
            all.remove(&own);
        }
        // Seven kinds for each host (net, mnt, pid, pid for children, uts, ipc, cgroup), net and mnt for the keeper.
        assert!(all.len() >= 3 * 6 + 2, "{all:?}");
        Self {
            name: lab.name().to_owned(),
            namespaces: all,
        }
    }

    /// Processes, mounts, control groups and directories of it that are there now.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let process = entry.path();
            // One that has ended waits for its parent, which on a machine without an init of its own may never ask.
            let status = fs::read_to_string(process.join("status")).unwrap_or_default();
            if !process.join("ns").exists() || status.contains("\nState:\tZ") {
                continue;
            }
            let inside = namespaces(process)
                .iter()
                .any(|ns| self.namespaces.contains(ns));
            let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if inside || groups.contains(&self.name) {
                left.push(entry.path().display().to_string());
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&self.name))
                .map(str::to_owned),
        );
        for top in ["/sys/fs/cgroup", "/run/netmig-lab", "/run/netns"] {
            named(Path::new(top), &self.name, &mut left);
        }
        left
    }

    /// What was killed a moment ago may still be on its way out.
    #[track_caller]
    pub fn none_left(&self) {
        wait_until(|| self.left().is_empty());
        assert_eq!(self.left(), Vec::<String>::new());
    }
}

fn namespaces(process: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(process.as_ref().join("ns"))
        .into_iter()
        .flatten()
        .flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// Adds each directory below `top` whose name holds `name`.
fn named(top: &Path, name: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(name) {
            found.push(entry.path().display().to_string());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            named(&entry.path(), name, found);
        }
    }
}
