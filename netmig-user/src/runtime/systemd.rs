//! A systemd unit that supervises a container, kept from starting it again.
//!
//! By drop-ins: they hold for units in files and for those that generators (quadlet) make, where `systemctl mask` refuses the former.
use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Error, remove, tool};

const NAME: &str = "90-netmig.conf";

/// Whether systemd runs this host (sd_booted(3)).
#[must_use]
pub fn booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Until the next boot or [`rearm`]: the unit's end does not start it again.
///
/// # Errors
/// The drop-in cannot be written, or systemd does not reload.
pub fn disarm(unit: &str) -> Result<(), Error> {
    put(&drop_in("/run", unit), "[Service]\nRestart=no\n")?;
    reload()
}

/// Undoes [`disarm`].
///
/// # Errors
/// As there.
pub fn rearm(unit: &str) -> Result<(), Error> {
    remove(&drop_in("/run", unit))?;
    reload()
}

/// From now on: the unit starts no more, until the drop-in is removed. Gives its path.
///
/// # Errors
/// As [`disarm`].
pub fn retire(unit: &str) -> Result<PathBuf, Error> {
    let path = drop_in("/etc", unit);
    put(
        &path,
        &format!(
            "# The container has moved away. Remove this file to let the unit start again.\n[Unit]\nConditionPathExists=!{}\n",
            path.display()
        ),
    )?;
    remove(&drop_in("/run", unit))?;
    reload()?;
    Ok(path)
}

fn drop_in(root: &str, unit: &str) -> PathBuf {
    Path::new(root)
        .join("systemd/system")
        .join(format!("{unit}.d"))
        .join(NAME)
}

fn put(path: &Path, text: &str) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(|e| Error::file("creating", dir, e))?;
    fs::write(path, text).map_err(|e| Error::file("writing", path, e))
}

fn reload() -> Result<(), Error> {
    tool::run(&["systemctl", "daemon-reload"])?;
    Ok(())
}
