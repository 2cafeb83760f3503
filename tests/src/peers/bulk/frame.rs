//! Frames of the stream, and the pace at which they go.
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::peers::pattern;

/// Payload of one frame.
pub(super) const CHUNK: usize = 32 << 10;
/// JSON longer than this is refused.
const JSON_LIMIT: usize = 64 << 10;

/// Writes the stream.
pub(super) struct Writer {
    seed: u64,
    pace: Pace,
    pub(super) bytes: u64,
    frame: Vec<u8>,
}

impl Writer {
    pub(super) fn new(seed: u64, rate: u64) -> Self {
        Self {
            seed,
            pace: Pace::new(rate),
            bytes: 0,
            frame: vec![0; 4 + CHUNK],
        }
    }

    /// Sends the next frame, not before its time.
    pub(super) fn next(&mut self, to: &mut TcpStream) -> io::Result<()> {
        self.pace.wait(CHUNK as u64);
        let (head, payload) = self.frame.split_at_mut(4);
        head.copy_from_slice(&length(CHUNK)?);
        pattern::fill(self.seed, self.bytes, payload);
        to.write_all(&self.frame)?;
        self.bytes += CHUNK as u64;
        Ok(())
    }

    /// Ends the stream.
    pub(super) fn end(to: &mut TcpStream) -> io::Result<()> {
        to.write_all(&length(0)?)
    }
}

/// Reads and checks the stream.
pub(super) struct Reader {
    seed: u64,
    pub(super) bytes: u64,
    pub(super) corrupt: u64,
    payload: Vec<u8>,
}

impl Reader {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            bytes: 0,
            corrupt: 0,
            payload: vec![0; CHUNK],
        }
    }

    /// Reads the next frame; false at the stream's end. `progress` is called whenever bytes came. What follows a frame of an
    /// impossible length cannot be found: that is `InvalidData`, and counted as corrupt.
    pub(super) fn next(
        &mut self,
        from: &mut TcpStream,
        mut progress: impl FnMut(),
    ) -> io::Result<bool> {
        let mut head = [0; 4];
        from.read_exact(&mut head)?;
        progress();
        let mut left = u32::from_be_bytes(head) as usize;
        if left == 0 {
            return Ok(false);
        }
        if left > CHUNK {
            self.corrupt += 4;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame of {left} bytes"),
            ));
        }
        while left > 0 {
            let n = from.read(&mut self.payload[..left])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            progress();
            self.corrupt += pattern::wrong(self.seed, self.bytes, &self.payload[..n]);
            self.bytes += n as u64;
            left -= n;
        }
        Ok(true)
    }
}

/// Sends `value` as JSON behind its length.
pub(super) fn send_json(to: &mut TcpStream, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value)?;
    let mut whole = length(text.len())?.to_vec();
    whole.extend_from_slice(&text);
    to.write_all(&whole)
}

/// Receives what [`send_json`] sent.
pub(super) fn receive_json<T: DeserializeOwned>(from: &mut TcpStream) -> io::Result<T> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let n = u32::from_be_bytes(head) as usize;
    if n > JSON_LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{n} bytes of JSON"),
        ));
    }
    let mut text = vec![0; n];
    from.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn length(n: usize) -> io::Result<[u8; 4]> {
    u32::try_from(n)
        .map(u32::to_be_bytes)
        .map_err(io::Error::other)
}

/// Lets a number of bytes a second through; time lost in a stall is not made up for.
struct Pace {
    rate: u64,
    next: Instant,
}

impl Pace {
    const SLACK: Duration = Duration::from_millis(50);

    fn new(rate: u64) -> Self {
        Self {
            rate,
            next: Instant::now(),
        }
    }

    fn wait(&mut self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        let now = Instant::now();
        match self.next.checked_duration_since(now) {
            Some(early) => thread::sleep(early),
            None if now - self.next > Self::SLACK => self.next = now,
            None => {}
        }
        self.next += Duration::from_nanos(bytes * 1_000_000_000 / self.rate);
    }
}
