//! What keeps the source's container from being started once it lives elsewhere. podman has no word for that; these use what it does before it starts one.
//!
//! A container may be started (`podman start` in a loop, by whoever supervises it) at the very moment of its end: podman keeps such a start waiting while
//! the checkpoint runs, and then lets it go. So there are two bars. The first is set while the checkpoint still runs and lets podman note the container's
//! end; the second stays.
use std::path::{Path, PathBuf};

use crate::runtime::{Error, remove};

/// A file in each bar, for whoever comes across it.
const NOTE: &str = "moved-away-by-netmig";

/// Until [`for_good`], while the container still runs. podman writes `config.json` anew before each start and removes the old one first (`saveSpec` in
/// libpod/container_internal.go); a directory in its place, with something in it, makes that fail. Neither the checkpoint's end nor `container cleanup`
/// reads it; `inspect` does, and fails as long as this bar is there.
pub fn for_now(static_dir: &Path, target: &str) -> Result<(), Error> {
    let config = static_dir.join("config.json");
    if barred(&static_dir.join("ctl")) || barred(&config) {
        return Ok(());
    }
    if config.exists() {
        let kept = kept(static_dir);
        std::fs::rename(&config, &kept).map_err(|e| Error::file("renaming", &config, e))?;
    }
    bar(&config, target)
}

/// Once podman has noted the container's end; takes away the bar of [`for_now`]. Before each start podman removes conmon's files of the last run
/// (`removeConmonFiles`, the same from 5.1 to 5.8), and so it does when it notes an end: earlier this bar would keep it from that. podman's error names
/// it, and `podman inspect|logs|rm` do not mind it.
pub fn for_good(static_dir: &Path, target: &str) -> Result<(), Error> {
    let ctl = static_dir.join("ctl");
    if !barred(&ctl) {
        remove(&ctl)?;
        bar(&ctl, target)?;
    }
    let config = static_dir.join("config.json");
    if barred(&config) {
        remove(&config)?;
    }
    let kept = kept(static_dir);
    if kept.exists() {
        std::fs::rename(&kept, &config).map_err(|e| Error::file("renaming", &kept, e))?;
    }
    Ok(())
}

/// Where `config.json` is meanwhile.
fn kept(static_dir: &Path) -> PathBuf {
    static_dir.join("config.json.netmig")
}

fn barred(path: &Path) -> bool {
    path.join(NOTE).exists()
}

/// A directory which podman cannot remove. It comes whole: without the note podman could.
fn bar(path: &Path, target: &str) -> Result<(), Error> {
    let making = path.with_extension("netmig-bar");
    remove(&making)?;
    std::fs::create_dir(&making).map_err(|e| Error::file("creating", &making, e))?;
    let text = format!(
        "netmig moved this container to {target}. This directory keeps podman from starting what is left of it here.\n\
         To start it all the same, remove the directory {}\n",
        path.display()
    );
    let note = making.join(NOTE);
    std::fs::write(&note, text).map_err(|e| Error::file("writing", &note, e))?;
    std::fs::rename(&making, path).map_err(|e| Error::file("renaming", &making, e))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// As podman does before each start.
    fn starts(dir: &Path) -> bool {
        ["ctl", "config.json"].iter().all(|name| {
            let path = dir.join(name);
            !path.is_dir() || fs::remove_dir(&path).is_ok()
        })
    }

    #[test]
    fn a_container_is_barred_from_the_first_bar_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        fs::write(dir.join("config.json"), "the spec").expect("written");
        fs::write(dir.join("ctl"), "").expect("written");
        assert!(starts(dir));
        for _ in 0..2 {
            for_now(dir, "ssh://b").expect("barred");
            assert!(!starts(dir));
            assert!(dir.join("ctl").is_file(), "podman can note the end");
        }
        for _ in 0..2 {
            for_good(dir, "ssh://b").expect("barred");
            assert!(!starts(dir));
            let spec = fs::read_to_string(dir.join("config.json")).expect("a file again");
            assert_eq!(spec, "the spec");
        }
        for_now(dir, "ssh://b").expect("barred already");
        assert!(dir.join("config.json").is_file() && !starts(dir));
        let mut names: Vec<_> = fs::read_dir(dir)
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["config.json", "ctl"], "nothing else is left");
    }
}
