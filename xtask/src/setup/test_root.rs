//! The test root: the file system of the lab's hosts, made by mmdebstrap and kept in the cache under its recipe's digest.
use std::{
    env, fs, io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use netmig_lab::root;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{prctl, signal::Signal, statvfs::statvfs},
};

use super::{Step, command, mirror::mirror};

/// What it takes while it is made, in bytes: the tree and the packages that it is made of.
const SPACE: u64 = 1500 << 20;

/// Directories in which it is made begin so; those that are left from a broken run are removed.
const UNFINISHED: &str = ".making-root-";

pub struct TestRoot;

impl Step for TestRoot {
    fn what(&self) -> String {
        "test root".to_owned()
    }

    fn why(&self) -> String {
        format!(
            "Debian {} with podman, runc, crun, CRIU and servers: the file system of the lab's hosts",
            root::SUITE
        )
    }

    fn missing(&self) -> anyhow::Result<Option<String>> {
        let path = root::path();
        if path.join("usr/bin").is_dir() {
            return Ok(None);
        }
        if env::var_os("NETMIG_ROOT").is_some() {
            bail!(
                "NETMIG_ROOT={}: there is no root file system",
                path.display()
            );
        }
        Ok(Some(format!(
            "not made yet, 1 to 4 minutes: {}",
            path.display()
        )))
    }

    fn make(&self) -> anyhow::Result<()> {
        let (cache, goal) = (root::cache(), root::cached());
        fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
        remove_unfinished(&cache)?;
        require_space(&cache)?;
        let work = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&cache)
            .with_context(|| format!("creating a directory in {}", cache.display()))?;
        let made = work.path().join("root");
        command::run("test-root", &mut mmdebstrap(work.path(), &made, &mirror()?))?;
        verify(&made)?;
        fs::rename(&made, &goal)
            .with_context(|| format!("renaming {} to {}", made.display(), goal.display()))
    }
}

fn mmdebstrap(work: &Path, made: &Path, mirror: &str) -> Command {
    let (suite, newer) = (root::SUITE, root::NEWER_SUITE);
    let pin = format!(
        r#"mkdir -p "$1/etc/apt/preferences.d"; printf 'Package: *\nPin: release n={newer}\nPin-Priority: 100\n' >"$1/etc/apt/preferences.d/99-{newer}""#
    );
    let install = format!(
        r#"chroot "$1" apt-get -y --no-install-recommends -t {newer} install {}"#,
        root::NEWER.join(" ")
    );
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--mode=root", "--variant=minbase"]);
    mmdebstrap.arg(format!("--include={}", root::PACKAGES.join(",")));
    mmdebstrap.arg(format!("--setup-hook={pin}"));
    // A mirror may be one that stands still: what it says is signed all the same, and these hosts serve nobody.
    for option in [
        "Acquire::Check-Valid-Until \"false\"",
        "Apt::Install-Recommends \"false\"",
        "Acquire::Languages \"none\"",
        "Acquire::Retries \"3\"",
    ] {
        mmdebstrap.arg(format!("--aptopt={option}"));
    }
    for nobody_reads in ["doc", "man", "locale", "info"] {
        mmdebstrap.arg(format!(
            "--dpkgopt=path-exclude=/usr/share/{nobody_reads}/*"
        ));
    }
    mmdebstrap.arg(format!("--customize-hook={install}"));
    mmdebstrap.arg(suite).arg(made);
    for suite in [suite, newer] {
        mmdebstrap.arg(format!("deb {mirror} {suite} main"));
    }
    mmdebstrap.env("TMPDIR", work).env("LC_ALL", "C");
    bound(&mut mmdebstrap);
    mmdebstrap
}

/// Binds a command to this process. Else it would go on alone, for minutes, into a directory that the next set-up removes; and what it
/// mounts there (/proc, /sys, devices) would stay when it is killed, for that removal to walk into.
fn bound(command: &mut Command) {
    let bind = || {
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        Ok(())
    };
    // SAFETY: these are system calls and no more: async-signal-safe, and they touch no memory of this process.
    unsafe { command.pre_exec(bind) };
}

/// What a host cannot be without.
fn verify(made: &Path) -> anyhow::Result<()> {
    for program in ["criu", "crun", "podman", "runc", "sshd", "ip", "ssh-keygen"] {
        let found = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|place| made.join(place).join(program).exists());
        if !found {
            bail!("the new test root has no {program}");
        }
    }
    Ok(())
}

fn remove_unfinished(cache: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(cache).with_context(|| format!("listing {}", cache.display()))? {
        let entry = entry.with_context(|| format!("listing {}", cache.display()))?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            remove_quiet(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a directory that something which was killed may still be writing into.
fn remove_quiet(path: &Path) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && Instant::now() < end => {
                thread::sleep(Duration::from_millis(200));
            }
            done => return done.with_context(|| format!("removing {}", path.display())),
        }
    }
}

fn require_space(cache: &Path) -> anyhow::Result<()> {
    let file_system =
        statvfs(cache).with_context(|| format!("asking for the space in {}", cache.display()))?;
    let free = file_system.blocks_available() * file_system.fragment_size();
    if free < SPACE {
        bail!(
            "no space: {} has {} MiB free, and {} MiB are needed; NETMIG_CACHE names another place",
            cache.display(),
            free >> 20,
            SPACE >> 20
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broken_run_left_is_removed_and_nothing_else() {
        let cache = tempfile::tempdir().expect("a directory");
        let (left, good) = (
            cache.path().join(".making-root-x/root"),
            cache.path().join("root-1"),
        );
        fs::create_dir_all(&left).expect("left");
        fs::create_dir_all(&good).expect("good");
        remove_unfinished(cache.path()).expect("removed");
        assert!(!left.exists() && good.exists());
    }

    #[test]
    fn what_is_mounted_while_the_root_is_made_is_not_mounted_here() {
        let made = tempfile::tempdir().expect("a directory");
        let mut mount = Command::new("sh");
        mount.args([
            "-ec",
            r#"mount -t tmpfs tmpfs "$1"; touch "$1/device""#,
            "sh",
        ]);
        bound(mount.arg(made.path()));
        assert!(mount.status().expect("sh").success());
        assert_eq!(fs::read_dir(made.path()).expect("read").count(), 0);
    }

    #[test]
    fn a_root_without_its_programs_does_not_count() {
        let made = tempfile::tempdir().expect("a directory");
        assert!(verify(made.path()).is_err());
    }
}
