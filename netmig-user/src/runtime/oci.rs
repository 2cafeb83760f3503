//! runc and crun, called directly: a bundle on disk and `state`.
use std::{
    fs,
    path::{Path, PathBuf},
};

use netmig_core::container::{Container, Manager, Mount, MountFate, Recipe, SourcePolicy};
use serde::Deserialize;

use super::{
    Accepted, AfterRelease, CreatedContainer, Disarmed, Error, Inspected, Mounts, Runtime,
    make_bind_sources, make_dir, remove, tool,
};
use crate::engine::{Engine, cgroup, criu::flags::Oci};

/// runc or crun of this host.
#[derive(Clone, Copy, Debug)]
pub struct Direct(pub Oci);

/// What `runc state` and `crun state` print.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    id: String,
    pid: i32,
    status: String,
    bundle: PathBuf,
}

/// A bundle's config.json, as far as a move needs it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    root: Root,
    process: Process,
    mounts: Vec<ConfigMount>,
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Root {
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Process {
    terminal: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigMount {
    destination: PathBuf,
    #[serde(rename = "type")]
    kind: Option<String>,
    source: Option<PathBuf>,
    options: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
    #[serde(rename = "cgroupsPath")]
    cgroups_path: Option<String>,
    devices: Vec<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: Option<PathBuf>,
}

impl Runtime for Direct {
    fn inspect(&self, name: &str, mounts: &Mounts) -> Result<Inspected, Error> {
        let state = self.state(name)?.ok_or_else(|| Error::NoSuchContainer {
            manager: self.0.name(),
            name: name.to_owned(),
            hint: format!("; `{} list` names those that it has", self.0.name()),
        })?;
        if state.status != "running" || state.pid == 0 {
            return Err(Error::NotRunning {
                name: name.to_owned(),
                state: state.status,
            });
        }
        let path = state.bundle.join("config.json");
        let text = fs::read_to_string(&path).map_err(|e| Error::file("reading", &path, e))?;
        let config = parse(&path, &text)?;
        Ok(assemble(self.0, &state, &text, &config, mounts))
    }

    fn accepts(&self, container: &Container) -> Result<Accepted, Error> {
        let (bundle, _) = recipe(container)?;
        let (mut objections, mut warnings) = (Vec::new(), Vec::new());
        let name = self.0.name();
        if self.state(&container.id)?.is_some() {
            let id = &container.id;
            objections.push(format!(
                "the target has a container {id} already: remove it there ({name} delete {id})"
            ));
        }
        if bundle.join("config.json").exists() {
            warnings.push(format!(
                "{} is at the target already: its content becomes the source's",
                bundle.display()
            ));
        }
        Ok(Accepted {
            objections,
            warnings,
            lacks_image: false,
        })
    }

    /// Nothing starts such a container again by itself; what may is a supervisor that netmig cannot know.
    fn disarm(&self, container: &Container) -> Result<Disarmed, Error> {
        Ok(Disarmed {
            id: container.id.clone(),
            ..Disarmed::default()
        })
    }

    fn rearm(&self, _: &Disarmed) -> Vec<Error> {
        Vec::new()
    }

    fn create(&self, container: &Container, _: &dyn Engine) -> Result<CreatedContainer, Error> {
        let (bundle, rootfs) = recipe(container)?;
        let Recipe::Bundle { config, .. } = &container.recipe else {
            return Err(no_recipe());
        };
        if self.state(&container.id)?.is_some() {
            return Err(Error::Refused(format!(
                "there is a container {} already",
                container.id
            )));
        }
        // What a restore that failed left: `state` does not see it, but it is in the way.
        tool::run(&[self.0.name(), "delete", "--force", &container.id])?;
        let parsed = parse(&bundle.join("config.json"), config)?;
        let mut created = CreatedContainer {
            manager: container.manager,
            id: container.id.clone(),
            name: container.name.clone(),
            static_dir: None,
            upper: None,
            rootfs: Some(rootfs.to_owned()),
            log: None,
            mounts: container.mounts.clone(),
            cgroup_from: container.cgroup.as_deref().and_then(below_mount),
            cgroup_to: Some(self.cgroup(
                &container.id,
                parsed.linux.cgroups_path.as_deref(),
                &cgroup::own()?,
            )),
            netns: parsed.netns(),
            made_volumes: Vec::new(),
            made_dirs: Vec::new(),
        };
        let made = [bundle, rootfs].into_iter().try_for_each(|dir| {
            created.made_dirs.extend(make_dir(dir)?);
            Ok(())
        });
        let made = made.and_then(|()| {
            created.made_dirs.extend(make_bind_sources(container)?);
            Ok(())
        });
        let path = bundle.join("config.json");
        let written = made
            .and_then(|()| fs::write(&path, config).map_err(|e| Error::file("writing", &path, e)));
        match written {
            Ok(()) => Ok(created),
            Err(e) => {
                for second in self.discard(&created) {
                    tracing::warn!("removing what was made of {}: {second}", created.name);
                }
                Err(e)
            }
        }
    }

    fn discard(&self, created: &CreatedContainer) -> Vec<Error> {
        let mut errors: Vec<Error> = created.kill_tasks().err().into_iter().collect();
        // Always, also where `state` says there is none: a crun restore that failed leaves /run/crun/ID. It is no error for one that is not there.
        errors.extend(
            tool::run(&[self.0.name(), "delete", "--force", &created.id])
                .err()
                .map(Error::from),
        );
        errors.extend(created.made_dirs.iter().filter_map(|dir| remove(dir).err()));
        errors
    }

    fn settle(&self, _: &CreatedContainer) -> Vec<Error> {
        Vec::new()
    }

    /// A runtime has its own copy of the bundle's config.json while the container runs.
    fn bar(&self, container: &Container, target: &str) -> Result<(), Error> {
        let (bundle, _) = recipe(container)?;
        let config = bundle.join("config.json");
        match fs::rename(&config, kept_config(bundle, target)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("renaming", &config, e))
            }
            _ => Ok(()),
        }
    }

    /// The runtimes forget a container with its checkpoint; what is left is the bundle, which is the user's own and stays.
    fn after_release(
        &self,
        container: &Container,
        policy: SourcePolicy,
        target: &str,
    ) -> Result<AfterRelease, Error> {
        self.bar(container, target)?;
        let (bundle, _) = recipe(container)?;
        let name = self.0.name();
        if self.state(&container.id)?.is_some() {
            tool::run(&[name, "delete", &container.id])?;
        }
        let kept = kept_config(bundle, target);
        let mut after = AfterRelease::default();
        match policy {
            SourcePolicy::Keep => {
                after.warnings.push(format!(
                    "the bundle at {} stays, its config.json is now {}: {name} cannot run it before it is renamed back",
                    bundle.display(),
                    kept.display()
                ));
                after.kept_as = Some(bundle.display().to_string());
            }
            SourcePolicy::Remove => {
                remove(&kept)?;
                after.warnings.push(format!(
                    "config.json is removed from the bundle at {}; its root file system stays",
                    bundle.display()
                ));
            }
        }
        Ok(after)
    }

    fn after_abort(&self, _: &Container) -> Vec<Error> {
        Vec::new()
    }
}

