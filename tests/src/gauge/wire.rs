//! What the ends of the gauge say to each other, and how each checks the other.
//!
//! A connection begins with a [`Head`]. Each direction is then a [`pattern`] stream (with [`Load::Requests`] the container sends back what it
//! gets). The peer ends its direction with a FIN; the container answers that with a [`Trailer`] and a FIN.
use std::{
    io, mem,
    net::TcpStream,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::Load;
use crate::peers::pattern;

/// Length of a request, and of its answer.
pub const REQUEST: usize = 64;
/// Length of a datagram.
pub const DATAGRAM: usize = 128;
/// Asks the container to send no more, and what it has got.
pub const QUESTION: u8 = b'?';
const BEGIN: u8 = b's';
const ANSWER: u8 = b'!';
const NUMBERED: u8 = b'n';

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Never [`Load::Datagrams`].
    pub load: Load,
    /// Tells its streams from those of others.
    pub number: u64,
    /// Of the container, bytes a second; 0: as fast as it goes.
    pub rate: u64,
}

impl Head {
    /// Its length in bytes.
    pub const LEN: usize = 17;

    /// As it is sent.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = match self.load {
            Load::Inbound => b'i',
            Load::Outbound => b'o',
            Load::Both => b'b',
            Load::Requests | Load::Datagrams => b'r',
        };
        bytes[1..9].copy_from_slice(&self.number.to_be_bytes());
        bytes[9..].copy_from_slice(&self.rate.to_be_bytes());
        bytes
    }

    /// None if these are no peer's of the gauge.
    #[must_use]
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let load = match bytes[0] {
            b'i' => Load::Inbound,
            b'o' => Load::Outbound,
            b'b' => Load::Both,
            b'r' => Load::Requests,
            _ => return None,
        };
        Some(Self {
            load,
            number: word(&bytes[1..9]),
            rate: word(&bytes[9..]),
        })
    }

    /// Of what the peer sends.
    #[must_use]
    pub fn seed_in(&self) -> u64 {
        self.number << 9 | 1 << 8
    }

    /// Of what the container sends.
    #[must_use]
    pub fn seed_out(&self) -> u64 {
        match self.load {
            Load::Requests => self.seed_in(),
            _ => self.number << 9,
        }
    }
}

/// What the container says of a connection at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trailer {
    /// Bytes before the trailer.
    pub written: u64,
    /// Bytes behind the head.
    pub read: u64,
    /// Those of them that were not the stream's.
    pub wrong: u64,
    /// Segments that its kernel has sent again.
    pub retransmits: u64,
}

impl Trailer {
    /// Its length in bytes.
    pub const LEN: usize = 32;

    /// As it is sent.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let words = [self.written, self.read, self.wrong, self.retransmits];
        let mut bytes = [0; Self::LEN];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8]) -> Self {
        let word = |n: usize| word(&bytes[n * 8..(n + 1) * 8]);
        Self {
            written: word(0),
            read: word(1),
            wrong: word(2),
            retransmits: word(3),
        }
    }
}

/// Checks a stream that ends with a trailer, whose place is known only when it has ended.
#[derive(Clone, Debug)]
pub struct Checked {
    seed: u64,
    /// Bytes that were checked.
    at: u64,
    /// Those of them that were not the stream's.
    pub wrong: u64,
    tail: Vec<u8>,
}

impl Checked {
    /// The stream of `seed` from its beginning.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            at: 0,
            wrong: 0,
            tail: Vec::new(),
        }
    }

    /// The next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if let Some(sure) = self.tail.len().checked_sub(Trailer::LEN) {
            self.wrong += pattern::wrong(self.seed, self.at, &self.tail[..sure]);
            self.at += sure as u64;
            self.tail.drain(..sure);
        }
    }

    /// The trailer, and how many bytes came before it. None if it is not all there.
    #[must_use]
    pub fn end(&self) -> Option<(Trailer, u64)> {
        (self.tail.len() == Trailer::LEN).then(|| (Trailer::parse(&self.tail), self.at))
    }
}

/// What the container says of one peer's datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagrams {
    /// That came.
    pub received: u64,
    /// Highest number and one.
    pub next: u64,
    /// That came behind one with a higher number, or twice.
    pub out_of_place: u64,
    /// That were not as they were sent.
    pub wrong: u64,
    /// That it has sent itself.
    pub sent: u64,
}

impl Datagrams {
    /// One more has come.
    pub fn take(&mut self, bytes: &[u8]) {
        let Some(number) = number(bytes) else {
            self.wrong += 1;
            return;
        };
        self.received += 1;
        if number < self.next {
            self.out_of_place += 1;
        } else {
            self.next = number + 1;
        }
    }

    /// The answer to a question.
    #[must_use]
    pub fn answer(&self) -> [u8; 41] {
        let mut bytes = [ANSWER; 41];
        let words = [
            self.received,
            self.next,
            self.out_of_place,
            self.wrong,
            self.sent,
        ];
        for (to, word) in bytes[1..].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// None if this is no such answer.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (&ANSWER, rest) = bytes.split_first()? else {
            return None;
        };
        (rest.len() == 40).then(|| Self {
            received: word(&rest[..8]),
            next: word(&rest[8..16]),
            out_of_place: word(&rest[16..24]),
            wrong: word(&rest[24..32]),
            sent: word(&rest[32..]),
        })
    }
}

