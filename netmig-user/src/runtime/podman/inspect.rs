//! A podman container as it runs, and what stands against moving it.
use std::{
    fs,
    path::{Path, PathBuf},
};

use netmig_core::container::{
    Container, Manager, Mount, MountFate, PodmanNetwork, Recipe, Resurrector,
};
use nix::ifaddrs::getifaddrs;

use super::{
    args, image, network, objections,
    record::{NetworkRecord, Record},
};
use crate::{
    engine::cgroup,
    runtime::{Error, Inspected, Mounts, tool},
    sys::netns,
};

/// Label that `podman generate systemd` and quadlet put on a container.
const UNIT_LABEL: &str = "PODMAN_SYSTEMD_UNIT";

/// The record of a container by name or id; none if podman knows none.
pub fn record(name: &str) -> Result<Option<Record>, Error> {
    let argv = ["podman", "container", "inspect", "--", name];
    match tool::json::<Vec<Record>>(&argv) {
        Ok(records) => Ok(records.into_iter().next()),
        Err(tool::Error::Failed { stderr, .. })
            if stderr.contains("no such container")
                || stderr.contains("no container with name") =>
        {
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Looks at a running container.
pub fn inspect(name: &str, mounts: &Mounts) -> Result<Inspected, Error> {
    let record = record(name)?.ok_or_else(|| Error::NoSuchContainer {
        manager: "podman",
        name: name.to_owned(),
        hint: "; a container of another user (rootless podman) is not seen by root and cannot be moved: run it as root".into(),
    })?;
    let mut networks = Vec::new();
    for name in record.network_settings.networks.keys() {
        networks.extend(network::record(name)?);
    }
    let path = &record.oci_config_path;
    let config = fs::read_to_string(path).map_err(|e| Error::file("reading", path, e))?;
    let interfaces = if record.state.pid > 0 {
        interfaces(record.state.pid)?
    } else {
        Vec::new()
    };
    let mut found = assemble(&record, &networks, &interfaces, &config, mounts)?;
    if !record.image.is_empty() {
        found.image_bytes = image::size(&record.image)?;
    }
    Ok(found)
}

/// Names and MACs of the interfaces that a process sees. podman's record has no names.
fn interfaces(pid: i32) -> Result<Vec<(String, String)>, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let found = netns::within(&path, || {
        let found = getifaddrs()?.filter_map(|interface| {
            let mac = interface.address?.as_link_addr()?.addr()?;
            Some((
                interface.interface_name,
                mac.map(|byte| format!("{byte:02x}")).join(":"),
            ))
        });
        Ok::<_, std::io::Error>(found.collect())
    });
    found.map_err(|e| Error::file("listing the interfaces of", &path, e))
}

/// The container of a record. `config` is the text of its OCI config.json.
fn assemble(
    record: &Record,
    networks: &[NetworkRecord],
    interfaces: &[(String, String)],
    config: &str,
    mounts: &Mounts,
) -> Result<Inspected, Error> {
    if !record.state.running || record.state.paused || record.state.pid == 0 {
        return Err(Error::NotRunning {
            name: record.name.clone(),
            state: record.state.status.clone(),
        });
    }
    let mut objections = objections::of(record);
    let mut warnings = Vec::new();
    for network in networks {
        let (against, about) = network::findings(network);
        objections.extend(against);
        warnings.extend(about);
    }
    let networks: Vec<PodmanNetwork> = networks
        .iter()
        .map(|network| network::endpoint(record, network, interfaces))
        .collect();
    let all_mounts = container_mounts(record, mounts);
    objections.extend(mounts.unknown(&all_mounts));
    for mount in all_mounts.iter().filter(|m| m.fate == MountFate::Refuse) {
        let at = mount.destination.display();
        objections.push(format!(
            "{at} is a {} mount of {}: say whether it is to be copied (--mount {at}=copy) or is the same storage on both hosts (--mount {at}=shared)",
            mount.kind,
            mount.source.as_deref().unwrap_or(Path::new("the host")).display(),
        ));
    }
    if !record.config.secrets.is_empty() {
        warnings.push(
            "the container uses secrets: ones of the same names must exist at the target".into(),
        );
    }
    if record.config.healthcheck.is_some() {
        warnings.push("the container has a health check: at the target podman runs it again after the container's next start".into());
    }
    let parsed = args::parse(&record.config.create_command);
    if parsed.is_none() {
        objections.push(
            "podman has no command line for it (it was created over the API or by play kube), so the target cannot create it again: \
             create it with `podman run` or `podman create`"
                .into(),
        );
    }
    let restart = record.host_config.restart_policy.argument();
    let args = parsed
        .as_ref()
        .map(|parsed| args::again(parsed, &args_record(record, &restart, &networks)))
        .unwrap_or_default();
    let (command, image_name) = parsed.map(|p| (p.command, p.image)).unwrap_or_default();
    let container = Container {
        manager: Manager::Podman,
        id: record.id.clone(),
        name: record.name.clone(),
        init_pid: record.state.pid,
        netns: Some(record.network_settings.sandbox_key.clone())
            .filter(|path| !path.as_os_str().is_empty())
            .or_else(|| {
                record
                    .host_config
                    .network_mode
                    .strip_prefix("ns:")
                    .map(PathBuf::from)
            }),
        cgroup: cgroup::of(record.state.pid).ok(),
        upper: record.graph_driver.data.get("UpperDir").map(PathBuf::from),
        resurrectors: resurrectors(record, &restart),
        recipe: Recipe::Podman {
            args,
            command,
            image_id: record.image.clone(),
            image_name: if record.image_name.is_empty() {
                image_name
            } else {
                record.image_name.clone()
            },
            oci_runtime: record.oci_runtime.clone(),
            networks,
            static_dir: record.static_dir.clone(),
            cgroups_path: cgroups_path(config),
            shm: shm(config),
            log: Some(record.host_config.log_config.path.clone())
                .filter(|path| !path.as_os_str().is_empty()),
        },
        mounts: all_mounts,
    };
    Ok(Inspected {
        container,
        objections,
        warnings,
        image_bytes: 0,
    })
}

/// `linux.cgroupsPath` of a config.json.
pub fn cgroups_path(config: &str) -> Option<String> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    Some(config.pointer("/linux/cgroupsPath")?.as_str()?.to_owned())
}

/// What the config.json binds to /dev/shm, if it is podman's own directory of the container (and not the host's, or a plain tmpfs that CRIU carries).
fn shm(config: &str) -> Option<PathBuf> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    let mounts = config.get("mounts")?.as_array()?;
    let shm = mounts
        .iter()
        .rfind(|mount| mount.get("destination").and_then(|d| d.as_str()) == Some("/dev/shm"))?;
    let source = PathBuf::from(shm.get("source")?.as_str()?);
    (shm.get("type")?.as_str()? == "bind" && source.ends_with("userdata/shm")).then_some(source)
}

