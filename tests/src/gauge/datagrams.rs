//! The peer of the gauge that sends datagrams.
use std::{
    io::{self, ErrorKind},
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::TryRecvError,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    Ended, Exchanged, RECEIVE_BUFFER,
    client::{Answer, Task, questions},
    wire::{self, Datagrams, Pace, QUESTION},
};
use crate::peers::{failure::Failures, stop::say_ready};

/// Between two bursts.
const BURST: Duration = Duration::from_millis(1);
/// How long a silence says that nothing more is on its way.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the container may take to say what it has got.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Back {
    seen: Vec<u64>,
    count: u64,
    next: u64,
    out_of_place: u64,
    wrong: u64,
    answer: Option<Datagrams>,
}

/// Runs until standard input ends; a line of it is answered with nothing felt.
pub(super) fn run(task: &Task) -> Result<()> {
    let any: SocketAddr = match task.to {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).context("a socket")?;
    socket.connect(task.to)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("a receive buffer")?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let back = Mutex::new(Back::default());
    begin(&socket, task.rate)?;
    let (stop, quiet) = (AtomicBool::new(false), AtomicBool::new(false));
    let sent = AtomicU64::new(0);
    let ended = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&socket, &back, &quiet));
        let sender = scope.spawn(|| send(&socket, task.rate, &sent, &stop));
        let told = answer_all(&back);
        stop.store(true, Ordering::Relaxed);
        let sending = sender.join().expect("no panic");
        let heard = told.and_then(|()| await_end(&socket, &back, sent.load(Ordering::Relaxed)));
        quiet.store(true, Ordering::Relaxed);
        let mut failures = receiver.join().expect("no panic");
        let (took, sending) = sending;
        failures.merge(&sending);
        heard.map(|heard| (took, failures, heard))
    });
    let (took, mut failures, heard) = ended?;
    let back = back.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.corrupt("datagrams", back.wrong + heard.wrong);
    let ended = Ended {
        broken: failures.errors + failures.resets + failures.corrupt,
        first_failure: failures.first,
        bytes: (heard.received + back.count) * wire::DATAGRAM as u64,
        datagrams: Some(Exchanged {
            sent: sent.into_inner(),
            sent_back: heard.sent,
            took_ns: u64::try_from(took.as_nanos())?,
            received: heard.received,
            back: back.count,
            out_of_place: heard.out_of_place + back.out_of_place,
        }),
        ..Ended::default()
    };
    println!("{}", serde_json::to_string(&ended)?);
    Ok(())
}

/// Asks for datagrams until some come.
fn begin(socket: &UdpSocket, per_second: u64) -> Result<()> {
    let limit = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    while Instant::now() < limit {
        let asked = socket.send(&wire::begin(per_second));
        if asked.and_then(|_| socket.peek(&mut buffer)).is_ok() {
            return Ok(());
        }
        thread::sleep(BURST);
    }
    anyhow::bail!("the container sends no datagrams")
}

/// Ready with the first datagram; nobody feels anything of a move but what is counted at the end.
fn answer_all(back: &Mutex<Back>) -> Result<()> {
    let lines = questions();
    let mut ready = false;
    loop {
        match lines.try_recv() {
            Ok(_) => println!("{}", serde_json::to_string(&Answer::default())?),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        if !ready && lock(back).count > 0 {
            ready = true;
            say_ready()?;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn send(
    socket: &UdpSocket,
    per_second: u64,
    sent: &AtomicU64,
    stop: &AtomicBool,
) -> (Duration, Failures) {
    let mut failures = Failures::default();
    let begun = Instant::now();
    let (mut pace, mut number) = (Pace::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..pace.due(per_second) {
            match socket.send(&wire::datagram(number)) {
                Ok(_) => number += 1,
                Err(e) => failures.io("sending datagrams", &e),
            }
        }
        sent.store(number, Ordering::Relaxed);
        thread::sleep(BURST);
    }
    (begun.elapsed(), failures)
}

fn receive(socket: &UdpSocket, back: &Mutex<Back>, quiet: &AtomicBool) -> Failures {
    let mut failures = Failures::default();
    let mut buffer = [0; 2048];
    while !quiet.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(n) => lock(back).take(&buffer[..n]),
            Err(e) if is_waiting(&e) => {}
            Err(e) => failures.io("receiving datagrams", &e),
        }
    }
    failures
}

/// Ends it; waits for what is late, and for what the container says.
fn await_end(socket: &UdpSocket, back: &Mutex<Back>, sent: u64) -> Result<Datagrams> {
    let limit = Instant::now() + PATIENCE;
    let mut last = (0, Instant::now());
    while Instant::now() < limit {
        lock(back).answer = None;
        socket.send(&[QUESTION]).context("asking the container")?;
        thread::sleep(Duration::from_millis(100));
        let (answer, count) = {
            let back = lock(back);
            (back.answer, back.count)
        };
        let Some(answer) = answer else { continue };
        if count + answer.received != last.0 {
            last = (count + answer.received, Instant::now());
        }
        let all = count >= answer.sent && answer.received >= sent;
        if all || last.1.elapsed() > SILENCE {
            return Ok(answer);
        }
    }
    anyhow::bail!("the container does not say which datagrams it has got")
}

fn lock(back: &Mutex<Back>) -> std::sync::MutexGuard<'_, Back> {
    back.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_waiting(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

impl Back {
    fn take(&mut self, bytes: &[u8]) {
        if let Some(answer) = Datagrams::parse(bytes) {
            self.answer = Some(answer);
            return;
        }
        let Some(number) = wire::number(bytes) else {
            self.wrong += 1;
            return;
        };
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.out_of_place += 1;
            return;
        }
        self.seen[word] |= bit;
        self.count += 1;
        if number < self.next {
            self.out_of_place += 1;
        }
        self.next = self.next.max(number + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_counted_once_and_those_out_of_place_told() {
        let mut back = Back::default();
        for n in [0, 1, 65, 64, 1, 200] {
            back.take(&wire::datagram(n));
        }
        back.take(b"nonsense");
        assert_eq!(
            (back.count, back.out_of_place, back.wrong, back.next),
            (5, 2, 1, 201)
        );
    }
}
