//! A socket in TCP_REPAIR: its sequence numbers and queues.
use std::{
    fmt,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{MsgFlags, recv, send};

use super::error::{Error, On};
use crate::sys::sockopt::{
    self,
    number::{TCP_REPAIR_OFF_NO_WP, TCP_SEND_QUEUE},
};

const SOL: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::SOL_TCP;

/// Bytes handed to the kernel at once: a receive queue takes at most 17 pages a call (tcp_send_rcvq).
const CHUNK: usize = 32 << 10;

/// A socket in repair; leaves it when dropped, without a window probe.
pub(super) struct Repair<'a> {
    pub(super) fd: &'a OwnedFd,
    reuseaddr: i32,
    pub(super) name: &'a dyn fmt::Display,
    inside: bool,
}

impl<'a> Repair<'a> {
    pub(super) fn enter(
        fd: &'a OwnedFd,
        reuseaddr: i32,
        name: &'a dyn fmt::Display,
    ) -> Result<Self, Error> {
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR, 1).on("entering TCP_REPAIR", &name)?;
        Ok(Self {
            fd,
            reuseaddr,
            name,
            inside: true,
        })
    }

    /// Leaves repair and sets SO_REUSEADDR, which that clears.
    pub(super) fn leave(mut self) -> Result<(), Error> {
        self.inside = false;
        leave(self.fd, self.reuseaddr, self.name)
    }

    /// It stays in repair until all are rebuilt: see [`release`].
    pub(super) fn stay(mut self) {
        self.inside = false;
    }

    pub(super) fn queue(&self, queue: i32) -> Result<(), Error> {
        sockopt::set_int(self.fd, TCP, libc::TCP_REPAIR_QUEUE, queue)
            .on("choosing a repair queue", &self.name)
    }

    pub(super) fn seq(&self) -> Result<u32, Error> {
        sockopt::read(self.fd, TCP, libc::TCP_QUEUE_SEQ).on("reading TCP_QUEUE_SEQ", &self.name)
    }

    pub(super) fn set_seq(&self, queue: i32, seq: u32) -> Result<(), Error> {
        self.queue(queue)?;
        sockopt::set_u32(self.fd, TCP, libc::TCP_QUEUE_SEQ, seq)
            .on("setting TCP_QUEUE_SEQ", &self.name)
    }

    pub(super) fn peek(&self, len: usize, queue: &'static str) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        if len > 0 {
            let got = recv(
                self.fd.as_raw_fd(),
                &mut bytes,
                MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
            )
            .on("reading a queue", &self.name)?;
            if got != len {
                return Err(Error::Short {
                    socket: self.name.to_string(),
                    queue,
                    got,
                    want: len,
                });
            }
        }
        Ok(bytes)
    }

    pub(super) fn refill(&self, queue: i32, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.queue(queue)?;
        write(
            self.fd,
            bytes,
            if queue == TCP_SEND_QUEUE {
                "send"
            } else {
                "receive"
            },
            self.name,
        )
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        if self.inside
            && let Err(e) = leave(self.fd, self.reuseaddr, self.name)
        {
            tracing::error!(
                "{e}: {}",
                std::error::Error::source(&e)
                    .map(ToString::to_string)
                    .unwrap_or_default()
            );
        }
    }
}

/// Leaves repair without a window probe and sets SO_REUSEADDR, which that clears.
pub(super) fn leave(fd: &OwnedFd, reuseaddr: i32, name: &dyn fmt::Display) -> Result<(), Error> {
    sockopt::set_int(fd, TCP, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
        .on("leaving TCP_REPAIR", &name)?;
    if reuseaddr == 0 {
        return Ok(());
    }
    sockopt::set_int(fd, SOL, libc::SO_REUSEADDR, reuseaddr).on("setting SO_REUSEADDR", &name)
}

/// Puts all of `bytes` into a queue that has been given room for them.
pub(super) fn write(
    fd: &OwnedFd,
    bytes: &[u8],
    queue: &'static str,
    name: &dyn fmt::Display,
) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes.len() {
        let end = bytes.len().min(done + CHUNK);
        match send(
            fd.as_raw_fd(),
            &bytes[done..end],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
        ) {
            Ok(0) | Err(nix::Error::EAGAIN) => {
                return Err(Error::Short {
                    socket: name.to_string(),
                    queue,
                    got: done,
                    want: bytes.len(),
                });
            }
            Ok(n) => done += n,
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).on("refilling a queue", &name),
        }
    }
    Ok(())
}
