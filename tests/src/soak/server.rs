//! The container of the soak: one thread, many connections, and a state that can be handed over (docs/handoff.md).
use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    time::Instant,
};

use anyhow::{Context, Result};
use handoff_echo::handoff::{Introduction, Labelled, Loading, Netmig, Word};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{Backlog, listen},
};
use serde::{Deserialize, Serialize};

use super::{
    NAME,
    life::{Life, TICK},
};
use crate::random::Random;

/// Where it listens.
pub const PORT: u16 = 7100;
/// Version of the state.
const VERSION: &str = "1";
/// Each fault of its ends is a line in this file, on the host where it was seen.
pub const FAULTS: &str = "/tmp/soak-faults";

/// Everything that it has.
struct Server {
    listener: TcpListener,
    ends: Vec<(TcpStream, Life)>,
    random: Random,
    /// Ticks until it looks after its accept queue again.
    pause: u32,
}

/// As it is handed over: sockets by their labels.
#[derive(Serialize, Deserialize)]
struct Saved {
    listener: u32,
    ends: Vec<(u32, Life)>,
    random: Random,
    pause: u32,
}

/// Runs until it has been moved away; `load`: it takes over the state of the one that is being moved here.
///
/// # Errors
/// A socket for all fails, or netmig says something unheard-of.
pub fn run(command: Vec<String>, load: bool, seed: u64) -> Result<()> {
    let who = Introduction {
        name: NAME.to_owned(),
        version: VERSION.to_owned(),
        command,
    };
    if load {
        let (netmig, loading) = Netmig::load(&who)?;
        return match Server::load(loading) {
            Ok(server) if netmig.ready()? => server.serve(&netmig),
            // The move was given up: the source goes on.
            Ok(_) => Ok(()),
            Err(e) => netmig.refuse(&format!("{e:#}")),
        };
    }
    let at = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, PORT));
    let listener = TcpListener::bind(at).with_context(|| format!("listening at {at}"))?;
    // All connections may begin at once, when the network has found the container.
    listen(&listener, Backlog::new(1024)?).with_context(|| format!("listening at {at}"))?;
    let server = Server::new(listener, Vec::new(), Random::new(seed), 0)?;
    server.serve(&Netmig::register(&who, None))
}

impl Server {
    fn new(
        listener: TcpListener,
        ends: Vec<(TcpStream, Life)>,
        random: Random,
        pause: u32,
    ) -> Result<Self> {
        // O_NONBLOCK is the descriptor's and does not come along.
        listener.set_nonblocking(true)?;
        for (stream, _) in &ends {
            stream.set_nonblocking(true)?;
        }
        Ok(Self {
            listener,
            ends,
            random,
            pause,
        })
    }

    fn load(loading: Loading) -> Result<Self> {
        let (saved, mut handed): (Saved, _) = loading.open(VERSION)?;
        let listener = handed.take(saved.listener)?.into();
        let ends = saved.ends.into_iter();
        let ends = ends
            .map(|(label, life)| Ok((handed.take(label)?.into(), life)))
            .collect::<Result<_>>()?;
        Self::new(listener, ends, saved.random, saved.pause)
    }

    /// A tick after the other, until netmig says that it lives elsewhere. A move begins and ends in between: meanwhile no socket is touched.
    fn serve(mut self, netmig: &Netmig) -> Result<()> {
        loop {
            let due = Instant::now() + TICK;
            self.accept()?;
            self.ends
                .retain_mut(|(stream, life)| match life.tick(stream) {
                    Ok(on) => on,
                    Err(fault) => {
                        note(life, &fault.to_string());
                        false
                    }
                });
            let mut word = heard(netmig, due)?
                .then(|| netmig.hear())
                .transpose()
                .context("hearing netmig")?;
            while let Some(Word::Save(_)) = word {
                self.hand_over(netmig)?;
                word = Some(netmig.hear().context("hearing how the move ended")?);
            }
            if word == Some(Word::Leave) {
                return Ok(());
            }
        }
    }

    /// Now and then it takes what waits; in between connections wait in the accept queue, in a move too.
    fn accept(&mut self) -> Result<()> {
        if self.pause > 0 {
            self.pause -= 1;
            return Ok(());
        }
        self.pause = self.random.below(30);
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    let random = Random::new(self.random.next());
                    self.ends.push((stream, Life::container(random)));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The peer has gone already, which none of ours does.
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {
                    note_line(&format!("accepting: {e}"));
                }
                Err(e) => return Err(e).context("accepting"),
            }
        }
    }

    fn hand_over(&self, netmig: &Netmig) -> Result<()> {
        let mut sockets: Vec<Labelled<'_>> = vec![(label(&self.listener), self.listener.as_fd())];
        sockets.extend(self.ends.iter().map(|(s, _)| (label(s), s.as_fd())));
        let ends = self.ends.iter();
        let saved = Saved {
            listener: label(&self.listener),
            ends: ends.map(|(s, life)| (label(s), life.clone())).collect(),
            random: self.random.clone(),
            pause: self.pause,
        };
        netmig.hand_over(VERSION, &serde_json::to_vec(&saved)?, &sockets)
    }
}

/// Whether netmig has a word, at the latest at `due`.
fn heard(netmig: &Netmig, due: Instant) -> Result<bool> {
    let left = due.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(netmig.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::try_from(left)?) {
        Ok(n) => Ok(n > 0),
        Err(nix::Error::EINTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn label(socket: &impl AsRawFd) -> u32 {
    u32::try_from(socket.as_raw_fd()).unwrap_or_default()
}

fn note(life: &Life, fault: &str) {
    let number = life
        .number()
        .map_or("not known".to_owned(), |n| n.to_string());
    note_line(&format!("connection {number}: {fault}"));
}

fn note_line(line: &str) {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(Path::new(FAULTS));
    if let Err(e) = file.and_then(|mut file| writeln!(file, "{line}")) {
        eprintln!("writing {FAULTS}: {e}; {line}");
    }
}
