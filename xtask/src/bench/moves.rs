//! `cargo xtask bench move`: the demo's container goes to and fro, once by netmig, once by hand.
use std::{thread, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use netmig_lab::{
    Host as _,
    demo::{
        Stage,
        by_hand::{self, ByHand},
    },
    peers::{Kind, Outcome},
    workload::{Client, Families, Load},
};

use super::{Bench, Goal, Output, Row, Stats};
use crate::run::{migrate, parts};

/// The load runs this long before and after a move.
const AROUND: Duration = Duration::from_secs(1);
const USUAL: &str = "podman checkpoint --export -c none, scp, restore --import";
const CRIU: &str = "CRIU's frozen dump + restore in the moves by hand";

#[derive(Debug, Args)]
pub struct MoveArgs {
    /// Moves of each kind.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    moves: u32,
    /// What redis holds, MiB.
    #[arg(long, default_value_t = 100)]
    data: u64,
    #[command(flatten)]
    pub(super) output: Output,
}

/// What the peers saw of one move.
#[derive(Debug, Clone, Copy)]
struct Seen {
    pause_ms: f64,
    retransmits: f64,
    udp_lost: f64,
    broken: f64,
}

/// All moves of a kind.
#[derive(Debug, Default)]
struct All {
    seen: Vec<Seen>,
    /// netmig's blackout, or CRIU's part of the usual way.
    dark_ms: Vec<f64>,
}

/// Moves the container `moves` times by netmig from `a` to `b`, and as often by hand from `b` to `a`.
pub(super) fn run(args: &MoveArgs) -> anyhow::Result<Bench> {
    // The usual way cannot carry connections over IPv6: the restored address is still tentative when CRIU binds to it.
    let load = Load {
        families: Families::Ipv4,
        ..Load::default()
    };
    let stage = Stage::up(&parts("bench", args.data << 20)?)?;
    let (a, b) = (stage.lab().a(), stage.lab().b());
    let (mut ours, mut usual) = (All::default(), All::default());
    for turn in 1..=args.moves {
        let (moved, seen) = under_load(&stage, &load.clients(), || migrate(a, b))?;
        if moved.outcome() != "moved" {
            bail!(
                "move {turn} by netmig: outcome {}: {:#}",
                moved.outcome(),
                moved.report
            );
        }
        let blackout = moved
            .blackout_ms()
            .context("netmig's report has no blackout_ms")?;
        println!(
            "netmig  {turn}: pause {:.0} ms, blackout {blackout:.0} ms",
            seen.pause_ms
        );
        ours.add(seen, blackout);
        // The record that netmig keeps at the source would be in the way of a container of that name.
        a.run(&["podman", "rm", "--all", "--force", "--time", "0"])?;

        let (
            ByHand {
                frozen_ms,
                restore_ms,
                ..
            },
            seen,
        ) = under_load(&stage, &load.clients(), || Ok(by_hand::move_by_hand(b, a)?))?;
        println!(
            "by hand {turn}: pause {:.0} ms, CRIU {frozen_ms:.0} + {restore_ms:.0} ms",
            seen.pause_ms
        );
        usual.add(seen, frozen_ms + restore_ms);
    }
    stage.down()?;
    rows(&ours, &usual, &load, args.data)
}

fn rows(ours: &All, usual: &All, load: &Load, data: u64) -> anyhow::Result<Bench> {
    let (pause, pause_usual) = both(ours, usual, |s| s.pause_ms)?;
    let (retransmits, retransmits_usual) = both(ours, usual, |s| s.retransmits)?;
    let (lost, lost_usual) = both(ours, usual, |s| s.udp_lost)?;
    let (broken, broken_usual) = both(ours, usual, |s| s.broken)?;
    let dark = Stats::of(&ours.dark_ms).context("no move by netmig")?;
    let criu = Stats::of(&usual.dark_ms).context("no move by hand")?;
    let rows = [
        Row::new("longest redis pause", "ms", pause)
            .baseline(USUAL, pause_usual)
            .param("goal", "0.5 x baseline")
            .goal(Goal::at_most(0.5 * pause_usual.median)),
        Row::new("blackout", "ms", dark)
            .baseline(CRIU, criu)
            .param("goal", "1.25 x baseline + 50 ms")
            .goal(Goal::at_most(1.25 * criu.median + 50.0)),
        Row::new("retransmits", "segments", retransmits).baseline(USUAL, retransmits_usual),
        Row::new("datagrams lost", "datagrams", lost).baseline(USUAL, lost_usual),
        Row::new("errors, resets, corrupt", "events", broken)
            .baseline(USUAL, broken_usual)
            .goal(Goal::at_most(0.0)),
    ];
    let conditions = |row: Row| {
        row.param("families", "IPv4")
            .param("redis_clients", load.redis)
            .param("data_mib", data)
            .param("bulk_streams_bytes_per_second", load.bulk_rate)
            .param("udp_per_second", load.udp_per_second)
    };
    Bench::new(rows.into_iter().map(conditions).collect())
}

fn both(ours: &All, usual: &All, figure: impl Fn(&Seen) -> f64) -> anyhow::Result<(Stats, Stats)> {
    let of = |all: &All| Stats::of(&all.seen.iter().map(&figure).collect::<Vec<_>>());
    of(ours).zip(of(usual)).context("nothing was measured")
}

/// Runs fresh clients around a move, and sums up what they saw.
fn under_load<T>(
    stage: &Stage,
    clients: &[Client],
    one_move: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Seen)> {
    let running = stage.load(clients)?;
    thread::sleep(AROUND);
    let moved = one_move()?;
    thread::sleep(AROUND);
    let outcomes = stage.unload(running)?;
    Ok((moved, Seen::of(&outcomes)))
}

impl Seen {
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    fn of(outcomes: &[Outcome]) -> Self {
        let redis = outcomes.iter().filter(|o| o.row.kind == Kind::Redis);
        let rows = || outcomes.iter().map(|o| &o.row);
        Self {
            pause_ms: redis.map(|o| o.row.longest_pause_ms).fold(0.0, f64::max),
            retransmits: rows().filter_map(|r| r.retransmits).sum::<u64>() as f64,
            udp_lost: rows()
                .filter_map(|r| Some(r.sent?.saturating_sub(r.received?)))
                .sum::<u64>() as f64,
            broken: rows().map(|r| r.errors + r.resets + r.corrupt).sum::<u64>() as f64,
        }
    }
}

impl All {
    fn add(&mut self, seen: Seen, dark_ms: f64) {
        self.seen.push(seen);
        self.dark_ms.push(dark_ms);
    }
}