fn args_record<'a>(
    record: &'a Record,
    restart: &'a str,
    networks: &[PodmanNetwork],
) -> args::Record<'a> {
    let networks = if networks.is_empty() {
        vec![record.host_config.network_mode.clone()]
    } else {
        networks.iter().map(network::argument).collect()
    };
    let bind = |m: &super::record::RecordMount| {
        (
            m.destination.display().to_string(),
            m.source.display().to_string(),
        )
    };
    let binds = record
        .mounts
        .iter()
        .filter(|m| m.kind == "bind")
        .map(bind)
        .collect();
    args::Record {
        name: &record.name,
        hostname: if record.host_config.uts_mode == "host" {
            ""
        } else {
            &record.config.hostname
        },
        restart,
        env: &record.config.env,
        networks,
        binds,
    }
}

fn resurrectors(record: &Record, restart: &str) -> Vec<Resurrector> {
    let mut found = Vec::new();
    if restart != "no" {
        found.push(Resurrector::RestartPolicy(restart.to_owned()));
    }
    found.extend(
        record
            .config
            .labels
            .get(UNIT_LABEL)
            .cloned()
            .map(Resurrector::SystemdUnit),
    );
    let action = record.config.health_action.as_str();
    if !matches!(action, "" | "none") {
        found.push(Resurrector::HealthAction(action.to_owned()));
    }
    if record.host_config.auto_remove {
        found.push(Resurrector::AutoRemove);
    }
    found
}

