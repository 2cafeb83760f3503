//! Held packets in a file, for whoever takes the move up if this agent dies: what was promised to a peer must not be lost with it.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use crate::gate::hold::Packet;

/// Link and length before each packet.
const HEAD: usize = 6;

/// A file of packets, each with its link (u16), its length (u32, both little endian) and its bytes.
#[derive(Debug)]
pub struct Store(File);

impl Store {
    /// An empty one.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        options.open(path).map(Self)
    }

    /// Appends packets. It survives the process, not the host.
    ///
    /// # Errors
    /// The file system's: then none of them counts as stored.
    pub fn append(&mut self, packets: &[(u16, Packet)]) -> io::Result<()> {
        let length = packets.iter().map(|(_, p)| HEAD + p.as_bytes().len()).sum();
        let mut bytes = Vec::with_capacity(length);
        for (link, packet) in packets {
            let packet = packet.as_bytes();
            bytes.extend_from_slice(&link.to_le_bytes());
            let length = u32::try_from(packet.len()).map_err(io::Error::other)?;
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(packet);
        }
        self.0.write_all(&bytes)
    }

    /// What an earlier process stored; nothing where it stored nothing. What it was just writing when it died was not promised.
    ///
    /// # Errors
    /// The file system's.
    pub fn read(path: &Path) -> io::Result<Vec<(u16, Packet)>> {
        let bytes = match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        let mut packets = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some((link, length)) = head(rest)
            && let Some(packet) = rest.get(HEAD..HEAD + length)
        {
            let packet = Packet::from_bytes(packet.to_vec()).map_err(io::Error::other)?;
            packets.push((link, packet));
            rest = &rest[HEAD + length..];
        }
        Ok(packets)
    }

    /// Removes it, once all that was promised is delivered.
    ///
    /// # Errors
    /// The file system's; that it is gone is none.
    pub fn remove(path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

fn head(bytes: &[u8]) -> Option<(u16, usize)> {
    let (link, rest) = bytes.split_first_chunk()?;
    let length = u32::from_le_bytes(*rest.first_chunk()?);
    Some((u16::from_le_bytes(*link), length as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(length: usize, fill: u8) -> Packet {
        Packet::from_bytes(vec![fill; length]).expect("a packet")
    }

    #[test]
    fn what_was_stored_is_read_and_what_was_cut_off_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("owned");
        assert!(Store::read(&path).expect("no file").is_empty());
        let mut store = Store::create(&path).expect("a file");
        let first = [(3, packet(40, 1)), (0, packet(60_000, 2))];
        store.append(&first).expect("stored");
        store.append(&[(1, packet(30, 3))]).expect("stored");
        let all = Store::read(&path).expect("read");
        assert_eq!(all[..2], first);
        assert_eq!(all.len(), 3);
        let bytes = fs::read(&path).expect("the file");
        for cut in [1, 29, 33, 36] {
            fs::write(&path, &bytes[..bytes.len() - cut]).expect("cut");
            assert_eq!(Store::read(&path).expect("read"), first, "{cut}");
        }
        Store::remove(&path).expect("removed");
        Store::remove(&path).expect("it is gone");
    }
}
