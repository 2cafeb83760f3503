//! The peers of the soak: a number of connections that is always the same, each of which lives its own life.
//!
//! Each line of standard input asks for a [`Mark`], as a line of JSON; its end asks for the [`Outcome`] once every connection has come to its end.
use std::{
    io::{self, BufRead},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::mpsc::{self, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
};
use serde::{Deserialize, Serialize};

use super::life::{Class, Life, TICK};
use crate::peers::stop::say_ready;

/// How long the connections may take to their ends. One that was cut off hears of it only when its own timers give up.
const PATIENCE: Duration = Duration::from_secs(40);
/// Most connections that are begun in a tick.
const AT_ONCE: usize = 3;
/// Faults that are told; the others are counted.
const TOLD: usize = 20;

/// What has happened since the last one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Longest time without a byte on each connection that is never silent, ms.
    pub silences_ms: Vec<f64>,
    /// Connections that were begun.
    pub begun: u64,
    /// Connections that went wrong.
    pub faults: u64,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Connections that were begun.
    pub begun: u64,
    /// Those of which both streams came to their ends as they should.
    pub ended: u64,
    /// Those that went wrong.
    pub faults: u64,
    /// Those of them that were reset before the container had said anything: it may never have had them.
    pub refused: u64,
    /// Those that did not come to an end in time.
    pub hung: u64,
    /// Payload bytes from the container.
    pub read: u64,
    /// Payload bytes to it.
    pub written: u64,
    /// What went wrong, the first of it.
    pub told: Vec<String>,
}

struct End {
    stream: TcpStream,
    life: Life,
    heard: Instant,
    longest: Duration,
}

struct Peers {
    to: Vec<SocketAddr>,
    seed: u64,
    ends: Vec<End>,
    outcome: Outcome,
    last: (u64, u64),
}

/// Keeps `connections` of them alive until standard input ends.
///
/// # Errors
/// A socket cannot be made, or standard output is gone.
pub fn run(to: Vec<SocketAddr>, connections: usize, seed: u64) -> Result<()> {
    let mut peers = Peers {
        to,
        seed,
        ends: Vec::new(),
        outcome: Outcome::default(),
        last: (0, 0),
    };
    let asked = questions();
    let mut ready = false;
    loop {
        let due = Instant::now() + TICK;
        peers.begin(connections)?;
        peers.tick();
        if !ready && peers.ends.len() == connections {
            ready = true;
            say_ready()?;
        }
        match asked.try_recv() {
            Ok(()) => println!("{}", serde_json::to_string(&peers.mark())?),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => break,
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    peers.finish();
    println!("{}", serde_json::to_string(&peers.outcome)?);
    Ok(())
}

/// A word for each line of standard input, until it ends.
fn questions() -> mpsc::Receiver<()> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.is_err() || send.send(()).is_err() {
                break;
            }
        }
    });
    receive
}

impl Peers {
    fn begin(&mut self, connections: usize) -> Result<()> {
        // No more at once than fit into the container's accept queue while it looks away.
        for _ in 0..connections.saturating_sub(self.ends.len()).min(AT_ONCE) {
            let count = self.outcome.begun;
            let number = Life::number_of(count, self.wanted(connections));
            let at = usize::try_from(count).unwrap_or_default() % self.to.len();
            let stream = connecting(self.to[at])?;
            self.outcome.begun += 1;
            self.ends.push(End {
                stream,
                life: Life::peer(number, self.seed),
                heard: Instant::now(),
                longest: Duration::ZERO,
            });
        }
        Ok(())
    }

    /// A thirtieth of the connections is steady, a third lasts.
    fn wanted(&self, connections: usize) -> Class {
        let of = |class| {
            let is = |end: &&End| end.life.number().map(Life::class) == Some(class);
            self.ends.iter().filter(is).count()
        };
        match connections {
            all if of(Class::Steady) < all.div_ceil(30) => Class::Steady,
            all if of(Class::Lasting) < all / 3 => Class::Lasting,
            _ => Class::Passing,
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let outcome = &mut self.outcome;
        self.ends.retain_mut(|end| {
            let before = end.life.received();
            let lived = end.life.tick(&mut end.stream);
            if end.life.received() > before {
                end.longest = end.longest.max(now - end.heard);
                end.heard = now;
            }
            match lived {
                Ok(true) => return true,
                Ok(false) => outcome.ended += 1,
                Err(fault) => {
                    outcome.faults += 1;
                    outcome.refused += u64::from(fault.is_refusal());
                    if outcome.told.len() < TOLD {
                        let number = end.life.number().unwrap_or_default();
                        outcome.told.push(format!("connection {number}: {fault}"));
                    }
                }
            }
            outcome.read += end.life.received();
            outcome.written += end.life.sent();
            false
        });
    }

    fn mark(&mut self) -> Mark {
        let now = Instant::now();
        let mut silences_ms = Vec::new();
        for end in &mut self.ends {
            let steady = end.life.number().map(Life::class) == Some(Class::Steady);
            if steady && end.life.received() > 0 {
                let silence = end.longest.max(now - end.heard);
                silences_ms.push(silence.as_secs_f64() * 1e3);
            }
            end.longest = Duration::ZERO;
            end.heard = now;
        }
        let (begun, faults) = self.last;
        self.last = (self.outcome.begun, self.outcome.faults);
        Mark {
            silences_ms,
            begun: self.outcome.begun - begun,
            faults: self.outcome.faults - faults,
        }
    }

    fn finish(&mut self) {
        for end in &mut self.ends {
            end.life.finish();
        }
        let limit = Instant::now() + PATIENCE;
        while !self.ends.is_empty() && Instant::now() < limit {
            self.tick();
            thread::sleep(TICK);
        }
        for end in &self.ends {
            self.outcome.hung += 1;
            self.outcome.read += end.life.received();
            self.outcome.written += end.life.sent();
            if self.outcome.told.len() < TOLD {
                let number = end.life.number().unwrap_or_default();
                let state = end.life.state();
                self.outcome
                    .told
                    .push(format!("connection {number} does not end: {state}"));
            }
        }
    }
}

/// A connection under way.
fn connecting(to: SocketAddr) -> Result<TcpStream> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let own: OwnedFd = socket(family, SockType::Stream, flags, None).context("a socket")?;
    match connect(own.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(own.into()),
        Err(e) => Err(e).with_context(|| format!("connecting to {to}")),
    }
}
