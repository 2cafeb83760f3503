//! `cargo xtask run`: the whole of netmig in one minute. Builds it, brings up a lab, starts a container of several processes with
//! clients on it, moves it to the other host and back, and shows what its peers saw.
mod table;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use netmig_lab::{
    Host,
    demo::{Error, Parts, Stage, netmig, netmig::Moved},
    peers::{Outcome, Row, dataset},
    root,
    workload::Load,
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    build_cmd,
    cargo::{self, Profile},
    setup::{self, Purpose, Tell},
};

/// The load runs this long before, between and after the moves.
const AROUND: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Write the moves' reports and what the peers saw to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What redis holds, MiB.
    #[arg(long, default_value_t = 100, value_name = "MIB")]
    data: u64,
    /// Leave the lab up, with the container and what netmig left on the hosts, to be looked at.
    #[arg(long)]
    keep: bool,
    /// Run netmig-user with these arguments on this machine instead, after building it.
    #[arg(last = true)]
    args: Vec<String>,
}

/// The JSON of the run.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    moves: Vec<&'a Value>,
    peers: Vec<&'a Row>,
}

/// Builds and runs.
///
/// # Errors
/// What could not be built, brought up or asked. A demo that ran and showed something bad is no error but exit status 1.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    if !args.args.is_empty() {
        let status = Command::new(build_cmd::binary(Profile::Release, Tell::Work)?)
            .args(&args.args)
            .status()
            .context("running netmig-user")?;
        return Ok(status
            .code()
            .and_then(|c| u8::try_from(c).ok())
            .map_or(ExitCode::FAILURE, ExitCode::from));
    }
    prepared()?;
    let began = Instant::now();
    let step = |what: &str| println!("[{:5.1} s] {what}", began.elapsed().as_secs_f64());
    step("set-up, build of netmig-user and netmig-peer");
    let parts = Parts {
        keep: args.keep,
        ..parts("run", args.data << 20)?
    };
    step(
        "lab: hosts a, b and peer; on a the container demo: redis, iperf3, UDP echo, bulk server, loopback client",
    );
    let stage = Stage::up(&parts)?;
    step("clients in peer");
    let clients = stage.load(&Load::default().clients())?;
    thread::sleep(AROUND);
    let keys = stage.keys()?;
    let connections = stage.connections()?;
    let mut faults = Vec::new();
    let (a, b) = (stage.lab().a(), stage.lab().b());
    let mut moves = Vec::new();
    for (from, to, name) in [(a, b, "a -> b"), (b, a, "b -> a")] {
        step(&format!("move {name}"));
        let moved = migrate(from, to)?;
        let outcome = moved.outcome().to_owned();
        moves.push((name, moved));
        if outcome != "moved" {
            let reasons = moves
                .last()
                .map(|(_, moved)| moved.report["reasons"].to_string());
            faults.push(format!(
                "move {name}: outcome {outcome}: {}",
                reasons.unwrap_or_default()
            ));
            break;
        }
        faults.extend(not_only_on(
            &stage,
            if name == "a -> b" { "b" } else { "a" },
        )?);
        thread::sleep(AROUND);
    }
    step("stop the clients");
    let connections_after = stage.connections()?;
    let mut outcomes = stage.unload(clients)?;
    outcomes.push(stage.loopback()?);
    // Read when nobody else wants to be served: under load it would take longer than the moves.
    step("read back what redis holds");
    let data = stage.data();
    faults.extend(not_the_data(keys, &data));
    let same = common(&connections, &connections_after);
    if same < connections.len() {
        faults.push(format!(
            "{} of {} connections are not the same",
            connections.len() - same,
            connections.len()
        ));
    }
    faults.extend(outcomes.iter().filter_map(fault));
    if args.keep {
        let name = stage.lab().name();
        step(&format!(
            "lab {name} stays up; `cargo xtask lab --name {name} down` ends it"
        ));
    } else {
        step("lab down");
        stage.down()?;
        step("done");
    }

    table::peers(&outcomes, &moves);
    table::phases(&moves);
    if let Ok(data) = &data {
        println!(
            "data: {} keys ({keys} before), {} bytes, digest {}",
            data.keys, data.bytes, data.digest
        );
    }
    println!("connections: {same} of {} the same", connections.len());
    if let Some(path) = &args.json {
        write_json(path, &moves, &outcomes)?;
    }
    for fault in &faults {
        eprintln!("fault: {fault}");
    }
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Moves the container; if that goes wrong, shows what the agents wrote.
pub fn migrate(from: &dyn Host, to: &dyn Host) -> anyhow::Result<Moved> {
    let moved = netmig::migrate(from, to);
    if !moved.as_ref().is_ok_and(|m| m.outcome() == "moved") {
        for host in [from, to] {
            eprintln!("agent on {}:\n{}", host.name(), netmig::agent_log(host));
        }
    }
    Ok(moved?)
}

