//! CRIU, run by the container's own runtime.
//!
//! ```text
//! source                                                target
//! Kit::prepare                                          Kit::prepare, Runtime::create
//! Job::start(checkpoint_command)                        (network of the container, gate closed)
//!   hook pre-dump      drain; reply 0
//!   hook network-lock  close the gate; reply 0             stage_record, Job::start(restore_command)
//!   hook post-dump     freeze the cgroup, read sockets
//!     collect_extras, images stream  ---------------->  images/ filled
//!                                                         moment images: stage_images
//!                                                         hook post-restore  rebuild sockets, prepared
//!     <------------------------------------------------ ... grant ...
//!     reply 0 at `released`                               reply 0; hook pre-resume: open; reply 0
//! Job::wait                                             Job::wait
//! Runtime::after_release                                finish
//! ```
//! Everything of one move lies in its directory `<move>` (on tmpfs): `criu.conf`, `shim.json`, `containers.conf`, `hook` and `shim/*` (links to this
//! binary), `logs/`, and `images/` unless they are put elsewhere. Nothing is written to /etc.
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use netmig_core::container::{Container, Manager, Recipe, Resurrector};

use super::{
    Engine,
    job::{Command, Output},
};
use crate::runtime::{CreatedContainer, tool};
use flags::{Oci, Version};
use hook::Side;

pub mod cgroup_img;
pub mod flags;
pub mod hook;
mod images;
pub mod shim;

/// Name under which the content of the container's /dev/shm travels among the images.
pub const SHM_TAR: &str = "devshm-checkpoint.tar";

/// Making ready for CRIU failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program is missing or failed.
    #[error(transparent)]
    Tool(#[from] tool::Error),
    /// An image of CRIU.
    #[error("{path}: {source}")]
    Image {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: cgroup_img::Malformed,
    },
    /// The OCI runtime is neither runc nor crun.
    #[error(
        "OCI runtime {0:?} cannot checkpoint: only runc and crun are known to; create the container with one of them"
    )]
    UnknownOci(String),
    /// Nobody runs CRIU for it.
    #[error("program {0} belongs to no runtime that could run CRIU")]
    Bare(String),
}

/// All that the engine needs on one host for one move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kit {
    /// Which end.
    pub side: Side,
    /// The move's volatile directory.
    pub dir: PathBuf,
    /// Where CRIU writes or reads its images.
    pub images: PathBuf,
}

