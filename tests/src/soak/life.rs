//! One end of a connection of the soak: what it does next is random, what it sends can be checked byte by byte.
//!
//! Each direction is a [`pattern`] stream, told apart by the connection's number, and then its length (u64, big-endian) and the FIN. The peer's
//! direction begins with the number (u64, big-endian). Nothing says beforehand how long a stream is: each end decides when it has said enough.
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{peers::pattern, random::Random};

/// How often each end looks at its connection.
pub const TICK: Duration = Duration::from_millis(10);
/// How much is read at once.
const CHUNK: usize = 32 << 10;
/// Length of the number, and of the length behind a stream, in bytes.
const WORD: usize = 8;

/// Whose end it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Side {
    Peer,
    Container,
}

/// How long a connection lives and what it does, decided by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// Sends the same amount each tick in both directions, and always reads: what is between its bytes is time.
    Steady,
    /// Lives until the peer is told to finish.
    Lasting,
    /// Either end ends it after some moods.
    Passing,
}

const CLASSES: [Class; 3] = [Class::Steady, Class::Lasting, Class::Passing];

/// What an end does for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mood {
    Silent,
    /// A few bytes each tick.
    Drip,
    /// A segment's worth each tick.
    Stream,
    /// More than fits into any window, at once.
    Burst,
    /// Neither reads nor writes.
    Deaf,
    /// Writes and does not read.
    Stubborn,
}

/// What went wrong on a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The kernel's word.
    #[error("after {read} bytes read and {written} written: {kind:?}")]
    Broken {
        /// Payload bytes read before.
        read: u64,
        /// Payload bytes written before.
        written: u64,
        /// ECONNRESET and the like.
        kind: ErrorKind,
    },
    /// Bytes that are not the stream's.
    #[error("{wrong} wrong bytes behind byte {at}")]
    Corrupt {
        /// Where they begin to be looked for, bytes of payload.
        at: u64,
        /// How many.
        wrong: u64,
    },
    /// The FIN came at another place than the stream's end.
    #[error("the stream ended after {read} bytes and {tail:?}")]
    Cut {
        /// Payload bytes read.
        read: u64,
        /// What came last.
        tail: Vec<u8>,
    },
}

impl Fault {
    /// Reset before anything came.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Broken {
                read: 0,
                kind: ErrorKind::ConnectionReset,
                ..
            }
        )
    }
}

/// One end. It can be written down between two ticks and goes on elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    side: Side,
    /// None: the container's end has not read it yet.
    number: Option<u64>,
    random: Random,
    mood: Mood,
    /// Ticks that the mood still lasts.
    ticks: u32,
    /// Bytes of the mood's one burst that are still to be written.
    burst: usize,
    written: u64,
    read: u64,
    /// Words around the stream that the kernel has not taken yet.
    out: Vec<u8>,
    /// The last bytes read, which may be the length behind the stream.
    tail: Vec<u8>,
    finishing: bool,
    /// Moods after which it ends by itself.
    left: Option<u32>,
    /// Nothing but `out` is written any more.
    said_all: bool,
    shut: bool,
    heard_all: bool,
}

impl Life {
    /// The peer's end of connection `number`.
    #[must_use]
    pub fn peer(number: u64, seed: u64) -> Self {
        let mut life = Self::new(Side::Peer, Random::new(seed ^ number));
        life.out = number.to_be_bytes().to_vec();
        life.number = Some(number);
        life
    }

    /// The container's end of a connection that was accepted.
    #[must_use]
    pub fn container(random: Random) -> Self {
        Self::new(Side::Container, random)
    }

    fn new(side: Side, random: Random) -> Self {
        Self {
            side,
            number: None,
            random,
            mood: Mood::Silent,
            ticks: 0,
            burst: 0,
            written: 0,
            read: 0,
            out: Vec::new(),
            tail: Vec::new(),
            finishing: false,
            left: None,
            said_all: false,
            shut: false,
            heard_all: false,
        }
    }

    /// The number of the `count`-th connection, which lives so.
    #[must_use]
    pub fn number_of(count: u64, class: Class) -> u64 {
        count * CLASSES.len() as u64 + CLASSES.iter().position(|&c| c == class).unwrap_or(0) as u64
    }

    /// How the connection lives.
    #[must_use]
    pub fn class(number: u64) -> Class {
        let index = usize::try_from(number).unwrap_or_default() % CLASSES.len();
        CLASSES[index]
    }

