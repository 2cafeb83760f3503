//! A move's durable memory: the machine's records, appended and fsynced one by one, and the driver's facts beside them, replaced whole.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use netmig_core::journal as codec;
use serde::{Serialize, de::DeserializeOwned};

/// Reading or writing it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system's word.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A record or the facts are not what was written.
    #[error(
        "{path} is damaged: {what}\nthe move cannot be taken up from it; decide it by `netmig-user recover`"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        doing,
        path,
        source,
    }
}

/// The directory of one move's durable memory.
pub struct Journal {
    dir: PathBuf,
    records: File,
}

impl Journal {
    /// Opens (or makes) the journal in `dir` and gives the records in it. A torn last record, which was never reported as persisted, is cut.
    ///
    /// # Errors
    /// The directory or file cannot be made, or is damaged.
    pub fn open<R: DeserializeOwned>(dir: &Path) -> Result<(Self, Vec<R>), Error> {
        fs::create_dir_all(dir).map_err(io_error("making", dir))?;
        let path = dir.join("journal");
        let mut records = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("opening", &path))?;
        let mut bytes = Vec::new();
        records
            .read_to_end(&mut bytes)
            .map_err(io_error("reading", &path))?;
        let contents = codec::decode(&bytes).map_err(|e| Error::Damaged {
            path: path.clone(),
            what: e.to_string(),
        })?;
        records
            .set_len(contents.whole as u64)
            .map_err(io_error("cutting the torn end of", &path))?;
        if contents.whole == 0 {
            records
                .write_all(&codec::HEADER)
                .map_err(io_error("beginning", &path))?;
        }
        records.sync_data().map_err(io_error("syncing", &path))?;
        sync_dir(dir)?;
        Ok((
            Self {
                dir: dir.to_owned(),
                records,
            },
            contents.records,
        ))
    }

    /// Appends one record; it is on disk when this returns.
    ///
    /// # Errors
    /// Writing or syncing failed.
    pub fn append<R: Serialize>(&mut self, record: &R) -> Result<(), Error> {
        let path = self.dir.join("journal");
        let bytes = codec::encode(record).map_err(|e| Error::Damaged {
            path: path.clone(),
            what: e.to_string(),
        })?;
        let end = self
            .records
            .metadata()
            .map_err(io_error("looking at", &path))?
            .len();
        let written = self
            .records
            .write_all(&bytes)
            .and_then(|()| self.records.sync_data());
        written.map_err(|refused| {
            // A second try must not stand behind a torn record: it would read as damage.
            match self.records.set_len(end) {
                Ok(()) => io_error("appending to", &path)(refused),
                Err(e) => Error::Damaged {
                    path: path.clone(),
                    what: format!(
                        "a record was refused ({refused}) and cannot be cut off again: {e}"
                    ),
                },
            }
        })
    }

    /// Replaces the facts; they are on disk when this returns.
    ///
    /// # Errors
    /// Writing or syncing failed.
    pub fn write_facts<F: Serialize>(&self, facts: &F) -> Result<(), Error> {
        replace(&self.dir.join("facts.json"), facts)
    }

    /// Writes the report beside the journal.
    ///
    /// # Errors
    /// Writing or syncing failed.
    pub fn write_report<R: Serialize>(&self, report: &R) -> Result<(), Error> {
        replace(&self.dir.join("report.json"), report)
    }
}

/// All records of a move, oldest first. A torn last record (the machine died while writing it) does not count.
///
/// # Errors
/// Unreadable or damaged.
pub fn records<R: DeserializeOwned>(dir: &Path) -> Result<Vec<R>, Error> {
    let path = dir.join("journal");
    let bytes = fs::read(&path).map_err(io_error("reading", &path))?;
    codec::decode(&bytes)
        .map(|decoded| decoded.records)
        .map_err(|e| Error::Damaged {
            path,
            what: e.to_string(),
        })
}

/// The driver's facts of a move.
///
/// # Errors
/// Unreadable or damaged.
pub fn facts<F: DeserializeOwned>(dir: &Path) -> Result<F, Error> {
    let path = dir.join("facts.json");
    let bytes = fs::read(&path).map_err(io_error("reading", &path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Damaged {
        path,
        what: e.to_string(),
    })
}

fn replace<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let text = serde_json::to_vec(value).map_err(|e| Error::Damaged {
        path: path.to_owned(),
        what: e.to_string(),
    })?;
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .map_err(io_error("making", &new))?;
    file.write_all(&text).map_err(io_error("writing", &new))?;
    file.sync_data().map_err(io_error("syncing", &new))?;
    fs::rename(&new, path).map_err(io_error("replacing", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io_error("syncing", dir))
}
