//! What the keeper says in the container's name, as a frame.
use netmig_common::FlowKey;

use super::segment;

/// An acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub key: FlowKey,
    pub seq: u32,
    pub ack: u32,
    /// As it stands in the header.
    pub window: u16,
    /// TSval, TSecr.
    pub stamps: Option<(u32, u32)>,
}

impl Ack {
    /// Answers the frame whose IP header begins at `ip`: its link header turned round, with its tags.
    pub(super) fn frame(&self, to: &[u8], ip: usize) -> Vec<u8> {
        let v6 = to[ip - 2..ip] == [0x86, 0xdd];
        let tcp = self.segment(v6);
        let mut frame = Vec::with_capacity(ip + 40 + tcp.len());
        frame.extend_from_slice(&to[6..12]);
        frame.extend_from_slice(&to[..6]);
        frame.extend_from_slice(&to[12..ip]);
        // 12 words at most.
        let length = tcp.len() as u16;
        if v6 {
            frame.extend_from_slice(&[0x60, 0, 0, 0]);
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(&[6, 64]);
            frame.extend_from_slice(&self.key.container);
            frame.extend_from_slice(&self.key.peer);
        } else {
            let mut header = [
                0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ];
            header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
            header[12..16].copy_from_slice(&self.key.container[12..]);
            header[16..].copy_from_slice(&self.key.peer[12..]);
            let mut sum: u32 = header
                .chunks(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum();
            sum = (sum & 0xffff) + (sum >> 16);
            sum = (sum & 0xffff) + (sum >> 16);
            header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            frame.extend_from_slice(&header);
        }
        frame.extend_from_slice(&tcp);
        frame
    }

    fn segment(&self, v6: bool) -> Vec<u8> {
        const ACK: u8 = 0x10;
        let words: u8 = if self.stamps.is_some() { 8 } else { 5 };
        let mut tcp = Vec::with_capacity(32);
        tcp.extend_from_slice(&self.key.container_port.to_be_bytes());
        tcp.extend_from_slice(&self.key.peer_port.to_be_bytes());
        tcp.extend_from_slice(&self.seq.to_be_bytes());
        tcp.extend_from_slice(&self.ack.to_be_bytes());
        tcp.extend_from_slice(&[words << 4, ACK]);
        tcp.extend_from_slice(&self.window.to_be_bytes());
        tcp.extend_from_slice(&[0; 4]);
        if let Some((tsval, tsecr)) = self.stamps {
            tcp.extend_from_slice(&[1, 1, 8, 10]);
            tcp.extend_from_slice(&tsval.to_be_bytes());
            tcp.extend_from_slice(&tsecr.to_be_bytes());
        }
        let sum = !segment::sum(&self.key, v6, &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }
}
