//! One end of a handoff connection: frames with descriptors over a unix stream socket, and states as a whole.
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg,
        sockopt::PeerCredentials,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::message::{
    self, Announcement, BATCH_LIMIT, CHUNK_LIMIT, DESCRIPTOR_LIMIT, HEADER, Kind, MESSAGE_LIMIT,
    Malformed, STATE_LIMIT,
};

/// Talking with a program failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection's.
    #[error("the connection: {0}")]
    Io(#[from] io::Error),
    /// It was closed.
    #[error("the program has closed its connection, or died")]
    Closed,
    /// Nothing came in time.
    #[error("nothing came within {0:?}")]
    Silent(Duration),
    /// The protocol was broken.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A frame that is not due.
    #[error("a {got} frame came where {due} is due")]
    Unexpected {
        /// What came.
        got: &'static str,
        /// What should have come.
        due: &'static str,
    },
    /// A state that is too large, or not what was announced.
    #[error("{0}")]
    State(String),
}

/// A connection between netmig and a program.
#[derive(Debug)]
pub struct Channel(UnixStream);

/// A frame as it came.
#[derive(Debug)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// Its body.
    pub body: Vec<u8>,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// When a reader's patience ends.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// `limit` from now.
    #[must_use]
    pub fn within(limit: Duration) -> Self {
        Self {
            at: Instant::now() + limit,
            limit,
        }
    }

    fn left(self) -> Result<Duration, Error> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Silent(self.limit));
        }
        Ok(left)
    }
}