impl Kit {
    /// Writes everything into `dir` (made if need be). `exe` is this binary; `images` is where the images shall be, `dir/images` if none.
    ///
    /// # Errors
    /// A program is missing, or a file cannot be written.
    pub fn prepare(
        dir: &Path,
        side: Side,
        container: &Container,
        exe: &Path,
        images: Option<&Path>,
    ) -> Result<Self, Error> {
        let kit = Self {
            side,
            dir: dir.to_owned(),
            images: images.map_or_else(|| dir.join("images"), Path::to_owned),
        };
        for made in [dir, &kit.dir.join("shim"), &kit.logs(), &kit.images] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(made)
                .map_err(|e| file("creating", made, e))?;
        }
        let oci = oci(container)?;
        let mut real = BTreeMap::from([(oci.name().to_owned(), tool::find(oci.name())?)]);
        if container.manager == Manager::Podman {
            let info: serde_json::Value = tool::json(&["podman", "info", "--format", "json"])?;
            for (name, place) in [
                ("conmon", "/host/conmon/path"),
                ("netavark", "/host/networkBackendInfo/path"),
            ] {
                real.extend(
                    info.pointer(place)
                        .and_then(|p| p.as_str())
                        .map(|p| (name.to_owned(), p.into())),
                );
            }
        }
        let config = shim::Config {
            side,
            real,
            oci,
            version: tool::version(oci.name())?,
            criu_conf: dir.join("criu.conf"),
            images: kit.images.clone(),
            logs: kit.logs(),
        };
        let json = serde_json::to_vec_pretty(&config)
            .map_err(|e| file("encoding", &dir.join("shim.json"), e.into()))?;
        put(&dir.join("shim.json"), &json)?;
        put(&config.criu_conf, criu_conf(&dir.join("hook")).as_bytes())?;
        put(
            &dir.join("containers.conf"),
            containers_conf(&dir.join("shim"), oci).as_bytes(),
        )?;
        link(exe, &dir.join("hook"))?;
        for name in shim::NAMES {
            link(exe, &dir.join("shim").join(name))?;
        }
        Ok(kit)
    }

    /// The kit that [`Kit::prepare`] made in `dir`.
    ///
    /// # Errors
    /// There is none.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let config =
            shim::Config::of(&dir.join("shim/any")).map_err(|e| file("opening", dir, e))?;
        Ok(Self {
            side: config.side,
            dir: dir.to_owned(),
            images: config.images,
        })
    }

    /// Environment for podman commands that must go through the shims. netavark's own is left to itself at the source, where it takes the network down.
    #[must_use]
    pub fn podman_env(&self) -> Vec<(String, String)> {
        let of = |name: &str, path: PathBuf| (name.to_owned(), path.display().to_string());
        let mut env = vec![of(shim::CONF_OVERRIDE, self.dir.join("containers.conf"))];
        env.extend(
            (self.side == Side::Target).then(|| of(shim::HELPER_DIR, self.dir.join("shim"))),
        );
        env
    }

    /// Where CRIU's `dump.log` and `restore.log` are.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The command that dumps the container; CRIU's hooks come while it runs.
    ///
    /// It ends with 0 when the container is gone, with another code when the dump was cancelled and the container runs on.
    ///
    /// # Errors
    /// The OCI runtime is not known.
    pub fn checkpoint_command(&self, container: &Container) -> Result<Command, Error> {
        let mut command = match container.manager {
            Manager::Podman => {
                let mut command =
                    Command::new(["podman", "container", "checkpoint", "--file-locks"]);
                if container.resurrectors.contains(&Resurrector::AutoRemove) {
                    // podman refuses a plain checkpoint of a `--rm` container. The archive holds next to nothing, as the images are elsewhere.
                    let archive = self.dir.join("export.tar").display().to_string();
                    let export = [
                        "--ignore-rootfs",
                        "--ignore-volumes",
                        "--compress",
                        "none",
                        "--export",
                        &archive,
                    ];
                    command.argv.extend(export.map(ToOwned::to_owned));
                }
                command.env = self.podman_env();
                command
            }
            Manager::Runc | Manager::Crun => {
                let mut command = self.direct(oci(container)?);
                command
                    .argv
                    .extend(["checkpoint", "--file-locks"].map(ToOwned::to_owned));
                command
            }
            Manager::Bare => return Err(Error::Bare(container.name.clone())),
        };
        command.argv.push(container.id.clone());
        Ok(command)
    }

    /// The command that restores the container from the images; [`Kit::stage_record`] comes before it, [`Kit::stage_images`] while it waits for the images.
    ///
    /// It ends with 0 when the container runs, with another code when the restore failed and nothing runs.
    ///
    /// # Errors
    /// The OCI runtime is not known.
    pub fn restore_command(
        &self,
        container: &Container,
        created: &CreatedContainer,
    ) -> Result<Command, Error> {
        match &container.recipe {
            Recipe::Podman { .. } => {
                let mut command = Command::new([
                    "podman",
                    "container",
                    "restore",
                    "--file-locks",
                    &created.id,
                ]);
                command.env = self.podman_env();
                Ok(command)
            }
            Recipe::Bundle { bundle, .. } => {
                let mut command = self.direct(oci(container)?);
                let bundle_text = bundle.display().to_string();
                let args = [
                    "restore",
                    "--detach",
                    "--file-locks",
                    "--bundle",
                    &bundle_text,
                    &created.id,
                ];
                command.argv.extend(args.map(ToOwned::to_owned));
                command.cwd = Some(bundle.clone());
                // The container's own standard streams become those of this command.
                command.output = Output::Null;
                Ok(command)
            }
            Recipe::Bare { .. } => Err(Error::Bare(container.name.clone())),
        }
    }

    /// What a direct runtime says goes to a file, since its standard error may be the container's.
    fn direct(&self, oci: Oci) -> Command {
        let shim = self.dir.join("shim").join(oci.name()).display().to_string();
        let log = self.logs().join("runtime.log").display().to_string();
        Command::new([shim.as_str(), "--log", &log])
    }

    /// At the source's `post-dump`: adds to the images what belongs to the container's memory and is not in them, the content of its /dev/shm.
    ///
    /// # Errors
    /// `tar` is missing or fails.
    pub fn collect_extras(&self, container: &Container) -> Result<(), Error> {
        if let Recipe::Podman { shm: Some(shm), .. } = &container.recipe
            && fs::read_dir(shm)
                .map_err(|e| file("reading", shm, e))?
                .next()
                .is_some()
        {
            let tar = self.images.join(SHM_TAR).display().to_string();
            tool::run(&[
                "tar",
                "--numeric-owner",
                "--sparse",
                "-C",
                &shm.display().to_string(),
                "-cf",
                &tar,
                ".",
            ])?;
        }
        Ok(())
    }

    /// At the target, before [`Kit::restore_command`] is started: podman looks whether there is a checkpoint in its own place. CRIU reads ours.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn stage_record(&self, created: &CreatedContainer) -> Result<(), Error> {
        let Some(static_dir) = &created.static_dir else {
            return Ok(());
        };
        let own = static_dir.join("checkpoint");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&own)
            .map_err(|e| file("creating", &own, e))?;
        put(&own.join("inventory.img"), &[])
    }

    /// At the target, when all images have arrived and the runtime is about to start CRIU ([`hook::Action::Images`]): makes them fit the container
    /// that [`crate::runtime::Runtime::create`] made and removes what is not CRIU's to restore ([`images`]), and fills its /dev/shm, which podman
    /// has mounted by now.
    ///
    /// # Errors
    /// An image is missing or cannot be read or written, `tar` is missing or fails.
    pub fn stage_images(&self, created: &CreatedContainer) -> Result<(), Error> {
        images::fit(&self.images, created)?;
        let tar = self.images.join(SHM_TAR);
        if let Some(static_dir) = &created.static_dir
            && tar.exists()
        {
            let (tar, shm) = (
                tar.display().to_string(),
                static_dir.join("shm").display().to_string(),
            );
            tool::run(&["tar", "--numeric-owner", "-C", &shm, "-xpf", &tar])?;
        }
        Ok(())
    }

    /// The lines of CRIU's and the runtime's logs that say why it failed, at most `limit`, for an operator.
    ///
    /// CRIU logs a failing RLIMIT_NOFILE as an error on every run without CAP_SYS_RESOURCE, and crun and podman report that as the cause of anything.
    #[must_use]
    pub fn why(&self, limit: usize) -> Vec<String> {
        let logs = ["dump.log", "restore.log", "runtime.log"];
        let text: Vec<String> = logs
            .iter()
            .filter_map(|name| fs::read_to_string(self.logs().join(name)).ok())
            .collect();
        text.iter()
            .flat_map(|text| causes(text))
            .take(limit)
            .map(ToOwned::to_owned)
            .collect()
    }
}

