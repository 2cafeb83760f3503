//! The container's network: snapshot, creation behind a closed gate, announcement, removal.
//!
//! One file a kind of object, reading and writing side by side ([`link`], [`addr`], [`nexthop`], [`route`], [`rule`], [`neigh`], [`bridging`], [`sysctl`], [`qdisc`]), over one
//! small netlink socket ([`netlink`]); packet filters ([`filter`]) by their own tools. What is not the container's own but the host's (bridges, parents, uplinks) is in [`mod@topology`].
//!
//! The order of [`create()`] is what keeps the segment silent: links are made down, the caller attaches the gate, only then do they come up.
pub mod addr;
pub mod announce;
pub mod attr;
pub mod bridging;
pub mod check;
pub mod conntrack;
pub mod create;
pub mod diff;
pub mod document;
pub mod filter;
pub mod frame;
pub mod hostfilter;
pub mod link;
pub mod membership;
pub mod namespace;
pub mod neigh;
pub mod netlink;
pub mod nexthop;
pub mod packet;
pub mod physical;
pub mod probe;
pub mod qdisc;
pub mod remove;
pub mod route;
pub mod rule;
pub mod service;
mod shared;
pub mod snapshot;
mod stand_in;
pub mod stray;
pub mod sysctl;
pub mod times;
pub mod topology;
pub mod traffic;
mod txqueue;
mod uapi;

pub use addr::own as own_addresses;
pub use announce::{Announced, announce, announce_own};
pub use check::objections;
pub use create::{Created, create, intent};
pub use neigh::forget_unresolved;
pub use probe::{Clash, Segment, clashes, same_segment};
pub use remove::{Marked, depart, marked, remove};
pub use snapshot::snapshot;
pub use topology::{Link, LinkKind, Topology, links, topology};

use std::io;

/// What failed, on which object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace could not be opened, entered or made, or a socket not opened.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A step that rtnetlink did not do.
    #[error("{what}: {cause}")]
    Netlink {
        /// Step and object.
        what: String,
        /// Why.
        cause: netlink::Error,
    },
    /// A step on a file or a packet socket that failed.
    #[error("{what}: {cause}")]
    Step {
        /// Step and object.
        what: String,
        /// Why.
        cause: io::Error,
    },
    /// A tool that failed, with its own words.
    #[error("{what}: {said}")]
    Tool {
        /// Step and object.
        what: String,
        /// What it wrote, or how it ended.
        said: String,
    },
    /// A tool that this host lacks.
    #[error("{what}: this host has no {tool}; install it (Debian's package {package})")]
    Missing {
        /// Step and object.
        what: String,
        /// Its name.
        tool: String,
        /// Debian's package.
        package: &'static str,
    },
    /// Found before anything was made; each with what to do.
    #[error("the network cannot be made here: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// The caller's work between making the links and bringing them up failed.
    #[error("before the links come up: {0}")]
    BeforeUp(String),
    /// It failed, and so did a part of undoing it.
    #[error("{cause}; and not everything could be undone: {}", .left.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Undo {
        /// The failure itself.
        cause: Box<Error>,
        /// What is left.
        left: Vec<Error>,
    },
}

/// Names the step that a failure belongs to.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, netlink::Error> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::Netlink {
            what: what(),
            cause,
        })
    }
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::Step {
            what: what(),
            cause,
        })
    }
}

/// A netlink socket in the namespace of the calling thread.
fn open() -> Result<netlink::Netlink, Error> {
    netlink::Netlink::open().doing(|| "opening an rtnetlink socket".to_owned())
}
