//! Image files from source to target on a connection of their own, so that control never waits behind memory pages.
//!
//! While the engine writes, files of memory pages are sent as they grow; what is small, and may still be rewritten, is sent once everything
//! is on disk. The receiver writes below one directory and nowhere else (names are checked when a frame is decoded).
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use netmig_core::frame::{CHUNK_LIMIT, Chunk, FileBegin, FileEnd, Frame, RelativePath};
use tokio::sync::mpsc;

/// Bytes of one chunk: large enough for throughput, small enough to be on its way while the next is read.
const CHUNK: usize = if CHUNK_LIMIT < 256 << 10 {
    CHUNK_LIMIT
} else {
    256 << 10
};

/// Sends the files of one directory.
pub struct Sender {
    dir: PathBuf,
    frames: mpsc::Sender<Frame>,
    files: HashMap<String, Sending>,
    bytes: u64,
}

struct Sending {
    number: u32,
    file: File,
    offset: u64,
    crc: crc32fast::Hasher,
}

impl Sender {
    /// Will send what is in `dir` as frames into the channel.
    pub fn new(dir: &Path, frames: mpsc::Sender<Frame>) -> Self {
        Self {
            dir: dir.to_owned(),
            frames,
            files: HashMap::new(),
            bytes: 0,
        }
    }

    /// Bytes handed over so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sends what files of memory pages have grown by. True if there was anything.
    ///
    /// # Errors
    /// A file cannot be read, or the connection is gone.
    pub fn grown(&mut self) -> Result<bool> {
        let mut any = false;
        for name in self.names()? {
            if name.starts_with("pages-") {
                any |= self.advance(&name)?;
            }
        }
        Ok(any)
    }

    /// Sends all that is left and ends every file. Number of files and bytes.
    ///
    /// # Errors
    /// A file cannot be read, or the connection is gone.
    pub fn rest(&mut self) -> Result<(u64, u64)> {
        for name in self.names()? {
            self.advance(&name)?;
            let Some(sending) = self.files.get(&name) else {
                continue;
            };
            let end = FileEnd {
                file: sending.number,
                length: sending.offset,
                crc: sending.crc.clone().finalize(),
            };
            self.put(Frame::FileEnd(end))?;
        }
        Ok((self.files.len() as u64, self.bytes))
    }

    fn names(&self) -> Result<Vec<String>> {
        let dir = match fs::read_dir(&self.dir) {
            Ok(dir) => dir,
            // The engine has not made it yet.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => {
                return Err(e)
                    .with_context(|| format!("reading the images in {}", self.dir.display()));
            }
        };
        let mut names = Vec::new();
        for entry in dir {
            let entry =
                entry.with_context(|| format!("reading the images in {}", self.dir.display()))?;
            if entry.file_type().is_ok_and(|t| t.is_file()) {
                match entry.file_name().into_string() {
                    Ok(name) => names.push(name),
                    Err(name) => bail!("image {name:?} has a name that is not UTF-8"),
                }
            }
        }
        names.sort();
        Ok(names)
    }

    fn advance(&mut self, name: &str) -> Result<bool> {
        let path = self.dir.join(name);
        if !self.files.contains_key(name) {
            let file =
                File::open(&path).with_context(|| format!("opening image {}", path.display()))?;
            let number = u32::try_from(self.files.len()).context("too many images")?;
            let relative =
                RelativePath::try_from(name.to_owned()).with_context(|| format!("image {name}"))?;
            self.put(Frame::FileBegin(FileBegin {
                file: number,
                path: relative,
                mode: 0o600,
                offset: 0,
            }))?;
            self.files.insert(
                name.to_owned(),
                Sending {
                    number,
                    file,
                    offset: 0,
                    crc: crc32fast::Hasher::new(),
                },
            );
        }
        let mut any = false;
        loop {
            let Some(sending) = self.files.get_mut(name) else {
                return Ok(any);
            };
            let mut data = BytesMut::zeroed(CHUNK);
            let n = sending
                .file
                .read_at(&mut data, sending.offset)
                .with_context(|| format!("reading image {}", path.display()))?;
            if n == 0 {
                return Ok(any);
            }
            data.truncate(n);
            sending.crc.update(&data);
            let frame = Frame::Chunk(Chunk {
                file: sending.number,
                offset: sending.offset,
                data: data.freeze(),
            });
            sending.offset += n as u64;
            self.bytes += n as u64;
            self.put(frame)?;
            any = true;
        }
    }

    fn put(&self, frame: Frame) -> Result<()> {
        self.frames
            .blocking_send(frame)
            .map_err(|_| anyhow::anyhow!("the connection for images is gone"))
    }
}

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
}

