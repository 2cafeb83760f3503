//! Reads the connections of a namespace that somebody holds out of the kernel's memory, all in one pass: by system calls each would take some
//! hundred of them.
//!
//! The kernel holds the socket's lock while the program runs for it (bpf_iter_tcp_seq_show). A socket is copied once, and the words that are asked
//! for are picked from the copy: that is quicker than to fetch each one.
#![no_std]
#![no_main]

use aya_ebpf::{
    cty::c_void,
    helpers::{
        bpf_probe_read_kernel,
        generated::{self, bpf_seq_write},
    },
    macros::map,
    maps::{Array, PerCpuArray},
};
use netmig_common::survey::{Asked, SOCKET, V6, WORDS};

/// Written by user space.
#[map]
static ASKED: Array<Asked> = Array::with_max_entries(1, 0);

/// The socket: struct tcp_sock, and struct ipv6_pinfo.
#[repr(C)]
struct Copy {
    socket: [u8; SOCKET],
    v6: [u8; V6],
}

/// Too large for the stack.
#[map]
static COPY: PerCpuArray<Copy> = PerCpuArray::with_max_entries(1, 0);

/// Likewise. The first word is the inode's number.
#[map]
static RECORD: PerCpuArray<[u64; WORDS]> = PerCpuArray::with_max_entries(1, 0);

const AF_INET6: u16 = 10;

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
extern "C" fn nm_survey(context: *const Context) -> i32 {
    // What cannot be read is not there: user space then reads it by system calls.
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
    // SAFETY: the helper checks the address.
    let state =
        unsafe { bpf_probe_read_kernel((socket + u64::from(asked.state)) as *const u8) }.ok()?;
    if state > 31 || asked.states >> state & 1 == 0 {
        return None;
    }
    let copy = COPY.get_ptr_mut(0)?;
    // SAFETY: one element a processor, and the program does not run twice on one.
    let (place, v6_place) = unsafe { (&raw mut (*copy).socket, &raw mut (*copy).v6) };
    fetch(place.cast(), asked.socket_bytes, SOCKET as u32, socket)?;
    let words = place.cast_const().cast::<u32>();
    let is_v6 = word(words, asked.family) as u16 == AF_INET6;
    if is_v6 {
        fetch(
            v6_place.cast(),
            asked.v6_bytes,
            V6 as u32,
            pointer(words, asked.v6),
        )?;
    }
    let file = pointer(words, asked.socket);
    if file == 0 {
        return None;
    }
    let record = RECORD.get_ptr_mut(0)?.cast::<u64>();
    // SAFETY: the helper checks the address; the record has a first word.
    unsafe {
        *record = bpf_probe_read_kernel((file + u64::from(asked.inode)) as *const u64).ok()?;
    }
    let count = asked.words as usize;
    if count == 0 || count > WORDS {
        return None;
    }
    let all = copy.cast_const().cast::<u64>();
    let mut i = 1;
    while i < WORDS {
        if i >= count {
            break;
        }
        // By a mask, here and below: the verifier loses a comparison when the compiler joins it with another one.
        let at = asked.at[i] as usize & ((SOCKET + V6) / 8 - 1);
        let value = if at >= SOCKET / 8 && !is_v6 {
            0
        } else {
            // SAFETY: the copy has that many words.
            unsafe { *all.add(at) }
        };
        // SAFETY: the record has that many words.
        unsafe { *record.add(i) = value };
        i += 1;
    }
    // SAFETY: the verifier knows both as what the kernel has put there.
    let seq = unsafe { (*(*context).meta).seq };
    // SAFETY: `record` has that many bytes.
    let failed = unsafe { bpf_seq_write(seq.cast(), record.cast(), (count * 8) as u32) };
    (failed == 0).then_some(())
}

/// Copies so many bytes, at most `limit`.
#[inline(always)]
fn fetch(to: *mut c_void, bytes: u32, limit: u32, from: u64) -> Option<()> {
    if bytes == 0 || bytes > limit {
        return None;
    }
    // SAFETY: `to` has room for `limit` bytes; the helper checks where they come from.
    let failed = unsafe { generated::bpf_probe_read_kernel(to.cast(), bytes, from as *const _) };
    (failed == 0).then_some(())
}

/// A word of the copied struct tcp_sock.
#[inline(always)]
fn word(socket: *const u32, at: u32) -> u32 {
    // SAFETY: the copy has that many words.
    let word = unsafe { *socket.add((at >> 2) as usize & (SOCKET / 4 - 1)) };
    word >> ((at & 3) * 8)
}

/// A pointer in it.
#[inline(always)]
fn pointer(socket: *const u32, at: u32) -> u64 {
    // SAFETY: the copy has that many words of eight bytes.
    unsafe {
        *socket
            .cast::<u64>()
            .add((at >> 3) as usize & (SOCKET / 8 - 1))
    }
}

netmig_ebpf::object!();
