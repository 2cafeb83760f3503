//! How a command is asked of a host's PID 1, over a unix socket, one connection a command.
//!
//! ```text
//! caller                                  PID 1
//!   length (u32) with three descriptors ->
//!   Request, JSON                       ->
//!                                       <- Started(pid) or Refused(errno)
//!   signal (u8), any number             ->
//!                                       <- Ended(wait status)
//! ```
//! Closing the connection kills the command and its process group, unless it is detached.
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

/// Longest request: more than any command line that the kernel takes by default.
const LONGEST: usize = 4 << 20;

/// A command to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub directory: Option<String>,
    pub detached: bool,
}

/// What PID 1 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Started(i32),
    Refused(i32),
    Ended(i32),
}

/// Asks for a command that reads and writes the three descriptors.
pub fn send(stream: &mut UnixStream, request: &Request, stdio: [RawFd; 3]) -> io::Result<()> {
    let body = serde_json::to_vec(request)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&length.to_le_bytes())],
        &[ControlMessage::ScmRights(&stdio)],
        MsgFlags::empty(),
        None,
    )?;
    stream.write_all(&body)
}

/// The other end of [`send`].
pub fn receive(stream: &mut UnixStream) -> io::Result<(Request, [OwnedFd; 3])> {
    let mut length = [0; 4];
    let mut space = nix::cmsg_space!([RawFd; 3]);
    let mut descriptors = Vec::new();
    let received = {
        let mut parts = [IoSliceMut::new(&mut length)];
        let message = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel made these descriptors for this process just now; nobody else holds them.
                descriptors.extend(fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
            }
        }
        message.bytes
    };
    let stdio = <[OwnedFd; 3]>::try_from(descriptors)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not three descriptors"))?;
    stream.read_exact(&mut length[received..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "request too long",
        ));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, stdio))
}

impl Answer {
    /// Writes it: one byte of kind, four of value, little-endian.
    pub fn write(self, mut to: impl Write) -> io::Result<()> {
        let (kind, value) = match self {
            Self::Started(pid) => (b'S', pid),
            Self::Refused(errno) => (b'R', errno),
            Self::Ended(status) => (b'E', status),
        };
        let [a, b, c, d] = value.to_le_bytes();
        to.write_all(&[kind, a, b, c, d])
    }

    /// Reads one.
    pub fn read(mut from: impl Read) -> io::Result<Self> {
        let mut bytes = [0; 5];
        from.read_exact(&mut bytes)?;
        let [kind, a, b, c, d] = bytes;
        let value = i32::from_le_bytes([a, b, c, d]);
        match kind {
            b'S' => Ok(Self::Started(value)),
            b'R' => Ok(Self::Refused(value)),
            b'E' => Ok(Self::Ended(value)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "unknown answer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, os::fd::AsRawFd as _};

    use super::*;

    #[test]
    fn a_request_arrives_with_its_descriptors() {
        let (mut near, mut far) = UnixStream::pair().expect("a socket pair");
        let zero = File::open("/dev/zero").expect("/dev/zero");
        let request = Request {
            argv: vec!["echo".to_owned(), "x".repeat(100_000)],
            env: vec![("K".to_owned(), "V".to_owned())],
            directory: None,
            detached: true,
        };
        let sender = std::thread::spawn(move || {
            send(&mut near, &request, [zero.as_raw_fd(); 3]).expect("sent");
        });
        let (got, [stdin, _, _]) = receive(&mut far).expect("received");
        sender.join().expect("sender");
        assert_eq!(got.argv[1].len(), 100_000);
        assert!(got.detached);
        let mut byte = [1];
        File::from(stdin)
            .read_exact(&mut byte)
            .expect("a byte of /dev/zero");
        assert_eq!(byte, [0]);
    }

    #[test]
    fn a_request_without_descriptors_or_too_long_is_refused() {
        let (mut near, mut far) = UnixStream::pair().expect("a socket pair");
        near.write_all(&u32::MAX.to_le_bytes()).expect("written");
        assert_eq!(
            receive(&mut far).expect_err("no descriptors").kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn answers_read_back() {
        for answer in [Answer::Started(7), Answer::Refused(2), Answer::Ended(0x100)] {
            let mut bytes = Vec::new();
            answer.write(&mut bytes).expect("written");
            assert_eq!(Answer::read(bytes.as_slice()).expect("read"), answer);
        }
    }
}
