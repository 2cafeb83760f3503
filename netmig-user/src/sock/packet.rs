//! The bytes of packets that netmig makes.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netmig_core::image::v1::sock::{Endpoint, HalfOpen, Key};

use super::md5;

pub(super) const ACK: u8 = 0x10;
pub(super) const FIN: u8 = 0x01;
pub(super) const RST: u8 = 0x04;
pub(super) const PROTO_TCP: u8 = 6;
/// Bytes of the TCP-MD5 option, padded.
pub(super) const SIGNATURE: usize = 20;
/// A socket may demand a high hop limit (IP_MINTTL, IPV6_MINHOPCOUNT).
pub(super) const HIGHEST: Hops = Hops { ttl: 255, tos: 0 };

/// A TCP segment.
pub(super) struct Segment<'a> {
    pub(super) from: Endpoint,
    pub(super) to: Endpoint,
    pub(super) seq: u32,
    pub(super) ack: u32,
    /// As it stands in the header.
    pub(super) window: u16,
    pub(super) flags: u8,
    /// tsval, tsecr.
    pub(super) stamps: Option<(u32, u32)>,
    pub(super) payload: &'a [u8],
    /// Signs it.
    pub(super) key: Option<&'a Key>,
}

impl Segment<'_> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut options = if self.stamps.is_some() { 12 } else { 0 };
        let stamped = 20 + options;
        if self.key.is_some() {
            options += SIGNATURE;
        }
        let words = (20 + options) as u8 / 4;
        let mut t = Vec::with_capacity(20 + options + self.payload.len());
        t.extend_from_slice(&self.from.port.to_be_bytes());
        t.extend_from_slice(&self.to.port.to_be_bytes());
        t.extend_from_slice(&self.seq.to_be_bytes());
        t.extend_from_slice(&self.ack.to_be_bytes());
        t.extend_from_slice(&[words << 4, self.flags]);
        t.extend_from_slice(&self.window.to_be_bytes());
        t.extend_from_slice(&[0; 4]);
        if let Some((tsval, tsecr)) = self.stamps {
            t.extend_from_slice(&[1, 1, 8, 10]);
            t.extend_from_slice(&tsval.to_be_bytes());
            t.extend_from_slice(&tsecr.to_be_bytes());
        }
        if self.key.is_some() {
            t.extend_from_slice(&[1, 1, 19, 18]);
            t.extend_from_slice(&[0; 16]);
        }
        t.extend_from_slice(self.payload);
        if let Some(key) = self.key {
            let digest = md5::digest(self.from.ip, self.to.ip, &t, options, key);
            t[stamped + 4..stamped + SIGNATURE].copy_from_slice(&digest);
        }
        let sum = checksum(self.from.ip, self.to.ip, PROTO_TCP, &t);
        t[16..18].copy_from_slice(&sum.to_be_bytes());
        t
    }
}

