//! What the gate counts.

/// Kinds of packets that are told apart when they do not pass.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP, IPv4 or IPv6.
    Tcp = 0,
    /// UDP and UDP-Lite.
    Udp = 1,
    /// ICMP, and ICMPv6 without what is `Neighbour`.
    Icmp = 2,
    /// ARP, neighbour and router discovery (with DAD), IGMP and MLD: what keeps the link layer going.
    Neighbour = 3,
    /// SCTP.
    Sctp = 4,
    /// Anything else in IP.
    OtherIp = 5,
    /// Not IP, not ARP.
    OtherLink = 6,
    /// Headers that do not parse.
    Unparsed = 7,
}

impl Protocol {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Tcp,
        Self::Udp,
        Self::Icmp,
        Self::Neighbour,
        Self::Sctp,
        Self::OtherIp,
        Self::OtherLink,
        Self::Unparsed,
    ];
}

/// Why `drain` left a packet as it was.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unhandled {
    /// Shorter than its headers say, or a header that contradicts itself.
    Malformed = 0,
    /// A fragment: its segment's length is not known.
    Fragment = 1,
    /// More VLAN tags or extension headers than the program walks.
    TooDeep = 2,
    /// TCP-MD5 or TCP-AO.
    Signed = 3,
    /// The window's scale is not known.
    Scale = 4,
    /// The other direction was not seen yet.
    OneWay = 5,
    /// No room for one more flow.
    TableFull = 6,
    /// The kernel refused the change.
    Refused = 7,
}

impl Unhandled {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::Fragment,
        Self::TooDeep,
        Self::Signed,
        Self::Scale,
        Self::OneWay,
        Self::TableFull,
        Self::Refused,
    ];
}

/// How many [`Tally`]s lie in the map: inbound, outbound, loopback.
pub const COUNTED: u32 = 3;

/// Counts of one direction (on one CPU, as it lies in the map). A GSO packet counts as one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets passed.
    pub packets: u64,
    /// Bytes passed, link header included.
    pub bytes: u64,
    /// Packets dropped, by [`Protocol`].
    pub dropped: [u64; 8],
    /// Bytes dropped.
    pub dropped_bytes: u64,
    /// Packets redirected to the hold, by [`Protocol`].
    pub held: [u64; 8],
    /// Bytes redirected to the hold.
    pub held_bytes: u64,
    /// Packets of [`Protocol::Neighbour`] that passed though the gate was closed (contained in `packets`).
    pub neighbours: u64,
    /// Windows rewritten.
    pub windows: u64,
    /// Sequence numbers of pure ACKs put right.
    pub sequences: u64,
    /// Packets that `drain` left as they were, by [`Unhandled`].
    pub unhandled: [u64; 8],
    /// Times that the program latched `expired`.
    pub expired: u64,
    /// Outbound: answers that passed the closed gate in the container's name (contained in `packets`). Inbound: packets that the program has
    /// answered itself.
    pub answered: u64,
}

impl Tally {
    /// Adds what another CPU counted.
    pub fn add(&mut self, other: &Self) {
        let sum = |a: &mut [u64; 8], b: &[u64; 8]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        self.packets += other.packets;
        self.bytes += other.bytes;
        sum(&mut self.dropped, &other.dropped);
        self.dropped_bytes += other.dropped_bytes;
        sum(&mut self.held, &other.held);
        self.held_bytes += other.held_bytes;
        self.neighbours += other.neighbours;
        self.windows += other.windows;
        self.sequences += other.sequences;
        sum(&mut self.unhandled, &other.unhandled);
        self.expired += other.expired;
        self.answered += other.answered;
    }

    /// Dropped packets of all protocols.
    #[must_use]
    pub fn dropped_packets(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Held packets of all protocols.
    #[must_use]
    pub fn held_packets(&self) -> u64 {
        self.held.iter().sum()
    }
}

/// Counts of a gate, all attachments and CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// To the container.
    pub inbound: Tally,
    /// From the container.
    pub outbound: Tally,
    /// On the container's `lo`.
    pub loopback: Tally,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions() {
        for (n, p) in Protocol::ALL.into_iter().enumerate() {
            assert_eq!(p as usize, n);
        }
        for (n, u) in Unhandled::ALL.into_iter().enumerate() {
            assert_eq!(u as usize, n);
        }
    }

    #[test]
    fn add_sums_every_field() {
        // Every u64 of the struct is one count: fill them with distinct values and compare all of them with the doubled ones.
        const FIELDS: usize = size_of::<Tally>() / 8;
        let values: [u64; FIELDS] = core::array::from_fn(|n| n as u64 + 1);
        // SAFETY: `Tally` is `repr(C)` and made of u64 alone.
        let mut tally: Tally = unsafe { core::mem::transmute(values) };
        let other = tally;
        tally.add(&other);
        // SAFETY: as above.
        let sums: [u64; FIELDS] = unsafe { core::mem::transmute(tally) };
        assert_eq!(sums, values.map(|v| 2 * v));
    }
}
