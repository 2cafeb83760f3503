use super::*;
use crate::socket::{Class, Fate, Kind, State};

fn report(outcome: Outcome) -> Report {
    let row = |fate| Row {
        kind: Kind::Tcp,
        state: State::Established,
        local: "192.0.2.10:6379".into(),
        peer: "192.0.2.20:40000".into(),
        inode: 1,
        owners: Vec::new(),
        rqueue: 0,
        wqueue: 0,
        options: Vec::new(),
        class: Class::TcpEstablished,
        fate,
    };
    Report {
        schema: SCHEMA.into(),
        mv: "00112233445566778899aabbccddeeff".into(),
        container: "redis".into(),
        from: "a".into(),
        to: "ssh://b".into(),
        outcome,
        reasons: if outcome == Outcome::Moved {
            Vec::new()
        } else {
            vec!["the lease has run out".into()]
        },
        total_ms: 2345.0,
        phases: phases([
            (Phase::Plan, 100.0),
            (Phase::Freeze, 20.0),
            (Phase::Dump, 5.0),
            (Phase::Freeze, 2.0),
        ]),
        blackout_ms: Some(212.4),
        bytes: 105 << 20,
        sockets: vec![
            row(Fate::Moves),
            row(Fate::MovesWithout(vec!["ECN".into()])),
        ],
        packets: Packets {
            held: 12,
            replayed: 12,
            dropped: 3,
            answered: 30,
            owned: 9,
        },
        warnings: vec!["the health check was not set up".into()],
        plan: None,
    }
}

#[test]
fn phases_that_come_twice_are_summed() {
    let phases = report(Outcome::Moved).phases;
    let names: Vec<_> = phases.iter().map(|p| (p.phase, p.ms)).collect();
    assert_eq!(
        names,
        [
            (Phase::Plan, 100.0),
            (Phase::Freeze, 22.0),
            (Phase::Dump, 5.0)
        ]
    );
}

#[test]
fn its_json_has_the_names_of_the_schema() {
    let report = report(Outcome::Moved);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["schema"], "netmig.report/1");
    assert_eq!(json["move"], "00112233445566778899aabbccddeeff");
    assert_eq!(json["outcome"], "moved");
    assert_eq!(json["phases"][1]["phase"], "freeze");
    assert_eq!(json["phases"][1]["ms"], 22.0);
    assert_eq!(
        json["packets"],
        serde_json::json!({"held": 12, "replayed": 12, "dropped": 3, "answered": 30, "owned": 9})
    );
    assert_eq!(
        json["sockets"][1]["fate"],
        serde_json::json!({"moves-without": ["ECN"]})
    );
    let schema = schema();
    let described = schema["properties"].as_object().unwrap();
    assert_eq!(
        described.keys().collect::<Vec<_>>(),
        json.as_object().unwrap().keys().collect::<Vec<_>>()
    );
    assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
}

#[test]
fn people_read_how_it_ended() {
    let moved = report(Outcome::Moved).to_string();
    for line in [
        "redis moved from a to ssh://b in 2.3 s",
        "blackout 212 ms",
        "ms: plan 100, freeze 22, dump 5",
        "105.0 MiB sent; packets held 12, replayed 12, dropped 3, answered 30, owned 9",
        "sockets: 1 of 2 move whole",
        "tcp 192.0.2.10:6379 - 192.0.2.20:40000: moves without ECN",
        "warning: the health check was not set up",
    ] {
        assert!(moved.contains(line), "{line:?} in\n{moved}");
    }
    let kept = report(Outcome::Kept).to_string();
    assert!(
        kept.contains("redis stays on a, it runs as before")
            && kept.contains("because the lease has run out"),
        "{kept}"
    );
    assert!(!kept.contains("sent;"));
    assert!(
        report(Outcome::Refused)
            .to_string()
            .contains("nothing was touched")
    );
}
