//! Held packets put in behind the gate.
use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::{Error, Packet};
use crate::{
    gate::{Orientation, Point, Step},
    sys::netns,
};

/// A packet socket at the host's end of a container's veth. What it sends goes straight to the other end: it skips queueing disciplines
/// and with them the programs at TC egress (`dev_direct_xmit`), so that a closed gate does not hold it again.
pub struct Injector {
    socket: OwnedFd,
    device: String,
}

impl Injector {
    /// Opens one at a point of [`Orientation::HostSide`].
    ///
    /// # Errors
    /// [`Error::NoInjection`] at another point, [`Error::Device`] if the kernel refuses.
    pub fn open(point: &Point) -> Result<Self, Error> {
        if point.orientation != Orientation::HostSide {
            return Err(Error::NoInjection {
                device: point.name.clone(),
            });
        }
        let open = || {
            socket(point.ifindex).map_err(|source| Error::Device {
                step: Step::Inject,
                device: point.name.clone(),
                source: source.into(),
            })
        };
        let socket = match &point.netns {
            Some(path) => netns::within(path, open),
            None => open(),
        }?;
        Ok(Self {
            socket,
            device: point.name.clone(),
        })
    }

    /// Delivers one packet.
    ///
    /// # Errors
    /// [`Error::Device`] with the kernel's reason; `ENOBUFS` if the other end's backlog is full: try again later.
    pub fn send(&self, packet: &Packet) -> Result<(), Error> {
        let bytes = packet.as_bytes();
        // SAFETY: the buffer is `bytes`.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        if sent.unsigned_abs() == bytes.len() && sent >= 0 {
            return Ok(());
        }
        let source = if sent < 0 {
            io::Error::last_os_error()
        } else {
            io::ErrorKind::WriteZero.into()
        };
        Err(Error::Device {
            step: Step::Inject,
            device: self.device.clone(),
            source: source.into(),
        })
    }
}

fn socket(ifindex: u32) -> io::Result<OwnedFd> {
    // Protocol 0: it receives nothing.
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_QDISC_BYPASS] {
        let on: libc::c_int = 1;
        // SAFETY: the value is an int.
        let rc = unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_PACKET,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    // SAFETY: the address is a `sockaddr_ll` of this length.
    let rc = unsafe {
        libc::bind(
            fd,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