    /// Its number, once it is known.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        self.number
    }

    /// Payload bytes read.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.read + self.tail.len() as u64
    }

    /// Payload bytes written.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.written
    }

    /// It comes to its end soon.
    pub fn finish(&mut self) {
        self.finishing = true;
    }

    /// What it is in the middle of, for a connection that does not end.
    #[must_use]
    pub fn state(&self) -> String {
        format!(
            "{} bytes written, {} read, {:?}, said all: {}, heard all: {}",
            self.written, self.read, self.mood, self.said_all, self.heard_all
        )
    }

    /// One tick. False: both streams are over, and the socket is to be closed, whatever of it the kernel still has to send.
    ///
    /// # Errors
    /// What must not happen to a connection.
    pub fn tick(&mut self, stream: &mut TcpStream) -> Result<bool, Fault> {
        self.change_mood();
        if !self.deaf() && !self.heard_all {
            self.hear(stream)?;
        }
        self.say(stream)?;
        Ok(!(self.said_all && self.out.is_empty() && self.heard_all))
    }

    fn class_known(&self) -> Option<Class> {
        self.number.map(Self::class)
    }

    fn deaf(&self) -> bool {
        matches!(self.mood, Mood::Deaf | Mood::Stubborn) && !self.steady()
    }

    fn steady(&self) -> bool {
        self.class_known() == Some(Class::Steady)
    }

    fn change_mood(&mut self) {
        if self.ticks > 0 {
            self.ticks -= 1;
            return;
        }
        self.ticks = 2 + self.random.below(40);
        self.mood = match self.random.below(100) {
            0..35 => Mood::Silent,
            35..65 => Mood::Drip,
            65..79 => Mood::Stream,
            79..81 => Mood::Burst,
            81..93 => Mood::Deaf,
            _ => Mood::Stubborn,
        };
        self.burst = if self.mood == Mood::Burst {
            200_000 + self.random.below(200_000) as usize
        } else {
            0
        };
        if self.heard_all && self.left.is_none() {
            self.left = Some(self.random.below(4));
        }
        let over = match &mut self.left {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => self.class_known() == Some(Class::Passing) && self.random.below(5) == 0,
        };
        let at_once = self.heard_all && self.steady();
        if !self.said_all && self.number.is_some() && (over || at_once || self.finishing) {
            self.said_all = true;
            self.out.extend(self.written.to_be_bytes());
        }
    }

    fn hear(&mut self, stream: &mut TcpStream) -> Result<(), Fault> {
        let mut buffer = vec![0; CHUNK];
        // Not for ever: others wait for their turn.
        for _ in 0..16 {
            match stream.read(&mut buffer) {
                Ok(0) => return self.end(),
                Ok(n) => self.take(&buffer[..n])?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(self.broken(&e)),
            }
        }
        Ok(())
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        if self.number.is_none() {
            let (head, rest) = bytes.split_at(bytes.len().min(WORD - self.tail.len()));
            self.tail.extend(head);
            bytes = rest;
            if let Ok(number) = <[u8; WORD]>::try_from(self.tail.as_slice()) {
                self.number = Some(u64::from_be_bytes(number));
                self.tail.clear();
            }
        }
        let Some(number) = self.number else {
            return Ok(());
        };
        self.tail.extend(bytes);
        let sure = self.tail.len().saturating_sub(WORD);
        let seed = seed(number, other(self.side));
        let wrong = pattern::wrong(seed, self.read, &self.tail[..sure]);
        if wrong > 0 {
            return Err(Fault::Corrupt {
                at: self.read,
                wrong,
            });
        }
        self.read += sure as u64;
        self.tail.drain(..sure);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        if self.number.is_none() || self.tail != self.read.to_be_bytes() {
            return Err(Fault::Cut {
                read: self.read,
                tail: self.tail.clone(),
            });
        }
        self.heard_all = true;
        self.tail.clear();
        Ok(())
    }

    fn say(&mut self, stream: &mut TcpStream) -> Result<(), Fault> {
        while !self.out.is_empty() {
            match stream.write(&self.out) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(e) if waits(&e) => return Ok(()),
                Err(e) => return Err(self.broken(&e)),
            }
        }
        if self.said_all {
            // With the other direction over too the socket is closed instead.
            if !self.shut && !self.heard_all {
                stream
                    .shutdown(Shutdown::Write)
                    .map_err(|e| self.broken(&e))?;
                self.shut = true;
            }
            return Ok(());
        }
        let Some(number) = self.number else {
            return Ok(());
        };
        let seed = seed(number, self.side);
        let mut due = self.due();
        let mut buffer = vec![0; due.min(CHUNK)];
        while due > 0 {
            let part = due.min(buffer.len());
            pattern::fill(seed, self.written, &mut buffer[..part]);
            match stream.write(&buffer[..part]) {
                Ok(n) => {
                    self.written += n as u64;
                    self.burst = self.burst.saturating_sub(n);
                    due -= n;
                }
                Err(e) if waits(&e) => break,
                Err(e) => return Err(self.broken(&e)),
            }
        }
        Ok(())
    }

    /// Bytes to write in this tick.
    fn due(&mut self) -> usize {
        if self.steady() {
            return 256;
        }
        match self.mood {
            Mood::Silent | Mood::Deaf => 0,
            Mood::Drip => 1 + self.random.below(200) as usize,
            Mood::Stream | Mood::Stubborn => 1400,
            Mood::Burst => self.burst,
        }
    }

    fn broken(&self, e: &io::Error) -> Fault {
        Fault::Broken {
            read: self.read,
            written: self.written,
            kind: e.kind(),
        }
    }
}

