//! `cargo xtask soak`: hundreds of connections in random states, moved to and fro at random moments, every byte checked.
use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use netmig_lab::{
    root,
    soak::{self, Plan, Soaked},
};

use crate::{
    bench::Stats,
    line::LineArguments,
    run::{self, Programs},
};

#[derive(Args)]
pub struct Arguments {
    /// How many moves; an odd number is rounded up
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    moves: u32,
    /// How many connections at any time
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    #[command(flatten)]
    line: LineArguments,
    /// Write what came of it to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the lab up, to be looked at
    #[arg(long)]
    keep: bool,
}

/// Builds, moves, and tells; fails if anything is not as it should be.
pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    run::prepared()?;
    let Programs {
        netmig_user,
        netmig_peer,
    } = run::programs()?;
    let plan = Plan {
        lab: format!("soak-{}", std::process::id()),
        root: Some(root::path()),
        netmig_user: Some(netmig_user),
        netmig_peer,
        moves: arguments.moves,
        connections: usize::try_from(arguments.connections)?,
        seed: arguments.line.seed,
        line: arguments.line.line(),
        keep: arguments.keep,
    };
    let soaked = soak::run(&plan, &mut |line| println!("{line}"))?;
    tell(&soaked);
    if let Some(path) = &arguments.json {
        let mut text = serde_json::to_string_pretty(&soaked)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    if arguments.keep {
        println!(
            "lab {} stays up; `cargo xtask lab --name {0} down` ends it",
            plan.lab
        );
    }
    for fault in &soaked.faults {
        eprintln!("fault: {fault}");
    }
    Ok(ExitCode::from(u8::from(!soaked.faults.is_empty())))
}

fn tell(soaked: &Soaked) {
    let peers = &soaked.peers;
    println!(
        "{} connections, {} came to their ends as they should, {} went wrong, {} hung; {} bytes from the container and {} to it",
        peers.begun, peers.ended, peers.faults, peers.hung, peers.read, peers.written
    );
    let figures = |name: &str, values: &[f64]| {
        if let Some(Stats { median, p99, n }) = Stats::of(values) {
            println!("{name}: median {median:.0} ms, p99 {p99:.0} ms of {n}");
        }
    };
    let moves = soaked.moves.iter();
    figures(
        "blackout",
        &moves.clone().map(|m| m.blackout_ms).collect::<Vec<_>>(),
    );
    figures(
        "silence of a connection beyond the blackout",
        &moves
            .clone()
            .flat_map(|m| m.settled_ms.iter().copied())
            .collect::<Vec<_>>(),
    );
    figures(
        "the longest of each move",
        &moves
            .map(|m| m.settled_ms.iter().copied().fold(0.0, f64::max))
            .collect::<Vec<_>>(),
    );
    let half = soaked.moves.get(soaked.moves.len() / 2);
    if let (Some(half), Some(last)) = (half, soaked.moves.last()) {
        println!(
            "memory of the agents, KiB: {:?} halfway, {:?} after the last move",
            half.memory_kib, last.memory_kib
        );
    }
    if let Some(line) = &soaked.line {
        println!("line: {line:?}");
    }
}
