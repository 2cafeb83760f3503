//! The guardian of a move: a small process that does nothing but wait. If the agent dies before the move has ended, it starts another one, which
//! takes the move up by its journal, as `netmig-user recover` would: before the grant what peers were promised is delivered, the gate opens, the
//! tasks run again.
//!
//! It has a session and a cgroup of its own, so that what ends the agent does not end it as well. With both killed the gate's programs are left
//! (netmig-ebpf/src/bin/gate/kept.rs).
use std::{
    io,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use netmig_core::id::MoveId;
use tracing::{info, warn};

use super::{
    local::{self, Greeting, Told},
    paths, resident, start,
};

/// First argument by which the binary knows that it is to be a guardian; the move follows.
pub const GUARD: &str = "guard";

/// The guardians' cgroup.
const CGROUP: &str = "/sys/fs/cgroup/netmig-guardian";

/// Pauses before the next one is started. An agent that the move itself kills is not started as fast as it dies.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(5);
/// An agent that has lived for so long did not die of being started.
const LIVED: Duration = Duration::from_secs(10);

/// Starts the guardian of a move. It lives as long as the move, whoever dies; one that dies itself is replaced.
///
/// # Errors
/// The process cannot be started.
pub fn start(mv: MoveId) -> io::Result<()> {
    let mut child = spawn(mv)?;
    std::thread::spawn(move || {
        loop {
            let ended = child.wait();
            // It ends well with its move alone.
            if ended.is_ok_and(|status| status.success()) || !paths::run(mv).exists() {
                return;
            }
            warn!(%mv, "the guardian is gone: another one takes its place");
            std::thread::sleep(PAUSE);
            child = match spawn(mv) {
                Ok(child) => child,
                Err(e) => return warn!(%mv, "nobody guards the move: {e}"),
            };
        }
    });
    Ok(())
}

fn spawn(mv: MoveId) -> io::Result<Child> {
    start::detached(&[GUARD, &mv.to_string()])?.spawn()
}

/// Guards a move until it has ended.
pub async fn run(mv: MoveId) {
    resident::own_cgroup(Path::new(CGROUP));
    let mut pause = PAUSE;
    loop {
        let begun = Instant::now();
        match follow(mv).await {
            Ok(true) => return,
            Ok(false) => warn!(%mv, "the agent is gone: another one takes the move up"),
            Err(e) => warn!(%mv, "the agent is gone, or none can be started: {e:#}"),
        }
        if begun.elapsed() >= LIVED {
            pause = PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST);
    }
}

/// Follows the move at the agent, which is started if there is none. True if the move has ended, false if the agent has.
async fn follow(mv: MoveId) -> anyhow::Result<bool> {
    let mut stream = start::connect().await?;
    local::write(&mut stream, &Greeting::Attach(mv)).await?;
    info!(%mv, "guarded");
    loop {
        match local::read(&mut stream).await? {
            Some(Told::Ended(_) | Told::Error(_)) => return Ok(true),
            Some(_) => {}
            None => return Ok(false),
        }
    }
}
