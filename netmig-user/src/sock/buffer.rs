//! Receive buffers that take more for a while than their programs asked for.
use std::os::fd::AsFd;

use super::error::{Error, On};
use crate::sys::sockopt::{self, number::SO_BUF_LOCK};

/// One, until [`Self::back`].
#[derive(Debug)]
pub(super) struct Wider<F> {
    pub(super) fd: F,
    pub(super) name: String,
    size: i32,
    lock: i32,
}

impl<F: AsFd> Wider<F> {
    /// Makes SO_RCVBUF what `wanted` says of its size now, both in bytes. None: it is as large already.
    pub(super) fn than(
        fd: F,
        name: String,
        wanted: impl FnOnce(u64) -> u64,
    ) -> Result<Option<Self>, Error> {
        let int = |option, call| sockopt::int(&fd, libc::SOL_SOCKET, option).on(call, &name);
        let size = int(libc::SO_RCVBUF, "reading SO_RCVBUF")?;
        let lock = int(SO_BUF_LOCK, "reading SO_BUF_LOCK").unwrap_or(0);
        let now = u64::try_from(size).unwrap_or(0);
        let wanted = wanted(now);
        let wider = Self {
            fd,
            name,
            size,
            lock,
        };
        if wanted <= now {
            return Ok(None);
        }
        wider.force(
            i32::try_from(wanted).unwrap_or(i32::MAX),
            "setting SO_RCVBUFFORCE",
        )?;
        Ok(Some(wider))
    }

    /// It may grow by itself as before: only its size is not what it was.
    pub(super) fn unlocked(&self) -> Result<(), Error> {
        sockopt::set_int(&self.fd, libc::SOL_SOCKET, SO_BUF_LOCK, self.lock & 3)
            .on("setting SO_BUF_LOCK back", &self.name)
    }

    /// It is as it was; what is in it stays.
    pub(super) fn back(&self) -> Result<(), Error> {
        self.force(self.size, "setting SO_RCVBUFFORCE back")?;
        self.unlocked()
    }

    /// The kernel doubles what is set, and locks the size.
    fn force(&self, size: i32, call: &'static str) -> Result<(), Error> {
        sockopt::set_int(&self.fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, size / 2)
            .on(call, &self.name)
    }
}
