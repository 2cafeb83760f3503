//! Frames to bytes and back.
use super::{CHUNK_LIMIT, Chunk, Frame, HELD_LIMIT, Held, PAGE, RUNS_LIMIT};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio_util::codec::{Decoder, Encoder};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"NMIG";
/// Version of the header and of the kinds. What the bodies mean is [`crate::proto::PROTOCOL`]'s.
pub const VERSION: u16 = 1;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = size_of::<Header>();

const CHUNK_HEAD: usize = 12;
const RESERVE_STEP: usize = 1 << 20;

/// What a frame carries; the number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// [`Frame::Hello`]
    Hello = 1,
    /// [`Frame::ToTarget`]
    ToTarget = 2,
    /// [`Frame::ToSource`]
    ToSource = 3,
    /// [`Frame::FileBegin`]
    FileBegin = 4,
    /// [`Frame::Chunk`]
    Chunk = 5,
    /// [`Frame::FileEnd`]
    FileEnd = 6,
    /// [`Frame::FileGot`]
    FileGot = 7,
    /// [`Frame::HoldBegin`]
    HoldBegin = 8,
    /// [`Frame::Held`]
    Held = 9,
    /// [`Frame::HoldMark`]
    HoldMark = 10,
    /// [`Frame::HoldDone`]
    HoldDone = 11,
    /// [`Frame::Pages`]
    Pages = 12,
    /// [`Frame::PageRefs`]
    PageRefs = 13,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 13] = [
        Self::Hello,
        Self::ToTarget,
        Self::ToSource,
        Self::FileBegin,
        Self::Chunk,
        Self::FileEnd,
        Self::FileGot,
        Self::HoldBegin,
        Self::Held,
        Self::HoldMark,
        Self::HoldDone,
        Self::Pages,
        Self::PageRefs,
    ];

    /// Longest body in bytes.
    pub const fn limit(self) -> usize {
        match self {
            Self::Hello => 64 << 10,
            // All sockets with their queues are one message.
            Self::ToTarget => 256 << 20,
            Self::ToSource => 4 << 20,
            Self::FileBegin | Self::FileGot => 8 << 10,
            Self::Chunk => CHUNK_HEAD + CHUNK_LIMIT,
            Self::Held => HELD_LIMIT,
            Self::HoldDone => 128,
            Self::FileEnd | Self::HoldBegin | Self::HoldMark => 64,
            Self::Pages => CHUNK_LIMIT,
            // Two numbers of at most 5 bytes a run.
            Self::PageRefs => 32 + RUNS_LIMIT * 10,
        }
    }

    fn from_wire(kind: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u16 == kind)
    }
}

/// A frame that cannot be written or believed. After an error in reading the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not our protocol at all.
    #[error(
        "no netmig frame: it begins with {0:02x?}; does the remote command print something before it starts the agent?"
    )]
    Magic([u8; 4]),
    /// Another frame format.
    #[error(
        "the other host speaks frame version {0}, this one {VERSION}: install the same netmig on both hosts"
    )]
    Version(u16),
    /// A kind that this version does not have.
    #[error("frame of unknown kind {0}")]
    Kind(u16),
    /// Over the limit of its kind.
    #[error("{kind:?} frame of {length} bytes, the limit is {}", kind.limit())]
    TooLong {
        /// Its kind.
        kind: Kind,
        /// Its length.
        length: usize,
    },
    /// Changed on its way.
    #[error("{kind:?} frame with checksum {got:08x}, {expected:08x} was computed")]
    Checksum {
        /// Its kind.
        kind: Kind,
        /// What it says.
        got: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// A body that is none of its kind.
    #[error("{kind:?} frame that cannot be understood")]
    Body {
        /// Its kind.
        kind: Kind,
        /// Why.
        source: postcard::Error,
    },
    /// A body with something behind its end, or a chunk without its head.
    #[error("{kind:?} frame of a wrong length")]
    Length {
        /// Its kind.
        kind: Kind,
    },
    /// The stream ended within a frame, or could not be read.
    #[error("the connection could not be read or written")]
    Io(#[from] io::Error),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    length: U32,
    crc: U32,
}

/// Decoder and encoder of [`Frame`]s, for `tokio_util::codec::Framed` or by hand.
#[derive(Clone, Debug, Default)]
pub struct Codec {
    /// The header of the frame whose body is awaited.
    pending: Option<(Kind, Header)>,
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header")
            .field("length", &self.length.get())
            .finish_non_exhaustive()
    }
}

impl Decoder for Codec {
    type Item = Frame;
    type Error = Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame>, Error> {
        let (kind, header) = match self.pending {
            Some(pending) => pending,
            None => {
                // Said before the header is whole: a banner may be shorter than one.
                if let Some(magic) = bytes.first_chunk()
                    && *magic != MAGIC
                {
                    return Err(Error::Magic(*magic));
                }
                let Ok((header, _)) = Header::read_from_prefix(bytes) else {
                    return Ok(None);
                };
                let pending = (check(&header)?, header);
                bytes.advance(HEADER_LEN);
                *self.pending.insert(pending)
            }
        };
        let length = header.length.get() as usize;
        if bytes.len() < length {
            // In steps: a header alone must not make us hold the whole limit.
            bytes.reserve((length - bytes.len()).min(RESERVE_STEP));
            return Ok(None);
        }
        self.pending = None;
        let body = bytes.split_to(length).freeze();
        let (got, expected) = (header.crc.get(), checksum(&header, &[&body]));
        if got != expected {
            return Err(Error::Checksum {
                kind,
                got,
                expected,
            });
        }
        parse(kind, body).map(Some)
    }
}

