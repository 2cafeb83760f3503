//! The frames that netmig itself sends and reads: ARP, neighbour discovery, and reports of group membership.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netmig_core::image::v1::net::Mac;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_RARP: u16 = 0x8035;
const ETH_P_IPV6: u16 = 0x86dd;
const BROADCAST: Mac = Mac([0xff; 6]);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const IGMP: u8 = 2;
const ICMPV6: u8 = 58;
const NS: u8 = 135;
const NA: u8 = 136;
const MLD2_REPORT: u8 = 143;
const IGMP3_REPORT: u8 = 0x22;
/// The record type of a report that joins a group whatever the source (RFC 3810, 5.2.12; RFC 3376, 4.2.12).
const CHANGE_TO_EXCLUDE: u8 = 4;
/// Neighbour discovery is valid with this hop limit only: it has crossed no router (RFC 4861, 7.1).
const HOP_LIMIT: u8 = 255;

/// What a station says of an address, by any ARP packet or by a neighbour advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub mac: Mac,
}

/// Gratuitous ARP (RFC 5227, 3) in the request and the reply form, for an IPv4 address; for an IPv6 address the unsolicited neighbour
/// advertisement to all nodes with the override flag (RFC 4861, 7.2.6). `router` is what the advertisement says of the station: a router
/// that does not say so is struck from its neighbours' default routes.
pub fn announcements(mac: Mac, address: IpAddr, router: bool) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(a) => vec![arp(1, mac, a, Mac([0; 6]), a), arp(2, mac, a, BROADCAST, a)],
        IpAddr::V6(a) => vec![advertisement(mac, a, router)],
    }
}

/// A reverse ARP request of the station for itself (as a hypervisor sends it): teaches bridges where the MAC is, names no address.
pub fn rarp(mac: Mac) -> Vec<u8> {
    let mut frame = arp(3, mac, Ipv4Addr::UNSPECIFIED, mac, Ipv4Addr::UNSPECIFIED);
    frame[12..14].copy_from_slice(&ETH_P_RARP.to_be_bytes());
    frame
}

/// The report that the station `mac` is a member of `group`, for switches that forward groups only to ports where they have heard one:
/// IGMPv3 (RFC 3376, 4.2), or MLDv2 (RFC 3810, 5.2) from its link-local address. A neighbour's question for an IPv6 address goes to a group.
pub fn membership(mac: Mac, group: IpAddr, own: (Ipv4Addr, Ipv6Addr)) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0, 0, 0, 0, 1, CHANGE_TO_EXCLUDE, 0, 0, 0];
    match group {
        IpAddr::V4(group) => {
            body[0] = IGMP3_REPORT;
            body.extend(group.octets());
            let sum = checksum(&[&body]);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            igmp(mac, own.0, &body)
        }
        IpAddr::V6(group) => {
            body[0] = MLD2_REPORT;
            body.extend(group.octets());
            let all_mld2_routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
            // Hop-by-hop options: router alert for MLD (RFC 2711), padding.
            icmpv6(
                mac,
                (own.1, all_mld2_routers),
                1,
                &[ICMPV6, 0, 5, 2, 0, 0, 1, 0],
                body,
            )
        }
    }
}

/// The question whether anybody has `address`, from a station without one: ARP probe (RFC 5227, 2.1.1), or the neighbour solicitation of
/// duplicate address detection (RFC 4862, 5.4.2).
pub fn probe(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => arp(1, mac, Ipv4Addr::UNSPECIFIED, Mac([0; 6]), a),
        IpAddr::V6(a) => {
            let [.., x, y, z] = a.octets();
            let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
            let mut body = vec![NS, 0, 0, 0, 0, 0, 0, 0];
            body.extend(a.octets());
            icmpv6(mac, (Ipv6Addr::UNSPECIFIED, group), HOP_LIMIT, &[], body)
        }
    }
}

/// What a received frame says of an address, if it says something.
pub fn claim(frame: &[u8]) -> Option<Claim> {
    let kind = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let body = &frame[14..];
    match kind {
        ETH_P_ARP => {
            let fixed = body.get(..8)?;
            // Ethernet and IPv4, request or reply.
            let understood = fixed[..6] == [0, 1, 8, 0, 6, 4] && matches!(fixed[6..8], [0, 1 | 2]);
            let sender: [u8; 10] = body.get(8..18)?.try_into().ok()?;
            let address = Ipv4Addr::new(sender[6], sender[7], sender[8], sender[9]);
            (understood && !address.is_unspecified()).then(|| Claim {
                address: address.into(),
                mac: mac_of(&sender),
            })
        }
        ETH_P_IPV6 => {
            let advertised =
                *body.get(6)? == ICMPV6 && *body.get(7)? == HOP_LIMIT && *body.get(40)? == NA;
            let target: [u8; 16] = body.get(48..64)?.try_into().ok()?;
            // Target link-layer address option; without it the sender's own.
            let option = body
                .get(64..72)
                .filter(|o| o[..2] == [2, 1])
                .map(|o| mac_of(&o[2..]));
            advertised.then(|| Claim {
                address: target.into(),
                mac: option.unwrap_or_else(|| mac_of(&frame[6..12])),
            })
        }
        _ => None,
    }
}

