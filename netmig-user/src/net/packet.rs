//! A packet socket on one device.
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

const ETH_P_ALL: u16 = 3;
/// Of a packet socket: it receives nothing, and sends what a frame's own header says.
const NOTHING: u16 = 0;

/// Sends and receives whole frames on one device of the namespace of the thread that opened it.
///
/// Closing it waits for an RCU grace period, some milliseconds to some dozens (packet_release()).
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one on the device of that index, to send and to receive.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        Self::bound(ifindex, ETH_P_ALL)
    }

    /// Opens one on the device of that index, to send alone.
    pub fn sender(ifindex: u32) -> io::Result<Self> {
        Self::bound(ifindex, NOTHING)
    }

    fn bound(ifindex: u32, protocol: u16) -> io::Result<Self> {
        // Made with a protocol it would receive from all devices at once, and bind() would wait for a grace period (packet_do_bind()).
        // SAFETY: socket() takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                NOTHING.into(),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: sockaddr_ll is plain numbers, for which zeros are valid.
        let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        at.sll_family = libc::AF_PACKET as u16;
        at.sll_protocol = protocol.to_be();
        at.sll_ifindex =
            i32::try_from(ifindex).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: `at` is a sockaddr_ll of the length given, and lives through the call.
        let bound = unsafe {
            libc::bind(
                fd,
                (&raw const at).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if bound < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(socket)
        }
    }

    /// Sends one frame, through the device's queue and its TC programs.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is readable for the length given.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Receives one frame, or none within `limit`.
    pub fn receive(&self, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        let mut wait = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout = limit.as_millis().try_into().unwrap_or(i32::MAX);
        // SAFETY: one pollfd, which lives through the call.
        match unsafe { libc::poll(&raw mut wait, 1, timeout) } {
            0 => return Ok(None),
            n if n < 0 => return Err(io::Error::last_os_error()),
            _ => {}
        }
        let mut frame = vec![0; 2048];
        // SAFETY: the buffer is writable for the length given.
        let read = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        match usize::try_from(read) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                e => Err(e),
            },
        }
    }
}
