//! Held packets on their way to the target, on a connection of their own.
//!
//! ```text
//! source -- Hello{channel: Hold}, HoldBegin ------------------> target
//! source -- Held ... (from the closing on, as they come) -----> target
//! source <------------------------- HoldMark{Stored} ----------- target      as they come; the grant waits for what is owned
//!                                                               (opens, announces)
//! source <------------------------- HoldMark{Announced} ------- target
//! source -- Held ..., HoldMark{Announced} --------------------> target      direct packets are delivered from here on
//! source -- Held ..., HoldMark{Ended} ------------------------> target
//! source <------------------------- HoldDone ------------------ target
//! ```
//!
//! A source whose connection breaks before the grant opens another one and sends everything from the first packet on.
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Longest body of one [`Held`] in bytes: several packets travel in one frame where they come fast.
pub const HELD_LIMIT: usize = 1 << 20;

/// Link and length before each packet.
const HEAD: usize = 6;

/// What the source asks of the target's hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldBegin {
    /// Bytes of packets held at most.
    pub limit: u64,
    /// Longest wait of direct packets, from the opening on, for [`HoldPoint::Announced`]; in microseconds.
    pub barrier_us: u64,
}

/// Packets in the order in which they came, as many as a frame takes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Held {
    /// The packets.
    pub packets: Vec<HeldPacket>,
}

/// A packet that came while the gate was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldPacket {
    /// Where it came in: the place of the link in the move's [`Network`](crate::image::v1::net::Network), counted from 0.
    pub link: u16,
    /// `virtio_net_hdr` (10 bytes) and the Ethernet frame.
    pub data: Bytes,
}

/// How far the hand-over is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldPoint {
    /// From the target: the gate is open and the container's addresses are announced. From the source: all that came there before it
    /// heard so has been sent.
    Announced,
    /// From the source: nothing more comes.
    Ended,
    /// From the target: so many packets are stored, so that its agent's death does not lose them.
    Stored,
}

/// A mark between held packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldMark {
    /// Which.
    pub point: HoldPoint,
    /// Packets sent (or, with [`HoldPoint::Stored`], received) on this connection so far.
    pub packets: u64,
}

/// What the target's hold did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldDone {
    /// Packets that came from the source.
    pub received: u64,
    /// Packets that came to the target itself and were held, so that they overtook nothing.
    pub direct: u64,
    /// Packets given to the container, of both.
    pub replayed: u64,
    /// Packets that did not fit, or could not be put in: TCP, UDP, ICMP, others.
    pub dropped: [u64; 4],
    /// True where direct packets were delivered before the source's mark came.
    pub late: bool,
}

impl Held {
    /// Bytes that a packet takes in the body.
    pub fn room(data: &[u8]) -> usize {
        HEAD + data.len()
    }

    /// The body's bytes.
    pub(super) fn encode(&self) -> BytesMut {
        let length = self.packets.iter().map(|p| Self::room(&p.data)).sum();
        let mut body = BytesMut::with_capacity(length);
        for packet in &self.packets {
            body.put_u16_le(packet.link);
            // A body that is too long for its frame is refused as a whole.
            body.put_u32_le(u32::try_from(packet.data.len()).unwrap_or(u32::MAX));
            body.put_slice(&packet.data);
        }
        body
    }

    /// The packets of a body; none if it is cut short.
    pub(super) fn decode(mut body: Bytes) -> Option<Self> {
        let mut packets = Vec::new();
        while body.has_remaining() {
            let link = body.try_get_u16_le().ok()?;
            let length = body.try_get_u32_le().ok()? as usize;
            if length > body.len() {
                return None;
            }
            packets.push(HeldPacket {
                link,
                data: body.split_to(length),
            });
        }
        Some(Self { packets })
    }
}
