//! A packet that is to die in the closed gate must not wait for an ARP answer: it would lie in the neighbour entry until the gate opens, and
//! if the entry fails, or is forgotten, a socket in SYN_SENT dies with it (ipv4_link_failure(), ip6_link_failure(), then tcp_v4_err()). So
//! its next hop gets a link address for a moment, made up.
use std::{io, net::IpAddr};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use netmig_core::image::v1::sock::Endpoint;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_REACHABLE: u16 = 2;
/// RFC 7042 2.1.2: for documentation.
const MADE_UP: [u8; 6] = [0x00, 0x00, 0x5e, 0x00, 0x53, 0x01];

/// Runs `f` while the next hop to `to` has a link address, in the caller's namespace. An entry that is there already stays as it is.
pub(super) fn without_asking<T>(to: Endpoint, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    let Some((device, hop)) = next_hop(&socket, to)? else {
        return f();
    };
    let made = match neighbour(&socket, RTM_NEWNEIGH, device, hop) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => false,
        // A device without link addresses asks nobody.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => false,
        made => {
            made?;
            true
        }
    };
    let done = f();
    if made {
        match neighbour(&socket, RTM_DELNEIGH, device, hop) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            gone => gone?,
        }
    }
    done
}

/// Device and address; none if the kernel has no route there.
fn next_hop(socket: &Socket, to: Endpoint) -> io::Result<Option<(u32, IpAddr)>> {
    let ip = to.ip.to_canonical();
    if to.scope != 0 {
        return Ok(Some((to.scope, ip)));
    }
    // struct rtmsg
    let mut body = vec![family(ip), bits(ip), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    attribute(&mut body, RTA_DST, &octets(ip));
    let answer = match ask(socket, RTM_GETROUTE, libc::NLM_F_REQUEST, &body) {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH)
            ) =>
        {
            return Ok(None);
        }
        answer => answer?,
    };
    let (RTM_NEWROUTE, Some(attributes)) = (answer.0, answer.1.get(12..)) else {
        return Ok(None);
    };
    let (mut device, mut hop) = (None, ip);
    for (kind, value) in super::diag::attributes(attributes) {
        match (kind, value) {
            (RTA_OIF, &[a, b, c, d]) => device = Some(u32::from_ne_bytes([a, b, c, d])),
            (RTA_GATEWAY, value) => hop = address(value).unwrap_or(hop),
            // struct rtvia: a family of two bytes, then the address.
            (RTA_VIA, [_, _, value @ ..]) => hop = address(value).unwrap_or(hop),
            _ => {}
        }
    }
    Ok(device.map(|device| (device, hop)))
}

fn neighbour(socket: &Socket, kind: u16, device: u32, hop: IpAddr) -> io::Result<()> {
    // struct ndmsg
    let mut body = vec![family(hop), 0, 0, 0];
    body.extend_from_slice(&device.to_ne_bytes());
    body.extend_from_slice(&NUD_REACHABLE.to_ne_bytes());
    body.extend_from_slice(&[0, 0]);
    attribute(&mut body, NDA_DST, &octets(hop));
    let mut flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    if kind == RTM_NEWNEIGH {
        attribute(&mut body, NDA_LLADDR, &MADE_UP);
        flags |= libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    }
    ask(socket, kind, flags, &body).map(|_| ())
}

/// The first answer: its kind and its body.
fn ask(socket: &Socket, kind: u16, flags: i32, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let malformed = || io::Error::other("an answer of rtnetlink is malformed");
    let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(flags as u16).to_ne_bytes());
    message.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(body);
    socket.send_to(&message, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).ok_or_else(malformed)?;
    let kind = u16::from_ne_bytes([kind[0], kind[1]]);
    let body = answer.get(16..).ok_or_else(malformed)?;
    if i32::from(kind) == libc::NLMSG_ERROR {
        let code = body.get(..4).ok_or_else(malformed)?;
        let errno = -i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
    }
    Ok((kind, body.to_vec()))
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn bits(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}
