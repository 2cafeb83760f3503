//! The container at the target: the same record, with storage, without processes.
use std::path::{Path, PathBuf};

use netmig_core::container::{Container, Manager, Mount, MountFate, Recipe, Resurrector};

use super::{image, inspect, network};
use crate::{
    engine::criu::{self, Kit},
    runtime::{Accepted, CreatedContainer, Error, make_bind_sources, remove, tool},
};

/// What stands against making `container` here, and what is to be known.
pub fn accepts(container: &Container) -> Result<Accepted, Error> {
    let mut objections = Vec::new();
    let Recipe::Podman {
        image_id,
        image_name,
        networks,
        oci_runtime,
        ..
    } = &container.recipe
    else {
        return Err(no_recipe());
    };
    if inspect::record(&container.name)?.is_some() {
        let name = &container.name;
        objections.push(format!("the target has a container named {name} already: rename or remove it there (podman rename, podman rm)"));
    }
    for network in networks {
        let Some(here) = network::record(&network.name)? else {
            objections.push(format!(
                "the target's podman has no network {}: create it there as it is on the source",
                network.name
            ));
            continue;
        };
        if here.network_interface != network.parent {
            objections.push(format!(
                "network {} is on {} at the target and on {} at the source: give it the same interface name",
                network.name, here.network_interface, network.parent
            ));
        }
    }
    for mount in container
        .mounts
        .iter()
        .filter(|m| m.fate == MountFate::Shared)
    {
        if let Some(source) = mount.source.as_deref().filter(|source| !source.exists()) {
            objections.push(format!(
                "{} is said to be shared, but the target has no {}",
                mount.destination.display(),
                source.display()
            ));
        }
    }
    let mut warnings = Vec::new();
    for volume in container.mounts.iter().filter_map(|m| m.volume.as_deref()) {
        if volume_exists(volume)? && !anonymous(volume) {
            warnings.push(format!(
                "the target has a volume {volume} already: its content becomes the source's"
            ));
        }
    }
    if oci_runtime != "runc" && oci_runtime != "crun" {
        objections.push(criu::Error::UnknownOci(oci_runtime.clone()).to_string());
    }
    Ok(Accepted {
        objections,
        warnings,
        lacks_image: image::local_name(image_id, image_name)?.is_none(),
    })
}

/// Makes it: `podman create`, `start` (which the runtime shim turns into nothing, so that the record has a start time and a configuration) and `stop`.
pub fn create(container: &Container, kit: &Kit) -> Result<CreatedContainer, Error> {
    let Recipe::Podman {
        args,
        command,
        image_id,
        image_name,
        oci_runtime,
        cgroups_path,
        ..
    } = &container.recipe
    else {
        return Err(no_recipe());
    };
    let image = image::local_name(image_id, image_name)?.ok_or_else(|| {
        Error::Refused(format!(
            "the image {image_name} ({image_id}) is not on this host"
        ))
    })?;
    let mut made_volumes = Vec::new();
    for volume in container.mounts.iter().filter_map(|m| m.volume.as_deref()) {
        if !volume_exists(volume)? {
            made_volumes.push(volume.to_owned());
        }
    }
    let made_dirs = make_bind_sources(container)?;
    let mut created = CreatedContainer {
        manager: Manager::Podman,
        id: String::new(),
        name: container.name.clone(),
        static_dir: None,
        upper: None,
        rootfs: None,
        log: None,
        mounts: Vec::new(),
        cgroup_from: None,
        cgroup_to: None,
        netns: None,
        made_volumes,
        made_dirs,
    };
    let env = kit.podman_env();
    let mut argv = vec!["podman", "--runtime", oci_runtime, "create", "--pull=never"];
    argv.extend(args.iter().map(String::as_str));
    argv.extend(["--", image.as_str()]);
    argv.extend(command.iter().map(String::as_str));
    let filled = tool::run_with(&argv, &env)
        .map_err(Error::from)
        .and_then(|id| {
            id.trim().clone_into(&mut created.id);
            tool::run_with(&["podman", "start", &created.id], &env)?;
            if container.resurrectors.contains(&Resurrector::AutoRemove) {
                // `stop` would remove it.
                tool::run_with(&["podman", "kill", &created.id], &env)?;
                tool::run_with(
                    &["podman", "wait", "--condition", "stopped", &created.id],
                    &env,
                )?;
                tool::run_with(&["podman", "container", "cleanup", &created.id], &env)?;
            } else {
                tool::run_with(&["podman", "stop", "--time", "0", &created.id], &env)?;
            }
            fill(&mut created, container, cgroups_path.as_deref())
        });
    match filled {
        Ok(()) => Ok(created),
        Err(e) => {
            for second in discard(&created) {
                tracing::warn!("removing what was made of {}: {second}", created.name);
            }
            Err(e)
        }
    }
}

