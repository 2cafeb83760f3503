//! The kernels for the virtual machines: Debian's cloud kernels of three releases, fetched and verified by apt with a state of its
//! own (nothing of the machine's package lists changes), unpacked without being installed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use netmig_lab::vm::Kernel;

use super::{
    Step,
    command::{output, run},
    mirror::mirror,
};

/// The suites whose kernel is wanted, oldest first. Sid's is the newest that Debian has; which one that was is kept until
/// `kernels/sid` in the cache is removed.
const SUITES: [&str; 3] = ["bookworm", "trixie", "sid"];

const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Directories in which one is made begin so; those that are left from a broken run are removed.
const UNFINISHED: &str = ".making-";

/// The kernels of all suites.
pub struct VmKernels;

impl Step for VmKernels {
    fn what(&self) -> String {
        "kernels of the virtual machines".to_owned()
    }

    fn why(&self) -> String {
        format!("Debian's of {}: the same tests on each", SUITES.join(", "))
    }

    fn missing(&self) -> Result<Option<String>> {
        let missing = missing(&Kernel::cache());
        Ok((!missing.is_empty()).then(|| format!("not fetched: {}", missing.join(", "))))
    }

    fn make(&self) -> Result<()> {
        let kernels = Kernel::cache();
        fs::create_dir_all(&kernels).with_context(|| format!("creating {}", kernels.display()))?;
        remove_unfinished(&kernels)?;
        for suite in missing(&kernels) {
            let release = fetch(&kernels, suite)
                .with_context(|| format!("fetching the kernel of {suite}"))?;
            println!("set-up: kernel of {suite}: {release}");
        }
        Ok(())
    }
}

fn missing(kernels: &Path) -> Vec<&'static str> {
    SUITES
        .into_iter()
        .filter(|suite| Kernel::open(&kernels.join(suite)).is_none())
        .collect()
}

fn remove_unfinished(kernels: &Path) -> Result<()> {
    for path in entries(kernels)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(UNFINISHED) {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Brings the kernel of `suite` into the cache directory `kernels` and gives its release. What is half done when this fails or is
/// killed is in a temporary directory and never taken for a kernel.
fn fetch(kernels: &Path, suite: &str) -> Result<String> {
    let work = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(kernels)
        .with_context(|| format!("creating a directory in {}", kernels.display()))?;
    let apt = Apt::new(work.path(), suite)?;
    run(
        "kernels",
        apt.command("apt-get")
            .args(["-q", "--error-on=any", "update"]),
    )?;
    let packages = packages(&apt)?;
    run(
        "kernels",
        apt.command("apt-get")
            .args(["-q", "download"])
            .args(packages),
    )?;

    let tree = work.path().join("tree");
    for deb in files_ending_in(work.path(), ".deb")? {
        run(
            "kernels",
            Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree),
        )?;
    }
    let ready = work.path().join("ready");
    let release = assemble(&tree, &ready)?;
    let home = kernels.join(&release);
    if Kernel::open(&home).is_none() {
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| format!("removing {}", home.display()))?;
        }
        fs::rename(&ready, &home)
            .with_context(|| format!("renaming {} to {}", ready.display(), home.display()))?;
    }
    let link = work.path().join("link");
    symlink(&release, &link)
        .and_then(|()| fs::rename(&link, kernels.join(suite)))
        .with_context(|| format!("linking {suite} to {release}"))?;
    Ok(release)
}

