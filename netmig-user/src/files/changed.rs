//! Whether a tree has changed since it was copied: what the final copy would find, without a connection for it.
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC,
    XFS_SUPER_MAGIC, statfs,
};

/// File systems that stamp changes with this kernel's clock.
const LOCAL: [FsType; 5] = [
    BTRFS_SUPER_MAGIC,
    EXT4_SUPER_MAGIC,
    OVERLAYFS_SUPER_MAGIC,
    TMPFS_MAGIC,
    XFS_SUPER_MAGIC,
];

/// Stamps are coarser than the clock, by a tick.
const TICK: Duration = Duration::from_millis(50);
/// A clock that was set by more than this since is not believed.
const STEP: Duration = Duration::from_millis(200);

/// A moment before a copy.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    wall: SystemTime,
    steady: Instant,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }

    /// Whether anything in the tree at `path` may have changed since: content, attributes, names (ctime, `inode_set_ctime_current`). Writes
    /// through a mapping are not seen ([`super::mapped`]). True where the times of a file system or the clock cannot be relied on.
    ///
    /// # Errors
    /// The tree cannot be read.
    pub fn changed(&self, path: &Path) -> io::Result<bool> {
        let passed = SystemTime::now().duration_since(self.wall).ok();
        let steps = passed.is_none_or(|passed| passed.abs_diff(self.steady.elapsed()) > STEP);
        if steps || !LOCAL.contains(&statfs(path)?.filesystem_type()) {
            return Ok(true);
        }
        let since = (self.wall - TICK).duration_since(UNIX_EPOCH);
        let since = since.map_or((0, 0), |t| {
            (t.as_secs() as i64, i64::from(t.subsec_nanos()))
        });
        let device = path.symlink_metadata()?.dev();
        let mut waiting = vec![path.to_owned()];
        while let Some(path) = waiting.pop() {
            let meta = path.symlink_metadata()?;
            // Another file system below: its times may mean something else.
            if (meta.ctime(), meta.ctime_nsec()) >= since || meta.dev() != device {
                return Ok(true);
            }
            if meta.is_dir() {
                for entry in fs::read_dir(&path)? {
                    waiting.push(entry?.path());
                }
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::PermissionsExt, thread};

    #[test]
    fn every_kind_of_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        let file = root.join("a/file");
        let changes: [(&str, &dyn Fn()); 6] = [
            ("content of the same length", &|| {
                fs::write(&file, "two").unwrap()
            }),
            ("mode", &|| {
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            }),
            ("name", &|| fs::rename(&file, root.join("a/other")).unwrap()),
            ("a file gone", &|| fs::remove_file(&file).unwrap()),
            ("a file more", &|| {
                fs::write(root.join("a/b/new"), "").unwrap()
            }),
            ("a link", &|| {
                fs::hard_link(&file, root.join("link")).unwrap()
            }),
        ];
        for (what, change) in changes {
            fs::create_dir_all(root.join("a/b")).unwrap();
            fs::write(&file, "one").unwrap();
            thread::sleep(2 * TICK);
            let moment = Moment::now();
            assert!(!moment.changed(&root).unwrap(), "before: {what}");
            change();
            assert!(moment.changed(&root).unwrap(), "{what}");
            fs::remove_dir_all(&root).unwrap();
        }
    }

    #[test]
    fn a_clock_that_was_set_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        thread::sleep(2 * TICK);
        let mut moment = Moment::now();
        moment.wall += Duration::from_secs(3600);
        assert!(moment.changed(dir.path()).unwrap(), "set back");
        moment.wall -= Duration::from_secs(7200);
        assert!(moment.changed(dir.path()).unwrap(), "set forth");
    }

    #[test]
    fn a_single_file_is_a_tree() {
        let file = tempfile::NamedTempFile::new().unwrap();
        thread::sleep(2 * TICK);
        let moment = Moment::now();
        assert!(!moment.changed(file.path()).unwrap());
        fs::write(file.path(), "x").unwrap();
        assert!(moment.changed(file.path()).unwrap());
    }
}
