//! `cargo xtask build`: netmig-user, with the eBPF programs in it.
use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use crate::{
    cargo::{self, Profile},
    setup::{self, Purpose, Tell},
};

#[derive(Args)]
pub struct Arguments {
    /// As it is shipped: optimized, stripped, one file
    #[arg(long)]
    release: bool,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let profile = if arguments.release {
        Profile::Release
    } else {
        Profile::Debug
    };
    println!("{}", binary(profile, Tell::Work)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Sets up what is missing, builds netmig-user and tells where it is.
pub fn binary(profile: Profile, tell: Tell) -> anyhow::Result<PathBuf> {
    setup::ready(&[Purpose::Build], tell)?;
    let mut build = cargo::cargo("build")?;
    build.args(["--package", "netmig-user", "--bin", "netmig-user"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    cargo::run(&mut build)?;
    Ok(cargo::program("netmig-user", profile))
}
