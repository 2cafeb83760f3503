//! A container's files: which trees travel, and how rsync is told to copy them.
//!
//! Each tree has a name that both ends know ([`Tree`]). The source's rsync is given that name as its destination, and the target puts the path in its
//! place ([`server_command`]): the source neither knows nor chooses a path at the target.
//!
//! First everything is copied while the container runs ([`Pass::Precopy`]), then, with its tasks frozen, the difference ([`Pass::Final`]). rsync takes a file
//! with the same size and modification time for unchanged. That is wrong for files that a task has mapped and writes to without a system call: the kernel
//! sets their time only at the first write to a clean page (`file_update_time` in `page_mkwrite`), so those are compared whole ([`Pass::Mapped`]).
//! A tree without a change since its pre-copy ([`Moment::changed`]) needs no final copy.
use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use netmig_core::container::{Container, Mount, MountFate, Recipe};
use serde::{Deserialize, Serialize};

use crate::{
    engine::job::Command,
    runtime::{CreatedContainer, tool},
};

mod changed;
mod mapped;

pub use changed::Moment;
pub use mapped::mapped;

/// A tree of files that travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tree {
    /// The writable layer: overlayfs's upper directory, whiteouts and all.
    Upper,
    /// Root file system of a bundle.
    Rootfs,
    /// The log that the container's runtime keeps, a single file.
    Log,
    /// A volume or bind mount, by its place in [`Container::mounts`].
    Mount(u16),
}

impl Tree {
    /// The name that stands for it on rsync's command line.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Upper => "upper".into(),
            Self::Rootfs => "rootfs".into(),
            Self::Log => "log".into(),
            Self::Mount(at) => format!("mount-{at}"),
        }
    }
}

impl FromStr for Tree {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "upper" => Self::Upper,
            "rootfs" => Self::Rootfs,
            "log" => Self::Log,
            _ => Self::Mount(
                name.strip_prefix("mount-")
                    .and_then(|at| at.parse().ok())
                    .ok_or(())?,
            ),
        })
    }
}

/// A tree and where it is on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which tree.
    pub tree: Tree,
    /// Its directory, or the file itself.
    pub path: PathBuf,
    /// Whether it is a single file.
    pub file: bool,
}

/// Which copy this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pass {
    /// While the container runs; files may vanish and change meanwhile.
    Precopy,
    /// With all tasks frozen.
    Final,
    /// With all tasks frozen, only these paths (relative to the tree), whatever their times say.
    Mapped(Vec<PathBuf>),
}

/// Files cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Looking at a file.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The other end asks rsync for something that is not part of a move.
    #[error("the source's rsync asks for {0:?}, which is not part of a move")]
    Foreign(String),
    /// rsync is not there.
    #[error(transparent)]
    Tool(#[from] tool::Error),
}

/// At the source: what travels.
#[must_use]
pub fn sources(container: &Container) -> Vec<Place> {
    let mut places = Vec::new();
    places.extend(container.upper.clone().map(|path| Place {
        tree: Tree::Upper,
        path,
        file: false,
    }));
    match &container.recipe {
        Recipe::Bundle { rootfs, .. } => places.push(Place {
            tree: Tree::Rootfs,
            path: rootfs.clone(),
            file: false,
        }),
        Recipe::Podman { log, .. } => {
            places.extend(log.clone().filter(|log| log.is_file()).map(|path| Place {
                tree: Tree::Log,
                path,
                file: true,
            }));
        }
        Recipe::Bare { .. } => {}
    }
    places.extend(mounts(&container.mounts));
    places
}

/// At the target: where it goes.
#[must_use]
pub fn targets(created: &CreatedContainer) -> Vec<Place> {
    let mut places = Vec::new();
    places.extend(created.upper.clone().map(|path| Place {
        tree: Tree::Upper,
        path,
        file: false,
    }));
    places.extend(created.rootfs.clone().map(|path| Place {
        tree: Tree::Rootfs,
        path,
        file: false,
    }));
    places.extend(created.log.clone().map(|path| Place {
        tree: Tree::Log,
        path,
        file: true,
    }));
    places.extend(mounts(&created.mounts));
    places
}

fn mounts(mounts: &[Mount]) -> impl Iterator<Item = Place> {
    mounts
        .iter()
        .zip(0..)
        .filter(|(mount, _)| mount.fate == MountFate::Copy)
        .filter_map(|(mount, at)| {
            Some(Place {
                tree: Tree::Mount(at),
                path: mount.source.clone()?,
                file: mount.file,
            })
        })
}

/// What every copy preserves: hard links, ACLs, xattrs, sparseness, owners by number, devices (whiteouts are some), and what is gone is deleted.
const ALWAYS: [&str; 5] = [
    "-aHAXS",
    "--numeric-ids",
    "--delete",
    "--devices",
    "--specials",
];

