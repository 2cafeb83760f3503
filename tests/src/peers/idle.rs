//! Connections that say nothing while the container moves, and must still be there afterwards.
use std::{io, net::SocketAddr, time::Duration};

use super::{
    Direction, Kind, Outcome,
    failure::Failures,
    pauses::Pauses,
    resp::{self, Connection, Reply},
    stop::Stop,
};

/// How long the answer on a connection that was idle may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Opens `connections` connections to redis at `to`, is silent until told to stop, then asks once on each.
///
/// # Errors
/// A connection cannot be opened, or `ready`'s.
pub fn hold(
    name: &str,
    to: SocketAddr,
    connections: usize,
    stop: &Stop,
    ready: impl FnOnce() -> io::Result<()>,
) -> io::Result<Outcome> {
    let mut held = Vec::with_capacity(connections);
    for _ in 0..connections {
        held.push(resp::open_when_there(
            to,
            ANSWER_LIMIT,
            Duration::from_secs(20),
        )?);
    }
    ready()?;
    while !stop.told() {
        stop.sleep(Duration::from_secs(1));
    }
    let (mut failures, mut answers, mut alive) = (Failures::default(), Pauses::default(), 0);
    for (i, connection) in held.iter_mut().enumerate() {
        answers.rest();
        answers.progress();
        match ping(connection) {
            Ok(()) => alive += 1,
            Err(e) => failures.io(&format!("{name}:{i} after its silence"), &e),
        }
        answers.progress();
    }
    let mut outcome = Outcome::new(name, Kind::Idle, Direction::Both, &failures, &answers);
    outcome.row.operations = Some(alive);
    outcome.connects = connections as u64;
    Ok(outcome)
}

fn ping(connection: &mut Connection) -> io::Result<()> {
    match connection.call(&[b"PING"])? {
        Reply::Status(s) if s == "PONG" => Ok(()),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("redis answered {other:?}"),
        )),
    }
}
