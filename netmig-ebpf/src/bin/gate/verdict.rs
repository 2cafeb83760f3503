//! What happens to a packet: the mode word read, the lease watched, the packet counted.
use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_clone_redirect, bpf_ktime_get_boot_ns, bpf_redirect},
    programs::TcContext,
};
use netmig_common::{
    DONE, Direction, FlowKey, HOLD_DATAGRAMS, Mode, ModeWord, Protocol, REDIRECTED, Tally,
};

use netmig_ebpf::{
    packet::{self, Packet, WHOLE},
    tcp::Segment,
};

use crate::{
    drain,
    kept::{self, Does},
    maps::{HOLDS, MODE, ORDER, SETTINGS, TALLIES},
};

/// Not `TC_ACT_OK`: what other programs and filters do at the device goes on as if the gate were not there.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// Verdict on a packet of a link.
#[inline(always)]
pub fn link(ctx: &TcContext, direction: Direction) -> i32 {
    let Some(tally) = tally(direction as u32) else {
        return DROP;
    };
    let word = mode_word(ctx, tally);
    let mode = ModeWord::mode_bits(word);
    if matches!(direction, Direction::Inbound)
        && (mode == EXPIRED || mode == SHUT && ModeWord::is_source(word))
    {
        match kept::segment(ctx, word) {
            Does::Nothing if mode == EXPIRED => return pass(ctx, tally),
            Does::Nothing => return closed(ctx, direction, tally, word),
            Does::Drop => return drop_packet(ctx, tally, Protocol::Tcp as u32),
            Does::Answer(verdict) => {
                tell!(ctx, "answered: {} bytes", ctx.len());
                tally.answered += 1;
                return verdict;
            }
        }
    }
    match mode {
        PASSES | EXPIRED => pass(ctx, tally),
        DRAINS => {
            if let Some(verdict) = datagram(ctx, direction, tally) {
                return verdict;
            }
            drain::segment(ctx, direction, tally);
            pass(ctx, tally)
        }
        OPENS => opening(ctx, direction, tally, word),
        _ => closed(ctx, direction, tally, word),
    }
}

/// Verdict on a packet of `lo`: both ends of what runs there are the container's, so nothing is drained.
#[inline(always)]
pub fn loopback(ctx: &TcContext) -> i32 {
    let Some(tally) = tally(LOOPBACK) else {
        return DROP;
    };
    match ModeWord::mode_bits(mode_word(ctx, tally)) {
        PASSES | EXPIRED | DRAINS | OPENS => pass(ctx, tally),
        _ => {
            let mut key = FlowKey::default();
            let packet = packet::parse(ctx, Direction::Inbound, &mut key);
            drop_packet(ctx, tally, packet.protocol)
        }
    }
}

const PASSES: u8 = Mode::Pass as u8;
const DRAINS: u8 = Mode::Drain as u8;
const SHUT: u8 = Mode::Closed as u8;
const EXPIRED: u8 = Mode::Expired as u8;
const OPENS: u8 = Mode::Opening as u8;
const LOOPBACK: u32 = 2;

#[inline(always)]
fn tally(index: u32) -> Option<&'static mut Tally> {
    // SAFETY: an element of a per-CPU array is this CPU's alone while the program runs; softirqs do not nest.
    TALLIES
        .get_ptr_mut(index)
        .map(|tally| unsafe { &mut *tally })
}

/// The word that holds for this packet. A lease that has run out is latched, by whoever sees it first.
#[inline(always)]
fn mode_word(ctx: &TcContext, tally: &mut Tally) -> u64 {
    // Without a word nothing passes; the kernel never fails to look up index 0 of an array.
    let Some(word) = MODE.get_ptr(0) else {
        return u64::MAX;
    };
    // SAFETY: the element lives as long as the map; 8 aligned bytes are read at once, which is what an atomic load is on BPF (there is no
    // instruction for a relaxed one).
    let seen = unsafe { word.read_volatile() };
    if seen >> 24 == 0 {
        return seen;
    }
    // SAFETY: a helper without arguments.
    let now_ms = unsafe { bpf_ktime_get_boot_ns() } / 1_000_000;
    let Some(mode) = ModeWord::after_deadline(seen, now_ms) else {
        return seen;
    };
    let after = ModeWord::with_mode(seen, mode);
    let found = compare_exchange(word.cast_mut(), seen, after);
    if found != seen {
        // Granted, renewed or latched elsewhere in this moment: that holds.
        return found;
    }
    tell!(ctx, "the deadline is over: mode {}", mode as u8);
    if mode as u8 == EXPIRED {
        tally.expired += 1;
    }
    after
}

