//! `cargo xtask bench gate`: what peers feel of a blackout, with the gate's work and with drop rules in its place.
//!
//! A container goes to and fro under a light load over a line of a given length, once by netmig and once by netmig with nothing held, drained
//! or answered (what a rule that drops would do), in turn. How long the blackout is at least is set by an engine that takes its time at the
//! target. Before each move the same clients are watched for as long without one: what the machine's scheduler does to them by itself.
use std::{thread, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use netmig_lab::{
    Host,
    demo::{Stage, netmig},
    lab::link::{self, Line},
    peers::{Direction, Kind, Outcome},
    workload::{Families, Load},
};

use super::{Bench, Goal, Output, Row, Stats};
use crate::run::parts;

/// The load runs this long before and after what is watched.
const AROUND: Duration = Duration::from_secs(1);
const DROP: &str = "the same moves with everything dropped (--hold-limit 0 --drain off)";

/// CRIU as the target's runtime finds it, with a pause before it restores.
const SLOW: &str =
    "#!/bin/sh\ncase \"$*\" in *swrk*) sleep SECONDS ;; esac\nexec /usr/sbin/criu.real \"$@\"\n";

#[derive(Debug, Args)]
pub struct GateArgs {
    /// Moves of each kind, for each round trip and blackout.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    moves: u32,
    /// Round trips between the peer and the hosts; 0ms: a cable.
    #[arg(long, value_name = "TIME,...", value_delimiter = ',', value_parser = link::time, default_value = "0ms,20ms")]
    rtt: Vec<Duration>,
    /// What the engine waits at the target each time that it is called, two or three times in a blackout.
    #[arg(long, value_name = "TIME,...", value_delimiter = ',', value_parser = link::time, default_value = "0ms,1s,5s")]
    wait: Vec<Duration>,
    #[command(flatten)]
    pub(super) output: Output,
}

/// What the peers saw of one move, beyond its blackout.
#[derive(Debug, Clone, Copy)]
struct Seen {
    blackout_ms: f64,
    /// Of requests: the longest pause less the blackout, and less what it is without a move.
    request_ms: f64,
    /// The same of streams to the container.
    inbound_ms: f64,
    /// And of those from it.
    outbound_ms: f64,
    peer_retransmits: f64,
    container_retransmits: f64,
    /// Smallest part of its window that a stream to the container kept.
    window_kept: f64,
    udp_lost: f64,
    udp_out_of_place: f64,
    broken: f64,
}

/// What is measured: a name, a unit, the figure, and the goal in ms of round trip and without.
type Figure = (
    &'static str,
    &'static str,
    fn(&Seen) -> f64,
    fn(f64) -> Option<Goal>,
);

const FIGURES: [Figure; 10] = [
    ("blackout", "ms", |s| s.blackout_ms, |_| None),
    (
        "longest request minus blackout",
        "ms",
        |s| s.request_ms,
        within_a_round_trip,
    ),
    (
        "stream to the container minus blackout",
        "ms",
        |s| s.inbound_ms,
        within_a_round_trip,
    ),
    (
        "stream from the container minus blackout",
        "ms",
        |s| s.outbound_ms,
        within_a_round_trip,
    ),
    (
        "retransmits by the peer",
        "segments",
        |s| s.peer_retransmits,
        |_| Some(Goal::at_most(0.0)),
    ),
    (
        "retransmits by the container",
        "segments",
        |s| s.container_retransmits,
        |_| Some(Goal::at_most(0.0)),
    ),
    (
        "peer's cwnd after / before",
        "",
        |s| s.window_kept,
        |_| Some(Goal::at_least(0.95)),
    ),
    (
        "datagrams lost",
        "datagrams",
        |s| s.udp_lost,
        |_| Some(Goal::at_most(0.0)),
    ),
    (
        "datagrams doubled or reordered",
        "datagrams",
        |s| s.udp_out_of_place,
        |_| Some(Goal::at_most(0.0)),
    ),
    (
        "errors, resets, corrupt",
        "events",
        |s| s.broken,
        |_| Some(Goal::at_most(0.0)),
    ),
];

fn within_a_round_trip(rtt_ms: f64) -> Option<Goal> {
    Some(Goal::at_most(rtt_ms + 2.0))
}

/// Measures every round trip with every blackout.
pub(super) fn run(args: &GateArgs) -> anyhow::Result<Bench> {
    let load = Load {
        families: Families::Both,
        redis: 10,
        redis_every_ms: 5,
        idle: 2,
        bulk_rate: Some(5_000_000),
        iperf3: false,
        udp_per_second: 500,
    };
    let mut rows = Vec::new();
    for &rtt in &args.rtt {
        let mut parts = parts("bench", 1 << 20)?;
        parts.line = (!rtt.is_zero()).then(|| Line {
            rtt,
            ..Line::default()
        });
        let stage = Stage::up(&parts)?;
        for host in [stage.lab().a(), stage.lab().b()] {
            host.sh("mv /usr/sbin/criu /usr/sbin/criu.real")?;
        }
        for &wait in &args.wait {
            let (ours, dropped) = measure(&stage, &load, args.moves, wait)?;
            rows.extend(figures(&ours, &dropped, rtt, wait)?);
        }
        stage.down()?;
    }
    let conditions = |row: Row| {
        row.param("families", "IPv4 and IPv6")
            .param("redis_clients", load.redis)
            .param("bulk_streams_bytes_per_second", load.bulk_rate)
            .param("udp_per_second", load.udp_per_second)
    };
    Bench::new(rows.into_iter().map(conditions).collect())
}

fn measure(
    stage: &Stage,
    load: &Load,
    moves: u32,
    wait: Duration,
) -> anyhow::Result<(Vec<Seen>, Vec<Seen>)> {
    let (mut ours, mut dropped) = (Vec::new(), Vec::new());
    for turn in 1..=moves {
        for (what, seen, options) in [
            ("netmig", &mut ours, &[][..]),
            (
                "dropped",
                &mut dropped,
                &["--hold-limit", "0", "--drain", "off"],
            ),
        ] {
            let one = one_move(stage, load, wait, options)
                .with_context(|| format!("turn {turn} of {what}"))?;
            println!("{what:8} {turn}, waiting {wait:?}: {one:.1?}");
            seen.push(one);
        }
    }
    Ok((ours, dropped))
}

fn one_move(stage: &Stage, load: &Load, wait: Duration, options: &[&str]) -> anyhow::Result<Seen> {
    let living = stage.living_on()?;
    let (a, b): (&dyn Host, &dyn Host) = (stage.lab().a(), stage.lab().b());
    let (from, to) = match living.as_slice() {
        [host] if host == a.name() => (a, b),
        [host] if host == b.name() => (b, a),
        _ => bail!("the container runs on {living:?}"),
    };
    engine(from, Duration::ZERO)?;
    engine(to, wait)?;

    let still = stage.load(&load.clients())?;
    thread::sleep(AROUND * 2 + wait);
    let still = stage.unload(still)?;

    let running = stage.load(&load.clients())?;
    thread::sleep(AROUND);
    let moved = netmig::migrate_with(from, to, options)?;
    thread::sleep(AROUND);
    let outcomes = stage.unload(running)?;
    if moved.outcome() != "moved" {
        bail!("outcome {}: {:#}", moved.outcome(), moved.report);
    }
    // The record that netmig keeps at the source would be in the way of a container of that name.
    from.run(&["podman", "rm", "--all", "--force", "--time", "0"])?;
    let blackout = moved
        .blackout_ms()
        .context("netmig's report has no blackout_ms")?;
    Ok(Seen::of(&outcomes, &still, blackout))
}

/// Makes the host's engine wait in a restore.
fn engine(host: &dyn Host, wait: Duration) -> anyhow::Result<()> {
    let script = SLOW.replace("SECONDS", &wait.as_secs_f64().to_string());
    host.write("/usr/sbin/criu", script.as_bytes(), 0o755)?;
    Ok(())
}

impl Seen {
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    fn of(moved: &[Outcome], still: &[Outcome], blackout_ms: f64) -> Self {
        let is = |outcome: &Outcome, kind, direction: Option<Direction>| {
            outcome.row.kind == kind && direction.is_none_or(|d| outcome.row.direction == d)
        };
        let longest = |all: &[Outcome], kind, direction| {
            all.iter()
                .filter(|o| is(o, kind, direction))
                .map(|o| o.row.longest_pause_ms)
                .fold(0.0, f64::max)
        };
        let beyond = |kind, direction| {
            longest(moved, kind, direction) - blackout_ms - longest(still, kind, direction)
        };
        let sum = |figure: &dyn Fn(&Outcome) -> Option<u64>| {
            moved.iter().filter_map(figure).sum::<u64>() as f64
        };
        let sent_by_peer =
            |o: &Outcome| o.row.kind == Kind::Redis || o.row.direction == Direction::Inbound;
        let window =
            |o: &Outcome| Some(f64::from(o.row.cwnd_after?) / f64::from(o.row.cwnd_before?));
        let (inbound, outbound) = (Some(Direction::Inbound), Some(Direction::Outbound));
        Self {
            blackout_ms,
            request_ms: beyond(Kind::Redis, None),
            inbound_ms: beyond(Kind::Bulk, inbound),
            outbound_ms: beyond(Kind::Bulk, outbound),
            peer_retransmits: sum(&|o| o.row.retransmits.filter(|_| sent_by_peer(o))),
            container_retransmits: sum(&|o| o.row.retransmits.filter(|_| !sent_by_peer(o))),
            window_kept: moved
                .iter()
                .filter(|o| is(o, Kind::Bulk, inbound))
                .filter_map(window)
                .fold(1.0, f64::min),
            udp_lost: sum(&|o| Some(o.row.sent?.saturating_sub(o.row.received?))),
            udp_out_of_place: sum(&|o| Some(o.duplicated + o.reordered)),
            broken: sum(&|o| Some(o.row.errors + o.row.resets + o.row.corrupt)),
        }
    }
}

fn figures(
    ours: &[Seen],
    dropped: &[Seen],
    rtt: Duration,
    wait: Duration,
) -> anyhow::Result<Vec<Row>> {
    let rtt_ms = rtt.as_secs_f64() * 1e3;
    let stats = |all: &[Seen], figure: fn(&Seen) -> f64| {
        Stats::of(&all.iter().map(figure).collect::<Vec<_>>()).context("no moves")
    };
    let row = |&(name, unit, figure, goal): &Figure| {
        let row = Row::new(name, unit, stats(ours, figure)?)
            .baseline(DROP, stats(dropped, figure)?)
            .param("rtt_ms", rtt_ms)
            .param("engine_waits_each_ms", wait.as_secs_f64() * 1e3);
        Ok(match goal(rtt_ms) {
            Some(goal) => row.goal(goal),
            None => row,
        })
    };
    FIGURES.iter().map(row).collect()
}
