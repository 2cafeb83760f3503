//! The usual way to move a container: checkpoint with its connections, copy, restore. What netmig is measured against.
use serde_json::Value;

use super::{CONTAINER, Error};
use crate::{Cmd, Host, peers::clock};

const ARCHIVE: &str = "/tmp/demo-checkpoint.tar";

/// Where a machine has version 1 hierarchies of control groups mounted, CRIU saves them too and cannot restore cpuset's in a group made
/// by podman: it is told to leave control groups to the runtime. podman has no option for that, its runtime has.
const RUNTIME: &str = "/run/by-hand/crun";
const RUNTIME_SCRIPT: &str = r#"#!/bin/sh
n=$#
while [ $n -gt 0 ]; do
    word=$1; shift; n=$((n - 1)); set -- "$@" "$word"
    case $word in checkpoint|restore) set -- "$@" --manage-cgroups-mode=ignore ;; esac
done
exec /usr/bin/crun "$@"
"#;
const CONF: &str = "/run/by-hand/containers.conf";
const CONF_TEXT: &str = "[engine.runtimes]\ncrun = [\"/run/by-hand/crun\"]\n";

/// A move by hand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByHand {
    /// How long CRIU held the processes frozen to dump them (its statistics' `frozen_time`), ms.
    pub frozen_ms: f64,
    /// How long CRIU took to restore them (its statistics' `restore_time`), ms.
    pub restore_ms: f64,
    /// From the first command to the end of the last, CLOCK_REALTIME ns.
    pub began_ns: u64,
    /// See `began_ns`.
    pub ended_ns: u64,
}

/// Moves the container: three commands on `from`, as a person would type them, then the record that is left there is removed.
///
/// # Errors
/// What podman or scp said, or statistics that are not there.
pub fn move_by_hand(from: &dyn Host, to: &dyn Host) -> Result<ByHand, Error> {
    for host in [from, to] {
        host.write(RUNTIME, RUNTIME_SCRIPT.as_bytes(), 0o755)?;
        host.write(CONF, CONF_TEXT.as_bytes(), 0o644)?;
    }
    let variable = format!("CONTAINERS_CONF_OVERRIDE={CONF}");
    let began_ns = clock::now_ns();
    let checkpoint = Cmd::new([
        "env",
        &variable,
        "podman",
        "container",
        "checkpoint",
        "--export",
        ARCHIVE,
        "--compress",
        "none",
        "--tcp-established",
        "--print-stats",
        CONTAINER,
    ]);
    let dumped = from.run_cmd(&checkpoint)?;
    from.run(&["scp", "-q", ARCHIVE, &format!("{}:{ARCHIVE}", to.name())])?;
    let restored = from.run(&[
        "ssh",
        to.name(),
        "env",
        &variable,
        "podman",
        "container",
        "restore",
        "--import",
        ARCHIVE,
        "--tcp-established",
        "--print-stats",
    ])?;
    let ended_ns = clock::now_ns();
    from.run(&["podman", "rm", "--force", "--time", "0", CONTAINER])?;
    for host in [from, to] {
        host.run(&["rm", "-f", ARCHIVE])?;
    }
    Ok(ByHand {
        frozen_ms: statistic(&dumped, "frozen_time")?,
        restore_ms: statistic(&restored, "restore_time")?,
        began_ns,
        ended_ns,
    })
}

/// A time of CRIU's statistics, which podman prints in microseconds, as ms.
fn statistic(text: &str, name: &str) -> Result<f64, Error> {
    let told = || {
        let json = text.find('{').map(|at| &text[at..])?;
        let value: Value = serde_json::Deserializer::from_str(json)
            .into_iter()
            .next()?
            .ok()?;
        value["container_statistics"][0]["criu_statistics"][name].as_f64()
    };
    told().map(|us| us / 1000.0).ok_or_else(|| Error::Client {
        name: "podman".to_owned(),
        said: format!("no statistic {name} in `{text}`"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_found_behind_other_output() {
        let text = "abc\n{ \"podman_checkpoint_duration\": 9, \"container_statistics\": [ { \"Id\": \"x\", \
                    \"criu_statistics\": { \"frozen_time\": 123456, \"pages_written\": 7 } } ] }\n";
        assert!((statistic(text, "frozen_time").expect("there") - 123.456).abs() < 1e-9);
        assert!(statistic(text, "restore_time").is_err());
        assert!(statistic("abc", "frozen_time").is_err());
    }
}
