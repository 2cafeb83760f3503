//! `netmig-user gate`: a gate that a person sets, without a move.
use std::{thread, time::Duration};

use netmig_lab::Host;
use serde_json::Value;

use crate::{
    container::{Container, How},
    story::Story,
};

const AROUND: Duration = Duration::from_millis(300);

/// The only gate on `host`.
fn gate(host: &dyn Host) -> Value {
    let json = host
        .sh("netmig-user gate status --flows --json")
        .expect("a status");
    let told: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(told["schema"], "netmig.gate/1");
    let gates = told["gates"].as_array().expect("gates");
    assert_eq!(gates.len(), 1, "{gates:?}");
    gates[0].clone()
}

fn said(host: &dyn Host, command: &str) -> String {
    host.sh(&format!("{command} 2>&1 || true")).expect("ran")
}

#[test]
fn a_gate_set_by_hand_closes_for_its_lease_and_is_gone_when_cleared() {
    let story = Story::up("byhand");
    let container = Container::new(How::Podman("crun"));
    story.start(story.a(), &container);
    let name = format!("--podman {}", container.name);
    let on_a = |command: &str| {
        story
            .a()
            .sh(command)
            .unwrap_or_else(|e| panic!("{command}: {e}"))
    };

    let nothing = said(story.a(), &format!("netmig-user gate clear {name}"));
    assert!(nothing.contains("no gate stands"), "{nothing}");

    let load = story.load(&container);
    thread::sleep(AROUND);
    on_a(&format!("netmig-user gate set closed {name} --lease 2"));
    let closed = gate(story.a());
    assert_eq!(closed["mode"], "closed", "{closed}");
    let deadline = closed["deadline_in_ms"].as_u64().expect("a deadline");
    assert!((1..=2000).contains(&deadline), "{closed}");
    thread::sleep(Duration::from_millis(deadline) + AROUND);
    let expired = gate(story.a());
    assert_eq!(expired["mode"], "expired", "{expired}");
    assert!(
        expired["inbound"]["dropped"]["tcp"].as_u64() > Some(0),
        "{expired}"
    );

    on_a(&format!("netmig-user gate set drain {name} --lease 20"));
    let flows = |gate: &Value| gate["flows"].as_array().expect("flows").len();
    let mut drained = gate(story.a());
    assert_eq!(drained["mode"], "drain", "{drained}");
    // The clients wait for their retransmission timers.
    for _ in 0..50 {
        if flows(&drained) > 0 {
            break;
        }
        thread::sleep(Duration::from_millis(100));
        drained = gate(story.a());
    }
    assert!(flows(&drained) > 0, "{drained}");
    on_a(&format!("netmig-user gate set pass {name}"));
    assert_eq!(gate(story.a())["deadline_in_ms"], Value::Null);

    // A second gate at the same links would be one too many.
    let refused = story.migrate(story.a(), &container, &[]);
    assert_ne!(refused.outcome(), "moved", "{}", refused.said());
    let id = gate(story.a())["move"].as_str().expect("an id").to_owned();
    assert!(refused.said().contains(&id), "{}", refused.said());

    on_a(&format!("netmig-user gate clear --move {id}"));
    assert!(on_a("netmig-user gate status").starts_with("no gate"));
    thread::sleep(AROUND);
    let outcomes = load.end_clean();
    let longest = outcomes
        .iter()
        .map(|o| o.row.longest_pause_ms)
        .fold(0.0, f64::max);
    assert!(longest >= 1500.0, "the gate was closed for 2 s: {longest}");
    story.moves(story.a(), &container);
    story.nothing_is_left();
    story.down();
}
