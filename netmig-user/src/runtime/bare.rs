//! No runtime: a program that has registered with the agent and hands itself over. What it lives in is a named network namespace.
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use netmig_core::container::{Container, Manager, Recipe, SourcePolicy};

use super::{
    Accepted, AfterRelease, CreatedContainer, Disarmed, Error, Inspected, Mounts, Runtime, tool,
};
use crate::engine::{
    Engine, cgroup,
    handoff::{
        programs::{self, Program, Role},
        start,
    },
};

/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";

/// The programs of this host.
#[derive(Clone, Copy, Debug)]
pub struct Bare;

impl Runtime for Bare {
    fn inspect(&self, name: &str, mounts: &Mounts) -> Result<Inspected, Error> {
        let program = find(name)?;
        let (netns, mut objections) = namespace(&program)?;
        objections.extend(mounts.unknown(&[]));
        let who = program.who.clone();
        let container = Container {
            manager: Manager::Bare,
            id: who.name.clone(),
            name: who.name.clone(),
            init_pid: program.pid(),
            netns,
            cgroup: None,
            mounts: Vec::new(),
            upper: None,
            resurrectors: Vec::new(),
            recipe: Recipe::Bare {
                command: who.command,
                directory: who.directory,
                environment: who.environment,
            },
        };
        Ok(Inspected {
            container,
            objections,
            warnings: vec![
                format!("files are not carried: what program {name} needs must be at the target"),
                format!(
                    "what supervises program {name}, if anything, is not known to netmig: stop it from starting the program again"
                ),
            ],
            image_bytes: 0,
        })
    }

    fn accepts(&self, container: &Container) -> Result<Accepted, Error> {
        let name = &container.name;
        let mut objections = Vec::new();
        if let Some(other) = programs::find(name, Role::Running) {
            objections.push(format!(
                "program {name} runs at the target already (process {}): end it, or give this one another name",
                other.pid()
            ));
        }
        let dir = start::cgroup_dir(name)?;
        if dir.exists() && !cgroup::pids(&dir)?.is_empty() {
            objections.push(format!(
                "processes of an earlier program {name} are in {} at the target: end them",
                dir.display()
            ));
        }
        if programs::find(name, Role::Waiting).is_some() {
            return Ok(Accepted {
                objections,
                ..Accepted::default()
            });
        }
        match (&container.recipe, command(container)) {
            (_, Some(program)) => {
                if let Err(why) = executable(Path::new(program)) {
                    objections.push(format!("the target cannot start program {name}: {why}; put it there"));
                }
            }
            (Recipe::Bare { .. }, None) => objections.push(format!(
                "program {name} has named no command that starts it, and none waits at the target: start it there (it says load {name})"
            )),
            _ => objections.push(format!("program {name} comes without its command")),
        }
        Ok(Accepted {
            objections,
            ..Accepted::default()
        })
    }

    /// Nothing starts it again by itself; what may is a supervisor that netmig cannot know.
    fn disarm(&self, container: &Container) -> Result<Disarmed, Error> {
        Ok(Disarmed {
            id: container.id.clone(),
            ..Disarmed::default()
        })
    }

    fn rearm(&self, _: &Disarmed) -> Vec<Error> {
        Vec::new()
    }

