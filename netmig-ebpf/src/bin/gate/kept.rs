//! Connections that are kept for the container ([`KeptFlow`]): the program itself tells their peers that there is no room, where user space
//! would only say the same (a probe), and where nobody else is left to say anything.
use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{bpf_csum_diff, bpf_ktime_get_boot_ns, bpf_ktime_get_ns, bpf_redirect},
    programs::TcContext,
};
use netmig_common::{Direction, KeptFlow, Mode, ModeWord, Protocol, SILENT_MS, Settings};

use netmig_ebpf::{
    packet::{self, Packet, WHOLE},
    tcp::Segment,
};

use crate::maps::{KEPT, SETTINGS, scratch};

/// Offset in the TCP header.
const CHECKSUM: u32 = 16;

/// Two NOPs, kind and length of a timestamp option.
const TIMESTAMP: u32 = 0x0101_080a_u32.to_be();

/// What is to be done with an inbound packet.
pub enum Does {
    /// What would be done anyway.
    Nothing,
    /// It is dropped.
    Drop,
    /// It has become an answer: the verdict.
    Answer(i32),
}

/// No verdict of TC's.
const NOTHING: i32 = -100;
const DROP: i32 = NOTHING - 1;

/// The headers of an answer, in network byte order.
#[repr(C)]
pub struct Answer {
    /// What its checksum covers besides the segment; of IPv4 the rest is 0.
    pseudo: [u32; 10],
    /// Of IPv4 the rest is not used.
    ip: [u32; 10],
    /// Without timestamps the rest is 0.
    tcp: [u32; 8],
}

/// Looks at an inbound packet at a source that is closed or whose lease has run out (`word`).
#[inline(always)]
pub fn segment(ctx: &TcContext, word: u64) -> Does {
    let verdict = match look(ctx, word) {
        Does::Nothing => NOTHING,
        Does::Drop => DROP,
        Does::Answer(verdict) => verdict,
    };
    let Some(scratch) = scratch() else {
        return Does::Nothing;
    };
    // SAFETY: this CPU's memory; volatile as `Scratch` says.
    let verdict = unsafe {
        let found = &raw mut (*scratch).verdict;
        found.write_volatile(verdict);
        found.read_volatile()
    };
    match verdict {
        NOTHING => Does::Nothing,
        DROP => Does::Drop,
        verdict => Does::Answer(verdict),
    }
}

#[inline(always)]
fn look(ctx: &TcContext, word: u64) -> Does {
    let expired = ModeWord::mode_bits(word) == Mode::Expired as u8;
    let Some(settings) = SETTINGS.get(0) else {
        return Does::Nothing;
    };
    let Some(scratch) = scratch() else {
        return Does::Nothing;
    };
    // SAFETY: this CPU's memory, and the only reference to it; see `Scratch`. Not on the stack, which has no room left.
    let key = unsafe { &mut (*scratch).key };
    let packet = packet::parse(ctx, Direction::Inbound, key);
    if packet.trouble != WHOLE || packet.protocol != Protocol::Tcp as u32 {
        return Does::Nothing;
    }
    let Ok(segment) = Segment::load(ctx, &packet) else {
        return Does::Nothing;
    };
    (key.container_port, key.peer_port) = (segment.destination_port, segment.source_port);
    // SAFETY: the kernel frees an entry that user space has replaced or removed only when no program runs that may have found it.
    let Some(flow) = (unsafe { KEPT.get(&*key) }) else {
        return Does::Nothing;
    };
    let alone = expired || is_silent(word, settings.lease_ms);
    if expired && flow.owned == 0 {
        return Does::Nothing;
    }
    if segment.is_syn() || segment.is_rst() {
        // A reset would end the connection with what was promised to its peer.
        return if expired { Does::Drop } else { Does::Nothing };
    }
    let probes = segment.is_pure_ack() && before(segment.seq, flow.ack);
    let brings = segment.payload > 0 && alone && flow.owned != 0;
    if !(probes || brings) {
        // The container's stack may hear what acknowledges it. It takes no payload before what was promised, nor a newer stamp with it.
        return if segment.payload > 0 && expired {
            Does::Drop
        } else {
            Does::Nothing
        };
    }
    match answer(ctx, &packet, &segment, flow, settings, expired) {
        Ok(verdict) => Does::Answer(verdict),
        Err(Not::Touched) if expired => Does::Drop,
        Err(Not::Touched) => Does::Nothing,
        Err(Not::Whole) => Does::Drop,
    }
}

