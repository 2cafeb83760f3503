//! A command for a host, and what comes of it.
use std::{process::ExitStatus, time::Duration};

use crate::Error;

/// How long [`Host::exec`](crate::Host::exec) waits, if the command does not say otherwise.
const LIMIT: Duration = Duration::from_secs(300);

/// What a command reads.
#[derive(Debug, Clone, Default)]
pub enum Input {
    /// Nothing: `/dev/null`.
    #[default]
    Null,
    /// These bytes, when run to its end by [`Host::exec`](crate::Host::exec).
    Bytes(Vec<u8>),
    /// What is written to [`Process::stdin`](crate::Process::stdin).
    Pipe,
}

/// A command to be run in a host.
#[derive(Debug, Clone)]
pub struct Cmd {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) directory: Option<String>,
    pub(crate) input: Input,
    pub(crate) detached: bool,
    pub(crate) inherit: bool,
    limit: Duration,
}

impl Cmd {
    /// The program, searched in the host's PATH, and its arguments.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            directory: None,
            input: Input::Null,
            detached: false,
            inherit: false,
            limit: LIMIT,
        }
    }

    /// A shell script, which ends at the first command that fails.
    #[must_use]
    pub fn sh(script: &str) -> Self {
        Self::new(["sh", "-euc", script])
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.argv.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The directory that it starts in; `/root` otherwise.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<String>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What it reads.
    #[must_use]
    pub fn stdin(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// It goes on when its [`Process`](crate::Process) is dropped, until the host ends; it reads and writes nothing.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// It reads and writes what this process does (not on hosts that have no such way).
    #[must_use]
    pub fn inherit(mut self) -> Self {
        self.inherit = true;
        self
    }

    /// How long [`Host::exec`](crate::Host::exec) lets it run (300 s otherwise).
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The command as one line, for messages.
    #[must_use]
    pub fn line(&self) -> String {
        self.argv.join(" ")
    }

    /// The program and its arguments.
    #[must_use]
    pub fn argv(&self) -> &[String] {
        &self.argv
    }

    /// The variables that were set.
    #[must_use]
    pub fn variables(&self) -> &[(String, String)] {
        &self.env
    }

    /// The directory that was asked for.
    #[must_use]
    pub fn working_directory(&self) -> Option<&str> {
        self.directory.as_deref()
    }

    /// What it reads.
    #[must_use]
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// Whether it outlives its [`Process`](crate::Process).
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.detached
    }

    /// How long [`Host::exec`](crate::Host::exec) lets it run.
    #[must_use]
    pub fn time_limit(&self) -> Duration {
        self.limit
    }

    pub(crate) fn input_bytes(&self) -> &[u8] {
        match &self.input {
            Input::Bytes(bytes) => bytes,
            Input::Null | Input::Pipe => &[],
        }
    }
}

/// What a command left when it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Its standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// An error that tells everything, if it did not exit with 0.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn check(&self, host: &str, command: &Cmd) -> Result<(), Error> {
        if self.status.success() {
            return Ok(());
        }
        let told = if self.stderr.is_empty() {
            self.text()
        } else {
            self.errors()
        };
        Err(Error::Command {
            host: host.to_owned(),
            command: command.line(),
            status: self.status,
            stderr: told.trim_end().to_owned(),
        })
    }
}
