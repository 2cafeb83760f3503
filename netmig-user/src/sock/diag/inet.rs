//! TCP, UDP and their like: struct inet_diag_msg.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_sys::Socket;
use netmig_core::{
    image::v1::sock::Endpoint,
    socket::{Kind, State},
};

use super::{Found, INET_DIAG_SHUTDOWN, Name, ask, attributes, dump, open, say, text, u32_at};
use crate::sock::{error::Error, flows::Seen, md5};

/// TCP sockets alone.
pub(in crate::sock) fn tcp() -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let request = inet_request(family, libc::IPPROTO_TCP as u32);
        dump(&request, "TCP sockets", &mut |body| {
            found.push(inet(Kind::Tcp, body)?);
            Some(())
        })?;
    }
    Ok(found)
}

/// Ends a TCP connection: its peer gets a RST (SOCK_DESTROY, tcp_abort).
pub(in crate::sock) fn destroy(socket: &Found) -> Result<(), Error> {
    const SOCK_DESTROY: u16 = 21;
    let what = "a TCP socket to end";
    let (Some(local), Some(peer)) = (socket.local.endpoint(), socket.peer.endpoint()) else {
        return Err(Error::Malformed {
            what: format!("the addresses of {socket}"),
        });
    };
    let family = if socket.v6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    let mut request = inet_request(family as u8, libc::IPPROTO_TCP as u32);
    // struct inet_diag_sockid: ports, addresses, interface, cookie (none).
    request[8..10].copy_from_slice(&local.port.to_be_bytes());
    request[10..12].copy_from_slice(&peer.port.to_be_bytes());
    for (at, ip) in [(12, local.ip), (28, peer.ip)] {
        match ip {
            IpAddr::V4(ip) => request[at..at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => request[at..at + 16].copy_from_slice(&ip.octets()),
        }
    }
    request[44..48].copy_from_slice(&local.scope.to_ne_bytes());
    request[48..56].copy_from_slice(&[0xff; 8]);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let known = say(
        &open(what)?,
        SOCK_DESTROY,
        flags,
        &request,
        what,
        &mut |_| Some(()),
    )?;
    if known {
        Ok(())
    } else {
        Err(Error::Diag {
            what,
            source: io::ErrorKind::Unsupported.into(),
        })
    }
}

/// Established TCP connections with their `struct tcp_info`.
pub(in crate::sock) fn tcp_infos() -> Result<Vec<Seen>, Error> {
    const INET_DIAG_INFO: u16 = 2;
    const TCP_ESTABLISHED: u32 = 1;
    let mut seen = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut request = inet_request(family, libc::IPPROTO_TCP as u32);
        request[4..8].copy_from_slice(&(1_u32 << TCP_ESTABLISHED).to_ne_bytes());
        dump(&request, "TCP connections", &mut |body| {
            let (_, info) =
                attributes(body.get(72..)?).find(|(kind, _)| *kind == INET_DIAG_INFO)?;
            seen.push(Seen::new(inet(Kind::Tcp, body)?, info)?);
            Some(())
        })?;
    }
    Ok(seen)
}

/// Every UDP socket, and how many bytes its receive buffer holds and takes: `SK_MEMINFO_RMEM_ALLOC`, `SK_MEMINFO_RCVBUF`.
pub(in crate::sock) fn udp_memory(socket: &Socket) -> Result<Vec<(Found, u32, u32)>, Error> {
    const INET_DIAG_SKMEMINFO: u8 = 7;
    let mut found = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut request = inet_request(family, libc::IPPROTO_UDP as u32);
        request[2] = 1 << (INET_DIAG_SKMEMINFO - 1);
        ask(socket, &request, "UDP sockets", &mut |body| {
            let wanted = u16::from(INET_DIAG_SKMEMINFO);
            let (_, memory) = attributes(body.get(72..)?).find(|(kind, _)| *kind == wanted)?;
            found.push((
                inet(Kind::Udp, body)?,
                u32_at(memory, 0)?,
                u32_at(memory, 4)?,
            ));
            Some(())
        })?;
    }
    Ok(found)
}

pub(super) fn inet_request(family: u8, protocol: u32) -> Vec<u8> {
    // struct inet_diag_req_v2. Upper-layer protocol and MD5 keys come to CAP_NET_ADMIN with INFO (inet_diag_msg_attrs_fill,
    // tcp_diag_get_aux).
    const INET_DIAG_INFO: u8 = 2;
    const INET_DIAG_REQ_PROTOCOL: u16 = 2;
    let mut r = vec![
        family,
        protocol.min(255) as u8,
        1 << (INET_DIAG_INFO - 1) | 1 << (INET_DIAG_SHUTDOWN - 1),
        0,
    ];
    r.extend_from_slice(&u32::MAX.to_ne_bytes());
    r.extend_from_slice(&[0; 48]);
    if protocol > 255 {
        r.extend_from_slice(&8_u16.to_ne_bytes());
        r.extend_from_slice(&INET_DIAG_REQ_PROTOCOL.to_ne_bytes());
        r.extend_from_slice(&protocol.to_ne_bytes());
    }
    r
}

/// struct inet_diag_msg and its attributes.
pub(super) fn inet(kind: Kind, body: &[u8]) -> Option<Found> {
    const INET_DIAG_INFO: u16 = 2;
    const TCPI_OPT_ECN: u8 = 8;
    const INET_DIAG_MD5SIG: u16 = 18;
    const INET_DIAG_ULP_INFO: u16 = 19;
    const INET_ULP_INFO_NAME: u16 = 1;
    let v6 = i32::from(*body.first()?) == libc::AF_INET6;
    let device = u32_at(body, 4 + 4 + 32)?;
    let end = |port: usize, address: usize| {
        let port = u16::from_be_bytes(body.get(port..port + 2)?.try_into().ok()?);
        let raw: [u8; 16] = body.get(address..address + 16)?.try_into().ok()?;
        let ip = if v6 {
            IpAddr::V6(Ipv6Addr::from(raw))
        } else {
            IpAddr::V4(Ipv4Addr::new(raw[0], raw[1], raw[2], raw[3]))
        };
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        Some(Endpoint {
            ip,
            port,
            scope: if link_local { device } else { 0 },
        })
    };
    let (local, peer) = (end(4, 8)?, end(6, 24)?);
    let mut found = Found::new(
        kind,
        State::from_kernel(*body.get(1)?),
        u64::from(u32_at(body, 68)?),
    );
    found.v6 = v6;
    found.local = Name::Inet(local);
    if peer.port != 0 || !peer.ip.is_unspecified() {
        found.peer = Name::Inet(peer);
    }
    found.expires_ms = u32_at(body, 52)?;
    found.rqueue = u32_at(body, 56)?;
    found.wqueue = u32_at(body, 60)?;
    for (kind, value) in attributes(body.get(72..)?) {
        match kind {
            kind if kind == u16::from(INET_DIAG_SHUTDOWN) => {
                found.shutdown = value.first().copied().unwrap_or(0)
            }
            // struct tcp_info, tcpi_options.
            INET_DIAG_INFO if found.kind == Kind::Tcp => {
                found.ecn = value
                    .get(5)
                    .is_some_and(|options| options & TCPI_OPT_ECN != 0);
            }
            INET_DIAG_MD5SIG => found.keys = md5::keys(value)?,
            INET_DIAG_ULP_INFO => {
                let name = attributes(value).find(|(k, _)| *k == INET_ULP_INFO_NAME);
                found.ulp = name.map(|(_, v)| text(v)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(found)
}
