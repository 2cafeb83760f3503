//! Every fault at every step, two faults at every pair of steps in turn, and thousands of schedules by chance.
use super::{
    Rng,
    faults::{FAULTS, Fault},
    pair::Pair,
    source_world::SourceWorld,
    target_world::{Engine, Gate, TargetWorld},
};
use crate::{
    machine::{
        source::{self, Outcome},
        target,
    },
    proto::Word,
};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs one schedule and holds its end against what may never be left.
fn run(seed: u64, faults: &[(u64, Fault)]) -> Outcome {
    let play = |traced: bool| {
        let mut options = source::Options {
            precopy_rounds: 2,
            ..Default::default()
        };
        if seed % 7 == 3 {
            options.drain_limit_ms = 0;
        }
        if seed % 11 == 5 {
            options.max_blackout_ms = Some(200);
        }
        let mut pair = Pair::new(seed, options, target::Options::default());
        pair.faults = faults.to_vec();
        pair.trace = traced.then(Vec::new);
        let end = catch_unwind(AssertUnwindSafe(|| {
            pair.run();
            judge(&pair)
        }));
        end.map_err(|panic| (panic, pair.trace.unwrap_or_default()))
    };
    play(false).unwrap_or_else(|_| match play(true) {
        Ok(_) => panic!("seed {seed}, faults {faults:?}: another end at the second time"),
        Err((panic, trace)) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or(panic.downcast_ref::<&str>().copied())
                .unwrap_or("panic");
            let tail = &trace[trace.len().saturating_sub(120)..];
            panic!(
                "seed {seed}, faults {faults:?}: {what}\n{}",
                tail.join("\n")
            );
        }
    })
}

fn judge(pair: &Pair) -> Outcome {
    let (source, target): (&SourceWorld, &TargetWorld) =
        (&pair.source.party.world, &pair.target.party.world);
    let outcome = pair
        .source
        .party
        .machine
        .outcome()
        .expect("it has ended")
        .clone();
    match &outcome {
        Outcome::Moved => {
            assert!(source.is_cleaned(), "left at the source: {source:?}");
            assert_eq!(target::word(&target.journal), Word::Released);
            assert_eq!(target.gate, Gate::Open);
            assert!(
                target.engine == Engine::Ran || pair.died_released && target.engine == Engine::Dead,
                "no live copy: {target:?}"
            );
        }
        Outcome::Kept(_) | Outcome::Refused(_) => {
            assert!(source.is_untouched(), "left at the source: {source:?}");
            assert!(target.is_untouched(), "left at the target: {target:?}");
            assert_ne!(target::word(&target.journal), Word::Released);
        }
        Outcome::Planned(_) => panic!("nobody asked for a plan alone"),
    }
    outcome
}

fn steps_of_a_good_move(seed: u64) -> u64 {
    let mut pair = Pair::new(
        seed,
        source::Options {
            precopy_rounds: 2,
            ..Default::default()
        },
        target::Options::default(),
    );
    pair.run();
    pair.steps
}

#[test]
fn without_faults_every_schedule_moves() {
    for seed in 0..300 {
        let outcome = run(seed * 77, &[]);
        assert!(
            outcome == Outcome::Moved || seed * 77 % 11 == 5,
            "seed {seed}: {outcome:?}"
        );
    }
}

#[test]
fn one_fault_at_every_step() {
    let (mut moved, mut kept) = (0, 0);
    for fault in FAULTS {
        for seed in 0..3 {
            for step in 1..=steps_of_a_good_move(seed) + 5 {
                match run(seed, &[(step, fault)]) {
                    Outcome::Moved => moved += 1,
                    _ => kept += 1,
                }
            }
        }
    }
    assert!(
        moved > 500 && kept > 500,
        "both ends are reached: {moved} moved, {kept} kept"
    );
}

#[test]
fn two_crashes_at_every_pair_of_steps() {
    let crashes = [Fault::CrashSource, Fault::CrashTarget];
    let steps = steps_of_a_good_move(1);
    for (first, second) in crashes.into_iter().flat_map(|a| crashes.map(|b| (a, b))) {
        for at in 1..=steps {
            for gap in [1, 2, 4, 7, 12, 20, 35] {
                run(1 + at % 5, &[(at, first), (at + gap, second)]);
            }
        }
    }
}

#[test]
fn twelve_thousand_schedules() {
    for seed in 0..12_000 {
        let mut rng = Rng(seed ^ 0x5eed);
        let faults: Vec<_> = (0..rng.below(6))
            .map(|_| {
                (
                    1 + rng.below(130),
                    FAULTS[rng.below(FAULTS.len() as u64) as usize],
                )
            })
            .collect();
        run(seed, &faults);
    }
}
