//! Held packets in memory, bounded.
use std::collections::VecDeque;

use super::Packet;

/// How much is held at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes of packets, headers included.
    pub bytes: usize,
    /// Packets.
    pub packets: usize,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            packets: 1 << 20,
        }
    }
}

/// Packets in the order in which they came. What does not fit is dropped and counted.
#[derive(Debug)]
pub struct Queue {
    packets: VecDeque<Packet>,
    bytes: usize,
    limit: Limit,
    dropped: u64,
}

impl Queue {
    /// An empty one. With a limit of 0 it drops everything.
    #[must_use]
    pub fn new(limit: Limit) -> Self {
        Self {
            packets: VecDeque::new(),
            bytes: 0,
            limit,
            dropped: 0,
        }
    }

    /// Appends a packet; false if it did not fit.
    pub fn push(&mut self, packet: Packet) -> bool {
        let bytes = self.bytes + packet.as_bytes().len();
        if bytes > self.limit.bytes || self.packets.len() >= self.limit.packets {
            self.dropped += 1;
            return false;
        }
        self.bytes = bytes;
        self.packets.push_back(packet);
        true
    }

    /// The packet that came first.
    pub fn pop(&mut self) -> Option<Packet> {
        let packet = self.packets.pop_front()?;
        self.bytes -= packet.as_bytes().len();
        Some(packet)
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

    /// Packets that did not fit.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(length: usize) -> Packet {
        Packet::from_bytes(vec![0; length]).expect("a packet")
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let mut queue = Queue::new(Limit {
            bytes: 250,
            packets: 3,
        });
        assert!(queue.push(packet(100)) && queue.push(packet(150)));
        assert!(!queue.push(packet(24)), "a byte too many");
        assert_eq!((queue.len(), queue.bytes(), queue.dropped()), (2, 250, 1));
        assert_eq!(queue.pop(), Some(packet(100)));
        assert!(queue.push(packet(24)) && queue.push(packet(24)));
        assert!(!queue.push(packet(24)), "a packet too many");
        assert_eq!((queue.len(), queue.bytes(), queue.dropped()), (3, 198, 2));
    }

    #[test]
    fn a_limit_of_zero_drops_everything() {
        let mut queue = Queue::new(Limit {
            bytes: 0,
            packets: 10,
        });
        assert!(!queue.push(packet(24)));
        assert!(queue.is_empty() && queue.pop().is_none() && queue.dropped() == 1);
    }
}
