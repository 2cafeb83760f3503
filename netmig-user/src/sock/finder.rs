//! The descriptors at the target that stand for those of the image.
use std::{collections::HashMap, os::fd::OwnedFd};

use netmig_core::image::v1::sock::{Common, Holder, Tcp};

use super::{
    error::{Error, On},
    holders::Place,
};
use crate::sys::{pidfd::PidFd, sockopt};

/// Says which descriptor stands for which holder.
pub(super) type Placed<'a> = &'a (dyn Fn(&Holder) -> Option<Place> + Sync);

/// What a descriptor must hold.
#[derive(Clone, Copy)]
pub(super) enum State {
    /// A TCP socket in CLOSE, as the engine leaves it.
    Closed,
    /// The connection itself.
    Connected,
}

impl State {
    pub(super) fn expect(self, fd: &OwnedFd, tcp: &Tcp) -> Result<(), Error> {
        const CLOSE: u32 = 7;
        let mismatch = |what: String| Error::Mismatch {
            socket: tcp.to_string(),
            holder: tcp.common.holders[0],
            what,
        };
        let int = |name| sockopt::int(fd, libc::SOL_SOCKET, name);
        let family = if tcp.common.v6 {
            libc::AF_INET6
        } else {
            libc::AF_INET
        };
        match (int(libc::SO_DOMAIN), int(libc::SO_PROTOCOL)) {
            (Ok(domain), Ok(libc::IPPROTO_TCP)) if domain == family => {}
            (Ok(domain), Ok(protocol)) => {
                return Err(mismatch(format!(
                    "a socket of family {domain}, protocol {protocol}"
                )));
            }
            (Err(e), _) | (_, Err(e)) => return Err(mismatch(format!("no socket: {e}"))),
        }
        let state: u32 = sockopt::read::<u32>(fd, libc::SOL_TCP, libc::TCP_INFO)
            .on("reading TCP_INFO", tcp)?
            & 0xff;
        match self {
            Self::Closed if state != CLOSE => Err(mismatch(format!(
                "a TCP socket in state {state}, not closed"
            ))),
            Self::Connected if state == CLOSE => Err(mismatch("a closed TCP socket".to_owned())),
            _ => Ok(()),
        }
    }
}

/// Duplicates them; a process is opened once.
pub(super) struct Finder<'a> {
    place: Placed<'a>,
    processes: HashMap<i32, PidFd>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(place: Placed<'a>) -> Self {
        Self {
            place,
            processes: HashMap::new(),
        }
    }

    pub(super) fn duplicate(
        &mut self,
        common: &Common,
        socket: &impl ToString,
    ) -> Result<OwnedFd, Error> {
        for holder in &common.holders {
            let Some(Place { pid, fd }) = (self.place)(holder) else {
                continue;
            };
            let process = match self.processes.entry(pid) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    new.insert(PidFd::open(pid).on("opening its process", socket)?)
                }
            };
            if let Ok(fd) = process.fd(fd) {
                return Ok(fd);
            }
        }
        Err(Error::Missing {
            socket: socket.to_string(),
            holder: common.holders[0],
        })
    }
}
