//! PID 1 of a host: puts the host together, then starts what is asked of it and reaps what ends.
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, killpg},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{Pid, dup2_stdin, dup2_stdout, sethostname, setsid},
};

use super::{
    files, keys, mounts, network,
    options::{HostSpec, Spec},
};
use crate::host::protocol::{self, Answer, Request};

const ENVIRONMENT: [(&str, &str); 6] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
];

/// A host that is put together and waits for commands.
pub(super) struct Ready<'a> {
    listener: &'a UnixListener,
    signals: SignalFd,
    jobs: Vec<Job>,
}

/// A command that was asked for and runs.
struct Job {
    pid: i32,
    stream: UnixStream,
    detached: bool,
}

/// Puts the host together in the namespaces that this process is in already. `linked` says when the uplink is there.
pub(super) fn main<'a>(
    spec: &Spec,
    host: &HostSpec,
    keys: &keys::Keys,
    listener: &'a UnixListener,
    linked: BorrowedFd<'_>,
) -> anyhow::Result<Ready<'a>> {
    setsid().context("starting a session")?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_set_mask().context("setting the signal mask")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&mask, flags).context("making a signalfd")?;

    mounts::make(spec, host)?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("opening /dev/null")?;
    dup2_stdin(&null).context("closing the standard input")?;
    dup2_stdout(&null).context("closing the standard output")?;
    sethostname(&host.name).context("setting the hostname")?;
    files::write(spec, host, keys)?;

    let mut line = String::new();
    let linked = linked.try_clone_to_owned().context("duplicating a pipe")?;
    BufReader::new(File::from(linked))
        .read_line(&mut line)
        .context("waiting for the uplink")?;
    if line.is_empty() {
        bail!("the keeper gave up");
    }
    network::configure(host)?;
    if host.full {
        start_sshd()?;
    }
    listener
        .set_nonblocking(true)
        .context("making the socket not block")?;
    Ok(Ready {
        listener,
        signals,
        jobs: Vec::new(),
    })
}

pub(super) fn start_sshd() -> anyhow::Result<()> {
    std::fs::create_dir_all("/run/sshd").context("creating /run/sshd")?;
    let mut sshd = Command::new("/usr/sbin/sshd");
    // SAFETY: pthread_sigmask is async-signal-safe and touches no memory.
    unsafe { sshd.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) };
    let output = sshd.output().context("starting sshd")?;
    if !output.status.success() {
        bail!(
            "sshd: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    // It leaves for the background before it listens, and writes this file after.
    let end = Instant::now() + Duration::from_secs(10);
    while !Path::new("/run/sshd.pid").exists() {
        if Instant::now() > end {
            bail!("sshd did not come up");
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Ready<'_> {
    /// Serves until the host is killed.
    pub(super) fn serve(mut self) -> anyhow::Result<()> {
        loop {
            self.wait()?;
            self.reap();
            match self.listener.accept() {
                Ok((stream, _)) => self.start(stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).context("accepting a connection"),
            }
            self.jobs.retain_mut(Job::listen);
        }
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let mut waits = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        let streams = self.jobs.iter().map(|job| job.stream.as_fd());
        waits.extend(streams.map(|stream| PollFd::new(stream, PollFlags::POLLIN)));
        match poll(&mut waits, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).context("waiting"),
        }
        while self
            .signals
            .read_signal()
            .context("reading a signal")?
            .is_some()
        {}
        Ok(())
    }

    /// Takes every process that has ended, and tells who waits for it.
    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: waitpid writes the status into a local that outlives the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            if let Some(at) = self.jobs.iter().position(|job| job.pid == pid) {
                let job = self.jobs.swap_remove(at);
                tell(&job.stream, Answer::Ended(status));
            }
        }
    }

    fn start(&mut self, mut stream: UnixStream) {
        let started = ask(&mut stream).and_then(|(request, stdio)| {
            let child = command(&request, stdio)?.spawn()?;
            stream.set_nonblocking(true)?;
            Ok((child.id().cast_signed(), request.detached))
        });
        let answer = match &started {
            Ok((pid, _)) => Answer::Started(*pid),
            Err(e) => Answer::Refused(e.raw_os_error().unwrap_or(libc::EPROTO)),
        };
        tell(&stream, answer);
        if let Ok((pid, detached)) = started {
            self.jobs.push(Job {
                pid,
                stream,
                detached,
            });
        }
    }
}

/// Answers. If who asked is gone, the connection says so at the next turn.
fn tell(stream: &UnixStream, answer: Answer) {
    if let Err(e) = answer.write(stream)
        && e.kind() != io::ErrorKind::BrokenPipe
    {
        eprintln!("answering {answer:?}: {e}");
    }
}

/// Reads what is asked; a caller that stalls must not hold up the host.
fn ask(stream: &mut UnixStream) -> io::Result<(Request, [OwnedFd; 3])> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    protocol::receive(stream)
}

fn command(request: &Request, stdio: [OwnedFd; 3]) -> io::Result<Command> {
    let [program, arguments @ ..] = request.argv.as_slice() else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let [stdin, stdout, stderr] = stdio.map(Stdio::from);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT)
        .envs(request.env.iter().map(|(name, value)| (name, value)))
        .current_dir(request.directory.as_deref().unwrap_or("/root"))
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    let own = || {
        setsid()?;
        Ok(SigSet::empty().thread_set_mask()?)
    };
    // SAFETY: setsid and pthread_sigmask are async-signal-safe and touch no memory.
    unsafe { command.pre_exec(own) };
    Ok(command)
}

impl Job {
    /// Passes on signals that were asked for; kills the command if nobody is there any more. Gives whether somebody is.
    fn listen(&mut self) -> bool {
        let mut signals = [0; 16];
        match (&self.stream).read(&mut signals) {
            Ok(0) => {
                if !self.detached {
                    self.signal(libc::SIGKILL);
                }
                false
            }
            Ok(n) => {
                for signal in &signals[..n] {
                    self.signal(i32::from(*signal));
                }
                true
            }
            Err(e) => matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }

    fn signal(&self, signal: i32) {
        // The group may have ended a moment ago; a number that is no signal does nothing.
        if let Ok(signal) = Signal::try_from(signal) {
            match killpg(Pid::from_raw(self.pid), signal) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(e) => eprintln!("{signal} to process group {}: {e}", self.pid),
            }
        }
    }
}
