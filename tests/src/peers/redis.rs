//! Verified SET/GET on many connections from outside or on one inside the container.
use std::{
    io,
    net::SocketAddr,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use super::{
    Direction, Kind, Outcome,
    failure::Failures,
    pattern,
    pauses::Pauses,
    resp::{self, Connection, Reply},
    stop::Stop,
    tcp_info,
};

/// Each connection writes this many keys in turn and reads each back one turn later: a lost write shows as well as a wrong one.
const KEYS: u64 = 16;
/// How long a reply may take before it is an error.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long the server may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Between the loss of a connection and the next attempt.
const BACK_OFF: Duration = Duration::from_millis(50);
/// How often the loopback client tells how it is.
const STATUS_PERIOD: Duration = Duration::from_millis(100);

/// The key under which the loopback client keeps its [`Outcome`] as JSON.
pub const LOOPBACK_STATUS: &str = "netmig:loopback";

/// How busy a connection is kept, and how long it is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between the end of an operation and the next one.
    pub every: Duration,
    /// How long a reply may take before it is an error.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            every: Duration::ZERO,
            patience: PATIENCE,
        }
    }
}

/// What one connection did.
#[derive(Debug, Default)]
struct Tally {
    operations: u64,
    bytes: u64,
    connects: u64,
    retransmits: u64,
    failures: Failures,
    pauses: Pauses,
}

impl Tally {
    fn merge(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.connects += other.connects;
        self.retransmits += other.retransmits;
        self.failures.merge(&other.failures);
        self.pauses.merge(&other.pauses);
    }

    fn outcome(&self, name: &str, kind: Kind) -> Outcome {
        let mut outcome = Outcome::new(name, kind, Direction::Both, &self.failures, &self.pauses);
        outcome.row.operations = Some(self.operations);
        outcome.row.bytes = self.bytes;
        outcome.row.retransmits = Some(self.retransmits);
        outcome.connects = self.connects;
        outcome
    }
}

/// Runs `connections` connections to redis at `to` until told to stop; `ready` is called when each of them has worked.
///
/// # Errors
/// Redis is not there at the start, or `ready`'s.
pub fn load(
    name: &str,
    to: SocketAddr,
    connections: usize,
    pace: Pace,
    stop: &Stop,
    ready: impl FnOnce() -> io::Result<()>,
) -> io::Result<Outcome> {
    resp::open_when_there(to, pace.patience, START_LIMIT)?;
    let warm = Barrier::new(connections + 1);
    let mut sum = Tally::default();
    let said = thread::scope(|scope| {
        let workers: Vec<_> = (0..connections)
            .map(|i| {
                let warm = &warm;
                scope.spawn(move || {
                    let mut worker = Worker::new(format!("{name}:{i}"), to, pace);
                    worker.run_until(stop, |done| {
                        if done.operations == 1 {
                            warm.wait();
                        }
                        if !pace.every.is_zero() {
                            thread::sleep(pace.every);
                        }
                        Ok(())
                    });
                    if worker.tally.operations == 0 {
                        warm.wait();
                    }
                    worker.finish()
                })
            })
            .collect();
        warm.wait();
        let said = ready();
        for worker in workers {
            match worker.join() {
                Ok(tally) => sum.merge(&tally),
                Err(_) => sum
                    .failures
                    .io(name, &io::Error::other("a client thread panicked")),
            }
        }
        said
    });
    said.map(|()| sum.outcome(name, Kind::Redis))
}

/// One connection from inside the container to its own redis; what it saw is kept in redis itself, see [`LOOPBACK_STATUS`].
///
/// # Errors
/// Redis does not come up.
pub fn loopback(to: SocketAddr, stop: &Stop) -> io::Result<()> {
    resp::open_when_there(to, PATIENCE, START_LIMIT)?;
    let mut worker = Worker::new("loopback:0".to_owned(), to, Pace::default());
    let mut told = Instant::now();
    worker.run_until(stop, |done| {
        if told.elapsed() < STATUS_PERIOD {
            return Ok(None);
        }
        told = Instant::now();
        serde_json::to_vec(&done.outcome("loopback", Kind::Loopback))
            .map(Some)
            .map_err(io::Error::other)
    });
    Ok(())
}

