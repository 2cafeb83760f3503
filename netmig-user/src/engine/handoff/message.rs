//! The bytes of the handoff protocol: frames, and what is said in them. docs/handoff.md is its description for programs in any language.
//!
//! A frame is a header of 12 bytes, little endian, and a body: `"NMHO"`, version u16, kind u16, length of the body u32.
use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"NMHO";
/// Version of the protocol; another one is refused.
pub const VERSION: u16 = 1;
/// Bytes of a header.
pub const HEADER: usize = 12;
/// Longest body of a message, in bytes.
pub const MESSAGE_LIMIT: usize = 64 << 10;
/// Longest body of a frame of state, in bytes.
pub const CHUNK_LIMIT: usize = 1 << 20;
/// Most bytes of state that a program can hand over.
pub const STATE_LIMIT: u64 = 64 << 20;
/// Most descriptors of one frame (SCM_MAX_FD).
pub const BATCH_LIMIT: usize = 253;
/// Most descriptors that a program can hand over.
pub const DESCRIPTOR_LIMIT: u32 = 100_000;

/// A header or body that breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not the protocol at all.
    #[error("a frame begins with {0:02x?}, not with \"NMHO\"")]
    Magic([u8; 4]),
    /// Another version.
    #[error("a frame of version {0}; this netmig speaks {VERSION}")]
    Version(u16),
    /// No kind of frame.
    #[error("a frame of unknown kind {0}")]
    Kind(u16),
    /// Too long.
    #[error("a {kind} frame of {length} bytes, over the limit of {limit}")]
    Long {
        /// Which kind.
        kind: &'static str,
        /// Its length in bytes.
        length: u32,
        /// What is allowed.
        limit: usize,
    },
    /// The JSON is none, or says something else.
    #[error("a message that cannot be read: {0}")]
    Message(String),
    /// Labels and descriptors do not match.
    #[error("a frame with {labels} bytes of labels came with {descriptors} descriptors")]
    Descriptors {
        /// Length of the body in bytes; a label has 4.
        labels: usize,
        /// How many came with it.
        descriptors: usize,
    },
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Say`] or [`Told`] in JSON.
    Message = 1,
    /// Bytes of state.
    State = 2,
    /// Labels, u32 each; the descriptors come with the header by SCM_RIGHTS.
    Descriptors = 3,
}

impl Kind {
    /// Its name, and the longest body.
    #[must_use]
    pub fn limit(self) -> (&'static str, usize) {
        match self {
            Self::Message => ("message", MESSAGE_LIMIT),
            Self::State => ("state", CHUNK_LIMIT),
            Self::Descriptors => ("descriptors", BATCH_LIMIT * 4),
        }
    }
}

/// The header of a frame.
///
/// # Panics
/// If the body is over its limit: whoever sends cuts it before.
#[must_use]
pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let (name, limit) = kind.limit();
    assert!(length <= limit, "a {name} frame of {length} bytes");
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
    bytes[8..].copy_from_slice(&(length as u32).to_le_bytes());
    bytes
}

/// Kind and length of the body that follows.
///
/// # Errors
/// It breaks the protocol or a limit.
pub fn parse(header: &[u8; HEADER]) -> Result<(Kind, usize), Malformed> {
    let [m0, m1, m2, m3, v0, v1, k0, k1, l0, l1, l2, l3] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(Malformed::Magic([m0, m1, m2, m3]));
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let kind = match u16::from_le_bytes([k0, k1]) {
        1 => Kind::Message,
        2 => Kind::State,
        3 => Kind::Descriptors,
        other => return Err(Malformed::Kind(other)),
    };
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let (name, limit) = kind.limit();
    match usize::try_from(length) {
        Ok(bytes) if bytes <= limit => Ok((kind, bytes)),
        _ => Err(Malformed::Long {
            kind: name,
            length,
            limit,
        }),
    }
}

/// The labels in the body of a frame that came with so many descriptors.
///
/// # Errors
/// There is not one label for each descriptor, or none at all.
pub fn labels(body: &[u8], descriptors: usize) -> Result<Vec<u32>, Malformed> {
    if descriptors == 0 || body.len() != descriptors * 4 {
        return Err(Malformed::Descriptors {
            labels: body.len(),
            descriptors,
        });
    }
    let label = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    Ok(body.chunks_exact(4).map(label).collect())
}

/// What a program says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its name on both hosts: 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit.
    pub name: String,
    /// Its own version, for the state's sake; netmig only carries it.
    #[serde(default)]
    pub version: String,
    /// How it is started at a target: program and arguments. Empty: its operator starts it there before the move.
    #[serde(default)]
    pub command: Vec<String>,
    /// Working directory of that command, absolute.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// Variables added to the environment of that command.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// What precedes a state, in either direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The program's version that saved it.
    #[serde(default)]
    pub version: String,
    /// Bytes that follow in `State` frames.
    pub bytes: u64,
    /// Descriptors that follow in `Descriptors` frames.
    pub descriptors: u32,
}

/// What a program says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Say {
    /// It runs, and can be moved.
    Register {
        /// Who it is.
        #[serde(flatten)]
        who: Introduction,
        /// The move that it has saved itself for and has not heard the end of: its connection broke.
        #[serde(default, rename = "move")]
        mv: Option<String>,
    },
    /// It was started to take over a state.
    Load {
        /// Who it is.
        #[serde(flatten)]
        who: Introduction,
    },
    /// Answer to `save`: what follows is its state.
    State(Announcement),
    /// Answer to `save` or to a state: no.
    Refused {
        /// Why, for the operator.
        why: String,
    },
    /// Answer to a state: it stands, and waits for `go`.
    Ready,
}

/// What a program is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Told {
    /// Answer to `register` and `load`.
    Registered,
    /// It cannot be; the connection is closed.
    Error {
        /// Why, for the operator.
        why: String,
    },
    /// Save: stop, hand over, touch nothing until the next word.
    Save {
        /// The move's id, as text.
        #[serde(rename = "move")]
        mv: String,
    },
    /// The move is off: go on. Without a meaning for a program that has not saved itself.
    Resume,
    /// The move is done, or a state that was loaded is not wanted: exit.
    Leave,
    /// What follows is a state to load.
    State(Announcement),
    /// It lives here now: go on.
    Go,
}

/// Whether a name is one.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_is_what_the_document_says() {
        let bytes = header(Kind::Descriptors, 8);
        assert_eq!(&bytes, b"NMHO\x01\0\x03\0\x08\0\0\0");
        assert_eq!(parse(&bytes), Ok((Kind::Descriptors, 8)));
    }

    #[test]
    fn what_breaks_the_protocol_is_named() {
        let of = |bytes: &[u8; HEADER]| parse(bytes).expect_err("broken").to_string();
        assert!(of(b"HTTP\x01\0\x01\0\0\0\0\0").contains("NMHO"));
        assert_eq!(
            parse(b"NMHO\x02\0\x01\0\0\0\0\0"),
            Err(Malformed::Version(2))
        );
        assert_eq!(parse(b"NMHO\x01\0\x09\0\0\0\0\0"), Err(Malformed::Kind(9)));
        for (kind, limit) in [
            (1_u8, MESSAGE_LIMIT),
            (2, CHUNK_LIMIT),
            (3, BATCH_LIMIT * 4),
        ] {
            let with = |length: u32| {
                let mut bytes = *b"NMHO\x01\0\0\0\0\0\0\0";
                bytes[6] = kind;
                bytes[8..].copy_from_slice(&length.to_le_bytes());
                parse(&bytes)
            };
            assert!(with(limit as u32).is_ok());
            assert!(matches!(
                with(limit as u32 + 1),
                Err(Malformed::Long { .. })
            ));
            assert!(matches!(with(u32::MAX), Err(Malformed::Long { .. })));
        }
    }

    #[test]
    fn every_descriptor_has_a_label() {
        assert_eq!(labels(&[7, 0, 0, 0, 0, 1, 0, 0], 2), Ok(vec![7, 256]));
        for (body, descriptors) in [
            (&[][..], 0),
            (&[1, 0, 0, 0][..], 0),
            (&[1, 0, 0][..], 1),
            (&[1, 0, 0, 0][..], 2),
        ] {
            assert!(labels(body, descriptors).is_err(), "{body:?} {descriptors}");
        }
    }

    #[test]
    fn messages_are_the_documented_json() {
        let text = r#"{"type":"register","name":"echo","version":"1","command":["/bin/echo"],"more":true}"#;
        let said: Say = serde_json::from_str(text).expect("a message");
        let who = Introduction {
            name: "echo".into(),
            version: "1".into(),
            command: vec!["/bin/echo".into()],
            ..Introduction::default()
        };
        assert_eq!(said, Say::Register { who, mv: None });
        let told = serde_json::to_string(&Told::State(Announcement {
            version: "1".into(),
            bytes: 3,
            descriptors: 2,
        }));
        assert_eq!(
            told.expect("JSON"),
            r#"{"type":"state","version":"1","bytes":3,"descriptors":2}"#
        );
        assert_eq!(
            serde_json::to_string(&Told::Go).expect("JSON"),
            r#"{"type":"go"}"#
        );
        let save = Told::Save {
            mv: "1f0c".to_owned(),
        };
        assert_eq!(
            serde_json::to_string(&save).expect("JSON"),
            r#"{"type":"save","move":"1f0c"}"#
        );
        let again = r#"{"type":"register","name":"echo","move":"1f0c"}"#;
        assert!(matches!(
            serde_json::from_str(again),
            Ok(Say::Register { mv: Some(mv), .. }) if mv == "1f0c"
        ));
        assert!(serde_json::from_str::<Say>(r#"{"type":"save"}"#).is_err());
        assert!(serde_json::from_str::<Say>(r#"{"name":"echo"}"#).is_err());
    }

    #[test]
    fn a_name_is_safe_in_a_path() {
        for name in ["echo", "9", "a.b_c-d", &"x".repeat(64)] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "-x",
            "a/b",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(65),
        ] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_refused_or_within_its_limit(bytes: [u8; HEADER]) {
            if let Ok((kind, length)) = parse(&bytes) {
                prop_assert!(length <= kind.limit().1);
            }
        }

        #[test]
        fn a_header_with_the_right_beginning_too(kind in 0_u16..5, length: u32) {
            let mut bytes = [0; HEADER];
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[4] = 1;
            bytes[6..8].copy_from_slice(&kind.to_le_bytes());
            bytes[8..].copy_from_slice(&length.to_le_bytes());
            if let Ok((kind, length)) = parse(&bytes) {
                prop_assert!(length <= kind.limit().1);
                prop_assert_eq!(header(kind, length), bytes);
            }
        }
    }
}
