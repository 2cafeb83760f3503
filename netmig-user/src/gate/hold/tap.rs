//! The TAP that a closed gate redirects inbound packets to.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
    time::Duration,
};

use super::{Error, FRAME_MAX, HEADER, Packet};
use crate::{
    gate::{Step, netlink},
    sys::netns,
};

/// Packets that wait in the kernel at most, if the reader is slow (`txqueuelen`), and what kernels take that refuse more (ERANGE, seen on 7.2).
const QUEUES: [u32; 2] = [100_000, 32_767];

/// include/uapi/linux/if_tun.h
mod tun {
    nix::ioctl_write_int!(set_offload, b'T', 208);
    nix::ioctl_write_ptr!(set_interface, b'T', 202, libc::c_int);
    nix::ioctl_write_ptr!(set_header_size, b'T', 216, libc::c_int);

    pub(super) const CSUM: u64 = 0x01;
    pub(super) const TSO4: u64 = 0x02;
    pub(super) const TSO6: u64 = 0x04;
    pub(super) const TSO_ECN: u64 = 0x08;
    /// UDP segmentation, since 6.2.
    pub(super) const USO4: u64 = 0x20;
    pub(super) const USO6: u64 = 0x40;
}

/// A TAP of our own; it is gone when this is dropped, and then the gate drops what it would hold.
pub struct Reader {
    tap: File,
    ifindex: u32,
    name: String,
    buffer: Box<[u8]>,
}

impl Reader {
    /// Makes device `name` in the namespace of the gated devices: without addresses, silent, up.
    ///
    /// # Errors
    /// [`Error::Device`] with the step.
    pub fn create(netns: Option<&Path>, name: &str) -> Result<Self, Error> {
        match netns {
            Some(path) => netns::within(path, || Self::create_here(name)),
            None => Self::create_here(name),
        }
    }

    fn create_here(name: &str) -> Result<Self, Error> {
        let at = |step| {
            move |source: io::Error| Error::Device {
                step,
                device: name.to_owned(),
                source: source.into(),
            }
        };
        let in_words = |what: &str, e: io::Error| {
            at(Step::Create)(io::Error::new(e.kind(), format!("{what}: {e}")))
        };
        let tap = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|e| in_words("/dev/net/tun", e))?;
        make(&tap, name).map_err(at(Step::Create))?;
        let ifindex = nix::net::if_::if_nametoindex(name).map_err(|e| at(Step::Look)(e.into()))?;
        // Else the kernel solicits routers and reports memberships on it, which would be held.
        let off = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        match fs::write(&off, "1") {
            // A kernel without IPv6 is silent by itself.
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(in_words(&off, e)),
            _ => {}
        }
        raise(ifindex).map_err(|e| in_words("RTM_SETLINK", e))?;
        Ok(Self {
            tap,
            ifindex,
            name: name.to_owned(),
            buffer: vec![0; HEADER + FRAME_MAX].into(),
        })
    }

    /// Index of the device.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The next packet; none if none came within `wait`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot be read.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Packet>, Error> {
        loop {
            match self.tap.read(&mut self.buffer) {
                Ok(n) => return Packet::from_bytes(self.buffer[..n].to_vec()).map(Some),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(self.failed(e)),
            }
            if !self.readable(wait).map_err(|e| self.failed(e))? {
                return Ok(None);
            }
        }
    }

    fn readable(&self, wait: Duration) -> io::Result<bool> {
        let mut fd = libc::pollfd {
            fd: self.tap.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let wait = libc::c_int::try_from(wait.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one pollfd.
        match unsafe { libc::poll(&raw mut fd, 1, wait) } {
            0 => Ok(false),
            n if n > 0 => Ok(true),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => Ok(true),
                e => Err(e),
            },
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Device {
            step: Step::Read,
            device: self.name.clone(),
            source: source.into(),
        }
    }
}

fn raise(ifindex: u32) -> io::Result<()> {
    let [most, less] = QUEUES;
    match netlink::raise(ifindex, most) {
        Err(e) if e.raw_os_error() == Some(libc::ERANGE) => netlink::raise(ifindex, less),
        raised => raised,
    }
}

fn make(tap: &File, name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL) as i16;
    let fd = tap.as_raw_fd();
    // SAFETY: TUNSETIFF takes a `struct ifreq`, though its number says int.
    unsafe { tun::set_interface(fd, (&raw const request).cast()) }?;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    unsafe { tun::set_header_size(fd, &(HEADER as libc::c_int)) }?;
    let tcp = tun::CSUM | tun::TSO4 | tun::TSO6 | tun::TSO_ECN;
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    if unsafe { tun::set_offload(fd, tcp | tun::USO4 | tun::USO6) }.is_err() {
        // SAFETY: as above.
        unsafe { tun::set_offload(fd, tcp) }?;
    }
    Ok(())
}
