//! What a gate costs that only passes.
use std::time::Duration;

use anyhow::Context;
use netmig_lab::gauge::{Cell, Ended, Load, Stage};

use super::super::{Goal, Row, Stats};

/// Of a run.
const TIME: Duration = Duration::from_secs(1);
/// Of these connections; the program that stays has one more, idle as far as these loads are counted.
const LOADS: [(Load, &str); 2] = [
    (Load::Outbound, "bulk throughput with a gate / without"),
    (Load::Requests, "round trips with a gate / without"),
];

/// Runs with and without in turn, pair by pair.
pub fn rows(stage: &Stage, pairs: u32) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (load, name) in LOADS {
        let cell = Cell {
            load,
            connections: 1,
            v6: false,
            wait: Duration::ZERO,
            rate: 0,
        };
        let mut shares = Vec::new();
        for pair in 0..pairs {
            // Whoever comes first finds the machine otherwise than who comes second.
            let mut bytes = [0.0; 2];
            for gated in [pair % 2 == 0, pair % 2 == 1] {
                let host = stage.here();
                if gated {
                    host.sh("netmig-user gate set pass --handoff gauge")?;
                }
                let ended = stage.stand(&cell, TIME)?;
                if gated {
                    host.sh("netmig-user gate clear --handoff gauge")?;
                }
                bytes[usize::from(gated)] = carried(&ended)?;
            }
            let [without, with] = bytes;
            shares.push(with / without);
            println!(
                "{name}: {:.3} ({with:.0} and {without:.0} bytes)",
                with / without
            );
        }
        let stats = Stats::of(&shares).context("no pairs")?;
        rows.push(Row::new(name, "", stats).goal(Goal::at_least(0.99)));
    }
    Ok(rows)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a second")]
fn carried(ended: &Ended) -> anyhow::Result<f64> {
    anyhow::ensure!(ended.broken == 0, "{:?}", ended.first_failure);
    Ok(ended.bytes as f64)
}
