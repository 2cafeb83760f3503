//! `netmig-user agent`, and `rsh`, the remote shell that rsync is given.
use anyhow::{Context, Result};
use tokio::io::{AsyncWriteExt, copy, stdin, stdout};

use super::args;
use crate::agent::{
    listen,
    local::{self, Greeting},
    resident, start, stdio,
};

/// Runs the resident agent, or pipes to it.
pub async fn run(args: args::Agent) -> Result<()> {
    match args.listen {
        Some(address) => listen::run(address, args.tls_dir).await,
        None if args.resident => resident::run().await,
        None => stdio::run().await,
    }
}

/// Hands rsync's standard input and output to the agent, which has a connection to the other host.
pub async fn rsh(args: args::Rsh) -> Result<()> {
    // rsync calls: rsh MOVE [-l user] HOST rsync --server ...
    let at = args
        .command
        .iter()
        .position(|word| word == "rsync")
        .context("the command is not rsync's own")?;
    let mut stream = start::connect().await?;
    local::write(
        &mut stream,
        &Greeting::Rsync(args.mv, args.command[at..].to_vec()),
    )
    .await?;
    let (mut from, mut to) = stream.into_split();
    let up = tokio::spawn(async move {
        copy(&mut stdin(), &mut to).await?;
        to.shutdown().await
    });
    let mut out = stdout();
    copy(&mut from, &mut out)
        .await
        .context("reading from the agent")?;
    out.flush().await?;
    // The far rsync has ended: what is still read from our side has no reader.
    up.abort();
    Ok(())
}
