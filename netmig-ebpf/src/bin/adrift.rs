//! Reads TCP sockets of a namespace out of the kernel's memory: those that have no descriptor by which they could be read.
//!
//! There is no CO-RE from Rust: user space has looked up in the kernel's type information where the fields lie.
#![no_std]
#![no_main]

use aya_ebpf::{
    cty::c_void,
    helpers::{bpf_probe_read_kernel, generated::bpf_seq_write},
    macros::map,
    maps::{Array, PerCpuArray},
};
use netmig_common::adrift::{ABSENT, Asked, FIELDS, NEW_SYN_RECV, Record, TIME_WAIT};

/// Written by user space.
#[map]
static ASKED: Array<Asked> = Array::with_max_entries(1, 0);

/// Too large for the stack.
#[map]
static RECORD: PerCpuArray<Record> = PerCpuArray::with_max_entries(1, 0);

/// struct bpf_iter__tcp.
#[repr(C)]
struct Context {
    meta: *const Meta,
    socket: *const c_void,
}

/// The head of struct bpf_iter_meta.
#[repr(C)]
struct Meta {
    seq: *mut c_void,
}

/// Called for every TCP socket, and once more without one at the end.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
extern "C" fn nm_adrift(context: *const Context) -> i32 {
    // What cannot be read is not there.
    let _written = one(context);
    0
}

#[inline(always)]
fn one(context: *const Context) -> Option<()> {
    // As a number: what is added to a pointer that the verifier knows must be a constant.
    // SAFETY: the helper checks the address.
    let socket =
        unsafe { bpf_probe_read_kernel((&raw const (*context).socket).cast::<u64>()) }.ok()?;
    if socket == 0 {
        return None;
    }
    let asked = ASKED.get(0)?;
    let state = byte(socket, asked.state)?;
    if state > 31 || asked.states >> state & 1 == 0 {
        return None;
    }
    let offsets = match state {
        TIME_WAIT => &asked.time_wait,
        NEW_SYN_RECV => &asked.request,
        _ => &asked.full,
    };
    let record = RECORD.get_ptr_mut(0)?;
    // SAFETY: one element a processor, and the program does not run twice on one.
    unsafe {
        (*record).socket = socket;
        (*record).state = state;
    }
    let mut i = 0;
    while i < FIELDS {
        let at = offsets[i];
        let value = if at == ABSENT { 0 } else { long(socket, at)? };
        // SAFETY: as above.
        unsafe { (*record).values[i] = value };
        i += 1;
    }
    // SAFETY: the verifier knows both as what the kernel has put there.
    let seq = unsafe { (*(*context).meta).seq };
    // SAFETY: `record` has that many bytes.
    let failed = unsafe { bpf_seq_write(seq.cast(), record.cast(), size_of::<Record>() as u32) };
    (failed == 0).then_some(())
}

#[inline(always)]
fn byte(socket: u64, at: u32) -> Option<u64> {
    // SAFETY: the helper checks the address.
    let byte = unsafe { bpf_probe_read_kernel((socket + u64::from(at)) as *const u8) }.ok()?;
    Some(u64::from(byte))
}

#[inline(always)]
fn long(socket: u64, at: u32) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((socket + u64::from(at)) as *const u64) }.ok()
}

netmig_ebpf::object!();
