//! The container at the source: kept from starting again, before the move for its time, after it for good.
use std::path::Path;

use netmig_core::container::{Container, Recipe, Resurrector, SourcePolicy};

use super::{inspect, unstartable};
use crate::{
    engine::criu,
    runtime::{AfterRelease, Disarmed, Error, remove, systemd, tool},
};

/// Switches off what could start the container again.
pub fn disarm(container: &Container) -> Result<Disarmed, Error> {
    let mut disarmed = Disarmed {
        id: container.id.clone(),
        ..Disarmed::default()
    };
    for resurrector in &container.resurrectors {
        let done = match resurrector {
            Resurrector::RestartPolicy(policy) => {
                disarmed.restart = Some(policy.clone());
                update(&container.id, "--restart=no")
            }
            Resurrector::HealthAction(action) => {
                match update(&container.id, "--health-on-failure=none") {
                    Ok(()) => {
                        disarmed.health = Some(action.clone());
                        Ok(())
                    }
                    // Before 5.4 it cannot be changed. The checkpoint's lock keeps health checks waiting, and afterwards the container is not running.
                    Err(Error::Tool(tool::Error::Failed { stderr, .. }))
                        if stderr.contains("unknown flag") =>
                    {
                        disarmed.warnings.push(format!("this podman cannot switch off the health check's action ({action}) for the time of the move"));
                        Ok(())
                    }
                    Err(e) => Err(e),
                }
            }
            Resurrector::SystemdUnit(unit) if systemd::booted() => {
                disarmed.unit = Some(unit.clone());
                disarmed.warnings.push(format!(
                    "the unit {unit} that supervises the container is not set up at the target"
                ));
                systemd::disarm(unit)
            }
            Resurrector::SystemdUnit(unit) => {
                disarmed.warnings.push(format!("the container names a unit {unit} as its supervisor, but systemd does not run here"));
                Ok(())
            }
            Resurrector::AutoRemove => {
                disarmed.warnings.push("the container was started with --rm: podman removes its record and its volumes without a name at the source".into());
                Ok(())
            }
        };
        if let Err(e) = done {
            for second in rearm(&disarmed) {
                tracing::warn!("re-arming {}: {second}", container.name);
            }
            return Err(e);
        }
    }
    Ok(disarmed)
}

/// Undoes [`disarm`].
pub fn rearm(disarmed: &Disarmed) -> Vec<Error> {
    let mut errors = Vec::new();
    if let Some(policy) = &disarmed.restart {
        errors.extend(update(&disarmed.id, &format!("--restart={policy}")).err());
    }
    if let Some(action) = &disarmed.health {
        errors.extend(update(&disarmed.id, &format!("--health-on-failure={action}")).err());
    }
    if let Some(unit) = &disarmed.unit {
        errors.extend(systemd::rearm(unit).err());
    }
    errors
}

/// The container cannot be started, from the moment of its end on.
pub fn bar(container: &Container, target: &str) -> Result<(), Error> {
    match static_dir(container).filter(|dir| dir.exists()) {
        Some(dir) => unstartable::for_now(dir, target),
        None => Ok(()),
    }
}

/// Keeps the record, unable to start, or removes it.
pub fn after_release(
    container: &Container,
    policy: SourcePolicy,
    target: &str,
) -> Result<AfterRelease, Error> {
    let mut after = AfterRelease::default();
    for resurrector in &container.resurrectors {
        let Resurrector::SystemdUnit(unit) = resurrector else {
            continue;
        };
        if systemd::booted() {
            let path = systemd::retire(unit)?;
            after.warnings.push(format!(
                "{unit} starts no more here; remove {} to change that",
                path.display()
            ));
        }
    }
    if static_dir(container).is_some_and(Path::exists) {
        // podman must have noted the container's end first; for one that it has removed meanwhile this is no error.
        tool::run(&["podman", "container", "cleanup", &container.id])?;
    }
    if let Some(dir) = static_dir(container).filter(|dir| dir.exists()) {
        unstartable::for_good(dir, target)?;
    }
    let Some(record) = inspect::record(&container.id)? else {
        after
            .warnings
            .push("podman has removed the record by itself (--rm, or the unit's ExecStop)".into());
        return Ok(after);
    };
    match policy {
        SourcePolicy::Remove => {
            tool::run(&["podman", "rm", "--ignore", &container.id])?;
        }
        SourcePolicy::Keep => {
            if record.host_config.restart_policy.argument() != "no" {
                update(&container.id, "--restart=no")?;
            }
            for network in record.network_settings.networks.keys() {
                if let Err(e) = tool::run(&[
                    "podman",
                    "network",
                    "disconnect",
                    "--force",
                    network,
                    &container.id,
                ]) {
                    after.warnings.push(format!(
                        "the kept record still names network {network}: {e}"
                    ));
                }
            }
            let name = kept_name(container);
            if record.name != name {
                tool::run(&["podman", "rename", &container.id, &name])?;
            }
            after.kept_as = Some(name);
            after
                .warnings
                .extend(leftovers(container).iter().map(ToString::to_string));
        }
    }
    Ok(after)
}

/// What podman left of a dump that was cancelled.
pub fn after_abort(container: &Container) -> Vec<Error> {
    leftovers(container)
}

fn static_dir(container: &Container) -> Option<&Path> {
    match &container.recipe {
        Recipe::Podman { static_dir, .. } => Some(static_dir),
        Recipe::Bundle { .. } | Recipe::Bare { .. } => None,
    }
}

fn leftovers(container: &Container) -> Vec<Error> {
    let Some(static_dir) = static_dir(container) else {
        return Vec::new();
    };
    [
        "checkpoint",
        criu::SHM_TAR,
        "network.status",
        "dump.log",
        "config.dump",
        "spec.dump",
    ]
    .iter()
    .filter_map(|name| remove(&static_dir.join(name)).err())
    .collect()
}

/// `NAME-netmig-moved-SHORTID`.
fn kept_name(container: &Container) -> String {
    format!(
        "{}-netmig-moved-{}",
        container.name,
        container.id.get(..12).unwrap_or(&container.id)
    )
}

fn update(id: &str, option: &str) -> Result<(), Error> {
    tool::run(&["podman", "update", option, id])?;
    Ok(())
}
