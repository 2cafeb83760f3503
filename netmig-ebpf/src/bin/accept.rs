//! Puts connections into accept queues (kernel 6.9): at TC ingress of `lo`, where user space has sent the ACK that ends a handshake.
//!
//! `bpf_sk_assign_tcp_reqsk` was made for SYN cookies of one's own: it gives the ACK a request socket with what the handshake had agreed
//! upon, and the stack makes the connection of it, with the sequence numbers of the ACK whatever they are (cookie_bpf_check).
//!
//! So it is with handshakes that were under way: at TC ingress of the container's links their true ACK is given such a socket. What else comes
//! of them until then a listener would answer with a RST, or begin anew.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "`#[classifier]` makes functions of its own without the doc comments"
)]

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    cty::c_void,
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_skc_to_tcp_sock},
    macros::{classifier, map},
    maps::HashMap,
    programs::TcContext,
};
use netmig_common::{
    Direction, FlowKey, Protocol,
    accept::{Agreed, HalfOpen, KFUNC_PLACE, NO_LISTENER, NOT_SEEN, OVER, PLACED, Waiting},
};
use netmig_ebpf::{
    packet::{self, WHOLE},
    tcp::Segment,
};

/// Written by user space.
#[map]
static WAITING: HashMap<FlowKey, Waiting> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Likewise.
#[map]
static HALF_OPEN: HashMap<FlowKey, HalfOpen> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// -1: the namespace of the packet's device.
const HERE: u64 = u64::MAX;
/// bpf_sock_tuple's length tells the family.
const TUPLE_V4: u32 = 12;
const TUPLE_V6: u32 = 36;

