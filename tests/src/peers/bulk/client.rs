//! The end of the streams in the peer.
use std::{
    io,
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::{
    Closing, Request, congestion,
    frame::{Reader, Writer, receive_json, send_json},
};
use crate::peers::{
    Direction, Kind, Outcome,
    failure::Failures,
    pauses::Pauses,
    stop::Stop,
    tcp_info::{Course, Sampler},
};

/// How long a read or write may make no progress at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the server may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);
/// A stream is warm when it has carried this much (or one second's worth, if that is less).
const WARM_BYTES: u64 = 8 << 20;

#[derive(Default)]
struct Seen {
    bytes: u64,
    pauses: Pauses,
    course: Option<Course>,
    failures: Failures,
}

/// Runs one stream with the server at `to` until told to stop. A stream that breaks stays broken: what it carried until then counts.
///
/// # Errors
/// No connection at the start, or `ready`'s.
pub fn stream(
    name: &str,
    to: SocketAddr,
    request: &Request,
    stop: &Stop,
    ready: impl FnOnce() -> io::Result<()>,
) -> io::Result<Outcome> {
    let mut stream = connect(to)?;
    stream.set_nodelay(true)?;
    congestion::choose(&stream)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    send_json(&mut stream, request)?;
    let mut ready = Warm {
        at: if request.rate == 0 {
            WARM_BYTES
        } else {
            WARM_BYTES.min(request.rate)
        },
        say: Some(ready),
    };
    let seen = match request.direction {
        Direction::Inbound => send(name, &mut stream, request, stop, &mut ready)?,
        Direction::Outbound | Direction::Both => {
            receive(name, &mut stream, request, stop, &mut ready)?
        }
    };
    let mut outcome = Outcome::new(
        name,
        Kind::Bulk,
        request.direction,
        &seen.failures,
        &seen.pauses,
    );
    outcome.connects = 1;
    outcome.row.bytes = seen.bytes;
    if let Some(course) = seen.course {
        outcome.row.retransmits = Some(course.retransmits);
        outcome.row.cwnd_before = course.cwnd_before;
        outcome.row.cwnd_after = course.cwnd_after;
    }
    Ok(outcome)
}

/// Says once that the stream is warm.
struct Warm<F> {
    at: u64,
    say: Option<F>,
}

impl<F: FnOnce() -> io::Result<()>> Warm<F> {
    fn check(&mut self, bytes: u64) -> io::Result<()> {
        if bytes >= self.at
            && let Some(say) = self.say.take()
        {
            say()
        } else {
            Ok(())
        }
    }
}

fn send<F: FnOnce() -> io::Result<()>>(
    name: &str,
    stream: &mut TcpStream,
    request: &Request,
    stop: &Stop,
    warm: &mut Warm<F>,
) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let sampler = Sampler::start(stream)?;
    let mut writer = Writer::new(request.seed, request.rate);
    let mut result = Ok(());
    while !stop.told() && result.is_ok() {
        warm.check(writer.bytes)?;
        result = writer.next(stream);
    }
    seen.bytes = writer.bytes;
    // The socket's buffer hides a pause from the writer: the acknowledgements show it.
    let course = sampler.finish();
    if let Some(stall) = course.stall {
        seen.pauses.progress_at(stall.began_ns);
        seen.pauses.progress_at(stall.ended_ns);
    }
    seen.course = Some(course);
    match result
        .and_then(|()| Writer::end(stream))
        .and_then(|()| receive_json::<Closing>(stream))
    {
        Ok(closing) => {
            seen.failures.corrupt(name, closing.corrupt);
            seen.failures.corrupt(
                &format!("{name}: bytes that did not arrive"),
                seen.bytes.abs_diff(closing.bytes),
            );
        }
        Err(e) => seen.failures.io(name, &waited_too_long(e)),
    }
    Ok(seen)
}

fn receive<F: FnOnce() -> io::Result<()>>(
    name: &str,
    stream: &mut TcpStream,
    request: &Request,
    stop: &Stop,
    warm: &mut Warm<F>,
) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let mut reader = Reader::new(request.seed);
    let mut closed = false;
    let result = loop {
        if stop.told() && !closed {
            closed = true;
            if let Err(e) = stream.shutdown(Shutdown::Write) {
                break Err(e);
            }
        }
        match reader.next(stream, || seen.pauses.progress()) {
            Ok(true) => warm.check(reader.bytes)?,
            Ok(false) => break receive_json::<Closing>(stream),
            Err(e) => break Err(e),
        }
    };
    // A stream that broke has waited in vain until now.
    seen.pauses.progress();
    seen.bytes = reader.bytes;
    seen.failures.corrupt(name, reader.corrupt);
    match result {
        Ok(closing) => {
            seen.failures.corrupt(
                &format!("{name}: bytes that did not arrive"),
                reader.bytes.abs_diff(closing.bytes),
            );
            seen.course = closing.course;
        }
        Err(e) => seen.failures.io(name, &waited_too_long(e)),
    }
    Ok(seen)
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let end = Instant::now() + START_LIMIT;
    loop {
        match TcpStream::connect_timeout(&to, Duration::from_secs(5)) {
            Ok(stream) => return Ok(stream),
            Err(e) if Instant::now() >= end => {
                return Err(io::Error::new(
                    e.kind(),
                    format!("connecting to the bulk server at {to}: {e}"),
                ));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn waited_too_long(e: io::Error) -> io::Error {
    if e.kind() == io::ErrorKind::WouldBlock {
        io::Error::new(io::ErrorKind::TimedOut, "no progress in time")
    } else {
        e
    }
}
