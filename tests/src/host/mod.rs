//! A host of a lab: a place where commands run and files lie.
mod command;
mod namespace;
mod process;
pub(crate) mod protocol;

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

pub use command::{Cmd, Input, Output};
pub use namespace::NamespaceHost;
pub use process::{Control, Process};

use crate::Error;

/// A host. Only [`name`](Host::name), [`spawn`](Host::spawn) and [`netns`](Host::netns) differ by kind; the rest stands on them, and
/// a kind that has a better way may say so.
pub trait Host: Send + Sync {
    /// The host's name, which is also its hostname and how the other hosts address it.
    fn name(&self) -> &str;

    /// Starts a command. It is killed when its [`Process`] is dropped, unless it was [detached](Cmd::detached).
    ///
    /// # Errors
    /// [`Error::Spawn`] if there is no such program, [`Error::Host`] if the host does not answer.
    fn spawn(&self, command: &Cmd) -> Result<Process, Error>;

    /// The host's own network namespace as a path on this machine; none for a host that has a kernel of its own.
    fn netns(&self) -> Option<PathBuf>;

    /// Runs a command to its end, whatever its exit status.
    ///
    /// # Errors
    /// As [`spawn`](Host::spawn); [`Error::Timeout`] if it ran into its [limit](Cmd::limit).
    fn exec(&self, command: &Cmd) -> Result<Output, Error> {
        collect(self.name(), command, self.spawn(command)?)
    }

    /// Runs a command that must exit with 0, and gives its output without the last line's end.
    ///
    /// # Errors
    /// As [`exec`](Host::exec); [`Error::Command`] if it failed.
    fn run(&self, argv: &[&str]) -> Result<String, Error> {
        self.run_cmd(&Cmd::new(argv.iter().copied()))
    }

    /// As [`run`](Host::run), for a command that was put together.
    ///
    /// # Errors
    /// As [`run`](Host::run).
    fn run_cmd(&self, command: &Cmd) -> Result<String, Error> {
        let output = self.exec(command)?;
        output.check(self.name(), command)?;
        Ok(output.text().trim_end_matches('\n').to_owned())
    }

    /// Runs a shell script (`sh -euc`) that must exit with 0, and gives its output without the last line's end.
    ///
    /// # Errors
    /// As [`run`](Host::run).
    fn sh(&self, script: &str) -> Result<String, Error> {
        self.run_cmd(&Cmd::sh(script))
    }

    /// Writes a file, makes its directories, and gives it the permissions `mode`.
    ///
    /// # Errors
    /// As [`run`](Host::run).
    fn write(&self, path: &str, contents: &[u8], mode: u32) -> Result<(), Error> {
        let script = r#"mkdir -p "$(dirname "$1")"; cat >"$1"; chmod "$2" "$1""#;
        let mode = format!("{mode:o}");
        let write = Cmd::new(["sh", "-euc", script, "sh", path, mode.as_str()]);
        self.run_cmd(&write.stdin(Input::Bytes(contents.to_vec())))
            .map(drop)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`run`](Host::run).
    fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        let read = Cmd::new(["cat", "--", path]);
        let output = self.exec(&read)?;
        output.check(self.name(), &read)?;
        Ok(output.stdout)
    }

    /// Copies a file of this machine to the host, with its permissions.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, else as [`write`](Host::write).
    fn push(&self, from: &Path, to: &str) -> Result<(), Error> {
        let contents = fs::read(from).map_err(Error::file("reading", from))?;
        let metadata = fs::metadata(from).map_err(Error::file("reading", from))?;
        self.write(to, &contents, metadata.permissions().mode() & 0o7777)
    }

    /// Copies a file of the host to this machine.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written, else as [`read`](Host::read).
    fn pull(&self, from: &str, to: &Path) -> Result<(), Error> {
        fs::write(to, self.read(from)?).map_err(Error::file("writing", to))
    }

    /// Runs a script each 20 ms until it exits with 0, at most `limit` long.
    ///
    /// # Errors
    /// As [`run`](Host::run): that of the last try.
    fn wait_for(&self, script: &str, limit: Duration) -> Result<String, Error> {
        let end = Instant::now() + limit;
        loop {
            match self.sh(script) {
                Err(Error::Command { .. }) if Instant::now() < end => {
                    thread::sleep(Duration::from_millis(20));
                }
                last => return last,
            }
        }
    }
}

/// Feeds and drains a process until it ends.
fn collect(host: &str, command: &Cmd, mut process: Process) -> Result<Output, Error> {
    let limit = command.time_limit();
    let talk = |source| Error::Host {
        host: host.to_owned(),
        source,
    };
    let stdin = process.stdin.take();
    let stdout = drain(process.stdout.take());
    let stderr = drain(process.stderr.take());
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
    // A daemon that the command left behind may hold the pipes: what came until a second after its end counts.
    let patience = Duration::from_secs(1);
    let (stdout, stderr) = (finish(&stdout, patience), finish(&stderr, patience));
    if let Some(fed) = fed
        && fed.is_finished()
    {
        let written = fed
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.map_err(talk)?;
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

fn drain(pipe: Option<Box<dyn Read + Send>>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        thread::spawn(move || {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(n) = pipe.read(&mut chunk)
                && n > 0
                && send.send(chunk[..n].to_vec()).is_ok()
            {}
        });
    }
    receive
}

fn finish(chunks: &mpsc::Receiver<Vec<u8>>, patience: Duration) -> Vec<u8> {
    let end = Instant::now() + patience;
    let mut all = Vec::new();
    while let Ok(chunk) = chunks.recv_timeout(end.saturating_duration_since(Instant::now())) {
        all.extend(chunk);
    }
    all
}
