//! The hold: packets of a blackout are late, and that is all that their senders see, whether the container moves or is taken back.
use std::{thread, time::Duration};

use netmig_lab::{
    peers::{Kind, Outcome},
    workload::Client,
};
use serde_json::Value;

use crate::catcher::Catcher;
use crate::{
    container::{Container, How},
    load::Loaded,
    story::{Ended, Story},
};

const AROUND: Duration = Duration::from_millis(500);
/// What a request may wait beyond the blackout, in ms: the tasks start some time after the gate has opened.
const BEYOND_MS: f64 = 150.0;
/// The same on a machine that is busy with other things just then.
const BEYOND_BUSY_MS: f64 = 600.0;
const UDP_PORT: u16 = 7777;
/// Of each redis client.
const CONNECTIONS: u64 = 2;

/// A redis and an echo of datagrams under one init.
const SERVERS: [&str; 8] = [
    "/bin/netmig-peer",
    "init",
    "/bin/redis-server",
    "/etc/redis.conf",
    "--and",
    "/bin/netmig-peer",
    "udp-echo",
    "--port=7777",
];

struct Held {
    story: Story,
    container: Container,
}

impl Held {
    fn up(name: &str) -> Self {
        let story = Story::up(name);
        let container = Container::new(How::Podman("crun"));
        story.start_with(story.a(), &container, &SERVERS);
        Self { story, container }
    }

    /// Datagrams at 1000 a second, half of them over each protocol, requests and silent connections.
    fn load(&self) -> Loaded<'_> {
        let (v4, v6) = (
            self.container.ipv4(),
            format!("[{}]", self.container.ipv6()),
        );
        let client = |kind: &str, ip: &str, port: u16, more: [&str; 2]| {
            let name = format!("{kind}-{}", if ip == v4 { "v4" } else { "v6" });
            let to = format!("{ip}:{port}");
            let args = [kind, "--name", &name, "--to", &to, "--limit", "900"];
            Client {
                args: args.iter().chain(&more).map(ToString::to_string).collect(),
                name,
            }
        };
        let connections = CONNECTIONS.to_string();
        let clients = [&v4, &v6].map(|ip| {
            [
                client("udp", ip, UDP_PORT, ["--per-second", "500"]),
                client("redis", ip, 6379, ["--connections", &connections]),
                client("idle", ip, 6379, ["--connections", "1"]),
            ]
        });
        let loaded = self.story.load_with(&self.container, &clients.concat());
        thread::sleep(AROUND);
        loaded
    }

    /// The TAPs of holds on both hosts, once they have had a moment to go.
    fn no_tap_is_left(&self) {
        let count = "for n in $(seq 40); do ls /sys/class/net | grep -q '^nm[st]' || exit 0; sleep 0.05; done; ls /sys/class/net; exit 1";
        for host in [self.story.a(), self.story.b()] {
            host.sh(count).expect("no TAP of a hold is left");
        }
    }
}

fn packets(ended: &Ended, what: &str) -> u64 {
    report(ended)["packets"][what].as_u64().expect("a number")
}

fn report(ended: &Ended) -> &Value {
    ended.report.as_ref().expect("a report")
}

fn warnings(ended: &Ended) -> String {
    report(ended)["warnings"].to_string()
}

/// Prints what the clients saw.
fn show(outcomes: &[Outcome], ended: &Ended) {
    println!(
        "blackout {} ms, {}, warnings {}",
        report(ended)["blackout_ms"],
        report(ended)["packets"],
        warnings(ended)
    );
    for Outcome { row, reordered, .. } in outcomes {
        println!(
            "{}: pause {:.0} ms, sent {:?}, received {:?}, reordered {reordered}, retransmits {:?}",
            row.name, row.longest_pause_ms, row.sent, row.received, row.retransmits
        );
    }
}

/// No datagram is lost, doubled or overtaken.
fn all_datagrams_came(outcomes: &[Outcome]) {
    let udp: Vec<_> = outcomes
        .iter()
        .filter(|o| o.row.kind == Kind::Udp)
        .collect();
    assert_eq!(udp.len(), 2, "one of each protocol");
    for o in udp {
        assert!(
            o.row.sent > Some(500)
                && o.row.received == o.row.sent
                && (o.duplicated, o.reordered) == (0, 0),
            "{o:#?}"
        );
    }
}

