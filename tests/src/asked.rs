//! A client on a lab's host that answers each line on its standard input with a line of JSON, and says its last when its input ends.
use std::io::{BufRead as _, BufReader, Lines, PipeReader, Read as _, Write as _};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Cmd, Host, Input, Process, demo::Error, peers::stop::READY};

/// The process.
pub struct Asked {
    name: &'static str,
    process: Process,
    lines: Option<Lines<BufReader<PipeReader>>>,
}

impl Asked {
    /// Starts it, and waits until it says that it is ready. `name` is for errors.
    ///
    /// # Errors
    /// It cannot be started, or says something else.
    pub fn start(host: &dyn Host, name: &'static str, command: Cmd) -> Result<Self, Error> {
        let mut process = host.spawn(&command.stdin(Input::Pipe))?;
        let lines = process.stdout.take().map(|out| BufReader::new(out).lines());
        let mut asked = Self {
            name,
            process,
            lines,
        };
        let first = asked.line()?;
        if first != READY {
            return Err(asked.error(&format!("said `{first}` before it was ready")));
        }
        Ok(asked)
    }

    /// Asks it; `null` is a question too.
    ///
    /// # Errors
    /// It has ended, or its answer is none.
    pub fn ask<T: DeserializeOwned>(&mut self, question: &impl Serialize) -> Result<T, Error> {
        let text = serde_json::to_string(question).map_err(|e| self.error(&e.to_string()))?;
        let asked = match &mut self.process.stdin {
            Some(stdin) => writeln!(stdin, "{text}").and_then(|()| stdin.flush()),
            None => Ok(()),
        };
        asked.map_err(|e| self.error(&e.to_string()))?;
        self.told()
    }

    /// Ends its input; what it says then.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn finish<T: DeserializeOwned>(mut self) -> Result<T, Error> {
        drop(self.process.stdin.take());
        self.told()
    }

    fn told<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let line = self.line()?;
        serde_json::from_str(&line).map_err(|e| self.error(&format!("`{line}`: {e}")))
    }

    fn line(&mut self) -> Result<String, Error> {
        match self.lines.as_mut().and_then(Iterator::next) {
            Some(Ok(line)) => Ok(line),
            Some(Err(e)) => Err(self.error(&e.to_string())),
            None => Err(self.error("it has ended")),
        }
    }

    fn error(&mut self, what: &str) -> Error {
        let mut said = what.to_owned();
        // It has ended, or says nothing: what it complains of is read to its end only then.
        if self.process.signal(libc::SIGKILL).is_ok()
            && let Some(mut errors) = self.process.stderr.take()
        {
            said.push_str(": ");
            if let Err(e) = errors.read_to_string(&mut said) {
                said.push_str(&e.to_string());
            }
        }
        Error::Client {
            name: self.name.to_owned(),
            said,
        }
    }
}