/// apt with its lists, cache and sources in a directory of its own; keys, proxy and the like are
/// the machine's.
struct Apt {
    directory: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(directory: &Path, suite: &str) -> Result<Self> {
        let at = |name: &str| directory.join(name);
        for needed in ["lists/partial", "cache/archives/partial", "sources"] {
            fs::create_dir_all(at(needed))
                .with_context(|| format!("creating {}", at(needed).display()))?;
        }
        let mirror = mirror()?;
        let source = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\n\
             Targets: Packages\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
        let stanza = at("sources/debian.sources");
        fs::write(&stanza, source).with_context(|| format!("writing {}", stanza.display()))?;
        let status = at("status"); // of dpkg: no package is installed
        fs::write(&status, "").with_context(|| format!("writing {}", status.display()))?;
        let options = [
            ("Dir::State", at("")),
            ("Dir::State::lists", at("lists")),
            ("Dir::State::status", status),
            ("Dir::Cache", at("cache")),
            ("Dir::Etc::sourcelist", PathBuf::from("/dev/null")),
            ("Dir::Etc::sourceparts", at("sources")),
        ];
        let mut options: Vec<_> = options
            .iter()
            .map(|(name, path)| format!("{name}={}", path.display()))
            .collect();
        // The cache is the user's: apt's own user may not be able to write there.
        options.push("APT::Sandbox::User=root".to_owned());
        options.push("Acquire::Languages=none".to_owned());
        options.push("Acquire::Retries=3".to_owned());
        Ok(Self {
            directory: directory.to_owned(),
            options,
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.current_dir(&self.directory).env("LC_ALL", "C");
        command
    }
}

/// The packages that hold the kernel which the meta package stands for: one up to trixie, since
/// then the image, the modules and their indexes (in linux-base-VERSION) come apart.
fn packages(apt: &Apt) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut open = vec![META_PACKAGE.to_owned()];
    while let Some(package) = open.pop() {
        let text = output(apt.command("apt-cache").args(["depends", &package]))?;
        open.extend(
            kernel_parts(&text)
                .filter(|part| found.insert((*part).to_owned()))
                .map(str::to_owned),
        );
    }
    ensure!(!found.is_empty(), "{META_PACKAGE} depends on no kernel");
    Ok(found)
}

/// From what `apt-cache depends` prints: the packages of one kernel have its version in the name.
fn kernel_parts(depends: &str) -> impl Iterator<Item = &str> {
    depends.lines().filter_map(|line| {
        let name = line.trim_start().strip_prefix("Depends: ")?;
        let version = [
            "linux-image-",
            "linux-base-",
            "linux-binary-",
            "linux-modules-",
        ]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
        version
            .starts_with(|c: char| c.is_ascii_digit())
            .then_some(name)
    })
}

/// Makes `ready` (`vmlinuz`, `modules/`) from the unpacked packages and gives the release.
fn assemble(tree: &Path, ready: &Path) -> Result<String> {
    // Debian's packages had /lib/modules before they had /usr/lib/modules.
    let trees = ["lib/modules", "usr/lib/modules"].map(|path| tree.join(path));
    let mut releases = Vec::new();
    for modules in trees.iter().filter(|modules| modules.is_dir()) {
        releases.extend(entries(modules)?);
    }
    let [modules] = releases.as_slice() else {
        bail!(
            "the packages hold {} module trees instead of one",
            releases.len()
        );
    };
    let release = modules
        .file_name()
        .and_then(|name| name.to_str())
        .context("the module tree has no name")?;
    let images = [
        tree.join(format!("boot/vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ];
    let image = images
        .iter()
        .find(|image| image.is_file())
        .with_context(|| format!("the packages of {release} hold no vmlinuz"))?;
    fs::create_dir(ready)?;
    fs::rename(image, ready.join("vmlinuz"))?;
    fs::rename(modules, ready.join("modules"))?;
    decompress(&ready.join("modules"))?;
    index(ready, release)?;
    Ok(release.to_owned())
}

/// Unpacks the modules: the initramfs can load them as they are, and no decompressor has to run emulated.
fn decompress(modules: &Path) -> Result<()> {
    for (ending, tool) in [(".ko.xz", ["xz", "-d"]), (".ko.zst", ["zstd", "-dq"])] {
        let packed = files_ending_in(modules, ending)?;
        for some in packed.chunks(200) {
            run(
                "kernels",
                Command::new(tool[0]).arg(tool[1]).arg("--").args(some),
            )?;
        }
        for path in &packed {
            if path.exists() {
                fs::remove_file(path)?; // zstd keeps its input
            }
        }
    }
    Ok(())
}

/// It is not in every user's PATH.
fn depmod() -> &'static str {
    ["/usr/sbin/depmod", "/sbin/depmod"]
        .into_iter()
        .find(|path| Path::new(path).is_file())
        .unwrap_or("depmod")
}

/// depmod wants lib/modules/RELEASE below its base.
fn index(ready: &Path, release: &str) -> Result<()> {
    let base = ready.join("base/lib/modules");
    fs::create_dir_all(&base)?;
    fs::rename(ready.join("modules"), base.join(release))?;
    let mut depmod = Command::new(depmod());
    run(
        "kernels",
        depmod.arg("-b").arg(ready.join("base")).arg(release),
    )?;
    fs::rename(base.join(release), ready.join("modules"))?;
    fs::remove_dir_all(ready.join("base"))?;
    Ok(())
}

fn files_ending_in(directory: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(directory)? {
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_ending_in(&path, ending)?);
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    Ok(found)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<_>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    read().with_context(|| format!("listing {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_kernel_are_told_from_its_tools() {
        let text = "\
linux-image-7.2.13+deb14-cloud-amd64
  PreDepends: linux-base
 |Depends: dracut
  Depends: <linux-initramfs-tool>
    dracut
  Depends: linux-base-7.2.13+deb14-cloud-amd64
  Depends: linux-binary-7.2.13+deb14-cloud-amd64
  Depends: linux-modules-7.2.13+deb14-cloud-amd64
  Suggests: linux-doc-7.2
";
        let parts: Vec<_> = kernel_parts(text).collect();
        let wanted = [
            "linux-base-7.2.13+deb14-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
        ];
        assert_eq!(parts, wanted);
    }

    #[test]
    fn all_are_missing_from_an_empty_cache() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(missing(cache.path()), ["bookworm", "trixie", "sid"]);
    }

    #[test]
    fn both_layouts_of_the_packages_are_understood() {
        for (image, modules) in [
            ("boot/vmlinuz-6.1.0-x", "lib/modules/6.1.0-x"),
            ("usr/lib/modules/6.1.0-x/vmlinuz", "usr/lib/modules/6.1.0-x"),
        ] {
            let place = tempfile::tempdir().unwrap();
            let tree = place.path().join("tree");
            let lower = tree.join(modules).join("kernel");
            fs::create_dir_all(&lower).unwrap();
            fs::create_dir_all(tree.join(image).parent().unwrap()).unwrap();
            fs::write(tree.join(image), "kernel").unwrap();
            for name in [
                "modules.order",
                "modules.builtin",
                "modules.builtin.modinfo",
            ] {
                fs::write(tree.join(modules).join(name), "").unwrap();
            }
            let ready = place.path().join("6.1.0-x");
            assert_eq!(assemble(&tree, &ready).unwrap(), "6.1.0-x");
            assert!(Kernel::open(&ready).is_some(), "{image}");
            assert!(!ready.join("base").exists());
        }
    }
}