    /// Its cgroup; the program itself is started when the namespace stands.
    fn create(&self, container: &Container, _: &dyn Engine) -> Result<CreatedContainer, Error> {
        let dir = start::cgroup_dir(&container.name)?;
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::file("creating", &dir, e));
            }
            _ => {}
        }
        if !cgroup::pids(&dir)?.is_empty() {
            return Err(Error::Refused(format!(
                "there are processes in {} already",
                dir.display()
            )));
        }
        Ok(CreatedContainer {
            manager: Manager::Bare,
            id: container.id.clone(),
            name: container.name.clone(),
            static_dir: None,
            upper: None,
            rootfs: None,
            log: None,
            mounts: Vec::new(),
            cgroup_from: None,
            cgroup_to: Some(start::cgroup_of(&container.name)),
            netns: container.netns.clone(),
            made_volumes: Vec::new(),
            made_dirs: Vec::new(),
        })
    }

    fn discard(&self, created: &CreatedContainer) -> Vec<Error> {
        // One that its operator has started is in no cgroup of ours: it is told.
        let waiting = programs::find(&created.name, Role::Waiting);
        let stubborn = waiting.and_then(|program| program.dismiss());
        if let Some(text) = stubborn {
            tracing::warn!("{text}");
        }
        created.kill_tasks().err().into_iter().collect()
    }

    fn settle(&self, created: &CreatedContainer) -> Vec<Error> {
        // Of one that its operator has started nothing is in it.
        let dir = match start::cgroup_dir(&created.name) {
            Ok(dir) => dir,
            Err(e) => return vec![e.into()],
        };
        match cgroup::pids(&dir) {
            Ok(pids) if pids.is_empty() => remove_cgroup(&dir).err().into_iter().collect(),
            Ok(_) => Vec::new(),
            Err(_) if !dir.exists() => Vec::new(),
            Err(e) => vec![e.into()],
        }
    }

    /// Who starts such a program is its operator's matter.
    fn bar(&self, _: &Container, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn after_release(
        &self,
        container: &Container,
        _: SourcePolicy,
        _: &str,
    ) -> Result<AfterRelease, Error> {
        let mut after = AfterRelease::default();
        // The helper has told it to leave, unless that died; whoever is left then ends here.
        if let Some(program) = programs::find(&container.name, Role::Running)
            .filter(|program| program.pid() == container.init_pid)
        {
            after.warnings.extend(program.dismiss());
        }
        let dir = start::cgroup_dir(&container.name)?;
        if dir.exists() {
            cgroup::kill(&dir)?;
            remove_cgroup(&dir)?;
        }
        Ok(after)
    }

    /// The helper has told it, unless that died: then it hears it here. One that goes on already does not care.
    fn after_abort(&self, container: &Container) -> Vec<Error> {
        let Some(program) = programs::find(&container.name, Role::Running)
            .filter(|program| program.pid() == container.init_pid)
        else {
            // One whose connection broke comes again and is told then.
            let gone = !Path::new(&format!("/proc/{}", container.init_pid)).exists();
            return Vec::from_iter(gone.then(|| {
                Error::Refused(format!(
                    "program {} (process {}) has died while it was being moved: start it again",
                    container.name, container.init_pid
                ))
            }));
        };
        program
            .resume()
            .err()
            .map(|e| {
                Error::Refused(format!(
                    "program {} does not hear that it goes on here: {e}",
                    container.name
                ))
            })
            .into_iter()
            .collect()
    }
}

fn find(name: &str) -> Result<Program, Error> {
    programs::find(name, Role::Running).ok_or_else(|| {
        let known: Vec<_> = programs::all().into_iter().map(|p| p.who.name).collect();
        Error::NoSuchContainer {
            manager: "netmig's agent",
            name: name.to_owned(),
            hint: if known.is_empty() {
                format!("; no program has registered at {}", programs::SOCKET)
            } else {
                format!("; registered are: {}", known.join(", "))
            },
        }
    })
}

/// The path of the program's namespace that outlives it, and what stands against moving that.
fn namespace(program: &Program) -> Result<(Option<PathBuf>, Vec<String>), Error> {
    let id = |path: &Path| {
        fs::metadata(path)
            .map(|m| (m.dev(), m.ino()))
            .map_err(|e| Error::file("looking at", path, e))
    };
    let own = PathBuf::from(format!("/proc/{}/ns/net", program.pid()));
    let (name, pid) = (&program.who.name, program.pid());
    let it = id(&own)?;
    if it == id(Path::new("/proc/self/ns/net"))? {
        return Err(Error::Refused(format!(
            "program {name} is in the host's network namespace: start it in one of its own (ip netns add {name}; netmig-user handoff --netns {name} -- COMMAND)"
        )));
    }
    let named = fs::read_dir(NAMED)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| id(path).is_ok_and(|other| other == it));
    let objections = match named {
        Some(_) => Vec::new(),
        None => vec![format!(
            "the network namespace of program {name} has no name in {NAMED}: give it one (ip netns attach {name} {pid})"
        )],
    };
    Ok((named, objections))
}

fn command(container: &Container) -> Option<&str> {
    match &container.recipe {
        Recipe::Bare { command, .. } => command.first().map(String::as_str),
        _ => None,
    }
}

fn executable(program: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    if !program.to_string_lossy().contains('/') {
        let name = program.to_string_lossy();
        return tool::find(&name).map(drop).map_err(|e| e.to_string());
    }
    match fs::metadata(program) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => Ok(()),
        Ok(_) => Err(format!("{} is no program", program.display())),
        Err(e) => Err(format!("{}: {e}", program.display())),
    }
}

/// Its last task may not be reaped yet.
fn remove_cgroup(dir: &Path) -> Result<(), Error> {
    let until = std::time::Instant::now() + super::KILLED_WITHIN;
    loop {
        match fs::remove_dir(dir) {
            Err(e)
                if e.raw_os_error() == Some(libc::EBUSY) && std::time::Instant::now() < until =>
            {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("removing", dir, e));
            }
            _ => return Ok(()),
        }
    }
}
