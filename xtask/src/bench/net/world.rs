//! Network namespaces of the bench's own, which end with it.
use std::{fs::File, path::Path, process::Command, thread};

use anyhow::{Context, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// The bridge of what is copied.
pub(super) const ORIGINALS: &str = "br0";
/// The bridge of the copies: a second station with an address of the first would be a duplicate.
pub(super) const COPIES: &str = "br1";

/// Runs `bench` on a thread in mount and network namespaces of its own, with an empty /run and two bridges; nothing outlives it.
pub(super) fn alone<T: Send>(
    bench: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .context("leaving the host's namespaces")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("making the mounts private")?;
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)
            .context("mounting an empty /run")?;
        ip("link set lo up")?;
        for bridge in [ORIGINALS, COPIES] {
            ip(&format!("link add {bridge} type bridge mcast_snooping 0"))?;
            ip(&format!("link set {bridge} up"))?;
        }
        bench()
    })
}

/// Makes a namespace with a link `eth0` on `bridge`, up.
pub(super) fn container(name: &str, bridge: &str) -> anyhow::Result<()> {
    ip(&format!("netns add {name}"))?;
    ip(&format!(
        "link add v-{name} type veth peer name eth0 netns {name}"
    ))?;
    ip(&format!("link set v-{name} master {bridge} up"))?;
    ip(&format!("-n {name} link set lo up"))?;
    ip(&format!("-n {name} link set eth0 up"))
}

/// Takes the link of a namespace away.
pub(super) fn unplug(name: &str) -> anyhow::Result<()> {
    ip(&format!("-n {name} link del eth0"))
}

/// Removes a namespace, whoever has made it. It is taken down some time later.
pub(super) fn remove(name: &str) -> anyhow::Result<()> {
    ip(&format!("netns del {name}"))
}

/// Runs `f` in a namespace; what it starts is in it too.
pub(super) fn within<T: Send>(
    name: &str,
    f: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    on_a_thread(|| {
        let path = Path::new("/run/netns").join(name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering {}", path.display()))?;
        f()
    })
}

fn on_a_thread<T: Send>(f: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    thread::scope(|scope| {
        scope
            .spawn(f)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("starting ip")?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
