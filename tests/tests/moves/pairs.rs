//! A redis under load moves to the other host and back, and is its runtime's as before, with each pair of manager and runtime.
use std::{thread, time::Duration};

use serde_json::Value;

use crate::{
    container::{Container, How},
    story::{Ended, Story},
};

/// The load runs this long before, between and after the moves.
const AROUND: Duration = Duration::from_millis(500);

/// There and back under load; /etc/criu stays what it was.
pub fn there_and_back(story: &Story, container: &Container) {
    let criu = "find /etc/criu -printf '%p %T@ %s\\n' 2>/dev/null | sort";
    let before = story.a().sh(criu).expect("looked");
    story.start(story.a(), container);
    let loaded = story.load(container);
    thread::sleep(AROUND);
    story.moves(story.a(), container);
    thread::sleep(AROUND);
    story.moves(story.b(), container);
    thread::sleep(AROUND);
    loaded.end_clean();
    story.nothing_is_left();
    for host in [story.a(), story.b()] {
        assert_eq!(
            host.sh(criu).expect("looked"),
            before,
            "/etc/criu on {}",
            host.name()
        );
    }
}

/// What podman's record says of the network: name, addresses and MAC.
fn network(story: &Story, name: &str, on_b: bool) -> Value {
    let host = if on_b { story.b() } else { story.a() };
    let text = host
        .run(&[
            "podman",
            "inspect",
            "--format",
            "{{json .NetworkSettings.Networks}}",
            name,
        ])
        .expect("inspected");
    let networks: Value = serde_json::from_str(&text).expect("JSON");
    let told = [
        "IPAddress",
        "IPPrefixLen",
        "GlobalIPv6Address",
        "GlobalIPv6PrefixLen",
        "MacAddress",
        "NetworkID",
        "Gateway",
    ];
    let all = networks.as_object().expect("networks");
    all.iter()
        .map(|(name, network)| {
            (
                name.clone(),
                told.iter()
                    .map(|key| ((*key).to_owned(), network[key].clone()))
                    .collect(),
            )
        })
        .collect::<serde_json::Map<String, Value>>()
        .into()
}

/// As a report has them, in their order.
const PHASES: [&str; 12] = [
    "plan", "attach", "precopy", "drain", "freeze", "dump", "transfer", "rebuild", "grant", "open",
    "announce", "clean",
];

fn phases(ended: &Ended) -> Vec<&str> {
    let report = ended.report.as_ref().expect("a report");
    let phases = report["phases"].as_array().expect("phases");
    let told = phases.iter().map(|row| {
        assert!(row["ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{row}");
        row["phase"].as_str().expect("a name")
    });
    told.collect()
}

fn with_podman(runtime: &'static str) {
    let story = Story::up(&format!("podman-{runtime}"));
    let container = Container::new(How::Podman(runtime));
    there_and_back(&story, &container);

    let before = network(&story, container.name, false);
    assert_eq!(before["lab"]["MacAddress"], container.mac());
    let ended = story.moves(story.a(), &container);
    assert_eq!(phases(&ended), PHASES);
    assert_eq!(network(&story, container.name, true), before);

    let b = story.b();
    let podman = |args: &[&str]| {
        b.run(&[&["podman"], args].concat())
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let listed = podman(&["ps", "--format", "{{.Names}} {{.State}}"]);
    assert_eq!(listed, "web running");
    assert_eq!(podman(&["exec", "web", "redis-cli", "ping"]), "PONG");
    assert!(
        podman(&["logs", "web"]).contains("Ready to accept connections"),
        "the log came along"
    );
    assert_eq!(
        podman(&["inspect", "--format", "{{.OCIRuntime}}", "web"]),
        runtime
    );
    podman(&["restart", "--time", "5", "web"]);
    story.wait_until_it_answers(&container);
    assert_eq!(network(&story, container.name, true), before);
    podman(&["stop", "--time", "5", "web"]);
    assert_eq!(story.copies(b, &container), 0);
    podman(&["start", "web"]);
    story.wait_until_it_answers(&container);

    // What is kept at the source cannot start.
    let kept = story
        .a()
        .run(&["podman", "ps", "--all", "--format", "{{.Names}}"])
        .expect("listed");
    let kept: Vec<_> = kept
        .lines()
        .filter(|name| name.starts_with("web-netmig-moved-"))
        .collect();
    assert!(!kept.is_empty(), "the record is kept under another name");
    for name in kept {
        assert!(
            story.a().run(&["podman", "start", name]).is_err(),
            "{name} starts"
        );
    }
    assert_eq!(story.copies(story.a(), &container), 0);
}

fn with_bundle(how: How) {
    let container = Container::new(how);
    let tool = container.tool();
    let story = Story::up(tool);
    there_and_back(&story, &container);
    story.moves(story.a(), &container);

    let (a, b) = (story.a(), story.b());
    let at_b = |args: &[&str]| {
        b.run(&[&[tool], args].concat())
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let state: Value = serde_json::from_str(&at_b(&["state", "web"])).expect("JSON");
    assert_eq!(state["bundle"], "/srv/web");
    assert_eq!(at_b(&["exec", "web", "redis-cli", "ping"]), "PONG");
    at_b(&["kill", "web", "KILL"]);
    b.wait_for(
        &format!("{tool} state web | grep -q stopped"),
        Duration::from_secs(10),
    )
    .expect("it stops");
    at_b(&["delete", "web"]);
    assert_eq!(container.state(b), None);

    assert_eq!(container.state(a), None, "the source's container is gone");
    assert!(
        a.run(&[tool, "run", "--detach", "--bundle", "/srv/web", "web"])
            .is_err(),
        "the source's bundle runs"
    );
}

#[test]
fn podman_over_crun() {
    with_podman("crun");
}

#[test]
fn podman_over_runc() {
    with_podman("runc");
}

#[test]
fn runc_alone() {
    with_bundle(How::Runc);
}

#[test]
fn crun_alone() {
    with_bundle(How::Crun);
}
