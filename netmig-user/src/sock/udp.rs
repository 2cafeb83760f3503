//! UDP sockets: the engine makes and binds them; netmig sets the options that the engine does not know, and delivers what waited in the
//! receive queue as packets, with the sender's address, hop limit and type of service. UDP-Lite is the same with another number.
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    thread::sleep,
    time::{Duration, Instant},
};

use netmig_core::{
    image::v1::sock::{Common, Datagram, Udp},
    socket::Kind,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

use super::{
    common,
    diag::{Found, Name},
    error::{Error, On},
    groups::Groups,
    option::{self, Refused, When},
};
use crate::sys::sockopt::{self, number::SO_PEEK_OFF};

/// Reads one: its receive queue is walked by SO_PEEK_OFF and stays as it is.
pub(super) fn dump(
    fd: &OwnedFd,
    common: Common,
    socket: &Found,
    groups: &mut Groups,
) -> Result<Udp, Error> {
    let Name::Inet(local) = socket.local else {
        return Err(Error::Malformed {
            what: format!("the address of {socket}"),
        });
    };
    let groups = groups.of(fd, common.v6, socket)?;
    let mut udp = Udp {
        common,
        lite: socket.kind == Kind::UdpLite,
        local,
        peer: socket.peer.endpoint(),
        queue: Vec::new(),
        lost: 0,
        groups,
    };
    if socket.rqueue > 0 {
        walk(fd, &mut udp).on("walking the receive queue", socket)?;
    }
    Ok(udp)
}

/// How long bytes stay in the send queue (`sk_wmem_alloc`) of a socket that has not sent them: those of a datagram that has gone leave it
/// as soon as the device is done with it. One that waits for a neighbour's address stays as well.
const STAYS: Duration = Duration::from_millis(20);

/// Whether a datagram is under construction (UDP_CORK, MSG_MORE): the kernel does not say so, but its bytes stay where they are.
pub(super) fn corked(fd: &OwnedFd) -> io::Result<bool> {
    let until = Instant::now() + STAYS;
    while sockopt::queue_len(fd, libc::TIOCOUTQ)? > 0 {
        if Instant::now() >= until {
            return Ok(true);
        }
        sleep(Duration::from_millis(1));
    }
    Ok(false)
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
    let kind = if udp.lite { Kind::UdpLite } else { Kind::Udp };
    match udp.peer {
        Some(peer) => format!("{kind} {} -> {peer}", udp.local),
        None => format!("{kind} {}", udp.local),
    }
}

/// The options that the walk changes for its own ends: offset of MSG_PEEK, and the control messages that name the address to which a
/// datagram was sent, and what it came with.
fn walk(fd: &OwnedFd, udp: &mut Udp) -> nix::Result<()> {
    let changed = [
        (libc::SOL_SOCKET, SO_PEEK_OFF, 0),
        (libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
        (libc::IPPROTO_IP, libc::IP_RECVTTL, 1),
        (libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
    ];
    let changed = &changed[..if udp.common.v6 { 7 } else { 4 }];
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
    // What the walk asks for, and what the program itself may have asked for.
    let mut control = vec![0; 2048];
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
        let from = message.address.as_ref().and_then(common::endpoint);
        let (mut to, mut ttl, mut tos, mut segment) = (None, 64, 0, 0);
        let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(0);
        for c in message.cmsgs()? {
            match c {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    to = Some(IpAddr::V4(Ipv4Addr::from(
                        info.ipi_addr.s_addr.to_ne_bytes(),
                    )));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    to = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                ControlMessageOwned::Ipv4Ttl(value) | ControlMessageOwned::Ipv6HopLimit(value) => {
                    ttl = byte(value);
                }
                ControlMessageOwned::Ipv4Tos(value) => tos = value,
                ControlMessageOwned::Ipv6TClass(value) => tos = byte(value),
                ControlMessageOwned::UdpGroSegments(size) => {
                    segment = usize::try_from(size).unwrap_or(0);
                }
                _ => {}
            }
        }
        let len = message.bytes;
        let data = &buffer[..len];
        let (Some(from), Some(to)) = (from, to) else {
            udp.lost += 1;
            continue;
        };
        let mut push = |data: &[u8]| {
            udp.queue.push(Datagram {
                from,
                to,
                ttl,
                tos,
                data: data.to_vec(),
            });
        };
        // UDP_GRO shows several datagrams of one size, the last one perhaps shorter, as one.
        match data.chunks(segment.max(1)) {
            several if segment > 0 => several.for_each(push),
            _ => push(data),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::UdpSocket,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use nix::sys::socket::send;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let [one, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let at = other.local_addr().expect("its address");
        one.connect(at).expect("connected");
        (one, other)
    }

    #[test]
    fn only_a_datagram_under_construction_is_corked() {
        let (one, other) = pair();
        let fd = OwnedFd::from(one.try_clone().expect("a duplicate"));
        assert!(!corked(&fd).expect("asked"));
        let over = AtomicBool::new(false);
        // What is on its way is sent, at whatever moment one looks.
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    one.send(&[0; 60_000]).expect("sent");
                }
            });
            let busy = (0..2000).any(|_| corked(&fd).expect("asked"));
            over.store(true, Ordering::Relaxed);
            assert!(!busy);
        });
        drop(other);
        let begun = send(
            fd.as_raw_fd(),
            b"begun",
            MsgFlags::from_bits_retain(libc::MSG_MORE),
        )
        .expect("begun");
        assert_eq!((begun, corked(&fd).expect("asked")), (5, true));
    }
}
