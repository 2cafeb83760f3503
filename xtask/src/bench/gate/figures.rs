//! What of a move is a figure, and what it must be.
use std::time::Duration;

use anyhow::Context;
use netmig_lab::gauge::{Cell, Felt, Load, Moved};

use super::{
    super::{Goal, Row, Stats},
    cells::Planned,
};

/// What has not happened this long behind the opening counts as much.
const NEVER_MS: f64 = 15_000.0;
/// What a hold takes by itself, bytes (`--hold-limit`), less what waits on its way.
const HOLD: f64 = 60.0 * 1024.0 * 1024.0;
/// Of a datagram of the gauge, with its headers and what the hold puts before it, bytes.
const HELD: f64 = 128.0 + 62.0 + 16.0;

/// A name, a unit, the figure of a move where it applies, and the goal.
struct Figure {
    name: &'static str,
    unit: &'static str,
    of: fn(&Planned, &Moved) -> Option<f64>,
    goal: fn(&Planned) -> Option<Goal>,
}

const FIGURES: [Figure; 16] = [
    Figure {
        name: "blackout",
        unit: "ms",
        of: |_, moved| Some(moved.blackout_ms),
        goal: |_| None,
    },
    Figure {
        name: "opening to first byte there",
        unit: "ms",
        of: |planned, moved| {
            beyond(planned, moved, planned.cell.load.fills_inbound(), |felt| {
                felt.first_in_ms
            })
        },
        goal: within_a_round_trip,
    },
    Figure {
        name: "opening to first byte back",
        unit: "ms",
        of: |planned, moved| {
            beyond(planned, moved, planned.cell.load.fills_outbound(), |felt| {
                felt.first_out_ms
            })
        },
        goal: within_a_round_trip,
    },
    Figure {
        name: "opening to 90 % there",
        unit: "ms",
        of: |planned, moved| {
            let applies = planned.cell.load.fills_inbound();
            applies.then(|| moved.answer.moved.regained_in_ms.unwrap_or(NEVER_MS))
        },
        goal: |planned| Some(Goal::at_most(2.0 * rtt_ms(planned) + 20.0)),
    },
    Figure {
        name: "opening to 90 % back",
        unit: "ms",
        of: |planned, moved| {
            let applies = planned.cell.load.fills_outbound();
            applies.then(|| moved.answer.moved.regained_out_ms.unwrap_or(NEVER_MS))
        },
        goal: |planned| Some(Goal::at_most(2.0 * rtt_ms(planned) + 20.0)),
    },
    Figure {
        name: "longest request - blackout",
        unit: "ms",
        of: |planned, moved| {
            let applies = planned.cell.load == Load::Requests;
            let longest = beyond(planned, moved, applies, |felt| felt.request_ms)?;
            let answered = moved.answer.moved.request_ms.is_some();
            Some(if answered {
                longest - moved.blackout_ms
            } else {
                NEVER_MS
            })
        },
        goal: within_a_round_trip,
    },
    Figure {
        name: "sent again by the peer",
        unit: "segments",
        of: |planned, moved| by_tcp(&planned.cell, moved.ended.by_peer),
        goal: none,
    },
    Figure {
        name: "sent again by the container",
        unit: "segments",
        of: |planned, moved| by_tcp(&planned.cell, moved.ended.by_container),
        goal: none,
    },
    Figure {
        name: "came to the peer twice",
        unit: "segments",
        of: |planned, moved| by_tcp(&planned.cell, moved.ended.known_already),
        goal: none,
    },
    Figure {
        name: "peer's cwnd after / before",
        unit: "",
        of: |planned, moved| {
            let applies = planned.cell.load.fills_inbound();
            applies.then(|| moved.answer.moved.window_kept.unwrap_or(0.0))
        },
        goal: |_| Some(Goal::at_least(0.95)),
    },
    Figure {
        name: "peer's TCPSACKReneging",
        unit: "events",
        of: |planned, moved| by_tcp(&planned.cell, moved.ended.reneging),
        goal: none,
    },
    Figure {
        name: "drain",
        unit: "ms",
        of: |planned, moved| {
            let load = planned.cell.load;
            let bulk = load.fills_inbound() || load.fills_outbound();
            bulk.then_some(moved.drain_ms)
        },
        goal: |planned| Some(Goal::at_most(2.0 * rtt_ms(planned) + 5.0)),
    },
    Figure {
        name: "datagrams lost",
        unit: "datagrams",
        of: |_, moved| lost(moved),
        goal: |planned| if fits(planned) { none(planned) } else { None },
    },
    Figure {
        name: "datagrams lost, not counted",
        unit: "datagrams",
        of: |_, moved| {
            let counted = moved.report["packets"]["dropped"].as_f64().unwrap_or(0.0);
            Some((lost(moved)? - counted).max(0.0))
        },
        goal: none,
    },
    Figure {
        name: "datagrams out of place",
        unit: "datagrams",
        of: |_, moved| Some(count(moved.ended.datagrams?.out_of_place)),
        goal: none,
    },
    Figure {
        name: "errors, resets, corrupt",
        unit: "events",
        of: |_, moved| Some(count(moved.ended.broken)),
        goal: none,
    },
];

