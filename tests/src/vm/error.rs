use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between a kernel in the cache and an answer from the guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file, a directory or a socket failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program of the development host could not be started.
    #[error("cannot run {tool}: is it installed? (`cargo xtask setup --check` tells)")]
    Tool {
        /// The program.
        tool: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A program of the development host ended with an error.
    #[error("{tool} failed on {}: {detail}", path.display())]
    ToolFailed {
        /// The program.
        tool: &'static str,
        /// What it worked on.
        path: PathBuf,
        /// What it said.
        detail: String,
    },
    /// No kernel of that name is in the cache.
    #[error("no kernel {wanted} in {} (there: {have}): run `cargo xtask setup`", cache.display())]
    NoKernel {
        /// As asked for.
        wanted: String,
        /// Where it was looked for.
        cache: PathBuf,
        /// What is there, comma separated.
        have: String,
    },
    /// A kernel's module tree lacks what the guest cannot do without.
    #[error("kernel {release} has no module {module}, built in or not")]
    NoModule {
        /// The kernel's release.
        release: String,
        /// The module.
        module: String,
    },
    /// The guest did not come up.
    #[error("the guest with kernel {release} {why}; the end of its console:\n{console}")]
    Boot {
        /// The kernel's release.
        release: String,
        /// What happened instead.
        why: String,
        /// The last lines that the guest's kernel wrote.
        console: String,
    },
    /// The image for a guest's stories could not be made.
    #[error("the demo's image")]
    Image(#[from] crate::demo::Error),
    /// The lab around a guest, or its place in it, could not be made.
    #[error("the lab around the guests")]
    Lab(#[from] crate::Error),
}

impl Error {
    /// For `map_err`: a failed system call, with what was tried and on what.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}
