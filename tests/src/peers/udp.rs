//! Datagrams at a steady rate, and their echo.
use std::{
    collections::HashSet,
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{Direction, Kind, Outcome, failure::Failures, pattern, pauses::Pauses, stop::Stop};

const SIZE: usize = 128;
const SEED: u64 = 0x7564_7000;
/// Receive buffer of a client in bytes, and what a server asks for.
const BUFFER: usize = 16 << 20;
/// How long the first echo may take.
const START_LIMIT: Duration = Duration::from_secs(20);
/// After the last datagram, how long a silence ends the wait for late echoes.
const LATE_LIMIT: Duration = Duration::from_secs(1);

/// Sends every datagram that comes to `socket` back to where it came from, until told to stop.
///
/// # Errors
/// The socket cannot be waited on.
pub fn echo(socket: &UdpSocket, stop: &Stop) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut buf = [0; 65_536];
    while !stop.told() {
        match socket.recv_from(&mut buf) {
            // The peer counts what does not come back.
            Ok((n, from)) => drop(socket.send_to(&buf[..n], from)),
            Err(e) if is_passing(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A socket for [`echo`] on every address of both families.
///
/// # Errors
/// The port is in use.
pub fn bind_echo(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    // As much as an unprivileged program may have: on a busy machine it does not run for a while.
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &BUFFER)?;
    Ok(socket)
}

#[derive(Debug, Default)]
struct Seen {
    numbers: HashSet<u64>,
    highest: Option<u64>,
    duplicated: u64,
    reordered: u64,
    failures: Failures,
    pauses: Pauses,
}

/// Sends `per_second` datagrams a second to an echo at `to` until told to stop, and counts what comes back.
///
/// # Errors
/// No socket, no echo at the start, or `ready`'s.
pub fn flow(
    name: &str,
    to: SocketAddr,
    per_second: u32,
    stop: &Stop,
    ready: impl FnOnce() -> io::Result<()>,
) -> io::Result<Outcome> {
    let any: SocketAddr = if to.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    // What was late comes at once: it must not be lost here.
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &BUFFER)?;
    wait_for_echo(&socket)?;
    ready()?;
    let mut seen = Seen::default();
    seen.pauses.progress();
    let seen = Mutex::new(seen);
    let quiet = Stop::never();
    let (sent, send_failures) = thread::scope(|scope| {
        scope.spawn(|| receive(&socket, &seen, &quiet));
        let sent = send(name, &socket, per_second, stop);
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .silence_ends();
        await_late(&seen, sent.0);
        quiet.tell();
        sent
    });
    let mut seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    seen.failures.merge(&send_failures);
    let received = seen.numbers.len() as u64;
    let mut outcome = Outcome::new(
        name,
        Kind::Udp,
        Direction::Both,
        &seen.failures,
        &seen.pauses,
    );
    outcome.row.bytes = received * SIZE as u64;
    outcome.row.sent = Some(sent);
    outcome.row.received = Some(received);
    outcome.duplicated = seen.duplicated;
    outcome.reordered = seen.reordered;
    Ok(outcome)
}

/// Sends without a number until the first answer: a container may still be starting.
fn wait_for_echo(socket: &UdpSocket) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let end = Instant::now() + START_LIMIT;
    let mut buf = [0; SIZE];
    loop {
        let tried = socket.send(b"?").and_then(|_| socket.recv(&mut buf));
        match tried {
            Ok(_) => return Ok(()),
            Err(e) if Instant::now() >= end => {
                return Err(io::Error::new(e.kind(), format!("no echo: {e}")));
            }
            Err(e) => {
                if e.kind() == io::ErrorKind::ConnectionRefused {
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
}

fn send(name: &str, socket: &UdpSocket, per_second: u32, stop: &Stop) -> (u64, Failures) {
    let (mut sent, mut failures) = (0, Failures::default());
    let period = Duration::from_secs(1) / per_second.max(1);
    let mut next = Instant::now();
    while !stop.told() {
        match socket.send(&datagram(sent)) {
            Ok(_) => sent += 1,
            Err(e) => failures.io(name, &e),
        }
        next += period;
        let now = Instant::now();
        match next.checked_duration_since(now) {
            Some(left) => thread::sleep(left),
            // Late by the scheduler: catch up in small steps, never in a burst after a long one.
            None if now - next > Duration::from_millis(20) => next = now,
            None => {}
        }
    }
    (sent, failures)
}

fn receive(socket: &UdpSocket, seen: &Mutex<Seen>, quiet: &Stop) {
    let mut buf = [0; 2048];
    while !quiet.told() {
        let got = socket.recv(&mut buf);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match got {
            Ok(n) => seen.datagram(&buf[..n]),
            Err(e) if is_waiting(&e) => {}
            Err(e) => seen.failures.io("receiving datagrams", &e),
        }
    }
}

/// Waits for echoes still under way: until all are there, or none came for a while.
fn await_late(seen: &Mutex<Seen>, sent: u64) {
    let count = || {
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .numbers
            .len() as u64
    };
    let (mut last, mut since) = (count(), Instant::now());
    while last < sent && since.elapsed() < LATE_LIMIT {
        thread::sleep(Duration::from_millis(20));
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

impl Seen {
    /// Nothing more was sent from now on: a silence until now was a pause, from now on it is none.
    fn silence_ends(&mut self) {
        self.pauses.progress();
        self.pauses.rest();
    }

    fn datagram(&mut self, bytes: &[u8]) {
        if bytes == b"?" {
            return;
        }
        let Some((number, rest)) = bytes
            .split_first_chunk::<8>()
            .map(|(n, rest)| (u64::from_be_bytes(*n), rest))
        else {
            self.failures.corrupt("a datagram too short", 1);
            return;
        };
        if rest.len() != SIZE - 8 || pattern::wrong(SEED, number << 16, rest) > 0 {
            self.failures.corrupt("a datagram", 1);
            return;
        }
        self.pauses.progress();
        if !self.numbers.insert(number) {
            self.duplicated += 1;
            return;
        }
        if self.highest.is_some_and(|h| number < h) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
    }
}

fn datagram(number: u64) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    pattern::fill(SEED, number << 16, &mut bytes[8..]);
    bytes
}

fn is_waiting(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// An unconnected socket is told of nobody's absence but its own interruptions.
fn is_passing(e: &io::Error) -> bool {
    is_waiting(e) || e.kind() == io::ErrorKind::ConnectionRefused
}
