//! What goes over the control channel, in both directions:
//!
//! ```text
//! length of body (u32 LE) | channel (u32 LE) | kind (u8) | body
//! ```
//!
//! A channel is one command. To the guest go one [`Kind::Spawn`], then [`Kind::Stdin`] (an empty
//! one is the end of the file) and [`Kind::Signal`], at last [`Kind::Hangup`]; back come
//! [`Kind::Started`], then [`Kind::Stdout`] and [`Kind::Stderr`] (an empty one ends each) and
//! [`Kind::Exit`], in any order between them, or [`Kind::Refused`] alone. The guest opens with
//! [`Kind::Hello`] on channel 0.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The name of the virtio-serial port.
pub const PORT: &str = "netmig.control";

/// What is read from a command at once.
pub const CHUNK: usize = 32 * 1024;

/// No body is longer: an argument list or a chunk.
const LIMIT: usize = 1 << 20;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The guest is ready; body: [`Hello`] in JSON.
    Hello = 1,
    /// Run a command; body: [`Spawn`] in JSON.
    Spawn,
    /// It runs; body: its process id (i32 LE).
    Started,
    /// It could not be started; body: the error number (i32 LE).
    Refused,
    /// Bytes for its standard input.
    Stdin,
    /// Bytes of its standard output.
    Stdout,
    /// Bytes of its standard error.
    Stderr,
    /// It ended; body: its wait status (i32 LE).
    Exit,
    /// Send a signal to its process group; body: the number (i32 LE).
    Signal,
    /// Nobody is there any more: unless it is detached it is killed.
    Hangup,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which command it belongs to.
    pub channel: u32,
    /// What it says.
    pub kind: Kind,
    /// Depends on the kind.
    pub body: Vec<u8>,
}

/// What the guest says of itself when it is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// `uname -r`.
    pub release: String,
    /// Since the kernel's start, by the guest's clock.
    pub uptime_ms: u64,
}

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Program and arguments; the program is looked up in the guest's PATH.
    pub argv: Vec<String>,
    /// Added to the guest's environment.
    pub env: Vec<(String, String)>,
    /// `/root` if not given.
    pub directory: Option<String>,
    /// It outlives its connection, and reads and writes nothing.
    pub detached: bool,
    /// On a terminal of its own with this many (rows, columns): standard error is then part of
    /// the output.
    pub terminal: Option<(u16, u16)>,
}

impl Frame {
    /// A frame of `kind` on `channel`.
    pub fn new(channel: u32, kind: Kind, body: impl Into<Vec<u8>>) -> Self {
        Self {
            channel,
            kind,
            body: body.into(),
        }
    }

    /// Writes the frame in one piece.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(9 + self.body.len());
        bytes.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.channel.to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.body);
        to.write_all(&bytes)
    }

    /// Reads one frame; `None` at the end of the stream between two frames.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; 9];
        let mut have = 0;
        while have < header.len() {
            match from.read(&mut header[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let [l0, l1, l2, l3, c0, c1, c2, c3, kind] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > LIMIT {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        let mut frame = Self {
            channel: u32::from_le_bytes([c0, c1, c2, c3]),
            kind: Kind::try_from(kind)?,
            body: vec![0; length],
        };
        from.read_exact(&mut frame.body)?;
        Ok(Some(frame))
    }

    /// The body of those kinds that have a number.
    pub fn number(&self) -> io::Result<i32> {
        let bytes = self.body.as_slice().try_into();
        let bytes = bytes.map_err(|_| invalid(format!("a number of {} bytes", self.body.len())))?;
        Ok(i32::from_le_bytes(bytes))
    }
}

impl TryFrom<u8> for Kind {
    type Error = io::Error;

    fn try_from(byte: u8) -> io::Result<Self> {
        use Kind::*;
        const ALL: [Kind; 10] = [
            Hello, Spawn, Started, Refused, Stdin, Stdout, Stderr, Exit, Signal, Hangup,
        ];
        ALL.into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or_else(|| invalid(format!("a frame of kind {byte}")))
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way() {
        let frames = [
            Frame::new(0, Kind::Hello, "{}"),
            Frame::new(7, Kind::Stdin, []),
            Frame::new(u32::MAX, Kind::Exit, 256_i32.to_le_bytes()),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut reader = bytes.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut reader).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut reader).unwrap(), None);
        assert_eq!(frames[2].number().unwrap(), 256);
        assert!(frames[1].number().is_err());
    }

    #[test]
    fn a_frame_cut_short_or_out_of_range_is_an_error() {
        let mut bytes = Vec::new();
        Frame::new(1, Kind::Stdout, "hello")
            .write(&mut bytes)
            .unwrap();
        for end in 1..bytes.len() {
            assert!(Frame::read(&mut &bytes[..end]).is_err(), "cut at {end}");
        }
        let mut unknown = bytes.clone();
        unknown[8] = 99;
        assert!(Frame::read(&mut unknown.as_slice()).is_err());
        let mut long = bytes;
        long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Frame::read(&mut long.as_slice()).is_err());
    }
}
