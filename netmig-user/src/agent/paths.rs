//! Where an agent keeps things. `/run/netmig` holds what a reboot may forget, `/var/lib/netmig` what it must not.
use netmig_core::id::MoveId;
use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

const RUN: &str = "/run/netmig";
const STATE: &str = "/var/lib/netmig";

/// The agent's socket.
pub fn socket() -> PathBuf {
    PathBuf::from(RUN).join("agent.sock")
}

/// Locked by the running agent.
pub fn lock() -> PathBuf {
    PathBuf::from(RUN).join("agent.lock")
}

/// The agent's own log.
pub fn log() -> PathBuf {
    PathBuf::from(RUN).join("agent.log")
}

/// All moves' volatile directories.
pub fn run_moves() -> PathBuf {
    PathBuf::from(RUN).join("moves")
}

/// All moves' durable directories.
pub fn state_moves() -> PathBuf {
    PathBuf::from(STATE).join("moves")
}

/// Which container is being moved by which move: one file a container, named by its id, with the move's id in it.
pub fn claims() -> PathBuf {
    PathBuf::from(RUN).join("claims")
}

/// Volatile directory of one move: hook, shims, CRIU's configuration, the runtime's output.
pub fn run(mv: MoveId) -> PathBuf {
    run_moves().join(mv.to_string())
}

/// Durable directory of one move: journal, facts, images, report.
pub fn state(mv: MoveId) -> PathBuf {
    state_moves().join(mv.to_string())
}

/// All gates' directories of pins (on a bpffs).
pub fn all_pins() -> PathBuf {
    PathBuf::from("/sys/fs/bpf/netmig")
}

/// Where the gate of one move is pinned.
pub fn pins(mv: MoveId) -> PathBuf {
    all_pins().join(mv.to_string())
}

/// Makes a directory that only root can look into.
///
/// # Errors
/// The file system's.
pub fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// This program as others can start it: where it lay when it was started. After an update the new one lies there.
///
/// # Errors
/// /proc is not there.
pub fn program() -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe
        .to_str()
        .and_then(|text| text.strip_suffix(" (deleted)"))
        .map_or_else(|| exe.clone(), PathBuf::from))
}
