//! `cargo xtask bench gate`: what peers feel of a blackout, with the gate's work and with everything dropped in its place.
//!
//! A program moves to and fro under one kind of load at a time, once by netmig and once by netmig with nothing held, drained or answered (what a
//! rule that drops would do), in turn, with new connections each time. How long the blackout is at least is set by an engine that takes its time
//! at the target.
mod cells;
mod figures;
mod pass;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use netmig_lab::{
    gauge::{Engine, Load, Moved, Parts, Stage},
    lab::link::{self, Line},
    root,
};

use self::cells::Planned;
use super::{Bench, Output, Row};
use crate::run::{self, Programs};

const DROP: &str = "everything dropped (--hold-limit 0 --drain off)";
/// What nobody has chosen ends in time.
const SAMPLE_MINUTES: u64 = 15;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[derive(Debug, Args)]
pub struct GateArgs {
    /// Every load over every line with every blackout, some hours; without this and what follows: a sample of some minutes
    #[arg(long)]
    complete: bool,
    /// Kinds of load; this, or one of the next four, chooses cells: all that can be put together of what is named
    #[arg(long, value_enum, value_delimiter = ',')]
    load: Option<Vec<Load>>,
    /// Connections with the container
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    connections: Option<Vec<usize>>,
    /// IP versions
    #[arg(long, value_enum, value_delimiter = ',')]
    family: Option<Vec<Family>>,
    /// Round trips between the peer and the hosts; 0ms: a cable
    #[arg(long, value_name = "TIME,...", value_delimiter = ',', value_parser = link::time)]
    rtt: Option<Vec<Duration>>,
    /// Blackouts
    #[arg(long, value_name = "TIME,...", value_delimiter = ',', value_parser = link::time)]
    blackout: Option<Vec<Duration>>,
    /// Moves of each kind in each cell (10 of all, 3 of those with the longest blackout; 1 to 3 of a sample)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    moves: Option<u32>,
    /// Payload of each direction of all connections together, bytes a second
    #[arg(long, default_value_t = 20_000_000)]
    rate: u64,
    /// Datagrams a second, each way
    #[arg(long, default_value_t = 50_000)]
    datagrams: u64,
    /// What moves the program; with `criu` it is a container, and the blackout is as long as it is
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "handoff,criu"
    )]
    engine: Vec<EngineArg>,
    /// Pairs of runs with and without a gate that only passes; 0: none
    #[arg(long, default_value_t = 10)]
    pairs: u32,
    /// Nothing more is begun after so many minutes (15 for a sample)
    #[arg(long)]
    minutes: Option<u64>,
    #[command(flatten)]
    pub(super) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineArg {
    Handoff,
    Criu,
}

impl GateArgs {
    /// Whether the cells are chosen.
    fn chooses(&self) -> bool {
        self.complete
            || self.load.is_some()
            || self.connections.is_some()
            || self.family.is_some()
            || self.rtt.is_some()
            || self.blackout.is_some()
    }
}

/// Measures what was chosen.
pub(super) fn run(args: &GateArgs) -> anyhow::Result<Bench> {
    let Programs {
        netmig_user,
        netmig_peer,
    } = run::programs()?;
    let begun = Instant::now();
    let minutes = match args.minutes {
        None if args.chooses() => None,
        None => Some(SAMPLE_MINUTES),
        minutes => minutes,
    };
    let late = || minutes.is_some_and(|minutes| begun.elapsed().as_secs() >= minutes * 60);
    let planned = cells::planned(args);
    let mut rows = Vec::new();
    let mut passed = args.pairs == 0;
    let mut left = 0;
    for lab in planned.chunk_by(|a, b| (a.engine, a.rtt) == (b.engine, b.rtt)) {
        let first = &lab[0];
        let mut stage = Stage::up(&Parts {
            lab: format!("bench-{}", std::process::id()),
            root: root::path(),
            netmig_user: Some(netmig_user.clone()),
            netmig_peer: netmig_peer.clone(),
            cache: root::cache().join("demo"),
            line: (!first.rtt.is_zero()).then(|| Line {
                rtt: first.rtt,
                ..Line::default()
            }),
            engine: first.engine,
        })?;
        if !passed && first.engine == Engine::Handoff && first.rtt.is_zero() {
            passed = true;
            rows.extend(pass::rows(&stage, args.pairs)?);
        }
        for one in lab {
            if late() {
                left += 1;
                continue;
            }
            let (ours, dropped) = measure(&mut stage, one)?;
            let load = load_average()?;
            let figures = figures::rows(one, &ours, &dropped)?.into_iter();
            rows.extend(figures.map(|row| conditions(row, one, load)));
        }
        stage.down()?;
    }
    if left > 0 {
        eprintln!(
            "{left} of {} cells were not measured: the time was over (--minutes)",
            planned.len()
        );
    }
    Bench::new(rows)
}

fn measure(stage: &mut Stage, planned: &Planned) -> anyhow::Result<(Vec<Moved>, Vec<Moved>)> {
    let (mut ours, mut dropped) = (Vec::new(), Vec::new());
    for turn in 1..=planned.moves {
        for (what, moves, options) in [
            ("netmig", &mut ours, &[][..]),
            (
                "dropped",
                &mut dropped,
                &["--hold-limit", "0", "--drain", "off"],
            ),
        ] {
            let moved = stage
                .move_once(&planned.cell, options)
                .with_context(|| format!("move {turn}, {what}, of {planned:?}"))?;
            println!(
                "{what:8} {turn} {}: {}",
                name(planned),
                figures::line(planned, &moved)
            );
            moves.push(moved);
        }
    }
    Ok((ours, dropped))
}

fn name(planned: &Planned) -> String {
    let Planned {
        cell, engine, rtt, ..
    } = planned;
    format!(
        "{:?} {} {engine:?}, {} of them, rtt {rtt:?}, waits {:?}",
        cell.load,
        if cell.v6 { "v6" } else { "v4" },
        cell.connections,
        cell.wait
    )
}

fn conditions(row: Row, planned: &Planned, load_average: f64) -> Row {
    let Planned { cell, engine, .. } = planned;
    let engine = match engine {
        Engine::Handoff => "handoff",
        Engine::Criu => "criu",
    };
    let load = cell
        .load
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned());
    row.param("load", load)
        .param("engine", engine)
        .param("connections", cell.connections)
        .param("family", if cell.v6 { "IPv6" } else { "IPv4" })
        .param("rtt_ms", planned.rtt.as_secs_f64() * 1e3)
        .param("blackout_ms", planned.blackout.as_secs_f64() * 1e3)
        .param("rate", cell.rate)
        .param("load_average", load_average)
}

fn load_average() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
    let first = text.split_whitespace().next().context("an empty load")?;
    first.parse().context("in /proc/loadavg")
}
