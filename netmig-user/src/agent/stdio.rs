//! `agent --stdio`: the far end of ssh, a pipe to the resident agent and nothing more.
use std::io;

use tokio::io::{AsyncWriteExt, copy, stdin, stdout};

use super::{
    local::{self, Greeting},
    start,
};

/// Joins standard input and output to the resident agent until either end closes.
///
/// # Errors
/// The agent cannot be reached, or the pipe breaks.
pub async fn run() -> anyhow::Result<()> {
    let mut stream = start::connect().await?;
    local::write(&mut stream, &Greeting::Wire).await?;
    let (mut from_agent, mut to_agent) = stream.into_split();
    let up = async {
        copy(&mut stdin(), &mut to_agent).await?;
        to_agent.shutdown().await
    };
    let down = async {
        let mut out = stdout();
        copy(&mut from_agent, &mut out).await?;
        out.flush().await
    };
    // The source's end of input ends the pipe as well: a blocked read of stdin would keep the process.
    tokio::pin!(up, down);
    let ended: io::Result<()> = tokio::select! {
        r = &mut down => r,
        r = &mut up => match r { Ok(()) => down.await, Err(e) => Err(e) },
    };
    Ok(ended?)
}
