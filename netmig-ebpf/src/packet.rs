//! Where the headers of a packet are: Ethernet, VLAN tags, IPv4, IPv6 with extension headers.
use aya_ebpf::programs::TcContext;
use netmig_common::{Direction, FlowKey, Protocol, Unhandled};

use crate::scratch::scratch;

const ETHERNET: u32 = 14;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_IGMP: u8 = 2;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_SCTP: u8 = 132;
const IPPROTO_UDPLITE: u8 = 136;

/// Tags walked in the packet itself, besides one that the device keeps beside it (`skb->vlan_tci`).
const VLAN_TAGS: u32 = 3;
/// Extension headers walked.
const EXTENSION_HEADERS: u32 = 8;

/// What was found.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    /// Offset of the IP header.
    pub network: u32,
    /// Offset of the transport header.
    pub transport: u32,
    /// Offset of the first byte after the IP packet; padding of the link layer lies behind it.
    pub end: u32,
    /// [`Protocol`], for the counters; right also where there is trouble.
    pub protocol: u32,
    /// Why the transport header cannot be trusted to be whole: [`Unhandled`], or [`WHOLE`].
    pub trouble: u32,
}

/// No trouble.
pub const WHOLE: u32 = u32::MAX;

impl Packet {
    #[inline(always)]
    const fn opaque(protocol: Protocol) -> Self {
        Self {
            protocol: protocol as u32,
            network: 0,
            transport: 0,
            end: 0,
            trouble: WHOLE,
        }
    }

    #[inline(always)]
    const fn trouble(protocol: Protocol, trouble: Unhandled) -> Self {
        Self {
            protocol: protocol as u32,
            network: 0,
            transport: 0,
            end: 0,
            trouble: trouble as u32,
        }
    }
}

/// Finds the headers and writes the addresses to `key`; ports stay as they are.
#[inline(always)]
pub fn parse(ctx: &TcContext, direction: Direction, key: &mut FlowKey) -> Packet {
    let packet = find(ctx, direction, key);
    let Some(scratch) = scratch() else {
        return packet;
    };
    // SAFETY: this CPU's memory, see `Scratch`.
    unsafe {
        (&raw mut (*scratch).packet).write_volatile(packet);
        (&raw const (*scratch).packet).read_volatile()
    }
}

#[inline(always)]
fn find(ctx: &TcContext, direction: Direction, key: &mut FlowKey) -> Packet {
    let malformed = Packet::trouble(Protocol::Unparsed, Unhandled::Malformed);
    let mut offset = ETHERNET;
    let Ok(kind) = ctx.load::<[u8; 2]>(offset as usize - 2) else {
        return malformed;
    };
    let mut kind = u16::from_be_bytes(kind);
    for _ in 0..VLAN_TAGS {
        if !is_tag(kind) {
            break;
        }
        let Ok(inner) = ctx.load::<[u8; 2]>(offset as usize + 2) else {
            return malformed;
        };
        kind = u16::from_be_bytes(inner);
        offset += 4;
    }
    match kind {
        ETH_P_IP => ipv4(ctx, direction, key, offset),
        ETH_P_IPV6 => ipv6(ctx, direction, key, offset),
        ETH_P_ARP => Packet::opaque(Protocol::Neighbour),
        kind if is_tag(kind) => Packet::trouble(Protocol::Unparsed, Unhandled::TooDeep),
        _ => Packet::opaque(Protocol::OtherLink),
    }
}

#[inline(always)]
fn is_tag(kind: u16) -> bool {
    // 802.1Q, 802.1ad, and what came before it.
    matches!(kind, 0x8100 | 0x88a8 | 0x9100)
}

