//! A stream of iperf3, a program that knows nothing of netmig, from the peer to the container's `iperf3 --server`.
use std::{
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    Direction, Kind, Outcome, clock,
    failure::Failures,
    pauses::{Pause, Pauses},
    stop::Stop,
};

/// iperf3 tells its figures this often: the finest that it can.
const INTERVAL: &str = "0.1";
/// How long iperf3 may take to end after SIGINT: it tells the server first.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How long the server may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);
const AFTERMATH_NS: u64 = 100_000_000;

/// A line of iperf3's at the time it came.
struct Line {
    at_ns: u64,
    event: Value,
}

/// Runs iperf3 with `rate` bytes a second (0: as fast as it goes) until told to stop. Its pause is told to a tenth of a second.
///
/// # Errors
/// There is no iperf3, no server, or `ready`'s.
pub fn stream(
    name: &str,
    to: SocketAddr,
    rate: u64,
    stop: &Stop,
    ready: impl FnOnce() -> io::Result<()>,
) -> io::Result<Outcome> {
    let (mut child, lines) = start_when_there(to, rate)?;
    let mut seen = Seen::default();
    let mut ready = Some(ready);
    while !stop.told() {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => seen.line(&line),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        if seen.bytes > 0
            && let Some(ready) = ready.take()
        {
            ready()?;
        }
    }
    let ended_early = !stop.told();
    end(&mut child, &lines, &mut seen)?;
    let mut failures = Failures::default();
    // Interrupted, it says so as an error; before it was, any error is one.
    if ended_early {
        let said = seen.error.as_deref().unwrap_or("it ended by itself");
        let kind = if said.contains("reset") {
            io::ErrorKind::ConnectionReset
        } else {
            io::ErrorKind::Other
        };
        failures.io(name, &io::Error::new(kind, said));
    }
    let mut outcome = Outcome::new(
        name,
        Kind::Iperf3,
        Direction::Inbound,
        &failures,
        &seen.pauses,
    );
    let (before, after) = seen.cwnd_around_longest();
    outcome.connects = 1;
    outcome.row.bytes = seen.bytes;
    outcome.row.retransmits = Some(seen.retransmits);
    outcome.row.cwnd_before = before;
    outcome.row.cwnd_after = after;
    Ok(outcome)
}

#[derive(Default)]
struct Seen {
    bytes: u64,
    retransmits: u64,
    /// Congestion windows in segments and when they were told.
    cwnds: Vec<(u64, u32)>,
    mss: u64,
    pauses: Pauses,
    error: Option<String>,
}

impl Seen {
    fn line(&mut self, line: &Line) {
        let data = &line.event["data"];
        match line.event["event"].as_str() {
            Some("start") => self.mss = data["tcp_mss_default"].as_u64().unwrap_or(0),
            Some("interval") => {
                let stream = &data["streams"][0];
                let bytes = stream["bytes"].as_u64().unwrap_or(0);
                self.bytes += bytes;
                self.retransmits += stream["retransmits"].as_u64().unwrap_or(0);
                let cwnd = stream["snd_cwnd"]
                    .as_u64()
                    .unwrap_or(0)
                    .checked_div(self.mss);
                self.cwnds.extend(
                    cwnd.and_then(|c| u32::try_from(c).ok())
                        .map(|c| (line.at_ns, c)),
                );
                if bytes > 0 {
                    self.pauses.progress_at(line.at_ns);
                }
            }
            Some("error") => self.error = data.as_str().map(str::to_owned),
            _ => {}
        }
    }

    fn cwnd_around_longest(&self) -> (Option<u32>, Option<u32>) {
        let Some(Pause { began_ns, ended_ns }) = self.pauses.longest().first().copied() else {
            return (None, None);
        };
        let before = self.cwnds.iter().rfind(|(at, _)| *at <= began_ns);
        let after = self
            .cwnds
            .iter()
            .filter(|(at, _)| *at > began_ns && *at <= ended_ns + AFTERMATH_NS);
        (
            before.map(|(_, cwnd)| *cwnd),
            after.map(|(_, cwnd)| *cwnd).min(),
        )
    }
}

