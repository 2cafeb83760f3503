//! The journal's bytes: append-only records, each framed and checksummed. No file here: the driver writes, syncs and reads.
//!
//! ```text
//! journal = "NMIGJRN" version:u8, record*
//! record  = "JREC" length:u32 crc:u32 body      little endian; crc = CRC-32 of length and body; body = postcard
//! ```
//!
//! A crash in the middle of an append leaves a torn record at the end (short, or its last blocks full of zeros). It was never reported as
//! persisted, so it never was. Anything unreadable with a readable record after it is no torn append but damage, and is refused: what is
//! missing might be a grant.
use serde::{Serialize, de::DeserializeOwned};

/// First bytes of every journal.
pub const HEADER: [u8; 8] = *b"NMIGJRN\x01";
/// Longest body of one record in bytes.
pub const RECORD_LIMIT: usize = 64 << 20;

const MARK: [u8; 4] = *b"JREC";
const PREFIX: usize = 12;

/// What a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents<T> {
    /// The records, oldest first.
    pub records: Vec<T>,
    /// Length in bytes of what is whole. If the file is longer, its tail is torn: truncate to this before the next append.
    pub whole: usize,
}

/// A journal that cannot be written or trusted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a journal at all.
    #[error("not a journal: it begins with {found:02x?}")]
    Header {
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// A journal of another format.
    #[error("the journal has format {found}, this netmig reads {}: finish the move with the netmig that began it", HEADER[7])]
    Version {
        /// Its format.
        found: u8,
    },
    /// Damage in the middle.
    #[error(
        "the journal is damaged at byte {at}, with records after it; decide with `netmig-user recover`"
    )]
    Damaged {
        /// Where the unreadable part begins.
        at: usize,
    },
    /// A whole record whose body is none of the expected type.
    #[error("the record at byte {at} of the journal cannot be understood")]
    Body {
        /// Where the record begins.
        at: usize,
        /// Why.
        source: postcard::Error,
    },
    /// A record that cannot be encoded.
    #[error("the record cannot be encoded")]
    Encode(#[source] postcard::Error),
    /// A record that is too long.
    #[error("the record has {length} bytes, the limit is {RECORD_LIMIT}")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

/// The bytes to append for one record. [`HEADER`] comes before the first one.
pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, Error> {
    let body = postcard::to_stdvec(record).map_err(Error::Encode)?;
    let length = match u32::try_from(body.len()) {
        Ok(length) if body.len() <= RECORD_LIMIT => length.to_le_bytes(),
        _ => return Err(Error::TooLong { length: body.len() }),
    };
    let mut bytes = Vec::with_capacity(PREFIX + body.len());
    bytes.extend_from_slice(&MARK);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&checksum(&length, &body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Reads a whole journal. Fewer bytes than a header are an empty journal whose creation was torn.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Contents<T>, Error> {
    let mut contents = Contents {
        records: Vec::new(),
        whole: 0,
    };
    if bytes.len() < HEADER.len() && HEADER.starts_with(bytes) {
        return Ok(contents);
    }
    match bytes.first_chunk() {
        Some(&HEADER) => {}
        Some(&[ref name @ .., found]) if *name == HEADER[..7] => {
            return Err(Error::Version { found });
        }
        _ => {
            return Err(Error::Header {
                found: bytes[..bytes.len().min(HEADER.len())].to_vec(),
            });
        }
    }
    contents.whole = HEADER.len();
    while let Some(body) = record_at(bytes, contents.whole) {
        contents.records.push(understand(body, contents.whole)?);
        contents.whole += PREFIX + body.len();
    }
    let damaged = (contents.whole + 1..bytes.len()).any(|at| record_at(bytes, at).is_some());
    if damaged {
        Err(Error::Damaged { at: contents.whole })
    } else {
        Ok(contents)
    }
}

/// The body of the whole record that begins at `at`, if one does.
fn record_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?.strip_prefix(&MARK)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let body = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    (body.len() <= RECORD_LIMIT && checksum(length, body) == u32::from_le_bytes(*crc))
        .then_some(body)
}

fn understand<T: DeserializeOwned>(body: &[u8], at: usize) -> Result<T, Error> {
    match postcard::take_from_bytes(body) {
        Ok((record, [])) => Ok(record),
        Ok(_) => Err(Error::Body {
            at,
            source: postcard::Error::DeserializeBadEncoding,
        }),
        Err(source) => Err(Error::Body { at, source }),
    }
}

fn checksum(length: &[u8; 4], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(length);
    crc.update(body);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::Epoch, machine::source::Record};
    use proptest::prelude::*;

    fn sample() -> Vec<Record> {
        vec![
            Record::Begun(Epoch(1)),
            Record::Disarmed,
            Record::Granted,
            Record::Kept("the target gave up: no room".into()),
            Record::Closed,
        ]
    }

    fn journal(records: &[Record]) -> Vec<u8> {
        let mut bytes = HEADER.to_vec();
        for record in records {
            bytes.extend(encode(record).unwrap());
        }
        bytes
    }

    #[test]
    fn every_torn_length_gives_the_records_before_it() {
        let (records, bytes) = (sample(), journal(&sample()));
        for length in 0..=bytes.len() {
            let contents = decode::<Record>(&bytes[..length]).unwrap();
            assert_eq!(contents.records, records[..contents.records.len()]);
            assert!(contents.whole <= length);
            // Appending after the cut that `whole` names gives a good journal again.
            let mut again = if contents.whole == 0 {
                HEADER.to_vec()
            } else {
                bytes[..contents.whole].to_vec()
            };
            again.extend(encode(&Record::Released).unwrap());
            assert_eq!(
                decode::<Record>(&again).unwrap().records.last(),
                Some(&Record::Released)
            );
        }
        assert_eq!(decode::<Record>(&bytes).unwrap().records, records);
    }

    #[test]
    fn a_tail_of_zeros_is_torn() {
        let mut bytes = journal(&sample());
        let whole = bytes.len();
        bytes.extend(encode(&Record::Released).unwrap());
        bytes[whole + 6..].fill(0);
        bytes.extend([0; 500]);
        let contents = decode::<Record>(&bytes).unwrap();
        assert_eq!((contents.records, contents.whole), (sample(), whole));
    }

    #[test]
    fn a_changed_byte_in_the_middle_is_refused() {
        let bytes = journal(&sample());
        let last = bytes.len() - encode(&Record::Closed).unwrap().len();
        for at in HEADER.len()..last {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(
                matches!(decode::<Record>(&bad), Err(Error::Damaged { .. })),
                "byte {at}"
            );
        }
    }

    #[test]
    fn another_format_is_named() {
        let mut bytes = journal(&sample());
        bytes[7] = 9;
        assert!(matches!(
            decode::<Record>(&bytes),
            Err(Error::Version { found: 9 })
        ));
        assert!(matches!(
            decode::<Record>(b"{\"move\": 1}"),
            Err(Error::Header { .. })
        ));
    }

    #[test]
    fn a_record_of_another_type_is_refused() {
        let mut bytes = HEADER.to_vec();
        bytes.extend(encode(&(7u8, "seven")).unwrap());
        assert!(matches!(
            decode::<Record>(&bytes),
            Err(Error::Body { at: 8, .. })
        ));
        let mut longer = HEADER.to_vec();
        longer.extend(encode(&(Record::Granted, 1u8)).unwrap());
        assert!(matches!(
            decode::<Record>(&longer),
            Err(Error::Body { at: 8, .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = journal(&sample()[..2]);
            bytes.extend(tail);
            if let Ok(contents) = decode::<Record>(&bytes) {
                prop_assert_eq!(&contents.records[..2], &sample()[..2]);
            }
        }
    }
}
