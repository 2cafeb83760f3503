//! What redis has closed moves to the other host and back: with bytes that its peer has not read, with a FIN only, and TIME_WAIT.
use std::{
    io::{BufRead as _, BufReader, Read as _},
    time::Duration,
};

use netmig_lab::{Cmd, Host, Input};
use serde_json::Value;

use crate::{
    container::{Container, How},
    story::Story,
    waiting::fates,
};

/// Over two protocols: with bytes to send, with its FIN acknowledged, with its FIN lost.
const ORPHANS: [&str; 6] = [
    "fin-wait1",
    "fin-wait1",
    "fin-wait2",
    "fin-wait2",
    "last-ack",
    "last-ack",
];

/// Leaves a connection in TIME_WAIT at the container: redis ends it first.
fn leave_one(story: &Story, container: &Container) {
    let quit = format!("redis-cli -h {} QUIT", container.ipv4());
    story.peer().sh(&quit).expect("it ends");
}

/// The orphans on `host`, as `inspect` tells them: nobody owns one, and those with bytes to send have them.
fn are_orphans(host: &dyn Host) {
    let inspect = ["netmig-user", "inspect", "--podman", "web", "--json"];
    let json = host.run(&inspect).expect("JSON");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let rows = json["sockets"].as_array().expect("sockets");
    let orphans = rows.iter().filter(|row| row["class"] == "tcp-orphan");
    let (mut states, mut unsent) = (Vec::new(), 0);
    for row in orphans {
        assert_eq!(row["owners"], Value::Array(Vec::new()), "{row}");
        states.push(row["state"].as_str().expect("a state"));
        // A FIN that was not acknowledged counts as one.
        unsent += usize::from(row["wqueue"].as_u64() > Some(1));
    }
    states.sort_unstable();
    assert_eq!((&states[..], unsent), (&ORPHANS[..], 2), "{json:#}");
}

#[test]
fn what_was_closed_moves_there_and_back() {
    let story = Story::up("orphans");
    let container = Container::new(How::Podman("crun"));
    story.start(story.a(), &container);
    let script = include_str!("orphans.py");
    let peer = story.peer();
    peer.write("/tmp/orphans.py", script.as_bytes(), 0o755)
        .expect("written");
    let run = Cmd::new([
        "python3",
        "/tmp/orphans.py",
        &container.ipv4(),
        &container.ipv6(),
    ]);
    let mut clients = peer.spawn(&run.stdin(Input::Pipe)).expect("clients");
    let mut lines = BufReader::new(clients.stdout.take().expect("their output"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line");
    assert_eq!(line.trim(), "ready");
    std::thread::sleep(Duration::from_millis(300));

    for from in [story.a(), story.b()] {
        are_orphans(from);
        leave_one(&story, &container);
        let ended = story.moves(from, &container);
        let closed = fates(&ended, "tcp-orphan");
        assert_eq!(closed, ["moves"; ORPHANS.len()], "{}", ended.said());
        let over = fates(&ended, "tcp-time-wait");
        assert!(!over.is_empty() && over.iter().all(|fate| fate == "moves"));
        assert!(fates(&ended, "tcp-orphan-stuck").is_empty());
    }
    are_orphans(story.a());

    drop(clients.stdin.take());
    let status = clients.wait().expect("their end");
    let mut complaint = String::new();
    if let Some(mut errors) = clients.stderr.take() {
        errors
            .read_to_string(&mut complaint)
            .expect("their complaints");
    }
    assert!(status.success(), "{complaint}\n{}", story.logs());
    line.clear();
    lines.read_line(&mut line).expect("a line");
    assert_eq!(line.trim(), "clean");
    story.nothing_is_left();
}