/// Starts iperf3 again until it has a stream: the server may still be starting.
fn start_when_there(to: SocketAddr, rate: u64) -> io::Result<(Child, mpsc::Receiver<Line>)> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let mut child = Command::new("iperf3")
            .args([
                "--client",
                &to.ip().to_string(),
                "--port",
                &to.port().to_string(),
            ])
            .args([
                "--json-stream",
                "--interval",
                INTERVAL,
                "--time",
                "0",
                "--bitrate",
                &(rate * 8).to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("starting iperf3: {e}")))?;
        let lines = read_lines(child.stdout.take());
        let first = lines.recv_timeout(START_LIMIT);
        if let Ok(line) = &first
            && line.event["event"] == "start"
            && line.event["data"]["connected"][0].is_object()
        {
            return Ok((child, put_back(line, lines)));
        }
        child.kill()?;
        child.wait()?;
        if Instant::now() >= deadline {
            let said = first.map_or_else(|_| "nothing".to_owned(), |line| line.event.to_string());
            return Err(io::Error::other(format!("iperf3 to {to} said {said}")));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// The first line again, then the others.
fn put_back(first: &Line, rest: mpsc::Receiver<Line>) -> mpsc::Receiver<Line> {
    let (send, receive) = mpsc::channel();
    let first = Line {
        at_ns: first.at_ns,
        event: first.event.clone(),
    };
    thread::spawn(move || {
        std::iter::once(first)
            .chain(rest)
            .try_for_each(|line| send.send(line))
    });
    receive
}

fn read_lines(pipe: Option<ChildStdout>) -> mpsc::Receiver<Line> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for text in pipe
            .into_iter()
            .flat_map(|p| BufReader::new(p).lines())
            .map_while(Result::ok)
        {
            let at_ns = clock::now_ns();
            if let Ok(event) = serde_json::from_str(&text)
                && send.send(Line { at_ns, event }).is_err()
            {
                break;
            }
        }
    });
    receive
}

/// Interrupts iperf3, takes what it still tells, and sees to it that it ends.
fn end(child: &mut Child, lines: &mpsc::Receiver<Line>, seen: &mut Seen) -> io::Result<()> {
    seen.pauses.progress();
    if child.try_wait()?.is_none() {
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT)?;
    }
    let deadline = Instant::now() + END_LIMIT;
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        // The last interval is cut short by the interrupt: no progress in it is no pause.
        if line.event["event"] == "error" {
            seen.error = line.event["data"].as_str().map(str::to_owned);
        }
    }
    if child.try_wait()?.is_none() {
        child.kill()?;
    }
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn interval(at_ms: u64, bytes: u64, retransmits: u64, cwnd: u64) -> Line {
        let stream = json!({ "bytes": bytes, "retransmits": retransmits, "snd_cwnd": cwnd });
        let event = json!({ "event": "interval", "data": { "streams": [stream] } });
        Line {
            at_ns: at_ms * 1_000_000,
            event,
        }
    }

    #[test]
    fn intervals_without_bytes_are_a_pause_and_windows_are_segments() {
        let mut seen = Seen::default();
        seen.line(&Line {
            at_ns: 0,
            event: json!({ "event": "start", "data": { "tcp_mss_default": 1000 } }),
        });
        for (at, bytes, retransmits, cwnd) in [
            (100, 50, 0, 40_000),
            (200, 50, 0, 42_000),
            (300, 0, 1, 1_000),
            (400, 0, 2, 1_000),
            (500, 10, 0, 9_000),
        ] {
            seen.line(&interval(at, bytes, retransmits, cwnd));
        }
        assert_eq!((seen.bytes, seen.retransmits), (110, 3));
        assert!((seen.pauses.longest_ms() - 300.0).abs() < 1e-9);
        assert_eq!(seen.cwnd_around_longest(), (Some(42), Some(1)));
    }
}
