//! The container's first process: starts the others, reaps, and ends all of them when it is told to.
use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Runs `commands` (each a program with its arguments) until SIGTERM or SIGINT (`Ok`), or until one of them ends by itself.
///
/// # Errors
/// A command does not start, or ended: which, and how.
pub fn run(commands: &[Vec<String>]) -> io::Result<()> {
    let mut watched = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        watched.add(signal);
    }
    watched.thread_block()?;
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC)?;
    let mut children = Vec::with_capacity(commands.len());
    for command in commands {
        children.push((start(command)?, command.join(" ")));
    }
    let ended = loop {
        match signals.read_signal()? {
            Some(s) if s.ssi_signo == Signal::SIGCHLD as u32 => {
                if let Some(end) = reap(&children)? {
                    break Err(end);
                }
            }
            Some(_) => break Ok(()),
            None => {}
        }
    };
    for (pid, _) in &children {
        match kill(*pid, Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(e.into()),
        }
    }
    for (pid, _) in &children {
        match waitpid(*pid, None) {
            Ok(_) | Err(Errno::ECHILD) => {}
            Err(e) => return Err(e.into()),
        }
    }
    ended
}

fn start(command: &[String]) -> io::Result<Pid> {
    let (program, args) = command
        .split_first()
        .ok_or_else(|| io::Error::other("an empty command"))?;
    let mut child = Command::new(program);
    child.args(args);
    unblock_signals(&mut child);
    let child = child
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("starting {program}: {e}")))?;
    Ok(Pid::from_raw(
        i32::try_from(child.id()).map_err(io::Error::other)?,
    ))
}

/// A signal mask survives exec; a child must start with its own signals open.
fn unblock_signals(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only sigprocmask is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(SigSet::all().thread_unblock()?));
    }
}

/// Reaps whatever has ended; says how if it was one of `children`.
fn reap(children: &[(Pid, String)]) -> io::Result<Option<io::Error>> {
    let mut ended = None;
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(ended),
            Ok(status) => status,
            Err(e) => return Err(e.into()),
        };
        let how = match status {
            WaitStatus::Exited(pid, code) => (pid, ExitStatus::from_raw(code << 8)),
            WaitStatus::Signaled(pid, signal, _) => (pid, ExitStatus::from_raw(signal as i32)),
            _ => continue,
        };
        if let Some((_, command)) = children.iter().find(|(pid, _)| *pid == how.0) {
            ended = Some(io::Error::other(format!("{command}: {}", how.1)));
        }
    }
}