/// How much longer than the blackout requests have waited, in ms. They were sent again only as the peers' timers ran, each time after
/// twice as long.
fn beyond_the_blackout(outcomes: &[Outcome], ended: &Ended) -> f64 {
    let blackout = report(ended)["blackout_ms"].as_f64().expect("a blackout");
    let doublings = (blackout / 200.0).log2().max(0.0).ceil() as u64;
    for o in outcomes.iter().filter(|o| o.row.kind == Kind::Redis) {
        let each = doublings + 2;
        assert!(
            o.row.retransmits.is_some_and(|n| n <= each * CONNECTIONS),
            "a blackout of {blackout:.0} ms: {o:#?}"
        );
    }
    let redis = outcomes.iter().filter(|o| o.row.kind == Kind::Redis);
    redis.map(|o| o.row.longest_pause_ms).fold(0.0, f64::max) - blackout
}

#[test]
fn a_move_loses_no_datagram_and_requests_wait_for_the_blackout_alone() {
    let held = Held::up("hold-move");
    let mut beyond = Vec::new();
    for from in [held.story.a(), held.story.b()] {
        let loaded = held.load();
        let ended = held.story.moves(from, &held.container);
        thread::sleep(AROUND);
        let outcomes = loaded.end_clean();
        show(&outcomes, &ended);
        all_datagrams_came(&outcomes);
        beyond.push(beyond_the_blackout(&outcomes, &ended));
        assert!(packets(&ended, "held") >= 200, "{}", ended.said());
        assert_eq!(packets(&ended, "replayed"), packets(&ended, "held"));
        assert!(!warnings(&ended).contains("held"), "{}", warnings(&ended));
        held.story.nothing_is_left();
        held.no_tap_is_left();
    }
    beyond.sort_by(f64::total_cmp);
    // A peer's retransmission timer, which doubles each time, would end later than either.
    assert!(
        beyond[0] <= BEYOND_MS && beyond[1] <= BEYOND_BUSY_MS,
        "{beyond:?} ms"
    );
}

#[test]
fn a_move_given_up_loses_no_datagram() {
    let held = Held::up("hold-abort");
    let loaded = held.load();
    // The source's tasks are frozen by then. (Where the engine dies at the source they run for a moment behind the closed gate, and what
    // they send is dropped.)
    let mut catcher = Catcher::set(held.story.b(), "post-restore", "criu");
    let ended = held.story.migrate(held.story.a(), &held.container, &[]);
    catcher.caught();
    thread::sleep(AROUND);
    assert_eq!(ended.outcome(), "kept", "{}", ended.said());
    held.story.lives_only_on(held.story.a(), &held.container);
    let outcomes = loaded.end_clean();
    show(&outcomes, &ended);
    all_datagrams_came(&outcomes);
    let beyond = beyond_the_blackout(&outcomes, &ended);
    assert!(beyond <= BEYOND_BUSY_MS, "{beyond} ms");
    assert!(packets(&ended, "held") >= 50, "{}", ended.said());
    assert_eq!(packets(&ended, "replayed"), packets(&ended, "held"));
    held.story.nothing_is_left();
    held.no_tap_is_left();
}

#[test]
fn what_does_not_fit_the_hold_is_dropped_counted_and_told() {
    let held = Held::up("hold-limit");
    let loaded = held.load();
    let small = held
        .story
        .migrate(held.story.a(), &held.container, &["--hold-limit", "8K"]);
    assert_eq!(small.outcome(), "moved", "{}", small.said());
    let none = held
        .story
        .migrate(held.story.b(), &held.container, &["--hold-limit", "0"]);
    assert_eq!(none.outcome(), "moved", "{}", none.said());
    thread::sleep(AROUND);
    let outcomes = loaded.end_clean();
    show(&outcomes, &small);
    let kept = packets(&small, "held");
    assert!((1..=8 * 1024 / 60).contains(&kept), "{kept} held in 8 KiB");
    let told = warnings(&small);
    assert!(
        told.contains("the hold was full")
            && told.contains(" UDP")
            && told.contains("--hold-limit"),
        "{told}"
    );
    assert_eq!(packets(&none, "held"), 0);
    let udp = outcomes.iter().filter(|o| o.row.kind == Kind::Udp);
    let lost: u64 = udp
        .map(|o| o.row.sent.unwrap_or(0) - o.row.received.unwrap_or(0))
        .sum();
    let dropped = packets(&small, "dropped") + packets(&none, "dropped");
    // Where the tasks stop without a hold, a few may also be lost in a receive buffer.
    assert!(
        lost > 100 && dropped * 10 >= lost * 9,
        "{lost} lost, {dropped} dropped"
    );
    held.story.nothing_is_left();
    held.no_tap_is_left();
}