/// The answer to a SYN (tcp_synack_options): header and options. Its own limit of a segment is not known any more; the peer's is of the same
/// path.
pub(super) fn syn_ack(half: &HalfOpen) -> Vec<u8> {
    const SYN: u8 = 0x02;
    const ECE: u8 = 0x40;
    const MSS: [u8; 2] = [2, 4];
    const SACK_PERMITTED: [u8; 2] = [4, 2];
    const NOPS: [u8; 2] = [1, 1];
    let mut options = Vec::from(MSS);
    options.extend_from_slice(&half.mss.to_be_bytes());
    match (half.sack, half.ts_recent) {
        (true, _) => options.extend_from_slice(&SACK_PERMITTED),
        (false, Some(_)) => options.extend_from_slice(&NOPS),
        (false, None) => {}
    }
    if let Some(theirs) = half.ts_recent {
        options.extend_from_slice(&[8, 10]);
        options.extend_from_slice(&half.timestamp.to_be_bytes());
        options.extend_from_slice(&theirs.to_be_bytes());
    } else if half.sack {
        options.extend_from_slice(&NOPS);
    }
    if let Some((_, ours)) = half.wscale {
        options.extend_from_slice(&[1, 3, 3, ours]);
    }
    let (from, to) = (half.local.canonical(), half.peer.canonical());
    let words = (20 + options.len()) as u8 / 4;
    let flags = SYN | ACK | if half.ecn { ECE } else { 0 };
    let window = u16::try_from(half.window).unwrap_or(u16::MAX);
    let mut t = Vec::with_capacity(20 + options.len());
    t.extend_from_slice(&from.port.to_be_bytes());
    t.extend_from_slice(&to.port.to_be_bytes());
    t.extend_from_slice(&half.isn.to_be_bytes());
    t.extend_from_slice(&half.peer_isn.wrapping_add(1).to_be_bytes());
    t.extend_from_slice(&[words << 4, flags]);
    t.extend_from_slice(&window.to_be_bytes());
    t.extend_from_slice(&[0; 4]);
    t.extend_from_slice(&options);
    let sum = checksum(from.ip, to.ip, PROTO_TCP, &t);
    t[16..18].copy_from_slice(&sum.to_be_bytes());
    t
}

/// What the IP header says besides the addresses.
#[derive(Clone, Copy)]
pub(super) struct Hops {
    pub(super) ttl: u8,
    pub(super) tos: u8,
}

/// IPv4: the kernel fills in length, identification and checksum (raw_send_hdrinc).
pub(super) fn packet(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    hops: Hops,
    payload: &[u8],
) -> io::Result<Vec<u8>> {
    let Hops { ttl, tos } = hops;
    let mut p = Vec::with_capacity(40 + payload.len());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            p.extend_from_slice(&[0x45, tos, 0, 0, 0, 0, 0, 0, ttl, protocol, 0, 0]);
            p.extend_from_slice(&from.octets());
            p.extend_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u16::try_from(payload.len()).map_err(io::Error::other)?;
            p.extend_from_slice(&[0x60 | tos >> 4, tos << 4, 0, 0]);
            p.extend_from_slice(&length.to_be_bytes());
            p.extend_from_slice(&[protocol, ttl]);
            p.extend_from_slice(&from.octets());
            p.extend_from_slice(&to.octets());
        }
        _ => return Err(io::Error::other("addresses of different families")),
    }
    p.extend_from_slice(payload);
    Ok(p)
}

