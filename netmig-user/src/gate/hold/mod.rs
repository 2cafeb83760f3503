//! The hold: inbound packets that come while the gate is closed are kept, whole and in order, and given to the container behind the gate
//! that opens.
//!
//! The program redirects them to a TAP ([`Reader`]), which user space reads; an [`Injector`] puts them in at the host's end of the
//! container's veth, past the programs there. Both speak `virtio_net_hdr`: a super-packet stays whole, and a checksum that the sender
//! left to a device is finished by who needs it.
mod inject;
mod queue;
mod tap;

pub use inject::Injector;
pub use queue::{Limit, Queue};
pub use tap::Reader;

use std::{io, sync::atomic::Ordering};

use aya::maps::MapError;

use super::{Error, Gate, Point};

/// Length of `struct virtio_net_hdr`.
const HEADER: usize = 10;

/// Longest frame that a TAP gives: an IP packet of 64 KiB with its link header and tags.
const FRAME_MAX: usize = 65_535 + 14 + 3 * 4;

/// A held packet as it travels: `virtio_net_hdr` (10 bytes, little endian hosts alike) and the Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Packet(Vec<u8>);

impl Packet {
    /// The bytes as read from a [`Reader`] of another host.
    ///
    /// # Errors
    /// [`Error::BadPacket`] if they cannot be one: shorter than the headers or longer than any frame.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Error> {
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

    /// The frame alone.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.0[HEADER..]
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
        self.order.counts()[netmig_common::DONE as usize].fetch_add(packets, Ordering::SeqCst);
    }

    /// How many packets the programs have redirected that are not done.
    #[must_use]
    pub fn pending(&self) -> u64 {
        let count = |index: u32| self.order.counts()[index as usize].load(Ordering::SeqCst);
        // In this order: what is done was redirected before.
        let done = count(netmig_common::DONE);
        count(netmig_common::REDIRECTED).saturating_sub(done)
    }
}