impl Engine for Kit {
    fn images(&self) -> &Path {
        &self.images
    }

    fn criu(&self) -> Option<&Kit> {
        Some(self)
    }

    /// CRIU needs nobody to wait.
    fn stand_by(
        &self,
        _: &Container,
        _: &CreatedContainer,
        _: &AtomicBool,
    ) -> Result<(), super::Error> {
        Ok(())
    }

    fn checkpoint_command(&self, container: &Container) -> Result<Command, super::Error> {
        Ok(self.checkpoint_command(container)?)
    }

    fn collect_extras(&self, container: &Container) -> Result<(), super::Error> {
        Ok(self.collect_extras(container)?)
    }

    fn stage_record(&self, created: &CreatedContainer) -> Result<(), super::Error> {
        Ok(self.stage_record(created)?)
    }

    fn stage_images(&self, created: &CreatedContainer) -> Result<(), super::Error> {
        Ok(self.stage_images(created)?)
    }

    fn restore_command(
        &self,
        container: &Container,
        created: &CreatedContainer,
    ) -> Result<Command, super::Error> {
        Ok(self.restore_command(container, created)?)
    }

    fn why(&self, limit: usize) -> Vec<String> {
        self.why(limit)
    }
}

/// Lets CRIU find out about this kernel once before it matters: what it finds is kept in /run/criu.kdat, and costs 50 ms of the blackout otherwise.
///
/// # Errors
/// `criu` is missing, or cannot run here; the text is its own.
pub fn warm() -> Result<Duration, Error> {
    let begin = Instant::now();
    tool::run(&["criu", "check"])?;
    Ok(begin.elapsed())
}

