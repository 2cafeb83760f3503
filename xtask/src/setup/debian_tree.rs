//! Trees of Debian packages, made by mmdebstrap aside in the cache and put in place when they are whole.
use std::{
    fs, io,
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

use super::{command, mirror::mirror};

/// Directories in which one is made begin so; those that are left from a broken run are removed.
const UNFINISHED: &str = ".making-";

/// What a tree is made of.
pub struct Recipe<'a> {
    /// The name of its log.
    pub log: &'a str,
    /// mmdebstrap's variant: what is in it besides the packages, and whether they are installed or only unpacked.
    pub variant: &'a str,
    /// The packages; what they depend on comes along.
    pub packages: &'a [&'a str],
    /// Where they come from, the first one by name.
    pub suites: &'a [&'a str],
    /// What else mmdebstrap is told.
    pub arguments: Vec<String>,
    /// What it takes while it is made, in bytes.
    pub space: u64,
}

impl Recipe<'_> {
    /// Makes it at `goal`, once `verify` has nothing to say about it.
    pub fn make(
        &self,
        goal: &Path,
        verify: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let cache = root::cache();
        fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
        remove_unfinished(&cache)?;
        require_space(&cache, self.space)?;
        let work = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&cache)
            .with_context(|| format!("creating a directory in {}", cache.display()))?;
        let made = work.path().join("root");
        command::run(self.log, &mut self.command(work.path(), &made, &mirror()?))?;
        verify(&made)?;
        fs::rename(&made, goal)
            .with_context(|| format!("renaming {} to {}", made.display(), goal.display()))
    }

    fn command(&self, work: &Path, made: &Path, mirror: &str) -> Command {
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--mode=root", &format!("--variant={}", self.variant)]);
        mmdebstrap.arg(format!("--include={}", self.packages.join(",")));
        // A mirror may be one that stands still: what it says is signed all the same, and these trees serve nobody.
        for option in [
            "Acquire::Check-Valid-Until \"false\"",
            "Apt::Install-Recommends \"false\"",
            "Acquire::Languages \"none\"",
            "Acquire::Retries \"3\"",
        ] {
            mmdebstrap.arg(format!("--aptopt={option}"));
        }
        mmdebstrap.args(&self.arguments);
        mmdebstrap.arg(self.suites[0]).arg(made);
        for suite in self.suites {
            mmdebstrap.arg(format!("deb {mirror} {suite} main"));
        }
        mmdebstrap.env("TMPDIR", work).env("LC_ALL", "C");
        bound(&mut mmdebstrap);
        mmdebstrap
    }
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

fn require_space(cache: &Path, needed: u64) -> anyhow::Result<()> {
    let file_system =
        statvfs(cache).with_context(|| format!("asking for the space in {}", cache.display()))?;
    let free = file_system.blocks_available() * file_system.fragment_size();
    if free < needed {
        bail!(
            "no space: {} has {} MiB free, and {} MiB are needed; NETMIG_CACHE names another place",
            cache.display(),
            free >> 20,
            needed >> 20
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
    fn what_is_mounted_while_a_tree_is_made_is_not_mounted_here() {
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
    fn a_tree_that_has_no_room_is_not_begun() {
        let cache = tempfile::tempdir().expect("a directory");
        let error = require_space(cache.path(), u64::MAX).expect_err("no file system is so large");
        assert!(error.to_string().starts_with("no space: "), "{error}");
    }
}
