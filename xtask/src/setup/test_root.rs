//! The test root: the file system of the lab's hosts, kept in the cache under its recipe's digest.
use std::{env, path::Path};

use anyhow::bail;
use netmig_lab::root;

use super::{Step, debian_tree::Recipe};

/// What it takes while it is made, in bytes: the tree and the packages that it is made of.
const SPACE: u64 = 1500 << 20;

pub struct TestRoot;

impl Step for TestRoot {
    fn what(&self) -> String {
        "test root".to_owned()
    }

    fn why(&self) -> String {
        format!(
            "Debian {} with podman, runc, crun, CRIU and servers: the file system of the lab's hosts",
            root::SUITE
        )
    }

    fn missing(&self) -> anyhow::Result<Option<String>> {
        let path = root::path();
        if path.join("usr/bin").is_dir() {
            return Ok(None);
        }
        if env::var_os("NETMIG_ROOT").is_some() {
            bail!(
                "NETMIG_ROOT={}: there is no root file system",
                path.display()
            );
        }
        Ok(Some(format!(
            "not made yet, 1 to 4 minutes: {}",
            path.display()
        )))
    }

    fn make(&self) -> anyhow::Result<()> {
        Recipe {
            log: "test-root",
            variant: "minbase",
            packages: &root::PACKAGES,
            suites: &[root::SUITE, root::NEWER_SUITE],
            arguments: arguments(),
            space: SPACE,
        }
        .make(&root::cached(), verify)
    }
}

/// Packages of the newer suite, and none of what nobody reads there.
fn arguments() -> Vec<String> {
    let newer = root::NEWER_SUITE;
    let pin = format!(
        r#"mkdir -p "$1/etc/apt/preferences.d"; printf 'Package: *\nPin: release n={newer}\nPin-Priority: 100\n' >"$1/etc/apt/preferences.d/99-{newer}""#
    );
    let install = format!(
        r#"chroot "$1" apt-get -y --no-install-recommends -t {newer} install {}"#,
        root::NEWER.join(" ")
    );
    let without = ["doc", "man", "locale", "info"]
        .map(|nobody_reads| format!("--dpkgopt=path-exclude=/usr/share/{nobody_reads}/*"));
    let mut arguments = vec![format!("--setup-hook={pin}")];
    arguments.extend(without);
    arguments.push(format!("--customize-hook={install}"));
    arguments
}

/// What a host cannot be without.
fn verify(made: &Path) -> anyhow::Result<()> {
    for program in ["criu", "crun", "podman", "runc", "sshd", "ip", "ssh-keygen"] {
        let found = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|place| made.join(place).join(program).exists());
        if !found {
            bail!("the new test root has no {program}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_without_its_programs_does_not_count() {
        let made = tempfile::tempdir().expect("a directory");
        assert!(verify(made.path()).is_err());
    }
}
