//! Packets for BPF_PROG_TEST_RUN.
use std::path::Path;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header,
    NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice,
};
use netmig_common::{Direction, FlowKey};

use crate::gate::object::Program;

pub(super) const CONTAINER4: [u8; 4] = [192, 0, 2, 10];
pub(super) const PEER4: [u8; 4] = [198, 51, 100, 1];
pub(super) const CONTAINER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
pub(super) const PEER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

pub(super) const TC_ACT_UNSPEC: i32 = -1;
pub(super) const TC_ACT_SHOT: i32 = 2;

/// Version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ip {
    V4,
    V6,
}

pub(super) use Direction::{Inbound, Outbound};

pub(super) fn headers(ip: Ip, direction: Direction) -> IpHeaders {
    match ip {
        Ip::V4 => {
            let (source, destination) = if direction == Inbound {
                (PEER4, CONTAINER4)
            } else {
                (CONTAINER4, PEER4)
            };
            let header = Ipv4Header {
                source,
                destination,
                time_to_live: 63,
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        Ip::V6 => {
            let (source, destination) = if direction == Inbound {
                (PEER6, CONTAINER6)
            } else {
                (CONTAINER6, PEER6)
            };
            let header = Ipv6Header {
                flow_label: Ipv6FlowLabel::try_new(0x12345).expect("20 bits"),
                hop_limit: 64,
                source,
                destination,
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
    }
}

pub(super) fn key(ip: Ip, container_port: u16, peer_port: u16) -> FlowKey {
    let (container, peer) = match ip {
        Ip::V4 => (FlowKey::mapped(CONTAINER4), FlowKey::mapped(PEER4)),
        Ip::V6 => (CONTAINER6, PEER6),
    };
    FlowKey {
        container,
        peer,
        container_port,
        peer_port,
    }
}

/// A segment in Ethernet, with a right checksum.
pub(super) fn tcp(ip: Ip, direction: Direction, header: &TcpHeader, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ip(headers(ip, direction))
        .tcp_header(header.clone());
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).expect("a packet");
    packet
}

pub(super) fn udp(ip: Ip, direction: Direction) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ip(headers(ip, direction))
        .udp(7, 8);
    let mut packet = Vec::new();
    builder.write(&mut packet, b"datagram").expect("a packet");
    packet
}

/// A packet with this protocol number and these bytes behind the IP header.
pub(super) fn raw(ip: Ip, direction: Direction, protocol: u8, bytes: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ip(headers(ip, direction))
        .write(&mut packet, IpNumber(protocol), bytes)
        .expect("a packet");
    packet
}

/// The packet with tags of these types, outermost first, in front of its EtherType.
pub(super) fn tagged(packet: &[u8], types: &[u16]) -> Vec<u8> {
    let mut tagged = packet[..12].to_vec();
    for (n, kind) in types.iter().enumerate() {
        tagged.extend(kind.to_be_bytes());
        tagged.extend([0, 100 + n as u8]);
    }
    tagged.extend(&packet[12..]);
    tagged
}

/// The IPv6 packet with these extension headers between its header and what follows: type and bytes, whose first is set here.
pub(super) fn extended(packet: &[u8], chain: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut extended = packet[..54].to_vec();
    let transport = extended[20];
    let mut next = 20;
    for (kind, bytes) in chain {
        extended[next] = *kind;
        next = extended.len();
        extended.extend(bytes);
    }
    extended[next] = transport;
    extended.extend(&packet[54..]);
    let length = u16::try_from(extended.len() - 54).expect("64 KiB at most");
    extended[18..20].copy_from_slice(&length.to_be_bytes());
    extended
}

/// The IPv4 packet with 8 bytes of options (NOPs, end of list).
pub(super) fn with_options(packet: &[u8]) -> Vec<u8> {
    let mut with = packet[..34].to_vec();
    with.extend([1, 1, 1, 1, 1, 1, 1, 0]);
    with.extend(&packet[34..]);
    with[14] += 2;
    let length = u16::try_from(with.len() - 14).expect("64 KiB at most");
    with[16..18].copy_from_slice(&length.to_be_bytes());
    let header = Ipv4Header::from_slice(&with[14..]).expect("a header").0;
    with[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    with
}

/// An extension header of type 0, 43 or 60 with `units` times 8 bytes.
pub(super) fn extension(units: u8) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(units) * 8];
    bytes[1] = units - 1;
    bytes
}

/// Runs a program on a packet: what it says, and the packet afterwards.
pub(super) fn run(program: &SchedClassifier, packet: &[u8]) -> (i32, Vec<u8>) {
    let mut out = vec![0; packet.len() + 256];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        })
        .unwrap_or_else(|e| panic!("BPF_PROG_TEST_RUN of {packet:02x?}: {e}"));
    out.truncate(result.data_size_out as usize);
    (result.return_value.cast_signed(), out)
}

/// Both programs of a gate.
pub(super) struct Programs {
    inbound: SchedClassifier,
    outbound: SchedClassifier,
    pub(super) loopback: SchedClassifier,
}

impl Programs {
    pub(super) fn open(pins: &Path) -> Self {
        let open = |program: Program| program.open(pins).expect("a pinned program");
        Self {
            inbound: open(Program::Inbound),
            outbound: open(Program::Outbound),
            loopback: open(Program::Loopback),
        }
    }

    pub(super) fn run(&self, direction: Direction, packet: &[u8]) -> (i32, Vec<u8>) {
        run(
            if direction == Inbound {
                &self.inbound
            } else {
                &self.outbound
            },
            packet,
        )
    }

    /// Runs it on a packet that must pass.
    pub(super) fn passes(&self, direction: Direction, packet: &[u8]) -> Vec<u8> {
        let (verdict, out) = self.run(direction, packet);
        assert_eq!(verdict, TC_ACT_UNSPEC);
        out
    }
}

/// A segment read back.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) header: TcpHeader,
    /// What the checksum would have to be, computed from all of the segment.
    pub(super) checksum: u16,
}

pub(super) fn read(packet: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(packet).expect("a packet");
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
        panic!("not TCP: {sliced:?}")
    };
    let header = tcp.to_header();
    let checksum = match sliced.net.expect("IP") {
        NetSlice::Ipv4(ip) => header.calc_checksum_ipv4_raw(
            ip.header().source(),
            ip.header().destination(),
            tcp.payload(),
        ),
        NetSlice::Ipv6(ip) => header.calc_checksum_ipv6_raw(
            ip.header().source(),
            ip.header().destination(),
            tcp.payload(),
        ),
        NetSlice::Arp(_) => panic!("ARP"),
    };
    Seen {
        header,
        checksum: checksum.expect("a length"),
    }
}
