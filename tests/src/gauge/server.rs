//! The container of the gauge: one thread; it can hand itself over (docs/handoff.md), or be moved whole as it is.
use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use handoff_echo::handoff::{Introduction, Labelled, Loading, Netmig, Word};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use serde::{Deserialize, Serialize};

use super::{
    Load, NAME, PORT, RECEIVE_BUFFER,
    wire::{self, Datagrams, Head, Pace, Trailer},
};
use crate::peers::{bulk::congestion, pattern, tcp_info};

/// Version of the state.
const VERSION: &str = "1";
/// One that takes over a state waits so many ms before it is ready, if the host has this file: the blackout lasts longer by that.
pub const WAIT: &str = "/tmp/gauge-wait";
/// Written and read at once.
const CHUNK: usize = 64 << 10;
/// Datagrams in a row, so that connections are not kept waiting.
const TURN: usize = 256;
/// How often datagrams are sent, at least.
const TALK: Duration = Duration::from_millis(1);
/// How often the kernel is asked what it has sent again.
const LOOK: Duration = Duration::from_millis(100);

/// How it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// Netmig does not know it.
    Plain,
    /// It can be moved, and is started at a target by this command.
    HandsOver(String),
    /// It takes over.
    Loads(String),
}

struct Server {
    listener: TcpListener,
    datagrams: UdpSocket,
    talks: BTreeMap<SocketAddr, Talk>,
    ends: Vec<(TcpStream, End)>,
}

/// Datagrams with one peer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Talk {
    counts: Datagrams,
    /// To be sent a second.
    rate: u64,
    /// Begins anew where it comes to.
    #[serde(skip)]
    pace: Pace,
}

/// What it knows of a connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct End {
    begun: Vec<u8>,
    head: Option<Head>,
    written: u64,
    read: u64,
    wrong: u64,
    /// To be written: echoes, or the trailer.
    owed: Vec<u8>,
    /// The peer has said all, and the trailer is in `owed`.
    over: bool,
    /// As the kernel counts them, which begins anew on each host.
    counted: u32,
    retransmits: u64,
}

/// As it is handed over: sockets by their labels.
#[derive(Serialize, Deserialize)]
struct Saved {
    listener: u32,
    datagrams: u32,
    talks: Vec<(SocketAddr, Talk)>,
    ends: Vec<(u32, End)>,
}

/// Runs until it has been moved away.
///
/// # Errors
/// A socket for all fails, or netmig says something unheard-of.
pub fn run(life: Life) -> Result<()> {
    let who = |command: String| Introduction {
        name: NAME.to_owned(),
        version: VERSION.to_owned(),
        command: vec![command],
    };
    match life {
        Life::Plain => Server::new()?.serve(None),
        Life::HandsOver(command) => {
            let server = Server::new()?;
            server.serve(Some(&Netmig::register(&who(command), None)))
        }
        Life::Loads(command) => {
            let (netmig, loading) = Netmig::load(&who(command))?;
            match Server::load(loading) {
                Ok(server) => {
                    thread::sleep(wait()?);
                    if netmig.ready()? {
                        server.serve(Some(&netmig))?;
                    }
                    // Else the move was given up: the source goes on.
                    Ok(())
                }
                Err(e) => netmig.refuse(&format!("{e:#}")),
            }
        }
    }
}

fn wait() -> Result<Duration> {
    match fs::read_to_string(WAIT) {
        Ok(text) => {
            let ms = text.trim().parse().with_context(|| format!("in {WAIT}"))?;
            Ok(Duration::from_millis(ms))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Duration::ZERO),
        Err(e) => Err(e).with_context(|| format!("reading {WAIT}")),
    }
}

