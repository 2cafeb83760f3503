//! What others see of a move: containers beside it, the segment, and clients of another program.
use std::{
    io::{BufRead as _, BufReader},
    thread,
    time::Duration,
};

use netmig_lab::{Cmd, Host, Image, Input, Process};

use crate::{
    container::{Container, How},
    going::Going,
    story::Story,
};

const AROUND: Duration = Duration::from_millis(500);
/// A container beside the one that moves is not stopped; on a busy machine its clients may wait for a processor.
const LONGEST_PAUSE_BESIDE_MS: f64 = 1000.0;

/// Everything that leaves the two hosts with the container as sender.
pub struct Spoken<'a> {
    captures: [(&'a dyn Host, Process); 2],
}

impl<'a> Spoken<'a> {
    pub fn of(story: &'a Story, container: &Container) -> Self {
        Self {
            captures: [story.a(), story.b()].map(|host| (host, capture(host, container))),
        }
    }

    /// It spoke on both, and on b only when a had said its last word.
    pub fn on_a_then_on_b(self) {
        self.in_turn(false);
    }

    /// It spoke on both, first on a, or on b, and on the other only when that had said its last word.
    pub fn in_turn(mut self, b_first: bool) {
        if b_first {
            self.captures.reverse();
        }
        let [(from, left_from), (to, left_to)] = self
            .captures
            .map(|(host, capture)| (host.name(), frames(host, capture)));
        let last = left_from.last().expect("it spoke where it was");
        let first = left_to.first().expect("it speaks where it is");
        assert!(
            last < first,
            "a frame left {to} {:.6} s before the last one left {from}",
            last - first
        );
    }
}

/// What leaves `host` by its uplink with the container's MAC or one of its addresses as sender, announcements included.
fn capture(host: &dyn Host, container: &Container) -> Process {
    let from = format!(
        "ether src {} or src host {} or src host {}",
        container.mac(),
        container.ipv4(),
        container.ipv6()
    );
    let listen = format!("exec tcpdump -i eth0 -Q out -n -s 96 -w /tmp/uplink.pcap '{from}'");
    let mut process = host.spawn(&Cmd::sh(&listen)).expect("tcpdump");
    let mut line = String::new();
    let mut said = BufReader::new(process.stderr.take().expect("its standard error"));
    while !line.contains("listening on") {
        line.clear();
        assert!(
            said.read_line(&mut line).expect("a line") > 0,
            "tcpdump ended"
        );
    }
    // It complains at its end and must not find the pipe closed.
    thread::spawn(move || said.lines().map_while(Result::ok).for_each(drop));
    process
}

/// Ends the capture: when the first and the last frame left.
fn frames(host: &dyn Host, mut capture: Process) -> Vec<f64> {
    // What has been sent is in the file a moment later.
    thread::sleep(Duration::from_millis(300));
    capture.signal(libc::SIGINT).expect("the host answers");
    capture.wait().expect("its end");
    let text = host
        .sh("tcpdump -r /tmp/uplink.pcap -n -tt 2>/dev/null | sed -n '1p;$p' | cut -d' ' -f1")
        .expect("read back");
    text.lines()
        .map(|line| line.parse().expect("a time"))
        .collect()
}

#[test]
fn others_see_nothing_of_a_move() {
    let story = Story::up("beside");
    let a = story.a();
    let moving = Container::new(How::Podman("crun"));
    let staying = Container {
        name: "beside",
        number: 11,
        ..moving
    };
    let saved = Container {
        name: "saved",
        number: 12,
        ..moving
    };
    for container in [&moving, &staying, &saved] {
        story.start(a, container);
    }
    let checkpoint = || {
        a.run(&[
            "podman",
            "container",
            "checkpoint",
            "--leave-running",
            "--export",
            "/tmp/saved.tar",
            saved.name,
        ])
        .map(drop)
        .map_err(|e| e.to_string())
    };
    checkpoint().expect("a checkpoint before the move");
    let spoken = Spoken::of(&story, &moving);
    let beside = story.load(&staying);
    let loaded = story.load(&moving);
    thread::sleep(AROUND);

    let mut going = Going::start(&story, a, &moving, &[]);
    going.until("attach");
    let during = checkpoint();
    going.end();
    thread::sleep(AROUND);

    assert_eq!(
        during,
        Ok(()),
        "a checkpoint of another container during the move"
    );
    assert!(saved.runs_on(a), "it goes on");
    story.lives_only_on(story.b(), &moving);
    // All clients have ended before the frames are counted.
    loaded.end_clean();
    for outcome in beside.end_clean() {
        assert!(
            outcome.row.longest_pause_ms < LONGEST_PAUSE_BESIDE_MS,
            "{outcome:#?}"
        );
    }
    spoken.on_a_then_on_b();
}

#[test]
fn nginx_keeps_its_connections() {
    const SIZE: usize = 7 * 2000;
    let story = Story::up("nginx");
    let (a, b, peer) = (story.a(), story.b(), story.peer());
    let conf = "user root; worker_processes 2; pid /tmp/nginx.pid; error_log stderr; daemon off;
        events {} http { access_log off; keepalive_requests 10000000; keepalive_timeout 600s; client_body_temp_path /tmp/body;
        proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
        server { listen 80; root /srv; } }";
    let image = Image::new("localhost/nginx:1")
        .program("nginx")
        .file("/etc/nginx.conf", conf)
        .file("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n")
        .file("/etc/group", "root:x:0:\n")
        .file("/srv/page", &"netmig ".repeat(SIZE / 7))
        .file("/var/log/nginx/none", "")
        .command(&["nginx", "-c", "/etc/nginx.conf"]);
    image.import(a).expect("an image");
    a.sh("podman image save localhost/nginx:1 | ssh b podman image load")
        .expect("the same image on b");
    let container = Container::new(How::Podman("crun"));
    let network = format!(
        "lab:ip={},ip6={},mac={}",
        container.ipv4(),
        container.ipv6(),
        container.mac()
    );
    a.run(&[
        "podman",
        "run",
        "--detach",
        "--name",
        container.name,
        "--network",
        &network,
        &image.name,
    ])
    .expect("nginx");
    let script = include_str!("keepalive.py");
    peer.write("/tmp/keepalive.py", script.as_bytes(), 0o755)
        .expect("written");
    peer.wait_for(
        &format!(
            "socat -u OPEN:/dev/null TCP:{}:80,connect-timeout=1",
            container.ipv4()
        ),
        Duration::from_secs(10),
    )
    .expect("nginx listens");

    let ask = Cmd::new([
        "python3",
        "/tmp/keepalive.py",
        &container.ipv4(),
        &SIZE.to_string(),
    ])
    .stdin(Input::Pipe);
    let mut client = peer.spawn(&ask).expect("a client");
    let mut lines = BufReader::new(client.stdout.take().expect("its output"))
        .lines()
        .map(|line| line.expect("a line"));
    for _ in 0..4 {
        assert_eq!(lines.next().as_deref(), Some("ready"));
    }
    for from in [a, b] {
        thread::sleep(AROUND);
        let ended = story.migrate(from, &container, &[]);
        assert_eq!(ended.code(), Some(0), "{}\n{}", ended.said(), story.logs());
        assert!(container.runs_on(story.other(from)) && !container.runs_on(from));
    }
    thread::sleep(AROUND);
    drop(client.stdin.take());
    let status = client.wait().expect("its end");
    let mut complaint = String::new();
    if let Some(mut errors) = client.stderr.take() {
        std::io::Read::read_to_string(&mut errors, &mut complaint).expect("its complaints");
    }
    assert!(status.success(), "{complaint}");
    let answers = lines.next().expect("a sum");
    assert!(answers.starts_with("answers "), "{answers}");
}
