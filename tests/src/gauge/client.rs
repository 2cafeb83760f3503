//! The peer of the gauge: some connections with the container, one with the program that stays, all on one thread.
//!
//! A line of standard input is a [`Moment`]; the answer is what was felt of it ([`Answer`]), as soon as all of it has happened. Its end asks for
//! [`Ended`].
use std::{
    fs,
    io::{self, BufRead, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::mpsc::{self, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::{
    Ended, Load,
    course::{self, Course, Felt, Moment},
    datagrams,
    wire::{self, Checked, Head, REQUEST},
};
use crate::peers::{
    bulk::congestion, clock, failure::Failures, pattern, stop::say_ready, tcp_info,
};

/// Written and read at once.
const CHUNK: usize = 64 << 10;
/// Connections whose every acknowledgement is seen.
const WATCHED: usize = 8;
/// How often all are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Requests of all connections together are not more than one in so long.
const REQUEST_EVERY: Duration = Duration::from_micros(70);
/// A connection's are not more than one in so long. Without a rate there are as many as can be.
const PAUSE: Duration = Duration::from_millis(1);
/// Bytes a second of the one that stays: so few that they take little from what moves, so many that a gap between two segments is short.
const STILL_RATE: u64 = 4_000_000;
/// How long a program may take to listen.
const START_LIMIT: Duration = Duration::from_secs(5);
/// How long the ends of the streams may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Clone, Debug, Args)]
pub struct Task {
    /// What the connections carry.
    #[arg(long)]
    pub load: Load,
    /// The container.
    #[arg(long)]
    pub to: SocketAddr,
    /// The program that stays.
    #[arg(long)]
    pub still: SocketAddr,
    /// Connections with the container.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Bytes a second of each direction of all connections together (0: as fast as it goes), or datagrams a second.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// How long after the opening something is waited for, ms.
    #[arg(long, default_value_t = 15_000)]
    pub limit: u64,
}

/// What was felt of a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// By the connections with the container.
    pub moved: Felt,
    /// By that with the program that stays, at the same time.
    pub still: Felt,
}

struct End {
    stream: TcpStream,
    head: Head,
    still: bool,
    written: u64,
    checked: Checked,
    received: u64,
    over: bool,
    acked: Course,
    arrived: Course,
    window: Course,
    retransmits: u32,
    asked_ns: u64,
    ask_at: Instant,
    requests: Vec<(u64, u64)>,
}

struct Peer {
    task: Task,
    ends: Vec<End>,
    failures: Failures,
    looked: Instant,
    finishing: bool,
}

/// Runs until standard input ends and every stream has come to its end.
///
/// # Errors
/// A connection cannot be made, or standard output is gone.
pub fn run(task: &Task) -> Result<()> {
    if task.load == Load::Datagrams {
        return datagrams::run(task);
    }
    let before = Counters::read()?;
    let mut peer = Peer::connect(task)?;
    let questions = questions();
    say_ready()?;
    let mut asked: Option<(Moment, Instant)> = None;
    loop {
        peer.round()?;
        if let Some((moment, since)) = &asked {
            let answer = peer.answer(moment);
            let limit = Duration::from_millis(task.limit);
            if answer.complete(task.load) || since.elapsed() > limit {
                println!("{}", serde_json::to_string(&answer)?);
                asked = None;
            }
            continue;
        }
        match questions.try_recv() {
            Ok(line) => {
                let moment = serde_json::from_str(&line).with_context(|| format!("`{line}`"))?;
                asked = Some((moment, Instant::now()));
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => break,
        }
    }
    let mut ended = peer.finish()?;
    let after = Counters::read()?;
    ended.reneging = after.reneging - before.reneging;
    ended.known_already = after.known_already - before.known_already;
    println!("{}", serde_json::to_string(&ended)?);
    Ok(())
}

/// The lines of standard input, until it ends.
pub(super) fn questions() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

impl Answer {
    fn complete(&self, load: Load) -> bool {
        let Felt {
            first_in_ms,
            first_out_ms,
            regained_in_ms,
            regained_out_ms,
            request_ms,
            ..
        } = self.moved;
        let known = |needed: bool, figures: [Option<f64>; 2]| {
            !needed || figures.iter().all(Option::is_some)
        };
        known(load.fills_inbound(), [first_in_ms, regained_in_ms])
            && known(load.fills_outbound(), [first_out_ms, regained_out_ms])
            && known(load == Load::Requests, [request_ms; 2])
    }
}

impl Peer {
    fn connect(task: &Task) -> Result<Self> {
        let connections = task.connections.max(1);
        let share = task.rate / connections as u64;
        let mut ends = Vec::with_capacity(connections + 1);
        for n in 0..=connections {
            let still = n == connections;
            let (to, number) = if still {
                (task.still, u64::from(u32::MAX))
            } else {
                (task.to, n as u64)
            };
            let rate = if still { STILL_RATE } else { share };
            let head = Head {
                load: task.load,
                number,
                rate,
            };
            let end = End::begin(to, head, still).with_context(|| format!("connecting to {to}"))?;
            ends.push(end);
        }
        Ok(Self {
            task: task.clone(),
            ends,
            failures: Failures::default(),
            looked: Instant::now(),
            finishing: false,
        })
    }

    /// What can be done now, or within a millisecond.
    fn round(&mut self) -> Result<()> {
        let ready = self.wait()?;
        let usual = PAUSE.max(REQUEST_EVERY * u32::try_from(self.task.connections)?);
        for (end, ready) in self.ends.iter_mut().zip(ready) {
            let pause = if end.head.rate == 0 {
                Duration::ZERO
            } else {
                usual
            };
            let due = end.head.load == Load::Requests && end.ask_at <= Instant::now();
            if (ready || due)
                && !end.over
                && let Err(e) = end.go_on(pause, self.finishing)
            {
                let what = if end.still {
                    "the still one"
                } else {
                    "a connection"
                };
                self.failures.io(what, &e);
                end.over = true;
            }
        }
        let all = self.looked.elapsed() >= LOOK;
        if all {
            self.looked = Instant::now();
        }
        for (n, end) in self.ends.iter_mut().enumerate() {
            if (all || n < WATCHED || end.still) && !end.over {
                end.look()?;
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<Vec<bool>> {
        let ends = self.ends.iter();
        let mut fds: Vec<_> = ends
            .map(|end| PollFd::new(end.stream.as_fd(), end.interest(self.finishing)))
            .collect();
        match poll(&mut fds, PollTimeout::from(1_u8)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).context("waiting"),
        }
        Ok(fds.iter().map(|fd| fd.any().unwrap_or(true)).collect())
    }

    fn answer(&self, moment: &Moment) -> Answer {
        Answer {
            moved: self.felt(moment, false),
            still: self.felt(moment, true),
        }
    }

    fn felt(&self, moment: &Moment, still: bool) -> Felt {
        let load = self.task.load;
        let ends = || self.ends.iter().filter(move |end| end.still == still);
        // Bytes that are acknowledged here have arrived half a round trip earlier.
        let acked_from = moment.opened_ns + moment.half_rtt_ns;
        // Those whose every acknowledgement is seen.
        let acked = || ends().take(WATCHED).map(|end| &end.acked);
        let arrived = || ends().map(|end| &end.arrived);
        let mut felt = Felt::default();
        if load.fills_inbound() {
            let before = course::rate(acked(), moment.calm_ns);
            felt.before += course::rate(ends().map(|end| &end.acked), moment.calm_ns);
            felt.first_in_ms = course::first(acked(), acked_from);
            felt.regained_in_ms = course::regained(acked(), acked_from, before);
            felt.window_kept = course::window_kept(ends().map(|end| &end.window), moment);
        }
        if load.fills_outbound() {
            let before = course::rate(arrived(), moment.calm_ns);
            felt.before += before;
            felt.first_out_ms = course::first(arrived(), moment.opened_ns);
            felt.regained_out_ms = course::regained(arrived(), moment.opened_ns, before);
        }
        if load == Load::Requests {
            // One that is not answered yet may be the longest.
            let under_way = ends().any(|end| end.waits_since(moment.opened_ns));
            felt.request_ms = ends()
                .filter_map(|end| course::longest_request(&end.requests, moment))
                .reduce(f64::max)
                .filter(|_| !under_way);
        }
        felt
    }

    fn finish(mut self) -> Result<Ended> {
        self.finishing = true;
        for end in &mut self.ends {
            if end.head.load != Load::Requests && !end.over {
                end.stream.shutdown(Shutdown::Write).unwrap_or_else(|e| {
                    self.failures.io("the end of a stream", &e);
                    end.over = true;
                });
            }
        }
        let limit = Instant::now() + PATIENCE;
        while self.ends.iter().any(|end| !end.over) && Instant::now() < limit {
            self.round()?;
        }
        let mut ended = Ended::default();
        for end in &self.ends {
            end.check(&mut self.failures);
            if !end.still {
                ended.by_peer += u64::from(end.retransmits);
                ended.bytes += end.written + end.received;
                ended.by_container += end.checked.end().map_or(0, |(told, _)| told.retransmits);
            }
        }
        let Failures {
            errors,
            resets,
            corrupt,
            first,
        } = self.failures;
        ended.broken = errors + resets + corrupt;
        ended.first_failure = first;
        Ok(ended)
    }
}

impl End {
    fn begin(to: SocketAddr, head: Head, still: bool) -> Result<Self> {
        let limit = Instant::now() + START_LIMIT;
        let mut stream = loop {
            match TcpStream::connect_timeout(&to, START_LIMIT) {
                Ok(stream) => break stream,
                // The program is still starting.
                Err(_) if Instant::now() < limit => thread::sleep(Duration::from_millis(20)),
                Err(e) => return Err(e.into()),
            }
        };
        stream.set_nodelay(true)?;
        congestion::choose(&stream)?;
        wire::pace(&stream, head.rate)?;
        stream.write_all(&head.bytes())?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            head,
            still,
            written: 0,
            checked: Checked::new(head.seed_out()),
            received: 0,
            over: false,
            acked: Course::default(),
            arrived: Course::default(),
            window: Course::default(),
            retransmits: 0,
            asked_ns: 0,
            ask_at: Instant::now(),
            requests: Vec::new(),
        })
    }

    fn interest(&self, finishing: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !self.over);
        let writes = self.head.load.fills_inbound() && !finishing && !self.over;
        flags.set(PollFlags::POLLOUT, writes);
        flags
    }

    /// Reads and writes what goes.
    fn go_on(&mut self, pause: Duration, finishing: bool) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.over = true,
            Ok(n) => {
                let now = clock::now_ns();
                self.checked.push(&chunk[..n]);
                self.received += n as u64;
                self.arrived.add(now, self.received);
                if self.asked_ns > 0 && self.received >= self.written {
                    self.requests.push((self.asked_ns, now));
                    self.asked_ns = 0;
                    self.ask_at = Instant::now() + pause;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        match self.head.load {
            Load::Requests if self.asked_ns == 0 && self.ask_at <= Instant::now() => {
                if finishing {
                    self.ask_at += PATIENCE * 2;
                    return self.stream.shutdown(Shutdown::Write);
                }
                pattern::fill(self.head.seed_in(), self.written, &mut chunk[..REQUEST]);
                self.asked_ns = clock::now_ns();
                self.stream.write_all(&chunk[..REQUEST])?;
                self.written += REQUEST as u64;
            }
            Load::Inbound | Load::Both if !finishing => {
                pattern::fill(self.head.seed_in(), self.written, &mut chunk);
                match self.stream.write(&chunk) {
                    Ok(n) => self.written += n as u64,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn look(&mut self) -> Result<()> {
        let info = tcp_info::read(&self.stream)?;
        let now = clock::now_ns();
        self.acked.add(now, info.bytes_acked);
        self.window.add(now, info.snd_cwnd.into());
        self.retransmits = info.total_retrans;
        Ok(())
    }

    /// A request from before `at_ns` is still not answered.
    fn waits_since(&self, at_ns: u64) -> bool {
        !self.over && self.asked_ns > 0 && self.asked_ns < at_ns
    }

    fn check(&self, failures: &mut Failures) {
        let what = if self.still {
            "the still one"
        } else {
            "a connection"
        };
        let Some((told, before)) = self.checked.end() else {
            let short = io::Error::new(
                ErrorKind::TimedOut,
                format!("its end has not come, after {} bytes", self.received),
            );
            return failures.io(what, &short);
        };
        failures.corrupt(what, self.checked.wrong + told.wrong);
        failures.corrupt(
            &format!("{what}: bytes that did not arrive"),
            self.written.abs_diff(told.read) + before.abs_diff(told.written),
        );
    }
}

/// Of this network namespace.
struct Counters {
    reneging: u64,
    known_already: u64,
}

impl Counters {
    fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/net/netstat").context("reading /proc/net/netstat")?;
        let of = |name: &str| {
            counter(&text, "TcpExt:", name)
                .with_context(|| format!("the kernel has no counter {name}"))
        };
        Ok(Self {
            reneging: of("TCPSACKReneging")?,
            known_already: of("TCPDSACKOldSent")? + of("TCPDSACKOfoSent")?,
        })
    }
}

/// A counter of /proc/net/netstat, where a line of names is followed by one of values.
fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let names = lines.next()?.split_whitespace();
    let mut values = lines.next()?.split_whitespace();
    let at = names.into_iter().position(|word| word == name)?;
    values.nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "TcpExt: A B C\nTcpExt: 1 2 3\nIpExt: A\nIpExt: 9\n";
        assert_eq!(counter(text, "TcpExt:", "B"), Some(2));
        assert_eq!(counter(text, "IpExt:", "A"), Some(9));
        assert_eq!(counter(text, "TcpExt:", "D"), None);
        Counters::read().expect("this kernel has them");
    }
}
