//! The echo server: one thread, poll(2), and a state that can be written down.
use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::{
    VERSION,
    handoff::{Introduction, Labelled, Loading, Netmig, Word},
};

/// A line may not be longer, in bytes.
const LINE: usize = 1 << 20;
/// Pause before netmig's agent is looked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// Everything that it has.
#[derive(Debug, Default)]
pub struct Server {
    listeners: Vec<TcpListener>,
    datagrams: Vec<Answering>,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Answering {
    socket: UdpSocket,
    count: u64,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    memory: Memory,
}

/// What it knows of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    /// Lines answered.
    count: u64,
    /// The beginning of a line.
    input: Vec<u8>,
    /// Answers not yet written.
    output: Vec<u8>,
    /// The peer says no more.
    ended: bool,
}

/// As it is handed over. Each socket by its label: its descriptor's number where it was saved.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    listeners: Vec<u32>,
    datagrams: Vec<(u32, u64)>,
    connections: Vec<(u32, Memory)>,
}

/// What a word has led to.
enum Next {
    On,
    End,
    Lost,
}

impl Server {
    /// Adds a listener.
    ///
    /// # Errors
    /// It cannot be made not to block.
    pub fn listen(&mut self, listener: TcpListener) -> Result<()> {
        listener.set_nonblocking(true)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Adds a socket for datagrams.
    ///
    /// # Errors
    /// It cannot be made not to block.
    pub fn answer(&mut self, socket: UdpSocket) -> Result<()> {
        socket.set_nonblocking(true)?;
        self.datagrams.push(Answering { socket, count: 0 });
        Ok(())
    }

    /// Takes over a state.
    ///
    /// # Errors
    /// It is another version's, or not what was saved.
    pub fn load(loading: Loading) -> Result<Self> {
        let (saved, mut handed): (Saved, _) = loading.open(VERSION)?;
        let mut server = Self::default();
        // Flags of a descriptor, O_NONBLOCK among them, are not the socket's: each adding sets it again.
        for label in saved.listeners {
            server.listen(handed.take(label)?.into())?;
        }
        for (label, count) in saved.datagrams {
            server.answer(handed.take(label)?.into())?;
            if let Some(last) = server.datagrams.last_mut() {
                last.count = count;
            }
        }
        for (label, memory) in saved.connections {
            let stream = TcpStream::from(handed.take(label)?);
            stream.set_nonblocking(true)?;
            server.connections.push(Connection { stream, memory });
        }
        Ok(server)
    }

    /// Answers until netmig says that it lives elsewhere.
    ///
    /// # Errors
    /// A socket for all, or poll(2), fails.
    pub fn run(mut self, who: &Introduction, netmig: Netmig) -> Result<()> {
        let mut netmig = Some(netmig);
        loop {
            if netmig.is_none() {
                // The agent has died or was updated; echoes go on meanwhile.
                netmig = Netmig::try_register(who, None).ok();
            }
            let ready = self.wait(netmig.as_ref())?;
            if ready && let Some(connection) = &netmig {
                match self.word(who, connection)? {
                    Next::On => {}
                    Next::Lost => netmig = None,
                    Next::End => return Ok(()),
                }
            }
            self.serve()?;
        }
    }

    /// Until something can be done; whether netmig has a word.
    fn wait(&self, netmig: Option<&Netmig>) -> Result<bool> {
        let mut fds = Vec::new();
        let mut watch = |fd, flags| fds.push(PollFd::new(fd, flags));
        for connection in &self.connections {
            watch(connection.stream.as_fd(), connection.interest());
        }
        for listener in &self.listeners {
            watch(listener.as_fd(), PollFlags::POLLIN);
        }
        for answering in &self.datagrams {
            watch(answering.socket.as_fd(), PollFlags::POLLIN);
        }
        if let Some(netmig) = netmig {
            watch(netmig.as_fd(), PollFlags::POLLIN);
        }
        let timeout = match netmig {
            Some(_) => PollTimeout::NONE,
            None => PollTimeout::try_from(AGAIN)?,
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let last = fds.last().and_then(PollFd::any).unwrap_or(false);
        Ok(netmig.is_some() && last)
    }

    fn serve(&mut self) -> Result<()> {
        self.accept()?;
        for answering in &mut self.datagrams {
            answering.answer()?;
        }
        self.connections.retain_mut(|connection| connection.serve());
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        for listener in &self.listeners {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(true)?;
                        self.connections.push(Connection {
                            stream,
                            memory: Memory::default(),
                        });
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    // The peer has gone already.
                    Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                    Err(e) => return Err(e).context("accepting"),
                }
            }
        }
        Ok(())
    }

