//! `cargo xtask bench`: netmig against the usual way and against its goals.
mod gate;
mod moves;
mod net;
mod report;
mod sockets;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

use crate::run;

pub use report::{Bench, Goal, Row, Stats};

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The demo's container moved by netmig and by hand (checkpoint, scp, restore), in turn.
    Move(moves::MoveArgs),
    /// What peers feel of a blackout, with the gate and with drop rules, over lines of different lengths.
    Gate(gate::GateArgs),
    /// A container's network read and made, by netmig and by nft, conntrack and ip.
    Net(net::NetArgs),
    /// Many TCP connections moved between two namespaces, by netmig and by a plain loop.
    Sockets(sockets::SocketsArgs),
}

/// Where the figures go.
#[derive(Debug, Args)]
struct Output {
    /// Write the figures as `netmig.bench/1` to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures, prints, writes; fails if a goal is missed.
///
/// # Errors
/// What could not be measured.
pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    run::prepared()?;
    let (bench, output) = match args.what {
        What::Move(args) => (moves::run(&args)?, args.output),
        What::Gate(args) => (gate::run(&args)?, args.output),
        What::Net(args) => (net::run(&args)?, args.output),
        What::Sockets(args) => (sockets::run(&args)?, args.output),
    };
    print!("{bench}");
    if let Some(path) = output.json {
        bench.write(&path)?;
    }
    let missed = bench.missed();
    for row in &missed {
        eprintln!("goal missed: {}", row.name);
    }
    Ok(if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
