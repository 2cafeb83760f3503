//! Messages between the two agents of a move (bodies of frames on the control connection).
use crate::{
    container::Container,
    id::{Epoch, Life, MoveId},
    image::v1::{conntrack::Remembered, net::Network, sock::Sockets},
    service::Behind,
};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

/// Version of the messages in this file; another one is refused at `Hello`.
pub const PROTOCOL: u32 = 5;

/// Opens every connection and may come again at any moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the sender.
    pub protocol: u32,
    /// `CARGO_PKG_VERSION` of the sender, for the error text.
    pub version: String,
    /// Which move this connection belongs to.
    pub mv: MoveId,
    /// The sender's life with this move.
    pub life: Life,
    /// The receiver's life that the sender has met last: `last_seen` counts in that one and says nothing of another.
    pub peer: Option<Life>,
    /// What the connection carries.
    pub channel: Channel,
    /// Highest sequence number of a message received from the receiver's life `peer`; 0 for none.
    pub last_seen: u64,
    /// What the sender's journal says of the move.
    pub word: Word,
}

/// Single bytes at the beginning of a measurement.
pub const PINGS: usize = 3;
/// Blocks of a measurement, at most: 4 MiB.
pub const BURST_BLOCKS: usize = 64;
/// Bytes of one.
pub const BURST_BLOCK: usize = 64 << 10;

/// What a connection carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// [`Numbered`] messages, both ways.
    Control,
    /// Image files from source to target.
    Bulk,
    /// One rsync session: after the Hello both ways the bytes are rsync's own.
    Rsync {
        /// Arguments that the source's rsync wants to give to `rsync --server`.
        args: Vec<String>,
    },
    /// Held packets from source to target, and marks both ways.
    Hold,
    /// The container's image, where the target lacks it: after the Hello the bytes to the target are an archive.
    Image,
    /// While the plan is made: how fast the link is. After the Hello first [`PINGS`] bytes, each answered by one, then at most
    /// [`BURST_BLOCKS`] blocks of [`BURST_BLOCK`] bytes, each answered by one.
    Measure,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Bulk => "bulk",
            Self::Rsync { .. } => "rsync",
            Self::Hold => "hold",
            Self::Image => "image",
            Self::Measure => "measure",
        })
    }
}

/// The durable word of one side, read from its journal: all that may be concluded after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// No record of this move.
    Unknown,
    /// The move is under way and nothing irrevocable has been said.
    Undecided,
    /// Source: the target may release. Target: the source's grant has been read.
    Granted,
    /// Target: the container lives here. Source: it has heard so, and is not clean yet.
    Released,
    /// Target: it never did and never will live here by this move.
    FailedBeforeRelease,
    /// Source: the container stays here.
    Kept,
    /// Source: the container lives at the target, and nothing of it is left here that could run.
    Moved,
}

/// A message with its number: counted from 1 in each direction, resent after a reconnection from `last_seen` + 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered<M> {
    /// Number of this message.
    pub seq: u64,
    /// Highest number received from the other end so far.
    pub ack: u64,
    /// The message; none for a bare acknowledgement.
    pub body: Option<M>,
}

/// From source to target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToTarget {
    /// Step 0: what would you say to this? Changes nothing.
    Ask(Box<Question>),
    /// Step 1: create namespace, links (gate closed), the container's record.
    Prepare(Box<Question>),
    /// Step 2: a pre-copy round ends here (files, memory where the engine has rounds).
    Round(u32),
    /// Step 5: the sockets, after the freeze.
    Sockets(Box<Sockets>),
    /// Step 5: every image file and the last file difference is on its way; the counts let the target know when it has all.
    Dumped {
        /// Number of image files sent on the bulk connection.
        files: u64,
        /// Sum of their lengths in bytes.
        bytes: u64,
    },
    /// Step 7.
    Grant(Epoch),
    /// Before the grant: undo.
    Abort {
        /// What the operator should read.
        why: String,
    },
    /// Step 9: everything at the source is undone or gone, the record may be closed.
    Finish,
    /// Step 4: the freeze begins, and what is left to send takes a moment only: the engine may be started, as far as it goes without images.
    Freezing,
    /// Step 5, before the sockets: what the network remembers of the traffic, where that is anything. Right before the grant once more: what
    /// the source host has begun to track since.
    Remembered(Box<Remembered>),
}

