//! A held TCP segment, read as its receiver would: what is not whole, or whose checksum is wrong, is none.
use netmig_common::FlowKey;

use crate::gate::hold::Packet;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const URG: u8 = 32;

const PROTO_TCP: u8 = 6;
/// Tags, and extension headers, that are walked.
const DEEPEST: usize = 8;

/// include/uapi/linux/virtio_net.h: the checksum is still to be computed; it has been verified.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

/// A segment to the container. Numbers in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub key: FlowKey,
    pub seq: u32,
    pub ack: u32,
    flags: u8,
    /// Bytes of payload.
    pub payload: u32,
    pub tsval: Option<u32>,
    /// TCP-MD5 or TCP-AO.
    pub signed: bool,
    /// Where the IP header begins in the frame.
    pub ip: usize,
}

impl Segment {
    /// Reads a held packet; none if it is no TCP segment that a stack would look at.
    pub(super) fn read(packet: &Packet) -> Option<Self> {
        let frame = packet.frame();
        let (ip, v6) = network(frame)?;
        let bytes = frame.get(ip..)?;
        let mut key = FlowKey::default();
        let tcp = if v6 {
            ipv6(bytes, &mut key)?
        } else {
            ipv4(bytes, &mut key)?
        };
        if tcp.len() < 20 {
            return None;
        }
        let header = usize::from(tcp[12] >> 4) * 4;
        let options = tcp.get(20..header)?;
        let trusted = packet.as_bytes()[0] & (NEEDS_CSUM | DATA_VALID) != 0;
        if !trusted && sum(&key, v6, tcp) != 0xffff {
            return None;
        }
        (key.peer_port, key.container_port) = (u16_at(tcp, 0)?, u16_at(tcp, 2)?);
        let (tsval, signed) = read_options(options);
        Some(Self {
            key,
            seq: u32_at(tcp, 4)?,
            ack: u32_at(tcp, 8)?,
            flags: tcp[13],
            payload: u32::try_from(tcp.len() - header).ok()?,
            tsval,
            signed,
            ip,
        })
    }

    pub(super) fn is_syn(&self) -> bool {
        self.flags & SYN != 0
    }

    pub(super) fn is_rst(&self) -> bool {
        self.flags & RST != 0
    }

    pub(super) fn is_fin(&self) -> bool {
        self.flags & FIN != 0
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.flags & URG != 0
    }

    pub(super) fn has_ack(&self) -> bool {
        self.flags & ACK != 0
    }
}

/// Where the IP packet begins, and whether it is IPv6.
fn network(frame: &[u8]) -> Option<(usize, bool)> {
    let mut at = 12;
    for _ in 0..DEEPEST {
        match u16_at(frame, at)? {
            0x8100 | 0x88a8 => at += 4,
            0x0800 => return Some((at + 2, false)),
            0x86dd => return Some((at + 2, true)),
            _ => return None,
        }
    }
    None
}

/// The TCP segment in an IPv4 packet that is no fragment.
fn ipv4<'a>(bytes: &'a [u8], key: &mut FlowKey) -> Option<&'a [u8]> {
    let header = usize::from(bytes.first()? & 0xf) * 4;
    let total = usize::from(u16_at(bytes, 2)?);
    if bytes[0] >> 4 != 4 || u16_at(bytes, 6)? & 0x3fff != 0 || *bytes.get(9)? != PROTO_TCP {
        return None;
    }
    let address = |at: usize| Some(FlowKey::mapped(bytes.get(at..at + 4)?.try_into().ok()?));
    (key.peer, key.container) = (address(12)?, address(16)?);
    // Super-packets of more than 64 KiB say 0.
    let end = if total == 0 { bytes.len() } else { total };
    bytes.get(header.max(20)..end)
}

/// The TCP segment in an IPv6 packet that is no fragment.
fn ipv6<'a>(bytes: &'a [u8], key: &mut FlowKey) -> Option<&'a [u8]> {
    if bytes.first()? >> 4 != 6 {
        return None;
    }
    let address = |at: usize| bytes.get(at..at + 16)?.try_into().ok();
    (key.peer, key.container) = (address(8)?, address(24)?);
    let length = usize::from(u16_at(bytes, 4)?);
    let end = if length == 0 {
        bytes.len()
    } else {
        40 + length
    };
    let mut next = *bytes.get(6)?;
    let mut rest = bytes.get(40..end)?;
    for _ in 0..DEEPEST {
        match next {
            PROTO_TCP => return Some(rest),
            // Hop-by-hop, routing, destination options (RFC 8200, section 4).
            0 | 43 | 60 => {
                let length = (usize::from(*rest.get(1)?) + 1) * 8;
                next = rest[0];
                rest = rest.get(length..)?;
            }
            _ => return None,
        }
    }
    None
}

/// TSval, and whether the segment is signed.
fn read_options(mut options: &[u8]) -> (Option<u32>, bool) {
    let (mut tsval, mut signed) = (None, false);
    while let Some(&kind) = options.first() {
        let length = match kind {
            0 => break,
            1 => 1,
            _ => usize::from(options.get(1).copied().unwrap_or(0)),
        };
        let Some(option) = options.get(..length).filter(|_| length > 0) else {
            break;
        };
        match kind {
            8 if length == 10 => tsval = u32_at(option, 2),
            19 | 29 => signed = true,
            _ => {}
        }
        options = &options[length..];
    }
    (tsval, signed)
}

/// RFC 1071 over pseudo header and segment: 0xffff if its checksum is right.
pub(super) fn sum(key: &FlowKey, v6: bool, tcp: &[u8]) -> u16 {
    let mut sum = u64::from(PROTO_TCP) + tcp.len() as u64;
    let skip = if v6 { 0 } else { 12 };
    for bytes in [&key.peer[skip..], &key.container[skip..], tcp] {
        let (pairs, odd) = bytes.as_chunks::<2>();
        sum += pairs
            .iter()
            .map(|pair| u64::from(u16::from_be_bytes(*pair)))
            .sum::<u64>();
        sum += odd.first().map_or(0, |last| u64::from(*last) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