/// All figures of a cell; `ours` and `dropped` are not empty.
pub fn rows(planned: &Planned, ours: &[Moved], dropped: &[Moved]) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for figure in &FIGURES {
        let stats = |moves: &[Moved]| {
            let values: Option<Vec<f64>> =
                moves.iter().map(|one| (figure.of)(planned, one)).collect();
            values.map(|values| Stats::of(&values).context("no moves"))
        };
        let (Some(ours), Some(dropped)) = (stats(ours), stats(dropped)) else {
            continue;
        };
        let row = Row::new(figure.name, figure.unit, ours?).baseline(super::DROP, dropped?);
        rows.push(match (figure.goal)(planned) {
            Some(goal) => row.goal(goal),
            None => row,
        });
    }
    Ok(rows)
}

/// In one line, for who watches.
pub fn line(planned: &Planned, moved: &Moved) -> String {
    let figures = FIGURES.iter().filter_map(|figure| {
        let value = (figure.of)(planned, moved)?;
        Some(format!("{} {value:.1}", figure.name))
    });
    let mut line = figures.collect::<Vec<_>>().join(", ");
    if let Some(first) = &moved.ended.first_failure {
        line.push_str(&format!("; first failure: {first}"));
    }
    line
}

/// Of what moved; on a cable less the same of what stayed, which is what the machine's scheduler does.
fn beyond(
    planned: &Planned,
    moved: &Moved,
    applies: bool,
    figure: fn(&Felt) -> Option<f64>,
) -> Option<f64> {
    let felt = figure(&moved.answer.moved).unwrap_or(NEVER_MS);
    let still = figure(&moved.answer.still).unwrap_or(0.0);
    let still = if planned.rtt.is_zero() { still } else { 0.0 };
    applies.then_some(felt - still)
}

fn by_tcp(cell: &Cell, value: u64) -> Option<f64> {
    (cell.load != Load::Datagrams).then(|| count(value))
}

fn lost(moved: &Moved) -> Option<f64> {
    let datagrams = moved.ended.datagrams?;
    let there = datagrams.sent.saturating_sub(datagrams.received);
    Some(count(
        there + datagrams.sent_back.saturating_sub(datagrams.back),
    ))
}

/// Whether the hold takes all datagrams of the blackout.
fn fits(planned: &Planned) -> bool {
    let blackout = planned.blackout.max(Duration::from_secs(1)).as_secs_f64();
    count(planned.cell.rate) * blackout * HELD <= HOLD
}

fn rtt_ms(planned: &Planned) -> f64 {
    planned.rtt.as_secs_f64() * 1e3
}

fn within_a_round_trip(planned: &Planned) -> Option<Goal> {
    Some(Goal::at_most(rtt_ms(planned) + 2.0))
}

fn none(_: &Planned) -> Option<Goal> {
    Some(Goal::at_most(0.0))
}

#[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
fn count(value: u64) -> f64 {
    value as f64
}