/// From target to source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSource {
    /// Answer to [`ToTarget::Ask`].
    Answer(Box<Answer>),
    /// Answer to [`ToTarget::Prepare`]: it stands, gate closed.
    Ready,
    /// Step 6: everything rebuilt, nothing released.
    Prepared {
        /// Wall time of the rebuild in microseconds, for the report.
        rebuild_us: u64,
    },
    /// Step 8: it lives here. Sent as soon as that is durable, before the gate opens.
    Released,
    /// After `Released`: the gate is open and the tasks run, or what went wrong is among the warnings.
    Opened {
        /// Microseconds from reading the grant to the gate's opening.
        open_us: u64,
        /// Microseconds of these that the first round of announcements took.
        announce_us: u64,
        /// What could not be set up, in words.
        warnings: Vec<String>,
    },
    /// It does not live here and never will by this move; all that was made has been removed, except what `left` names.
    Failed {
        /// Why, in words for the operator.
        why: String,
        /// What could not be removed.
        left: Vec<String>,
    },
}

/// What the source wants to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The container.
    pub container: Container,
    /// Its network.
    pub network: Network,
    /// The bridge (or parent device) on the source host for each link, by the link's name inside.
    pub attach: Vec<Attach>,
    /// The source host.
    pub facts: HostFacts,
    /// Bytes of memory, of files to copy: what the target needs room for.
    pub memory_bytes: u64,
    /// See `memory_bytes`.
    pub file_bytes: u64,
    /// Bytes of the container's image at the source; 0 where its runtime has no images.
    pub image_bytes: u64,
    /// What lies between it and its peers on the source host, if that moves with it.
    pub behind: Option<Behind>,
}

/// Where a link of the container hangs on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Attach {
    /// Name of the link inside the container.
    pub link: String,
    /// Name of the bridge or parent device on the host.
    pub parent: String,
}

/// A host as far as a plan must compare it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// `uname -n`.
    pub hostname: String,
    /// `uname -m`.
    pub arch: String,
    /// `uname -r`.
    pub kernel: String,
    /// CRIU's version, e.g. `4.2.1`; none if it is not there.
    pub criu: Option<String>,
    /// Versions of podman, runc, crun, rsync as far as they are there: name and version.
    pub tools: Vec<(String, String)>,
    /// Flags line of /proc/cpuinfo, sorted.
    pub cpu_flags: Vec<String>,
    /// 2 where cgroup2 is the hierarchy at /sys/fs/cgroup.
    pub cgroup: u8,
    /// Content of /sys/kernel/security/lsm, split.
    pub lsm: Vec<String>,
    /// Bytes free on disk, for files and container images.
    pub free_bytes: u64,
    /// Bytes free where the images of memory lie, usually a tmpfs.
    pub run_free_bytes: u64,
    /// Memory that may be taken without swapping, in bytes (`MemAvailable` of /proc/meminfo).
    pub memory_available_bytes: u64,
}

/// What the target says to a [`Question`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The target host.
    pub facts: HostFacts,
    /// Each a reason why the move cannot start, with what to do.
    pub objections: Vec<String>,
    /// What will be missing at the target, without being a reason against the move.
    pub warnings: Vec<String>,
    /// The target has not got the container's image, and waits for it after [`ToTarget::Prepare`].
    pub lacks_image: bool,
    /// Service addresses that the target has by itself: they need not be moved.
    pub shared: Vec<IpAddr>,
}
