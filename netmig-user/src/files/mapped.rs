//! Files that tasks have mapped shared and writable: their modification time says nothing.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use netmig_core::container::{Container, MountFate};

use super::{Error, Tree};

/// Paths relative to their tree of all files that one of `pids` has mapped shared and writable, by tree. Files of other mounts are left out.
///
/// # Errors
/// A task's maps cannot be read.
pub fn mapped(container: &Container, pids: &[i32]) -> Result<BTreeMap<Tree, Vec<PathBuf>>, Error> {
    let mut paths = BTreeSet::new();
    for pid in pids {
        let path = PathBuf::from(format!("/proc/{pid}/maps"));
        let text = fs::read_to_string(&path).map_err(|source| Error::File {
            what: "reading",
            path,
            source,
        })?;
        paths.extend(shared_writable(&text));
    }
    let mut trees: BTreeMap<Tree, Vec<PathBuf>> = BTreeMap::new();
    for path in paths {
        if let Some((tree, below)) = tree_of(container, &path) {
            trees.entry(tree).or_default().push(below);
        }
    }
    Ok(trees)
}

/// Paths of a /proc/PID/maps, as the container sees them. Those that are deleted are in the engine's images.
fn shared_writable(maps: &str) -> impl Iterator<Item = PathBuf> {
    maps.lines().filter_map(|line| {
        let mut rest = line;
        let mut field = || {
            let (field, after) = rest.trim_start().split_once(' ')?;
            rest = after;
            Some(field)
        };
        let (_, mode) = (field()?, field()?);
        // Offset, device, inode.
        for _ in 0..3 {
            field()?;
        }
        let path = rest.trim_start();
        let wanted = mode.as_bytes().get(1) == Some(&b'w') && mode.ends_with('s');
        (wanted && path.starts_with('/') && !path.ends_with(" (deleted)"))
            .then(|| PathBuf::from(path))
    })
}

/// The tree that a path in the container lies in: that of the deepest mount above it, else the root's.
fn tree_of(container: &Container, path: &Path) -> Option<(Tree, PathBuf)> {
    let above = container
        .mounts
        .iter()
        .zip(0..)
        .filter(|(mount, _)| path.starts_with(&mount.destination));
    let (tree, below) = match above.max_by_key(|(mount, _)| mount.destination.components().count())
    {
        Some((mount, at)) => {
            let below = path.strip_prefix(&mount.destination).ok()?;
            let below = if mount.file {
                Path::new(mount.source.as_deref()?.file_name()?)
            } else {
                below
            };
            (mount.fate == MountFate::Copy).then_some((Tree::Mount(at), below))?
        }
        None if container.upper.is_some() => (Tree::Upper, path.strip_prefix("/").ok()?),
        None => (Tree::Rootfs, path.strip_prefix("/").ok()?),
    };
    Some((tree, below.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_writable_files_that_are_there() {
        let maps = "7f00-7f10 rw-s 00000000 00:2a 5 /data/my db.mdb\n\
                    7f10-7f20 r--s 00000000 00:2a 6 /data/read-only\n\
                    7f20-7f30 rw-p 00000000 00:2a 7 /data/private\n\
                    7f30-7f40 rw-s 00000000 00:01 8 /dev/zero (deleted)\n\
                    7f40-7f50 rw-s 00000000 00:01 9 anon_inode:x\n\
                    7f50-7f60 rw-p 00000000 00:00 0 \n";
        assert_eq!(
            shared_writable(maps).collect::<Vec<_>>(),
            [PathBuf::from("/data/my db.mdb")]
        );
    }
}
