//! Memory of one run of a program, for what it finds out of a packet.
use aya_ebpf::{macros::map, maps::PerCpuArray};

use crate::{packet::Packet, tcp::Found};

/// See [`Scratch`].
#[map]
static HEADERS: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What a program found out of a packet on one of many paths.
///
/// The verifier keeps track of every value in registers and on the stack, and walks what follows once for each combination that the paths
/// before can leave there; it keeps no track of a map's memory. So results go through here, written and read as volatile: else the
/// compiler would keep them in registers.
#[repr(C)]
pub struct Scratch {
    /// Of the headers.
    pub packet: Packet,
    /// Of the TCP options.
    pub found: Found,
    /// The TCP options themselves.
    pub options: [u8; 64],
}

/// The scratch memory of this CPU; a program runs with softirqs off, so no other run gets at it meanwhile.
#[inline(always)]
pub fn scratch() -> Option<*mut Scratch> {
    HEADERS.get_ptr_mut(0)
}