impl Server {
    fn new() -> Result<Self> {
        let at = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, PORT));
        let listener = TcpListener::bind(at).with_context(|| format!("listening at {at}"))?;
        let datagrams = UdpSocket::bind(at).with_context(|| format!("binding {at}"))?;
        setsockopt(&datagrams, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&datagrams, sockopt::RcvBuf, &RECEIVE_BUFFER))
            .context("asking for a large receive buffer")?;
        Self {
            listener,
            datagrams,
            talks: BTreeMap::new(),
            ends: Vec::new(),
        }
        .not_blocking()
    }

    /// O_NONBLOCK is the descriptor's and does not come along.
    fn not_blocking(self) -> Result<Self> {
        self.listener.set_nonblocking(true)?;
        self.datagrams.set_nonblocking(true)?;
        for (stream, _) in &self.ends {
            stream.set_nonblocking(true)?;
        }
        Ok(self)
    }

    fn load(loading: Loading) -> Result<Self> {
        let (saved, mut handed): (Saved, _) = loading.open(VERSION)?;
        let ends = saved.ends.into_iter();
        Self {
            listener: handed.take(saved.listener)?.into(),
            datagrams: handed.take(saved.datagrams)?.into(),
            talks: saved.talks.into_iter().collect(),
            ends: ends
                .map(|(label, end)| Ok((handed.take(label)?.into(), end)))
                .collect::<Result<_>>()?,
        }
        .not_blocking()
    }

    /// A move begins and ends between two rounds: meanwhile no socket is touched.
    fn serve(mut self, netmig: Option<&Netmig>) -> Result<()> {
        let mut looked = Instant::now();
        loop {
            let (ready, word) = self.wait(netmig)?;
            self.accept()?;
            self.hear()?;
            self.talk()?;
            let mut ready = ready.into_iter();
            // Those that were accepted just now are looked at in the next round.
            self.ends
                .retain_mut(|(stream, end)| match ready.next().unwrap_or(false) {
                    true => end.go_on(stream).unwrap_or_else(|e| {
                        eprintln!("a connection: {e}");
                        false
                    }),
                    false => true,
                });
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.count()?;
            }
            let Some(netmig) = netmig.filter(|_| word) else {
                continue;
            };
            let mut word = netmig.hear().context("hearing netmig")?;
            while let Word::Save(_) = word {
                self.count()?;
                self.hand_over(netmig)?;
                word = netmig.hear().context("hearing how the move ended")?;
            }
            if word == Word::Leave {
                return Ok(());
            }
        }
    }

    /// Which connections have something to do, and whether netmig has a word.
    fn wait(&self, netmig: Option<&Netmig>) -> Result<(Vec<bool>, bool)> {
        let mut fds = vec![
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.datagrams.as_fd(), PollFlags::POLLIN),
        ];
        let first = fds.len();
        fds.extend(
            self.ends
                .iter()
                .map(|(stream, end)| PollFd::new(stream.as_fd(), end.interest())),
        );
        fds.extend(netmig.map(|netmig| PollFd::new(netmig.as_fd(), PollFlags::POLLIN)));
        let talks = self.talks.values().any(|talk| talk.rate > 0);
        let limit = if talks { TALK } else { LOOK };
        match poll(&mut fds, PollTimeout::try_from(limit)?) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).context("waiting"),
        }
        let any = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        let ready = fds[first..first + self.ends.len()]
            .iter()
            .map(any)
            .collect();
        let word = netmig.is_some() && fds.last().is_some_and(any);
        Ok((ready, word))
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    congestion::choose(&stream)?;
                    self.ends.push((stream, End::default()));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                Err(e) => return Err(e).context("accepting"),
            }
        }
    }

    /// Counts the datagrams that have come.
    fn hear(&mut self) -> Result<()> {
        let mut buffer = [0; 2048];
        for _ in 0..TURN {
            let (n, from) = match self.datagrams.recv_from(&mut buffer) {
                Ok(got) => got,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // An ICMP error for an earlier one.
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => continue,
                Err(e) => return Err(e).context("receiving datagrams"),
            };
            let talk = self.talks.entry(from).or_default();
            if let Some(rate) = wire::begun(&buffer[..n]) {
                // It asks until it hears something.
                if talk.rate == 0 {
                    (talk.rate, talk.pace) = (rate, Pace::new());
                }
            } else if buffer[..n] == [wire::QUESTION] {
                talk.rate = 0;
                let answer = talk.counts.answer();
                send(&self.datagrams, &answer, from)?;
            } else {
                talk.counts.take(&buffer[..n]);
            }
        }
        Ok(())
    }

    /// Sends what is due.
    fn talk(&mut self) -> Result<()> {
        for (to, talk) in &mut self.talks {
            for _ in 0..talk.pace.due(talk.rate) {
                send(&self.datagrams, &wire::datagram(talk.counts.sent), *to)?;
                talk.counts.sent += 1;
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<()> {
        for (stream, end) in &mut self.ends {
            end.count(tcp_info::read(stream)?.total_retrans);
        }
        Ok(())
    }

    fn hand_over(&self, netmig: &Netmig) -> Result<()> {
        let mut sockets: Vec<Labelled<'_>> = vec![
            (label(&self.listener), self.listener.as_fd()),
            (label(&self.datagrams), self.datagrams.as_fd()),
        ];
        sockets.extend(self.ends.iter().map(|(s, _)| (label(s), s.as_fd())));
        let ends = self.ends.iter();
        let saved = Saved {
            listener: label(&self.listener),
            datagrams: label(&self.datagrams),
            talks: self.talks.clone().into_iter().collect(),
            ends: ends.map(|(s, end)| (label(s), end.clone())).collect(),
        };
        netmig.hand_over(VERSION, &serde_json::to_vec(&saved)?, &sockets)
    }
}

impl End {
    fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !self.over && self.owed.len() < CHUNK);
        let streams = self
            .head
            .is_some_and(|head| matches!(head.load, Load::Outbound | Load::Both));
        flags.set(
            PollFlags::POLLOUT,
            !self.owed.is_empty() || (streams && !self.over),
        );
        flags
    }

    /// Reads and writes what goes; false at its end.
    fn go_on(&mut self, stream: &mut TcpStream) -> io::Result<bool> {
        self.read(stream)?;
        while !self.owed.is_empty() {
            match stream.write(&self.owed) {
                Ok(n) => {
                    self.owed.drain(..n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
        match self.head {
            _ if self.over => return Ok(false),
            Some(head) if matches!(head.load, Load::Outbound | Load::Both) => {
                let mut chunk = vec![0; CHUNK];
                pattern::fill(head.seed_out(), self.written, &mut chunk);
                match stream.write(&chunk) {
                    Ok(n) => self.written += n as u64,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            _ => {}
        }
        Ok(true)
    }

    fn read(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        while !self.over && self.owed.len() < CHUNK {
            let n = match stream.read(&mut chunk) {
                Ok(0) => {
                    self.count(tcp_info::read(stream)?.total_retrans);
                    let trailer = Trailer {
                        written: self.written,
                        read: self.read,
                        wrong: self.wrong,
                        retransmits: self.retransmits,
                    };
                    self.owed.extend(trailer.bytes());
                    self.over = true;
                    return Ok(());
                }
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            };
            self.take(stream, &chunk[..n])?;
            if n < chunk.len() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn take(&mut self, stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        let head = match self.head {
            Some(head) => head,
            None => {
                let (begun, rest) = bytes.split_at(bytes.len().min(Head::LEN - self.begun.len()));
                self.begun.extend(begun);
                bytes = rest;
                let Ok(begun) = self.begun.as_slice().try_into() else {
                    return Ok(());
                };
                let head = Head::parse(begun)
                    .ok_or_else(|| io::Error::other("it is none of the gauge's"))?;
                wire::pace(stream, head.rate)?;
                *self.head.insert(head)
            }
        };
        self.wrong += pattern::wrong(head.seed_in(), self.read, bytes);
        self.read += bytes.len() as u64;
        if head.load == Load::Requests {
            self.owed.extend(bytes);
            self.written += bytes.len() as u64;
        }
        Ok(())
    }

    fn count(&mut self, total: u32) {
        // A socket that has moved begins to count anew.
        let fresh = total.checked_sub(self.counted).unwrap_or(total);
        self.counted = total;
        self.retransmits += u64::from(fresh);
    }
}

/// Sends it, however long that takes: what is lost is the network's loss.
fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) -> Result<()> {
    loop {
        match socket.send_to(bytes, to) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::from(100_u8)).context("waiting for room to send")?;
            }
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => return Ok(()),
            Err(e) => return Err(e).with_context(|| format!("answering {to}")),
        }
    }
}

fn label(socket: &impl AsRawFd) -> u32 {
    u32::try_from(socket.as_raw_fd()).unwrap_or_default()
}
