//! The data that redis holds while it moves: written once, read back and digested at every place it comes to.
use std::{io, net::SocketAddr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    pattern, redis,
    resp::{self, Connection, Reply},
};

const VALUE: usize = 16 << 10;
const BATCH: usize = 64;
const SEED: u64 = 0x6461_7461;

/// What redis holds of the data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// DBSIZE: all keys, those of the running clients included.
    pub keys: u64,
    /// Bytes of the data set.
    pub bytes: u64,
    /// SHA-256 over its values in order, hexadecimal.
    pub digest: String,
    /// The same over the values that were written.
    pub written: String,
}

impl State {
    /// Redis holds what was written.
    #[must_use]
    pub fn intact(&self) -> bool {
        self.digest == self.written
    }
}

/// Writes `bytes` (rounded up to whole values) into redis at `to`.
///
/// # Errors
/// The connection's, or redis refuses.
pub fn populate(to: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut redis = resp::open_when_there(to, redis::PATIENCE, std::time::Duration::from_secs(20))?;
    let count = bytes.div_ceil(VALUE as u64);
    let mut at = 0;
    while at < count {
        let batch: Vec<_> = (at..count.min(at + BATCH as u64))
            .map(|i| (key(i), value(i)))
            .collect();
        let commands: Vec<[&[u8]; 3]> = batch
            .iter()
            .map(|(k, v)| [b"SET".as_slice(), k.as_bytes(), v])
            .collect();
        redis.send(&commands.iter().map(|c| c.as_slice()).collect::<Vec<_>>())?;
        for _ in &batch {
            match redis.reply()? {
                Reply::Status(s) if s == "OK" => {}
                other => return Err(io::Error::other(format!("redis answered {other:?} to SET"))),
            }
        }
        at += batch.len() as u64;
    }
    Ok(())
}

/// Reads the data set back.
///
/// # Errors
/// The connection's; `InvalidData` if a value is missing.
pub fn state(to: SocketAddr, bytes: u64) -> io::Result<State> {
    let mut redis = Connection::open(to, redis::PATIENCE)?;
    let keys = match redis.call(&[b"DBSIZE"])? {
        Reply::Integer(n) => u64::try_from(n).map_err(io::Error::other)?,
        other => {
            return Err(io::Error::other(format!(
                "redis answered {other:?} to DBSIZE"
            )));
        }
    };
    let (mut sum, mut total) = (Sha256::new(), 0);
    let count = bytes.div_ceil(VALUE as u64);
    let mut at = 0;
    while at < count {
        let batch: Vec<_> = (at..count.min(at + BATCH as u64)).map(key).collect();
        let commands: Vec<[&[u8]; 2]> = batch
            .iter()
            .map(|k| [b"GET".as_slice(), k.as_bytes()])
            .collect();
        redis.send(&commands.iter().map(|c| c.as_slice()).collect::<Vec<_>>())?;
        for key in &batch {
            match redis.reply()? {
                Reply::Bulk(Some(value)) => {
                    total += value.len() as u64;
                    sum.update(&value);
                }
                other => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("redis answered {other:?} to GET {key}"),
                    ));
                }
            }
        }
        at += batch.len() as u64;
    }
    let digest = sum.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(State {
        keys,
        bytes: total,
        digest,
        written: digest_written(bytes),
    })
}

/// The digest that [`state`] must find.
fn digest_written(bytes: u64) -> String {
    let mut sum = Sha256::new();
    for i in 0..bytes.div_ceil(VALUE as u64) {
        sum.update(value(i));
    }
    sum.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn key(i: u64) -> String {
    format!("data:{i}")
}

fn value(i: u64) -> Vec<u8> {
    let mut value = vec![0; VALUE];
    pattern::fill(SEED, i * VALUE as u64, &mut value);
    value
}