impl Channel {
    /// Over a connected stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// The same connection once more.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn again(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Pid and user of the program, as this host sees them (SO_PEERCRED).
    ///
    /// # Errors
    /// That of getsockopt(2).
    pub fn peer(&self) -> io::Result<(i32, u32)> {
        let credentials = getsockopt(&self.0, PeerCredentials)?;
        Ok((credentials.pid(), credentials.uid()))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection's, or it is too long.
    pub fn send(&self, message: &impl Serialize, limit: Deadline) -> Result<(), Error> {
        let body = serde_json::to_vec(message).map_err(io::Error::from)?;
        if body.len() > MESSAGE_LIMIT {
            return Err(Malformed::Long {
                kind: "message",
                length: body.len() as u32,
                limit: MESSAGE_LIMIT,
            }
            .into());
        }
        self.put(Kind::Message, &body, &[], limit)
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// The connection's, the protocol's, or that of time.
    pub fn receive<T: DeserializeOwned>(&self, limit: Deadline) -> Result<T, Error> {
        let frame = self.frame(limit)?;
        match frame.kind {
            Kind::Message => serde_json::from_slice(&frame.body)
                .map_err(|e| Malformed::Message(e.to_string()).into()),
            other => Err(Error::Unexpected {
                got: other.limit().0,
                due: "a message",
            }),
        }
    }

    /// Sends what an [`Announcement`] has announced.
    ///
    /// # Errors
    /// The connection's, or that of reading the state.
    pub fn send_state(
        &self,
        state: &mut impl Read,
        descriptors: &[(u32, impl AsFd)],
        limit: Deadline,
    ) -> Result<(), Error> {
        let mut chunk = vec![0; CHUNK_LIMIT / 4];
        loop {
            let n = state.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            self.put(Kind::State, &chunk[..n], &[], limit)?;
        }
        for batch in descriptors.chunks(BATCH_LIMIT) {
            let labels: Vec<u8> = batch
                .iter()
                .flat_map(|(label, _)| label.to_le_bytes())
                .collect();
            let fds: Vec<RawFd> = batch.iter().map(|(_, fd)| fd.as_fd().as_raw_fd()).collect();
            self.put(Kind::Descriptors, &labels, &fds, limit)?;
        }
        Ok(())
    }

    /// Takes what `announced` says: the bytes go to `state`, the descriptors come back with their labels, in order.
    ///
    /// # Errors
    /// The connection's and the protocol's; more than the limits, more than was announced, or a label twice; that of writing the state.
    pub fn receive_state(
        &self,
        announced: &Announcement,
        state: &mut impl Write,
        limit: Deadline,
    ) -> Result<Vec<(u32, OwnedFd)>, Error> {
        let over =
            |what: &str, got: u64, most: u64| Error::State(format!("{got} {what}; {most} are due"));
        if announced.bytes > STATE_LIMIT {
            return Err(Error::State(format!(
                "a state of {} bytes is over the limit of {STATE_LIMIT}",
                announced.bytes
            )));
        }
        if announced.descriptors > DESCRIPTOR_LIMIT {
            return Err(Error::State(format!(
                "{} descriptors are over the limit of {DESCRIPTOR_LIMIT}",
                announced.descriptors
            )));
        }
        let mut bytes = 0;
        let mut descriptors: Vec<(u32, OwnedFd)> = Vec::new();
        let mut known = std::collections::HashSet::new();
        while bytes < announced.bytes || descriptors.len() < announced.descriptors as usize {
            let frame = self.frame(limit)?;
            match frame.kind {
                Kind::Message => {
                    return Err(Error::Unexpected {
                        got: "message",
                        due: "the rest of a state",
                    });
                }
                Kind::State => {
                    bytes += frame.body.len() as u64;
                    if bytes > announced.bytes {
                        return Err(over("bytes of state", bytes, announced.bytes));
                    }
                    state.write_all(&frame.body)?;
                }
                Kind::Descriptors => {
                    let labels = message::labels(&frame.body, frame.descriptors.len())?;
                    for label in &labels {
                        if !known.insert(*label) {
                            return Err(Error::State(format!(
                                "two descriptors have the label {label}"
                            )));
                        }
                    }
                    descriptors.extend(labels.into_iter().zip(frame.descriptors));
                    if descriptors.len() > announced.descriptors as usize {
                        return Err(over(
                            "descriptors",
                            descriptors.len() as u64,
                            announced.descriptors.into(),
                        ));
                    }
                }
            }
        }
        Ok(descriptors)
    }

    /// Waits until the program has closed its end; false if it has not within `limit`. Reads nothing.
    ///
    /// # Errors
    /// That of poll(2).
    pub fn hung_up(&self, limit: Option<Duration>) -> io::Result<bool> {
        let until = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if self.ready(PollFlags::empty(), left)? {
                return Ok(true);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
        }
    }

    /// Ends the connection, whoever else has it. What was sent is still read at the other end.
    ///
    /// # Errors
    /// That of shutdown(2); a connection that is gone is none.
    pub fn close(&self) -> io::Result<()> {
        match self.0.shutdown(Shutdown::Both) {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(e),
            _ => Ok(()),
        }
    }

    fn put(&self, kind: Kind, body: &[u8], fds: &[RawFd], limit: Deadline) -> Result<(), Error> {
        let header = message::header(kind, body.len());
        let rights = [ControlMessage::ScmRights(fds)];
        let mut parts: &mut [IoSlice<'_>] = &mut [IoSlice::new(&header), IoSlice::new(body)];
        let mut rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        while !parts.is_empty() {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match sendmsg::<()>(self.0.as_raw_fd(), parts, rights, flags, None) {
                Ok(n) => {
                    // They went with the first byte.
                    rights = &[];
                    IoSlice::advance_slices(&mut parts, n);
                    // An empty body leaves an empty slice.
                    if parts.iter().all(|part| part.is_empty()) {
                        break;
                    }
                }
                Err(nix::Error::EAGAIN) => {
                    self.ready(PollFlags::POLLOUT, Some(limit.left()?))?;
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(Error::Closed),
                Err(e) => return Err(io::Error::from(e).into()),
            }
        }
        Ok(())
    }

    /// The next frame. Memory is reserved for no more than its kind's limit.
    ///
    /// # Errors
    /// The connection's, the protocol's, or that of time.
    pub fn frame(&self, limit: Deadline) -> Result<Frame, Error> {
        let mut header = [0; HEADER];
        let mut descriptors = Vec::new();
        self.fill(&mut header, &mut descriptors, limit)?;
        let (kind, length) = message::parse(&header)?;
        let mut body = vec![0; length];
        self.fill(&mut body, &mut descriptors, limit)?;
        if kind != Kind::Descriptors && !descriptors.is_empty() {
            return Err(Malformed::Descriptors {
                labels: 0,
                descriptors: descriptors.len(),
            }
            .into());
        }
        Ok(Frame {
            kind,
            body,
            descriptors,
        })
    }

    fn fill(
        &self,
        bytes: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        limit: Deadline,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            if !self.ready(PollFlags::POLLIN, Some(limit.left()?))? {
                continue;
            }
            let mut control = cmsg_space!([RawFd; BATCH_LIMIT]);
            let mut slices = [IoSliceMut::new(&mut bytes[done..])];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let message =
                match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                    Ok(message) => message,
                    Err(nix::Error::EAGAIN | nix::Error::EINTR) => continue,
                    Err(nix::Error::ECONNRESET) => return Err(Error::Closed),
                    Err(e) => return Err(io::Error::from(e).into()),
                };
            let n = message.bytes;
            let cut = message.flags.contains(MsgFlags::MSG_CTRUNC);
            for control in message.cmsgs().map_err(io::Error::from)? {
                if let ControlMessageOwned::ScmRights(fds) = control {
                    // SAFETY: the kernel has just made these descriptors for us and nothing else knows them.
                    descriptors.extend(
                        fds.into_iter()
                            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                    );
                }
            }
            if cut {
                return Err(Error::State(
                    "descriptors were lost on the way: too many for one frame, or for RLIMIT_NOFILE"
                        .to_owned(),
                ));
            }
            if n == 0 {
                return Err(Error::Closed);
            }
            done += n;
        }
        Ok(())
    }

    fn ready(&self, what: PollFlags, limit: Option<Duration>) -> io::Result<bool> {
        let timeout = match limit {
            // Rounded up, so that a wait is never a busy one.
            Some(limit) => PollTimeout::try_from(limit + Duration::from_micros(999))
                .unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut fds = [PollFd::new(self.0.as_fd(), what)];
        match poll(&mut fds, timeout) {
            Ok(n) => Ok(n > 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests;
