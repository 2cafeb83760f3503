//! Disk images for the guests: ext4, made by `mke2fs -d` from a directory without mounting
//! anything, and kept in the cache under a name that tells what is in them.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::Error;

/// How many images of one kind are kept; each may be in use by a running guest, for which an
/// unlinked file lives on.
const KEPT: usize = 3;

const MIB: u64 = 1 << 20;

/// An image of the tree at `root`, with `spare` bytes of free room, made now unless `cache` has
/// it. What is in the tree is told by its metadata (names, modes, owners, sizes, times), which is
/// read in a fraction of the time that the content would take.
pub fn of_tree(cache: &Path, kind: &str, root: &Path, spare: u64) -> Result<PathBuf, Error> {
    let mut hash = Sha256::new();
    hash.update(spare.to_le_bytes());
    let mut room = 0;
    walk(root, root, &mut hash, &mut room)?;
    cached(cache, kind, hash, |to| {
        make(kind, root, room + room / 8 + spare + 16 * MIB, to)
    })
}

/// An image that holds `files`, each (name, where it is now) executable in its top directory.
pub fn of_files(cache: &Path, kind: &str, files: &[(String, PathBuf)]) -> Result<PathBuf, Error> {
    let mut hash = Sha256::new();
    let mut room = 0;
    for (name, path) in files {
        let metadata = fs::metadata(path).map_err(Error::io("read", path))?;
        hash.update(name.as_bytes());
        entry(&mut hash, &metadata, &mut room);
    }
    cached(cache, kind, hash, |to| {
        let stage = tempfile::Builder::new()
            .prefix(".stage-")
            .tempdir_in(cache)
            .map_err(Error::io("make a directory in", cache))?;
        for (name, path) in files {
            fs::copy(path, stage.path().join(name)).map_err(Error::io("copy", path))?;
        }
        make(kind, stage.path(), room + room / 8 + 16 * MIB, to)
    })
}

fn cached(
    cache: &Path,
    kind: &str,
    hash: Sha256,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
    let key: String = hash.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let image = cache.join(format!("{kind}-{key}.ext4"));
    if let Ok(file) = File::options().write(true).open(&image) {
        // Its time says when it was last used: that is what pruning goes by.
        file.set_modified(SystemTime::now())
            .map_err(Error::io("touch", &image))?;
        return Ok(image);
    }
    // Two processes may make the same one at the same time: each has its own temporary file.
    let unfinished = tempfile::Builder::new()
        .prefix(".unfinished-")
        .tempfile_in(cache)
        .map_err(Error::io("create a file in", cache))?;
    make(unfinished.path())?;
    unfinished
        .persist(&image)
        .map_err(|error| Error::io("rename an image to", &image)(error.error))?;
    prune(cache, kind).map_err(Error::io("remove old images in", cache))?;
    Ok(image)
}

fn prune(cache: &Path, kind: &str) -> io::Result<()> {
    let mut images = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name();
        let same_kind = name
            .to_str()
            .and_then(|name| {
                name.strip_prefix(kind)?
                    .strip_prefix('-')?
                    .strip_suffix(".ext4")
            })
            .is_some_and(|key| key.len() == 16);
        if same_kind {
            images.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    images.sort();
    let surplus = images.len().saturating_sub(KEPT);
    for (_, path) in images.into_iter().take(surplus) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn make(kind: &str, tree: &Path, size: u64, to: &Path) -> Result<(), Error> {
    let label: String = kind.chars().take(16).collect(); // the limit of ext4's superblock
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-i", "8192"])
        // Thrown away after the run: a journal would only cost writes.
        .args(["-O", "^has_journal", "-E", "root_owner=0:0"])
        .args(["-L", &label, "-d"])
        .arg(tree)
        .arg(to)
        .arg(format!("{}k", size.div_ceil(1024)))
        .output()
        .map_err(|source| Error::Tool {
            tool: "mke2fs",
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::ToolFailed {
        tool: "mke2fs",
        path: tree.to_owned(),
        detail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn walk(root: &Path, directory: &Path, hash: &mut Sha256, room: &mut u64) -> Result<(), Error> {
    let read = || -> io::Result<Vec<_>> { fs::read_dir(directory)?.collect() };
    let mut entries = read().map_err(Error::io("read", directory))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for found in entries {
        let path = found.path();
        let metadata = found.metadata().map_err(Error::io("read", &path))?;
        let below = path.strip_prefix(root).unwrap_or(&path);
        hash.update(below.as_os_str().as_bytes());
        entry(hash, &metadata, room);
        if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(Error::io("read", &path))?;
            hash.update(target.as_os_str().as_bytes());
        } else if metadata.is_dir() {
            walk(root, &path, hash, room)?;
        }
    }
    Ok(())
}

fn entry(hash: &mut Sha256, metadata: &fs::Metadata, room: &mut u64) {
    for number in [
        u64::from(metadata.mode()),
        u64::from(metadata.uid()),
        u64::from(metadata.gid()),
        metadata.rdev(),
    ] {
        hash.update(number.to_le_bytes());
    }
    if metadata.is_file() {
        // Times of directories change when something below is looked after (apt's locks), without
        // any change of what is there.
        hash.update(metadata.mtime().to_le_bytes());
        hash.update(metadata.mtime_nsec().to_le_bytes());
        hash.update(metadata.size().to_le_bytes());
        *room += metadata.size().next_multiple_of(4096);
    } else {
        *room += 4096;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(image: &Path, command: &str) -> String {
        let output = Command::new("debugfs")
            .args(["-R", command])
            .arg(image)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn an_image_is_made_once_for_a_content() {
        let place = tempfile::tempdir().unwrap();
        let (cache, tree) = (place.path().join("images"), place.path().join("tree"));
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/motd"), "first").unwrap();

        let first = of_tree(&cache, "root", &tree, 0).unwrap();
        assert_eq!(listing(&first, "cat /etc/motd"), "first");
        assert_eq!(of_tree(&cache, "root", &tree, 0).unwrap(), first);

        fs::write(tree.join("etc/motd"), "second").unwrap();
        let second = of_tree(&cache, "root", &tree, 0).unwrap();
        assert_ne!(second, first);
        assert_eq!(listing(&second, "cat /etc/motd"), "second");
    }

    #[test]
    fn old_images_of_the_same_kind_go() {
        let place = tempfile::tempdir().unwrap();
        let cache = place.path().join("images");
        let program = place.path().join("program");
        let mut images = Vec::new();
        for round in 0..KEPT + 2 {
            fs::write(&program, vec![b'x'; round]).unwrap();
            let files = [("program".to_owned(), program.clone())];
            images.push(of_files(&cache, "bin", &files).unwrap());
        }
        let there: Vec<_> = images.iter().map(|image| image.exists()).collect();
        assert_eq!(there, [false, false, true, true, true]);
        assert!(listing(&images[4], "stat /program").contains("Size: 4"));
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let cache = place.path().join("images");
        let missing = [("x".to_owned(), place.path().join("x"))];
        assert!(of_files(&cache, "bin", &missing).is_err());
        let failed = cached(&cache, "bin", Sha256::new(), |_| {
            make(
                "bin",
                &place.path().join("no-such-tree"),
                MIB,
                &cache.join("y"),
            )
        });
        assert!(
            matches!(failed, Err(Error::ToolFailed { .. })),
            "{failed:?}"
        );
        let left: Vec<_> = fs::read_dir(&cache)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "y")
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
