//! This host, as far as a plan compares it and `check` shows it.
use std::{collections::BTreeSet, fs, path::Path, process::Command};

use netmig_core::proto::HostFacts;
use nix::sys::{statvfs::statvfs, utsname::uname};

/// Programs whose version matters, and the argument that asks for it.
const TOOLS: [&str; 7] = [
    "podman", "runc", "crun", "conmon", "netavark", "rsync", "ssh",
];

/// Everything that a plan compares.
///
/// `room` is where files and container images go, `images` where the images of memory lie.
pub fn facts(room: &Path, images: &Path) -> HostFacts {
    let uts = uname();
    let text = |field: Option<&std::ffi::OsStr>| {
        field
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    HostFacts {
        hostname: text(uts.as_ref().ok().map(|u| u.nodename())),
        arch: text(uts.as_ref().ok().map(|u| u.machine())),
        kernel: text(uts.as_ref().ok().map(|u| u.release())),
        criu: version("criu"),
        tools: TOOLS
            .iter()
            .filter_map(|tool| Some(((*tool).to_owned(), version(tool)?)))
            .collect(),
        cpu_flags: cpu_flags(),
        cgroup: if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            2
        } else {
            1
        },
        lsm: fs::read_to_string("/sys/kernel/security/lsm")
            .map(|lsm| {
                lsm.trim()
                    .split(',')
                    .filter(|l| !l.is_empty())
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default(),
        free_bytes: free(room),
        run_free_bytes: free(images),
        memory_available_bytes: memory_available(
            &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        ),
    }
}

/// Version that a program says it has; none if it is not there.
pub fn version(tool: &str) -> Option<String> {
    let asked = match tool {
        "ssh" => Command::new(tool).arg("-V").output(),
        _ => Command::new(tool).arg("--version").output(),
    }
    .ok()?;
    let said = [asked.stdout, asked.stderr].concat();
    first_version(&String::from_utf8_lossy(&said))
}

/// The first word that begins with a number and a dot, without what follows the digits and dots.
fn first_version(text: &str) -> Option<String> {
    text.split(|c: char| c.is_whitespace() || matches!(c, '_' | ','))
        .find_map(|word| {
            let word = word.trim_start_matches('v');
            let end = word
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .unwrap_or(word.len());
            let version = word[..end].trim_end_matches('.');
            (version.contains('.') && version.starts_with(|c: char| c.is_ascii_digit()))
                .then(|| version.to_owned())
        })
}

fn cpu_flags() -> Vec<String> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find_map(|line| {
        line.strip_prefix("flags")
            .or_else(|| line.strip_prefix("Features"))
    });
    let flags: BTreeSet<&str> = flags
        .unwrap_or_default()
        .trim_start_matches([':', ' ', '\t'])
        .split_whitespace()
        .collect();
    flags.into_iter().map(str::to_owned).collect()
}

fn free(room: &Path) -> u64 {
    let there = room
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    statvfs(there)
        .map(|fs| fs.blocks_available() * fs.fragment_size())
        .unwrap_or(0)
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn memory_available(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let meminfo = "MemTotal:        8148412 kB\nMemFree:          508228 kB\nMemAvailable:    6241300 kB\n";
        assert_eq!(memory_available(meminfo), 6_241_300 << 10);
        assert_eq!(memory_available("MemTotal: 1 kB\n"), 0);
        let here = facts(Path::new("/"), Path::new("/run/netmig/moves"));
        assert!(here.memory_available_bytes > 0 && here.run_free_bytes > 0);
    }

    #[test]
    fn versions_are_found_in_what_tools_say() {
        let said = [
            ("podman version 5.4.2\n", "5.4.2"),
            ("runc version 1.1.15+ds1\ncommit: 1.1.15\n", "1.1.15"),
            (
                "crun version 1.21\ncommit: 10269840aa07fb7e6b7e1acff6198692d8ff5c88\n",
                "1.21",
            ),
            ("Version: 4.2.1\n", "4.2.1"),
            ("rsync  version 3.4.1  protocol version 32\n", "3.4.1"),
            (
                "OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.1 1 Jul 2025\n",
                "10.0",
            ),
        ];
        for (text, version) in said {
            assert_eq!(first_version(text).as_deref(), Some(version), "{text}");
        }
        assert_eq!(first_version("command not found"), None);
    }
}
