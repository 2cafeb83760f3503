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
mod tests {
    use std::{io::Seek, thread};

    use super::{
        super::message::{Say, Told},
        *,
    };

    fn pair() -> (Channel, UnixStream) {
        let (a, b) = UnixStream::pair().expect("a pair");
        (Channel::new(a), b)
    }

    fn soon() -> Deadline {
        Deadline::within(Duration::from_secs(10))
    }

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = b"NMHO\x01\0".to_vec();
        bytes.extend([kind, 0]);
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_state_with_many_descriptors_comes_whole() {
        let (a, b) = pair();
        let b = Channel::new(b);
        let mut file = tempfile::tempfile().expect("a file");
        let state: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&state).expect("written");
        file.rewind().expect("rewound");
        let fds: Vec<_> = (0..600)
            .map(|n| (n * 7, OwnedFd::from(UnixStream::pair().expect("a pair").0)))
            .collect();
        let announced = Announcement {
            version: "x".into(),
            bytes: state.len() as u64,
            descriptors: 600,
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                a.send(&Say::State(announced.clone()), soon())
                    .expect("announced");
                a.send_state(&mut file, &fds, soon()).expect("sent");
                a.send(&Say::Ready, soon()).expect("said");
            });
            assert_eq!(
                b.receive::<Say>(soon()).expect("a message"),
                Say::State(announced.clone())
            );
            let mut got = Vec::new();
            let came = b
                .receive_state(&announced, &mut got, soon())
                .expect("a state");
            assert!(got == state);
            let link =
                |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            for ((label, fd), (sent_label, sent)) in came.iter().zip(&fds) {
                assert_eq!(label, sent_label);
                assert_eq!(link(fd).expect("a link"), link(sent).expect("a link"));
            }
            assert_eq!(b.receive::<Say>(soon()).expect("a message"), Say::Ready);
        });
    }

    #[test]
    fn what_breaks_the_protocol_ends_it() {
        let told = |bytes: &[u8]| {
            let (a, mut b) = pair();
            b.write_all(bytes).expect("written");
            drop(b);
            a.receive::<Say>(soon()).expect_err("broken").to_string()
        };
        assert!(told(b"GET / HTTP/1.1\r\n\r\n").contains("NMHO"));
        assert!(told(&frame(1, b"{")).contains("cannot be read"));
        assert!(told(&frame(1, &[0xff; 20])).contains("cannot be read"));
        assert!(told(&frame(2, b"x")).contains("a message"));
        assert!(told(&frame(1, b"{\"type\":\"ready\"}")[..20]).contains("closed"));
        assert!(told(&[]).contains("closed"));
        // Nothing is reserved for it.
        assert!(told(b"NMHO\x01\0\x01\0\xff\xff\xff\xff").contains("over the limit"));
    }

    #[test]
    fn a_state_is_bounded_by_what_was_announced() {
        let take = |announced: Announcement, bytes: &[u8]| {
            let (a, mut b) = pair();
            b.write_all(bytes).expect("written");
            drop(b);
            let mut state = Vec::new();
            a.receive_state(&announced, &mut state, soon())
                .map(|fds| (state, fds.len()))
                .map_err(|e| e.to_string())
        };
        let of = |bytes, descriptors| Announcement {
            bytes,
            descriptors,
            ..Announcement::default()
        };
        assert_eq!(take(of(0, 0), &[]), Ok((Vec::new(), 0)));
        let two = [frame(2, b"ab"), frame(2, b"c")].concat();
        assert_eq!(take(of(3, 0), &two), Ok((b"abc".to_vec(), 0)));
        assert!(take(of(2, 1), &two).is_err_and(|e| e.contains("3 bytes of state; 2 are due")));
        assert!(take(of(4, 0), &two).is_err_and(|e| e.contains("closed")));
        assert!(take(of(STATE_LIMIT + 1, 0), &[]).is_err_and(|e| e.contains("over the limit")));
        assert!(
            take(of(0, DESCRIPTOR_LIMIT + 1), &[]).is_err_and(|e| e.contains("over the limit"))
        );
        // A label without a descriptor.
        assert!(
            take(of(0, 1), &frame(3, &[1, 0, 0, 0])).is_err_and(|e| e.contains("0 descriptors"))
        );
        assert!(
            take(of(1, 0), &frame(1, b"{\"type\":\"ready\"}")).is_err_and(|e| e.contains("rest"))
        );
    }

    #[test]
    fn a_label_names_one_descriptor() {
        let (a, b) = pair();
        let fds = [3, 3].map(|label| (label, OwnedFd::from(UnixStream::pair().expect("a pair").0)));
        Channel::new(b)
            .send_state(&mut io::empty(), &fds, soon())
            .expect("sent");
        let announced = Announcement {
            descriptors: 2,
            ..Announcement::default()
        };
        let failed = a.receive_state(&announced, &mut io::sink(), soon());
        assert!(failed.is_err_and(|e| e.to_string().contains("the label 3")));
    }

    #[test]
    fn silence_has_an_end() {
        let (a, _b) = pair();
        let limit = Deadline::within(Duration::from_millis(20));
        assert!(matches!(a.receive::<Say>(limit), Err(Error::Silent(_))));
        assert!(!a.hung_up(Some(Duration::from_millis(20))).expect("a look"));
    }

    #[test]
    fn the_last_word_is_read_before_the_end() {
        let (a, b) = pair();
        let b = Channel::new(b);
        b.send(&Say::Ready, soon()).expect("a late answer");
        a.send(&Told::Resume, soon()).expect("said");
        a.again().expect("a duplicate").close().expect("closed");
        assert_eq!(b.receive::<Told>(soon()).expect("the word"), Told::Resume);
        assert!(matches!(b.receive::<Told>(soon()), Err(Error::Closed)));
        a.close().expect("closed already");
    }

    #[test]
    fn a_program_that_has_gone_is_noticed_without_reading() {
        let (a, b) = pair();
        Channel::new(b).send(&Told::Go, soon()).expect("said");
        assert!(a.hung_up(None).expect("a look"));
        assert_eq!(a.receive::<Told>(soon()).expect("still there"), Told::Go);
        assert!(matches!(a.send(&Say::Ready, soon()), Err(Error::Closed)));
    }
}
