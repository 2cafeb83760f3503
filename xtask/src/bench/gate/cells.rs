//! Which loads, lines and blackouts are measured.
use std::time::Duration;

use netmig_lab::gauge::{Cell, Engine, Load};

use super::GateArgs;

/// All kinds of load.
pub const LOADS: [Load; 5] = [
    Load::Inbound,
    Load::Outbound,
    Load::Both,
    Load::Requests,
    Load::Datagrams,
];
const CONNECTIONS: [usize; 2] = [1, 300];
const RTTS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(20)];
const BLACKOUTS: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];
/// From here on a blackout is long, and its moves are few.
const LONG: Duration = Duration::from_secs(20);
/// What a move by the engine `handoff` takes of the blackout by itself.
const OWN: Duration = Duration::from_millis(50);

/// A cell, on its line, and how often it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What is measured.
    pub cell: Cell,
    /// What moves it.
    pub engine: Engine,
    /// Of the line; zero: a cable.
    pub rtt: Duration,
    /// The blackout that is asked for; zero: as short as it is.
    pub blackout: Duration,
    /// Moves by netmig, and as many with everything dropped.
    pub moves: u32,
}

/// What is measured, in the order in which it is.
pub fn planned(args: &GateArgs) -> Vec<Planned> {
    let mut planned = Vec::new();
    // First: they are few, and shall not be what the time is too short for.
    if args.engine.contains(&super::EngineArg::Criu) {
        let loads = args.load.clone().unwrap_or_else(|| LOADS.to_vec());
        for load in loads {
            let one = plan(args, load, 1, false, Duration::ZERO, Duration::ZERO);
            planned.push(Planned {
                engine: Engine::Criu,
                moves: args.moves.unwrap_or(if args.complete { 10 } else { 2 }),
                ..one
            });
        }
    }
    if args.engine.contains(&super::EngineArg::Handoff) {
        planned.extend(if args.chooses() {
            product(args)
        } else {
            sample(args)
        });
    }
    // One lab for each line, and one for each engine.
    let mut labs: Vec<(Engine, Duration)> = Vec::new();
    for one in &planned {
        if !labs.contains(&(one.engine, one.rtt)) {
            labs.push((one.engine, one.rtt));
        }
    }
    planned.sort_by_key(|one| labs.iter().position(|lab| *lab == (one.engine, one.rtt)));
    planned
}

/// Each value of each condition at least once for each load, and the longest blackout where it hurts most.
fn sample(args: &GateArgs) -> Vec<Planned> {
    let [short, second, five, thirty] = BLACKOUTS;
    let [cable, line] = RTTS;
    let of = |connections, v6, rtt, blackout| {
        LOADS.map(|load| plan(args, load, connections, v6, rtt, blackout))
    };
    let mut planned = Vec::new();
    planned.extend(of(1, false, cable, short));
    planned.extend(of(300, true, line, second));
    let fewer = |one| Planned {
        moves: args.moves.unwrap_or(2),
        ..one
    };
    planned.extend(of(1, false, line, five).map(fewer));
    for load in [Load::Inbound, Load::Requests] {
        let one = plan(args, load, 1, true, cable, thirty);
        planned.push(Planned { moves: 1, ..one });
    }
    planned
}

fn product(args: &GateArgs) -> Vec<Planned> {
    // What is not named: all of it if all was asked for, else the first.
    fn chosen<T: Copy>(complete: bool, named: Option<&Vec<T>>, all: &[T]) -> Vec<T> {
        match named {
            Some(named) => named.clone(),
            None if complete => all.to_vec(),
            None => all[..1].to_vec(),
        }
    }
    let whole = args.complete;
    let mut planned = Vec::new();
    for rtt in chosen(whole, args.rtt.as_ref(), &RTTS) {
        for blackout in chosen(whole, args.blackout.as_ref(), &BLACKOUTS) {
            for connections in chosen(whole, args.connections.as_ref(), &CONNECTIONS) {
                for family in chosen(whole, args.family.as_ref(), &super::FAMILIES) {
                    for load in args.load.clone().unwrap_or_else(|| LOADS.to_vec()) {
                        let v6 = family == super::Family::V6;
                        planned.push(plan(args, load, connections, v6, rtt, blackout));
                    }
                }
            }
        }
    }
    let mut once: Vec<Planned> = Vec::new();
    for one in planned {
        if !once.contains(&one) {
            once.push(one);
        }
    }
    once
}

fn plan(
    args: &GateArgs,
    load: Load,
    connections: usize,
    v6: bool,
    rtt: Duration,
    blackout: Duration,
) -> Planned {
    let moves = match args.moves {
        Some(moves) => moves,
        None if args.complete && blackout >= LONG => 3,
        None if args.complete => 10,
        None => 3,
    };
    let datagrams = load == Load::Datagrams;
    Planned {
        cell: Cell {
            load,
            connections: if datagrams { 1 } else { connections },
            v6,
            wait: blackout.saturating_sub(OWN),
            rate: if datagrams { args.datagrams } else { args.rate },
        },
        engine: Engine::Handoff,
        rtt,
        blackout,
        moves,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        gate: GateArgs,
    }

    fn of(args: &[&str]) -> Vec<Planned> {
        let line = Line::try_parse_from([&["gate"], args].concat()).expect("arguments");
        planned(&line.gate)
    }

    #[test]
    fn the_complete_matrix_has_every_cell_once() {
        let all = of(&["--complete", "--engine", "handoff"]);
        // Datagrams come from one socket.
        assert_eq!(all.len(), (4 * 2 + 1) * 2 * 2 * 4);
        let moves = |long: bool| {
            let mut of: Vec<_> = all
                .iter()
                .filter(|one| (one.blackout >= LONG) == long)
                .map(|one| one.moves)
                .collect();
            of.dedup();
            of
        };
        assert_eq!((moves(true), moves(false)), (vec![3], vec![10]));
    }

    #[test]
    fn a_sample_has_every_condition_and_every_load_by_both_engines() {
        let sample = of(&[]);
        for load in LOADS {
            for engine in [Engine::Handoff, Engine::Criu] {
                let has = |one: &&Planned| one.cell.load == load && one.engine == engine;
                assert!(sample.iter().any(|one| has(&one)), "{load:?} {engine:?}");
            }
        }
        for blackout in BLACKOUTS {
            assert!(sample.iter().any(|one| one.blackout == blackout));
        }
        for connections in CONNECTIONS {
            assert!(sample.iter().any(|one| one.cell.connections == connections));
        }
        // A lab is brought up once.
        let mut labs: Vec<_> = sample.iter().map(|one| (one.engine, one.rtt)).collect();
        labs.dedup();
        assert_eq!(labs.len(), 3);
    }

    #[test]
    fn what_is_named_is_measured_and_nothing_else() {
        let some = of(&["--load", "both", "--rtt", "20ms", "--engine", "handoff"]);
        let [one] = some.as_slice() else {
            panic!("{some:?}");
        };
        assert_eq!((one.cell.load, one.rtt), (Load::Both, RTTS[1]));
        assert_eq!((one.cell.connections, one.cell.v6), (1, false));
    }
}