impl Encoder<&Frame> for Codec {
    type Error = Error;

    fn encode(&mut self, frame: &Frame, bytes: &mut BytesMut) -> Result<(), Error> {
        match frame {
            Frame::Hello(body) => put(Kind::Hello, body, bytes),
            Frame::ToTarget(body) => put(Kind::ToTarget, body, bytes),
            Frame::ToSource(body) => put(Kind::ToSource, body, bytes),
            Frame::FileBegin(body) => put(Kind::FileBegin, body, bytes),
            Frame::FileEnd(body) => put(Kind::FileEnd, body, bytes),
            Frame::FileGot(body) => put(Kind::FileGot, body, bytes),
            Frame::HoldBegin(body) => put(Kind::HoldBegin, body, bytes),
            Frame::HoldMark(body) => put(Kind::HoldMark, body, bytes),
            Frame::HoldDone(body) => put(Kind::HoldDone, body, bytes),
            Frame::Held(held) => put_parts(Kind::Held, &[&held.encode()], bytes),
            Frame::PageRefs(body) => put(Kind::PageRefs, body, bytes),
            Frame::Pages(data) => put_parts(Kind::Pages, &[data], bytes),
            Frame::Chunk(Chunk { file, offset, data }) => {
                let mut head = [0; CHUNK_HEAD];
                head[..4].copy_from_slice(&file.to_le_bytes());
                head[4..].copy_from_slice(&offset.to_le_bytes());
                put_parts(Kind::Chunk, &[&head, data], bytes)
            }
        }
    }
}

impl Encoder<Frame> for Codec {
    type Error = Error;

    fn encode(&mut self, frame: Frame, bytes: &mut BytesMut) -> Result<(), Error> {
        self.encode(&frame, bytes)
    }
}

fn check(header: &Header) -> Result<Kind, Error> {
    if header.version.get() != VERSION {
        return Err(Error::Version(header.version.get()));
    }
    let kind = Kind::from_wire(header.kind.get()).ok_or(Error::Kind(header.kind.get()))?;
    let length = header.length.get() as usize;
    if length > kind.limit() {
        return Err(Error::TooLong { kind, length });
    }
    Ok(kind)
}

fn parse(kind: Kind, body: Bytes) -> Result<Frame, Error> {
    Ok(match kind {
        Kind::Hello => Frame::Hello(understand(kind, &body)?),
        Kind::ToTarget => Frame::ToTarget(understand(kind, &body)?),
        Kind::ToSource => Frame::ToSource(understand(kind, &body)?),
        Kind::FileBegin => Frame::FileBegin(understand(kind, &body)?),
        Kind::FileEnd => Frame::FileEnd(understand(kind, &body)?),
        Kind::FileGot => Frame::FileGot(understand(kind, &body)?),
        Kind::HoldBegin => Frame::HoldBegin(understand(kind, &body)?),
        Kind::HoldMark => Frame::HoldMark(understand(kind, &body)?),
        Kind::HoldDone => Frame::HoldDone(understand(kind, &body)?),
        Kind::Held => Frame::Held(Held::decode(body).ok_or(Error::Length { kind })?),
        Kind::PageRefs => Frame::PageRefs(understand(kind, &body)?),
        Kind::Pages if body.len().is_multiple_of(PAGE) => Frame::Pages(body),
        Kind::Pages => return Err(Error::Length { kind }),
        Kind::Chunk => {
            let mut data = body;
            let wrong = |_| Error::Length { kind };
            let (file, offset) = (
                data.try_get_u32_le().map_err(wrong)?,
                data.try_get_u64_le().map_err(wrong)?,
            );
            Frame::Chunk(Chunk { file, offset, data })
        }
    })
}

fn understand<T: DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(Error::Length { kind }),
        Err(source) => Err(Error::Body { kind, source }),
    }
}

fn put<T: Serialize>(kind: Kind, body: &T, bytes: &mut BytesMut) -> Result<(), Error> {
    let body = postcard::to_stdvec(body).map_err(|source| Error::Body { kind, source })?;
    put_parts(kind, &[&body], bytes)
}

fn put_parts(kind: Kind, body: &[&[u8]], bytes: &mut BytesMut) -> Result<(), Error> {
    let length = body.iter().map(|part| part.len()).sum();
    let short = u32::try_from(length)
        .ok()
        .filter(|_| length <= kind.limit())
        .ok_or(Error::TooLong { kind, length })?;
    let mut header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        kind: (kind as u16).into(),
        length: short.into(),
        crc: 0.into(),
    };
    header.crc = checksum(&header, body).into();
    bytes.reserve(HEADER_LEN + length);
    bytes.put_slice(header.as_bytes());
    body.iter().for_each(|part| bytes.put_slice(part));
    Ok(())
}

fn checksum(header: &Header, body: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header.as_bytes()[..HEADER_LEN - size_of::<U32>()]);
    body.iter().for_each(|part| crc.update(part));
    crc.finalize()
}

#[cfg(test)]
mod tests;
