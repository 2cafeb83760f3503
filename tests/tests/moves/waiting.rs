//! What no process has taken yet moves as well: accept queues, SYN queues, a connect() under way; and what no getter tells: multicast groups.
use std::{
    io::{BufRead as _, BufReader, Read as _},
    thread,
    time::Duration,
};

use netmig_lab::{Cmd, Input, Process};
use serde_json::Value;

use crate::{
    catcher::Catcher,
    container::{Container, How},
    story::{Ended, Story},
};

const DEAF: &str = "nft add table ip deaf; nft add chain ip deaf input '{ type filter hook input priority 0; }'; nft add rule ip deaf input tcp dport 7603 drop";
const CLIENTS: usize = 10;

struct Waiting {
    story: Story,
    container: Container,
    client: Process,
    lines: BufReader<std::io::PipeReader>,
}

impl Waiting {
    fn up(name: &str) -> Self {
        let story = Story::up(name);
        let container = Container::new(How::Podman("crun"));
        let peer = story.peer();
        peer.sh(DEAF).expect("a deaf port");
        let own = container.ipv4();
        let servers = [
            "/bin/netmig-peer",
            "init",
            "/bin/redis-server",
            "/etc/redis.conf",
            "--and",
            "/bin/netmig-peer",
            "waiting",
            "--connect=192.0.2.100:7603",
            &format!("--at={own}"),
        ];
        story.start_with(story.a(), &container, &servers);
        let script = include_str!("waiting.py");
        peer.write("/tmp/waiting.py", script.as_bytes(), 0o755)
            .expect("written");
        let run = Cmd::new(["python3", "/tmp/waiting.py", &own, &container.ipv6()]);
        let mut client = peer.spawn(&run.stdin(Input::Pipe)).expect("a client");
        let mut lines = BufReader::new(client.stdout.take().expect("its output"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "ready");
        thread::sleep(Duration::from_millis(300));
        Self {
            story,
            container,
            client,
            lines,
        }
    }

    /// `inspect` says of each what will become of it, as a table and as JSON.
    fn is_listed(&self) {
        let inspect = ["netmig-user", "inspect", "--podman", "web"];
        let table = self.story.a().run(&inspect).expect("a table");
        let of = |state: &str| {
            let rows = table
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>());
            rows.filter(|words| words.first() == Some(&"tcp") && words.contains(&state))
                .filter(|words| words.last() == Some(&"moves"))
                .count()
        };
        // Of the clients four have ended; a connection to redis may be there too.
        assert_eq!((of("close-wait"), of("syn-sent")), (4, 1), "{table}");
        let json = [&inspect[..], &["--json"]].concat();
        let json = self.story.a().run(&json).expect("JSON");
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["schema"], "netmig.inspect/1");
        let rows = json["sockets"].as_array().expect("sockets");
        let waiting = rows.iter().filter(|row| row["class"] == "tcp-embryo");
        assert_eq!(waiting.count(), CLIENTS, "{json:#}");
    }

    /// Leaves connections in TIME_WAIT at the container: redis ends them first.
    fn leaves_some(&self) {
        let quit = "import socket, sys\nfor at in sys.argv[1:]:\n s = socket.create_connection((at, 6379), 5)\n s.sendall(b'QUIT\\r\\n')\n while s.recv(100): pass\n s.close()";
        let (v4, v6) = (self.container.ipv4(), self.container.ipv6());
        let run = ["python3", "-c", quit, &v4, &v6];
        self.story.peer().run(&run).expect("both end");
    }

    /// What the servers have to say, wherever they are.
    fn told(&self) -> String {
        let log = Cmd::new(["podman", "logs", "web"]);
        let hosts = [self.story.a(), self.story.b()];
        let logs = hosts.map(|host| match host.exec(&log) {
            Ok(output) => output.text() + &output.errors(),
            Err(e) => e.to_string(),
        });
        logs.join("\n")
    }

    /// The client's verdict.
    fn ends(mut self) {
        drop(self.client.stdin.take());
        let status = self.client.wait().expect("its end");
        let mut complaint = String::new();
        if let Some(mut errors) = self.client.stderr.take() {
            errors
                .read_to_string(&mut complaint)
                .expect("its complaints");
        }
        assert!(status.success(), "{complaint}\n{}", self.told());
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "clean");
    }
}

/// Fates of the sockets of a class.
pub fn fates(ended: &Ended, class: &str) -> Vec<Value> {
    let report = ended.report.as_ref().expect("a report");
    let all = report["sockets"].as_array().expect("sockets");
    let of = all.iter().filter(|row| row["class"] == class);
    of.map(|row| row["fate"].clone()).collect()
}

#[test]
fn what_waits_for_a_process_moves_there_and_back() {
    let waiting = Waiting::up("waiting");
    waiting.is_listed();
    for from in [waiting.story.a(), waiting.story.b()] {
        waiting.leaves_some();
        let ended = waiting.story.moves(from, &waiting.container);
        let over = fates(&ended, "tcp-time-wait");
        assert!(over.len() >= 2, "{over:?}");
        assert!(over.iter().all(|fate| fate == "moves"), "{over:?}");
        assert!(!ended.said().contains("not protected"), "{}", ended.said());
        assert_eq!(fates(&ended, "tcp-embryo"), vec!["moves"; CLIENTS]);
        assert_eq!(fates(&ended, "tcp-syn-recv"), ["moves"; 2]);
        assert_eq!(fates(&ended, "tcp-over"), ["moves"; 2]);
        assert_eq!(
            fates(&ended, "tcp-syn-sent"),
            ["moves"],
            "{}",
            waiting.told()
        );
        assert!(!ended.said().contains("accept queue"), "{}", ended.said());
    }
    waiting.ends();
}

#[test]
fn a_move_that_fails_leaves_the_queue_as_it_was() {
    let waiting = Waiting::up("waiting-undone");
    let story = &waiting.story;
    let mut catcher = Catcher::set(story.b(), "post-restore", "criu");
    let ended = story.migrate(story.a(), &waiting.container, &[]);
    catcher.caught();
    assert_eq!(ended.outcome(), "kept", "{}", ended.said());
    assert!(
        !ended.said().contains("accept queue"),
        "{}\n{}",
        ended.said(),
        story.logs()
    );
    story.lives_only_on(story.a(), &waiting.container);
    story.nothing_is_left();
    waiting.ends();
}
