//! The target's machine: what it hears, what it orders, and [`Machine`] itself.
mod machine;

pub use machine::{Machine, word};

use crate::{
    id::Epoch,
    proto::{Answer, Question, ToSource, ToTarget, Word},
};

/// Options of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// From the start of the engine's restore to its release at most so long, in ms: podman kills a restore after 240 s. Giving up before
    /// the release is always safe, for the source takes the container back on that word.
    pub patience_ms: u64,
    /// Without a link before `Prepared` for so long, give up, in ms.
    pub link_limit_ms: u64,
    /// Between two attempts at a record that the disk refused, in ms.
    pub retry_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patience_ms: 200_000,
            link_limit_ms: 60_000,
            retry_ms: 1_000,
        }
    }
}

/// What the world tells the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message of the source.
    Message(ToTarget),
    /// Hello of a source with another epoch than before: what its journal says.
    PeerWord(Word),
    /// The control connection broke.
    LinkDown,
    /// It is there again.
    LinkUp,
    /// The record handed out by [`Action::Persist`] is on disk.
    Persisted(Record),
    /// The disk refused this record. It may be there all the same.
    NotPersisted(Record, String),
    /// [`Action::Answer`] has its answer.
    Answered(Box<Answer>),
    /// [`Action::Prepare`] ended.
    Created,
    /// All image files and file differences that `Dumped` counted have arrived.
    Complete,
    /// The engine rebuilt the processes and waits (CRIU: `post-restore`).
    EngineRebuilt,
    /// The sockets are rebuilt behind the closed gate; microseconds since `Rebuild`.
    SocketsRebuilt(u64),
    /// The engine stands at its last moment and waits (CRIU: `pre-resume`).
    EngineReady,
    /// The gate is open, the peers' windows are reopened and the first announcement is out; further rounds need not be waited for.
    Opened {
        /// Microseconds since the grant was read.
        open_us: u64,
        /// Microseconds of these that the first round of announcements took.
        announce_us: u64,
        /// What could not be set up.
        warnings: Vec<String>,
    },
    /// The runtime says that the container runs.
    EngineRunning,
    /// The engine ended with an error, or without having come to its end.
    EngineGone(String),
    /// The step under way failed.
    Failed(String),
    /// [`Action::Discard`] ended; what could not be removed. Never while a process of the container could still run here.
    Discarded(Vec<String>),
    /// A timer fired.
    Timeout(Timer),
    /// The operator decides: the source is fenced, release here.
    ReleaseFenced,
    /// The operator decides: give up here, before a release.
    GiveUp,
}

/// Timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// Not released for so long that the runtime will give up soon (podman: 200 s); after the release: the engine's end was not seen.
    Patience,
    /// Link down before `Prepared` for too long.
    Link,
    /// Try a record again.
    Retry,
}

/// What must be on disk.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Record {
    /// A move to here exists; what it may have made is named by the driver beside it.
    Begun(Epoch),
    /// Everything rebuilt, nothing released.
    Prepared,
    /// The source's grant was read.
    Granted,
    /// The container lives here.
    Released,
    /// It does not and never will.
    Failed(String),
    /// The source knows the end; the record may go.
    Closed,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at this host for the question; answer [`Event::Answered`].
    Answer(Box<Question>),
    /// Queue a message.
    Send(ToSource),
    /// Write and fsync; answer [`Event::Persisted`].
    Persist(Record),
    /// Make namespace, links behind a closed gate, the container's record; answer [`Event::Created`].
    Prepare(Box<Question>),
    /// Keep the sockets for the rebuild.
    Store(Box<ToTarget>),
    /// Wait for the counted files; answer [`Event::Complete`].
    AwaitFiles {
        /// Files.
        files: u64,
        /// Bytes.
        bytes: u64,
    },
    /// The images will be whole soon: the engine's restore may be started, if it waits for [`Action::Rebuild`] before it reads one. No answer,
    /// also if that fails.
    Warm,
    /// Start the engine's restore, or let it go on; answers by `EngineRebuilt`.
    Rebuild,
    /// Rebuild sockets behind the closed gate; answer [`Event::SocketsRebuilt`].
    RebuildSockets,
    /// Let the engine go on to its last moment; answers by `EngineReady`.
    EngineRelease,
    /// Gate `pass`, announce, reopen; answer [`Event::Opened`] or `Failed`. May come again.
    Open,
    /// Let the engine resume the tasks; answers by `EngineRunning`.
    EngineResume,
    /// Stop the step under way, then remove all that was made (the engine's processes first); answer [`Event::Discarded`]. Must be right a
    /// second time, and after a crash in the middle. A moment that the engine presents from now on is answered by the driver: no.
    Discard,
    /// Set a timer, in ms.
    SetTimer(Timer, u64),
    /// Stop a timer.
    ClearTimer(Timer),
    /// The end; true: the container lives here. Close the connection once `link::Conversation::is_flushed`, or after a limit.
    Finish(bool),
}
