//! What a held packet is: for counting, and for the pace of datagrams.
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netmig_common::Protocol;

/// Numbers of packets by protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; 8]);

impl Counts {
    /// One more.
    pub fn add(&mut self, protocol: Protocol) {
        self.0[protocol as usize] += 1;
    }

    /// All.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// TCP, UDP, ICMP and all others.
    #[must_use]
    pub fn four(&self) -> [u64; 4] {
        let of = |protocol: Protocol| self.0[protocol as usize];
        let (tcp, udp, icmp) = (of(Protocol::Tcp), of(Protocol::Udp), of(Protocol::Icmp));
        [tcp, udp, icmp, self.total() - tcp - udp - icmp]
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&in_words(self.four()))
    }
}

/// [`Counts::four`] as a person reads it.
#[must_use]
pub fn in_words([tcp, udp, icmp, others]: [u64; 4]) -> String {
    format!("{tcp} TCP, {udp} UDP, {icmp} ICMP, {others} other")
}

/// A packet's protocol, and its ends where it is a UDP datagram (of fragments the first).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// As the gate counts.
    pub protocol: Protocol,
    /// From where, to where.
    pub datagram: Option<(SocketAddr, SocketAddr)>,
}

const VLAN: [u16; 2] = [0x8100, 0x88a8];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
/// More tags or extension headers than this are not walked.
const DEEPEST: usize = 8;

/// Reads an Ethernet frame.
pub fn parse(frame: &[u8]) -> Parsed {
    let only = |protocol| Parsed {
        protocol,
        datagram: None,
    };
    let mut at = 12;
    let mut kind = u16_at(frame, at);
    for _ in 0..DEEPEST {
        if !kind.is_some_and(|kind| VLAN.contains(&kind)) {
            break;
        }
        at += 4;
        kind = u16_at(frame, at);
    }
    let packet = frame.get(at + 2..).unwrap_or_default();
    match kind {
        Some(IPV4) => ipv4(packet).unwrap_or(only(Protocol::Unparsed)),
        Some(IPV6) => ipv6(packet).unwrap_or(only(Protocol::Unparsed)),
        Some(ARP) => only(Protocol::Neighbour),
        Some(_) => only(Protocol::OtherLink),
        None => only(Protocol::Unparsed),
    }
}

fn ipv4(packet: &[u8]) -> Option<Parsed> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let address = |at: usize| {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    let first = u16_at(packet, 6)? & 0x1fff == 0;
    Some(transport(
        *packet.get(9)?,
        packet.get(header..)?,
        first,
        address(12)?,
        address(16)?,
    ))
}

fn ipv6(packet: &[u8]) -> Option<Parsed> {
    let address = |at: usize| {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    let (from, to) = (address(8)?, address(24)?);
    let (mut next, mut rest, mut first) = (*packet.get(6)?, packet.get(40..)?, true);
    for _ in 0..DEEPEST {
        let length = match next {
            // Hop-by-hop, routing, destination, mobility (RFC 8200, 4.1).
            0 | 43 | 60 | 135 => (usize::from(*rest.get(1)?) + 1) * 8,
            // Authentication (RFC 4302, 2.2).
            51 => (usize::from(*rest.get(1)?) + 2) * 4,
            // Fragment.
            44 => {
                first = u16_at(rest, 2)? & 0xfff8 == 0;
                8
            }
            _ => break,
        };
        next = *rest.first()?;
        rest = rest.get(length..)?;
    }
    Some(transport(next, rest, first, from, to))
}

fn transport(next: u8, payload: &[u8], first: bool, from: IpAddr, to: IpAddr) -> Parsed {
    let only = |protocol| Parsed {
        protocol,
        datagram: None,
    };
    match next {
        6 => only(Protocol::Tcp),
        17 | 136 => Parsed {
            protocol: Protocol::Udp,
            datagram: u16_at(payload, 0)
                .zip(u16_at(payload, 2))
                .filter(|_| first)
                .map(|(source, port)| (SocketAddr::new(from, source), SocketAddr::new(to, port))),
        },
        1 => only(Protocol::Icmp),
        2 => only(Protocol::Neighbour),
        // Neighbour and router discovery, and group membership.
        58 if first && matches!(payload.first(), Some(130..=137 | 143)) => {
            only(Protocol::Neighbour)
        }
        58 => only(Protocol::Icmp),
        132 => only(Protocol::Sctp),
        _ => only(Protocol::OtherIp),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const FROM: [u8; 4] = [192, 0, 2, 1];
    const TO: [u8; 4] = [192, 0, 2, 10];

    fn built(builder: impl FnOnce(&mut Vec<u8>)) -> Parsed {
        let mut frame = Vec::new();
        builder(&mut frame);
        parse(&frame)
    }

    #[test]
    fn protocols_and_the_ends_of_datagrams_are_read() {
        let ends = Some((
            "192.0.2.1:7".parse().expect("an address"),
            "192.0.2.10:9".parse().expect("an address"),
        ));
        let eth = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let udp = built(|frame| {
            let packet = eth().ipv4(FROM, TO, 64).udp(7, 9);
            packet.write(frame, b"x").expect("a packet");
        });
        assert_eq!((udp.protocol, udp.datagram), (Protocol::Udp, ends));
        let tagged = built(|frame| {
            let vlan = etherparse::VlanId::try_new(5).expect("an id");
            let packet = eth().single_vlan(vlan).ipv4(FROM, TO, 64).udp(7, 9);
            packet.write(frame, b"x").expect("a packet");
        });
        assert_eq!((tagged.protocol, tagged.datagram), (Protocol::Udp, ends));
        let six = built(|frame| {
            let packet = eth().ipv6([1; 16], [2; 16], 64).udp(7, 9);
            packet.write(frame, b"x").expect("a packet");
        });
        assert!(
            six.protocol == Protocol::Udp && six.datagram.is_some_and(|(_, to)| to.port() == 9)
        );
        let tcp = built(|frame| {
            let packet = eth().ipv4(FROM, TO, 64).tcp(7, 9, 0, 100);
            packet.write(frame, b"x").expect("a packet");
        });
        assert_eq!((tcp.protocol, tcp.datagram), (Protocol::Tcp, None));
        let ping = built(|frame| {
            let packet = eth().ipv4(FROM, TO, 64).icmpv4_echo_request(1, 2);
            packet.write(frame, b"x").expect("a packet");
        });
        assert_eq!(ping.protocol, Protocol::Icmp);
        let mut arp = vec![2; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(parse(&arp).protocol, Protocol::Neighbour);
        assert_eq!(parse(&arp[..13]).protocol, Protocol::Unparsed);
    }

    #[test]
    fn a_later_fragment_is_udp_without_ports() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(FROM, TO, 64)
            .udp(7, 9)
            .write(&mut frame, b"x")
            .expect("a packet");
        frame[14 + 7] = 1;
        let fragment = parse(&frame);
        assert_eq!(
            (fragment.protocol, fragment.datagram),
            (Protocol::Udp, None)
        );
    }

    #[test]
    fn counts_are_told_by_protocol() {
        let mut counts = Counts::default();
        for protocol in Protocol::ALL {
            counts.add(protocol);
        }
        counts.add(Protocol::Udp);
        assert_eq!((counts.total(), counts.four()), (9, [1, 2, 1, 5]));
        assert_eq!(counts.to_string(), "1 TCP, 2 UDP, 1 ICMP, 5 other");
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3usize) {
            let mut frame = vec![0; 12];
            frame.extend([[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00]][kind]);
            frame.extend(&bytes);
            parse(&frame);
            parse(&bytes);
        }
    }
}
