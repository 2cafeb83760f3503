//! What a host has while no move is under way: it must be as much after many moves as after half of them.
use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use crate::{Error, Host};

/// A line for each kind: its name and how many there are.
const COUNT: &str = r#"
agent=$(pgrep -f '[n]etmig-user agent --resident' | head -n 1)
count() { printf '%s\t%s\n' "$1" "$2"; }
count 'descriptors of the agent' "$(ls /proc/$agent/fd | wc -l)"
count 'BPF maps of the agent' "$(cat /proc/$agent/fdinfo/* | grep -c ^map_id || true)"
count 'BPF programs of the agent' "$(cat /proc/$agent/fdinfo/* | grep -c ^prog_id || true)"
count 'pinned BPF objects' "$(find /sys/fs/bpf -type f | wc -l)"
count 'network devices' "$(ls /sys/class/net | wc -l)"
count 'network namespaces' "$(ls /run/netns | wc -l)"
count 'sockets outside the container' "$(awk '/^sockets:/ {print $3}' /proc/net/sockstat)"
count 'mounts' "$(wc -l </proc/self/mounts)"
count 'control groups' "$(find /sys/fs/cgroup -type d | wc -l)"
count 'files under /run/netmig' "$(find /run/netmig -type f | wc -l)"
count 'processes' "$(ps -e -o stat= | grep -vc Z)"
"#;
/// The agent's memory, KiB.
const MEMORY: &str = r#"
agent=$(pgrep -f '[n]etmig-user agent --resident' | head -n 1)
awk '/^RssAnon:/ {print $2}' /proc/$agent/status"#;
/// What may be in the making or on its way out when it is looked at.
const SETTLES: Duration = Duration::from_secs(5);

/// How many of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held(BTreeMap<String, u64>);

/// One kind of which there is more than there was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grown {
    /// On which host.
    pub host: String,
    /// What.
    pub what: String,
    /// How many there were.
    pub before: u64,
    /// How many there are.
    pub after: u64,
}

impl fmt::Display for Grown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            what,
            before,
            after,
        } = self;
        write!(f, "{what} on {host}: {before} before, {after} now")
    }
}

impl Held {
    /// What `host` has, while nothing moves.
    ///
    /// # Errors
    /// The host does not answer, or has no agent.
    pub fn by(host: &dyn Host) -> Result<Self, Error> {
        let text = host.sh(COUNT)?;
        let lines = text.lines().filter_map(|line| {
            let (name, count) = line.split_once('\t')?;
            Some((name.to_owned(), count.parse().ok()?))
        });
        Ok(Self(lines.collect()))
    }

    /// Of what there is more than `before`.
    #[must_use]
    pub fn beyond(&self, before: &Self, host: &str) -> Vec<Grown> {
        let grown = self.0.iter().filter_map(|(what, &after)| {
            let before = before.0.get(what).copied().unwrap_or_default();
            (after > before).then(|| Grown {
                host: host.to_owned(),
                what: what.clone(),
                before,
                after,
            })
        });
        grown.collect()
    }
}

/// The memory of the host's agent, KiB.
///
/// # Errors
/// As [`Held::by`].
pub fn memory(host: &dyn Host) -> Result<u64, Error> {
    Ok(host.sh(MEMORY)?.trim().parse().unwrap_or_default())
}

/// Of what there is more on `host` than `before`, also after a moment.
///
/// # Errors
/// As [`Held::by`].
pub fn grown(host: &dyn Host, before: &Held) -> Result<Vec<Grown>, Error> {
    let end = Instant::now() + SETTLES;
    loop {
        let held = Held::by(host)?;
        let grown = held.beyond(before, host.name());
        if grown.is_empty() || Instant::now() > end {
            return Ok(grown);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(counts: &[(&str, u64)]) -> Held {
        Held(counts.iter().map(|&(w, n)| (w.to_owned(), n)).collect())
    }

    #[test]
    fn more_is_named_and_less_is_not() {
        let before = held(&[("mounts", 5), ("processes", 9)]);
        let after = held(&[("mounts", 6), ("processes", 8), ("pins", 1)]);
        let grown: Vec<_> = after
            .beyond(&before, "a")
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            grown,
            ["mounts on a: 5 before, 6 now", "pins on a: 0 before, 1 now"]
        );
    }
}
