//! `cargo xtask test`: everything that must hold, stage by stage.
mod tally;

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    thread,
    time::Instant,
};

use anyhow::bail;
use clap::Args;

use crate::{
    cargo::{self, Profile},
    setup::{self, Purpose, Tell},
};
use tally::Tally;

#[derive(Args)]
pub struct Arguments {
    /// Only these stages, by name; set-up comes first in any case
    #[arg(long, value_name = "STAGE", value_delimiter = ',', value_parser = names())]
    only: Vec<String>,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// The stories in which containers move.
const MOVES: &str = "moves";

/// The stories that measure pauses, or meet a moment: with others beside them they would measure those.
const MEASURED: [&str; 9] = [
    "beside::",
    "blackout::",
    "gate::",
    "gauge::",
    "guardian::",
    "handoff::",
    "hold::",
    "keeper::",
    "soak::",
];
/// How many of the other stories run at a time, on machines that may have two processors: they wait for much of their time.
const BESIDE: &str = "3";

/// A part of the tests.
struct Stage {
    name: &'static str,
    what: &'static str,
    needs: &'static [Purpose],
    run: fn(&Arguments) -> anyhow::Result<Tally>,
}

/// All stages, in order: what fails fastest comes first.
const STAGES: [Stage; 5] = [
    Stage {
        name: "format",
        what: "rustfmt finds nothing to change",
        needs: &[Purpose::Lint],
        run: format,
    },
    Stage {
        name: "lint",
        what: "clippy finds nothing to say",
        needs: &[Purpose::Lint, Purpose::Build],
        run: lint,
    },
    Stage {
        name: "unit",
        what: "each crate's own tests",
        needs: &[Purpose::Build, Purpose::Unit],
        run: unit,
    },
    Stage {
        name: "lab",
        what: "end-to-end tests between the hosts of a lab",
        needs: &[Purpose::Build, Purpose::Lab],
        run: lab,
    },
    Stage {
        name: "vm",
        what: "virtual machines with other kernels, and moves in and between them",
        needs: &[Purpose::Build, Purpose::Lab, Purpose::Vm],
        run: vm,
    },
];

fn names() -> Vec<&'static str> {
    STAGES.iter().map(|stage| stage.name).collect()
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    setup::require_root("the test of network namespaces")?;
    let chosen = STAGES
        .iter()
        .filter(|stage| {
            arguments.only.is_empty() || arguments.only.iter().any(|name| name == stage.name)
        })
        .collect::<Vec<_>>();
    let mut needs = Vec::new();
    for purpose in chosen.iter().flat_map(|stage| stage.needs) {
        if !needs.contains(purpose) {
            needs.push(*purpose);
        }
    }
    setup::ready(&needs, Tell::All)?;

    let mut total = Tally::default();
    let mut broken = Vec::new();
    let mut times = Vec::new();
    for stage in chosen {
        println!("\n== {}: {}", stage.name, stage.what);
        let began = Instant::now();
        let told = match (stage.run)(arguments) {
            Ok(tally) => {
                total += tally;
                if tally.failed > 0 {
                    broken.push(stage.name);
                }
                tally.to_string()
            }
            Err(error) => {
                println!("error: {error:#}");
                broken.push(stage.name);
                total.failed += 1;
                "did not get through".to_owned()
            }
        };
        times.push(format!(
            "{:8} {:6.1} s  {told}",
            stage.name,
            began.elapsed().as_secs_f32()
        ));
        println!(
            "== {}: {told} after {:.1} s",
            stage.name,
            began.elapsed().as_secs_f32()
        );
    }
    println!("\n{}", times.join("\n"));
    if !broken.is_empty() {
        println!("failed: {}", broken.join(", "));
    }
    println!("\n{total}");
    Ok(ExitCode::from(u8::from(!broken.is_empty())))
}

fn format(_: &Arguments) -> anyhow::Result<Tally> {
    // Not `--all`: that would follow into what cargo fetched.
    cargo::run(cargo::cargo("fmt")?.arg("--check"))?;
    Ok(Tally::one())
}

fn lint(_: &Arguments) -> anyhow::Result<Tally> {
    for targets in [vec!["--all-targets"], cargo::only(&cargo::STORIES)] {
        let mut clippy = cargo::whole("clippy")?;
        clippy.arg("--quiet").args(targets);
        cargo::run(clippy.args(["--", "--deny", "warnings"]))?;
    }
    Ok(Tally::one())
}

fn unit(arguments: &Arguments) -> anyhow::Result<Tally> {
    // With the feature the programs are others, which the verifier must take too.
    let mut telling = cargo::cargo("test")?;
    telling.args([
        "--no-fail-fast",
        "--package",
        "netmig-user",
        "--features",
        "aya-log",
        "--lib",
        "gate::tests::log",
    ]);
    let mut sum = tests(cargo::whole("test")?.arg("--no-fail-fast"), arguments)?;
    sum += tests(&mut telling, arguments)?;
    Ok(sum)
}

fn lab(arguments: &Arguments) -> anyhow::Result<Tally> {
    let binary = tested_binary()?;
    let stories = |targets: &[&str], at_a_time: &str, which: &[&str]| {
        let mut stories = cargo::whole("test")?;
        stories
            .arg("--no-fail-fast")
            .args(cargo::only(targets))
            .env("NETMIG_USER_BIN", &binary)
            .env("RUST_TEST_THREADS", at_a_time)
            .args(&arguments.filter)
            .arg("--")
            .args(which);
        counted(&mut stories)
    };
    if arguments.filter.is_some() {
        return stories(&cargo::STORIES, "1", &[]);
    }
    let others: Vec<_> = cargo::STORIES
        .into_iter()
        .filter(|&story| story != MOVES)
        .collect();
    let unmeasured = MEASURED.map(|name| ["--skip", name]);
    let mut sum = stories(&others, "1", &[])?;
    sum += stories(&[MOVES], BESIDE, unmeasured.as_flattened())?;
    sum += stories(&[MOVES], "1", &MEASURED)?;
    Ok(sum)
}

fn vm(arguments: &Arguments) -> anyhow::Result<Tally> {
    let binary = tested_binary()?;
    let machines = |target: &str| {
        let mut machines = cargo::whole("test")?;
        machines
            // What is ignored in these boots machines, except for what is run inside of them.
            .args(["--no-fail-fast", "--test", target, "--", "--ignored"])
            .args(["--skip", "machines::inside_a_guest"])
            // The phases of a move under each kernel are worth seeing.
            .args(["--test-threads", "1", "--nocapture"])
            .env("NETMIG_USER_BIN", &binary);
        tests(&mut machines, arguments)
    };
    // A machine that boots waits for much of its time, and what moves in one asks for no pause.
    thread::scope(|scope| {
        let beside = scope.spawn(|| machines("vm"));
        let moves = machines(MOVES);
        let mut sum = beside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        sum += moves?;
        Ok(sum)
    })
}

/// The program that the stories run.
fn tested_binary() -> anyhow::Result<PathBuf> {
    cargo::programs_of_tests()?;
    Ok(cargo::program("netmig-user", Profile::Debug))
}

/// Runs `cargo test`, with the filter if there is one, and counts.
fn tests(command: &mut Command, arguments: &Arguments) -> anyhow::Result<Tally> {
    counted(command.args(&arguments.filter))
}

fn counted(command: &mut Command) -> anyhow::Result<Tally> {
    let (tally, status) = tally::watch(command)?;
    if !status.success() && tally.failed == 0 {
        bail!("`{}`: {status}", cargo::line(command));
    }
    Ok(tally)
}
