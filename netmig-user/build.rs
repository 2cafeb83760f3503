//! Builds the eBPF objects of `netmig-ebpf` into `OUT_DIR`, where the library embeds them.
//!
//! A toolchain that can build `core` for the BPF target is needed: `NETMIG_BPF_TOOLCHAIN` names one; else rustup's `nightly` if it has
//! rust-src; else the one linked as `netmig-bpf` (a distribution's rustc with its source, which takes `-Z build-std` under RUSTC_BOOTSTRAP=1).
use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya_build::{Package, Toolchain};

const CHOICE: &str = "NETMIG_BPF_TOOLCHAIN";
const SETUP: &str = "`cargo xtask setup` installs what the eBPF programs are built with";

fn main() {
    if let Err(error) = build() {
        // In one line: a backtrace of this script helps nobody.
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

fn build() -> Result<()> {
    println!("cargo:rerun-if-env-changed={CHOICE}");
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("..");
    let ebpf = root.join("netmig-ebpf");
    // aya-build watches the package itself; what it depends on in this workspace is watched here.
    println!(
        "cargo:rerun-if-changed={}",
        root.join("netmig-common/src").display()
    );
    println!(
        "cargo:rerun-if-changed={}",
        root.join("netmig-common/Cargo.toml").display()
    );

    let toolchain = toolchain()?;
    linker()?;
    // SAFETY: this build script has no other thread.
    unsafe {
        if !toolchain.nightly {
            env::set_var("RUSTC_BOOTSTRAP", "1");
        }
        // aya-build turns every line that cargo says into a warning of this package: only errors and true warnings may speak.
        env::set_var("CARGO_TERM_QUIET", "true");
        env::set_var("RUSTUP_LOG", "error");
    }
    // A feature of this package that is one of the programs' too.
    let features: &[&str] = if env::var_os("CARGO_FEATURE_AYA_LOG").is_some() {
        &["aya-log"]
    } else {
        &[]
    };
    aya_build::build_ebpf(
        [Package {
            name: "netmig-ebpf",
            root_dir: ebpf.to_str().context("the workspace's path is not UTF-8")?,
            features,
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain.name),
    )
    .with_context(|| {
        format!(
            "building netmig-ebpf with toolchain {:?}; {SETUP}",
            toolchain.name
        )
    })
}

struct Chosen {
    name: String,
    nightly: bool,
}

fn toolchain() -> Result<Chosen> {
    if let Ok(name) = env::var(CHOICE) {
        let nightly = usable(&name).with_context(|| {
            format!("{CHOICE}={name}: no such rustup toolchain with rust-src; {SETUP}")
        })?;
        return Ok(Chosen { name, nightly });
    }
    for name in ["nightly", "netmig-bpf"] {
        if let Some(nightly) = usable(name) {
            return Ok(Chosen {
                name: name.to_owned(),
                nightly,
            });
        }
    }
    bail!(
        "no toolchain for eBPF: neither rustup's `nightly` with rust-src nor a linked `netmig-bpf` is here; {SETUP}"
    )
}

/// Whether the toolchain has the source of `core`; if so, whether it is a nightly.
fn usable(name: &str) -> Option<bool> {
    let ask = |argument: &[&str]| {
        let out = Command::new("rustup")
            .args(["run", name, "rustc"])
            .args(argument)
            .env("RUSTUP_AUTO_INSTALL", "0")
            .env_remove("RUSTC_BOOTSTRAP")
            .stderr(Stdio::null())
            .output()
            .ok()?;
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let sysroot = ask(&["--print", "sysroot"])?;
    let core = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    core.exists().then_some(())?;
    Some(ask(&["--version"])?.contains("-nightly"))
}

fn linker() -> Result<()> {
    println!("cargo:rerun-if-env-changed=PATH");
    let path = env::var_os("PATH").unwrap_or_default();
    ensure!(
        env::split_paths(&path).any(|dir| dir.join("bpf-linker").is_file()),
        "bpf-linker is not in PATH; {SETUP}"
    );
    Ok(())
}
