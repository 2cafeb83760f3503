//! What is sent: pages of a container that runs, then the files that the engine writes.
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use netmig_core::frame::{
    CHUNK_LIMIT, Chunk, FileBegin, FileEnd, Frame, PAGE, PageRefs, PageRun, RUNS_LIMIT,
    RelativePath,
};
use tokio::sync::mpsc;

use super::known::{Known, Page, Secret};

/// Bytes of one chunk: large enough for throughput, small enough to be on its way while the next is read. Whole pages.
const CHUNK: usize = if CHUNK_LIMIT < 256 << 10 {
    CHUNK_LIMIT
} else {
    256 << 10
};

/// Sends the files of one directory.
pub struct Sender {
    dir: PathBuf,
    frames: mpsc::Sender<Frame>,
    known: Known,
    /// New pages that wait for more of them.
    ahead: BytesMut,
    /// What is read of a file.
    buffer: Vec<u8>,
    files: HashMap<String, Sending>,
    bytes: u64,
    sent: u64,
}

struct Sending {
    number: u32,
    file: File,
    offset: u64,
    crc: crc32fast::Hasher,
    /// False for what may be rewritten: it is read once, at the end.
    pages: bool,
}

impl Sender {
    /// Will send what is in `dir` as frames into the channel, and at most `ahead` bytes of pages before.
    pub fn new(dir: &Path, frames: mpsc::Sender<Frame>, secret: Secret, ahead: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            frames,
            known: Known::new(secret, usize::try_from(ahead).unwrap_or(usize::MAX) / PAGE),
            ahead: BytesMut::new(),
            buffer: vec![0; CHUNK],
            files: HashMap::new(),
            bytes: 0,
            sent: 0,
        }
    }

    /// Bytes of pages and files handed over so far, without those that the target had already.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that were handed over and that the connection has not taken yet, at most.
    pub fn queued(&self) -> u64 {
        let frames = self.frames.max_capacity() - self.frames.capacity();
        (frames * CHUNK) as u64
    }

    /// Sends those of these pages that the target does not have. [`Sender::flush`] sends the last of them.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn offer(&mut self, pages: &[u8]) -> Result<()> {
        for page in pages.chunks_exact(PAGE) {
            if let Page::New(digest) = self.known.look(page) {
                self.known.add(digest);
                self.ahead.extend_from_slice(page);
                if self.ahead.len() >= CHUNK {
                    self.flush()?;
                }
            }
        }
        Ok(())
    }

    /// Sends what [`Sender::offer`] has kept back. How many pages the target has now.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn flush(&mut self) -> Result<usize> {
        if !self.ahead.is_empty() {
            let pages = self.ahead.split().freeze();
            self.sent += pages.len() as u64;
            self.put(Frame::Pages(pages))?;
        }
        Ok(self.known.len())
    }

    /// Sends what files of memory pages have grown by. True if there was anything.
    ///
    /// # Errors
    /// A file cannot be read, or the connection is gone.
    pub fn grown(&mut self) -> Result<bool> {
        let mut any = false;
        for name in self.names()? {
            if name.starts_with("pages-") {
                any |= self.advance(&name, true)?;
            }
        }
        Ok(any)
    }

    /// Sends all that is left and ends every file. Number of files and their bytes.
    ///
    /// # Errors
    /// A file cannot be read, or the connection is gone.
    pub fn rest(&mut self) -> Result<(u64, u64)> {
        for name in self.names()? {
            self.advance(&name, false)?;
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

    /// Sends what `name` has behind what was sent of it; of a file that `grows`, whole pages.
    fn advance(&mut self, name: &str, grows: bool) -> Result<bool> {
        let path = self.dir.join(name);
        if !self.files.contains_key(name) {
            self.begin(name, &path)?;
        }
        let mut any = false;
        loop {
            let Some(sending) = self.files.get_mut(name) else {
                return Ok(any);
            };
            let mut n = sending
                .file
                .read_at(&mut self.buffer, sending.offset)
                .with_context(|| format!("reading image {}", path.display()))?;
            if grows {
                n -= n % PAGE;
            }
            if n == 0 {
                return Ok(any);
            }
            sending.crc.update(&self.buffer[..n]);
            let (number, offset, pages) = (sending.number, sending.offset, sending.pages);
            sending.offset += n as u64;
            self.bytes += n as u64;
            // Taken for the time of the call: most of it is looked at only.
            let buffer = std::mem::take(&mut self.buffer);
            let put = if pages && self.known.len() > 0 {
                self.put_pages(number, offset, &buffer[..n])
            } else {
                self.put_chunk(number, offset, &buffer[..n])
            };
            self.buffer = buffer;
            put?;
            any = true;
        }
    }

    fn begin(&mut self, name: &str, path: &Path) -> Result<()> {
        let file = File::open(path).with_context(|| format!("opening image {}", path.display()))?;
        let number = u32::try_from(self.files.len()).context("too many images")?;
        let relative =
            RelativePath::try_from(name.to_owned()).with_context(|| format!("image {name}"))?;
        self.put(Frame::FileBegin(FileBegin {
            file: number,
            path: relative,
            mode: 0o600,
            offset: 0,
        }))?;
        let sending = Sending {
            number,
            file,
            offset: 0,
            crc: crc32fast::Hasher::new(),
            pages: name.starts_with("pages-"),
        };
        self.files.insert(name.to_owned(), sending);
        Ok(())
    }

    /// Bytes of a file of pages: those that the target has by their numbers, the others as they are.
    fn put_pages(&mut self, file: u32, offset: u64, data: &[u8]) -> Result<()> {
        let mut refs = PageRefs {
            file,
            offset,
            runs: Vec::new(),
        };
        // Where the bytes begin that the target does not have.
        let mut new = 0;
        let mut at = 0;
        for page in data.chunks(PAGE) {
            let there = match self.known.look(page) {
                Page::There(number) if page.len() == PAGE => Some(number),
                _ => None,
            };
            match there {
                Some(number) => {
                    if new < at {
                        self.put_chunk(file, offset + new as u64, &data[new..at])?;
                    }
                    if refs.runs.is_empty() {
                        refs.offset = offset + at as u64;
                    }
                    match refs.runs.last_mut() {
                        Some(run) if run.first + run.count == number => run.count += 1,
                        _ => refs.runs.push(PageRun {
                            first: number,
                            count: 1,
                        }),
                    }
                    if refs.runs.len() == RUNS_LIMIT {
                        self.put_refs(&mut refs)?;
                    }
                    new = at + page.len();
                }
                None => self.put_refs(&mut refs)?,
            }
            at += page.len();
        }
        if new < at {
            self.put_chunk(file, offset + new as u64, &data[new..at])?;
        }
        self.put_refs(&mut refs)
    }

    fn put_refs(&self, refs: &mut PageRefs) -> Result<()> {
        if refs.runs.is_empty() {
            return Ok(());
        }
        let whole = PageRefs {
            file: refs.file,
            offset: refs.offset,
            runs: std::mem::take(&mut refs.runs),
        };
        self.put(Frame::PageRefs(whole))
    }

    fn put_chunk(&mut self, file: u32, offset: u64, data: &[u8]) -> Result<()> {
        self.sent += data.len() as u64;
        let data = Bytes::copy_from_slice(data);
        self.put(Frame::Chunk(Chunk { file, offset, data }))
    }

    fn put(&self, frame: Frame) -> Result<()> {
        self.frames
            .blocking_send(frame)
            .map_err(|_| anyhow::anyhow!("the connection for images is gone"))
    }
}
