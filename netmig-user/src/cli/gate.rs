//! `netmig-user gate`: the gates that stand on this host, with mode and counters.
use std::{fs, io};

use anyhow::{Context, Result};
use netmig_core::id::MoveId;

use super::args;
use crate::{agent::paths, gate::Gate};

/// Prints them.
pub fn run(args: &args::Gate) -> Result<()> {
    let mut gates = Vec::new();
    for mv in pinned()? {
        if args.mv.is_some_and(|only| only != mv) {
            continue;
        }
        let gate = Gate::reopen(mv, &paths::pins(mv))
            .with_context(|| format!("opening the gate of move {mv}"))?;
        gates.push((mv, gate.mode()?, gate.counters()?, gate.order()));
    }
    if args.json {
        let rows: Vec<_> = gates
            .iter()
            .map(|(mv, word, counters, order)| {
                serde_json::json!({
                    "move": mv.to_string(),
                    "mode": format!("{word:?}"),
                    "counters": format!("{counters:?}"),
                    "held": order.redirected(),
                    "waiting": order.pending(),
                    "answered": counters.outbound.answered,
                    "owned": order.owned(),
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else if gates.is_empty() {
        println!("no gate stands on this host");
    } else {
        for (mv, word, counters, order) in gates {
            println!(
                "{mv}  {word:?}\n  packets held {}, of these waiting {}, owned {}; peers answered {}\n  {counters:?}",
                order.redirected(),
                order.pending(),
                order.owned(),
                counters.outbound.answered
            );
        }
    }
    Ok(())
}

fn pinned() -> Result<Vec<MoveId>> {
    let root = paths::pins(MoveId([0; 16]));
    let root = root.parent().context("the pins have a directory")?;
    let dir = match fs::read_dir(root) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("reading {}", root.display())),
    };
    Ok(dir
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}
