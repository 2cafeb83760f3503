//! `netmig-user gate`: the gates that stand on this host, and one set by hand.
use std::time::Duration;

use anyhow::{Context, Result};
use netmig_common::Mode;

use super::args::{self, GateMode, GateVerb, GateWhich};
use crate::{
    driver::by_hand::{self, Which},
    gate::status::{Gates, SCHEMA, Status},
};

/// Shows, sets, or takes off.
pub fn run(args: &args::Gate) -> Result<()> {
    match &args.verb {
        GateVerb::Status(args) => status(args),
        GateVerb::Set(args) => {
            let mode = match args.mode {
                GateMode::Pass => Mode::Pass,
                GateMode::Drain => Mode::Drain,
                GateMode::Closed => Mode::Closed,
            };
            let gate = by_hand::set(which(&args.which)?, mode, Duration::from_secs(args.lease))?;
            print!("{}", Status::of(&gate, false)?);
            Ok(())
        }
        GateVerb::Clear(args) => {
            println!("gate {} is gone", by_hand::clear(which(args)?)?);
            Ok(())
        }
    }
}

fn status(args: &args::GateStatus) -> Result<()> {
    let gates = by_hand::all()?
        .iter()
        .filter(|gate| args.mv.is_none_or(|only| only == gate.mv()))
        .map(|gate| {
            Status::of(gate, args.flows).with_context(|| format!("the gate of move {}", gate.mv()))
        })
        .collect::<Result<Vec<_>>>()?;
    if args.json {
        let gates = Gates {
            schema: SCHEMA,
            gates,
        };
        println!("{}", serde_json::to_string_pretty(&gates)?);
    } else if gates.is_empty() {
        println!("no gate stands on this host");
    } else {
        gates.iter().for_each(|gate| print!("{gate}"));
    }
    Ok(())
}

fn which(args: &GateWhich) -> Result<Which<'_>> {
    let container = args::named(&args.podman, &args.runc, &args.crun, &args.handoff)
        .map(|(manager, name)| Which::Container(manager, name));
    container
        .or(args.mv.map(Which::Move))
        .context("which container or move?")
}