/// The kernel keeps 15 characters of a name, and one that begins with `netmig_` is a gate's.
#[classifier]
pub fn nm_accept(ctx: TcContext) -> i32 {
    // Whatever is not ours goes on as it is.
    let _concerned = waiting(&ctx);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn waiting(ctx: &TcContext) -> Option<()> {
    let mut key = FlowKey::default();
    let (network, segment) = inbound(ctx, &mut key)?;
    if !segment.is_pure_ack() {
        return None;
    }
    let waiting = WAITING.get_ptr_mut(&key)?;
    // SAFETY: the element lives as long as the program runs; user space has written it whole.
    let Waiting { agreed, outcome } = unsafe { *waiting };
    if outcome != NOT_SEEN {
        return None;
    }
    let found = lookup(ctx, network as usize, &key)?;
    let outcome = if found.is_null() {
        NO_LISTENER
    } else {
        let outcome = assign(ctx.skb.skb.cast(), found, agreed);
        // SAFETY: the reference of the lookup.
        unsafe { bpf_sk_release(found.cast()) };
        outcome
    };
    // SAFETY: as above.
    unsafe { (*waiting).outcome = outcome };
    Some(())
}

/// A whole segment that comes to the container, after the offset of its IP header; whose it is goes to `key`.
#[inline(always)]
fn inbound(ctx: &TcContext, key: &mut FlowKey) -> Option<(u32, Segment)> {
    let packet = packet::parse(ctx, Direction::Inbound, key);
    if packet.trouble != WHOLE || packet.protocol != Protocol::Tcp as u32 {
        return None;
    }
    let segment = Segment::load(ctx, &packet).ok()?;
    (key.container_port, key.peer_port) = (segment.destination_port, segment.source_port);
    Some((packet.network, segment))
}

/// Makes the packet the ACK of a handshake with the listener that was `found`.
#[inline(always)]
fn assign(skb: *mut c_void, found: *mut bpf_sock, mut agreed: Agreed) -> i32 {
    // SAFETY: a reference that the caller's lookup has taken, and the caller gives back.
    let listener = unsafe { bpf_skc_to_tcp_sock(found.cast()) };
    if listener.is_null() {
        return NO_LISTENER;
    }
    // SAFETY: user space puts the kernel's number of that function here before it loads the object; it has this signature.
    let assign: extern "C" fn(*mut c_void, *mut c_void, *mut Agreed, i32) -> i32 =
        unsafe { core::mem::transmute(KFUNC_PLACE as usize) };
    match assign(
        skb,
        listener.cast(),
        &raw mut agreed,
        size_of::<Agreed>() as i32,
    ) {
        0 => PLACED,
        error => error,
    }
}

/// What comes of a handshake under way.
#[classifier]
pub fn nm_half_open(ctx: TcContext) -> i32 {
    half_open(&ctx).unwrap_or(TC_ACT_UNSPEC)
}

/// None: it goes on as it is.
#[inline(always)]
fn half_open(ctx: &TcContext) -> Option<i32> {
    const LISTEN: u32 = 10;
    let mut key = FlowKey::default();
    let (network, segment) = inbound(ctx, &mut key)?;
    let half = HALF_OPEN.get_ptr_mut(&key)?;
    // SAFETY: the element lives as long as the program runs; user space has written it whole.
    let HalfOpen {
        mut agreed,
        isn,
        peer_isn,
        outcome,
    } = unsafe { *half };
    if outcome == OVER {
        return None;
    }
    let expected = peer_isn.wrapping_add(1);
    if segment.is_syn() && segment.seq == peer_isn {
        // Our SYN-ACK was lost: user space repeats it.
        return Some(TC_ACT_SHOT);
    }
    if segment.is_syn() || segment.is_rst() {
        if segment.is_syn() || segment.seq == expected {
            // SAFETY: as above.
            unsafe { (*half).outcome = OVER };
        }
        return None;
    }
    if !segment.has_ack() {
        return Some(TC_ACT_SHOT);
    }
    let options = segment.options(ctx).ok()?;
    if agreed.tstamp_ok != 0 {
        // As with every segment of it (tcp_validate_incoming).
        let Some((tsval, tsecr)) = options.timestamps() else {
            return Some(TC_ACT_SHOT);
        };
        (agreed.rcv_tsval, agreed.rcv_tsecr) = (tsval, tsecr);
    }

    let found = lookup(ctx, network as usize, &key)?;
    if found.is_null() {
        return None;
    }
    // SAFETY: a reference that the lookup has taken; the verifier knows this field.
    let state = unsafe { (&raw const (*found).state).read_volatile() };
    let (outcome, verdict) = if state != LISTEN {
        (OVER, None)
    } else if segment.ack != isn.wrapping_add(1) {
        (outcome, None)
    } else if segment.seq != expected {
        // It comes once more, after what is missing.
        (outcome, Some(TC_ACT_SHOT))
    } else {
        (assign(ctx.skb.skb.cast(), found, agreed), None)
    };
    // SAFETY: the reference of the lookup.
    unsafe { bpf_sk_release(found.cast()) };
    // SAFETY: as above.
    unsafe { (*half).outcome = outcome };
    verdict
}

/// The socket that a packet is for, its IP header `at` there. A tuple of each family: the verifier takes no union that is written in part.
#[inline(always)]
fn lookup(ctx: &TcContext, at: usize, key: &FlowKey) -> Option<*mut bpf_sock> {
    let (sport, dport) = (key.peer_port.to_be(), key.container_port.to_be());
    let skb: *mut c_void = ctx.skb.skb.cast();
    if ctx.load::<u8>(at).ok()? >> 4 == 4 {
        let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: ctx.load(at + 12).ok()?,
            daddr: ctx.load(at + 16).ok()?,
            sport,
            dport,
        };
        // SAFETY: `tuple` has that many bytes on this stack.
        return Some(unsafe {
            bpf_skc_lookup_tcp(skb, (&raw const tuple).cast_mut().cast(), TUPLE_V4, HERE, 0)
        });
    }
    let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
        saddr: ctx.load(at + 8).ok()?,
        daddr: ctx.load(at + 24).ok()?,
        sport,
        dport,
    };
    // SAFETY: as above.
    Some(unsafe {
        bpf_skc_lookup_tcp(skb, (&raw const tuple).cast_mut().cast(), TUPLE_V6, HERE, 0)
    })
}

netmig_ebpf::object!();
