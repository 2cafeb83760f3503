//! What stays on disk of moves that are over.
use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use netmig_core::id::MoveId;
use tracing::{info, warn};

use super::paths;

/// The journal, facts and report of a closed move are kept for so long, for people; both sides have said their last word.
pub const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Removes what is volatile of a move that is over, or was never begun: the agent that should have done it died before. What is durable
/// goes as well once it is older than [`KEPT`].
pub fn sweep(mv: MoveId) {
    let dir = paths::run(mv);
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            warn!(%mv, "removing {}: {e}", dir.display());
        }
        _ => {}
    }
    let dir = paths::state(mv);
    match forget(&dir, SystemTime::now()) {
        Ok(true) => info!(%mv, "closed for more than {} days, forgotten", KEPT.as_secs() / 86_400),
        Ok(false) => {}
        Err(e) => warn!(%mv, "removing {}: {e}", dir.display()),
    }
}

/// Removes the directory if its journal (where it has none, itself) was last written longer than [`KEPT`] before `now`; says whether it did.
fn forget(dir: &Path, now: SystemTime) -> io::Result<bool> {
    let written = fs::metadata(dir.join("journal"))
        .or_else(|_| fs::metadata(dir))?
        .modified()?;
    let old = now.duration_since(written).is_ok_and(|age| age > KEPT);
    if old {
        fs::remove_dir_all(dir)?;
    }
    Ok(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_move_is_forgotten_after_its_time_and_not_before() {
        let top = tempfile::tempdir().expect("a directory");
        let dir = top.path().join("move");
        fs::create_dir(&dir).expect("made");
        for file in ["journal", "facts.json", "report.json"] {
            fs::write(dir.join(file), "x").expect("written");
        }
        let written = fs::metadata(dir.join("journal"))
            .and_then(|m| m.modified())
            .expect("a time");
        let before = written - Duration::from_secs(60);
        assert!(
            !forget(&dir, before).expect("looked"),
            "the clock was set back"
        );
        assert!(!forget(&dir, written + KEPT).expect("looked"));
        assert!(dir.join("report.json").exists());
        let after = written + KEPT + Duration::from_secs(1);
        assert!(forget(&dir, after).expect("removed"));
        assert!(!dir.exists());
        assert!(forget(&dir, after).is_err(), "nothing there to look at");
    }
}
