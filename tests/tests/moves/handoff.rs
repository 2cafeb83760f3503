//! A program that saves and loads itself: the example echo server moves with its connections, and whatever goes wrong leaves it where it was.
use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    thread,
    time::Duration,
};

use netmig_lab::{Bind, Cmd, Host, Input, Process, handing};

use crate::story::{Ended, Story};

const PROGRAM: &str = "/usr/bin/handoff-echo";
/// How the program says it is started at a target.
const COMMAND: &str = "/srv/echo";
const ADDRESSES: [&str; 2] = ["192.0.2.30", "2001:db8::30"];
/// Connections that only ask before and after.
const IDLE: usize = 600;
const AROUND: Duration = Duration::from_millis(500);

struct Echo(Story);

impl Echo {
    /// The server runs on `a`, and both hosts can start it.
    fn up(name: &str) -> Self {
        let story = Story::with(
            name,
            vec![Bind {
                source: PathBuf::from(env!("CARGO_BIN_EXE_netmig-handoff-echo")),
                target: PROGRAM.into(),
                read_only: true,
            }],
        );
        let echo = Self(story);
        let (a, b, peer) = (echo.0.a(), echo.0.b(), echo.0.peer());
        for host in [a, b] {
            echo.can_load(host);
            let script = include_str!("handing.py");
            host.write("/tmp/handing.py", script.as_bytes(), 0o755)
                .expect("written");
        }
        let script = include_str!("echoes.py");
        peer.write("/tmp/echoes.py", script.as_bytes(), 0o755)
            .expect("written");
        handing::network(a, "echo", 30).expect("a namespace on the segment");
        let server = format!(
            "{PROGRAM} echo --listen '[::]:7000' --listen 0.0.0.0:7001 --udp '[::]:7000' --command {COMMAND}"
        );
        handing::start(a, "echo", &server).expect("started");
        echo
    }

    /// The program can be started on `host`.
    fn can_load(&self, host: &dyn Host) {
        let text = format!("#!/bin/sh\nexec {PROGRAM} echo --load --command {COMMAND}\n");
        host.write(COMMAND, text.as_bytes(), 0o755)
            .expect("written");
    }

    /// What is started on `host` instead.
    fn cannot_load(&self, host: &dyn Host, script: &str) {
        host.write(COMMAND, format!("#!/bin/sh\n{script}\n").as_bytes(), 0o755)
            .expect("written");
    }

    fn migrate(&self, from: &dyn Host, name: &str) -> Ended {
        migrate(&self.0, from, name)
    }

    /// It runs on `host` alone, and can be moved from there.
    fn lives_only_on(&self, host: &dyn Host) {
        let elsewhere = self.0.other(host);
        assert_eq!(count(host), 1, "on {}\n{}", host.name(), self.0.logs());
        assert_eq!(
            count(elsewhere),
            0,
            "on {}\n{}",
            elsewhere.name(),
            self.0.logs()
        );
        handing::registered(host, "echo").expect("it can be moved from there");
        let at = host
            .sh("nsenter -t $(pgrep -x handoff-echo) -n ip -o addr show to 192.0.2.30")
            .expect("looked");
        assert!(at.contains("192.0.2.30"), "its own namespace: {at}");
    }
}

fn migrate(story: &Story, from: &dyn Host, name: &str) -> Ended {
    let moved = handing::migrate(from, story.other(from), name, &[]).expect("migrate runs");
    Ended {
        output: moved.output,
        report: moved.report,
    }
}

/// How many of the servers run on `host`.
fn count(host: &dyn Host) -> usize {
    let text = host.sh("pgrep -cx handoff-echo || true").expect("counted");
    text.trim().parse().expect("a number")
}

/// Clients of the server over both protocols.
struct Clients {
    process: Process,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Clients {
    fn start(host: &dyn Host, idle: usize) -> Self {
        let idle = idle.to_string();
        let mut argv = vec!["python3", "/tmp/echoes.py", &idle];
        argv.extend(ADDRESSES);
        let mut process = host
            .spawn(&Cmd::new(argv).stdin(Input::Pipe))
            .expect("clients");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        let lines = Box::new(output.lines().map(|line| line.expect("a line")));
        let mut clients = Self { process, lines };
        let first = clients.lines.next();
        assert_eq!(first.as_deref(), Some("ready"), "{}", clients.complaint());
        thread::sleep(AROUND);
        clients
    }

    fn complaint(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut errors) = self.process.stderr.take() {
            errors.read_to_string(&mut text).expect("its complaints");
        }
        text
    }

