//! The run's tables for people.
use std::fmt::Display;

use netmig_lab::{
    demo::netmig::Moved,
    peers::{Outcome, clock},
};

/// What the peers saw: one row each, with the longest pause in each move.
pub(super) fn peers(outcomes: &[Outcome], moves: &[(&str, Moved)]) {
    let pauses: String = moves
        .iter()
        .map(|(name, _)| format!(" {:>12}", format!("ms {name}")))
        .collect();
    println!(
        "{:<17} {:>10} {:>8} {:>6} {:>6} {:>7} {:>9}{pauses} {:>7} {:>11} {:>7} {:>5}",
        "peer",
        "operations",
        "MB",
        "errors",
        "resets",
        "corrupt",
        "pause ms",
        "retrans",
        "cwnd",
        "sent",
        "lost",
    );
    for outcome in outcomes {
        let row = &outcome.row;
        let pauses: String = moves
            .iter()
            .map(|(_, m)| {
                let pause = outcome.pause_within(m.began_ns, m.ended_ns);
                format!(
                    " {:>12}",
                    or_dash(pause.map(|p| format!("{:.0}", clock::ms(p.len_ns()))))
                )
            })
            .collect();
        let cwnd = row
            .cwnd_before
            .zip(row.cwnd_after)
            .map(|(before, after)| format!("{before} -> {after}"));
        let lost = row
            .sent
            .zip(row.received)
            .map(|(sent, received)| sent.saturating_sub(received));
        println!(
            "{:<17} {:>10} {:>8} {:>6} {:>6} {:>7} {:>9.0}{pauses} {:>7} {:>11} {:>7} {:>5}",
            row.name,
            or_dash(row.operations),
            row.bytes / 1_000_000,
            row.errors,
            row.resets,
            row.corrupt,
            row.longest_pause_ms,
            or_dash(row.retransmits),
            or_dash(cwnd),
            or_dash(row.sent),
            or_dash(lost),
        );
    }
}

/// The phases of each move.
pub(super) fn phases(moves: &[(&str, Moved)]) {
    for (name, moved) in moves {
        let phases: Vec<_> = moved
            .phases()
            .iter()
            .map(|(phase, ms)| format!("{phase} {ms:.0}"))
            .collect();
        let blackout = or_dash(moved.blackout_ms().map(|ms| format!("{ms:.0}")));
        println!(
            "{name}: {}, blackout {blackout} ms; ms by phase: {}",
            moved.outcome(),
            phases.join(", ")
        );
    }
}

fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}
