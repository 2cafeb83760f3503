//! Debian packages.
use std::{
    collections::BTreeSet,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::bail;

use super::{Step, command};

/// Packages that serve one purpose.
pub struct Packages {
    names: &'static [&'static str],
    what: &'static str,
    why: &'static str,
}

pub const UNIT: Packages = Packages {
    names: &[
        "arptables",
        "conntrack",
        "e2fsprogs",
        "ipset",
        "iproute2",
        "iptables",
        "kmod",
        "nftables",
        "procps",
    ],
    what: "packages of the unit tests",
    why: "they make network namespaces with packet filters and sysctls, disk images, and indexes of modules",
};

pub const LAB: Packages = Packages {
    names: &[
        "conntrack",
        "ipset",
        "iproute2",
        "iptables",
        "mmdebstrap",
        "nftables",
    ],
    what: "packages of the lab",
    why: "links between the hosts, their file system, and packet filters to test with",
};

pub const VM: Packages = Packages {
    names: &["busybox-static", "e2fsprogs", "kmod", "xz-utils", "zstd"],
    what: "packages of the virtual machines",
    why: "the same tests on other kernels",
};

impl Step for Packages {
    fn what(&self) -> String {
        self.what.to_owned()
    }

    fn why(&self) -> String {
        self.why.to_owned()
    }

    fn missing(&self) -> anyhow::Result<Option<String>> {
        missing(self.names)
    }

    fn make(&self) -> anyhow::Result<()> {
        install(self.names)
    }
}

/// Which of these packages are not installed, told.
pub fn missing(names: &[&str]) -> anyhow::Result<Option<String>> {
    let absent = absent(names)?;
    Ok((!absent.is_empty()).then(|| format!("{} not installed", absent.join(", "))))
}

fn absent<'a>(names: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
    // It exits with 1 when it does not know one of them, and tells of the others all the same.
    let format = r"--showformat=${Package} ${db:Status-Status}\n";
    let Ok(told) = Command::new("dpkg-query")
        .args(["--show", format])
        .args(names)
        .output()
    else {
        bail!(
            "this machine has no dpkg: install by hand what Debian has in {}",
            names.join(", ")
        );
    };
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let installed = told
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect::<BTreeSet<_>>();
    Ok(names
        .iter()
        .filter(|name| !installed.contains(*name))
        .copied()
        .collect())
}

/// Installs those of them that are not. The package lists are fetched once, and only if something is to be installed.
pub fn install(names: &[&str]) -> anyhow::Result<()> {
    static UPDATED: AtomicBool = AtomicBool::new(false);
    let absent = absent(names)?;
    if absent.is_empty() {
        return Ok(());
    }
    let updated = if UPDATED.swap(true, Ordering::Relaxed) {
        Ok(())
    } else {
        // Without the option apt-get is content with no list at all.
        command::run("apt", apt().args(["--error-on=any", "update"]))
    };
    let install = ["--yes", "--no-install-recommends", "install"];
    let installed = command::run("apt", apt().args(install).args(absent));
    verdict(updated, installed)
}

/// What came of it all.
fn verdict(updated: anyhow::Result<()>, installed: anyhow::Result<()>) -> anyhow::Result<()> {
    // apt knows no package either whose list it could not fetch.
    let unknown = |cause: &anyhow::Error| {
        let cause = cause.to_string();
        ["Unable to locate package", "has no installation candidate"]
            .iter()
            .any(|words| cause.contains(words))
    };
    match (updated, installed) {
        // If a list could not be fetched, that was some source of the machine's that has nothing to do with these packages.
        (_, Ok(())) => Ok(()),
        (Err(lists), Err(cause)) if unknown(&cause) => Err(lists),
        (_, Err(cause)) => Err(cause),
    }
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    // Another apt may be at work: wait for it.
    apt.args(["-o", "DPkg::Lock::Timeout=300", "-q"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    apt
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    #[test]
    fn lists_that_could_not_be_fetched_are_the_cause_of_unknown_packages_only() {
        let verdict = |installed: &'static str| {
            let lists = Err(anyhow!("no network"));
            super::verdict(lists, Err(anyhow!(installed)))
                .expect_err("not installed")
                .to_string()
        };
        assert_eq!(verdict("E: Unable to locate package x"), "no network");
        assert_eq!(
            verdict("E: Package 'x' has no installation candidate"),
            "no network"
        );
        assert_eq!(verdict("no space: E: full"), "no space: E: full");
        assert!(super::verdict(Err(anyhow!("a source of another vendor")), Ok(())).is_ok());
    }

    #[test]
    fn what_no_machine_has_is_missing() {
        let missing = super::absent(&["dpkg", "no-such-package-anywhere"]).expect("dpkg answers");
        assert_eq!(missing, ["no-such-package-anywhere"]);
    }
}