    /// Every echo was right, over the connections of the beginning.
    fn end_clean(mut self, story: &Story) -> String {
        thread::sleep(AROUND);
        drop(self.process.stdin.take());
        let status = self.process.wait().expect("its end");
        assert!(status.success(), "{}\n{}", self.complaint(), story.logs());
        let said = self.lines.next().expect("a sum");
        assert!(said.starts_with("lines "), "{said}");
        said
    }
}

#[test]
fn an_echo_server_moves_there_and_back_with_its_connections() {
    let echo = Echo::up("handoff");
    // More than fit into one frame of descriptors.
    let clients = Clients::start(echo.0.peer(), IDLE);
    let looked = echo
        .0
        .a()
        .run(&["netmig-user", "inspect", "--handoff", "echo"])
        .expect("inspect");
    assert!(
        looked.contains("[::]:7000") && !looked.contains("handoff.sock"),
        "{looked}"
    );
    let plan = [
        "netmig-user",
        "plan",
        "--handoff",
        "echo",
        "--to",
        "ssh://b",
    ];
    let planned = echo.0.a().run(&plan).expect("a plan");
    assert!(planned.contains("bare echo from a to b"), "{planned}");
    for from in [echo.0.a(), echo.0.b()] {
        let ended = echo.migrate(from, "echo");
        assert!(
            ended.code() == Some(0) && ended.outcome() == "moved",
            "{}\n{}",
            ended.said(),
            echo.0.logs()
        );
        let report = ended.report.as_ref().expect("a report");
        assert_eq!(report["plan"]["container"]["manager"], "bare");
        let moves = report["sockets"]
            .as_array()
            .expect("sockets")
            .iter()
            .filter(|row| row["class"] == "tcp-established")
            .count();
        assert_eq!(moves, 11 + IDLE, "{report:#}");
        echo.lives_only_on(echo.0.other(from));
        thread::sleep(AROUND);
    }
    println!("{}", clients.end_clean(&echo.0));
    // New connections too.
    Clients::start(echo.0.peer(), 0).end_clean(&echo.0);
    echo.0.nothing_is_left();
}

#[test]
fn a_server_that_cannot_be_taken_over_stays() {
    let echo = Echo::up("handoff-kept");
    let (a, b) = (echo.0.a(), echo.0.b());
    let clients = Clients::start(echo.0.peer(), 5);

    b.run(&["rm", COMMAND]).expect("removed");
    let refused = echo.migrate(a, "echo");
    assert_eq!(refused.code(), Some(3), "{}", refused.said());
    assert!(
        refused
            .said()
            .contains("the target cannot start program echo"),
        "{}",
        refused.said()
    );

    for (script, why) in [
        ("echo no such thing; exit 3", "no such thing"),
        (
            "exec python3 /tmp/handing.py echo refuse-loading",
            "the state is not to my taste",
        ),
        (
            "exec python3 /tmp/handing.py echo die-loading",
            "has closed its connection, or died",
        ),
    ] {
        echo.cannot_load(b, script);
        let kept = echo.migrate(a, "echo");
        assert!(
            kept.code() == Some(1) && kept.outcome() == "kept" && kept.said().contains(why),
            "{script}: {}\n{}",
            kept.said(),
            echo.0.logs()
        );
        echo.lives_only_on(a);
        let left = b
            .sh("ls -d /sys/fs/cgroup/netmig-handoff-* /run/netns/echo 2>/dev/null || true")
            .expect("looked");
        assert_eq!(left, "", "on b after {script}");
        thread::sleep(AROUND);
    }
    // Dying before the grant is heard, or after it and before the release: nothing has been let out either way.
    echo.cannot_load(b, "exec python3 /tmp/handing.py echo die-ready");
    let kept = echo.migrate(a, "echo");
    assert!(
        kept.code() == Some(1) && kept.outcome() == "kept",
        "{}\n{}",
        kept.said(),
        echo.0.logs()
    );
    echo.lives_only_on(a);

    echo.can_load(b);
    let moved = echo.migrate(a, "echo");
    assert_eq!(moved.code(), Some(0), "{}\n{}", moved.said(), echo.0.logs());
    echo.lives_only_on(b);
    clients.end_clean(&echo.0);
    echo.0.nothing_is_left();
}

