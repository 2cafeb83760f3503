//! One small netlink socket (rtnetlink, nfnetlink): a request, a dump, and the kernel's words when it refuses.
use std::io;

use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE},
};

use super::attr::{Attrs, Message, align, u16_at, u32_at};

const HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// A dump that changes under the reader is read again this often.
const DUMP_TRIES: usize = 16;
/// More than the kernel puts into one datagram: 32 KiB of a dump (netlink_recvmsg()), or one message, the longest of which is that of a
/// device with all its virtual functions (rtnl_calcit()). A dump comes in pieces as large as the reader has shown to take.
const DATAGRAM: usize = 1 << 20;

/// What the kernel, or its answer, had against a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The kernel refused.
    #[error("{}{}", io::Error::from_raw_os_error(*.errno), if .text.is_empty() { String::new() } else { format!(": {}", .text) })]
    Kernel {
        /// errno.
        errno: i32,
        /// Its extended acknowledgement, if it gave one.
        text: String,
    },
    /// The answer is not what the protocol says.
    #[error("the kernel's answer cannot be read: {0}")]
    Malformed(String),
}

impl Error {
    /// The kernel's errno, if it answered with one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Io(e) => e.raw_os_error(),
            Self::Malformed(_) => None,
        }
    }
}

/// A socket in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    seq: u32,
    datagram: Vec<u8>,
}

/// One message of an answer.
pub struct Reply {
    /// RTM_*.
    pub kind: u16,
    body: Vec<u8>,
}

impl Reply {
    /// The fixed header of `N` bytes and the attributes behind it.
    pub fn split<const N: usize>(&self) -> Result<([u8; N], Attrs<'_>), Error> {
        match self.body.split_first_chunk::<N>() {
            Some((header, rest)) => Ok((*header, Attrs(rest))),
            None => Err(Error::Malformed(format!(
                "message {} has {} bytes, {N} expected",
                self.kind,
                self.body.len()
            ))),
        }
    }
}

impl Netlink {
    /// Opens one for links, addresses, routes.
    pub fn open() -> Result<Self, Error> {
        Self::of(NETLINK_ROUTE)
    }

    /// Opens one for the packet filter and its connections.
    pub fn netfilter() -> Result<Self, Error> {
        Self::of(NETLINK_NETFILTER)
    }

    /// Opens one for protocols that have a name.
    pub fn generic() -> Result<Self, Error> {
        Self::of(NETLINK_GENERIC)
    }

