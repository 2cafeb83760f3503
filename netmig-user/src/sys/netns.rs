//! Work inside another network namespace.
use std::{fs::File, io, path::Path, thread};

use nix::sched::{CloneFlags, setns};

/// Runs `f` on a thread of its own that has entered the network namespace at `path` (`/proc/PID/ns/net`, `/run/netns/NAME`); the
/// caller's thread stays where it is.
///
/// # Errors
/// That of opening or entering the namespace, else that of `f`.
///
/// # Panics
/// If `f` panics.
pub fn within<T, E>(path: &Path, f: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E>
where
    T: Send,
    E: From<io::Error> + Send,
{
    let at = |what: &str, e: io::Error| {
        io::Error::new(
            e.kind(),
            format!("{what} network namespace {}: {e}", path.display()),
        )
    };
    let ns = File::open(path).map_err(|e| at("opening", e))?;
    thread::scope(|scope| {
        let entered = scope.spawn(move || {
            setns(&ns, CloneFlags::CLONE_NEWNET).map_err(|e| at("entering", e.into()))?;
            f()
        });
        match entered.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
