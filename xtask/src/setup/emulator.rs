//! QEMU for the virtual machines, unpacked in the cache and not installed: Debian 12's own is too old for guests with two processors.
use std::path::Path;

use anyhow::ensure;
use netmig_lab::vm::Emulator;

use super::{Step, command, debian_tree::Recipe};

/// What it takes while it is made, in bytes.
const SPACE: u64 = 400 << 20;

pub struct Qemu;

impl Step for Qemu {
    fn what(&self) -> String {
        "QEMU".to_owned()
    }

    fn why(&self) -> String {
        format!(
            "of Debian {}: it emulates the virtual machines",
            Emulator::SUITE
        )
    }

    fn missing(&self) -> anyhow::Result<Option<String>> {
        let there = Emulator::cached();
        Ok((!there.tree().is_dir()).then(|| format!("not fetched: {}", there.tree().display())))
    }

    fn make(&self) -> anyhow::Result<()> {
        Recipe {
            log: "qemu",
            variant: "extract",
            packages: &[Emulator::PACKAGE],
            suites: &[Emulator::SUITE],
            arguments: Vec::new(),
            space: SPACE,
        }
        .make(Emulator::cached().tree(), verify)
    }
}

/// It runs here, over this machine's kernel.
fn verify(made: &Path) -> anyhow::Result<()> {
    let said = command::output(Emulator::at(made).command().arg("--version"))?;
    ensure!(
        said.starts_with("QEMU emulator version"),
        "QEMU as it was unpacked says: {said}"
    );
    Ok(())
}
