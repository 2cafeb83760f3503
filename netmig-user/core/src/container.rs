//! A container as its runtime knows it, and the addresses of things inside it.
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::PathBuf};

use crate::socket::Engine;

/// Who manages the container on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// podman, which calls an OCI runtime underneath.
    Podman,
    /// runc, called directly.
    Runc,
    /// crun, called directly.
    Crun,
    /// None: a program in a named network namespace that saves and loads itself (docs/handoff.md).
    Bare,
}

impl Manager {
    /// What moves the processes of such a container.
    #[must_use]
    pub fn engine(self) -> Engine {
        match self {
            Self::Podman | Self::Runc | Self::Crun => Engine::Criu,
            Self::Bare => Engine::Handoff,
        }
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Podman => "podman",
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Bare => "bare",
        })
    }
}

/// What happens to a mount of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MountFate {
    /// Made by the runtime itself (proc, sysfs, tmpfs whose content the engine carries, ...): nothing to do.
    Runtime,
    /// The tree is copied to the target.
    Copy,
    /// The target sees the same storage already; nothing is copied.
    Shared,
    /// The move is refused because of it.
    Refuse,
}

impl fmt::Display for MountFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runtime => "made by the runtime",
            Self::Copy => "copied",
            Self::Shared => "shared by both hosts",
            Self::Refuse => "refused",
        })
    }
}

/// One mount of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Mount {
    /// Where the container sees it.
    pub destination: PathBuf,
    /// Path on the host, if it has one.
    pub source: Option<PathBuf>,
    /// Whether the source is a single file, not a directory.
    pub file: bool,
    /// `bind`, `volume`, `tmpfs`, `proc`, ...
    pub kind: String,
    /// Name of a named volume.
    pub volume: Option<String>,
    /// What the move does with it.
    pub fate: MountFate,
}

/// How the runtime would start the container once more by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Resurrector {
    /// podman's restart policy, e.g. `always`.
    RestartPolicy(String),
    /// The systemd unit that supervises it (PODMAN_SYSTEMD_UNIT).
    SystemdUnit(String),
    /// podman's health check action, e.g. `restart`.
    HealthAction(String),
    /// `--rm`: the record disappears when the container stops.
    AutoRemove,
}

impl fmt::Display for Resurrector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RestartPolicy(policy) => write!(f, "restart policy {policy}"),
            Self::SystemdUnit(unit) => write!(f, "systemd unit {unit}"),
            Self::HealthAction(action) => write!(f, "health check action {action}"),
            Self::AutoRemove => f.write_str("--rm"),
        }
    }
}

/// What the target needs to make the same container known to its runtime before the processes arrive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recipe {
    /// podman: the arguments that created it (`podman inspect`'s CreateCommand), made absolute and free of `run`-only words.
    Podman {
        /// Options of `podman create`; the image and [`command`](Recipe::Podman::command) follow them.
        args: Vec<String>,
        /// What follows the image on the command line.
        command: Vec<String>,
        /// Image id (sha256) the container was made from.
        image_id: String,
        /// Image name as the user gave it.
        image_name: String,
        /// `runc` or `crun`.
        oci_runtime: String,
        /// Networks made by netavark: name and what podman's record says of it. Empty with `--network ns:PATH`.
        networks: Vec<PodmanNetwork>,
        /// podman's directory of the container on the source (`StaticDir`): its log lies there, and checkpoints unless told otherwise.
        static_dir: PathBuf,
        /// `linux.cgroupsPath` of the OCI configuration on the source: `/libpod_parent/libpod-ID`, or `machine.slice:libpod:ID`.
        cgroups_path: Option<String>,
        /// Directory on the source that the container sees as /dev/shm, if it is its own: neither CRIU nor a copy of the files carries it.
        shm: Option<PathBuf>,
        /// The container's log file on the source, where the log driver writes one (`k8s-file`, `json-file`).
        log: Option<PathBuf>,
    },
    /// runc or crun: the bundle's config.json, as it is.
    Bundle {
        /// The text of config.json.
        config: String,
        /// Absolute path of the bundle directory.
        bundle: PathBuf,
        /// Absolute path of the root file system.
        rootfs: PathBuf,
    },
    /// A program that hands itself over: how it is started at the target, as it said when it registered.
    Bare {
        /// Program and arguments; empty: its operator has started it at the target.
        command: Vec<String>,
        /// Working directory, absolute.
        directory: Option<PathBuf>,
        /// Variables added to the agent's environment.
        environment: BTreeMap<String, String>,
    },
}

/// One netavark network of a podman container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PodmanNetwork {
    /// podman's name of the network.
    pub name: String,
    /// Name of the interface inside the container.
    pub interface: String,
    /// Bridge (or parent) interface on the host.
    pub parent: String,
    /// Addresses with prefix length, e.g. `192.0.2.10/24`.
    pub addresses: Vec<String>,
    /// MAC, `02:00:00:00:00:10`.
    pub mac: String,
    /// Other names by which aardvark-dns knows the container, without the short id.
    pub aliases: Vec<String>,
}

/// What the source keeps of a container that has moved away.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum SourcePolicy {
    /// The record stays under another name and cannot start; volumes stay.
    #[default]
    Keep,
    /// The record is removed; named volumes stay.
    Remove,
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Who manages it.
    pub manager: Manager,
    /// Full id.
    pub id: String,
    /// The user's name for it (runc, crun: the id).
    pub name: String,
    /// Pid of its first process, as its own host sees it. 0 where none runs.
    pub init_pid: i32,
    /// Its network namespace as a path on its host that outlives the processes (`/run/netns/x`), if it has one.
    pub netns: Option<PathBuf>,
    /// cgroup v2 directory on its host, absolute, under the cgroup2 mount.
    pub cgroup: Option<PathBuf>,
    /// Every mount and its fate.
    pub mounts: Vec<Mount>,
    /// The writable layer's directory on its host, if the root is layered.
    pub upper: Option<PathBuf>,
    /// What could start it again.
    pub resurrectors: Vec<Resurrector>,
    /// How the target makes it known.
    pub recipe: Recipe,
}
