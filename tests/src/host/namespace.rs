//! A host that is a set of namespaces on this machine.
use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use super::{
    Cmd, Control, Host, Input, Process,
    protocol::{self, Answer, Request},
};
use crate::Error;

/// A host made of mount, pid, net, uts, ipc and cgroup namespaces over the test root. Its PID 1 starts the commands.
#[derive(Debug, Clone)]
pub struct NamespaceHost {
    name: String,
    socket: PathBuf,
    pid: i32,
}

impl NamespaceHost {
    pub(crate) fn new(name: String, socket: PathBuf, pid: i32) -> Self {
        Self { name, socket, pid }
    }

    /// The process id of its PID 1, as this machine counts.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its file system, as this machine sees it. Absolute symbolic links in it lead astray.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join("root")
    }
}

impl Host for NamespaceHost {
    fn name(&self) -> &str {
        &self.name
    }

    fn netns(&self) -> Option<PathBuf> {
        Some(Path::new("/proc").join(self.pid.to_string()).join("ns/net"))
    }

    fn spawn(&self, command: &Cmd) -> Result<Process, Error> {
        let talk = |source| Error::Host {
            host: self.name.clone(),
            source,
        };
        let (mine, theirs) = stdio(command).map_err(talk)?;
        let mut stream = UnixStream::connect(&self.socket).map_err(talk)?;
        let request = Request {
            argv: command.argv.clone(),
            env: command.env.clone(),
            directory: command.directory.clone(),
            detached: command.detached,
        };
        let descriptors = [0, 1, 2].map(|i: usize| theirs[i].as_raw_fd());
        protocol::send(&mut stream, &request, descriptors).map_err(talk)?;
        match Answer::read(&stream).map_err(talk)? {
            Answer::Started(pid) => {
                let mut process = Process::new(pid, Box::new(Connection(stream)));
                process.stdin = mine.stdin.map(|pipe| Box::new(pipe) as _);
                process.stdout = mine.stdout;
                process.stderr = mine.stderr;
                Ok(process)
            }
            Answer::Refused(errno) | Answer::Ended(errno) => Err(Error::Spawn {
                host: self.name.clone(),
                command: command.line(),
                source: io::Error::from_raw_os_error(errno),
            }),
        }
    }
}

/// The connection to PID 1 that stands for one command.
struct Connection(UnixStream);

impl Control for Connection {
    fn signal(&mut self, signal: i32) -> io::Result<()> {
        let number = u8::try_from(signal).map_err(io::Error::other)?;
        match self.0.write_all(&[number]) {
            // It ended meanwhile.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    fn wait(&mut self, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
        // A timeout of zero means none to the kernel.
        self.0
            .set_read_timeout(limit.map(|l| l.max(Duration::from_millis(1))))?;
        match Answer::read(&self.0) {
            Ok(Answer::Ended(status)) => Ok(Some(ExitStatus::from_raw(status))),
            Ok(other) => Err(io::Error::other(format!("unexpected {other:?}"))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[derive(Default)]
struct Pipes {
    stdin: Option<PipeWriter>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
}

/// Our ends, and the three descriptors of the command.
fn stdio(command: &Cmd) -> io::Result<(Pipes, [OwnedFd; 3])> {
    let null = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
    };
    let mut mine = Pipes::default();
    if command.inherit {
        let theirs = [
            io::stdin().as_fd().try_clone_to_owned()?,
            io::stdout().as_fd().try_clone_to_owned()?,
            io::stderr().as_fd().try_clone_to_owned()?,
        ];
        return Ok((mine, theirs));
    }
    if command.detached {
        return Ok((mine, [null()?, null()?, null()?]));
    }
    let stdin = match command.input {
        Input::Null => null()?,
        Input::Bytes(_) | Input::Pipe => {
            let (read, write) = io::pipe()?;
            mine.stdin = Some(write);
            read.into()
        }
    };
    let (out, stdout) = io::pipe()?;
    let (err, stderr) = io::pipe()?;
    mine.stdout = Some(out);
    mine.stderr = Some(err);
    Ok((mine, [stdin, stdout.into(), stderr.into()]))
}
