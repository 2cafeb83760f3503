//! `netmig-user migrate` and `plan`: ask the agent for a move, follow it, show its report.
use std::{env, fs, process::ExitCode};

use anyhow::{Context, Result};
use netmig_core::report::{Outcome, Report};

use super::{args, follow};
use crate::{
    agent::{
        local::{self, Drain, Greeting, MoveSpec},
        start,
    },
    wire::{destination::Scheme, tls},
};

/// What ssh may need of the operator's environment.
const FOR_SSH: [&str; 6] = [
    "HOME",
    "PATH",
    "USER",
    "LOGNAME",
    "SSH_AUTH_SOCK",
    "KRB5CCNAME",
];

/// Moves, or follows a move.
pub async fn run(args: args::Migrate) -> Result<ExitCode> {
    let greeting = match args.attach {
        Some(mv) => Greeting::Attach(mv),
        None => Greeting::Migrate(Box::new(spec(&args)?)),
    };
    let mut stream = start::connect().await?;
    local::write(&mut stream, &greeting)
        .await
        .context("asking the agent")?;
    show(
        follow::follow(stream, args.how.json).await?,
        args.how.json,
        args.report.as_deref(),
    )
}

/// Plans only.
pub async fn plan(args: args::Plan) -> Result<ExitCode> {
    let (manager, name) = args.which.container().context("which container?")?;
    let spec = MoveSpec {
        dry_run: true,
        ..base(manager, name, &args.how)?
    };
    let mut stream = start::connect().await?;
    local::write(&mut stream, &Greeting::Plan(Box::new(spec)))
        .await
        .context("asking the agent")?;
    show(
        follow::follow(stream, args.how.json).await?,
        args.how.json,
        None,
    )
}

fn spec(args: &args::Migrate) -> Result<MoveSpec> {
    let (manager, name) = args::named(&args.podman, &args.runc, &args.crun, &args.handoff)
        .context("which container?")?;
    Ok(MoveSpec {
        drain: args.drain,
        drain_limit_ms: args.drain_limit,
        cold: args.cold,
        lease_ms: args.lease,
        hold_limit: args.hold_limit,
        barrier_limit_ms: args.barrier_limit,
        remove_source: args.source == "remove",
        dry_run: args.dry_run,
        ..base(manager, name, &args.how)?
    })
}

fn base(
    manager: netmig_core::container::Manager,
    name: &str,
    how: &args::Move,
) -> Result<MoveSpec> {
    let to = how.to.as_ref().context(
        "no target: --to ssh://[USER@]HOST[:PORT] or tls://HOST:PORT says where the container goes",
    )?;
    // The agent may have been started elsewhere.
    let credentials = std::path::absolute(&how.tls_dir).context("finding this directory")?;
    if to.scheme == Scheme::Tls {
        tls::check_caller(&credentials)?;
    }
    let remote_command: Vec<String> = how
        .remote_command
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    if remote_command.is_empty() {
        anyhow::bail!("--remote-command is empty");
    }
    Ok(MoveSpec {
        manager,
        name: name.to_owned(),
        to: to.to_string(),
        remote_command,
        mounts: how.mounts.clone(),
        services: how.services.clone(),
        allow: how.allow.clone(),
        map_links: how.map_links.clone(),
        drain: Drain::default(),
        drain_limit_ms: 200,
        cold: false,
        max_blackout_ms: how.max_blackout,
        lease_ms: 10_000,
        hold_limit: 64 << 20,
        barrier_limit_ms: 20,
        remove_source: false,
        dry_run: false,
        env: FOR_SSH
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?)))
            .collect(),
        credentials,
    })
}

fn show(
    followed: follow::Followed,
    json: bool,
    file: Option<&std::path::Path>,
) -> Result<ExitCode> {
    let end = match followed {
        follow::Followed::Ended(end) => end,
        follow::Followed::Left(why) => {
            eprintln!("netmig-user: {why}");
            return Ok(ExitCode::from(4));
        }
    };
    let report: Report = serde_json::from_str(&end.report).context("reading the agent's report")?;
    if let Some(file) = file {
        fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(match report.outcome {
        Outcome::Moved | Outcome::Planned => ExitCode::SUCCESS,
        Outcome::Kept => ExitCode::FAILURE,
        Outcome::Refused => ExitCode::from(3),
    })
}