/// Not now: the send queue is full, or the connection is not made yet.
fn waits(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}

fn other(side: Side) -> Side {
    match side {
        Side::Peer => Side::Container,
        Side::Container => Side::Peer,
    }
}

/// Of the stream that `side` writes.
fn seed(number: u64, side: Side) -> u64 {
    let mut random = Random::new(number);
    let (peer, container) = (random.next(), random.next());
    match side {
        Side::Peer => peer,
        Side::Container => container,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread::sleep, time::Instant};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let peer =
            TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        let (container, _) = listener.accept().expect("accepted");
        for stream in [&peer, &container] {
            stream.set_nonblocking(true).expect("non-blocking");
        }
        (peer, container)
    }

    /// Both ends to their ends, the container's written down and read back now and then.
    fn lived(number: u64) -> (Life, Life) {
        let (peer, container) = pair();
        let (mut peer, mut container) = (Some(peer), Some(container));
        let mut ends = (
            Life::peer(number, 3),
            Life::container(Random::new(number + 1)),
        );
        // Closed when it is over, as its owners do.
        let live = |life: &mut Life, stream: &mut Option<TcpStream>| {
            if let Some(open) = stream
                && !life.tick(open).expect("nothing goes wrong")
            {
                *stream = None;
            }
        };
        let limit = Instant::now() + Duration::from_secs(20);
        for tick in 0.. {
            live(&mut ends.0, &mut peer);
            live(&mut ends.1, &mut container);
            if peer.is_none() && container.is_none() {
                break;
            }
            if tick % 50 == 0 {
                let text = serde_json::to_string(&ends.1).expect("JSON");
                ends.1 = serde_json::from_str(&text).expect("the same");
            }
            if tick == 400 {
                ends.0.finish();
            }
            assert!(
                Instant::now() < limit,
                "{}; {}",
                ends.0.state(),
                ends.1.state()
            );
            sleep(Duration::from_micros(200));
        }
        ends
    }

    #[test]
    fn streams_come_to_their_ends() {
        for number in 0..9 {
            let (peer, container) = lived(number);
            assert_eq!(
                (peer.sent(), peer.received()),
                (container.received(), container.sent()),
                "connection {number}"
            );
            assert_eq!(container.number(), Some(number));
        }
    }

    #[test]
    fn a_wrong_byte_and_a_cut_are_seen() {
        let mut life = Life::container(Random::new(1));
        let mut bytes = 7u64.to_be_bytes().to_vec();
        let mut payload = vec![0; 100];
        pattern::fill(seed(7, Side::Peer), 0, &mut payload);
        bytes.extend(&payload);
        bytes.extend(100u64.to_be_bytes());
        for piece in bytes.chunks(9) {
            life.take(piece).expect("the stream");
        }
        let mut cut = life.clone();
        life.end().expect("its end");
        assert!(cut.take(&[0]).is_err() || cut.end().is_err());

        bytes[50] ^= 1;
        let mut life = Life::container(Random::new(1));
        let corrupt = life.take(&bytes).expect_err("a flipped bit");
        assert_eq!(corrupt, Fault::Corrupt { at: 0, wrong: 1 });
    }
}