/// The OCI runtime of a container.
///
/// # Errors
/// It is neither runc nor crun.
pub fn oci(container: &Container) -> Result<Oci, Error> {
    match (&container.manager, &container.recipe) {
        (Manager::Runc, _) => Ok(Oci::Runc),
        (Manager::Crun, _) => Ok(Oci::Crun),
        (Manager::Podman, Recipe::Podman { oci_runtime, .. }) => match oci_runtime.as_str() {
            "runc" => Ok(Oci::Runc),
            "crun" => Ok(Oci::Crun),
            other => Err(Error::UnknownOci(other.to_owned())),
        },
        (Manager::Podman, Recipe::Bundle { .. } | Recipe::Bare { .. }) => {
            Err(Error::UnknownOci("podman with a bundle".into()))
        }
        (Manager::Bare, _) => Err(Error::Bare(container.name.clone())),
    }
}

/// Versions of the programs that a move of `container` needs on this host, and why one of them will not do.
#[must_use]
pub fn versions(container: &Container, kernel: &str) -> (Vec<(String, Version)>, Vec<String>) {
    let mut names = vec!["criu"];
    if container.manager == Manager::Podman {
        names.push("podman");
    }
    let mut objections = Vec::new();
    match oci(container) {
        Ok(oci) => names.push(oci.name()),
        Err(e) => objections.push(e.to_string()),
    }
    let kernel = kernel.parse().unwrap_or(Version(0, 0, 0));
    let mut found = Vec::new();
    for name in names {
        match tool::version(name) {
            Ok(version) => {
                objections.extend(flags::too_old(name, version, kernel));
                found.push((name.to_owned(), version));
            }
            Err(e) => objections.push(e.to_string()),
        }
    }
    (found, objections)
}

/// CRIU's configuration for this move. An option with a value wants `=` where CRIU says so: `manage-cgroups ignore` with a space is not applied, without a word.
fn criu_conf(hook: &Path) -> String {
    // tcp-close, skip-in-flight: connections are netmig's. network-lock skip: so is the gate; CRIU would leave DROP rules in the namespace.
    // ghost-limit: files that are deleted and still open travel in the images; CRIU's own limit is 1 MiB.
    format!(
        "tcp-close\nskip-in-flight\nnetwork-lock skip\nmanage-cgroups=ignore\nfile-locks\nghost-limit 512M\naction-script {}\n",
        hook.display()
    )
}

fn containers_conf(shim: &Path, oci: Oci) -> String {
    let shim = shim.display();
    let name = oci.name();
    format!(
        "[engine]\nconmon_path = [\"{shim}/conmon\"]\n\n[engine.runtimes]\n{name} = [\"{shim}/{name}\"]\n"
    )
}

fn causes(log: &str) -> impl Iterator<Item = &str> {
    let error = |line: &&str| {
        line.contains("Error")
            || line.contains("level=error")
            || line.contains("\"level\":\"error\"")
    };
    log.lines()
        .filter(error)
        .filter(|line| !line.contains("RLIMIT_NOFILE"))
}

fn link(exe: &Path, at: &Path) -> Result<(), Error> {
    match fs::remove_file(at) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file("removing", at, e)),
        _ => {}
    }
    symlink(exe, at).map_err(|e| file("linking", at, e))
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(|e| file("writing", path, e))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignores_what_criu_always_complains_of() {
        let log = "(00.060223) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.070704) Running setup-namespaces scripts\n\
                   (00.077974) Error (criu/cr-restore.c:2331): Restoring FAILED.\n";
        assert_eq!(
            causes(log).collect::<Vec<_>>(),
            ["(00.077974) Error (criu/cr-restore.c:2331): Restoring FAILED."]
        );
    }

    #[test]
    fn configuration_never_gives_tcp_to_criu() {
        let conf = criu_conf(Path::new("/run/netmig/moves/1/hook"));
        assert!(conf.contains("tcp-close\n") && !conf.contains("tcp-established"));
        assert!(conf.contains("manage-cgroups=ignore\n"));
        assert!(conf.ends_with("action-script /run/netmig/moves/1/hook\n"));
    }
}
