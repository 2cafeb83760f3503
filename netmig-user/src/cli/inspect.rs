//! `netmig-user inspect`: sockets, links and mounts of a container, with their fate.
use anyhow::{Context, Result};
use netmig_core::socket::Table;

use super::args;
use crate::{driver::look, runtime::Mounts};

/// Prints them.
pub fn run(args: &args::Inspect) -> Result<()> {
    let (manager, name) = args.which.container().context("which container?")?;
    let found = look::look(manager, name, &Mounts::default(), &[], &[], &args.services)?;
    let question = &found.question;
    if args.json {
        let all = serde_json::json!({
            "schema": "netmig.inspect/1",
            "container": question.container,
            "network": question.network,
            "sockets": found.rows,
            "objections": found.objections,
            "warnings": found.warnings,
        });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!(
        "{} ({}), first process {}",
        question.container.name, question.container.id, question.container.init_pid
    );
    for attach in &question.attach {
        println!("link     {} on {}", attach.link, attach.parent);
    }
    for mount in &question.container.mounts {
        println!(
            "mount    {} {} {:?}",
            mount.destination.display(),
            mount.kind,
            mount.fate
        );
    }
    print!("{}", Table(&found.rows));
    for text in &found.objections {
        println!("against  {text}");
    }
    for text in &found.warnings {
        println!("note     {text}");
    }
    Ok(())
}
