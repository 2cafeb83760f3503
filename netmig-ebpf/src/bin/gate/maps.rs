//! The gate's maps; user space pins them under the names they have here.
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};

use crate::kept::Answer;
use netmig_common::{COUNTED, FlowHint, FlowKey, FlowState, KeptFlow, Settings, Tally};

/// Connections that one container may have during a move.
const FLOWS_MAX: u32 = 262_144;

/// [`netmig_common::ModeWord`]; changed by atomic operations only, by user space through mmap.
#[map]
pub static MODE: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One element.
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Inbound, outbound, loopback.
#[map]
pub static TALLIES: PerCpuArray<Tally> = PerCpuArray::with_max_entries(COUNTED, 0);

/// By index of a device with a gate: index of the device that inbound packets are redirected to in `closed` and `granted`.
#[map]
pub static HOLDS: HashMap<u32, u32> = HashMap::with_max_entries(64, 0);

/// [`netmig_common::REDIRECTED`], [`netmig_common::DONE`] and [`netmig_common::OWNED`]; changed by atomic operations only, by user space through mmap.
#[map]
pub static ORDER: Array<u64> = Array::with_max_entries(3, BPF_F_MMAPABLE);

/// Written by user space.
#[map]
pub static HINTS: HashMap<FlowKey, FlowHint> =
    HashMap::with_max_entries(FLOWS_MAX, BPF_F_NO_PREALLOC);

/// Written by the program.
#[map]
pub static FLOWS: HashMap<FlowKey, FlowState> =
    HashMap::with_max_entries(FLOWS_MAX, BPF_F_NO_PREALLOC);

/// Written by user space.
#[map]
pub static KEPT: HashMap<FlowKey, KeptFlow> =
    HashMap::with_max_entries(FLOWS_MAX, BPF_F_NO_PREALLOC);

/// Memory of one run of a program, besides what the headers need ([`netmig_ebpf::scratch`]).
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What there is no room for on the stack, and what was found on one of many paths ([`netmig_ebpf::scratch::Scratch`]).
#[repr(C)]
pub struct Scratch {
    /// An answer, from its IP header on.
    pub answer: Answer,
    /// The connection.
    pub key: FlowKey,
    /// What came of it.
    pub verdict: i32,
}

/// The scratch memory of this CPU; a program runs with softirqs off, so no other run gets at it meanwhile.
#[inline(always)]
pub fn scratch() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}

/// Its addresses are read as words.
const _: () = assert!(core::mem::offset_of!(Scratch, key) % 4 == 0);
