//! What can go wrong at the gate.
use std::{fmt, io, path::PathBuf};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};
use netmig_common::Mode;
use netmig_core::id::MoveId;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reading what a directory holds.
    List,
    /// Making the directory of pins.
    Create,
    /// Writing the record of what is about to be attached.
    Record,
    /// Reading such a record.
    ReadRecord,
    /// Removing pins.
    Unpin,
    /// Looking a device up by its index.
    Look,
    /// Asking what is attached already.
    Query,
    /// Adding the clsact qdisc.
    Clsact,
    /// Attaching a program.
    Attach,
    /// Taking a program off.
    Detach,
    /// Reading held packets.
    Read,
    /// Putting held packets in.
    Inject,
    /// Sending an answer in the container's name.
    Answer,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "listing",
            Self::Create => "making",
            Self::Record => "writing the record",
            Self::ReadRecord => "reading the record",
            Self::Unpin => "removing",
            Self::Look => "looking up",
            Self::Query => "asking what is attached to",
            Self::Clsact => "adding a clsact qdisc to",
            Self::Attach => "attaching to",
            Self::Detach => "detaching from",
            Self::Read => "reading from",
            Self::Inject => "putting held packets in at",
            Self::Answer => "answering in the container's name at",
        })
    }
}

/// What was tried on what; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory of pins.
    #[error("{step} {path}", path = path.display())]
    Pins {
        /// What was tried.
        step: Step,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The path is not on a BPF file system.
    #[error("{path} is not on a BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf", path = path.display())]
    NotBpffs {
        /// The path.
        path: PathBuf,
    },
    /// A gate is pinned there already.
    #[error("{pins} exists: a gate of this move is attached already; reopen or clear it", pins = pins.display())]
    Exists {
        /// The directory.
        pins: PathBuf,
    },
    /// Nothing (or nothing whole) is pinned there.
    #[error("no gate is pinned at {pins}", pins = pins.display())]
    Absent {
        /// The directory.
        pins: PathBuf,
    },
    /// Another version of netmig pinned it.
    #[error("the gate at {pins} has layout {found}, this netmig knows {known}; use the version that attached it", pins = pins.display(), known = netmig_common::LAYOUT)]
    Layout {
        /// The directory.
        pins: PathBuf,
        /// Its layout.
        found: u32,
    },
    /// The directory belongs to another move.
    #[error("the gate at {pins} belongs to move {found}, not to {expected}", pins = pins.display())]
    OtherMove {
        /// The directory.
        pins: PathBuf,
        /// Whose it is.
        found: MoveId,
        /// Whose it was taken for.
        expected: MoveId,
    },
    /// A record that this version did not write.
    #[error("the record {path} says {text:?}, which is no record of a gate", path = path.display())]
    BadRecord {
        /// The symbolic link.
        path: PathBuf,
        /// Its target.
        text: String,
    },
    /// Programs or maps could not be loaded.
    #[error("loading the gate's programs into the kernel")]
    Load(#[source] Box<EbpfError>),
    /// One program could not be loaded or opened.
    #[error("program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why not.
        source: Box<ProgramError>,
    },
    /// A pin could not be made.
    #[error("pinning {name}")]
    Pin {
        /// What.
        name: String,
        /// Why not.
        source: PinError,
    },
    /// A map could not be opened, read or written.
    #[error("map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why not.
        source: MapError,
    },
    /// The mode word could not be mapped into memory.
    #[error("mapping the mode word")]
    Mmap(#[source] io::Error),
    /// Programs that may still run could not be waited for.
    #[error("waiting for the programs that run (membarrier)")]
    Settle(#[source] io::Error),
    /// The clock of the lease could not be read.
    #[error("reading CLOCK_BOOTTIME")]
    Clock(#[source] io::Error),
    /// The device is gone.
    #[error("device {device} (index {ifindex}) is gone")]
    Gone {
        /// Its name when the point was made.
        device: String,
        /// Its index.
        ifindex: u32,
    },
    /// The device has no Ethernet header.
    #[error("device {device} has link type {kind}: the gate reads Ethernet frames alone")]
    LinkType {
        /// Its name.
        device: String,
        /// ARPHRD_*.
        kind: String,
    },
    /// The gate of another move stands there.
    #[error("device {device} has a gate already{by}; end that move first, or clear its gate")]
    Occupied {
        /// Its name.
        device: String,
        /// `", pinned at ..."` where that is known.
        by: String,
    },
    /// A step at a device failed.
    #[error("{step} device {device}")]
    Device {
        /// What was tried.
        step: Step,
        /// On what.
        device: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Bytes that are no held packet.
    #[error("{length} bytes are no held packet")]
    BadPacket {
        /// How many.
        length: usize,
    },
    /// Packets are put in at the host's end of a veth pair.
    #[error(
        "held packets cannot be put in at device {device}: it is not the host's end of a veth pair"
    )]
    NoInjection {
        /// Its name.
        device: String,
    },
    /// The namespace of a point could not be entered.
    #[error("entering the namespace of a link")]
    Namespace(#[from] io::Error),
    /// The lease ran out: the gate has opened by itself and the container may have spoken.
    #[error("the gate's lease has run out: the gate is open")]
    Expired,
    /// Granted: only the target's word, or the operator's, ends that.
    #[error("the move is granted: the target may run the container")]
    Granted,
    /// Not in the mode that the change starts from.
    #[error("the gate is in mode {mode:?}, not closed")]
    NotClosed {
        /// The mode.
        mode: Mode,
    },
    /// This mode is not set this way.
    #[error("mode {mode:?} is not set by set_mode")]
    Unsettable {
        /// The mode.
        mode: Mode,
    },
    /// Leases and grants exist at the source alone.
    #[error("a target's gate has neither lease nor grant")]
    AtTarget,
    /// Somebody later has taken over.
    #[error("epoch {given} may not change the gate: epoch {current} has taken it over")]
    Stale {
        /// The caller's.
        given: u32,
        /// The gate's.
        current: u16,
    },
    /// The word holds 16 bits of epoch.
    #[error("epoch {0} is more than the gate's word holds")]
    Epoch(u32),
    /// No version of netmig wrote this.
    #[error("the mode word is {0:#x}, which no netmig wrote")]
    Word(u64),
}