struct Receiving {
    path: PathBuf,
    file: File,
    length: u64,
    crc: crc32fast::Hasher,
}

impl Receiver {
    /// Below `dir`, which is made.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("closing {} to others", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            files: HashMap::new(),
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
                let receiving = self.files.get_mut(&chunk.file).with_context(|| {
                    format!("a chunk of file {}, which has not begun", chunk.file)
                })?;
                if chunk.offset != receiving.length {
                    bail!(
                        "{} goes on at {} where {} is due",
                        receiving.path.display(),
                        chunk.offset,
                        receiving.length
                    );
                }
                receiving
                    .file
                    .write_all_at(&chunk.data, chunk.offset)
                    .with_context(|| format!("writing {}", receiving.path.display()))?;
                receiving.crc.update(&chunk.data);
                receiving.length += chunk.data.len() as u64;
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn drain(
        rx: &mut mpsc::Receiver<Frame>,
        receiver: &mut Receiver,
        arrived: &Arrived,
    ) -> Result<()> {
        while let Ok(frame) = rx.try_recv() {
            receiver.take(frame, arrived)?;
        }
        Ok(())
    }

    #[test]
    fn files_arrive_as_they_grew() -> Result<()> {
        let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let (tx, mut rx) = mpsc::channel(64);
        let mut sender = Sender::new(from.path(), tx);
        let (mut receiver, arrived) = (
            Receiver::new(&to.path().join("images"))?,
            Arrived::default(),
        );
        let pages: Vec<u8> = (0..700_000u32).map(|i| i as u8).collect();
        fs::write(from.path().join("pages-1.img"), &pages[..300_000])?;
        fs::write(from.path().join("core-1.img"), b"not yet")?;
        assert!(sender.grown()?);
        fs::write(from.path().join("pages-1.img"), &pages)?;
        fs::write(from.path().join("core-1.img"), b"now")?;
        let (files, bytes) = sender.rest()?;
        assert_eq!((files, bytes), (2, 700_003));
        drain(&mut rx, &mut receiver, &arrived)?;
        arrived.wait(files, bytes, Duration::ZERO)?;
        assert_eq!(fs::read(to.path().join("images/pages-1.img"))?, pages);
        assert_eq!(fs::read(to.path().join("images/core-1.img"))?, b"now");
        Ok(())
    }

    #[test]
    fn a_changed_byte_is_noticed() -> Result<()> {
        let to = tempfile::tempdir()?;
        let (mut receiver, arrived) = (Receiver::new(to.path())?, Arrived::default());
        let path = RelativePath::try_from("core-1.img".to_owned())?;
        receiver.take(
            Frame::FileBegin(FileBegin {
                file: 0,
                path,
                mode: 0o600,
                offset: 0,
            }),
            &arrived,
        )?;
        receiver.take(
            Frame::Chunk(Chunk {
                file: 0,
                offset: 0,
                data: Bytes::from_static(b"abc"),
            }),
            &arrived,
        )?;
        let end = FileEnd {
            file: 0,
            length: 3,
            crc: crc32fast::hash(b"abd"),
        };
        assert!(receiver.take(Frame::FileEnd(end), &arrived).is_err());
        assert!(arrived.wait(1, 3, Duration::ZERO).is_err());
        Ok(())
    }
}
