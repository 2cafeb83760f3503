//! Mode `drain`: the windows of TCP shrink to zero on the wire while our own stack still takes what is in flight.
//!
//! - EDGE: a rewritten window covers what the other side is known to have sent already, and so becomes 0 by itself; it lets loss
//!   recovery run, which a plain 0 does not.
//! - SEQFIX: a stack whose send window has shrunk below snd_nxt sends pure ACKs with seq = snd_una + window (tcp_acceptable_seq), which
//!   the other end drops as old. They get the sequence number that they would have had.
use aya_ebpf::{helpers::bpf_ktime_get_boot_ns, programs::TcContext};
use netmig_common::{
    Direction, FlowHint, FlowKey, FlowState, Protocol, SCALE_ABSENT, SCALE_MAX, SCALE_UNKNOWN,
    Tally, Unhandled,
};

use netmig_ebpf::{
    packet::{self, WHOLE},
    tcp::{Found, Segment},
};

use crate::{
    maps::{FLOWS, HINTS, SETTINGS},
    verdict::count,
};

/// Offsets in the TCP header.
const SEQ: u32 = 4;
const WINDOW: u32 = 14;
const CHECKSUM: u32 = 16;

/// No sequence number of a connection is farther from another than the largest window (RFC 7323 section 2.3).
const WINDOW_MAX: i32 = 1 << 30;

/// Learns from the packet, and rewrites it where it is one of TCP that can be; counts where it cannot.
#[inline(always)]
pub fn segment(ctx: &TcContext, direction: Direction, tally: &mut Tally) {
    if let Err(Left(why)) = try_segment(ctx, direction, tally) {
        tell!(ctx, "left as it is: reason {}, {} bytes", why, ctx.len());
        count(&mut tally.unhandled, why);
    }
}

/// The number of the [`Unhandled`] for which a packet is left as it is.
struct Left(u32);

impl From<Unhandled> for Left {
    #[inline(always)]
    fn from(why: Unhandled) -> Self {
        Self(why as u32)
    }
}

#[inline(always)]
fn try_segment(ctx: &TcContext, direction: Direction, tally: &mut Tally) -> Result<(), Left> {
    let mut key = FlowKey::default();
    let packet = packet::parse(ctx, direction, &mut key);
    if packet.trouble != WHOLE {
        return Err(Left(packet.trouble));
    }
    if packet.protocol != Protocol::Tcp as u32 {
        return Ok(());
    }
    let segment = Segment::load(ctx, &packet)?;
    (key.container_port, key.peer_port) = match direction {
        Direction::Inbound => (segment.destination_port, segment.source_port),
        Direction::Outbound => (segment.source_port, segment.destination_port),
    };
    let options = segment.options(ctx)?;
    let settings = SETTINGS.get(0).copied().unwrap_or_default();
    let flow = flow(&key, settings.round as u16)?;
    // SAFETY: user space replaces hints but removes none while the programs run; a torn one costs a window rewritten by a wrong scale once.
    let hint = unsafe { HINTS.get(key) };
    let scales = scales(flow, hint);
    let (d, o) = (direction as usize, direction.opposite() as usize);

    if !segment.is_rst() {
        learn(flow, &segment, &options, d, o, scales[d]);
    }
    if flow.signed[d] | flow.signed[o] != 0 || hint.is_some_and(|h| h.signed != 0) {
        return Err(Unhandled::Signed.into());
    }
    if segment.is_syn() || segment.is_rst() || !segment.has_ack() {
        return Ok(());
    }
    if flow.seen[o] == 0 || flow.acked[o] == 0 {
        return Err(Unhandled::OneWay.into());
    }
    if segment.is_pure_ack()
        && before(segment.seq, flow.ends[d])
        // A keepalive or window probe says what it means.
        && segment.seq != flow.acks[o].wrapping_sub(1)
    {
        replace(
            ctx,
            &segment,
            SEQ,
            segment.seq.to_be(),
            flow.ends[d].to_be(),
        )?;
        tally.sequences += 1;
    }
    let drains = match hint {
        Some(hint) => u32::from(hint.drain),
        None => settings.drain,
    };
    if drains & (1 << d) == 0 {
        return Ok(());
    }
    if scales[d] > SCALE_MAX {
        return Err(Unhandled::Scale.into());
    }
    let room = flow.ends[o].wrapping_sub(segment.ack) as i32;
    let edge = if room > 0 {
        room as u32 >> scales[d]
    } else {
        0
    };
    if edge < u32::from(segment.window) {
        replace(
            ctx,
            &segment,
            WINDOW,
            segment.window.to_be(),
            (edge as u16).to_be(),
        )?;
        tally.windows += 1;
        flow.rewritten[d] = flow.rewritten[d].wrapping_add(1);
    }
    Ok(())
}

