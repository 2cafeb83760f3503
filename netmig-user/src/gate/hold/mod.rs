//! The hold: inbound packets that come while the gate is closed are kept, whole and in order, and given to the container behind the gate
//! that opens.
//!
//! The program redirects them to a TAP ([`Reader`]), which user space reads; an [`Injector`] puts them in at the host's end of the
//! container's veth, past the programs there. Both speak `virtio_net_hdr`: a super-packet stays whole, and a checksum that the sender
//! left to a device is finished by who needs it.
mod inject;
mod order;
mod parse;
mod queue;
mod tap;

pub use inject::Injector;
pub use order::Order;
pub use parse::{Counts, Parsed, in_words};
pub use queue::{Limit, Queue};
pub use tap::Reader;

use std::io;

use aya::maps::MapError;
use bytes::Bytes;

use super::{Error, Gate, Point};

/// Length of `struct virtio_net_hdr`.
const HEADER: usize = 10;

/// Longest frame that a TAP gives: an IP packet of 64 KiB with its link header and tags.
const FRAME_MAX: usize = 65_535 + 14 + 3 * 4;

/// A held packet as it travels: `virtio_net_hdr` (10 bytes, little endian hosts alike) and the Ethernet frame.
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet(Bytes);

impl Packet {
    /// The bytes as read from a [`Reader`] of another host.
    ///
    /// # Errors
    /// [`Error::BadPacket`] if they cannot be one: shorter than the headers or longer than any frame.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let bytes = bytes.into();
        if bytes.len() < HEADER + 14 || bytes.len() > HEADER + FRAME_MAX {
            return Err(Error::BadPacket {
                length: bytes.len(),
            });
        }
        Ok(Self(bytes))
    }

    /// Header and frame.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same to keep, without a copy.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// The frame alone.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.0[HEADER..]
    }

    /// What it is.
    #[must_use]
    pub fn parse(&self) -> Parsed {
        parse::parse(self.frame())
    }

    /// Bytes that it takes of a socket's receive buffer, at most about: what the kernel allocates (`struct sk_buff`, headroom,
    /// `skb_shared_info`, rounded up to a power of two; small ones come from a cache of their own), for each segment of a super-packet.
    #[must_use]
    pub fn truesize(&self) -> u64 {
        const OVERHEAD: usize = 448;
        const SK_BUFF: usize = 256;
        // SKB_SMALL_HEAD_CACHE_SIZE (net/core/skbuff.c, Linux 6.3): up to 704 by configuration; 576 was seen.
        const SMALL_HEAD: usize = 704;
        let one = |bytes: usize| (bytes + OVERHEAD).next_power_of_two().max(SMALL_HEAD) + SK_BUFF;
        let whole = self.frame().len();
        let segment = usize::from(u16::from_le_bytes([self.0[4], self.0[5]]));
        // VIRTIO_NET_HDR_GSO_NONE is 0.
        let bytes = if self.0[1] == 0 || segment == 0 {
            one(whole)
        } else {
            whole.div_ceil(segment) * one(segment)
        };
        bytes as u64
    }
}

impl Gate {
    /// From now on what comes in at `point` while the gate is closed goes to `reader`, which lies in the same namespace.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn hold(&self, point: &Point, reader: &Reader) -> Result<(), Error> {
        let mut holds = self
            .holds
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        holds
            .insert(point.ifindex, reader.ifindex(), 0)
            .map_err(|source| Error::Map {
                map: "HOLDS",
                source,
            })
    }

    /// What comes in at `point` while the gate is closed is dropped and counted from now on. To be called before its reader is dropped:
    /// packets that are redirected to a device that is gone are counted as held.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn end_hold(&self, point: &Point) -> Result<(), Error> {
        let mut holds = self
            .holds
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match holds.remove(&point.ifindex) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            removed => removed.map_err(|source| Error::Map {
                map: "HOLDS",
                source,
            }),
        }
    }

    /// `packets` of those that this gate redirected are put in, or given up: what [`Gate::open_in_order`] waits for. Packets that came
    /// from another host do not count.
    pub fn done(&self, packets: u64) {
        self.order().done(packets);
    }

    /// How many packets the programs have redirected that are not done.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.order().pending()
    }

    /// The counts of an opening, for threads.
    #[must_use]
    pub fn order(&self) -> Order {
        Order::new(&self.order, &self.word)
    }
}