/// Whether nobody has renewed the lease for longer than somebody who lives would take.
#[inline(always)]
fn is_silent(word: u64, lease_ms: u64) -> bool {
    let deadline = word >> 24;
    if deadline == 0 || lease_ms == 0 {
        return false;
    }
    // SAFETY: a helper without arguments.
    let now_ms = unsafe { bpf_ktime_get_boot_ns() } / 1_000_000;
    now_ms + lease_ms > deadline + SILENT_MS
}

/// Why there is no answer.
enum Not {
    /// The packet is as it was.
    Touched,
    /// It is not.
    Whole,
}

/// Makes an answer of the packet, which is turned round and shortened, and lets it come in at the device.
#[inline(always)]
fn answer(
    ctx: &TcContext,
    packet: &Packet,
    segment: &Segment,
    flow: &KeptFlow,
    settings: &Settings,
    expired: bool,
) -> Result<i32, Not> {
    // SAFETY: the context is the skb that the kernel gave to the program.
    let skb = unsafe { &mut *ctx.skb.skb };
    let v6 = packet.transport == packet.network + 40;
    // Where the headers are longer than the answer's, a checksum that is still to be made would be looked for in the wrong place.
    if skb.ifindex != flow.device || !(v6 || packet.transport == packet.network + 20) {
        return Err(Not::Touched);
    }
    // SAFETY: a helper without arguments.
    let mut now = unsafe { bpf_ktime_get_ns() };
    if !expired && settings.still_ns != 0 && settings.still_ns < now {
        now = settings.still_ns;
    }
    let length: u32 = if flow.stamped != 0 { 32 } else { 20 };
    let echo = stamp(ctx, segment);

    let scratch = scratch().ok_or(Not::Touched)?;
    // SAFETY: this CPU's memory, and the only references to it; see `Scratch`.
    let (key, answer) = unsafe { (&(*scratch).key, &mut (*scratch).answer) };
    answer.tcp = [
        (u32::from(segment.destination_port) << 16 | u32::from(segment.source_port)).to_be(),
        flow.seq.to_be(),
        flow.ack.to_be(),
        // Length in words; ACK; no window.
        ((length / 4) << 28 | 0x10 << 16).to_be(),
        0,
        0,
        0,
        0,
    ];
    if flow.stamped != 0 {
        answer.tcp[5] = TIMESTAMP;
        answer.tcp[6] = flow.stamp_at(now).to_be();
        answer.tcp[7] = echo;
    }
    let network = packet.network as usize;
    answer.pseudo = [0; 10];
    let (from, to) = (words(&key.container), words(&key.peer));
    if v6 {
        answer.ip = [
            0x6000_0000_u32.to_be(),
            (length << 16 | 6 << 8 | 64).to_be(),
            from[0],
            from[1],
            from[2],
            from[3],
            to[0],
            to[1],
            to[2],
            to[3],
        ];
        answer.pseudo[..4].copy_from_slice(from);
        answer.pseudo[4..8].copy_from_slice(to);
    } else {
        answer.ip[0] = (0x4500_0000 | (20 + length)).to_be();
        answer.ip[1] = 0x4000_u32.to_be();
        answer.ip[2] = (64_u32 << 24 | 6 << 16).to_be();
        answer.ip[3] = from[3];
        answer.ip[4] = to[3];
        answer.pseudo[0] = from[3];
        answer.pseudo[1] = to[3];
    }
    answer.pseudo[8] = length.to_be();
    answer.pseudo[9] = 6_u32.to_be();
    let macs = ctx.load::<[[u8; 6]; 2]>(0).map_err(|_| Not::Touched)?;

    let partial = is_partial(ctx, packet)?;
    // SAFETY: the context is the skb that the kernel gave to the program.
    if unsafe { aya_ebpf::helpers::bpf_skb_change_tail(skb, packet.transport + length, 0) } != 0 {
        return Err(Not::Whole);
    }
    let pseudo = sum(&mut answer.pseudo, 0);
    let checksum = if partial {
        // Whoever sends it adds the segment (CHECKSUM_PARTIAL).
        fold(pseudo)
    } else {
        !fold(sum(&mut answer.tcp, pseudo))
    };
    store(ctx, 0, &[macs[1], macs[0]])?;
    if v6 {
        store(ctx, network, &answer.ip)?;
    } else {
        let header: &mut [u32; 5] = first(&mut answer.ip);
        let checksum = !fold(sum(header, 0));
        store(ctx, network, header)?;
        store(ctx, network + 10, &checksum)?;
    }
    let transport = packet.transport as usize;
    if flow.stamped != 0 {
        store(ctx, transport, &answer.tcp)?;
    } else {
        let header: &mut [u32; 5] = first(&mut answer.tcp);
        store(ctx, transport, header)?;
    }
    store(ctx, transport + CHECKSUM as usize, &checksum)?;
    if !expired {
        // What comes out of the container itself stays behind the closed gate.
        skb.mark = settings.answers;
    }
    // SAFETY: a helper; if the device is gone, the kernel drops the packet.
    Ok(unsafe { bpf_redirect(flow.device, u64::from(BPF_F_INGRESS)) } as i32)
}

