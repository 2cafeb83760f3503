//! UDP sockets: the engine makes and binds them; netmig sets the options that the engine does not know, and delivers what waited in the
//! receive queue as packets, with the sender's address.
use std::{
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use netmig_core::image::v1::sock::{Common, Datagram, Endpoint, Udp};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

use super::{
    diag::{Found, Name},
    error::{Error, On},
    option::{self, Refused, When},
};
use crate::sys::sockopt::{self, number::SO_PEEK_OFF};

/// Reads one: its receive queue is walked by SO_PEEK_OFF and stays as it is.
pub(super) fn dump(fd: &OwnedFd, common: Common, socket: &Found) -> Result<Udp, Error> {
    let Name::Inet(local) = socket.local else {
        return Err(Error::Malformed {
            what: format!("the address of {socket}"),
        });
    };
    let mut udp = Udp {
        common,
        local,
        peer: socket.peer.endpoint(),
        queue: Vec::new(),
        lost: 0,
    };
    if socket.rqueue > 0 {
        walk(fd, &mut udp).on("walking the receive queue", socket)?;
    }
    Ok(udp)
}

/// Sets what may differ on a socket that the engine has restored.
pub(super) fn restore(fd: &OwnedFd, udp: &Udp) -> Result<Vec<Refused>, Error> {
    let (common, name) = (&udp.common, name(udp));
    for (option, value, call) in [
        (libc::SO_REUSEADDR, common.reuseaddr, "setting SO_REUSEADDR"),
        (libc::SO_REUSEPORT, common.reuseport, "setting SO_REUSEPORT"),
    ] {
        if sockopt::int(fd, libc::SOL_SOCKET, option).on(call, &name)? != value {
            sockopt::set_int(fd, libc::SOL_SOCKET, option, value).on(call, &name)?;
        }
    }
    let mut refused = Vec::new();
    for when in [When::First, When::Connected, When::Open] {
        refused.extend(option::apply(fd, &common.settings, when, &name));
    }
    Ok(refused)
}

/// A UDP socket in words.
pub(super) fn name(udp: &Udp) -> String {
    match udp.peer {
        Some(peer) => format!("udp {} -> {peer}", udp.local),
        None => format!("udp {}", udp.local),
    }
}

/// The options that the walk changes for its own ends: offset of MSG_PEEK, and the control message that names the address to which a
/// datagram was sent.
fn walk(fd: &OwnedFd, udp: &mut Udp) -> nix::Result<()> {
    let changed = [
        (libc::SOL_SOCKET, SO_PEEK_OFF, 0),
        (libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
    ];
    let changed = &changed[..if udp.common.v6 { 3 } else { 2 }];
    let before: Vec<_> = changed
        .iter()
        .map(|&(level, name, _)| sockopt::int(fd, level, name))
        .collect();
    let errno = |e: std::io::Error| nix::Error::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    for &(level, name, value) in changed {
        sockopt::set_int(fd, level, name, value).map_err(errno)?;
    }
    let walked = peek_all(fd, udp);
    for (&(level, name, _), before) in changed.iter().zip(before) {
        sockopt::set_int(fd, level, name, before.map_err(errno)?).map_err(errno)?;
    }
    walked
}

fn peek_all(fd: &OwnedFd, udp: &mut Udp) -> nix::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    // struct in_pktinfo, in6_pktinfo, and what the program itself may have asked for.
    let mut control = vec![0; 1024];
    loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<SockaddrStorage>(
            fd.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            flags,
        ) {
            Ok(message) => message,
            Err(nix::Error::EAGAIN) => return Ok(()),
            Err(nix::Error::EINTR) => continue,
            Err(e) => return Err(e),
        };
        let from = message.address.as_ref().and_then(endpoint);
        let to = message.cmsgs()?.find_map(|c| match c {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::V4(Ipv4Addr::from(
                info.ipi_addr.s_addr.to_ne_bytes(),
            ))),
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
            }
            _ => None,
        });
        let len = message.bytes;
        match (from, to) {
            (Some(from), Some(to)) => udp.queue.push(Datagram {
                from,
                to,
                data: buffer[..len].to_vec(),
            }),
            _ => udp.lost += 1,
        }
    }
}

fn endpoint(address: &SockaddrStorage) -> Option<Endpoint> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(Endpoint {
            ip: IpAddr::V4(v4.ip()),
            port: v4.port(),
            scope: 0,
        });
    }
    address.as_sockaddr_in6().map(|v6| Endpoint {
        ip: IpAddr::V6(v6.ip()),
        port: v6.port(),
        scope: v6.scope_id(),
    })
}
