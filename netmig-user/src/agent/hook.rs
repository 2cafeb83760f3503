//! `hook` and the netavark shim: tiny clients that hand their moment to the agent and wait for its word, as long as it takes.
use std::time::Duration;

use netmig_core::id::MoveId;
use serde::de::DeserializeOwned;

use super::{
    local::{self, Greeting},
    start,
};

/// Pause before the agent is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// Asks the agent; if it dies meanwhile, asks the next one again.
pub async fn ask<R: DeserializeOwned>(greeting: &Greeting) -> R {
    loop {
        match once(greeting).await {
            Ok(Some(reply)) => return reply,
            // The agent died, or none can be started right now: the tasks are stopped and nothing else can be decided here.
            Ok(None) => {}
            Err(e) => eprintln!("netmig: {e:#}; trying again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn once<R: DeserializeOwned>(greeting: &Greeting) -> anyhow::Result<Option<R>> {
    let mut stream = start::connect().await?;
    local::write(&mut stream, greeting).await?;
    Ok(local::read(&mut stream).await?)
}

/// The move that a path under `/run/netmig/moves/ID/` belongs to.
pub fn move_of(path: &std::path::Path) -> Option<MoveId> {
    path.ancestors()
        .filter_map(|dir| dir.file_name()?.to_str()?.parse().ok())
        .next()
}
