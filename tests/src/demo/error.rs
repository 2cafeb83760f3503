//! What can go wrong with the demo.
use std::{io, path::PathBuf};

/// An error of the demo's container or of its clients.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the image or of its cache.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program of this machine that had to succeed.
    #[error("`{command}` failed: {said}")]
    Command {
        /// The command line.
        command: String,
        /// What it said.
        said: String,
    },
    /// The test root lacks something that the image is made of.
    #[error("the test root {} has no {what}; `cargo xtask setup` makes it anew", root.display())]
    Root {
        /// The test root.
        root: PathBuf,
        /// What was looked for.
        what: String,
    },
    /// A host or a command on it.
    #[error(transparent)]
    Host(#[from] crate::Error),
    /// A client ended early or said something that is no outcome.
    #[error("client {name}: {said}")]
    Client {
        /// The client's name.
        name: String,
        /// What it said.
        said: String,
    },
}

impl Error {
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
