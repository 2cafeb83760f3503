//! Connections in all states, to and fro.
use std::{collections::BTreeSet, env, path::PathBuf};

use netmig_lab::soak::{self, Plan};

#[test]
fn connections_in_all_states_stay_exact() {
    let plan = Plan {
        lab: format!("soak-{}", std::process::id()),
        root: None,
        netmig_user: None,
        netmig_peer: PathBuf::from(env!("CARGO_BIN_EXE_netmig-peer")),
        moves: 20,
        connections: 300,
        seed: 7,
        line: None,
        keep: false,
    };
    let soaked = soak::run(&plan, &mut |line| println!("{line}")).expect("a soak");
    println!("{:?}", soaked.peers);
    assert!(soaked.faults.is_empty(), "{}", soaked.faults.join("\n"));
    let seen: BTreeSet<&str> = soaked
        .moves
        .iter()
        .flat_map(|m| m.sockets.keys().map(String::as_str))
        .collect();
    for class in [
        "tcp-established",
        "tcp-close-wait",
        "tcp-shut",
        "tcp-embryo",
        "tcp-time-wait",
        "tcp-listen",
    ] {
        assert!(seen.contains(class), "no {class} was among {seen:?}");
    }
}
