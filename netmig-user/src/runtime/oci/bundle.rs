//! A bundle on disk and its runtime's state: what a container is, and what stands against moving it.
use std::path::{Path, PathBuf};

use netmig_core::container::{Container, Manager, Mount, MountFate, Recipe};
use serde::Deserialize;

use crate::{
    engine::{cgroup, criu::flags::Oci},
    runtime::{Error, Inspected, Mounts},
};

/// What `runc state` and `crun state` print.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct State {
    pub id: String,
    pub pid: i32,
    pub status: String,
    pub bundle: PathBuf,
}

/// A bundle's config.json, as far as a move needs it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    pub root: Root,
    pub process: Process,
    pub mounts: Vec<ConfigMount>,
    pub linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    pub path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Process {
    pub terminal: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConfigMount {
    pub destination: PathBuf,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub source: Option<PathBuf>,
    pub options: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Linux {
    pub namespaces: Vec<Namespace>,
    #[serde(rename = "cgroupsPath")]
    pub cgroups_path: Option<String>,
    pub devices: Vec<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: Option<PathBuf>,
}

impl Config {
    pub fn netns(&self) -> Option<PathBuf> {
        self.linux
            .namespaces
            .iter()
            .find(|ns| ns.kind == "network")?
            .path
            .clone()
    }
}

pub fn parse(path: &Path, text: &str) -> Result<Config, Error> {
    serde_json::from_str(text).map_err(|e| Error::Broken {
        path: path.to_owned(),
        why: e.to_string(),
    })
}

/// What is said of a running container.
pub fn assemble(
    oci: Oci,
    state: &State,
    text: &str,
    config: &Config,
    mounts: &Mounts,
) -> Inspected {
    let mut objections = objections(config);
    let all: Vec<Mount> = config
        .mounts
        .iter()
        .map(|m| mount(m, &state.bundle, mounts))
        .collect();
    objections.extend(mounts.unknown(&all));
    for mount in all.iter().filter(|m| m.fate == MountFate::Refuse) {
        let at = mount.destination.display();
        objections.push(format!("{at} is a bind mount: say --mount {at}=copy or, if it is the same storage on both hosts, --mount {at}=shared"));
    }
    let manager = match oci {
        Oci::Runc => Manager::Runc,
        Oci::Crun => Manager::Crun,
    };
    let container = Container {
        manager,
        id: state.id.clone(),
        name: state.id.clone(),
        init_pid: state.pid,
        netns: config.netns(),
        cgroup: cgroup::of(state.pid).ok(),
        mounts: all,
        upper: None,
        resurrectors: Vec::new(),
        recipe: Recipe::Bundle {
            config: text.to_owned(),
            bundle: state.bundle.clone(),
            rootfs: state.bundle.join(&config.root.path),
        },
    };
    let warnings = vec![
        "pipes of the container's standard streams end with the move: at the target they go to /dev/null".to_owned(),
        format!("what supervises a {} container, if anything, is not known to netmig: stop it from starting the container again", oci.name()),
    ];
    Inspected {
        container,
        objections,
        warnings,
        image_bytes: 0,
    }
}

fn objections(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let mut object = |condition: bool, text: String| found.extend(condition.then_some(text));
    let namespace = |kind: &str| config.linux.namespaces.iter().find(|ns| ns.kind == kind);
    match namespace("network") {
        None => object(true, "it uses the host's network: give it a network namespace with a path (linux.namespaces in config.json)".into()),
        Some(ns) => object(
            ns.path.is_none(),
            "its network namespace has no path in config.json, so there is nothing to build at the target before it arrives: make one (ip netns add) \
             and name it there"
                .into(),
        ),
    }
    object(
        namespace("user").is_some(),
        "it has a user namespace: run it without one".into(),
    );
    object(
        namespace("pid").is_none(),
        "it has no pid namespace of its own, so its pids may be taken at the target: give it one"
            .into(),
    );
    for kind in ["pid", "mount", "ipc"] {
        let shared = namespace(kind).is_some_and(|ns| ns.path.is_some());
        object(
            shared,
            format!("it shares its {kind} namespace with others: give it one of its own"),
        );
    }
    object(
        config.process.terminal,
        "it has a terminal (process.terminal), which cannot follow it: run it without".into(),
    );
    object(
        !config.linux.devices.is_empty(),
        "it has devices of this host (linux.devices): their state cannot be moved".into(),
    );
    found
}

fn mount(mount: &ConfigMount, bundle: &Path, mounts: &Mounts) -> Mount {
    let options = mount.options.as_deref().unwrap_or_default();
    let kind = mount.kind.as_deref().unwrap_or_default();
    let bind = kind == "bind" || options.iter().any(|o| o == "bind" || o == "rbind");
    let default = if bind {
        MountFate::Refuse
    } else {
        MountFate::Runtime
    };
    // A relative source is meant from the bundle (OCI runtime-spec, config.md).
    let source = mount
        .source
        .as_deref()
        .filter(|_| bind)
        .map(|source| bundle.join(source));
    Mount {
        destination: mount.destination.clone(),
        file: source.as_deref().is_some_and(Path::is_file),
        source,
        kind: if bind {
            "bind".to_owned()
        } else {
            kind.to_owned()
        },
        volume: None,
        fate: mounts.fate(&mount.destination, default),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `runc spec` of runc 1.1.15, with a network namespace's path and one bind mount.
    const CONFIG: &str = include_str!("../fixtures/config.json");

    fn state() -> State {
        serde_json::from_str(include_str!("../fixtures/runc-state.json")).unwrap()
    }

    fn inspected(text: &str, mounts: &Mounts) -> Inspected {
        let config = parse(Path::new("config.json"), text).unwrap();
        assemble(Oci::Runc, &state(), text, &config, mounts)
    }

    #[test]
    fn bundle_is_understood() {
        let found = inspected(CONFIG, &Mounts(vec![("/conf".into(), MountFate::Copy)]));
        assert_eq!(found.objections, Vec::<String>::new());
        let container = found.container;
        assert_eq!(
            (container.name.as_str(), container.netns.as_deref()),
            ("r1", Some(Path::new("/run/netns/c1")))
        );
        let Recipe::Bundle { rootfs, bundle, .. } = &container.recipe else {
            panic!("no bundle")
        };
        assert_eq!(
            (bundle.as_path(), rootfs.as_path()),
            (Path::new("/srv/r1"), Path::new("/srv/r1/rootfs"))
        );
        let conf = container
            .mounts
            .iter()
            .find(|m| m.destination == Path::new("/conf"))
            .unwrap();
        assert_eq!(
            (conf.source.as_deref(), conf.fate),
            (Some(Path::new("/srv/r1/conf")), MountFate::Copy)
        );
        let proc = container
            .mounts
            .iter()
            .find(|m| m.destination == Path::new("/proc"))
            .unwrap();
        assert_eq!(proc.fate, MountFate::Runtime);
    }

    #[test]
    fn bind_mount_is_refused_until_its_fate_is_said() {
        let found = inspected(CONFIG, &Mounts::default());
        assert_eq!(found.objections.len(), 1);
        assert!(
            found.objections[0].contains("--mount /conf=copy"),
            "{:?}",
            found.objections
        );
    }

    #[test]
    fn mount_that_is_not_there_is_named() {
        let found = inspected(
            CONFIG,
            &Mounts(vec![
                ("/conf".into(), MountFate::Shared),
                ("/nowhere".into(), MountFate::Copy),
            ]),
        );
        assert_eq!(found.objections, ["the container has no mount at /nowhere"]);
    }

    #[test]
    fn host_network_and_terminal_are_refused_by_name() {
        let mut config: serde_json::Value = serde_json::from_str(CONFIG).unwrap();
        config["process"]["terminal"] = true.into();
        let kept = |ns: &serde_json::Value| ns["type"] != "network";
        let namespaces = config["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|ns| kept(ns))
            .cloned()
            .collect();
        config["linux"]["namespaces"] = serde_json::Value::Array(namespaces);
        let found = inspected(
            &config.to_string(),
            &Mounts(vec![("/conf".into(), MountFate::Shared)]),
        );
        assert_eq!(found.objections.len(), 2, "{:?}", found.objections);
        assert!(
            found.objections[0].contains("host's network")
                && found.objections[1].contains("terminal")
        );
    }
}
