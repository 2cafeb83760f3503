//! The commands that run in a guest: one process group each, its input and output carried in
//! frames.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::frame::{CHUNK, Frame, Kind, Spawn};

/// As on the lab's other hosts.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("PATH", super::guest::PATH),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
];

/// Where frames for the host go.
type ToHost = dyn Fn(&Frame) -> io::Result<()> + Send + Sync;

/// The running commands.
#[derive(Clone)]
pub struct Sessions {
    to_host: Arc<ToHost>,
    running: Arc<Mutex<HashMap<u32, Session>>>,
}

struct Session {
    /// The process group, which is also a session of its own.
    group: Pid,
    detached: bool,
    /// No bound: a command that does not read must not keep the others from hearing. What waits
    /// is at most what the host sends.
    stdin: Sender<Vec<u8>>,
}

impl Sessions {
    /// No command yet; `to_host` must write a frame in one piece.
    pub fn new(to_host: impl Fn(&Frame) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self {
            to_host: Arc::new(to_host),
            running: Arc::default(),
        }
    }

    /// Sends a frame to the host.
    pub fn send(&self, frame: &Frame) -> io::Result<()> {
        (self.to_host)(frame)
    }

    /// Does what the host asks. An error is the channel's; one of a command goes to the host.
    pub fn handle(&self, frame: Frame) -> io::Result<()> {
        let channel = frame.channel;
        match frame.kind {
            Kind::Spawn => match serde_json::from_slice(&frame.body)
                .map_err(io::Error::from)
                .and_then(|spawn: Spawn| self.start(channel, &spawn))
            {
                Ok(()) => Ok(()),
                Err(why) => {
                    let number = why.raw_os_error().unwrap_or(libc::EINVAL);
                    self.send(&Frame::new(channel, Kind::Refused, number.to_le_bytes()))
                }
            },
            Kind::Stdin => {
                if let Some(session) = self.running().get(&channel) {
                    // The thread at the other end is gone when the command closed its input.
                    drop(session.stdin.send(frame.body));
                }
                Ok(())
            }
            Kind::Signal => {
                let signal = Signal::try_from(frame.number()?)?;
                self.signal(channel, signal, |_| true)
            }
            Kind::Hangup => {
                self.signal(channel, Signal::SIGKILL, |session| !session.detached)?;
                // What it left running may still read.
                if let Some(session) = self.running().get(&channel) {
                    drop(session.stdin.send(Vec::new()));
                }
                Ok(())
            }
            kind => Err(io::Error::other(format!("{kind:?} from the host"))),
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<u32, Session>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(
        &self,
        channel: u32,
        signal: Signal,
        to: impl Fn(&Session) -> bool,
    ) -> io::Result<()> {
        let running = self.running();
        let session = running.get(&channel).filter(|session| to(session));
        match session.map(|session| killpg(session.group, signal)) {
            // It ended just now, or before.
            None | Some(Ok(()) | Err(Errno::ESRCH)) => Ok(()),
            Some(Err(errno)) => Err(errno.into()),
        }
    }

    fn start(&self, channel: u32, spawn: &Spawn) -> io::Result<()> {
        let [program, arguments @ ..] = spawn.argv.as_slice() else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(ENVIRONMENT)
            .envs(spawn.env.iter().map(|(name, value)| (name, value)))
            .current_dir(spawn.directory.as_deref().unwrap_or("/root"));
        let (mut child, streams) = match spawn.terminal {
            Some(size) => on_terminal(command, size)?,
            None if spawn.detached => on_nothing(command)?,
            None => on_pipes(command)?,
        };
        let pid = child.id().cast_signed();
        self.send(&Frame::new(channel, Kind::Started, pid.to_le_bytes()))?;

        let (stdin, chunks) = mpsc::channel();
        let session = Session {
            group: Pid::from_raw(pid),
            detached: spawn.detached,
            stdin,
        };
        self.running().insert(channel, session);
        let terminal = spawn.terminal.is_some();
        thread::spawn(move || feed(streams.stdin, &chunks, terminal));
        for (kind, output) in [
            (Kind::Stdout, streams.stdout),
            (Kind::Stderr, streams.stderr),
        ] {
            let sessions = self.clone();
            thread::spawn(move || sessions.forward(channel, kind, output));
        }
        let sessions = self.clone();
        thread::spawn(move || {
            let status = child.wait().map_or(127 << 8, ExitStatus::into_raw);
            sessions.running().remove(&channel);
            // A failed write: the host has gone, and the agent's reading thread sees that too.
            drop(sessions.send(&Frame::new(channel, Kind::Exit, status.to_le_bytes())));
        });
        Ok(())
    }

    /// Sends what `output` gives, and an empty frame at its end.
    fn forward(&self, channel: u32, kind: Kind, mut output: Box<dyn Read + Send>) {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = match output.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // EIO: the last process has closed a terminal.
                Err(_) => 0,
                Ok(count) => count,
            };
            let sent = self.send(&Frame::new(channel, kind, &chunk[..count]));
            if sent.is_err() || count == 0 {
                return;
            }
        }
    }
}

