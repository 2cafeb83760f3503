//! Gives rebuilt connections the congestion windows that they had: TCP_REPAIR does not carry them, and nothing else sets them.
//!
//! `TCP_BPF_IW` does, for a connection that has sent nothing yet (bpf_sol_tcp_setsockopt); a connection in repair has not. The kernel holds the socket's lock
//! while the program runs for it (bpf_iter_tcp_seq_show).
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_seq_write, bpf_setsockopt},
    macros::map,
    maps::HashMap,
};

/// By socket cookie: segments. Written by user space.
#[map]
static WINDOWS: HashMap<u64, u32> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

const IPPROTO_TCP: i32 = 6;
const TCP_BPF_IW: i32 = 1001;

/// struct bpf_iter__tcp.
#[repr(C)]
struct Context {
    meta: *const Meta,
    socket: *mut c_void,
}

/// The head of struct bpf_iter_meta.
#[repr(C)]
struct Meta {
    seq: *mut c_void,
}

/// Called for every TCP socket, and once more without one at the end. Writes the cookies of those whose window is set.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
extern "C" fn nm_warm(context: *const Context) -> i32 {
    // What is not written is told by user space.
    let _warmed = one(context);
    0
}

#[inline(always)]
fn one(context: *const Context) -> Option<()> {
    // SAFETY: the program's context; the verifier knows the pointer as that of a struct sock_common.
    let socket = unsafe { (*context).socket };
    if socket.is_null() {
        return None;
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_socket_cookie(socket) };
    // SAFETY: nothing changes it while the program runs.
    let mut window = unsafe { *WINDOWS.get(&cookie)? };
    let value = (&raw mut window).cast();
    // SAFETY: as above; `value` has that many bytes.
    let refused = unsafe {
        bpf_setsockopt(
            socket,
            IPPROTO_TCP,
            TCP_BPF_IW,
            value,
            size_of::<u32>() as i32,
        )
    };
    if refused != 0 {
        return None;
    }
    // SAFETY: the verifier knows both as what the kernel has put there.
    let seq = unsafe { (*(*context).meta).seq };
    // SAFETY: `cookie` has that many bytes.
    let failed = unsafe {
        bpf_seq_write(
            seq.cast(),
            (&raw const cookie).cast_mut().cast(),
            size_of::<u64>() as u32,
        )
    };
    (failed == 0).then_some(())
}

netmig_ebpf::object!();