/// Who dies while the target loads.
#[test]
fn a_server_whose_helpers_die_goes_on_where_it_was() {
    let echo = Echo::up("handoff-faults");
    let (a, b) = (echo.0.a(), echo.0.b());
    let clients = Clients::start(echo.0.peer(), 5);
    // It takes everything, is silent for a while, and refuses.
    echo.cannot_load(b, "exec python3 /tmp/handing.py echo slow-loading");
    for (host, victims) in [
        (a, "agent --resident"),
        (a, "handoff-engine save"),
        (a, "agent --resident|handoff-engine save"),
        (b, "agent --resident"),
        (b, "handoff-engine load"),
        (b, "agent --resident|handoff-engine load"),
    ] {
        a.sh("rm -f /tmp/report.json; netmig-user migrate --handoff echo --to ssh://b --report /tmp/report.json </dev/null >/tmp/migrate.log 2>&1 &")
            .expect("started");
        b.wait_for("test -e /tmp/loading", Duration::from_secs(60))
            .unwrap_or_else(|e| panic!("{victims}: {e}\n{}", echo.0.logs()));
        host.sh(&format!("pkill -9 -f '[n]etmig-user ({victims})'"))
            .unwrap_or_else(|e| panic!("{victims}: {e}\n{}", echo.0.logs()));
        b.run(&["rm", "/tmp/loading"]).expect("removed");
        // Whoever asks for an agent starts the next one.
        echo.0.no_move_is_left();
        echo.lives_only_on(a);
        thread::sleep(AROUND);
    }
    echo.can_load(b);
    let moved = echo.migrate(a, "echo");
    assert_eq!(moved.code(), Some(0), "{}\n{}", moved.said(), echo.0.logs());
    echo.lives_only_on(b);
    clients.end_clean(&echo.0);
    echo.0.nothing_is_left();
}

#[test]
fn a_program_that_does_not_save_itself_stays() {
    let story = Story::with("handoff-refuse", Vec::new());
    let (a, b) = (story.a(), story.b());
    for host in [a, b] {
        let script = include_str!("handing.py");
        host.write("/tmp/handing.py", script.as_bytes(), 0o755)
            .expect("written");
        host.write(
            COMMAND,
            b"#!/bin/sh\nexec python3 /tmp/handing.py stub refuse-loading\n",
            0o755,
        )
        .expect("written");
    }
    handing::network(a, "stub", 31).expect("a namespace on the segment");
    let absent = migrate(&story, a, "stub");
    assert!(
        absent.said().contains("knows no container \"stub\""),
        "{}",
        absent.said()
    );
    for (how, why) in [
        ("refuse-saving", "not in this weather"),
        ("hand-a-file", "descriptor 7: it is no socket"),
        ("die-saving", "has closed its connection, or died"),
    ] {
        handing::start(a, "stub", &format!("python3 /tmp/handing.py stub {how}")).expect("started");
        let kept = migrate(&story, a, "stub");
        assert!(
            kept.code() == Some(1) && kept.outcome() == "kept" && kept.said().contains(why),
            "{how}: {}\n{}",
            kept.said(),
            story.logs()
        );
        let heard = a.run(&["cat", "/tmp/stub.log"]).expect("its log");
        let resumed = heard.lines().any(|word| word == "resume");
        assert_eq!(resumed, how != "die-saving", "{how}: {heard}");
        a.sh("pkill -f '[h]anding.py' || true; while netmig-user handoff | grep -q ^stub; do sleep 0.05; done")
            .expect("ended");
        story.no_move_is_left();
    }
}
