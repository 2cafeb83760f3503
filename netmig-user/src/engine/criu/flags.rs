//! What each OCI runtime has to be told so that CRIU does what netmig needs, and from which version on a pair is known to work.
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An OCI runtime that can checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Oci {
    /// opencontainers/runc: calls the `criu` program.
    Runc,
    /// containers/crun: calls CRIU through libcriu.
    Crun,
}

impl Oci {
    /// Name of the program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }
}

/// A version as far as it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FromStr for Version {
    type Err = ();

    /// The first number with a dot in the text: `crun version 1.21`, `runc version 1.1.15+ds1`, `5.4.2`, `Version: 4.2.1`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let starts =
            |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
        let word = text.split_whitespace().find(starts).ok_or(())?;
        let mut parts = word.split('.').map(|part| {
            let digits = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..digits].parse::<u32>()
        });
        let mut next = || parts.next().and_then(Result::ok);
        Ok(Self(
            next().ok_or(())?,
            next().ok_or(())?,
            next().unwrap_or(0),
        ))
    }
}

/// Arguments added to `checkpoint`.
///
/// Without `manage-cgroups` ignore the image carries the trees of all cgroup hierarchies of the host. runc knows it since 1.2 and rejects it before; it
/// wants a space where crun wants `=`.
#[must_use]
pub fn checkpoint(oci: Oci, version: Version) -> &'static [&'static str] {
    match oci {
        Oci::Crun => &["--manage-cgroups-mode=ignore"],
        Oci::Runc if version >= Version(1, 2, 0) => &["--manage-cgroups-mode", "ignore"],
        Oci::Runc => &[],
    }
}

/// Arguments added to `restore`.
///
/// Cgroups stay with CRIU (`soft`): it puts the tasks where [`super::cgroup_img`] says and makes their cgroup namespace there; with `ignore` they
/// would see the host's. crun tells CRIU `tcp_close` explicitly since 1.28, which overrides the configuration file.
#[must_use]
pub fn restore(oci: Oci, version: Version) -> &'static [&'static str] {
    match oci {
        Oci::Crun if version >= Version(1, 28, 0) => &["--tcp-close"],
        _ => &[],
    }
}

/// Why a program of this version cannot be used, if so. `name`: `criu`, `podman`, `crun`, `runc`. `kernel` matters to CRIU alone.
#[must_use]
pub fn too_old(name: &str, version: Version, kernel: Version) -> Option<String> {
    let (least, why) = match name {
        // tests: 4.1.1 says "Looks good" in `criu check` on 6.18 and fails on the first TCP socket (Can't get 1:16 opt).
        "criu" if kernel >= Version(6, 16, 0) => (
            Version(4, 2, 0),
            "older ones cannot dump TCP sockets on kernels from 6.16 on, and `criu check` does not say so",
        ),
        "criu" => (
            Version(3, 17, 0),
            "older ones do not run action scripts at every point that netmig needs",
        ),
        "podman" => (
            Version(5, 1, 0),
            "older ones cannot change a restart policy (`podman update --restart`)",
        ),
        "crun" => (Version(1, 14, 0), "nothing older was tried"),
        "runc" => (Version(1, 1, 12), "nothing older was tried"),
        _ => return None,
    };
    (version < least)
        .then(|| format!("{name} {version} is too old: at least {least} is needed, {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_as_the_programs_print_them() {
        assert_eq!(
            version("runc version 1.1.15+ds1\ncommit: 1.1.15+ds1-2+b4\nspec: 1.2.0"),
            Version(1, 1, 15)
        );
        assert_eq!(
            version("crun version 1.21\ncommit: 10269840aa07fb7e6b7e1acff6198692d8ff5c88"),
            Version(1, 21, 0)
        );
        assert_eq!(version("podman version 5.4.2"), Version(5, 4, 2));
        assert_eq!(version("Version: 4.2.1\nGitID: 0"), Version(4, 2, 1));
        assert_eq!(version("6.18.44-generic"), Version(6, 18, 44));
        assert_eq!(version("1.3.0-rc.1"), Version(1, 3, 0));
        assert_eq!("podman: not found".parse::<Version>(), Err(()));
    }

    #[test]
    fn runc_before_1_2_takes_no_cgroup_mode() {
        assert!(checkpoint(Oci::Runc, Version(1, 1, 15)).is_empty());
        assert_eq!(
            checkpoint(Oci::Runc, Version(1, 3, 6)),
            ["--manage-cgroups-mode", "ignore"]
        );
        assert_eq!(
            checkpoint(Oci::Crun, Version(1, 21, 0)),
            ["--manage-cgroups-mode=ignore"]
        );
    }

    #[test]
    fn crun_from_1_28_is_told_to_close_tcp() {
        assert!(restore(Oci::Crun, Version(1, 27, 1)).is_empty());
        assert_eq!(restore(Oci::Crun, Version(1, 28, 0)), ["--tcp-close"]);
        assert!(restore(Oci::Runc, Version(1, 3, 6)).is_empty());
    }

    #[test]
    fn criu_must_fit_the_kernel() {
        assert!(too_old("criu", Version(4, 1, 1), Version(6, 12, 0)).is_none());
        assert!(
            too_old("criu", Version(4, 1, 1), Version(6, 18, 0))
                .unwrap()
                .contains("4.2.0")
        );
        assert!(too_old("criu", Version(4, 2, 1), Version(6, 18, 0)).is_none());
        assert!(
            too_old("podman", Version(4, 9, 0), Version(6, 1, 0))
                .unwrap()
                .contains("--restart")
        );
        assert!(too_old("rsync", Version(0, 1, 0), Version(6, 1, 0)).is_none());
    }
}