/// Adds atomically; `fetch_add` is missing for the reason that [`compare_exchange`] gives.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn atomic_add(count: *mut u64, n: u64) {
    // SAFETY: `count` points to 8 aligned bytes of a map.
    unsafe {
        core::arch::asm!("lock *(u64 *)({count} + 0) += {n}", count = in(reg) count, n = in(reg) n);
    }
}

/// The same for a host.
#[cfg(not(target_arch = "bpf"))]
fn atomic_add(count: *mut u64, n: u64) {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: `count` points to 8 aligned bytes that are accessed atomically.
    unsafe { AtomicU64::from_ptr(count) }.fetch_add(n, Ordering::SeqCst);
}

/// Compare-and-set; returns what was there.
///
/// The compiler's BPF target offers none in `core::sync::atomic`, though the instruction exists: BPF_CMPXCHG (kernel 5.12, instruction set v3).
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn compare_exchange(word: *mut u64, current: u64, new: u64) -> u64 {
    let found;
    // SAFETY: `word` points to 8 aligned bytes; the instruction compares them with r0, stores `new` if equal, and leaves what was there in r0.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inlateout("r0") current => found,
        );
    }
    found
}

/// The same for a host, so that this crate can be checked there.
#[cfg(not(target_arch = "bpf"))]
fn compare_exchange(word: *mut u64, current: u64, new: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: `word` points to 8 aligned bytes that are accessed atomically.
    let word = unsafe { AtomicU64::from_ptr(word) };
    word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
        .unwrap_or_else(|found| found)
}

#[inline(always)]
fn pass(ctx: &TcContext, tally: &mut Tally) -> i32 {
    tally.packets += 1;
    tally.bytes += u64::from(ctx.len());
    PASS
}

#[inline(always)]
fn closed(ctx: &TcContext, direction: Direction, tally: &mut Tally, word: u64) -> i32 {
    // The container's own kernel still answers: nobody's neighbour entry fails in a long blackout. From the grant on it is silent.
    let speaks = ModeWord::mode_bits(word) == Mode::Closed as u8 && ModeWord::is_source(word);
    if speaks && matches!(direction, Direction::Outbound) && is_answer(ctx) {
        tally.answered += 1;
        return pass(ctx, tally);
    }
    let mut key = FlowKey::default();
    let packet = packet::parse(ctx, direction, &mut key);
    let protocol = packet.protocol;
    let neighbour = protocol == Protocol::Neighbour as u32;
    if speaks && neighbour {
        tally.neighbours += 1;
        return pass(ctx, tally);
    }
    // What the container's stack acknowledges before its sockets are dumped is in the dump: an ACK that was still delayed when the gate
    // closed must not be missing.
    if speaks && matches!(direction, Direction::Outbound) && is_pure_ack(ctx, &packet) {
        return pass(ctx, tally);
    }
    // Nobody needs to hear old requests of the link layer.
    if matches!(direction, Direction::Inbound)
        && !neighbour
        && let Some(verdict) = hold(ctx, tally, protocol)
    {
        return verdict;
    }
    drop_packet(ctx, tally, protocol)
}

/// Whether user space sent the packet in the container's name ([`answer`]). What comes out of another namespace has no mark
/// (`skb_scrub_packet`), so nothing in the container can look like one. The mark goes: nobody behind the gate is to act upon it.
#[inline(always)]
fn is_answer(ctx: &TcContext) -> bool {
    let Some(settings) = SETTINGS.get(0) else {
        return false;
    };
    // SAFETY: the context is the skb that the kernel gave to the program.
    let skb = unsafe { &mut *ctx.skb.skb };
    if settings.answers == 0 || skb.mark != settings.answers {
        return false;
    }
    skb.mark = 0;
    true
}

