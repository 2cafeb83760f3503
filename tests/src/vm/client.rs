//! One command in a guest, from the outside.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::frame::{CHUNK, Frame, Kind, Spawn};
use crate::host::Control;

/// A command that runs in a guest. Dropping it kills the command, unless that is detached.
#[derive(Debug)]
pub struct Remote {
    /// As the guest counts.
    pub pid: i32,
    stream: UnixStream,
    status: Receiver<io::Result<ExitStatus>>,
    /// Closed when all output was written.
    written: Receiver<()>,
    /// Whether the end is only told after that.
    wait_for_output: bool,
}

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The guest has no such program, or cannot run it.
    #[error("the guest cannot run it")]
    Refused(#[source] io::Error),
    /// The guest was not reached.
    #[error("the guest does not answer")]
    Lost(#[from] io::Error),
}

/// Where the output of a command goes.
pub struct Sinks {
    /// Its standard output.
    pub stdout: Box<dyn Write + Send>,
    /// Its standard error.
    pub stderr: Box<dyn Write + Send>,
    /// Whether [`Remote::wait`](Control::wait) waits for what is still on its way (a second at most: what the command
    /// left running may hold its output open).
    pub complete: bool,
}

impl Remote {
    /// Starts a command in the guest whose commands are taken at `socket`.
    pub fn start(socket: &Path, spawn: &Spawn, sinks: Sinks) -> Result<Self, StartError> {
        let mut stream = UnixStream::connect(socket)?;
        let request = serde_json::to_vec(spawn).map_err(io::Error::from)?;
        Frame::new(0, Kind::Spawn, request).write(&mut stream)?;
        let answer = Frame::read(&mut stream)?;
        let answer = answer.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let pid = match answer.kind {
            Kind::Started => answer.number()?,
            Kind::Refused => {
                let why = io::Error::from_raw_os_error(answer.number()?);
                return Err(StartError::Refused(why));
            }
            other => Err(io::Error::other(format!("{other:?} from the guest")))?,
        };
        let (tell, status) = mpsc::channel();
        let (writing, written) = mpsc::channel();
        let wait_for_output = sinks.complete;
        let from_guest = stream.try_clone()?;
        thread::Builder::new()
            .name("vm-output".to_owned())
            .spawn(move || {
                let _writing: Sender<()> = writing;
                if let Err(error) = follow(from_guest, sinks, &tell) {
                    // Nobody may wait for it.
                    drop(tell.send(Err(error)));
                }
            })?;
        Ok(Self {
            pid,
            stream,
            status,
            written,
            wait_for_output,
        })
    }

    /// The way to its standard input, which ends when this is dropped.
    pub fn stdin(&self) -> io::Result<Stdin> {
        Ok(Stdin(self.stream.try_clone()?))
    }
}

impl Control for Remote {
    fn signal(&mut self, signal: i32) -> io::Result<()> {
        match Frame::new(0, Kind::Signal, signal.to_le_bytes()).write(&mut self.stream) {
            // The guest has ended meanwhile, and the command with it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    fn wait(&mut self, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the guest has ended");
        let status = match limit {
            None => self.status.recv().map_err(|_| gone())?,
            Some(limit) => match self.status.recv_timeout(limit) {
                Ok(status) => status,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            },
        };
        if self.wait_for_output {
            // Nothing is ever sent: it ends by the other end's being dropped, or is too long.
            match self.written.recv_timeout(Duration::from_secs(1)) {
                Ok(()) | Err(_) => {}
            }
        }
        status.map(Some)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The end of the connection is what the guest goes by. It fails only if the guest has ended.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

/// A command's standard input; dropping it ends it.
#[derive(Debug)]
pub struct Stdin(UnixStream);

impl Stdin {
    /// Gives the command all that `input` has, from a thread that goes on until `input` ends or the command is gone.
    pub fn follow(mut self, mut input: impl Read + Send + 'static) -> io::Result<()> {
        thread::Builder::new()
            .name("vm-input".to_owned())
            .spawn(move || {
                // An input that cannot be read has no more to give; a failed write: the command has ended.
                drop(io::copy(&mut input, &mut self));
            })
            .map(drop)
    }
}

impl Write for Stdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An empty frame would be the end.
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        if !chunk.is_empty() {
            Frame::new(0, Kind::Stdin, chunk).write(&mut self.0)?;
        }
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        // The command may have ended, and the connection with it.
        drop(Frame::new(0, Kind::Stdin, []).write(&mut self.0));
    }
}

/// Hands out what the guest says until the command has ended and all of its output has been closed.
fn follow(
    mut from_guest: UnixStream,
    mut sinks: Sinks,
    status: &Sender<io::Result<ExitStatus>>,
) -> io::Result<()> {
    let mut awaited = 3; // the end of each output, and that of the command
    while awaited > 0 {
        let frame = Frame::read(&mut from_guest)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let sink = match frame.kind {
            Kind::Stdout => &mut sinks.stdout,
            Kind::Stderr => &mut sinks.stderr,
            Kind::Exit => {
                awaited -= 1;
                // Nobody may wait for it.
                drop(status.send(Ok(ExitStatus::from_raw(frame.number()?))));
                continue;
            }
            other => return Err(io::Error::other(format!("{other:?} from the guest"))),
        };
        if frame.body.is_empty() {
            awaited -= 1;
            *sink = Box::new(io::sink()); // whoever reads a pipe learns of the end
        } else if sink
            .write_all(&frame.body)
            .and_then(|()| sink.flush())
            .is_err()
        {
            // Nobody reads it any more; the command goes on.
            *sink = Box::new(io::sink());
        }
    }
    Ok(())
}
