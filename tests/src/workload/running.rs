//! Clients that run.
use std::{
    io::{BufRead, BufReader, PipeReader},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::Client;
use crate::{
    Cmd, Host, Input, Process,
    demo::Error,
    peers::{Outcome, stop::READY},
};

/// Clients on one host. Dropped, they are killed.
#[derive(Debug)]
pub struct Running {
    clients: Vec<One>,
}

#[derive(Debug)]
struct One {
    name: String,
    process: Process,
    lines: mpsc::Receiver<String>,
    complaints: Arc<Mutex<String>>,
}

impl Running {
    /// Starts `clients` on `host`, where `program` is `netmig-peer`'s path.
    ///
    /// # Errors
    /// The host does not answer, or has no such program.
    pub fn start(host: &dyn Host, program: &str, clients: &[Client]) -> Result<Self, Error> {
        let start = |client: &Client| {
            let command = Cmd::new([program])
                .args(client.args.iter().cloned())
                .stdin(Input::Pipe);
            let mut process = host.spawn(&command)?;
            let lines = read_lines(process.stdout.take());
            let complaints = keep(process.stderr.take());
            Ok(One {
                name: client.name.clone(),
                process,
                lines,
                complaints,
            })
        };
        Ok(Self {
            clients: clients.iter().map(start).collect::<Result<_, Error>>()?,
        })
    }

    /// Waits until every client is warm.
    ///
    /// # Errors
    /// A client ended, or is not warm after `limit`.
    pub fn wait_warm(&self, limit: Duration) -> Result<(), Error> {
        let end = Instant::now() + limit;
        for client in &self.clients {
            let line = client
                .next_line(end)
                .map_err(|e| e.while_doing("becoming warm", client))?;
            if line != READY {
                return Err(client.error(format!("said `{line}` before it was warm")));
            }
        }
        Ok(())
    }

    /// Stops every client and collects what they saw, in the order in which they were started.
    ///
    /// # Errors
    /// A client says nothing within `limit`, or no outcome.
    pub fn stop(mut self, limit: Duration) -> Result<Vec<Outcome>, Error> {
        for client in &mut self.clients {
            drop(client.process.stdin.take());
        }
        let end = Instant::now() + limit;
        let mut outcomes = Vec::with_capacity(self.clients.len());
        for client in &self.clients {
            let line = client
                .next_line(end)
                .map_err(|e| e.while_doing("telling its outcome", client))?;
            let outcome = serde_json::from_str(&line)
                .map_err(|e| client.error(format!("said `{line}`: {e}")))?;
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

/// Why there is no line.
enum NoLine {
    Ended,
    TooLate,
}

impl NoLine {
    fn while_doing(&self, what: &str, client: &One) -> Error {
        client.error(match self {
            Self::Ended => format!("ended without {what}"),
            Self::TooLate => format!("took too long for {what}"),
        })
    }
}

impl One {
    fn next_line(&self, end: Instant) -> Result<String, NoLine> {
        self.lines
            .recv_timeout(end.saturating_duration_since(Instant::now()))
            .map_err(|e| match e {
                mpsc::RecvTimeoutError::Disconnected => NoLine::Ended,
                mpsc::RecvTimeoutError::Timeout => NoLine::TooLate,
            })
    }

    fn error(&self, what: String) -> Error {
        let complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let said = if complaints.is_empty() {
            what
        } else {
            format!("{what}: {}", complaints.trim_end())
        };
        Error::Client {
            name: self.name.clone(),
            said,
        }
    }
}

fn read_lines(pipe: Option<PipeReader>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    if let Some(pipe) = pipe {
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
    }
    receive
}

/// Keeps what a client complains of, for the error that follows.
fn keep(pipe: Option<PipeReader>) -> Arc<Mutex<String>> {
    let kept = Arc::<Mutex<String>>::default();
    if let Some(pipe) = pipe {
        let kept = kept.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_str(&line);
                kept.push('\n');
            }
        });
    }
    kept
}