/// Reads the value of `key`.
///
/// # Errors
/// The connection's.
pub fn ask(to: SocketAddr, key: &str) -> io::Result<Option<Vec<u8>>> {
    match Connection::open(to, PATIENCE)?.call(&[b"GET", key.as_bytes()])? {
        Reply::Bulk(value) => Ok(value),
        other => Err(unexpected(&other)),
    }
}

/// Something to store after an operation.
trait Status {
    fn text(self) -> Option<Vec<u8>>;
}

impl Status for () {
    fn text(self) -> Option<Vec<u8>> {
        None
    }
}

impl Status for Option<Vec<u8>> {
    fn text(self) -> Option<Vec<u8>> {
        self
    }
}

struct Worker {
    keys: String,
    seed: u64,
    to: SocketAddr,
    patience: Duration,
    turn: u64,
    connection: Option<Connection>,
    tally: Tally,
}

impl Worker {
    fn new(keys: String, to: SocketAddr, pace: Pace) -> Self {
        let seed = keys.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        Self {
            keys,
            seed,
            to,
            patience: pace.patience,
            turn: 0,
            connection: None,
            tally: Tally::default(),
        }
    }

    fn run_until<S: Status>(
        &mut self,
        stop: &Stop,
        mut after: impl FnMut(&Tally) -> io::Result<S>,
    ) {
        while !stop.told() {
            let done = self
                .operation()
                .and_then(|()| after(&self.tally))
                .and_then(|status| match status.text() {
                    Some(text) => self.set(LOOPBACK_STATUS.as_bytes(), &text),
                    None => Ok(()),
                });
            if let Err(e) = done {
                self.tally.failures.io(&self.keys, &e);
                self.connection = None;
                thread::sleep(BACK_OFF);
            }
        }
    }

    /// SETs the key of this turn and checks the one that was set longest ago.
    fn operation(&mut self) -> io::Result<()> {
        self.ensure_connected()?;
        let turn = self.turn;
        let (key, value) = (self.key(turn), self.value(turn));
        self.set(key.as_bytes(), &value)?;
        self.turn += 1;
        self.tally.bytes += value.len() as u64;
        let Some(old) = self.turn.checked_sub(KEYS) else {
            self.progress();
            return Ok(());
        };
        let expected = self.value(old);
        match self.call(&[b"GET", self.key(old).as_bytes()])? {
            Reply::Bulk(found) => {
                let wrong = found.as_ref() != Some(&expected);
                self.tally.failures.corrupt(&self.keys, u64::from(wrong));
                self.tally.bytes += expected.len() as u64;
            }
            other => return Err(unexpected(&other)),
        }
        self.progress();
        Ok(())
    }

    fn progress(&mut self) {
        self.tally.operations += 1;
        self.tally.pauses.progress();
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match self.call(&[b"SET", key, value])? {
            Reply::Status(s) if s == "OK" => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn call(&mut self, command: &[&[u8]]) -> io::Result<Reply> {
        self.connection
            .as_mut()
            .ok_or(io::ErrorKind::NotConnected)?
            .call(command)
    }

    fn ensure_connected(&mut self) -> io::Result<()> {
        if self.connection.is_none() {
            self.connection = Some(Connection::open(self.to, self.patience)?);
            self.tally.connects += 1;
        }
        Ok(())
    }

    fn finish(mut self) -> Tally {
        // Whoever still waits at the end has a pause that nothing else would count.
        self.tally.pauses.progress();
        if let Some(connection) = &self.connection {
            match tcp_info::read(connection.stream()) {
                Ok(info) => self.tally.retransmits += u64::from(info.total_retrans),
                Err(e) => self.tally.failures.io("TCP_INFO", &e),
            }
        }
        self.tally
    }

    fn key(&self, turn: u64) -> String {
        format!("{}:{}", self.keys, turn % KEYS)
    }

    fn value(&self, turn: u64) -> Vec<u8> {
        let mut value = vec![0; 32 + usize::try_from(turn * 37 % 480).unwrap_or(0)];
        pattern::fill(self.seed, turn << 16, &mut value);
        value
    }
}

fn unexpected(reply: &Reply) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("redis answered {reply:?}"),
    )
}
