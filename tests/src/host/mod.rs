//! A host of a lab: a place where commands run and files lie.
mod collect;
mod command;
mod namespace;
mod process;
pub(crate) mod protocol;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
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
        collect::collect(self.name(), command, self.spawn(command)?)
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