/// What a stage needs, built.
pub fn parts(lab: &str, data: u64) -> anyhow::Result<Parts> {
    let Programs {
        netmig_user,
        netmig_peer,
    } = programs()?;
    Ok(Parts {
        lab: format!("{lab}-{}", std::process::id()),
        root: root::path(),
        netmig_user: Some(netmig_user),
        netmig_peer,
        cache: root::cache().join("demo"),
        data,
        line: None,
        keep: false,
    })
}

/// As they would be shipped.
pub struct Programs {
    pub netmig_user: PathBuf,
    pub netmig_peer: PathBuf,
}

/// What a verb needs that builds netmig and moves a container between hosts.
///
/// # Errors
/// Not root, or what could not be set up.
pub fn prepared() -> anyhow::Result<()> {
    setup::require_root("a lab")?;
    setup::ready(&[Purpose::Build, Purpose::Lab], Tell::All)
}

/// Builds the programs as they would be shipped; cargo itself knows when there is nothing to do. NETMIG_USER_BIN names another netmig-user,
/// which is taken as it is.
pub fn programs() -> anyhow::Result<Programs> {
    let other = env::var_os("NETMIG_USER_BIN").map(PathBuf::from);
    let mut build = cargo::cargo("build")?;
    build.args([
        "--release",
        "--package",
        "netmig-lab",
        "--bin",
        "netmig-peer",
    ]);
    if other.is_none() {
        build.args(["--package", "netmig-user", "--bin", "netmig-user"]);
    }
    cargo::run(&mut build)?;
    Ok(Programs {
        netmig_user: other.unwrap_or_else(|| cargo::program("netmig-user", Profile::Release)),
        netmig_peer: cargo::program("netmig-peer", Profile::Release),
    })
}

/// A container that lives anywhere but on `host` alone.
fn not_only_on(stage: &Stage, host: &str) -> anyhow::Result<Option<String>> {
    let living = stage.living_on()?;
    Ok(
        (living != [host])
            .then(|| format!("the container runs on {living:?}, not on {host} alone")),
    )
}

/// What is wrong with the data, if it is not what was written.
fn not_the_data(keys: u64, found: &Result<dataset::State, Error>) -> Option<String> {
    match found {
        Ok(found) if found.keys != keys => Some(format!(
            "{keys} keys before the moves, {} after",
            found.keys
        )),
        Ok(found) if !found.intact() => {
            Some(format!("data written and data read differ: {found:?}"))
        }
        Ok(_) => None,
        Err(e) => Some(format!("data cannot be read back: {e}")),
    }
}

fn common(before: &[String], after: &[String]) -> usize {
    before.iter().filter(|c| after.contains(c)).count()
}

fn fault(outcome: &Outcome) -> Option<String> {
    let Row {
        name,
        errors,
        resets,
        corrupt,
        ..
    } = &outcome.row;
    let first = outcome.first_failure.as_deref().unwrap_or_default();
    (!outcome.clean()).then(|| {
        format!("{name}: {errors} errors, {resets} resets, {corrupt} corrupt; first: {first}")
    })
}

fn write_json(path: &Path, moves: &[(&str, Moved)], outcomes: &[Outcome]) -> anyhow::Result<()> {
    let summary = Summary {
        moves: moves.iter().map(|(_, m)| &m.report).collect(),
        peers: outcomes.iter().map(|o| &o.row).collect(),
    };
    let mut text = serde_json::to_string_pretty(&summary)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
