//! The initramfs: busybox, the modules that lead to the root disk, and a script that mounts the
//! disks and hands over to the guest's init.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::cpio::Archive;
use super::{Disk, Error, Kernel};

/// The modules without which the guest has no root file system and no control channel. Each comes
/// with what modules.dep says it needs; one that is built in is skipped.
const NEEDED: [&str; 4] = ["virtio_pci", "virtio_blk", "ext4", "virtio_console"];

/// Needed through crypto_alloc_shash("crc32c") by ext4 of kernels before 6.14, which no entry of
/// modules.dep tells; where they are gone or built in there is nothing to load.
const IF_THERE: [&str; 2] = ["crc32c_generic", "crc32c_cryptoapi"];

/// Builds the initramfs for `kernel`. `disks` are mounted in order, the first as the root; then
/// `init` (a path inside the root) becomes process 1.
pub fn build(
    kernel: &Kernel,
    busybox: &Path,
    disks: &[Disk],
    init: &str,
) -> Result<Vec<u8>, Error> {
    let mut archive = Archive::new();
    for directory in ["bin", "dev", "modules", "root"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 0o600, (5, 1));
    let shell = fs::read(busybox).map_err(Error::io("read", busybox))?;
    archive.file("bin/busybox", 0o755, &shell);

    let mut names = Vec::new();
    for module in load_order(kernel)? {
        let path = kernel.modules.join(&module);
        let content = fs::read(&path).map_err(Error::io("read", &path))?;
        let name = format!("modules/{}.ko", module_name(&module));
        archive.file(&name, 0o644, &content);
        names.push(name);
    }
    archive.file("init", 0o755, script(&names, disks, init).as_bytes());
    Ok(archive.finish())
}

fn script(modules: &[String], disks: &[Disk], init: &str) -> String {
    let mut lines = vec![
        "#!/bin/busybox sh".to_owned(),
        "b=/bin/busybox".to_owned(),
        "$b mount -t devtmpfs dev /dev".to_owned(),
    ];
    lines.extend(modules.iter().map(|module| format!("$b insmod /{module}")));
    for (disk, letter) in disks.iter().zip('a'..='z') {
        // Probing the disks goes on after insmod has returned.
        lines.push(format!(
            "while [ ! -b /dev/vd{letter} ]; do $b usleep 10000; done"
        ));
        let at = format!("/root{}", disk.mount_point);
        lines.push(format!("$b mkdir -p {at}"));
        let options = if disk.writable { "rw" } else { "ro" };
        lines.push(format!(
            "$b mount -t ext4 -o {options},noatime /dev/vd{letter} {at}"
        ));
    }
    lines.push("$b mount --move /dev /root/dev".to_owned());
    lines.push(format!("exec $b switch_root /root {init}"));
    lines.push(String::new());
    lines.join("\n")
}

/// The paths (in the module tree) of what must be loaded, each after what it depends on.
fn load_order(kernel: &Kernel) -> Result<Vec<String>, Error> {
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).map_err(Error::io("read", &path))
    };
    let index = Index::parse(&read("modules.dep")?, &read("modules.builtin")?);
    let mut order = Vec::new();
    for module in IF_THERE {
        index.add(module, &mut order);
    }
    for module in NEEDED {
        if !index.add(module, &mut order) {
            return Err(Error::NoModule {
                release: kernel.release.clone(),
                module: module.to_owned(),
            });
        }
    }
    Ok(order)
}

struct Index {
    /// Name of a module to its path and the paths it depends on, nearest first (modules.dep(5)).
    loadable: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Index {
    fn parse(dep: &str, builtin: &str) -> Self {
        let loadable = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                (module_name(path), (path.to_owned(), needs))
            })
            .collect();
        let builtin = builtin.lines().map(module_name).collect();
        Self { loadable, builtin }
    }

    /// Adds a module after what it needs; says whether the kernel has it at all.
    fn add(&self, module: &str, order: &mut Vec<String>) -> bool {
        let Some((path, needs)) = self.loadable.get(module) else {
            return self.builtin.contains(module);
        };
        if !order.contains(path) {
            // depmod lists the whole closure, what is needed first at the end; going through each
            // one's own needs as well keeps this independent of that order.
            for need in needs.iter().rev() {
                self.add(&module_name(need), order);
            }
            order.push(path.clone());
        }
        true
    }
}

/// `kernel/fs/ext4/ext4.ko` is `ext4`; the kernel takes `-` and `_` in names for the same.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko:
kernel/fs/mbcache.ko:
kernel/lib/crc16.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
";

    #[test]
    fn needs_come_first_and_once() {
        let index = Index::parse(DEP, "kernel/drivers/block/virtio-blk.ko\n");
        let mut order = Vec::new();
        assert!(index.add("virtio_pci", &mut order));
        assert!(index.add("virtio_blk", &mut order), "built in");
        assert!(index.add("ext4", &mut order));
        assert!(!index.add("zfs", &mut order));
        let names: Vec<_> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(
            names,
            [
                "virtio_ring",
                "virtio",
                "virtio_pci",
                "crc16",
                "jbd2",
                "mbcache",
                "ext4"
            ]
        );
    }
}
