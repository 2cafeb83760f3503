use std::path::{Path, PathBuf};
use std::process::Command;

use crate::root;

/// QEMU, out of a tree of unpacked packages. It runs with the libraries of that tree, whatever this machine has.
///
/// QEMU before 8.1, as Debian 12 has it, cannot be trusted with two processors in two threads: one reads code to translate while the
/// other writes it, and keeps what it has read. The breakpoint by which the kernel switches a jump label is then hit when it is long
/// gone, and the kernel dies ("Oops: int3"). Both processors in one thread take twice as long.
#[derive(Debug, Clone)]
pub struct Emulator {
    tree: PathBuf,
}

impl Emulator {
    /// The release that it is of.
    pub const SUITE: &str = "trixie";

    /// Its package.
    pub const PACKAGE: &str = "qemu-system-x86";

    /// The one in the cache, whether it is there or not.
    #[must_use]
    pub fn cached() -> Self {
        Self::at(&root::cache().join(format!("qemu-{}", Self::SUITE)))
    }

    /// The one in `tree`.
    #[must_use]
    pub fn at(tree: &Path) -> Self {
        Self {
            tree: tree.to_owned(),
        }
    }

    /// The tree that it is in.
    #[must_use]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The command that it is; arguments may follow.
    #[must_use]
    pub fn command(&self) -> Command {
        let libraries = self.tree.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(libraries)
            .arg(self.tree.join("usr/bin/qemu-system-x86_64"));
        for firmware in ["qemu", "seabios"] {
            command
                .arg("-L")
                .arg(self.tree.join("usr/share").join(firmware));
        }
        command
    }
}
