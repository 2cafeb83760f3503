//! `netmig-user check`: what this host can do, one line each, with what is lost without it.
use std::{fs, path::Path, process::ExitCode};

use anyhow::Result;
use serde::Serialize;

use super::args;
use crate::{agent::paths, host, sock};

/// One line.
#[derive(Serialize)]
struct Line {
    name: &'static str,
    ok: bool,
    found: String,
    lost: Option<&'static str>,
}

impl Line {
    fn new(name: &'static str, found: Option<String>, lost: &'static str) -> Self {
        let ok = found.is_some();
        Self {
            name,
            ok,
            found: found.unwrap_or_else(|| "missing".to_owned()),
            lost: (!ok).then_some(lost),
        }
    }
}

/// Prints them; fails if a move from or to this host is impossible.
pub fn run(args: &args::Check) -> Result<ExitCode> {
    let facts = host::facts(&paths::state_moves(), &paths::run_moves());
    let tool = |name: &str| {
        facts
            .tools
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, version)| version.clone())
    };
    let runtime = ["podman", "runc", "crun"]
        .iter()
        .find_map(|name| tool(name));
    let criu_fits = facts
        .criu
        .clone()
        .filter(|version| !criu_is_too_old(version, &facts.kernel));
    let needed = [
        Line::new(
            "kernel",
            at_least(&facts.kernel, (6, 1)).then(|| facts.kernel.clone()),
            "nothing works before 6.1: the gate's programs do not load",
        ),
        Line::new(
            "root",
            nix::unistd::geteuid().is_root().then(|| "yes".to_owned()),
            "every step needs it",
        ),
        Line::new(
            "btf",
            exists("/sys/kernel/btf/vmlinux"),
            "the kernel's types cannot be looked up",
        ),
        Line::new(
            "bpffs",
            exists("/sys/fs/bpf").filter(|_| mounted("/sys/fs/bpf")),
            "the gate cannot be pinned: mount -t bpf bpf /sys/fs/bpf",
        ),
        Line::new(
            "cgroup2",
            (facts.cgroup == 2).then(|| "at /sys/fs/cgroup".to_owned()),
            "a container cannot be frozen by netmig itself",
        ),
        Line::new(
            "criu",
            criu_fits,
            "no container can be dumped or restored (kernels from 6.16 need CRIU 4.2)",
        ),
        Line::new(
            "runtime",
            runtime,
            "there is nothing to move a container from or to: podman, runc or crun",
        ),
        Line::new("ssh", tool("ssh"), "no target can be reached from here"),
        Line::new(
            "rsync",
            tool("rsync"),
            "files cannot be copied while the container runs",
        ),
    ];
    let slow = sock::slow_dump();
    let useful = [
        Line::new(
            "tcx",
            at_least(&facts.kernel, (6, 6)).then(|| "links".to_owned()),
            "the gate uses clsact filters, which are not pinned",
        ),
        Line {
            found: slow
                .clone()
                .unwrap_or_else(|| "connections are read in one pass".to_owned()),
            ..Line::new(
                "survey",
                slow.is_none().then(String::new),
                "every connection is read by some hundred system calls, within the blackout",
            )
        },
        Line::new("podman", tool("podman"), "podman containers"),
        Line::new("runc", tool("runc"), "runc containers"),
        Line::new("crun", tool("crun"), "crun containers"),
    ];
    let able = needed.iter().all(|line| line.ok);
    let lines: Vec<&Line> = needed.iter().chain(&useful).collect();
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(
                &serde_json::json!({"schema": "netmig.check/1", "able": able, "host": facts, "lines": lines})
            )?
        );
    } else {
        for line in lines {
            let lost = line
                .lost
                .map(|lost| format!("  without it: {lost}"))
                .unwrap_or_default();
            println!(
                "{:2} {:8} {}{lost}",
                if line.ok { "ok" } else { "--" },
                line.name,
                line.found
            );
        }
    }
    Ok(if able {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn exists(path: &str) -> Option<String> {
    Path::new(path).exists().then(|| path.to_owned())
}

fn mounted(at: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| {
        mounts
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(at))
    })
}

fn at_least(version: &str, least: (u32, u32)) -> bool {
    numbers(version) >= least
}

/// CRIU before 4.2 says "Looks good" on kernels from 6.16 and then cannot dump a TCP socket.
fn criu_is_too_old(criu: &str, kernel: &str) -> bool {
    numbers(kernel) >= (6, 16) && numbers(criu) < (4, 2)
}

fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version
        .split(['.', '-', '+'])
        .map_while(|part| part.parse().ok());
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
