//! A queue's bytes in one piece: serde takes a `Vec<u8>` byte by byte. In an image both are the same, a length and the bytes (postcard).
use std::fmt;

use serde::{
    Deserializer, Serializer,
    de::{SeqAccess, Visitor},
};

pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>, T: From<Vec<u8>>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_byte_buf(Bytes).map(T::from)
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }

    /// JSON has them as numbers.
    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Vec<u8>, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = numbers.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Plain {
        before: u16,
        bytes: Vec<u8>,
        after: u8,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Queue {
        before: u16,
        #[serde(with = "super")]
        bytes: Vec<u8>,
        after: u8,
    }

    #[test]
    fn an_image_is_the_same_as_byte_by_byte() {
        for len in [0, 1, 127, 128, 70_000] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let plain = Plain {
                before: 500,
                bytes: bytes.clone(),
                after: 7,
            };
            let queue = Queue {
                before: 500,
                bytes,
                after: 7,
            };
            let image = postcard::to_stdvec(&queue).expect("encoded");
            assert_eq!(image, postcard::to_stdvec(&plain).expect("encoded"));
            assert_eq!(postcard::from_bytes(&image), Ok(queue));
            let json = serde_json::to_string(&plain).expect("encoded");
            let read: Queue = serde_json::from_str(&json).expect("decoded");
            assert_eq!(serde_json::to_string(&read).expect("encoded"), json);
        }
        // A length beyond the end.
        let cut: Result<Queue, _> = postcard::from_bytes(&[1, 0xff, 0xff, 0x7f, 1]);
        assert!(cut.is_err());
    }
}