#[inline(always)]
fn flow(key: &FlowKey, round: u16) -> Result<&'static mut FlowState, Unhandled> {
    let found = match FLOWS.get_ptr_mut(key) {
        Some(found) => found,
        None => {
            // BPF_NOEXIST: another CPU may have made it in this moment; then that one is found below.
            let _made = FLOWS.insert(key, FlowState::NEW, 1);
            FLOWS.get_ptr_mut(key).ok_or(Unhandled::TableFull)?
        }
    };
    // SAFETY: entries are not removed while the programs run. Each direction writes its own half; packets of one direction of a
    // connection that pass on two CPUs at once may lose an update of the state, never memory.
    let flow = unsafe { &mut *found };
    if flow.round != round {
        *flow = FlowState::NEW;
        flow.round = round;
    }
    Ok(flow)
}

/// Scale of the windows of each direction, more than [`SCALE_MAX`] where it is not known.
#[inline(always)]
fn scales(flow: &FlowState, hint: Option<&FlowHint>) -> [u8; 2] {
    if let Some(hint) = hint
        && hint.scales[0] <= SCALE_MAX
        && hint.scales[1] <= SCALE_MAX
    {
        return hint.scales;
    }
    let [a, b] = flow.scales;
    if a == SCALE_UNKNOWN || b == SCALE_UNKNOWN {
        [SCALE_UNKNOWN; 2]
    } else if a == SCALE_ABSENT || b == SCALE_ABSENT {
        // Scaling is in force only if both offered it (RFC 7323 section 2.2).
        [0; 2]
    } else {
        [a, b]
    }
}

#[inline(always)]
fn learn(flow: &mut FlowState, segment: &Segment, options: &Found, d: usize, o: usize, scale: u8) {
    if options.is_signed() {
        flow.signed[d] = 1;
    }
    if segment.is_syn() {
        // A new connection, whatever was known of these ports. Its ack field is not one of the stream that we watch from here, and its
        // window is not scaled.
        flow.ends[d] = segment.end();
        flow.seen[d] = 1;
        flow.acked[d] = 0;
        flow.edged[d] = 0;
        flow.scales[d] = match options.scale() {
            Some(shift) if shift > SCALE_MAX => SCALE_MAX,
            Some(shift) => shift,
            None => SCALE_ABSENT,
        };
        return;
    }
    if !is_plausible(flow, segment, d, o) {
        return;
    }
    if flow.seen[d] == 0 || before(flow.ends[d], segment.end()) {
        flow.ends[d] = segment.end();
        flow.seen[d] = 1;
    } else if segment.payload != 0 {
        flow.resent[d] = flow.resent[d].wrapping_add(1);
    }
    if segment.has_ack() {
        if flow.acked[d] == 0 || !before(segment.ack, flow.acks[d]) {
            flow.acks[d] = segment.ack;
            flow.windows[d] = segment.window;
            flow.acked[d] = 1;
        }
        if scale <= SCALE_MAX {
            let edge = segment.ack.wrapping_add(u32::from(segment.window) << scale);
            if flow.edged[d] == 0 || before(flow.edges[d], edge) {
                flow.edges[d] = edge;
                flow.edged[d] = 1;
            }
        }
    }
    if let Some((tsval, tsecr)) = options.timestamps() {
        flow.tsvals[d] = tsval;
        flow.tsecrs[d] = tsecr;
    }
    if segment.payload != 0 {
        // SAFETY: a helper without arguments.
        flow.payload_ns[d] = unsafe { bpf_ktime_get_boot_ns() };
    }
}

/// Whether the receiver could take the segment. A forged one must not move what windows and sequence numbers are rewritten by.
#[inline(always)]
fn is_plausible(flow: &FlowState, segment: &Segment, d: usize, o: usize) -> bool {
    if flow.seen[d] != 0 {
        let distance = segment.end().wrapping_sub(flow.ends[d]) as i32;
        if !(-WINDOW_MAX..=WINDOW_MAX).contains(&distance) {
            return false;
        }
    }
    // Every window passes here before its receiver can make use of it. A FIN may take one more than it has, and so does a window probe.
    flow.edged[o] == 0 || !before(flow.edges[o].wrapping_add(1), segment.end())
}

/// Whether `a` comes before `b` in sequence space.
#[inline(always)]
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Replaces a field of 2 or 4 bytes; values as they lie in the packet.
///
/// `bpf_l4_csum_replace` without `BPF_F_PSEUDO_HDR` is right for a finished checksum and leaves that of a CHECKSUM_PARTIAL packet alone
/// (inet_proto_csum_replace4), which covers only the pseudo header as yet.
#[inline(always)]
fn replace<T: Copy + Into<u64>>(
    ctx: &TcContext,
    segment: &Segment,
    field: u32,
    from: T,
    to: T,
) -> Result<(), Unhandled> {
    ctx.l4_csum_replace(
        (segment.offset + CHECKSUM) as usize,
        from.into(),
        to.into(),
        size_of::<T>() as u64,
    )
    .map_err(|_| Unhandled::Refused)?;
    ctx.store((segment.offset + field) as usize, &to, 0)
        .map_err(|_| Unhandled::Refused)
}
