//! Cargo, as the verbs call it: in this workspace, with what set-up brought.
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::setup;

/// What cargo sets for the program that it runs, which would look to a cargo under it like a change of the environment.
const INHERITED: [&str; 12] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PKG_AUTHORS",
    "CARGO_PKG_DESCRIPTION",
    "CARGO_PKG_HOMEPAGE",
    "CARGO_PKG_LICENSE",
    "CARGO_PKG_LICENSE_FILE",
    "CARGO_PKG_NAME",
    "CARGO_PKG_README",
    "CARGO_PKG_REPOSITORY",
    "CARGO_PKG_RUST_VERSION",
    "CARGO_PKG_VERSION",
];

/// Which profile to build with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Debug,
    Release,
}

/// A cargo command in the workspace's root.
pub fn cargo(verb: &str) -> anyhow::Result<Command> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .arg(verb)
        .current_dir(workspace())
        .env("PATH", setup::path()?);
    for variable in INHERITED {
        cargo.env_remove(variable);
    }
    Ok(cargo)
}

/// The stories of netmig-lab, which need a lab; cargo runs them only by name.
pub const STORIES: [&str; 6] = [
    "by_hand",
    "demo_image",
    "lab",
    "moves",
    "peer_program",
    "vm",
];

/// Cargo's arguments for these stories and no other target.
pub fn only<'a>(stories: &[&'a str]) -> Vec<&'a str> {
    stories.iter().flat_map(|name| ["--test", name]).collect()
}

/// A cargo command for everything but the eBPF programs. Another choice of packages has other features of their dependencies, and all would
/// be built once more.
pub fn whole(verb: &str) -> anyhow::Result<Command> {
    let mut cargo = cargo(verb)?;
    cargo.args(["--workspace", "--exclude", "netmig-ebpf"]);
    Ok(cargo)
}

/// Builds the programs of netmig-user and netmig-lab as the tests have them, so that nothing is built twice: cargo builds the programs of a
/// package for any test that may start them.
pub fn programs_of_tests() -> anyhow::Result<()> {
    run(whole("test")?.args(["--no-run", "--test", "job", "--test", "peer_program"]))
}

/// Runs a command that must succeed, in sight.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let line = line(command);
    let status = command
        .status()
        .with_context(|| format!("starting `{line}`"))?;
    if !status.success() {
        bail!("`{line}`: {status}");
    }
    Ok(())
}

/// A command as one line, for messages.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let words = [program].into_iter().chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Where cargo leaves a program of this workspace.
pub fn program(name: &str, profile: Profile) -> PathBuf {
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(target) => workspace().join(target),
        None => workspace().join("target"),
    };
    let directory = match profile {
        Profile::Debug => "debug",
        Profile::Release => "release",
    };
    target.join(directory).join(name)
}
