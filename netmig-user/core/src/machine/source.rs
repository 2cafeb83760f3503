//! The source's machine: what it hears, what it orders, and [`Machine`] itself.
mod machine;

pub use machine::{Machine, word};

use crate::{
    id::Epoch,
    proto::{Answer, Question, ToSource, ToTarget, Word},
};

/// Options of the move that change what the machine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Stop after the plan.
    pub dry_run: bool,
    /// Drain before the freeze at most so long, in ms; 0: no drain.
    pub drain_limit_ms: u64,
    /// Give up before the freeze when a longer blackout is predicted, and cancel when the time from the freeze to the grant exceeds this, in ms.
    pub max_blackout_ms: Option<u64>,
    /// The gate's lease in ms: without an agent for so long before the grant, the gate opens by itself.
    pub lease_ms: u64,
    /// Copies made while the container runs: at least 1, at most so many.
    pub precopy_rounds: u32,
    /// Without a link to the target for so long before the grant, the move is given up, in ms. It counts from the loss of a link, or
    /// from the first attempt that failed.
    pub link_limit_ms: u64,
    /// The same while it is planned, in ms: nothing has been touched yet, and somebody waits for the word that the target cannot be reached.
    pub planning_link_limit_ms: u64,
    /// The first attempt may be under way for so long, in ms: ssh's handshake and the start of an agent take their time on slow machines
    /// and by way of jump hosts, and nothing has been touched yet.
    pub first_link_limit_ms: u64,
    /// Between two questions to a target that was granted and is silent, and between two attempts at a record that the disk refused, in ms.
    pub ask_ms: u64,
    /// How long the end waits for the target's last word (what it could not remove; how the opening went), in ms.
    pub parting_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dry_run: false,
            drain_limit_ms: 200,
            max_blackout_ms: None,
            lease_ms: 3_000,
            precopy_rounds: 5,
            link_limit_ms: 20_000,
            planning_link_limit_ms: 5_000,
            first_link_limit_ms: 60_000,
            ask_ms: 2_000,
            parting_ms: 10_000,
        }
    }
}

/// A step that the driver has been told to do by an [`Action`] and has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Inspected: here is the question for the target, and what the source's own plan objects.
    Inspected(Box<Question>, Vec<String>),
    /// The plan was made of both hosts' facts; what it objects, beside what either side objected by itself.
    Decided(Vec<String>),
    /// The gate stands at every link, mode `pass`, pinned.
    Attached,
    /// Nothing will start the container again by itself; how to re-arm is in the journal.
    Disarmed,
    /// A pre-copy round has been sent.
    Round {
        /// Which.
        round: u32,
        /// Another one would spare more of the blackout than it costs.
        more: bool,
        /// How long it took in ms: what is left after the last one takes about as long, at most.
        ms: u64,
        /// Predicted blackout in ms, if the freeze begins now.
        blackout_ms: u64,
    },
    /// Quiet, or the limit was reached.
    Drained,
    /// Mode `closed` at every link and `lo`.
    Closed,
    /// cgroup frozen, sockets read and out of repair; the message that carries them.
    Dumped(Box<ToTarget>),
    /// All image files and the last file difference are written to the bulk connection.
    Sent {
        /// Files sent.
        files: u64,
        /// Bytes sent.
        bytes: u64,
    },
    /// compare-and-set `closed -> granted` succeeded.
    Granted,
    /// Everything was undone: container runs as before, gate off.
    Undone,
    /// The source's container is gone (or kept and renamed), gate and network removed.
    Cleaned,
}

/// What the world tells the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Begin.
    Start,
    /// A step ended well.
    Done(Done),
    /// The step under way failed; the text is for the operator. Undoing and cleaning do not fail: see `Left`.
    Failed(String),
    /// The disk refused this record. It may be there all the same.
    NotPersisted(Record, String),
    /// Undoing or cleaning went wrong in part; what is left, in words. The step has ended all the same.
    Left(Vec<String>),
    /// A message of the target.
    Message(ToSource),
    /// Hello of a target that has another epoch than before (its agent was restarted) or answers for the first time: what its journal says.
    PeerWord(Word),
    /// The control connection broke. It is being dialled again.
    LinkDown,
    /// The control connection is there (again); messages are resent below the machine.
    LinkUp,
    /// The record handed out by [`Action::Persist`] is on disk.
    Persisted(Record),
    /// The engine is about to stop the tasks and waits (CRIU: `pre-dump`). An engine without this moment begins with `EngineFrozen`;
    /// nothing is drained then.
    EngineStarting,
    /// The engine stopped the tasks and waits (CRIU: `network-lock`).
    EngineFrozen,
    /// The engine has written everything and waits (CRIU: `post-dump`).
    EngineDumped,
    /// The engine ended without having been told to.
    EngineGone(String),
    /// The timer fired.
    Timeout(Timer),
    /// The operator (or a limit) wants the container back.
    Cancel(String),
    /// The operator decides, knowing that the target cannot run the container (fenced): take it back after a grant.
    Reclaim,
}