#[inline(always)]
fn set_addresses(key: &mut FlowKey, direction: Direction, source: [u8; 16], destination: [u8; 16]) {
    match direction {
        Direction::Inbound => (key.peer, key.container) = (source, destination),
        Direction::Outbound => (key.container, key.peer) = (source, destination),
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, direction: Direction, key: &mut FlowKey, offset: u32) -> Packet {
    let malformed = Packet::trouble(Protocol::Unparsed, Unhandled::Malformed);
    let Ok(h) = ctx.load::<[u8; 20]>(offset as usize) else {
        return malformed;
    };
    let header = u32::from(h[0] & 15) * 4;
    if h[0] >> 4 != 4 || header < 20 {
        return malformed;
    }
    set_addresses(
        key,
        direction,
        FlowKey::mapped([h[12], h[13], h[14], h[15]]),
        FlowKey::mapped([h[16], h[17], h[18], h[19]]),
    );
    let protocol = match h[9] {
        IPPROTO_TCP => Protocol::Tcp,
        IPPROTO_UDP | IPPROTO_UDPLITE => Protocol::Udp,
        IPPROTO_ICMP => Protocol::Icmp,
        IPPROTO_IGMP => Protocol::Neighbour,
        IPPROTO_SCTP => Protocol::Sctp,
        _ => Protocol::OtherIp,
    };
    // More-fragments bit or an offset.
    if h[6] & 0x3f != 0 || h[7] != 0 {
        return Packet::trouble(protocol, Unhandled::Fragment);
    }
    let total = u32::from(u16::from_be_bytes([h[2], h[3]]));
    whole(ctx, protocol, offset, offset + header, total)
}

#[inline(always)]
fn ipv6(ctx: &TcContext, direction: Direction, key: &mut FlowKey, offset: u32) -> Packet {
    let malformed = Packet::trouble(Protocol::Unparsed, Unhandled::Malformed);
    let Ok(h) = ctx.load::<[u8; 8]>(offset as usize) else {
        return malformed;
    };
    let Ok(source) = ctx.load::<[u8; 16]>(offset as usize + 8) else {
        return malformed;
    };
    let Ok(destination) = ctx.load::<[u8; 16]>(offset as usize + 24) else {
        return malformed;
    };
    if h[0] >> 4 != 6 {
        return malformed;
    }
    set_addresses(key, direction, source, destination);
    let payload = u32::from(u16::from_be_bytes([h[4], h[5]]));
    let total = if payload == 0 { 0 } else { payload + 40 };

    let mut next = h[6];
    let mut transport = offset + 40;
    for _ in 0..EXTENSION_HEADERS {
        let units = match next {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: length in 8 octets, without the first 8 (RFC 6564).
            0 | 43 | 60 | 135 | 139 | 140 => 8,
            // Authentication header: in 4 octets, less 2 (RFC 4302 section 2.2).
            51 => 4,
            44 => 0,
            _ => break,
        };
        let Ok(e) = ctx.load::<[u8; 4]>(transport as usize) else {
            return malformed;
        };
        if units == 0 {
            // An atomic fragment (RFC 6946) is a whole packet.
            if e[2] != 0 || e[3] & !0b110 != 0 {
                return Packet::trouble(protocol6(e[0]), Unhandled::Fragment);
            }
            transport += 8;
        } else if units == 4 {
            transport += (u32::from(e[1]) + 2) * 4;
        } else {
            transport += (u32::from(e[1]) + 1) * 8;
        }
        next = e[0];
    }
    if matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
        return Packet::trouble(Protocol::OtherIp, Unhandled::TooDeep);
    }
    let mut protocol = protocol6(next);
    if protocol as u8 == Protocol::Icmp as u8 && is_neighbour(ctx, transport) {
        protocol = Protocol::Neighbour;
    }
    whole(ctx, protocol, offset, transport, total)
}

#[inline(always)]
fn protocol6(next: u8) -> Protocol {
    match next {
        IPPROTO_TCP => Protocol::Tcp,
        IPPROTO_UDP | IPPROTO_UDPLITE => Protocol::Udp,
        IPPROTO_ICMPV6 => Protocol::Icmp,
        IPPROTO_SCTP => Protocol::Sctp,
        _ => Protocol::OtherIp,
    }
}

/// MLD (RFC 2710, RFC 3810): without it a snooping bridge stops delivering solicitations; router and neighbour discovery (RFC 4861).
#[inline(always)]
fn is_neighbour(ctx: &TcContext, transport: u32) -> bool {
    match ctx.load::<u8>(transport as usize) {
        Ok(kind) => matches!(kind, 130..=136 | 143),
        Err(_) => false,
    }
}

/// `total`: length of the IP packet by its own header; 0 in super-packets of more than 64 KiB (BIG TCP), which end with the skb.
#[inline(always)]
fn whole(ctx: &TcContext, protocol: Protocol, offset: u32, transport: u32, total: u32) -> Packet {
    let length = ctx.len();
    let end = if total == 0 { length } else { offset + total };
    let trouble = if end > length || transport > end {
        Unhandled::Malformed as u32
    } else {
        WHOLE
    };
    Packet {
        protocol: protocol as u32,
        network: offset,
        transport,
        end,
        trouble,
    }
}