    /// Hears what netmig says. A move begins and ends in here: meanwhile no socket is touched.
    fn word(&mut self, who: &Introduction, netmig: &Netmig) -> Result<Next> {
        let mv = match netmig.hear() {
            Ok(Word::Save(mv)) => mv,
            Ok(Word::Leave) => return Ok(Next::End),
            Ok(Word::Resume | Word::Go) => return Ok(Next::On),
            Err(_) => return Ok(Next::Lost),
        };
        // What waits to be accepted could not be handed over.
        self.accept()?;
        let (state, sockets) = self.saved()?;
        let handed = netmig.hand_over(VERSION, &state, &sockets);
        let mut word = handed.and_then(|()| netmig.hear());
        let mut lost = false;
        while word.is_err() {
            // Whoever had the sockets has died. What became of the move only netmig knows.
            lost = true;
            thread::sleep(AGAIN);
            word = Netmig::register(who, Some(&mv)).hear();
        }
        match word? {
            Word::Leave => Ok(Next::End),
            _ if lost => Ok(Next::Lost),
            _ => Ok(Next::On),
        }
    }

    fn saved(&self) -> Result<(Vec<u8>, Vec<Labelled<'_>>)> {
        let mut saved = Saved::default();
        let mut sockets = Vec::new();
        for listener in &self.listeners {
            saved.listeners.push(label(listener));
            sockets.push((label(listener), listener.as_fd()));
        }
        for Answering { socket, count } in &self.datagrams {
            saved.datagrams.push((label(socket), *count));
            sockets.push((label(socket), socket.as_fd()));
        }
        for Connection { stream, memory } in &self.connections {
            saved.connections.push((label(stream), memory.clone()));
            sockets.push((label(stream), stream.as_fd()));
        }
        Ok((serde_json::to_vec(&saved)?, sockets))
    }
}

impl Answering {
    fn answer(&mut self) -> Result<()> {
        let mut datagram = vec![0; 1 << 16];
        loop {
            match self.socket.recv_from(&mut datagram) {
                Ok((n, from)) => {
                    self.count += 1;
                    let mut answer = format!("{} ", self.count).into_bytes();
                    answer.extend(&datagram[..n]);
                    // A datagram may be lost anywhere: also here.
                    if let Err(e) = self.socket.send_to(&answer, from) {
                        eprintln!("answering {from}: {e}");
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // An ICMP error for an earlier answer.
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                Err(e) => return Err(e).context("receiving"),
            }
        }
    }
}

impl Connection {
    /// It reads no more than it gets rid of.
    fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(
            PollFlags::POLLIN,
            !self.memory.ended && self.memory.output.len() < LINE,
        );
        flags.set(PollFlags::POLLOUT, !self.memory.output.is_empty());
        flags
    }

    /// Reads, answers, writes; false at its end.
    fn serve(&mut self) -> bool {
        let memory = &mut self.memory;
        let mut chunk = vec![0; 64 << 10];
        while !memory.ended && memory.output.len() < LINE {
            match self.stream.read(&mut chunk) {
                Ok(0) => memory.ended = true,
                Ok(n) => memory.take(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
            if memory.input.len() > LINE {
                return false;
            }
        }
        while !memory.output.is_empty() {
            match self.stream.write(&memory.output) {
                Ok(n) => drop(memory.output.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        !memory.ended || !memory.output.is_empty()
    }
}

impl Memory {
    fn take(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        while let Some(end) = self.input.iter().position(|&b| b == b'\n') {
            self.count += 1;
            self.output.extend(format!("{} ", self.count).bytes());
            self.output.extend(self.input.drain(..=end));
        }
    }
}

fn label(socket: &impl AsRawFd) -> u32 {
    u32::try_from(socket.as_raw_fd()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_wherever_they_are_cut() {
        let mut memory = Memory::default();
        for piece in [&b"on"[..], b"e\ntwo\nth", b"ree", b"\n"] {
            memory.take(piece);
        }
        assert_eq!(memory.output, b"1 one\n2 two\n3 three\n");
        assert_eq!((memory.count, memory.input.len()), (3, 0));
    }

    #[test]
    fn a_state_comes_back() {
        let mut server = Server::default();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let peer =
            TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        server.listen(listener).expect("added");
        server
            .answer(UdpSocket::bind("127.0.0.1:0").expect("a socket"))
            .expect("added");
        server.datagrams[0].count = 5;
        server.accept().expect("accepted");
        server.connections[0].memory.take(b"a\nb");
        let (state, sockets) = server.saved().expect("saved");
        let sockets = sockets
            .iter()
            .map(|(label, fd)| (*label, fd.try_clone_to_owned().expect("a duplicate")));
        let again = |version: &str| Loading {
            version: version.to_owned(),
            state: state.clone(),
            sockets: sockets.clone().collect(),
        };
        let loaded = Server::load(again(VERSION)).expect("loaded");
        assert_eq!(loaded.connections[0].memory, server.connections[0].memory);
        assert_eq!(loaded.connections[0].memory.input, b"b");
        assert_eq!(loaded.datagrams[0].count, 5);
        assert_eq!(
            loaded.connections[0].stream.peer_addr().expect("its peer"),
            peer.local_addr().expect("its address")
        );
        let refused = Server::load(again("0")).expect_err("another version");
        assert!(refused.to_string().contains("version"), "{refused}");
        let missing = Loading {
            sockets: Vec::new(),
            ..again(VERSION)
        };
        assert!(Server::load(missing).is_err());
    }
}
