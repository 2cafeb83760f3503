//! A guest's directory: its sockets, its console, and what it has written to its disks.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::Error;

const PREFIX: &str = "netmig-vm-";

/// Held by a lock as long as its owner lives.
const LOCK: &str = "lock";

/// A temporary directory that goes when this is dropped, or, if its owner was killed, when the next one is made.
#[derive(Debug)]
pub struct WorkDirectory {
    directory: tempfile::TempDir,
    _lock: Flock<File>,
}

impl WorkDirectory {
    /// Makes one in the machine's place for temporary files.
    pub fn new() -> Result<Self, Error> {
        Self::new_in(&std::env::temp_dir())
    }

    fn new_in(parent: &Path) -> Result<Self, Error> {
        sweep(parent).map_err(Error::io("remove old directories in", parent))?;
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .map_err(Error::io("make a directory in", parent))?;
        // Locked before it has its name: to a sweep by somebody else it is never there without its owner.
        let path = directory.path().join("making-lock");
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, errno)| Error::io("lock", &path)(errno.into()))?;
        fs::rename(&path, directory.path().join(LOCK)).map_err(Error::io("rename", &path))?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes the directories whose owner has gone. One without a lock is being made or removed by somebody.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(file) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            match fs::remove_dir_all(entry.path()) {
                // Somebody else was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_goes_with_its_owner_and_a_dead_owners_with_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let living = WorkDirectory::new_in(parent.path()).unwrap();
        let dead = parent.path().join(format!("{PREFIX}dead"));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let other = parent.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join(LOCK), "").unwrap();

        let next = WorkDirectory::new_in(parent.path()).unwrap();
        assert!(living.path().exists() && next.path().exists() && other.exists());
        assert!(!dead.exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
