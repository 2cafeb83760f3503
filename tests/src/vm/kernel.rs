//! The kernels in the cache, as `cargo xtask setup` put them there: one directory each,
//! `kernels/RELEASE/` with `vmlinuz` and `modules/` (what belongs under /lib/modules/RELEASE,
//! uncompressed, with depmod's indexes), and for each Debian suite a link to its kernel.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use super::Error;
use crate::root;

/// A kernel that a guest can be started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says it, e.g. `6.12.107+deb13-cloud-amd64`.
    pub release: String,
    /// The image that QEMU loads.
    pub vmlinuz: PathBuf,
    /// The module tree.
    pub modules: PathBuf,
}

impl Kernel {
    /// Where set-up puts them.
    pub fn cache() -> PathBuf {
        root::cache().join("kernels")
    }

    /// Opens `directory` as one kernel of the cache; `None` if it is not a complete one.
    pub fn open(directory: &Path) -> Option<Self> {
        let directory = directory.canonicalize().ok()?;
        let kernel = Self {
            release: directory.file_name()?.to_str()?.to_owned(),
            vmlinuz: directory.join("vmlinuz"),
            modules: directory.join("modules"),
        };
        let indexes = ["modules.dep", "modules.builtin"];
        let whole = kernel.vmlinuz.is_file()
            && indexes
                .iter()
                .all(|index| kernel.modules.join(index).is_file());
        whole.then_some(kernel)
    }

    /// Every kernel in `cache` (the directory `kernels`), oldest version first.
    pub fn all(cache: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(cache) else {
            return Vec::new(); // nothing was fetched yet
        };
        let mut kernels: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| Self::open(&entry.path()))
            .collect();
        kernels.sort_by(|a, b| compare_releases(&a.release, &b.release));
        kernels
    }

    /// Finds the kernel that `wanted` names: a release, its beginning up to a whole number (`6.1`
    /// is not 6.12), a Debian suite (`trixie`), or `newest`. Of several the newest.
    pub fn find(cache: &Path, wanted: &str) -> Result<Self, Error> {
        let all = Self::all(cache);
        let suite = || {
            let link = cache.join(wanted);
            link.is_symlink().then(|| Self::open(&link)).flatten()
        };
        let found = match wanted {
            "newest" => all.last().cloned(),
            _ => all
                .iter()
                .rev()
                .find(|kernel| names(wanted, &kernel.release))
                .cloned()
                .or_else(suite),
        };
        found.ok_or_else(|| Error::NoKernel {
            wanted: wanted.to_owned(),
            cache: cache.to_owned(),
            have: match all.len() {
                0 => "none".to_owned(),
                _ => all
                    .iter()
                    .map(|kernel| kernel.release.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            },
        })
    }
}

fn names(wanted: &str, release: &str) -> bool {
    release
        .strip_prefix(wanted)
        .is_some_and(|rest| !wanted.is_empty() && !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Compares releases by their numbers, then by their text.
fn compare_releases(a: &str, b: &str) -> Ordering {
    let numbers = |release: &str| -> Vec<u64> {
        release
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(releases: &[&str]) -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        for release in releases {
            let directory = cache.path().join(release);
            fs::create_dir_all(directory.join("modules")).unwrap();
            fs::write(directory.join("vmlinuz"), "").unwrap();
            fs::write(directory.join("modules/modules.dep"), "").unwrap();
            fs::write(directory.join("modules/modules.builtin"), "").unwrap();
        }
        cache
    }

    #[test]
    fn a_prefix_ends_at_a_whole_number() {
        let cache = cache(&["6.1.0-50-cloud-amd64", "6.12.107+deb13-cloud-amd64"]);
        let find = |wanted| Kernel::find(cache.path(), wanted).map(|kernel| kernel.release);
        assert_eq!(find("6.1").unwrap(), "6.1.0-50-cloud-amd64");
        assert_eq!(find("6.12").unwrap(), "6.12.107+deb13-cloud-amd64");
        assert_eq!(find("newest").unwrap(), "6.12.107+deb13-cloud-amd64");
        assert!(matches!(find("6"), Ok(release) if release.starts_with("6.12")));
        assert!(matches!(find("7.2"), Err(Error::NoKernel { .. })));
        assert!(find("").is_err());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let cache = cache(&["6.12.90-x", "6.12.107-x", "6.9.1-x", "7.2.13-x"]);
        let all: Vec<_> = Kernel::all(cache.path())
            .into_iter()
            .map(|kernel| kernel.release)
            .collect();
        assert_eq!(all, ["6.9.1-x", "6.12.90-x", "6.12.107-x", "7.2.13-x"]);
    }

    #[test]
    fn suites_are_links_and_half_a_kernel_is_none() {
        let cache = cache(&["6.1.0-50-cloud-amd64"]);
        std::os::unix::fs::symlink("6.1.0-50-cloud-amd64", cache.path().join("bookworm")).unwrap();
        fs::create_dir(cache.path().join("7.2.13-x")).unwrap();
        let found = Kernel::find(cache.path(), "bookworm").unwrap();
        assert_eq!(found.release, "6.1.0-50-cloud-amd64");
        assert_eq!(Kernel::all(cache.path()).len(), 1);
    }
}