/// Timers, set and cleared by the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The link is down or silent before the grant for too long.
    Link,
    /// `--max-blackout` since the freeze.
    Blackout,
    /// Ask the target again for its word; try a record again; the target's last word is late.
    Ask,
}

/// What must be on disk before the move goes on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Record {
    /// The move exists: what it moves and where to. Epoch of this agent life.
    Begun(Epoch),
    /// How to re-arm what was disarmed is in the record that the driver adds.
    Disarmed,
    /// The target may release.
    Granted,
    /// The target has the container.
    Released,
    /// The container stays here.
    Kept(String),
    /// All is cleaned.
    Closed,
}

/// What the driver is to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at the container, its network, sockets, tasks and mounts; answer [`Done::Inspected`].
    Inspect,
    /// Put it on the outgoing queue of the control connection (kept across reconnections).
    Send(ToTarget),
    /// Write and fsync; answer [`Event::Persisted`].
    Persist(Record),
    /// Make the plan of the question and the target's answer (`plan::decide`); answer [`Done::Decided`].
    Decide(Box<Answer>),
    /// Attach the gate in mode `pass`; answer [`Done::Attached`].
    Attach,
    /// Answer [`Done::Disarmed`].
    Disarm,
    /// Copy files, and memory as far as it has changed since the last round; answer [`Done::Round`].
    Precopy(u32),
    /// Mode `drain`; answer [`Done::Drained`].
    Drain,
    /// Start the engine's dump. It answers by `EngineStarting` (if it has that moment), `EngineFrozen` and `EngineDumped`.
    Freeze,
    /// Mode `closed`; answer [`Done::Closed`].
    Close,
    /// Let the engine go on from the moment at which it waits (`EngineStarting` or `EngineFrozen`).
    EngineGoOn,
    /// Freeze the cgroup, read the sockets; answer [`Done::Dumped`].
    DumpSockets,
    /// Send what is not yet sent of images and files; answer [`Done::Sent`].
    SendRest,
    /// Compare-and-set in the gate; answer [`Done::Granted`] or `Failed`.
    Grant,
    /// Stop the step under way, then undo everything done so far, in the order deliver, gate `pass`, reopen, re-arm, thaw; answer
    /// [`Done::Undone`] (`Left` before it), whatever went wrong. Must be right a second time, and after a crash in the middle. A moment
    /// that the engine presents from now on is answered by the driver: no.
    Undo,
    /// The container lives at the target: end the engine's dump with success, remove or keep the record; answer [`Done::Cleaned`] (`Left`
    /// before it), whatever went wrong. Must be right a second time, and after a crash in the middle.
    Clean,
    /// Set (or set anew) a timer, in ms.
    SetTimer(Timer, u64),
    /// Stop a timer.
    ClearTimer(Timer),
    /// Tell the client of a new phase.
    Phase(Phase),
    /// The end: close the connection once `link::Conversation::is_flushed`, or after a limit. Later messages may still be handed to the
    /// machine, which answers those that would leave the target waiting.
    Finish(Outcome),
}

/// Phases for progress and report.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Looking and asking.
    Plan,
    /// Gate attached, disarming, target prepares.
    Attach,
    /// Copy while it runs.
    Precopy,
    /// Windows to zero.
    Drain,
    /// Being stopped.
    Freeze,
    /// Engine writes, sockets are read.
    Dump,
    /// The rest goes over.
    Transfer,
    /// The target builds.
    Rebuild,
    /// Compare-and-set, journal, word.
    Grant,
    /// The target opens.
    Open,
    /// Peers are told.
    Announce,
    /// The source clears up, or the move is undone.
    Clean,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plan => "plan",
            Self::Attach => "attach",
            Self::Precopy => "precopy",
            Self::Drain => "drain",
            Self::Freeze => "freeze",
            Self::Dump => "dump",
            Self::Transfer => "transfer",
            Self::Rebuild => "rebuild",
            Self::Grant => "grant",
            Self::Open => "open",
            Self::Announce => "announce",
            Self::Clean => "clean",
        })
    }
}

/// How a move ended.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// It lives at the target.
    Moved,
    /// It lives at the source; why, in words.
    Kept(String),
    /// Nothing was begun; reasons.
    Refused(Vec<String>),
    /// `--dry-run`: the answer.
    Planned(Box<Answer>),
}