struct Streams {
    stdin: Box<dyn Write + Send>,
    stdout: Box<dyn Read + Send>,
    stderr: Box<dyn Read + Send>,
}

fn on_pipes(mut command: Command) -> io::Result<(Child, Streams)> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = in_session(&mut command, false).spawn()?;
    let taken = child.stdin.take().zip(child.stdout.take());
    let ((stdin, stdout), stderr) = taken
        .zip(child.stderr.take())
        .ok_or_else(|| io::Error::other("no pipes were made"))?;
    let streams = Streams {
        stdin: Box::new(stdin),
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
    };
    Ok((child, streams))
}

fn on_nothing(mut command: Command) -> io::Result<(Child, Streams)> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = in_session(&mut command, false).spawn()?;
    let streams = Streams {
        stdin: Box::new(io::sink()),
        stdout: Box::new(io::empty()),
        stderr: Box::new(io::empty()),
    };
    Ok((child, streams))
}

/// The command gets a session of its own, with its standard input as the terminal of that if `terminal`.
fn in_session(command: &mut Command, terminal: bool) -> &mut Command {
    // SAFETY: between fork and exec only setsid and ioctl are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            if terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

fn on_terminal(mut command: Command, size: (u16, u16)) -> io::Result<(Child, Streams)> {
    let (ours, theirs) = open_terminal(size)?;
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs);
    let child = in_session(&mut command, true).spawn()?;
    // `command` goes out of scope here and with it our copies of the command's end: the last one
    // closed is then the end of the output.
    let streams = Streams {
        stdin: Box::new(ours.try_clone()?),
        stdout: Box::new(ours),
        stderr: Box::new(io::empty()),
    };
    Ok((child, streams))
}

fn open_terminal((rows, columns): (u16, u16)) -> io::Result<(File, OwnedFd)> {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the first two point to places for a descriptor, the name may be null, and so may the
    // settings; `size` lives through the call.
    let opened = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    if opened == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: openpty has just made both descriptors, and nothing else knows them.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    // openpty does not set it, and a command started at the same time must not inherit ours.
    nix::fcntl::fcntl(
        &ours,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    nix::fcntl::fcntl(
        &theirs,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    Ok((File::from(ours), theirs))
}

/// Gives a command its input until that ends or the command closes it.
fn feed(mut stdin: Box<dyn Write + Send>, chunks: &mpsc::Receiver<Vec<u8>>, terminal: bool) {
    const END_OF_TRANSMISSION: u8 = 4; // ^D; a terminal has no other end of file
    for chunk in chunks {
        let written = match (chunk.is_empty(), terminal) {
            (true, true) => stdin.write_all(&[END_OF_TRANSMISSION]),
            (true, false) => return,
            (false, _) => stdin.write_all(&chunk),
        };
        if written.is_err() {
            return;
        }
    }
}
