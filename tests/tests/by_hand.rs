//! The usual way, which netmig is measured against: it moves the demo's container and its data, and the peers feel it.
//!
//! Over IPv4 only: at the target the container's IPv6 address is still tentative (duplicate address detection) when CRIU restores the
//! sockets that are bound to it, and bind(2) says EADDRNOTAVAIL.
use std::{thread, time::Duration};

use netmig_lab::{
    demo::{Parts, Stage, by_hand::move_by_hand},
    root,
    workload::{Families, Load},
};

#[test]
fn checkpoint_copy_restore_moves_the_container_and_its_data() {
    let stage = Stage::up(&Parts {
        lab: format!("by-hand-{}", std::process::id()),
        root: root::path(),
        netmig_user: None,
        netmig_peer: env!("CARGO_BIN_EXE_netmig-peer").into(),
        cache: root::cache().join("demo"),
        data: 8 << 20,
        line: None,
        keep: false,
    })
    .expect("a lab with the container on a");
    let load = Load {
        families: Families::Ipv4,
        redis: 4,
        redis_every_ms: 0,
        idle: 2,
        bulk_rate: Some(2_000_000),
        iperf3: true,
        udp_per_second: 100,
    };
    let (a, b) = (stage.lab().a(), stage.lab().b());
    let clients = stage.load(&load.clients()).expect("clients become warm");
    thread::sleep(Duration::from_secs(1));

    let moved = move_by_hand(a, b).expect("moved");
    assert_eq!(stage.living_on().expect("hosts answer"), ["b"]);
    thread::sleep(Duration::from_secs(2));

    let outcomes = stage.unload(clients).expect("outcomes");
    let redis = outcomes
        .iter()
        .find(|o| o.row.name == "redis-v4")
        .expect("a redis client");
    let pause = redis
        .pause_within(moved.began_ns, moved.ended_ns)
        .expect("a pause in the move");
    assert!(moved.frozen_ms > 0.0 && moved.restore_ms > 0.0, "{moved:?}");
    let pause_ms = pause.len_ns() / 1_000_000;
    assert!(
        pause_ms as f64 > moved.frozen_ms + moved.restore_ms,
        "{pause_ms} ms, {moved:?}"
    );
    assert!(outcomes.iter().all(|o| o.row.corrupt == 0), "{outcomes:#?}");
    assert!(stage.data().expect("redis answers").intact());

    move_by_hand(b, a).expect("moved back");
    assert_eq!(stage.living_on().expect("hosts answer"), ["a"]);
    assert!(stage.data().expect("redis answers").intact());
    stage.down().expect("nothing is left");
}
