//! The test root: the file system that every host of a lab stands on.
use std::{env, fmt::Write as _, path::PathBuf};

use sha2::{Digest as _, Sha256};

/// Debian packages of the test root, from [`SUITE`].
pub const PACKAGES: [&str; 34] = [
    "aardvark-dns",
    "attr",
    "bpftool",
    "ca-certificates",
    "conmon",
    "conntrack",
    "containers-storage",
    "crun",
    "ethtool",
    "fuse-overlayfs",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-arping",
    "iputils-ping",
    "kmod",
    "mount",
    "netavark",
    "nftables",
    "nginx-light",
    "openssh-client",
    "openssh-server",
    "passt",
    "podman",
    "procps",
    "python3",
    "redis-server",
    "redis-tools",
    "rsync",
    "runc",
    "socat",
    "tcpdump",
    "util-linux",
    "zstd",
];

/// The release that the test root is made of.
pub const SUITE: &str = "trixie";

/// The release that [`NEWER`] comes from.
pub const NEWER_SUITE: &str = "sid";

/// Packages that [`SUITE`] has too old: CRIU before 4.2 cannot dump a TCP socket on kernels from 6.16 on, and says all is well.
pub const NEWER: [&str; 2] = ["criu", "libcriu2"];

/// Goes up when the way in which the root is made changes.
const RECIPE: u32 = 1;

/// Where set-up keeps what it made: NETMIG_CACHE, else `~/.cache/netmig`.
#[must_use]
pub fn cache() -> PathBuf {
    if let Some(cache) = env::var_os("NETMIG_CACHE") {
        return cache.into();
    }
    env::home_dir()
        .unwrap_or_else(|| "/root".into())
        .join(".cache/netmig")
}

/// The test root: NETMIG_ROOT, else the one in the cache for today's recipe, whether it is there or not.
#[must_use]
pub fn path() -> PathBuf {
    match env::var_os("NETMIG_ROOT") {
        Some(root) => root.into(),
        None => cached(),
    }
}

/// The one in the cache for today's recipe.
#[must_use]
pub fn cached() -> PathBuf {
    cache().join(format!("root-{}", digest()))
}

/// What tells a recipe from another: the first 12 hex digits of its SHA-256.
#[must_use]
pub fn digest() -> String {
    let recipe = format!("{RECIPE} {SUITE} {PACKAGES:?} {NEWER_SUITE} {NEWER:?}");
    Sha256::digest(recipe)
        .iter()
        .take(6)
        .fold(String::new(), |mut hex, byte| {
            // Writing to a string cannot fail.
            write!(hex, "{byte:02x}").expect("a string takes everything");
            hex
        })
}
