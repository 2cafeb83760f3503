//! Reads send queues of TCP sockets of a namespace out of the kernel's memory: of those that have no descriptor by which they could be read.
//!
//! The kernel holds the socket's lock while a program runs for it (bpf_iter_tcp_seq_show), so a queue is as it is. Its bytes lie in pages; where a
//! page is follows from where its `struct page` is, by a constant that user space has found out.
#![no_std]
#![no_main]

use core::{ffi::c_void, mem, ptr};

use aya_ebpf::{
    helpers::{bpf_loop, bpf_probe_read_kernel, generated},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use netmig_common::queues::{
    ALL, Asked, BYTES, FROM, FULL, Head, MARKS, PAGE, PIECE, Pass, Record, Search,
};

/// Written by user space.
#[map]
static ASKED: Array<Asked> = Array::with_max_entries(1, 0);

/// How far it is.
#[map]
static PASS: Array<Pass> = Array::with_max_entries(1, 0);

#[map]
static SEARCH: Array<Search> = Array::with_max_entries(1, 0);

#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Too large for the stack.
#[map]
static RECORD: PerCpuArray<Record> = PerCpuArray::with_max_entries(1, 0);

/// The head of struct bpf_iter__tcp.
#[repr(C)]
struct Context {
    _meta: *const c_void,
    socket: *const c_void,
}

/// Most steps for one socket (BPF_MAX_LOOPS).
const STEPS: u32 = 1 << 23;

/// What comes next.
#[derive(Clone, Copy, PartialEq)]
#[repr(u64)]
enum Next {
    /// The leftmost below a node of the tree of what was sent.
    Down,
    /// What follows a node of the tree.
    Up,
    /// A segment, of the tree or of the list.
    Segment,
    /// The bytes of a stretch of memory.
    Bytes,
    /// The next page of a segment.
    Page,
    /// The first one of the list of what was not sent, or what follows.
    List,
}

/// Where it is in a socket's queues.
#[repr(C)]
struct Walk {
    socket: u64,
    next: Next,
    /// The segment, or the node of the tree that it is.
    segment: u64,
    /// 1: of the tree.
    sent: u64,
    /// struct skb_shared_info.
    shared: u64,
    /// How many pages it has, and which comes next.
    pieces: u64,
    piece: u64,
    at: u64,
    left: u64,
    /// Of the next byte.
    seq: u32,
    /// Bytes before this one are known.
    from: u32,
    from_counts: u64,
}

/// Called for every TCP socket, and once more without one at the end.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
extern "C" fn nm_queues(context: *const Context) -> i32 {
    // What cannot be read is missing in the stream, as user space finds.
    let _walked = one(context);
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
    let known = ASKED.get(0)?;
    let state = byte(socket, known.places.state)?;
    if state > 31 || known.states >> state & 1 == 0 {
        return None;
    }
    if known.port != 0 && half(socket, known.places.port)? != known.port {
        return None;
    }
    let pass = PASS.get_ptr_mut(0)?;
    // SAFETY: a value of the map stays where it is, and one thread runs a pass.
    let pass = unsafe { &mut *pass };
    let mut walk = Walk {
        socket,
        next: Next::List,
        segment: 0,
        sent: 0,
        shared: 0,
        pieces: 0,
        piece: 0,
        at: 0,
        left: 0,
        seq: 0,
        from: 0,
        from_counts: 0,
    };
    match pass.state {
        ALL => {}
        FROM if pass.socket == socket => {
            pass.state = ALL;
            walk.from = pass.seq;
            walk.from_counts = 1;
        }
        _ => return None,
    }
    let root = long(socket, known.places.sent)?;
    if root != 0 {
        walk.segment = root;
        walk.sent = 1;
        walk.next = Next::Down;
    }
    // SAFETY: the callback is given what it expects, and does not outlive this call.
    let _steps = unsafe { bpf_loop(STEPS, step as *mut c_void, (&raw mut walk).cast(), 0) };
    Some(())
}

/// One step of a walk; not 0 ends it.
extern "C" fn step(_index: u64, walk: *mut Walk) -> i64 {
    // SAFETY: it is the caller's own.
    let walk = unsafe { &mut *walk };
    match advance(walk) {
        Some(()) => 0,
        None => 1,
    }
}

#[inline(always)]
fn advance(walk: &mut Walk) -> Option<()> {
    let asked = ASKED.get(0)?;
    let places = &asked.places;
    match walk.next {
        Next::Down => match long(walk.segment, places.left)? {
            0 => walk.next = Next::Segment,
            left => walk.segment = left,
        },
        Next::Up => {
            // The lowest bits are the node's colour.
            let parent = long(walk.segment, places.parent)? & !3;
            if parent == 0 {
                walk.sent = 0;
                walk.segment = 0;
                walk.next = Next::List;
            } else {
                if long(parent, places.left)? == walk.segment {
                    walk.next = Next::Segment;
                }
                walk.segment = parent;
            }
        }
        Next::Segment => {
            let skb = if walk.sent == 1 {
                walk.segment - u64::from(places.node)
            } else {
                walk.segment
            };
            let (len, data_len) = (word(skb, places.len)?, word(skb, places.data_len)?);
            walk.seq = word(skb, places.seq)?;
            walk.at = long(skb, places.data)?;
            walk.left = u64::from(len.wrapping_sub(data_len));
            walk.shared = long(skb, places.head)? + u64::from(word(skb, places.end)?);
            walk.pieces = byte(walk.shared, places.pieces)?;
            walk.piece = 0;
            walk.next = Next::Bytes;
            // TCP makes no such chains; what is in one would be missing.
            if long(walk.shared, places.list)? != 0 {
                return None;
            }
        }
        Next::Bytes if walk.left == 0 => walk.next = Next::Page,
        Next::Bytes => bytes(walk)?,
        Next::Page if walk.piece < walk.pieces => {
            let piece = u64::from(places.piece) + walk.piece * u64::from(places.piece_size);
            let piece = walk.shared + piece;
            let page = long(piece, places.page)?;
            let offset = u64::from(word(piece, places.page_offset)?);
            if asked.base == 0 {
                tell(walk, PAGE, [page, offset])?;
                return None;
            }
            // Bit 0: memory of a device (struct net_iov).
            if page & 1 != 0 {
                return None;
            }
            walk.at = (page << (asked.shift & 63))
                .wrapping_add(asked.base)
                .wrapping_add(offset);
            walk.left = u64::from(word(piece, places.page_len)?);
            walk.piece += 1;
            walk.next = Next::Bytes;
        }
        Next::Page if walk.sent == 1 => match long(walk.segment, places.right)? {
            0 => walk.next = Next::Up,
            right => {
                walk.segment = right;
                walk.next = Next::Down;
            }
        },
        Next::Page => walk.next = Next::List,
        Next::List => {
            let head = walk.socket + u64::from(places.unsent);
            let before = if walk.segment == 0 {
                head
            } else {
                walk.segment
            };
            let segment = long(before, places.next)?;
            if segment == head {
                return None;
            }
            walk.segment = segment;
            walk.next = Next::Segment;
        }
    }
    Some(())
}

/// Reads some bytes of the stream.
#[inline(always)]
fn bytes(walk: &mut Walk) -> Option<()> {
    let n = walk.left.min(PIECE as u64);
    let end = walk.seq.wrapping_add(n as u32);
    let known = walk.from_counts == 1 && end.wrapping_sub(walk.from) as i32 <= 0;
    if !known {
        let record = RECORD.get_ptr_mut(0)?;
        // SAFETY: one element a processor, and the program does not run twice on one.
        let bytes = unsafe { &raw mut (*record).bytes };
        let size = (n as usize).min(PIECE);
        // SAFETY: `bytes` has room for them; the helper checks where they come from.
        let failed = unsafe {
            generated::bpf_probe_read_kernel(bytes.cast(), size as u32, walk.at as *const c_void)
        };
        if failed != 0 {
            return None;
        }
        give(walk, BYTES, size)?;
    }
    walk.seq = end;
    walk.at += n;
    walk.left -= n;
    Some(())
}

/// A record of two words.
#[inline(always)]
fn tell(walk: &mut Walk, what: u32, words: [u64; 2]) -> Option<()> {
    let record = RECORD.get_ptr_mut(0)?;
    // SAFETY: one element a processor, and the program does not run twice on one; there is room for two words.
    unsafe {
        (&raw mut (*record).bytes)
            .cast::<[u64; 2]>()
            .write_unaligned(words)
    };
    give(walk, what, mem::size_of_val(&words))
}

/// Puts the record into the ring, with that many bytes.
#[inline(always)]
fn give(walk: &mut Walk, what: u32, size: usize) -> Option<()> {
    let record = RECORD.get_ptr_mut(0)?;
    let head = Head {
        socket: walk.socket,
        seq: walk.seq,
        what,
    };
    // SAFETY: as above.
    unsafe { (&raw mut (*record).head).write(head) };
    let size = mem::size_of::<Head>() + size.min(PIECE);
    // SAFETY: the record has that many bytes.
    let failed = unsafe {
        generated::bpf_ringbuf_output(
            ptr::from_ref(&RECORDS).cast_mut().cast(),
            record.cast(),
            size as u64,
            0,
        )
    };
    if failed == 0 {
        return Some(());
    }
    let pass = PASS.get_ptr_mut(0)?;
    let full = Pass {
        socket: walk.socket,
        seq: walk.seq,
        state: FULL,
    };
    // SAFETY: a value of the map stays where it is, and one thread runs a pass.
    unsafe { pass.write(full) };
    None
}

/// Looks for the page that user space knows. Called for every TCP socket; the first call does it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
extern "C" fn nm_search(_context: *const Context) -> i32 {
    if let Some(search) = SEARCH.get_ptr_mut(0) {
        // SAFETY: a value of the map stays where it is, and one thread runs a search.
        let count = unsafe { (*search).count };
        // SAFETY: the callback is given what it expects, and does not outlive this call.
        let _steps = unsafe { bpf_loop(count as u32, look as *mut c_void, ptr::null_mut(), 0) };
        // SAFETY: as above.
        unsafe { (*search).count = 0 };
    }
    0
}

/// Looks at one address; not 0 ends the search.
extern "C" fn look(index: u64, _context: *mut c_void) -> i64 {
    let Some(search) = SEARCH.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in nm_search.
    let search = unsafe { &mut *search };
    let at = search.first.wrapping_add(search.step.wrapping_mul(index));
    // SAFETY: the helper checks the address.
    let Ok(found) = (unsafe { bpf_probe_read_kernel(at as *const [u64; MARKS]) }) else {
        return 0;
    };
    let mut i = 0;
    while i < MARKS {
        if found[i] != search.marks[i] {
            return 0;
        }
        i += 1;
    }
    search.found = at;
    1
}

#[inline(always)]
fn byte(base: u64, at: u32) -> Option<u64> {
    // SAFETY: the helper checks the address.
    let byte = unsafe { bpf_probe_read_kernel((base + u64::from(at)) as *const u8) }.ok()?;
    Some(u64::from(byte))
}

#[inline(always)]
fn half(base: u64, at: u32) -> Option<u32> {
    // SAFETY: the helper checks the address.
    let half = unsafe { bpf_probe_read_kernel((base + u64::from(at)) as *const u16) }.ok()?;
    Some(u32::from(half))
}

#[inline(always)]
fn word(base: u64, at: u32) -> Option<u32> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((base + u64::from(at)) as *const u32) }.ok()
}

#[inline(always)]
fn long(base: u64, at: u32) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((base + u64::from(at)) as *const u64) }.ok()
}

netmig_ebpf::object!();
