//! What the eBPF programs are compiled and linked with. netmig-user's build script looks for the same in the same order.
use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use super::{Step, cargo_home, command, packages};

/// A toolchain of the user's choice.
const CHOICE: &str = "NETMIG_BPF_TOOLCHAIN";

/// Debian's compiler under a name that rustup knows.
const LINKED: &str = "netmig-bpf";

/// Debian's compiler that is kept current for browsers, and the source of `core`.
const COMPILER: [&str; 2] = ["rust-web-src", "rustc-web"];

/// The version of bpf-linker that is installed where there is none, and the LLVM majors that it can be built with.
const LINKER: (&str, [u32; 3]) = ("0.13.0", [21, 22, 23]);

/// A rustup toolchain that can build `core` for the BPF target: it has the source.
pub struct Compiler;

impl Step for Compiler {
    fn what(&self) -> String {
        match toolchain() {
            Some(found) => format!("eBPF compiler, toolchain {}", found.name),
            None => "eBPF compiler".to_owned(),
        }
    }

    fn why(&self) -> String {
        "core is built from source for the BPF target".to_owned()
    }

    fn missing(&self) -> anyhow::Result<Option<String>> {
        if let Ok(name) = env::var(CHOICE)
            && toolchain().is_none()
        {
            bail!("{CHOICE}={name}: rustup has no such toolchain with rust-src");
        }
        Ok(toolchain().is_none().then(|| {
            format!(
                "no nightly with rust-src, so {} of Debian",
                COMPILER.join(", ")
            )
        }))
    }

    fn make(&self) -> anyhow::Result<()> {
        packages::install(&COMPILER)?;
        let mut rustup = Command::new("rustup");
        command::run("rustup", rustup.args(["toolchain", "link", LINKED, "/usr"]))
    }
}

/// bpf-linker, in PATH or where cargo installs programs.
pub struct Linker;

impl Step for Linker {
    fn what(&self) -> String {
        "bpf-linker".to_owned()
    }

    fn why(&self) -> String {
        "the eBPF programs are linked by it".to_owned()
    }

    fn missing(&self) -> anyhow::Result<Option<String>> {
        let works = |program: &Path| {
            Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        let there = works(Path::new("bpf-linker")) || works(&cargo_home().join("bin/bpf-linker"));
        Ok((!there).then(|| {
            format!(
                "none works, so version {} is compiled: 2 to 6 minutes",
                LINKER.0
            )
        }))
    }

    fn make(&self) -> anyhow::Result<()> {
        let Some(toolchain) = toolchain() else {
            bail!("there is no eBPF compiler to link for");
        };
        let llvm = toolchain.llvm;
        if !LINKER.1.contains(&llvm) {
            let name = toolchain.name;
            bail!(
                "bpf-linker {} does not know LLVM {llvm} of toolchain {name}: install a bpf-linker that does",
                LINKER.0
            );
        }
        let (headers, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
        packages::install(&[
            &headers,
            &polly,
            "gcc",
            "libc6-dev",
            "libzstd-dev",
            "zlib1g-dev",
        ])?;
        let mut install = Command::new("cargo");
        install
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER.0,
                "--locked",
                "--no-default-features",
            ])
            .args(["--force", "--features", &format!("llvm-{llvm}")])
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
        // Set by the cargo that runs this program, for this program's own package.
        for variable in [
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
            "CARGO_TARGET_DIR",
        ] {
            install.env_remove(variable);
        }
        command::run("bpf-linker", &mut install)
    }
}

/// A toolchain that can build the eBPF programs.
struct Toolchain {
    name: String,
    /// Its LLVM's major version, which the linker's must not be older than.
    llvm: u32,
}

/// The user's choice if there is one, else a nightly with rust-src, else Debian's.
fn toolchain() -> Option<Toolchain> {
    match env::var(CHOICE) {
        Ok(name) => usable(&name),
        Err(_) => ["nightly", LINKED].into_iter().find_map(usable),
    }
}

fn usable(name: &str) -> Option<Toolchain> {
    let ask = |arguments: &[&str]| {
        let mut rustc = Command::new("rustup");
        rustc
            .args(["run", name, "rustc"])
            .args(arguments)
            .env("RUSTUP_AUTO_INSTALL", "0");
        command::output(&mut rustc).ok()
    };
    let sysroot = ask(&["--print", "sysroot"])?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !core.exists() {
        return None;
    }
    Some(Toolchain {
        name: name.to_owned(),
        llvm: llvm_major(&ask(&["-vV"])?).ok()?,
    })
}

fn llvm_major(verbose_version: &str) -> anyhow::Result<u32> {
    verbose_version
        .lines()
        .find_map(|line| {
            line.strip_prefix("LLVM version: ")?
                .split('.')
                .next()?
                .parse()
                .ok()
        })
        .context("rustc does not tell its LLVM's version")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_llvm_of_a_compiler_is_read() {
        let told = "rustc 1.96.0\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(super::llvm_major(told).expect("a version"), 22);
        assert!(super::llvm_major("rustc 1.96.0").is_err());
    }
}
