//! runc and crun, called directly: a bundle on disk and `state`.
use std::{
    fs,
    path::{Path, PathBuf},
};

use netmig_core::container::{Container, Recipe, SourcePolicy};

mod bundle;

use self::bundle::{State, assemble, parse};
use super::{
    Accepted, AfterRelease, CreatedContainer, Disarmed, Error, Inspected, Mounts, Runtime,
    make_bind_sources, make_dir, remove, tool,
};
use crate::engine::{Engine, cgroup, criu::flags::Oci};

/// runc or crun of this host.
#[derive(Clone, Copy, Debug)]
pub struct Direct(pub Oci);

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
