//! A TCP connection of the container as the gate sees it.

/// Which way a packet goes, as the container sees it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the container.
    Inbound = 0,
    /// From the container.
    Outbound = 1,
}

impl Direction {
    /// The other one.
    #[must_use]
    #[inline(always)]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Inbound => Self::Outbound,
            Self::Outbound => Self::Inbound,
        }
    }
}

/// A connection: the container's end and the peer's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Address of the container; IPv4 as `::ffff:a.b.c.d`.
    pub container: [u8; 16],
    /// Address of the peer, written alike.
    pub peer: [u8; 16],
    /// Port of the container, host byte order.
    pub container_port: u16,
    /// Port of the peer, host byte order.
    pub peer_port: u16,
}

impl FlowKey {
    /// An IPv4 address as this type writes it (RFC 4291 section 2.5.5.2).
    #[must_use]
    #[inline(always)]
    pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
        [
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
        ]
    }
}

/// The scale is not known: a window in this direction is not rewritten.
pub const SCALE_UNKNOWN: u8 = 0xff;

/// A SYN was seen that had no window scale option.
pub const SCALE_ABSENT: u8 = 0xfe;

/// Largest window scale (RFC 7323 section 2.3).
pub const SCALE_MAX: u8 = 14;

/// What user space knows of a connection from its socket; written by user space alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHint {
    /// Scale of the window fields that travel in direction n: `[snd_wscale, rcv_wscale]` of the container's socket; [`SCALE_UNKNOWN`] if not known.
    pub scales: [u8; 2],
    /// Bit n set: in `drain`, windows that travel in direction n are rewritten.
    pub drain: u8,
    /// Not 0: TCP-MD5 or TCP-AO, never rewritten.
    pub signed: u8,
}

/// What the program has seen of a connection since the last `drain` began. An index of 2 is a [`Direction`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState {
    /// Time of the last segment with payload, ns of CLOCK_BOOTTIME; 0: none.
    pub payload_ns: [u64; 2],
    /// Highest sequence end (seq + length, SYN and FIN counted).
    pub ends: [u32; 2],
    /// Highest ack field.
    pub acks: [u32; 2],
    /// Highest right edge of the true window (ack + window) that was announced.
    pub edges: [u32; 2],
    /// Last TSval.
    pub tsvals: [u32; 2],
    /// Last TSecr.
    pub tsecrs: [u32; 2],
    /// Segments with payload that ended below `ends`.
    pub resent: [u32; 2],
    /// Segments whose window was rewritten.
    pub rewritten: [u32; 2],
    /// The true window field of the segment with the highest ack, unscaled.
    pub windows: [u16; 2],
    /// Scale that the SYN offered, [`SCALE_ABSENT`], or [`SCALE_UNKNOWN`] if no SYN was seen. In force only if both offered one.
    pub scales: [u8; 2],
    /// Not 0: a segment was seen, so `ends` holds.
    pub seen: [u8; 2],
    /// Not 0: an ack was seen, so `acks` and `windows` hold.
    pub acked: [u8; 2],
    /// Not 0: a segment had an MD5 or AO option.
    pub signed: [u8; 2],
    /// Not 0: a window of known scale was seen, so `edges` holds.
    pub edged: [u8; 2],
    /// Low bits of [`Settings::round`](crate::Settings::round) when all this was seen.
    pub round: u16,
}

impl FlowState {
    /// Nothing seen yet.
    pub const NEW: Self = Self {
        payload_ns: [0; 2],
        ends: [0; 2],
        acks: [0; 2],
        edges: [0; 2],
        tsvals: [0; 2],
        tsecrs: [0; 2],
        resent: [0; 2],
        rewritten: [0; 2],
        windows: [0; 2],
        scales: [SCALE_UNKNOWN; 2],
        seen: [0; 2],
        acked: [0; 2],
        signed: [0; 2],
        edged: [0; 2],
        round: 0,
    };

    /// Whether everything that the program saw going in direction `d` has been acknowledged on the wire.
    #[must_use]
    pub const fn is_acknowledged(&self, d: Direction) -> bool {
        let (d, o) = (d as usize, d.opposite() as usize);
        self.seen[d] == 0
            || (self.acked[o] != 0 && self.ends[d].wrapping_sub(self.acks[o]) as i32 <= 0)
    }
}

const _: () = assert!(
    size_of::<FlowKey>() == 36 && size_of::<FlowHint>() == 4 && size_of::<FlowState>() == 88
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_means_ack_at_or_past_the_end_also_across_the_wrap() {
        let mut flow = FlowState::NEW;
        assert!(
            flow.is_acknowledged(Direction::Inbound),
            "nothing seen, nothing open"
        );
        flow.seen[0] = 1;
        flow.ends[0] = 5;
        assert!(
            !flow.is_acknowledged(Direction::Inbound),
            "no ack seen at all"
        );
        flow.acked[1] = 1;
        flow.acks[1] = u32::MAX - 3;
        assert!(
            !flow.is_acknowledged(Direction::Inbound),
            "9 bytes open across the wrap"
        );
        flow.acks[1] = 5;
        assert!(flow.is_acknowledged(Direction::Inbound));
    }

    #[test]
    fn v4_is_mapped_as_std_maps_it() {
        let v4 = core::net::Ipv4Addr::new(192, 0, 2, 7);
        assert_eq!(FlowKey::mapped(v4.octets()), v4.to_ipv6_mapped().octets());
    }
}
