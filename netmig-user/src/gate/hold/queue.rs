//! Held packets in memory, bounded.
use std::collections::VecDeque;

use super::{Counts, Packet};

/// How much is held at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes of packets, headers included.
    pub bytes: usize,
    /// Packets.
    pub packets: usize,
}

impl Limit {
    /// So many bytes; packets by default.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Self {
        Self {
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            ..Self::default()
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            packets: 1 << 20,
        }
    }
}

/// Packets in the order in which they came, each with the link that it came in at. What does not fit is dropped and counted.
#[derive(Debug)]
pub struct Queue {
    packets: VecDeque<(u16, Packet)>,
    bytes: usize,
    limit: Limit,
    dropped: Counts,
}

impl Queue {
    /// An empty one. With a limit of 0 it drops everything.
    #[must_use]
    pub fn new(limit: Limit) -> Self {
        Self {
            packets: VecDeque::new(),
            bytes: 0,
            limit,
            dropped: Counts::default(),
        }
    }

    /// Appends a packet; false if it did not fit.
    pub fn push(&mut self, link: u16, packet: Packet) -> bool {
        let bytes = self.bytes + packet.as_bytes().len();
        if bytes > self.limit.bytes || self.packets.len() >= self.limit.packets {
            self.dropped.add(packet.parse().protocol);
            return false;
        }
        self.bytes = bytes;
        self.packets.push_back((link, packet));
        true
    }

    /// The packet that came first.
    pub fn pop(&mut self) -> Option<(u16, Packet)> {
        let (link, packet) = self.packets.pop_front()?;
        self.bytes -= packet.as_bytes().len();
        Some((link, packet))
    }

    /// The packet at a place, counted from the one that came first.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<&(u16, Packet)> {
        self.packets.get(place)
    }

    /// Packets in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// None in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Bytes in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Half of what it takes, or more, is in it.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.bytes >= self.limit.bytes / 2 || self.packets.len() >= self.limit.packets / 2
    }

    /// Packets that did not fit.
    #[must_use]
    pub fn dropped(&self) -> Counts {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn packet(length: usize) -> Packet {
        Packet::from_bytes(vec![0; length]).expect("a packet")
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let mut queue = Queue::new(Limit {
            bytes: 250,
            packets: 3,
        });
        assert!(queue.push(1, packet(100)) && queue.push(2, packet(150)));
        assert!(!queue.push(1, packet(24)), "a byte too many");
        assert_eq!(
            (queue.len(), queue.bytes(), queue.dropped().total()),
            (2, 250, 1)
        );
        assert_eq!(queue.get(1), Some(&(2, packet(150))));
        assert_eq!(queue.pop(), Some((1, packet(100))));
        assert!(queue.push(1, packet(24)) && queue.push(1, packet(24)));
        assert!(!queue.push(1, packet(24)), "a packet too many");
        assert_eq!(
            (queue.len(), queue.bytes(), queue.dropped().total()),
            (3, 198, 2)
        );
    }

    #[test]
    fn a_limit_of_zero_drops_everything_by_protocol() {
        let mut queue = Queue::new(Limit::of_bytes(0));
        let eth =
            || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 10], 64);
        let mut held = vec![0; super::super::HEADER];
        eth().udp(1, 2).write(&mut held, b"x").expect("a packet");
        for _ in 0..2 {
            assert!(!queue.push(1, Packet::from_bytes(held.clone()).expect("a packet")));
        }
        held.truncate(super::super::HEADER);
        eth()
            .tcp(1, 2, 3, 4)
            .write(&mut held, b"x")
            .expect("a packet");
        assert!(!queue.push(1, Packet::from_bytes(held).expect("a packet")));
        assert!(queue.is_empty() && queue.pop().is_none());
        assert_eq!(queue.dropped().four(), [1, 2, 0, 0]);
    }
}
