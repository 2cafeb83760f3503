//! Frames on every connection between two agents: a fixed header, then a body.
//!
//! ```text
//! header = "NMIG" version:u16 kind:u16 length:u32 crc:u32      16 bytes, little endian
//! crc    = CRC-32 of the header's first 12 bytes and the body
//! body   = postcard; of a chunk: file:u32 offset:u64 and then the bytes as they are;
//!          of held packets, each: link:u16 length:u32 and then its bytes as they are
//! ```
//!
//! The length is checked against the kind's own limit before anything is allocated for it.
mod codec;
mod held;
mod path;

pub use codec::{Codec, Error, HEADER_LEN, Kind, MAGIC, VERSION};
pub use held::{HELD_LIMIT, Held, HeldPacket, HoldBegin, HoldDone, HoldMark, HoldPoint};
pub use path::{BadPath, RelativePath};

use crate::proto::{Hello, Numbered, ToSource, ToTarget};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Longest run of bytes in one [`Chunk`].
pub const CHUNK_LIMIT: usize = 1 << 20;
/// Bytes of a memory page as it travels.
pub const PAGE: usize = 4096;
/// Most runs in one [`PageRefs`].
pub const RUNS_LIMIT: usize = 4096;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a connection.
    Hello(Box<Hello>),
    /// Control, to the target.
    ToTarget(Box<Numbered<ToTarget>>),
    /// Control, to the source.
    ToSource(Box<Numbered<ToSource>>),
    /// Bulk: a file begins, or goes on after a reconnection.
    FileBegin(FileBegin),
    /// Bulk: some of its bytes.
    Chunk(Chunk),
    /// Bulk: it is whole.
    FileEnd(FileEnd),
    /// Bulk: memory pages of a container that still runs, for [`Frame::PageRefs`] to point at. The pages of a connection are numbered from
    /// 0 in the order in which they come.
    Pages(Bytes),
    /// Bulk: bytes of a file that the target has already.
    PageRefs(PageRefs),
    /// Bulk, to the source: it arrived whole and is checked, so it need not be sent again.
    FileGot(FileGot),
    /// Hold: opens the flow of held packets.
    HoldBegin(HoldBegin),
    /// Hold: some packets.
    Held(Held),
    /// Hold, both ways: how far the hand-over is.
    HoldMark(HoldMark),
    /// Hold, to the source: what became of the packets.
    HoldDone(HoldDone),
}

/// A file begins. Files may be sent interleaved: an engine writes several at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileBegin {
    /// Names the file in its chunks; unique on this connection.
    pub file: u32,
    /// Where it goes, below the move's image directory.
    pub path: RelativePath,
    /// Permission bits.
    pub mode: u32,
    /// Where its first chunk goes; above 0 only to go on with a file that the target has up to there.
    pub offset: u64,
}

/// Bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// See [`FileBegin::file`].
    pub file: u32,
    /// Where in the file they go; holes are skipped over.
    pub offset: u64,
    /// The bytes, at most [`CHUNK_LIMIT`].
    pub data: Bytes,
}

/// Pages of a file that were sent before in [`Frame::Pages`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRefs {
    /// See [`FileBegin::file`].
    pub file: u32,
    /// Where in the file the first of them goes, in bytes.
    pub offset: u64,
    /// What follows there, one after another; at most [`RUNS_LIMIT`].
    pub runs: Vec<PageRun>,
}

/// Pages with consecutive numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// Number of the first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// A file is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEnd {
    /// See [`FileBegin::file`].
    pub file: u32,
    /// Its length in bytes.
    pub length: u64,
    /// CRC-32 of all its bytes, holes as zeros.
    pub crc: u32,
}

/// A file has arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileGot {
    /// Which.
    pub path: RelativePath,
    /// Its length in bytes.
    pub length: u64,
}