fn mac_of(bytes: &[u8]) -> Mac {
    let mut mac = [0; 6];
    mac.copy_from_slice(&bytes[..6]);
    Mac(mac)
}

fn ethernet(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &kind.to_be_bytes(), body].concat();
    frame.resize(frame.len().max(60), 0); // the shortest frame without its checksum
    frame
}

fn arp(operation: u16, mac: Mac, address: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let body = [
        &[0, 1, 8, 0, 6, 4][..],
        &operation.to_be_bytes(),
        &mac.0,
        &address.octets(),
        &target_mac.0,
        &target.octets(),
    ]
    .concat();
    ethernet(BROADCAST, mac, ETH_P_ARP, &body)
}

fn advertisement(mac: Mac, address: Ipv6Addr, router: bool) -> Vec<u8> {
    const ROUTER: u8 = 0x80;
    const OVERRIDE: u8 = 0x20;
    let mut body = vec![
        NA,
        0,
        0,
        0,
        OVERRIDE | if router { ROUTER } else { 0 },
        0,
        0,
        0,
    ];
    body.extend(address.octets());
    body.extend([2, 1]);
    body.extend(mac.0);
    icmpv6(mac, (address, ALL_NODES), HOP_LIMIT, &[], body)
}

/// To a multicast group, in IPv6 (with `options`, a whole hop-by-hop header) and Ethernet, with its checksum.
fn icmpv6(
    mac: Mac,
    (from, to): (Ipv6Addr, Ipv6Addr),
    hops: u8,
    options: &[u8],
    mut body: Vec<u8>,
) -> Vec<u8> {
    // These messages are some dozens of bytes long.
    let length = (body.len() as u32).to_be_bytes();
    let sum = checksum(&[
        &from.octets(),
        &to.octets(),
        &length,
        &[0, 0, 0, ICMPV6],
        &body,
    ]);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let payload = ((options.len() + body.len()) as u16).to_be_bytes();
    let next = if options.is_empty() { ICMPV6 } else { 0 };
    let header = [
        &[0x60, 0, 0, 0][..],
        &payload,
        &[next, hops],
        &from.octets(),
        &to.octets(),
    ]
    .concat();
    let [.., a, b, c, d] = to.octets();
    ethernet(
        Mac([0x33, 0x33, a, b, c, d]),
        mac,
        ETH_P_IPV6,
        &[&header, options, &body].concat(),
    )
}

/// To all IGMPv3 routers, in IPv4 with the router alert option.
fn igmp(mac: Mac, from: Ipv4Addr, body: &[u8]) -> Vec<u8> {
    let to = Ipv4Addr::new(224, 0, 0, 22);
    let total = (24 + body.len() as u16).to_be_bytes();
    let mut header = [
        &[0x46, 0xc0][..],
        &total,
        &[0, 0, 0, 0, 1, IGMP, 0, 0],
        &from.octets(),
        &to.octets(),
        &[0x94, 4, 0, 0],
    ]
    .concat();
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let [_, b, c, d] = to.octets();
    ethernet(
        Mac([1, 0, 0x5e, b & 0x7f, c, d]),
        mac,
        ETH_P_IP,
        &[&header, body].concat(),
    )
}

/// The Internet checksum (RFC 1071) over parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|p| p.chunks(2));
    let sum: u32 = words
        .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x10]);

    #[test]
    fn announcements_are_read_back_as_claims() {
        for address in ["192.0.2.10", "2001:db8::10"] {
            let address: IpAddr = address.parse().unwrap();
            for frame in announcements(MAC, address, true) {
                assert_eq!(claim(&frame), Some(Claim { address, mac: MAC }));
            }
        }
    }

    #[test]
    fn a_probe_claims_nothing() {
        for address in ["192.0.2.10", "2001:db8::10"] {
            assert_eq!(claim(&probe(MAC, address.parse().unwrap())), None);
        }
        assert_eq!(claim(&rarp(MAC)), None);
    }

    #[test]
    fn checksums_and_lengths_are_those_of_another_implementation() {
        for frame in [
            probe(MAC, "2001:db8::10".parse().unwrap()),
            announcements(MAC, "2001:db8::10".parse().unwrap(), false).remove(0),
        ] {
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) =
                (&packet.net, &packet.transport)
            else {
                panic!("not ICMPv6: {packet:?}")
            };
            assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
        }
    }

    #[test]
    fn a_short_frame_says_nothing() {
        let frame = &announcements(MAC, "2001:db8::10".parse().unwrap(), false)[0];
        for length in 0..frame.len() {
            if let Some(claim) = claim(&frame[..length]) {
                assert_eq!(claim.mac, MAC);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(mut frame in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120), arp in proptest::bool::ANY) {
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(&if arp { ETH_P_ARP } else { ETH_P_IPV6 }.to_be_bytes());
            }
            if let Some(claim) = claim(&frame) {
                proptest::prop_assert_eq!(claim.address.is_ipv4(), arp);
            }
        }
    }
}
