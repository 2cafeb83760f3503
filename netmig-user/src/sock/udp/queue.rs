//! The receive queue of a UDP socket: read at the source, delivered as packets at the target, and at the source if the move is undone.
use std::{
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use bytes::Bytes;
use netmig_core::image::v1::sock::{Datagram, Udp};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

use super::super::{
    buffer::Wider,
    common,
    error::{Error, On},
    inject::Injector,
};
use crate::sys::sockopt::{
    self,
    number::{SO_MEMINFO, SO_PEEK_OFF},
};

/// So many datagrams are looked at where they are. The kernel goes through the queue from its head for each of them
/// (`__skb_try_recv_from_queue`), so that a longer one would take a time that grows with its square: it is taken out.
const LOOKED_AT: usize = 1000;

/// What a datagram takes of a buffer beside its payload, at most (`skb->truesize`).
const OVERHEAD: u64 = 1280;

/// Reads it into the image. True: it was too long to stay where it is, and is to be delivered again if the move is undone. Then it is in the image
/// also after an error.
pub(in crate::sock) fn read(fd: &OwnedFd, udp: &mut Udp) -> (bool, nix::Result<()>) {
    let mut taken = false;
    let read = read_by(fd, udp, &mut taken);
    (taken, read)
}

/// What a delivery did.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::sock) struct Delivered {
    /// Datagrams given to the stack.
    pub(in crate::sock) given: usize,
    /// Those of them that the socket refused.
    pub(in crate::sock) refused: u32,
}

impl Delivered {
    /// What is not where it belongs, in words.
    pub(in crate::sock) fn loss(self, udp: &Udp) -> Option<String> {
        (self.refused > 0).then(|| format!("{udp}: {} datagrams found no room", self.refused))
    }
}

/// Delivers a queue to the namespace's stack. `fd`: the socket, which finds room for all of it, whatever has been its buffer. Goes on after an error; the
/// first is told.
pub(in crate::sock) fn deliver(
    fd: &OwnedFd,
    udp: &Udp,
    injector: &mut Injector,
) -> (Delivered, Option<Error>) {
    let mut failed = None;
    let need: u64 = udp
        .queue
        .iter()
        .map(|d| 2 * d.data.len() as u64 + OVERHEAD)
        .sum();
    let wider = Wider::than(fd, udp.to_string(), |_| need).unwrap_or_else(|e| {
        failed = Some(e);
        None
    });
    let before = drops(fd);
    let mut done = Delivered::default();
    for datagram in &udp.queue {
        match injector
            .datagram(datagram, udp.local.port, udp.lite)
            .on("delivering a datagram", udp)
        {
            Ok(()) => done.given += 1,
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    done.refused = drops(fd).wrapping_sub(before);
    let back = wider.map_or(Ok(()), |wider| wider.back());
    (done, failed.or(back.err()))
}

/// SK_MEMINFO_DROPS: what it has refused so far, mod 2^32. 0 where the kernel does not tell.
fn drops(fd: &OwnedFd) -> u32 {
    const SK_MEMINFO_DROPS: usize = 8;
    sockopt::read::<[u32; SK_MEMINFO_DROPS + 1]>(fd, libc::SOL_SOCKET, SO_MEMINFO)
        .map_or(0, |info| info[SK_MEMINFO_DROPS])
}

/// The options that it changes for its own ends: offset of MSG_PEEK, and the control messages that name the address to which a
/// datagram was sent, and what it came with.
fn read_by(fd: &OwnedFd, udp: &mut Udp, taken: &mut bool) -> nix::Result<()> {
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
    let mut read = look(fd, udp, MsgFlags::MSG_PEEK, LOOKED_AT);
    if read.is_ok_and(|all| !all) {
        (udp.queue, udp.lost) = (Vec::new(), 0);
        *taken = true;
        read = look(fd, udp, MsgFlags::empty(), usize::MAX);
    }
    for (&(level, name, _), before) in changed.iter().zip(before) {
        sockopt::set_int(fd, level, name, before.map_err(errno)?).map_err(errno)?;
    }
    read.map(|_| ())
}

/// Reads messages, `most` at most. True: that was all.
fn look(fd: &OwnedFd, udp: &mut Udp, how: MsgFlags, most: usize) -> nix::Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    // What the walk asks for, and what the program itself may have asked for.
    let mut control = vec![0; 2048];
    for _ in 0..most {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = match recvmsg::<SockaddrStorage>(
            fd.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            how | MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(message) => message,
            Err(nix::Error::EAGAIN) => return Ok(true),
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
                data: Bytes::copy_from_slice(data),
            });
        };
        // UDP_GRO shows several datagrams of one size, the last one perhaps shorter, as one.
        match data.chunks(segment.max(1)) {
            several if segment > 0 => several.for_each(push),
            _ => push(data),
        }
    }
    Ok(false)
}