#[inline(always)]
fn is_pure_ack(ctx: &TcContext, packet: &Packet) -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.acks != 0)
        && packet.trouble == WHOLE
        && packet.protocol == Protocol::Tcp as u32
        && Segment::load(ctx, packet).is_ok_and(|segment| segment.is_pure_ack())
}

/// Lets the packet come in at the device whose index is in `cb[0]`, as if the container had sent it there. Run by user space
/// (BPF_PROG_TEST_RUN), attached nowhere.
#[inline(always)]
pub fn answer(ctx: &TcContext) -> i32 {
    let Some(settings) = SETTINGS.get(0) else {
        return DROP;
    };
    // SAFETY: the context is the skb that the kernel gave to the program.
    let skb = unsafe { &mut *ctx.skb.skb };
    skb.mark = settings.answers;
    let device = skb.cb[0];
    // SAFETY: a helper; the clone keeps the mark.
    let refused = unsafe { bpf_clone_redirect(ctx.skb.skb, device, u64::from(BPF_F_INGRESS)) };
    if refused == 0 { PASS } else { DROP }
}

/// Holds an inbound datagram in `drain`, where that is asked for: tasks that are being stopped read nothing, and a receive buffer is soon full.
#[inline(always)]
fn datagram(ctx: &TcContext, direction: Direction, tally: &mut Tally) -> Option<i32> {
    if !matches!(direction, Direction::Inbound) || SETTINGS.get(0)?.drain & HOLD_DATAGRAMS == 0 {
        return None;
    }
    let mut key = FlowKey::default();
    let protocol = packet::parse(ctx, direction, &mut key).protocol;
    if protocol == Protocol::Udp as u32 {
        hold(ctx, tally, protocol)
    } else {
        None
    }
}

#[inline(always)]
fn opening(ctx: &TcContext, direction: Direction, tally: &mut Tally, word: u64) -> i32 {
    if matches!(direction, Direction::Outbound) {
        return pass(ctx, tally);
    }
    if order(REDIRECTED) == order(DONE) {
        if let Some(mode) = MODE.get_ptr_mut(0) {
            // If somebody else was faster, that holds from the next packet on.
            compare_exchange(mode, word, ModeWord::with_mode(word, Mode::Pass));
        }
        return pass(ctx, tally);
    }
    let mut key = FlowKey::default();
    let protocol = packet::parse(ctx, direction, &mut key).protocol;
    if protocol == Protocol::Neighbour as u32 {
        return pass(ctx, tally);
    }
    match hold(ctx, tally, protocol) {
        Some(verdict) => verdict,
        None => pass(ctx, tally),
    }
}

/// Redirects the packet to the hold of its device, if that has one.
#[inline(always)]
fn hold(ctx: &TcContext, tally: &mut Tally, protocol: u32) -> Option<i32> {
    // SAFETY: the context is the skb that the kernel gave to the program.
    let device = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: 4 bytes, which user space replaces at once.
    let to = *unsafe { HOLDS.get(device) }?;
    tell!(ctx, "held: protocol {}, {} bytes", protocol, ctx.len());
    count(&mut tally.held, protocol);
    tally.held_bytes += u64::from(ctx.len());
    if let Some(redirected) = ORDER.get_ptr_mut(REDIRECTED) {
        atomic_add(redirected, 1);
    }
    // SAFETY: a helper; if the device is gone, the kernel drops the packet.
    Some(unsafe { bpf_redirect(to, 0) } as i32)
}

#[inline(always)]
fn order(index: u32) -> u64 {
    // SAFETY: the element lives as long as the map; 8 aligned bytes are read at once.
    ORDER
        .get_ptr(index)
        .map_or(0, |count| unsafe { count.read_volatile() })
}

#[inline(always)]
fn drop_packet(ctx: &TcContext, tally: &mut Tally, protocol: u32) -> i32 {
    tell!(ctx, "dropped: protocol {}, {} bytes", protocol, ctx.len());
    count(&mut tally.dropped, protocol);
    tally.dropped_bytes += u64::from(ctx.len());
    DROP
}

/// Adds one at the place of `n` < 8; the mask shows the verifier the bound.
#[inline(always)]
pub(crate) fn count(counts: &mut [u64; 8], n: u32) {
    counts[(n & 7) as usize] += 1;
}
