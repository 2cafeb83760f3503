//! What peers feel of moves, where nothing is lost on the line.
use std::{path::PathBuf, time::Duration};

use netmig_lab::{
    gauge::{Cell, Engine, Load, Moved, Parts, Stage},
    root,
};

/// A restored socket's timers begin at 1 s, most at 3 s.
const NO_TIMER_MS: f64 = 900.0;

#[test]
fn peers_wait_for_no_timer_and_send_nothing_again() {
    let mut stage = Stage::up(&Parts {
        lab: format!("gauge-{}", std::process::id()),
        root: root::path(),
        netmig_user: None,
        netmig_peer: PathBuf::from(env!("CARGO_BIN_EXE_netmig-peer")),
        cache: root::cache().join("demo"),
        line: None,
        engine: Engine::Handoff,
    })
    .expect("a stage");
    let mut moved = |load, connections, v6, rate| {
        let cell = Cell {
            load,
            connections,
            v6,
            wait: Duration::from_millis(300),
            rate,
        };
        let moved = stage.move_once(&cell, &[]).expect("moved");
        println!("{cell:?}: {moved:?}");
        assert_eq!(moved.ended.broken, 0, "{:?}", moved.ended.first_failure);
        moved
    };

    // Requests come to a program that has just been stopped, before the gate closes.
    let of_requests: Vec<Moved> = (0..2)
        .map(|n| moved(Load::Requests, 150, n == 1, 1_000_000))
        .collect();
    for moved in &of_requests {
        let longest = moved.answer.moved.request_ms.expect("a request");
        let beyond = longest - moved.blackout_ms;
        assert!(beyond < NO_TIMER_MS, "{beyond} ms");
    }
    let again = |of: fn(&Moved) -> u64| of_requests.iter().map(of).sum::<u64>();
    assert!(again(|m| m.ended.by_peer) <= 6, "requests sent again");
    assert!(again(|m| m.ended.known_already) <= 6, "answers sent again");

    let both = moved(Load::Both, 4, true, 2_000_000);
    for figure in [
        both.answer.moved.first_in_ms,
        both.answer.moved.first_out_ms,
        both.answer.moved.regained_in_ms,
        both.answer.moved.regained_out_ms,
    ] {
        assert!(figure.is_some_and(|ms| ms < NO_TIMER_MS), "{both:?}");
    }

    let datagrams = moved(Load::Datagrams, 1, false, 2000).ended.datagrams;
    let counts = datagrams.expect("datagrams");
    assert_eq!(
        (counts.sent, counts.sent_back),
        (counts.received, counts.back)
    );
    assert_eq!(counts.out_of_place, 0, "{counts:?}");
    stage.down().expect("down");
}
