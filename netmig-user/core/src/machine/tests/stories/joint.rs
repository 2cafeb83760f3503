//! Both sides'.
use crate::machine::{
    source::{self, Outcome, Phase},
    target,
    tests::{faults::Fault, pair::Pair, target_world::Engine},
};

#[test]
fn the_good_path_is_the_order_of_the_design() {
    let mut pair = Pair::new(4, source::Options::default(), target::Options::default());
    pair.trace = Some(Vec::new());
    pair.run();
    let trace = pair.trace.unwrap_or_default();
    let mut from = 0;
    for landmark in [
        "source does Inspect",
        "source does Send(Ask",
        "target does Answer",
        "source does Decide",
        "source does Persist(Begun",
        "source does Attach",
        "target does Persist(Begun",
        "target does Prepare",
        "target does Send(Ready",
        "source does Precopy(1)",
        "source does Send(Freezing)",
        "source does Freeze",
        "source does Drain",
        "source hears EngineFrozen",
        "source does Close",
        "source does DumpSockets",
        "source does Send(Sockets",
        "source does SendRest",
        "target does AwaitFiles",
        "target does Rebuild",
        "target does RebuildSockets",
        "target does Persist(Prepared)",
        "target does Send(Prepared",
        "source does Grant",
        "source does Persist(Granted)",
        "source does Send(Grant",
        "target does Persist(Granted)",
        "target does EngineRelease",
        "target does Persist(Released)",
        "target does Send(Released",
        "target does Open",
        "target does EngineResume",
    ] {
        let at = trace[from..]
            .iter()
            .position(|line| line.contains(landmark));
        from += at.unwrap_or_else(|| panic!("{landmark} in order, in\n{}", trace.join("\n"))) + 1;
    }
    let order_at_source = [
        "does Persist(Released)",
        "does Clean",
        "does Send(Finish)",
        "does Persist(Closed)",
        "does Finish(Moved)",
    ];
    let at = order_at_source.map(|what| {
        trace
            .iter()
            .position(|line| line.contains(&format!("source {what}")))
    });
    assert!(at.is_sorted() && at[0].is_some(), "{at:?}");
}

#[test]
fn every_phase_of_the_source_is_told_once() {
    let mut pair = Pair::new(4, source::Options::default(), target::Options::default());
    pair.trace = Some(Vec::new());
    pair.run();
    let trace = pair.trace.unwrap_or_default();
    let told: Vec<_> = trace
        .iter()
        .filter_map(|line| line.split_once("source does Phase("))
        .map(|(_, phase)| phase.trim_end_matches(')'))
        .collect();
    let expected = [
        Phase::Plan,
        Phase::Attach,
        Phase::Precopy,
        Phase::Drain,
        Phase::Freeze,
        Phase::Dump,
        Phase::Transfer,
        Phase::Rebuild,
        Phase::Grant,
        Phase::Open,
        Phase::Clean,
    ];
    assert_eq!(told, expected.map(|phase| format!("{phase:?}")));
}

#[test]
fn the_link_lost_between_grant_and_its_arrival_is_waited_for() {
    for at in 60..140 {
        let mut pair = Pair::new(9, source::Options::default(), target::Options::default());
        while !pair.source.party.machine.is_granted() {
            pair.step();
        }
        pair.faults = vec![
            (pair.steps + 1, Fault::LongBreak),
            (pair.steps + at - 50, Fault::PresentAgain),
        ];
        pair.run();
        let world = &pair.target.party.world;
        match pair.source.party.machine.outcome() {
            Some(Outcome::Moved) => assert_eq!(world.engine, Engine::Ran),
            Some(Outcome::Kept(_)) => {
                assert!(pair.source.party.world.live() && world.is_untouched())
            }
            other => panic!("{other:?}"),
        }
    }
}
