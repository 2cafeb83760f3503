//! What arrives: files, whole and checked, and pages that came ahead of them.
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use netmig_core::frame::{Frame, PAGE, PageRun};

/// What has arrived whole.
#[derive(Default)]
pub struct Arrived {
    state: Mutex<Count>,
    changed: Condvar,
}

#[derive(Default)]
struct Count {
    files: u64,
    bytes: u64,
    broken: Option<String>,
}

impl Arrived {
    fn whole(&self, bytes: u64) {
        let mut count = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        count.files += 1;
        count.bytes += bytes;
        self.changed.notify_all();
    }

    /// Nothing more will come.
    pub fn broken(&self, why: String) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .broken = Some(why);
        self.changed.notify_all();
    }

    /// Waits until so much has arrived.
    ///
    /// # Errors
    /// The connection broke before, more came than was said, or `limit` is over.
    pub fn wait(&self, files: u64, bytes: u64, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        let mut count = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if (count.files, count.bytes) == (files, bytes) {
                return Ok(());
            }
            if count.files > files || count.bytes > bytes {
                bail!(
                    "{} images of {} bytes came where the source sent {files} of {bytes}",
                    count.files,
                    count.bytes
                );
            }
            if let Some(why) = &count.broken {
                bail!(
                    "the connection for images broke after {} of {files} files: {why}",
                    count.files
                );
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "only {} of {files} images arrived within {limit:?}",
                    count.files
                );
            }
            count = self
                .changed
                .wait_timeout(count, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Writes arriving files below one directory.
pub struct Receiver {
    dir: PathBuf,
    files: HashMap<u32, Receiving>,
    store: Store,
}

/// Pages that were sent ahead, in the order of their numbers.
#[derive(Default)]
struct Store {
    /// Runs of pages, each with the number of its first.
    runs: Vec<(u32, Bytes)>,
    pages: u32,
    limit: u64,
}

impl Store {
    fn push(&mut self, data: Bytes) -> Result<()> {
        let count = u32::try_from(data.len() / PAGE).context("a run of pages")?;
        let pages = self
            .pages
            .checked_add(count)
            .context("more pages than can be numbered")?;
        if u64::from(pages) * PAGE as u64 > self.limit {
            bail!(
                "more than {} bytes of memory pages came ahead of the images: the source sends what it did not announce",
                self.limit
            );
        }
        self.runs.push((self.pages, data));
        self.pages = pages;
        Ok(())
    }

    /// The bytes of a run, piece by piece as they lie here.
    fn pieces(&self, run: PageRun) -> Result<Vec<Bytes>> {
        let end = run
            .first
            .checked_add(run.count)
            .filter(|end| *end <= self.pages)
            .with_context(|| {
                format!(
                    "pages {} + {} are named, {} came",
                    run.first, run.count, self.pages
                )
            })?;
        let mut at = run.first;
        let mut index = self.runs.partition_point(|(first, _)| *first <= at);
        let mut pieces = Vec::new();
        while at < end {
            // The run before the first one that begins behind `at`.
            let (first, data) = &self.runs[index - 1];
            let from = (at - first) as usize * PAGE;
            let to = data.len().min((end - first) as usize * PAGE);
            pieces.push(data.slice(from..to));
            at += u32::try_from((to - from) / PAGE).context("a run of pages")?;
            index += 1;
        }
        Ok(pieces)
    }
}

struct Receiving {
    path: PathBuf,
    file: File,
    length: u64,
    crc: crc32fast::Hasher,
}

impl Receiving {
    fn append(&mut self, data: &[u8]) -> Result<()> {
        self.file
            .write_all_at(data, self.length)
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.crc.update(data);
        self.length += data.len() as u64;
        Ok(())
    }
}

/// The file whose next byte goes to `offset`.
fn due(files: &mut HashMap<u32, Receiving>, file: u32, offset: u64) -> Result<&mut Receiving> {
    let receiving = files
        .get_mut(&file)
        .with_context(|| format!("bytes of file {file}, which has not begun"))?;
    if offset != receiving.length {
        bail!(
            "{} goes on at {offset} where {} is due",
            receiving.path.display(),
            receiving.length
        );
    }
    Ok(receiving)
}

impl Receiver {
    /// Below `dir`, which is made. At most `ahead` bytes of pages are kept that come before the files they belong to.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(dir: &Path, ahead: u64) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("closing {} to others", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            files: HashMap::new(),
            store: Store {
                limit: ahead,
                ..Store::default()
            },
        })
    }

    /// Takes one frame. Files and bytes are counted when they are whole and their checksum is right.
    ///
    /// # Errors
    /// A frame that does not fit, or the disk's.
    pub fn take(&mut self, frame: Frame, arrived: &Arrived) -> Result<()> {
        match frame {
            Frame::FileBegin(begin) => {
                let path = self.dir.join(begin.path.as_str());
                if begin.offset != 0 {
                    bail!(
                        "{} begins at {}, which this version never asks for",
                        path.display(),
                        begin.offset
                    );
                }
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)
                        .with_context(|| format!("making {}", parent.display()))?;
                }
                let file = OpenOptions::new()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(begin.mode & 0o700)
                    .open(&path)
                    .with_context(|| format!("making {}", path.display()))?;
                let receiving = Receiving {
                    path,
                    file,
                    length: 0,
                    crc: crc32fast::Hasher::new(),
                };
                if self.files.insert(begin.file, receiving).is_some() {
                    bail!("file number {} begins twice", begin.file);
                }
            }
            Frame::Chunk(chunk) => {
                due(&mut self.files, chunk.file, chunk.offset)?.append(&chunk.data)?;
            }
            Frame::Pages(data) => self.store.push(data)?,
            Frame::PageRefs(refs) => {
                let receiving = due(&mut self.files, refs.file, refs.offset)?;
                for run in refs.runs {
                    for piece in self.store.pieces(run)? {
                        receiving.append(&piece)?;
                    }
                }
            }
            Frame::FileEnd(end) => {
                let receiving = self.files.remove(&end.file).with_context(|| {
                    format!("the end of file {}, which has not begun", end.file)
                })?;
                let crc = receiving.crc.finalize();
                if (receiving.length, crc) != (end.length, end.crc) {
                    bail!(
                        "{} has {} bytes with CRC {crc:08x}; {} with {:08x} were sent",
                        receiving.path.display(),
                        receiving.length,
                        end.length,
                        end.crc
                    );
                }
                arrived.whole(end.length);
            }
            _ => bail!("a frame that does not belong on the connection for images"),
        }
        Ok(())
    }
}