/// Takes over what the record says of places on this host.
fn fill(
    created: &mut CreatedContainer,
    container: &Container,
    source_cgroups: Option<&str>,
) -> Result<(), Error> {
    let record = inspect::record(&created.id)?.ok_or_else(|| {
        Error::Refused(format!("podman lost {} just after creating it", created.id))
    })?;
    created.upper = record.graph_driver.data.get("UpperDir").map(PathBuf::from);
    if created.upper.is_none() {
        let driver = record.driver;
        return Err(Error::Refused(format!(
            "podman's storage driver here is {driver}: set driver=\"overlay\" in the target's storage.conf"
        )));
    }
    created.log = Some(record.host_config.log_config.path.clone())
        .filter(|path| !path.as_os_str().is_empty());
    created.netns = record
        .host_config
        .network_mode
        .strip_prefix("ns:")
        .map(PathBuf::from);
    let path = record.static_dir.join("config.json");
    let config = std::fs::read_to_string(&path).map_err(|e| Error::file("reading", &path, e))?;
    created.cgroup_to = inspect::cgroups_path(&config)
        .as_deref()
        .and_then(cgroup_of);
    created.cgroup_from = source_cgroups.and_then(cgroup_of);
    created.static_dir = Some(record.static_dir);
    let here = |mount: &Mount| {
        let found = record
            .mounts
            .iter()
            .find(|m| m.destination == mount.destination);
        Mount {
            source: found
                .map(|m| m.source.clone())
                .filter(|s| !s.as_os_str().is_empty()),
            volume: found
                .filter(|m| m.kind == "volume")
                .map(|m| m.name.clone())
                .or_else(|| mount.volume.clone()),
            ..mount.clone()
        }
    };
    created.mounts = container.mounts.iter().map(here).collect();
    Ok(())
}

/// Removes the record, and the volumes and directories that were not there before.
pub fn discard(created: &CreatedContainer) -> Vec<Error> {
    let mut errors: Vec<Error> = created.kill_tasks().err().into_iter().collect();
    if !created.id.is_empty() {
        // --volumes: those without a name, which belong to it alone.
        let gone = tool::run(&[
            "podman",
            "rm",
            "--force",
            "--time",
            "0",
            "--volumes",
            "--ignore",
            &created.id,
        ]);
        errors.extend(gone.err().map(Error::from));
    }
    for volume in created
        .made_volumes
        .iter()
        .filter(|volume| !anonymous(volume))
    {
        match volume_exists(volume) {
            Ok(true) => errors.extend(
                tool::run(&["podman", "volume", "rm", "--", volume])
                    .err()
                    .map(Error::from),
            ),
            Ok(false) => {}
            Err(e) => errors.push(e),
        }
    }
    for dir in &created.made_dirs {
        errors.extend(remove(dir).err());
    }
    errors
}

/// After the restore: podman has taken away its own part of the checkpoint, see that nothing of it stays.
pub fn settle(created: &CreatedContainer) -> Vec<Error> {
    let Some(dir) = &created.static_dir else {
        return Vec::new();
    };
    ["checkpoint", criu::SHM_TAR]
        .iter()
        .filter_map(|name| remove(&dir.join(name)).err())
        .collect()
}

/// The cgroup that an OCI `cgroupsPath` means: a path as it is, or systemd's `slice:prefix:name`.
pub fn cgroup_of(cgroups_path: &str) -> Option<String> {
    let Some((slice, unit)) = cgroups_path.split_once(':') else {
        return Some(cgroups_path.to_owned()).filter(|path| path.starts_with('/'));
    };
    let (prefix, name) = unit.split_once(':')?;
    let scope = match (prefix, name) {
        (_, name) if name.ends_with(".slice") => name.to_owned(),
        ("", name) => format!("{name}.scope"),
        (prefix, name) => format!("{prefix}-{name}.scope"),
    };
    // user-1000.slice lies in user.slice (systemd.slice(5)).
    let mut path = String::new();
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    let ends = stem
        .match_indices('-')
        .map(|(at, _)| at)
        .chain([stem.len()])
        .filter(|&end| end > 0);
    for end in ends {
        path.push_str(&format!("/{}.slice", &stem[..end]));
    }
    Some(format!("{path}/{scope}"))
}

fn volume_exists(name: &str) -> Result<bool, Error> {
    match tool::run(&[
        "podman",
        "volume",
        "inspect",
        "--format",
        "{{.Name}}",
        "--",
        name,
    ]) {
        Ok(_) => Ok(true),
        Err(tool::Error::Failed { stderr, .. })
            if stderr.contains("no such volume") || stderr.contains("no volume with name") =>
        {
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

/// A volume that podman named by itself: 64 hex digits.
fn anonymous(volume: &str) -> bool {
    volume.len() == 64 && volume.bytes().all(|b| b.is_ascii_hexdigit())
}

fn no_recipe() -> Error {
    Error::Broken {
        path: Path::new("question").to_owned(),
        why: "a podman container comes without podman's recipe".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_path_in_both_notations() {
        assert_eq!(
            cgroup_of("/libpod_parent/libpod-1").as_deref(),
            Some("/libpod_parent/libpod-1")
        );
        assert_eq!(
            cgroup_of("machine.slice:libpod:1").as_deref(),
            Some("/machine.slice/libpod-1.scope")
        );
        assert_eq!(
            cgroup_of("user-1000.slice:libpod:1").as_deref(),
            Some("/user.slice/user-1000.slice/libpod-1.scope")
        );
        assert_eq!(cgroup_of(":libpod:1").as_deref(), Some("/libpod-1.scope"));
        assert_eq!(cgroup_of("relative"), None);
    }

    #[test]
    fn volumes_without_a_name() {
        assert!(anonymous(&"0a".repeat(32)));
        assert!(!anonymous("data"));
    }
}
