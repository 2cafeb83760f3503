//! A command that runs in a host.
use std::{
    fmt,
    io::{self, PipeReader, Write},
    process::ExitStatus,
    time::Duration,
};

/// A running command. Dropped, it is killed, with its process group, unless it was detached.
pub struct Process {
    /// Its process id, as the host itself counts.
    pub pid: i32,
    /// Where to write what it reads, if it was asked for.
    pub stdin: Option<Box<dyn Write + Send>>,
    /// Its standard output, to be read.
    pub stdout: Option<PipeReader>,
    /// Its standard error, to be read.
    pub stderr: Option<PipeReader>,
    control: Box<dyn Control>,
    ended: Option<ExitStatus>,
}

/// How a kind of host steers a running command. Dropping it kills the command, unless that is detached.
pub trait Control: Send {
    /// Sends a signal to the command and its process group.
    ///
    /// # Errors
    /// If the host does not answer.
    fn signal(&mut self, signal: i32) -> io::Result<()>;

    /// Waits for its end, at most `limit` long (for ever if none); `None` if it still runs. Not called again once it gave a status.
    ///
    /// # Errors
    /// If the host does not answer.
    fn wait(&mut self, limit: Option<Duration>) -> io::Result<Option<ExitStatus>>;
}

impl Process {
    /// A process for a kind of host to give out.
    #[must_use]
    pub fn new(pid: i32, control: Box<dyn Control>) -> Self {
        Self {
            pid,
            stdin: None,
            stdout: None,
            stderr: None,
            control,
            ended: None,
        }
    }

    /// Sends a signal to it and its process group; nothing if it has ended.
    ///
    /// # Errors
    /// If the host does not answer.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        match self.ended {
            Some(_) => Ok(()),
            None => self.control.signal(signal),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If the host does not answer.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        match self.wait_at_most(None)? {
            Some(status) => Ok(status),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Waits for its end at most `limit` long; `None` if it still runs.
    ///
    /// # Errors
    /// If the host does not answer.
    pub fn wait_for(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        self.wait_at_most(Some(limit))
    }

    fn wait_at_most(&mut self, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.control.wait(limit)?;
        }
        Ok(self.ended)
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.pid)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
