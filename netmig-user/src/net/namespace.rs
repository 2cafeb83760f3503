//! Network namespaces with a name, as iproute2 keeps them, and one for comparison.
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statfs::{FsType, fstatfs},
};

use super::{Doing, Error};

/// Whether `path` is a network namespace. An empty file under /run/netns is one that was left over.
pub fn exists(path: &Path) -> Result<bool, Error> {
    match File::open(path) {
        Ok(file) => Ok(is_namespace(&file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).doing(|| format!("opening network namespace {}", path.display())),
    }
}

/// Whether both are the same namespace.
pub fn same(a: &Path, b: &Path) -> Result<bool, Error> {
    let id = |path: &Path| {
        fs::metadata(path)
            .map(|m| (m.dev(), m.ino()))
            .doing(|| format!("looking at network namespace {}", path.display()))
    };
    Ok(id(a)? == id(b)?)
}

/// The calling thread's own namespace.
pub fn own() -> Result<File, Error> {
    File::open(OWN).doing(|| "opening the own network namespace".to_owned())
}

/// Path of the calling thread's own namespace.
pub const OWN: &str = "/proc/thread-self/ns/net";

/// Makes a namespace and keeps it at `path` by a bind mount, as `ip netns add` does; its directory is made a shared mount, so that the
/// name appears in mount namespaces that exist already.
pub fn make(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let step = |what: &str| format!("{what} for network namespace {}", path.display());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .doing(|| step("making the directory"))?;
    share(parent).doing(|| step("making the directory a shared mount"))?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .or_else(|e| match e.kind() {
            // Left over from a namespace that is gone: exists() has seen that nothing is mounted on it.
            io::ErrorKind::AlreadyExists => OpenOptions::new().write(true).open(path),
            _ => Err(e),
        })
        .doing(|| step("making the file"))?;
    let bound = on_new_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(
            Some(OWN),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Ok(())
    });
    bound.or_else(|e| {
        // The first failure counts; the empty file alone is no namespace for anybody.
        fs::remove_file(path).ok();
        Err(e).doing(|| step("making and binding"))
    })
}

/// Removes what [`make`] made; what is gone already is no error.
pub fn remove(path: &Path) -> Result<(), Error> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(e) => {
            return Err(io::Error::from(e))
                .doing(|| format!("unmounting network namespace {}", path.display()));
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).doing(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs `f` in a namespace made for it alone, which goes with it.
pub fn scratch<T: Send>(f: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let ran = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .doing(|| "making a scratch network namespace".to_owned())?;
            f()
        });
        ran.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn on_new_thread(f: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    thread::scope(|scope| {
        scope
            .spawn(f)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn is_namespace(file: &File) -> bool {
    const NSFS_MAGIC: FsType = FsType(libc::NSFS_MAGIC);
    fstatfs(file).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// iproute2's order: try to make it shared; where it is no mount, bind it onto itself first.
fn share(directory: &Path) -> io::Result<()> {
    let shared = || {
        mount(
            None::<&str>,
            directory,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    match shared() {
        Err(nix::Error::EINVAL) => {
            mount(
                Some(directory),
                directory,
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                None::<&str>,
            )?;
            shared()?;
        }
        other => other?,
    }
    Ok(())
}