/// What a bundle's config.json is called once its container lives elsewhere.
fn kept_config(bundle: &Path, target: &str) -> PathBuf {
    bundle.join(format!(
        "config.json.netmig-moved-to-{}",
        target.replace('/', "_")
    ))
}

impl Direct {
    /// State of a container; none if the runtime knows none of this id.
    fn state(&self, id: &str) -> Result<Option<State>, Error> {
        match tool::json::<State>(&[self.0.name(), "state", id]) {
            Ok(state) => Ok(Some(state)),
            Err(tool::Error::Failed { stderr, .. })
                if stderr.contains("does not exist") || stderr.contains("No such file") =>
            {
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The cgroup that the runtime makes for a container (without systemd's driver). `own` is the cgroup that it is called in.
    fn cgroup(self, id: &str, cgroups_path: Option<&str>, own: &str) -> String {
        let path = cgroups_path.filter(|path| !path.is_empty()).unwrap_or(id);
        let relative = !path.starts_with('/');
        match self.0 {
            // libcontainer/cgroups/fs2/defaultpath.go: beside the caller's own.
            Oci::Runc if relative => Path::new(own)
                .parent()
                .unwrap_or(Path::new("/"))
                .join(path)
                .display()
                .to_string(),
            // libcrun/cgroup-cgroupfs.c
            Oci::Crun if relative => format!("/{path}"),
            _ => path.to_owned(),
        }
    }
}

/// A cgroup directory of another host as a path in its hierarchy: cgroup2 is mounted in one of these places.
fn below_mount(cgroup: &Path) -> Option<String> {
    let places = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let below = places
        .iter()
        .find_map(|place| cgroup.strip_prefix(place).ok())?;
    Some(format!("/{}", below.display()))
}

impl Config {
    fn netns(&self) -> Option<PathBuf> {
        self.linux
            .namespaces
            .iter()
            .find(|ns| ns.kind == "network")?
            .path
            .clone()
    }
}

fn parse(path: &Path, text: &str) -> Result<Config, Error> {
    serde_json::from_str(text).map_err(|e| Error::Broken {
        path: path.to_owned(),
        why: e.to_string(),
    })
}

fn recipe(container: &Container) -> Result<(&Path, &Path), Error> {
    match &container.recipe {
        Recipe::Bundle { bundle, rootfs, .. } => Ok((bundle, rootfs)),
        Recipe::Podman { .. } | Recipe::Bare { .. } => Err(no_recipe()),
    }
}

fn no_recipe() -> Error {
    Error::Broken {
        path: "question".into(),
        why: "a container of runc or crun comes without its bundle".into(),
    }
}

fn assemble(oci: Oci, state: &State, text: &str, config: &Config, mounts: &Mounts) -> Inspected {
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
    const CONFIG: &str = include_str!("fixtures/config.json");

    fn state() -> State {
        serde_json::from_str(include_str!("fixtures/runc-state.json")).unwrap()
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
    fn cgroup_is_where_the_runtime_will_make_it() {
        let (runc, crun) = (Direct(Oci::Runc), Direct(Oci::Crun));
        assert_eq!(
            runc.cgroup("r1", None, "/system.slice/netmig.scope"),
            "/system.slice/r1"
        );
        assert_eq!(crun.cgroup("r1", None, "/system.slice/netmig.scope"), "/r1");
        assert_eq!(runc.cgroup("r1", Some("/nat/redis"), "/"), "/nat/redis");
        assert_eq!(
            below_mount(Path::new("/sys/fs/cgroup/user.slice/r1")).as_deref(),
            Some("/user.slice/r1")
        );
        assert_eq!(below_mount(Path::new("/elsewhere")), None);
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
