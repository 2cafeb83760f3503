//! The file system of a host: an overlay of the test root with all that is its own.
use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
};

use anyhow::Context as _;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, pivot_root},
};

use super::{
    options::{HostSpec, Spec, below},
    state,
};

/// Device nodes of the machine that a host has; those that the machine lacks are left out.
const DEVICES: [&str; 8] = [
    "null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun",
];

/// Puts it together and makes it this mount namespace's root.
pub(super) fn make(spec: &Spec, host: &HostSpec) -> anyhow::Result<()> {
    let base = state::directory(&spec.name).join(&host.name);
    fs::create_dir_all(&base).with_context(|| format!("creating {}", base.display()))?;
    let none = None::<&str>;
    tmpfs(&base, "mode=755")?;
    let (upper, work, root) = (base.join("upper"), base.join("work"), base.join("root"));
    for directory in [&upper, &work, &root] {
        fs::create_dir(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        spec.root.display(),
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        &root,
        Some("overlay"),
        MsFlags::empty(),
        Some(layers.as_str()),
    )
    .with_context(|| format!("mounting an overlay of {}", spec.root.display()))?;

    let kernel = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for (kind, at) in [
        ("proc", "proc"),
        ("sysfs", "sys"),
        ("cgroup2", "sys/fs/cgroup"),
        ("bpf", "sys/fs/bpf"),
    ] {
        mount(Some(kind), &root.join(at), Some(kind), kernel, none)
            .with_context(|| format!("mounting {kind} on /{at} of host {}", host.name))?;
    }
    devices(&root)?;
    for (at, options) in [
        ("run", "mode=755"),
        ("tmp", "mode=1777"),
        ("var/lib/containers", "mode=755"),
        ("var/lib/netmig", "mode=700"),
    ] {
        directory(&root.join(at))?;
        tmpfs(&root.join(at), options)?;
    }
    for at in ["run/netns", "run/lock"] {
        directory(&root.join(at))?;
    }
    for bind in &spec.binds {
        bind_mount(&bind.source, &below(&root, &bind.target), bind.read_only)?;
    }

    // pivot_root(2): with both the same, the old root lies on top of the new one and is taken off it.
    chdir(&root).with_context(|| format!("entering {}", root.display()))?;
    pivot_root(".", ".").with_context(|| format!("making {} the root", root.display()))?;
    umount2(".", MntFlags::MNT_DETACH).context("letting go of the machine's root")?;
    chdir("/").context("entering the new root")?;
    // As an init system leaves it.
    mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none)
        .context("making mounts shared")
}

fn devices(root: &Path) -> anyhow::Result<()> {
    let dev = root.join("dev");
    tmpfs(&dev, "mode=755")?;
    for at in ["pts", "shm", "net"] {
        directory(&dev.join(at))?;
    }
    for device in DEVICES {
        let source = Path::new("/dev").join(device);
        if source.exists() {
            bind_mount(&source, &dev.join(device), false)?;
        }
    }
    let options = Some("newinstance,ptmxmode=0666,mode=620");
    mount(
        Some("devpts"),
        &dev.join("pts"),
        Some("devpts"),
        MsFlags::MS_NOSUID,
        options,
    )
    .context("mounting devpts")?;
    tmpfs(&dev.join("shm"), "mode=1777")?;
    for (target, name) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        symlink(target, dev.join(name)).with_context(|| format!("linking /dev/{name}"))?;
    }
    Ok(())
}

fn bind_mount(source: &Path, target: &Path, read_only: bool) -> anyhow::Result<()> {
    let none = None::<&str>;
    let what = || format!("mounting {} on {}", source.display(), target.display());
    if source.is_dir() {
        directory(target)?;
    } else {
        directory(target.parent().unwrap_or(target))?;
        File::create(target).with_context(what)?;
    }
    mount(
        Some(source),
        target,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .with_context(what)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, target, none, flags, none).with_context(what)?;
    }
    Ok(())
}

fn tmpfs(at: &Path, options: &str) -> anyhow::Result<()> {
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options),
    )
    .with_context(|| format!("mounting a tmpfs on {}", at.display()))
}

fn directory(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
}