/// Asks the container for so many datagrams a second.
#[must_use]
pub fn begin(per_second: u64) -> [u8; 9] {
    let mut bytes = [BEGIN; 9];
    bytes[1..].copy_from_slice(&per_second.to_be_bytes());
    bytes
}

/// What is asked for by [`begin`].
#[must_use]
pub fn begun(bytes: &[u8]) -> Option<u64> {
    let (&BEGIN, rest) = bytes.split_first()? else {
        return None;
    };
    Some(u64::from_be_bytes(rest.try_into().ok()?))
}

/// Datagrams at a steady rate, by a thread that does not always have a processor.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    from: Instant,
    of_it: u64,
}

impl Pace {
    /// What could not be sent for so long is left out.
    const LATE: Duration = Duration::from_millis(20);

    /// From now on.
    #[must_use]
    pub fn new() -> Self {
        Self {
            from: Instant::now(),
            of_it: 0,
        }
    }

    /// How many are to be sent now.
    pub fn due(&mut self, per_second: u64) -> u64 {
        let of = |time: Duration| {
            let count = time.as_nanos() * u128::from(per_second) / 1_000_000_000;
            u64::try_from(count).unwrap_or(u64::MAX)
        };
        let missing = of(self.from.elapsed()).saturating_sub(self.of_it);
        let most = of(Self::LATE);
        if missing > most {
            *self = Self::new();
            return most;
        }
        self.of_it += missing;
        missing
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

/// Datagram `number`.
#[must_use]
pub fn datagram(number: u64) -> [u8; DATAGRAM] {
    let mut bytes = [NUMBERED; DATAGRAM];
    bytes[1..9].copy_from_slice(&number.to_be_bytes());
    pattern::fill(number, 0, &mut bytes[9..]);
    bytes
}

/// The number of a datagram that is as it was sent.
#[must_use]
pub fn number(bytes: &[u8]) -> Option<u64> {
    let (&NUMBERED, rest) = bytes.split_first()? else {
        return None;
    };
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let number = u64::from_be_bytes(*number);
    (rest.len() == DATAGRAM - 9 && pattern::wrong(number, 0, rest) == 0).then_some(number)
}

/// The kernel sends at most so many bytes a second on `stream` (`SO_MAX_PACING_RATE`, socket(7)), whatever is written: a stream that always has
/// more to send, and neither overflows a queue nor takes the machine for itself. 0: no limit.
///
/// # Errors
/// setsockopt's.
pub fn pace(stream: &TcpStream, rate: u64) -> io::Result<()> {
    if rate == 0 {
        return Ok(());
    }
    let size = libc::socklen_t::try_from(mem::size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the call, and the kernel reads `size` bytes of `rate`, which is so long.
    let rc = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn word(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_trailers_and_answers_come_back() {
        for load in [Load::Inbound, Load::Outbound, Load::Both, Load::Requests] {
            let head = Head {
                load,
                number: 0x0102_0304_0506_0708,
                rate: 50_000_000,
            };
            assert_eq!(Head::parse(&head.bytes()), Some(head));
        }
        assert_eq!(Head::parse(&[0; Head::LEN]), None);
        let got = Datagrams {
            received: 1,
            next: 2,
            out_of_place: 3,
            wrong: 4,
            sent: 5,
        };
        assert_eq!(Datagrams::parse(&got.answer()), Some(got));
        assert_eq!(Datagrams::parse(&datagram(7)), None);
        assert_eq!((begun(&begin(7)), begun(&datagram(7))), (Some(7), None));
    }

    #[test]
    fn a_stream_is_checked_up_to_its_trailer_however_it_is_cut() {
        let trailer = Trailer {
            written: 1000,
            read: 5,
            wrong: 0,
            retransmits: 9,
        };
        let mut bytes = vec![0; 1000];
        pattern::fill(3, 0, &mut bytes);
        bytes.extend(trailer.bytes());
        for cut in [1, 7, 31, 32, 33, 500, 5000] {
            let mut checked = Checked::new(3);
            for piece in bytes.chunks(cut) {
                checked.push(piece);
            }
            assert_eq!((checked.wrong, checked.end()), (0, Some((trailer, 1000))));
        }
        let mut short = Checked::new(3);
        short.push(&bytes[..20]);
        assert_eq!(short.end(), None);
        let mut without = Checked::new(3);
        without.push(&[&bytes[..100], &bytes[101..]].concat());
        assert!(without.wrong > 800, "a lost byte shifts the rest");
    }

    #[test]
    fn a_pace_makes_up_for_a_little_and_no_more() {
        let mut pace = Pace {
            from: Instant::now() - Duration::from_millis(10),
            of_it: 0,
        };
        let due = pace.due(50_000);
        assert!((500..1000).contains(&due), "{due}");
        pace.from -= Duration::from_secs(1);
        assert_eq!(pace.due(50_000), 1000);
        assert!(pace.due(50_000) < 500);
    }

    #[test]
    fn datagrams_out_of_place_and_spoilt_are_counted() {
        let mut got = Datagrams::default();
        for n in [0, 1, 3, 2, 3] {
            got.take(&datagram(n));
        }
        let mut spoilt = datagram(9);
        spoilt[20] ^= 1;
        got.take(&spoilt);
        let told = (got.received, got.next, got.out_of_place, got.wrong);
        assert_eq!(told, (5, 4, 2, 1));
    }
}
