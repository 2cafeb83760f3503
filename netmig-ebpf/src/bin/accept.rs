//! Puts connections into accept queues (kernel 6.9): at TC ingress of `lo`, where user space has sent the ACK that ends a handshake.
//!
//! `bpf_sk_assign_tcp_reqsk` was made for SYN cookies of one's own: it gives the ACK a request socket with what the handshake had agreed
//! upon, and the stack makes the connection of it, with the sequence numbers of the ACK whatever they are (cookie_bpf_check).
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "`#[classifier]` makes functions of its own without the doc comments"
)]

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, TC_ACT_UNSPEC, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    cty::c_void,
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_skc_to_tcp_sock},
    macros::{classifier, map},
    maps::HashMap,
    programs::TcContext,
};
use netmig_common::{
    FlowKey,
    accept::{Agreed, KFUNC_PLACE, NO_LISTENER, NOT_SEEN, PLACED, Waiting},
};

/// Written by user space.
#[map]
static WAITING: HashMap<FlowKey, Waiting> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

const ETHERNET: usize = 14;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const IPPROTO_TCP: u8 = 6;
const ACK: u8 = 0x10;
/// -1: the namespace of the packet's device.
const HERE: u64 = u64::MAX;
/// bpf_sock_tuple's length tells the family.
const TUPLE_V4: u32 = 12;
const TUPLE_V6: u32 = 36;

/// The kernel keeps 15 characters of a name, and one that begins with `netmig_` is a gate's.
#[classifier]
pub fn nm_accept(ctx: TcContext) -> i32 {
    // Whatever is not ours goes on as it is.
    let _concerned = packet(&ctx);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn packet(ctx: &TcContext) -> Option<()> {
    match u16::from_be_bytes(ctx.load(ETHERNET - 2).ok()?) {
        // User space sends no options.
        ETH_P_IP
            if ctx.load::<u8>(ETHERNET).ok()? == 0x45
                && ctx.load::<u8>(ETHERNET + 9).ok()? == IPPROTO_TCP =>
        {
            v4(ctx)
        }
        ETH_P_IPV6 if ctx.load::<u8>(ETHERNET + 6).ok()? == IPPROTO_TCP => v6(ctx),
        _ => None,
    }
}

#[inline(always)]
fn v4(ctx: &TcContext) -> Option<()> {
    const TCP: usize = ETHERNET + 20;
    let (source, to): ([u8; 4], [u8; 4]) =
        (ctx.load(ETHERNET + 12).ok()?, ctx.load(ETHERNET + 16).ok()?);
    let ports = ports(ctx, TCP)?;
    let waiting = wanted(FlowKey::mapped(source), FlowKey::mapped(to), ports)?;
    let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: u32::from_ne_bytes(source),
        daddr: u32::from_ne_bytes(to),
        sport: ports.0.to_be(),
        dport: ports.1.to_be(),
    };
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4: tuple },
    };
    place(ctx, &mut tuple, TUPLE_V4, waiting);
    Some(())
}

#[inline(always)]
fn v6(ctx: &TcContext) -> Option<()> {
    const TCP: usize = ETHERNET + 40;
    let (source, to): ([u32; 4], [u32; 4]) =
        (ctx.load(ETHERNET + 8).ok()?, ctx.load(ETHERNET + 24).ok()?);
    let ports = ports(ctx, TCP)?;
    let waiting = wanted(bytes(source), bytes(to), ports)?;
    let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
        saddr: source,
        daddr: to,
        sport: ports.0.to_be(),
        dport: ports.1.to_be(),
    };
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6: tuple },
    };
    place(ctx, &mut tuple, TUPLE_V6, waiting);
    Some(())
}

/// Source and destination port of a segment that is an ACK and nothing else.
#[inline(always)]
fn ports(ctx: &TcContext, tcp: usize) -> Option<(u16, u16)> {
    if ctx.load::<u8>(tcp + 13).ok()? != ACK {
        return None;
    }
    let source = u16::from_be_bytes(ctx.load(tcp).ok()?);
    Some((source, u16::from_be_bytes(ctx.load(tcp + 2).ok()?)))
}

#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    let mut all = [0; 16];
    let mut i = 0;
    while i < 4 {
        let word = words[i].to_ne_bytes();
        (all[i * 4], all[i * 4 + 1]) = (word[0], word[1]);
        (all[i * 4 + 2], all[i * 4 + 3]) = (word[2], word[3]);
        i += 1;
    }
    all
}

#[inline(always)]
fn wanted(peer: [u8; 16], container: [u8; 16], ports: (u16, u16)) -> Option<*mut Waiting> {
    let key = FlowKey {
        container,
        peer,
        container_port: ports.1,
        peer_port: ports.0,
    };
    let waiting = WAITING.get_ptr_mut(&key)?;
    // SAFETY: the element lives as long as the program runs; user space has written it whole.
    (unsafe { (*waiting).outcome } == NOT_SEEN).then_some(waiting)
}

#[inline(always)]
fn place(ctx: &TcContext, tuple: &mut bpf_sock_tuple, length: u32, waiting: *mut Waiting) {
    // SAFETY: as in `wanted`.
    let mut agreed: Agreed = unsafe { (*waiting).agreed };
    let skb: *mut c_void = ctx.skb.skb.cast();
    // SAFETY: `tuple` has `length` bytes on this stack.
    let found = unsafe { bpf_skc_lookup_tcp(skb, tuple, length, HERE, 0) };
    if found.is_null() {
        // SAFETY: as in `wanted`.
        unsafe { (*waiting).outcome = NO_LISTENER };
        return;
    }
    // SAFETY: a reference that the lookup has taken; given back below.
    let listener = unsafe { bpf_skc_to_tcp_sock(found.cast()) };
    let outcome = if listener.is_null() {
        NO_LISTENER
    } else {
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
    };
    // SAFETY: the reference of the lookup.
    unsafe { bpf_sk_release(found.cast()) };
    // SAFETY: as in `wanted`.
    unsafe { (*waiting).outcome = outcome };
}

netmig_ebpf::object!();