/// The peer's timestamp, in network byte order, where the option lies as all but everybody writes it (RFC 7323, appendix A); else 0, which says
/// nothing. A walk through the options would double what the verifier has to do.
#[inline(always)]
fn stamp(ctx: &TcContext, segment: &Segment) -> u32 {
    match ctx.load::<[u32; 2]>((segment.offset + 20) as usize) {
        Ok([kind, tsval]) if kind == TIMESTAMP && segment.has_options() => tsval,
        _ => 0,
    }
}

/// Whether the checksum is still to be made: then the kernel leaves it alone (`inet_proto_csum_replace4`). It is wrong afterwards.
#[inline(always)]
fn is_partial(ctx: &TcContext, packet: &Packet) -> Result<bool, Not> {
    let at = (packet.transport + CHECKSUM) as usize;
    let before = ctx.load::<u16>(at).map_err(|_| Not::Touched)?;
    ctx.l4_csum_replace(at, 0, 1, 2).map_err(|_| Not::Touched)?;
    let after = ctx.load::<u16>(at).map_err(|_| Not::Whole)?;
    Ok(before == after)
}

#[inline(always)]
fn store<T>(ctx: &TcContext, at: usize, value: &T) -> Result<(), Not> {
    ctx.store(at, value, 0).map_err(|_| Not::Whole)
}

/// An address as words in network byte order.
#[inline(always)]
fn words(address: &[u8; 16]) -> &[u32; 4] {
    // SAFETY: as many bytes; they lie in a `FlowKey` in a map, 4 aligned.
    unsafe { &*address.as_ptr().cast() }
}

/// The first words.
#[inline(always)]
fn first<const N: usize, const M: usize>(words: &mut [u32; N]) -> &mut [u32; M] {
    const { assert!(M <= N) };
    // SAFETY: M words of N, borrowed alike.
    unsafe { &mut *words.as_mut_ptr().cast() }
}

/// RFC 1071, not folded.
#[inline(always)]
fn sum<const N: usize>(words: &mut [u32; N], seed: u32) -> u32 {
    // SAFETY: a helper that reads the words.
    let sum = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            words.as_mut_ptr(),
            (N * 4) as u32,
            seed,
        )
    };
    sum as u32
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Whether `a` comes before `b` in sequence space.
#[inline(always)]
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
