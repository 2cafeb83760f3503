//! `netmig-user handoff`: starts a program that can hand itself over, or lists them; and the helper of a move's engine.
use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::{args, called};
use crate::{
    agent::{hook, local::Greeting, start},
    engine::handoff::{load, programs, save},
};

/// Becomes the program, once an agent runs that it can register with; or lists.
pub async fn run(args: &args::Handoff) -> Result<ExitCode> {
    let Some((program, arguments)) = args.command.split_first() else {
        return list(args.json).map(|()| ExitCode::SUCCESS);
    };
    drop(start::connect().await?);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env(programs::VARIABLE, programs::SOCKET);
    if let Some(netns) = &args.netns {
        let path = named(netns);
        let namespace = File::open(&path)
            .with_context(|| format!("opening network namespace {}", path.display()))?;
        // The thread that enters it is the one that becomes the program.
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering network namespace {}", path.display()))?;
    }
    Err(command.exec()).with_context(|| format!("starting {program}"))
}

fn list(json: bool) -> Result<()> {
    let all = programs::all();
    if json {
        let rows: Vec<_> = all
            .iter()
            .map(|p| serde_json::json!({"pid": p.pid(), "program": p.who}))
            .collect();
        let list = serde_json::json!({"schema": "netmig.handoff/1", "programs": rows});
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(());
    }
    if all.is_empty() {
        println!("no program has registered at {}", programs::SOCKET);
    }
    for program in all {
        println!(
            "{} {} pid {}: {}",
            program.who.name,
            program.who.version,
            program.pid(),
            program.who.command.join(" ")
        );
    }
    Ok(())
}

fn named(netns: &Path) -> PathBuf {
    if netns.components().count() > 1 {
        netns.to_owned()
    } else {
        Path::new("/run/netns").join(netns)
    }
}

/// The engine's part in a move.
#[must_use]
pub fn helper(args: &args::HandoffEngine) -> ExitCode {
    let Some(mv) = hook::move_of(&args.dir) else {
        eprintln!("{} belongs to no move", args.dir.display());
        return ExitCode::FAILURE;
    };
    let ask = |call| called::ask(Greeting::Hook(mv, call));
    let done = match args.verb.as_str() {
        "save" => save::run(&args.dir, &ask),
        _ => load::run(&args.dir, &ask),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{:#}", anyhow::Error::from(e));
            ExitCode::FAILURE
        }
    }
}
