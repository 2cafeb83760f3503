//! The control groups of a lab: `netmig-lab.NAME` in cgroup v2 and in each mounted v1 hierarchy.
//!
//! Each host has a group of its own in all of them and a cgroup namespace rooted there, so that what runs in it (CRIU mounts v1
//! hierarchies by itself and makes directories in them) can make groups only below, and one removal finds them all.
//!
//! Processor time alone is not divided between the hosts: what they run is scheduled as one host's processes would be. A group for each
//! made the scheduler's fairness between groups the largest thing that clients saw: on two processors kept busy, and with nothing moved,
//! some waited 0.5 to 3.6 s for their turn; with one group for all hosts, 15 to 20 ms.
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};

use super::until;

/// How long killed processes may take to leave their groups.
const PATIENCE: Duration = Duration::from_secs(10);

/// A mounted hierarchy.
struct Hierarchy {
    mount: PathBuf,
    unified: bool,
}

/// Makes the groups of a host, enters them, and makes this process's cgroup namespace rooted there.
///
/// In cgroup v2 it goes on into a leaf `init`: the root of the host's namespace must hold no process, else containers could not be
/// given controllers ("no internal processes", cgroups(7)).
///
/// # Errors
/// If there is no cgroup v2, or no group can be made there. A v1 hierarchy that refuses is left alone.
pub(super) fn enter(lab: &str, host: &str) -> io::Result<()> {
    let hierarchies = hierarchies()?;
    let mut roots = Vec::new();
    for hierarchy in &hierarchies {
        match hierarchy.enter(lab, host) {
            Ok(group) if hierarchy.unified => roots.push(group),
            Err(e) if hierarchy.unified => return Err(e),
            Ok(_) => {}
            Err(e) => eprintln!("{}: {e}: left alone", hierarchy.mount.display()),
        }
    }
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    let Some(root) = roots.first() else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "cgroup v2 is not mounted",
        ));
    };
    let leaf = root.join("init");
    fs::create_dir_all(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), "0")?;
    enable_controllers(root);
    Ok(())
}

/// Whether a lab of this name has no groups.
pub(super) fn none(lab: &str) -> bool {
    hierarchies().is_ok_and(|all| all.iter().all(|h| !h.top(lab).exists()))
}

/// Kills what is left in the lab's groups and removes them; gives what could not be removed.
pub(super) fn remove(lab: &str) -> Vec<String> {
    let all = match hierarchies() {
        Ok(all) => all,
        Err(e) => return vec![format!("/proc/self/mountinfo: {e}")],
    };
    all.iter()
        .map(|hierarchy| hierarchy.top(lab))
        .filter(|top| top.exists())
        .filter_map(|top| {
            let removed = kill(&top).and_then(|()| {
                let mut last = Ok(());
                until(PATIENCE, || {
                    last = remove_tree(&top);
                    last.is_ok()
                });
                last
            });
            removed.err().map(|e| format!("{}: {e}", top.display()))
        })
        .collect()
}

impl Hierarchy {
    /// Version 1's `cpu`, perhaps with others at the same mount.
    fn divides_time(&self) -> bool {
        !self.unified && self.mount.join("cpu.shares").exists()
    }

    fn top(&self, lab: &str) -> PathBuf {
        self.mount.join(format!("netmig-lab.{lab}"))
    }

    fn enter(&self, lab: &str, host: &str) -> io::Result<PathBuf> {
        let top = self.top(lab);
        let group = if self.divides_time() {
            top.clone()
        } else {
            top.join(host)
        };
        fs::create_dir_all(&group)?;
        if self.unified {
            enable_controllers(&self.mount);
            enable_controllers(&top);
        }
        // A new group of v1's cpuset takes no process until it has processors and memory nodes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if !self.unified && self.mount.join(file).exists() {
                let all = fs::read(self.mount.join(file))?;
                fs::write(top.join(file), &all)?;
                fs::write(group.join(file), &all)?;
            }
        }
        fs::write(group.join("cgroup.procs"), "0")?;
        Ok(group)
    }
}

/// Gives the children of a v2 group what controllers there are but `cpu`, see above. A controller that cannot be given is none that containers
/// need here.
fn enable_controllers(group: &Path) {
    let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace().filter(|c| *c != "cpu") {
        let control = group.join("cgroup.subtree_control");
        if let Err(e) = fs::write(control, format!("+{controller}")) {
            eprintln!("{}: {controller}: {e}: left alone", group.display());
        }
    }
}

fn kill(group: &Path) -> io::Result<()> {
    if group.join("cgroup.kill").exists() {
        return fs::write(group.join("cgroup.kill"), "1");
    }
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            kill(&entry.path())?;
        }
    }
    for pid in fs::read_to_string(group.join("cgroup.procs"))?.lines() {
        let Ok(pid) = pid.parse::<i32>() else {
            continue;
        };
        // SAFETY: kill takes two integers; a group of the lab's holds only processes of the lab, and 0 stands for none seen from here.
        if pid > 0 && unsafe { libc::kill(pid, libc::SIGKILL) } < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ESRCH) {
                return Err(error);
            }
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Each hierarchy once, from mountinfo (proc(5)).
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut seen = Vec::new();
    let mut all = Vec::new();
    for line in mountinfo.lines() {
        let fields = line.split(' ').collect::<Vec<_>>();
        let Some(dash) = fields.iter().position(|field| *field == "-") else {
            continue;
        };
        let (Some(device), Some(root), Some(mount), Some(kind)) = (
            fields.get(2),
            fields.get(3),
            fields.get(4),
            fields.get(dash + 1),
        ) else {
            continue;
        };
        if !matches!(*kind, "cgroup" | "cgroup2") || *root != "/" || seen.contains(device) {
            continue;
        }
        seen.push(*device);
        all.push(Hierarchy {
            mount: PathBuf::from(*mount),
            unified: *kind == "cgroup2",
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hierarchy_counts_once() {
        let all = parse(
            "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
             32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             33 30 0:28 / /mnt/again rw - cgroup2 cgroup2 rw\n\
             34 30 0:29 /deep /mnt/part rw - cgroup cgroup rw,memory\n",
        );
        let told = all
            .iter()
            .map(|h| (h.mount.to_str(), h.unified))
            .collect::<Vec<_>>();
        assert_eq!(
            told,
            [
                (Some("/sys/fs/cgroup/cpu"), false),
                (Some("/sys/fs/cgroup/unified"), true)
            ]
        );
    }
}
