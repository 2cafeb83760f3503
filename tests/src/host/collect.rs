//! A command run to its end: what it reads is given to it, and all that it says is kept.
use std::{
    io::{self, PipeReader, Read as _, Write as _},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Cmd, Output, Process};
use crate::Error;

/// A daemon that the command left behind may hold the pipes: what comes until so long after the command's end counts.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks whether the command has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Feeds and drains a process until it ends.
pub(super) fn collect(host: &str, command: &Cmd, mut process: Process) -> Result<Output, Error> {
    let limit = command.time_limit();
    let talk = |source| Error::Host {
        host: host.to_owned(),
        source,
    };
    let ended = Arc::new(AtomicBool::new(false));
    let stdin = process.stdin.take();
    let stdout = drain(process.stdout.take(), &ended);
    let stderr = drain(process.stderr.take(), &ended);
    let fed = stdin.map(|mut pipe| {
        let bytes = command.input_bytes().to_vec();
        thread::spawn(move || match pipe.write_all(&bytes) {
            // A program may well end before it has read everything: what counts is its exit status.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        })
    });
    let status = process.wait_for(limit).map_err(talk)?;
    if status.is_none() {
        process.signal(libc::SIGKILL).map_err(talk)?;
        process.wait().map_err(talk)?;
    }
    ended.store(true, Ordering::SeqCst);
    let (stdout, stderr) = (finish(stdout).map_err(talk)?, finish(stderr).map_err(talk)?);
    if let Some(fed) = fed
        && fed.is_finished()
    {
        joined(fed).map_err(talk)?;
    }
    match status {
        Some(status) => Ok(Output {
            status,
            stdout,
            stderr,
        }),
        None => Err(Error::Timeout {
            host: host.to_owned(),
            command: command.line(),
            seconds: limit.as_secs(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }),
    }
}

type Draining = Option<JoinHandle<io::Result<Vec<u8>>>>;

fn drain(pipe: Option<PipeReader>, ended: &Arc<AtomicBool>) -> Draining {
    let ended = ended.clone();
    pipe.map(|pipe| thread::spawn(move || to_the_end(pipe, &ended)))
}

/// All that comes, until nobody holds the other end, or the command has ended and nothing has come for [`PATIENCE`] and nothing is there: on a machine
/// that is busy this thread may not have run since the command wrote its last.
fn to_the_end(mut pipe: PipeReader, ended: &AtomicBool) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    let mut until: Option<Instant> = None;
    loop {
        let limit = until.map_or(LOOK, |end| end.saturating_duration_since(Instant::now()));
        let limit = PollTimeout::try_from(limit).map_err(io::Error::other)?;
        let mut wanted = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, limit)? == 0 {
            match until {
                Some(end) if Instant::now() >= end => return Ok(all),
                None if ended.load(Ordering::SeqCst) => until = Some(Instant::now() + PATIENCE),
                _ => {}
            }
            continue;
        }
        let read = pipe.read(&mut chunk)?;
        if read == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&chunk[..read]);
    }
}

fn finish(draining: Draining) -> io::Result<Vec<u8>> {
    draining.map_or_else(|| Ok(Vec::new()), joined)
}

fn joined<T>(thread: JoinHandle<T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_the_end_is_read_however_late() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(b"last words").expect("written");
        let ended = AtomicBool::new(true);
        // A daemon holds the other end.
        let began = Instant::now();
        let said = to_the_end(reader, &ended).expect("read");
        assert_eq!(said, b"last words");
        assert!(began.elapsed() >= PATIENCE);
        drop(writer);
    }

    #[test]
    fn it_ends_with_the_pipe() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let thread = thread::spawn(move || to_the_end(reader, &AtomicBool::new(false)));
        writer.write_all(b"some").expect("written");
        drop(writer);
        assert_eq!(joined(thread).expect("read"), b"some");
    }
}