/// At the source: the rsync command for one tree. `transport` is the command for `rsync -e`; it gets `netmig`, and then what is to be run at the target, as
/// arguments. Exit codes 23 and 24 in a pre-copy are files that changed or vanished under it: [`acceptable`].
#[must_use]
pub fn copy_command(place: &Place, pass: &Pass, transport: &str) -> Command {
    let mut command = Command::new(["rsync"]);
    command.argv.extend(ALWAYS.map(ToOwned::to_owned));
    // A filter for xattrs replaces rsync's own, which leaves out system.*. An origin is a file handle of the source's file system.
    for name in ["system.*", "trusted.overlay.origin", "trusted.overlay.uuid"] {
        command.argv.push(format!("--filter=-x {name}"));
    }
    // Times to the nanosecond; over a fast link whole files are sent faster than their differences are found.
    command.argv.extend(
        [
            "--modify-window=-1",
            "--whole-file",
            "--stats",
            "--no-human-readable",
        ]
        .map(ToOwned::to_owned),
    );
    if let Pass::Mapped(paths) = pass {
        // In place, so that the other names of a hard-linked file, which are not in this pass, stay names of the same file.
        command
            .argv
            .extend(["--ignore-times", "--inplace"].map(ToOwned::to_owned));
        // Nothing but these paths and the directories above them.
        let mut shown = BTreeSet::new();
        for path in paths {
            shown.extend(
                path.ancestors()
                    .filter(|p| !p.as_os_str().is_empty())
                    .map(|p| pattern(p, p != path)),
            );
        }
        command
            .argv
            .extend(shown.iter().map(|path| format!("--include={path}")));
        command.argv.push("--exclude=*".into());
        command.argv.retain(|arg| arg != "--delete");
    }
    let source = place.path.display().to_string();
    command
        .argv
        .extend(["-e".to_owned(), transport.to_owned(), "--".to_owned()]);
    command.argv.push(if place.file {
        source
    } else {
        format!("{}/", source.trim_end_matches('/'))
    });
    command.argv.push(format!("netmig:{}", place.tree.name()));
    command
}

/// An anchored include pattern for exactly this path.
fn pattern(path: &Path, directory: bool) -> String {
    let mut text = String::from("/");
    for letter in path.display().to_string().chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '\\') {
            text.push('\\');
        }
        text.push(letter);
    }
    if directory {
        text.push('/');
    }
    text
}

/// Whether rsync's exit code is as good as 0 in this pass. In a pre-copy 23 (some files could not be read) and 24 (files vanished) are a running container.
#[must_use]
pub fn acceptable(pass: &Pass, code: i32) -> bool {
    code == 0 || (*pass == Pass::Precopy && matches!(code, 23 | 24))
}

/// At the target: the command for what the source's rsync asks for (`rsync --server -logDtpAXHr... . NAME`), with the tree's path in the place of its name.
///
/// # Errors
/// It is not a copy to a tree of this move: another program, an option that reads or writes elsewhere, an unknown tree.
pub fn server_command(asked: &[String], created: &CreatedContainer) -> Result<Command, Error> {
    let foreign = |what: &str| Error::Foreign(what.to_owned());
    let [program, server, options @ .., dot, name] = asked else {
        return Err(foreign(&asked.join(" ")));
    };
    if program != "rsync" || server != "--server" || dot != "." {
        return Err(foreign(&asked.join(" ")));
    }
    for option in options {
        let long = option.strip_prefix("--");
        let known = match long {
            Some(long) => {
                [
                    "delete",
                    "delete-during",
                    "delete-before",
                    "delete-after",
                    "numeric-ids",
                    "whole-file",
                    "stats",
                    "devices",
                    "specials",
                    "ignore-times",
                    "inplace",
                    "no-human-readable",
                ]
                .contains(&long)
                    || long.starts_with("modify-window=")
            }
            // Flags in one word; `e.` begins what rsync says of its own version.
            None if option == "-@-1" => true,
            // Before that only what `ALWAYS` asks for: `s` among them would let further arguments come on the stream, unseen.
            None => option.strip_prefix('-').is_some_and(|flags| {
                let own = flags.split_once("e.").map_or(flags, |(own, _)| own);
                own.chars().all(|c| "logDtpAXHrSWI".contains(c))
                    && flags.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
            }),
        };
        if !known {
            return Err(foreign(option));
        }
    }
    let tree: Tree = name.parse().map_err(|()| foreign(name))?;
    let place = targets(created)
        .into_iter()
        .find(|place| place.tree == tree)
        .ok_or_else(|| foreign(name))?;
    let rsync = tool::find("rsync")?;
    let mut path = place.path.display().to_string();
    if !place.file {
        path.push('/');
    }
    let mut command = Command::new([rsync.display().to_string(), server.clone()]);
    command.argv.extend(options.iter().cloned());
    command.argv.extend([dot.clone(), path]);
    Ok(command)
}

/// Bytes that a tree takes on its disk, each hard-linked file once. What vanishes meanwhile is not counted.
///
/// # Errors
/// The tree itself cannot be read.
pub fn estimate(place: &Place) -> Result<u64, Error> {
    let error = |source| Error::File {
        what: "looking at",
        path: place.path.clone(),
        source,
    };
    let mut seen = HashSet::new();
    let mut bytes = 0;
    let mut waiting = vec![place.path.clone()];
    let mut first = true;
    while let Some(path) = waiting.pop() {
        let meta = match path.symlink_metadata() {
            Ok(meta) => meta,
            Err(e) if first => return Err(error(e)),
            Err(_) => continue,
        };
        if meta.nlink() < 2 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
            bytes += meta.blocks() * 512;
        }
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => waiting.extend(entries.flatten().map(|entry| entry.path())),
                Err(e) if first => return Err(error(e)),
                Err(_) => {}
            }
        }
        first = false;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
