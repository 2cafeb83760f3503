//! A guest as a host of a lab.

use std::io;
use std::path::PathBuf;

use super::client::{Remote, Sinks, StartError};
use super::frame::Spawn;
use super::{Error, Spec, Vm};
use crate::host::{Cmd, Host, Input, Process};

/// A host with a kernel of its own: a guest that lives as long as this value.
#[derive(Debug)]
pub struct VmHost {
    name: String,
    vm: Vm,
}

impl VmHost {
    /// Boots a guest, to be known by its host name.
    pub fn boot(spec: &Spec) -> Result<Self, Error> {
        Ok(Self {
            name: spec.name.clone(),
            vm: Vm::boot(spec)?,
        })
    }

    /// The machine.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Starts a command on a terminal of its own of so many (rows, columns), joined to this process's standard input and
    /// output.
    ///
    /// # Errors
    /// As [`Host::spawn`].
    pub fn on_terminal(&self, command: &Cmd, size: (u16, u16)) -> Result<Process, crate::Error> {
        self.start(&command.clone().inherit(), Some(size))
    }

    fn start(&self, command: &Cmd, terminal: Option<(u16, u16)>) -> Result<Process, crate::Error> {
        let lost = |source| crate::Error::Host {
            host: self.name.clone(),
            source,
        };
        let spawn = Spawn {
            argv: command.argv.clone(),
            env: command.env.clone(),
            directory: command.directory.clone(),
            detached: command.detached,
            terminal,
        };
        let (sinks, stdout, stderr) = outputs(command).map_err(lost)?;
        let started = Remote::start(&self.vm.socket(), &spawn, sinks);
        let remote = started.map_err(|error| match error {
            StartError::Lost(source) => lost(source),
            StartError::Refused(source) => crate::Error::Spawn {
                host: self.name.clone(),
                command: command.line(),
                source,
            },
        })?;
        let stdin = remote.stdin().map_err(lost)?;
        let stdin = match &command.input {
            _ if command.inherit => {
                stdin.follow(io::stdin()).map_err(lost)?;
                None
            }
            Input::Bytes(_) | Input::Pipe if !command.detached => Some(stdin),
            _ => None, // dropped: an end of file is all that the command reads
        };
        let mut process = Process::new(remote.pid, Box::new(remote));
        process.stdin = stdin.map(|stdin| Box::new(stdin) as _);
        process.stdout = stdout;
        process.stderr = stderr;
        Ok(process)
    }
}

impl Host for VmHost {
    fn name(&self) -> &str {
        &self.name
    }

    fn netns(&self) -> Option<PathBuf> {
        None
    }

    fn spawn(&self, command: &Cmd) -> Result<Process, crate::Error> {
        self.start(command, None)
    }
}

type Pipe = Option<io::PipeReader>;

/// Where the command's output goes, and our ends of its pipes.
fn outputs(command: &Cmd) -> io::Result<(Sinks, Pipe, Pipe)> {
    let to = |stdout, stderr, complete| Sinks {
        stdout,
        stderr,
        complete,
    };
    if command.inherit {
        let sinks = to(Box::new(io::stdout()), Box::new(io::stderr()), true);
        return Ok((sinks, None, None));
    }
    if command.detached {
        let sinks = to(Box::new(io::sink()), Box::new(io::sink()), false);
        return Ok((sinks, None, None));
    }
    let (stdout, to_stdout) = io::pipe()?;
    let (stderr, to_stderr) = io::pipe()?;
    let sinks = to(Box::new(to_stdout), Box::new(to_stderr), false);
    Ok((sinks, Some(stdout), Some(stderr)))
}