    fn of(protocol: isize) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        // A kernel without strict checking (before 4.20) ignores the filters of a dump, and the readers filter again.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self {
            socket,
            seq: 0,
            datagram: Vec::with_capacity(DATAGRAM),
        })
    }

    /// A request that the kernel only acknowledges. `flags` are NLM_F_CREATE and the like.
    pub fn request(&mut self, kind: u16, flags: i32, body: Message) -> Result<(), Error> {
        let seq = self.send(kind, flags | libc::NLM_F_ACK, body.as_bytes())?;
        self.answers(seq, |_| Ok(())).map(|_| ())
    }

    /// A request for one object.
    pub fn get(&mut self, kind: u16, body: Message) -> Result<Option<Reply>, Error> {
        let seq = self.send(kind, libc::NLM_F_ACK, body.as_bytes())?;
        let mut found = None;
        self.answers(seq, |reply| {
            found = Some(reply);
            Ok(())
        })?;
        Ok(found)
    }

    /// All objects of a kind.
    pub fn dump(&mut self, kind: u16, body: &Message) -> Result<Vec<Reply>, Error> {
        for _ in 0..DUMP_TRIES {
            let seq = self.send(kind, libc::NLM_F_DUMP, body.as_bytes())?;
            let mut all = Vec::new();
            let interrupted = self.answers(seq, |reply| {
                all.push(reply);
                Ok(())
            })?;
            if !interrupted {
                return Ok(all);
            }
        }
        Err(Error::Malformed(format!(
            "the tables changed during each of {DUMP_TRIES} dumps"
        )))
    }

    /// Requests of one subsystem of nfnetlink that are done together or not at all (nfnetlink_rcv_batch()): kind, flags and body of each.
    pub fn batch(&mut self, subsystem: u16, requests: &[(u16, i32, Message)]) -> Result<(), Error> {
        let Some(last) = requests.len().checked_sub(1) else {
            return Ok(());
        };
        self.seq = self.seq.wrapping_add(1);
        let [high, low] = subsystem.to_be_bytes();
        // struct nfgenmsg: the subsystem is in the place of a resource's id.
        let edge = [0, 0, high, low];
        let mut all = message(NFNL_MSG_BATCH_BEGIN, 0, self.seq, &edge)?;
        for (n, (kind, flags, body)) in requests.iter().enumerate() {
            // One acknowledgement is for all: whichever is refused says so before.
            let flags = flags | if n == last { libc::NLM_F_ACK } else { 0 };
            all.extend(message(*kind, flags, self.seq, body.as_bytes())?);
        }
        all.extend(message(NFNL_MSG_BATCH_END, 0, self.seq, &edge)?);
        self.socket.send(&all, 0)?;
        self.answers(self.seq, |_| Ok(())).map(|_| ())
    }

    fn send(&mut self, kind: u16, flags: i32, body: &[u8]) -> Result<u32, Error> {
        self.seq = self.seq.wrapping_add(1);
        self.socket
            .send(&message(kind, flags, self.seq, body)?, 0)?;
        Ok(self.seq)
    }

    /// Reads until the request `seq` is answered in full; true if a dump was interrupted.
    fn answers(
        &mut self,
        seq: u32,
        mut each: impl FnMut(Reply) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let mut interrupted = false;
        loop {
            self.datagram.clear();
            let length = self.socket.recv(&mut self.datagram, libc::MSG_TRUNC)?;
            if length > self.datagram.len() {
                return Err(Error::Malformed(format!("a datagram of {length} bytes")));
            }
            let mut rest = &self.datagram[..];
            while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
                let length = u32_at(header, 0) as usize;
                if length < HEADER || length > rest.len() {
                    return Err(Error::Malformed(format!(
                        "message of {length} bytes in a datagram with {} left",
                        rest.len()
                    )));
                }
                let (kind, flags) = (u16_at(header, 4), u16_at(header, 6));
                let body = &rest[HEADER..length];
                let mine = u32_at(header, 8) == seq;
                rest = &rest[align(length).min(rest.len())..];
                if !mine {
                    continue; // the rest of a dump that was given up
                }
                interrupted |= i32::from(flags) & libc::NLM_F_DUMP_INTR != 0;
                match i32::from(kind) {
                    libc::NLMSG_DONE => {
                        let errno = body.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                        return if errno < 0 {
                            Err(Error::Kernel {
                                errno: -errno,
                                text: String::new(),
                            })
                        } else {
                            Ok(interrupted)
                        };
                    }
                    libc::NLMSG_ERROR => return refusal(flags, body).map(|()| interrupted),
                    libc::NLMSG_NOOP => {}
                    _ => each(Reply {
                        kind,
                        body: body.to_vec(),
                    })?,
                }
            }
        }
    }
}

/// A request with its header, up to where the next one could begin.
fn message(kind: u16, flags: i32, seq: u32, body: &[u8]) -> Result<Vec<u8>, Error> {
    let length = u32::try_from(HEADER + body.len())
        .map_err(|_| Error::Malformed("request too long".into()))?;
    let mut message = Vec::with_capacity(align(HEADER + body.len()));
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    // The flags fit: they are those of a 16-bit field.
    message.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    message.extend(seq.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    message.resize(align(message.len()), 0);
    Ok(message)
}

fn refusal(flags: u16, body: &[u8]) -> Result<(), Error> {
    let Some((code, original)) = body.split_first_chunk::<4>() else {
        return Err(Error::Malformed("an error without a number".into()));
    };
    let errno = -i32::from_ne_bytes(*code);
    if errno == 0 {
        return Ok(());
    }
    // The request comes back, whole unless capped, and behind it the attributes of the extended acknowledgement.
    let mut text = String::new();
    if i32::from(flags) & libc::NLM_F_ACK_TLVS != 0
        && let Some(header) = original.first_chunk::<HEADER>()
    {
        let echoed = if i32::from(flags) & libc::NLM_F_CAPPED != 0 {
            HEADER
        } else {
            u32_at(header, 0) as usize
        };
        for attr in Attrs(original.get(align(echoed)..).unwrap_or_default()).flatten() {
            if attr.kind == NLMSGERR_ATTR_MSG {
                text = attr.text();
            }
        }
    }
    Err(Error::Kernel { errno, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let mut body = (-17i32).to_ne_bytes().to_vec();
        let mut request = [0u8; HEADER];
        request[..4].copy_from_slice(&(HEADER as u32).to_ne_bytes());
        body.extend(request);
        body.extend(
            Message::default()
                .text(NLMSGERR_ATTR_MSG, "name already in use")
                .as_bytes(),
        );
        let error = refusal(libc::NLM_F_ACK_TLVS as u16, &body).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST));
        assert!(
            error.to_string().ends_with(": name already in use"),
            "{error}"
        );
    }
}
