//! What netmig's eBPF programs and its user space share.
//!
//! Everything that lies in a map is `repr(C)` without padding, in the host's byte order unless a field says otherwise.
#![no_std]

pub mod accept;
pub mod adrift;
mod counters;
mod flow;
mod kept;
mod mode;
pub mod queues;
pub mod survey;

pub use counters::{COUNTED, Counters, Protocol, Tally, Unhandled};
pub use flow::{Direction, FlowHint, FlowKey, FlowState, SCALE_ABSENT, SCALE_MAX, SCALE_UNKNOWN};
pub use kept::{KeptFlow, SILENT_MS};
pub use mode::{Mode, ModeWord, Side};

/// Version of everything in this crate that is kept in a pinned map; a gate pinned by another version is not opened.
pub const LAYOUT: u32 = 3;

/// Index in map `ORDER`: packets redirected to the hold.
pub const REDIRECTED: u32 = 0;

/// Index in map `ORDER`: those of them that user space is done with, put in or given up.
pub const DONE: u32 = 1;

/// Index in map `ORDER`: those whose payload user space has acknowledged in the container's name. No program reads it.
pub const OWNED: u32 = 2;

/// Bit of [`Settings::drain`]: in `drain`, inbound datagrams go to the hold of their device, if it has one.
pub const HOLD_DATAGRAMS: u32 = 1 << 2;

/// What steers the programs besides the mode word. Read only outside of mode `pass`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Bit n set: in `drain`, windows that travel in direction n ([`Direction`]) are rewritten for flows without a hint. [`HOLD_DATAGRAMS`] is another
    /// bit.
    pub drain: u32,
    /// Counts the drains of this gate; what was seen of a connection in an earlier one does not hold any more.
    pub round: u32,
    /// Mark of the answers that user space sends in the container's name; outbound packets with it pass the closed gate of a source. 0: none do.
    pub answers: u32,
    /// Not 0: the container's own pure ACKs pass the closed gate of a source.
    pub acks: u32,
    /// From then on the container's clock, as its peers see it, stands still in `closed` (ns of CLOCK_MONOTONIC): at the target it goes on from the
    /// dump. 0: it goes.
    pub still_ns: u64,
    /// How long a lease lasts in `closed`, in ms; 0: there is none. Says when its deadline was last moved.
    pub lease_ms: u64,
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, made of integers only, no padding (checked below), every bit pattern is a value.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowHint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::KeptFlow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Tally {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::accept::Waiting {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::accept::HalfOpen {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::adrift::Asked {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::survey::Asked {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::queues::Asked {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::queues::Pass {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::queues::Search {}
}