fn container_mounts(record: &Record, mounts: &Mounts) -> Vec<Mount> {
    let mount = |m: &super::record::RecordMount| {
        let default = match m.kind.as_str() {
            "volume" => MountFate::Copy,
            "bind" => MountFate::Refuse,
            // tmpfs content is in CRIU's images, image and overlay mounts come with their image.
            "tmpfs" | "image" | "devpts" | "mqueue" | "ramfs" => MountFate::Runtime,
            _ => MountFate::Refuse,
        };
        Mount {
            destination: m.destination.clone(),
            source: Some(m.source.clone()).filter(|source| !source.as_os_str().is_empty()),
            file: m.source.is_file(),
            kind: m.kind.clone(),
            volume: Some(m.name.clone()).filter(|name| m.kind == "volume" && !name.is_empty()),
            fate: mounts.fate(&m.destination, default),
        }
    };
    record.mounts.iter().map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // From podman 5.4.2 with crun 1.21: `podman run -d --name p1 --network lan:ip=192.0.2.10,mac=02:00:00:00:00:10 -v data:/data localhost/redis:1`.
    const INSPECT: &str = include_str!("fixtures/inspect.json");
    const NETWORK: &str = include_str!("fixtures/network.json");
    const CONFIG: &str = include_str!("fixtures/config.json");

    fn value() -> serde_json::Value {
        serde_json::from_str::<serde_json::Value>(INSPECT).unwrap()[0].take()
    }

    fn networks() -> Vec<NetworkRecord> {
        serde_json::from_str(NETWORK).unwrap()
    }

    fn inspected(value: serde_json::Value, mounts: &Mounts) -> Result<Inspected, Error> {
        let interfaces = [
            ("lo".to_owned(), "00:00:00:00:00:00".to_owned()),
            ("eth0".to_owned(), "02:00:00:00:00:10".to_owned()),
        ];
        assemble(
            &serde_json::from_value(value).unwrap(),
            &networks(),
            &interfaces,
            CONFIG,
            mounts,
        )
    }

    #[test]
    fn plain_container_can_be_created_again() {
        let found = inspected(value(), &Mounts::default()).unwrap();
        assert_eq!((found.objections, found.warnings), (vec![], vec![]));
        let Recipe::Podman {
            args,
            command,
            image_id,
            image_name,
            oci_runtime,
            networks,
            shm,
            cgroups_path,
            ..
        } = found.container.recipe
        else {
            panic!("no recipe of podman")
        };
        assert_eq!(
            args,
            [
                "--name=p1",
                "--hostname=c85ee652e3f7",
                "--network=lan:ip=192.0.2.10,mac=02:00:00:00:00:10,interface_name=eth0",
                "--volume=data:/data"
            ]
        );
        assert_eq!(command, Vec::<String>::new());
        assert_eq!(
            image_id,
            "98c6b5a25093250dfe918f9312706f7d032575be7f67ec5ef5fcaf8220b0bcc2"
        );
        assert_eq!(
            (image_name.as_str(), oci_runtime.as_str()),
            ("localhost/redis:1", "crun")
        );
        assert_eq!(
            (
                networks[0].parent.as_str(),
                networks[0].addresses.as_slice()
            ),
            ("br0", &["192.0.2.10/24".to_owned()][..])
        );
        assert!(
            networks[0].aliases.is_empty(),
            "the short id is the target's own"
        );
        assert!(shm.unwrap().ends_with("userdata/shm"));
        assert!(cgroups_path.unwrap().starts_with("/libpod_parent/libpod-"));
        assert_eq!(found.container.resurrectors, []);
        assert_eq!(found.container.mounts[0].volume.as_deref(), Some("data"));
        assert_eq!(found.container.mounts[0].fate, MountFate::Copy);
    }

    #[test]
    fn what_could_start_it_again_is_found() {
        let mut value = value();
        value["HostConfig"]["RestartPolicy"] =
            serde_json::json!({"Name": "on-failure", "MaximumRetryCount": 3});
        value["HostConfig"]["AutoRemove"] = true.into();
        value["Config"]["Labels"] = serde_json::json!({"PODMAN_SYSTEMD_UNIT": "web.service"});
        value["Config"]["HealthcheckOnFailureAction"] = "restart".into();
        let container = inspected(value, &Mounts::default()).unwrap().container;
        assert_eq!(
            container.resurrectors,
            [
                Resurrector::RestartPolicy("on-failure:3".into()),
                Resurrector::SystemdUnit("web.service".into()),
                Resurrector::HealthAction("restart".into()),
                Resurrector::AutoRemove
            ]
        );
        let Recipe::Podman { args, .. } = container.recipe else {
            panic!("no recipe of podman")
        };
        assert!(
            args.contains(&"--restart=on-failure:3".to_owned()),
            "{args:?}"
        );
    }

    #[test]
    fn what_was_created_over_the_api_cannot_be_created_again() {
        let mut value = value();
        value["Config"]["CreateCommand"] = serde_json::Value::Null;
        let found = inspected(value, &Mounts::default()).unwrap().objections;
        assert!(
            matches!(&found[..], [why] if why.contains("created over the API")),
            "{found:?}"
        );
    }

    #[test]
    fn what_stands_against_the_record_is_said() {
        let mut value = value();
        value["Config"]["Tty"] = true.into();
        let found = inspected(value, &Mounts::default()).unwrap().objections;
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn bind_mount_is_refused_until_its_fate_is_said() {
        let with_bind = || {
            let mut value = value();
            let bind =
                serde_json::json!({"Type": "bind", "Source": "/srv/conf", "Destination": "/conf"});
            value["Mounts"].as_array_mut().unwrap().push(bind);
            value
        };
        let found = inspected(with_bind(), &Mounts::default())
            .unwrap()
            .objections;
        assert!(found[0].contains("--mount /conf=copy"), "{found:?}");
        let said = Mounts(vec![
            ("/conf".into(), MountFate::Shared),
            ("/data".into(), MountFate::Shared),
        ]);
        let found = inspected(with_bind(), &said).unwrap();
        assert_eq!(found.objections, Vec::<String>::new());
        assert!(
            found
                .container
                .mounts
                .iter()
                .all(|m| m.fate == MountFate::Shared)
        );
    }

    #[test]
    fn stopped_container_is_an_error_of_its_own() {
        let mut value = value();
        value["State"]["Running"] = false.into();
        value["State"]["Status"] = "exited".into();
        assert_eq!(
            inspected(value, &Mounts::default())
                .unwrap_err()
                .to_string(),
            "container p1 is exited: only a running container can be moved; start it first"
        );
    }
}
