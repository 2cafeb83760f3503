//! `netmig-user recover`: the moves that wait on this host, and the operator's decision about one.
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::args;
use crate::agent::{
    local::{self, Decision, Greeting, Known},
    start,
};

/// Lists or decides.
pub async fn run(args: args::Recover) -> Result<ExitCode> {
    let mut stream = start::connect().await?;
    let decision = match (args.take_back, args.release, args.give_up) {
        (true, _, _) => Some(Decision::TakeBack),
        (_, true, _) => Some(Decision::Release),
        (_, _, true) => Some(Decision::GiveUp),
        _ => None,
    };
    if let (Some(mv), Some(decision)) = (args.mv, decision) {
        local::write(&mut stream, &Greeting::Recover(mv, decision)).await?;
        let answer: Result<String, String> = local::read(&mut stream)
            .await?
            .context("the agent gave no answer")?;
        return match answer {
            Ok(text) => {
                println!("{text}");
                Ok(ExitCode::SUCCESS)
            }
            Err(text) => bail!(text),
        };
    }
    local::write(&mut stream, &Greeting::List).await?;
    let mut known: Vec<Known> = local::read(&mut stream)
        .await?
        .context("the agent gave no answer")?;
    if let Some(mv) = args.mv {
        known.retain(|k| k.id == mv.to_string());
        if known.is_empty() {
            bail!("this host has no move {mv} under way");
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&known)?);
    } else if known.is_empty() {
        println!("no move is under way on this host");
    }
    if !args.json {
        for k in known {
            println!("{}  {:6}  {}  {}", k.id, k.side, k.container, k.state);
        }
    }
    Ok(ExitCode::SUCCESS)
}