/// RFC 1071 over the pseudo header and the payload.
pub(super) fn checksum(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let mut sum = u64::from(protocol) + payload.len() as u64;
    let mut add = |bytes: &[u8]| {
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
    };
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => add(&Ipv4Addr::octets(&ip)),
            IpAddr::V6(ip) => add(&Ipv6Addr::octets(&ip)),
        }
    }
    add(payload);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Ipv4Header, Ipv4HeaderSlice, Ipv6HeaderSlice, TcpSlice};

    fn segment(
        from: &str,
        to: &str,
        stamps: Option<(u32, u32)>,
        payload: &'static [u8],
    ) -> (Segment<'static>, Vec<u8>) {
        let end = |ip: &str, port| Endpoint {
            ip: ip.parse().expect("an address"),
            port,
            scope: 0,
        };
        let segment = Segment {
            from: end(from, 6379),
            to: end(to, 50_000),
            seq: u32::MAX,
            ack: 7,
            window: 501,
            flags: ACK | FIN,
            stamps,
            payload,
            key: None,
        };
        let bytes = segment.bytes();
        let packet =
            packet(segment.from.ip, segment.to.ip, PROTO_TCP, HIGHEST, &bytes).expect("a packet");
        (segment, packet)
    }

    #[test]
    fn an_ipv4_segment_reads_back_with_a_right_checksum() {
        let (sent, packet) = segment("192.0.2.1", "192.0.2.10", Some((123, 456)), b"odd");
        let ip = Ipv4HeaderSlice::from_slice(&packet).expect("an IPv4 header");
        let tcp = TcpSlice::from_slice(&packet[Ipv4Header::MIN_LEN..]).expect("a TCP header");
        assert_eq!(
            (ip.source(), ip.destination()),
            ([192, 0, 2, 1], [192, 0, 2, 10])
        );
        assert_eq!((tcp.source_port(), tcp.destination_port()), (6379, 50_000));
        assert_eq!(
            (
                tcp.sequence_number(),
                tcp.acknowledgment_number(),
                tcp.window_size()
            ),
            (u32::MAX, 7, 501)
        );
        assert!(tcp.ack() && tcp.fin() && !tcp.rst() && !tcp.syn());
        assert_eq!(tcp.payload(), sent.payload);
        assert_eq!(tcp.options(), [1, 1, 8, 10, 0, 0, 0, 123, 0, 0, 1, 200]);
        assert_eq!(
            tcp.calc_checksum_ipv4(ip.source(), ip.destination()),
            Ok(tcp.checksum())
        );
    }

    #[test]
    fn an_ipv6_segment_reads_back_with_a_right_checksum() {
        let (_, packet) = segment("2001:db8::1", "2001:db8::10", None, b"");
        let ip = Ipv6HeaderSlice::from_slice(&packet).expect("an IPv6 header");
        let tcp = TcpSlice::from_slice(&packet[40..]).expect("a TCP header");
        assert_eq!((ip.payload_length(), ip.hop_limit()), (20, 255));
        assert_eq!(
            tcp.calc_checksum_ipv6(ip.source(), ip.destination()),
            Ok(tcp.checksum())
        );
    }

    #[test]
    fn a_syn_ack_says_what_was_agreed_upon() {
        use etherparse::TcpOptionElement::{
            MaximumSegmentSize as Mss, Noop, SelectiveAcknowledgementPermitted as Sack, Timestamp,
            WindowScale,
        };
        let end = |port| Endpoint {
            ip: "::ffff:192.0.2.10".parse().expect("an address"),
            port,
            scope: 0,
        };
        let all = HalfOpen {
            local: end(80),
            peer: end(50_000),
            isn: 7,
            peer_isn: u32::MAX,
            window: 1 << 20,
            mss: 1460,
            wscale: Some((9, 7)),
            sack: true,
            ecn: true,
            ts_recent: Some(5),
            timestamp: 6,
        };
        let least = HalfOpen {
            wscale: None,
            sack: false,
            ecn: false,
            ts_recent: None,
            ..all.clone()
        };
        let no_sack = HalfOpen {
            sack: false,
            ..all.clone()
        };
        let no_stamps = HalfOpen {
            ts_recent: None,
            ..all.clone()
        };
        let stamps = Timestamp(6, 5);
        for (half, options) in [
            (
                &all,
                vec![Mss(1460), Sack, stamps.clone(), Noop, WindowScale(7)],
            ),
            (&least, vec![Mss(1460)]),
            (
                &no_sack,
                vec![Mss(1460), Noop, Noop, stamps, Noop, WindowScale(7)],
            ),
            (
                &no_stamps,
                vec![Mss(1460), Sack, Noop, Noop, Noop, WindowScale(7)],
            ),
        ] {
            let bytes = syn_ack(half);
            let tcp = TcpSlice::from_slice(&bytes).expect("a TCP header");
            let numbers = (tcp.sequence_number(), tcp.acknowledgment_number());
            assert_eq!((numbers, tcp.window_size()), ((7, 0), u16::MAX));
            assert!(tcp.syn() && tcp.ack() && !tcp.rst() && tcp.ece() == half.ecn);
            let said: Vec<_> = tcp
                .options_iterator()
                .map(|o| o.expect("an option"))
                .collect();
            assert_eq!(said, options);
            let at = [192, 0, 2, 10];
            assert_eq!(tcp.calc_checksum_ipv4(at, at), Ok(tcp.checksum()));
        }
    }
}
