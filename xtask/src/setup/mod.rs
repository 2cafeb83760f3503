//! `cargo xtask setup`: what the other verbs need of the machine. Each step looks first, and is made only if it is missing; what is
//! made is made aside and put in place when it is whole, so that a broken run leaves nothing that counts.
mod command;
mod components;
mod debian_tree;
mod ebpf;
mod emulator;
mod mirror;
mod packages;
mod test_root;
mod vm_kernels;

use std::{env, ffi::OsString, fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use netmig_lab::root;
use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};

/// Something that the machine must have.
pub trait Step {
    /// What it is.
    fn what(&self) -> String;
    /// What it is for.
    fn why(&self) -> String;
    /// What of it is missing; none if it is there.
    fn missing(&self) -> anyhow::Result<Option<String>>;
    /// Brings it.
    fn make(&self) -> anyhow::Result<()>;
}

/// What a verb wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Compile, the eBPF programs too.
    Build,
    /// Check the source's form.
    Lint,
    /// Run each crate's own tests.
    Unit,
    /// Bring up a lab.
    Lab,
    /// Boot virtual machines.
    Vm,
}

/// How much it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// Every step.
    All,
    /// The steps that have to be made.
    Work,
}

#[derive(Args)]
pub struct Arguments {
    /// Only say what is missing; exit with 1 if something is
    #[arg(long)]
    check: bool,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let all = [
        Purpose::Build,
        Purpose::Lint,
        Purpose::Unit,
        Purpose::Lab,
        Purpose::Vm,
    ];
    if !arguments.check {
        ready(&all, Tell::All)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut complete = true;
    for step in all.into_iter().flat_map(steps) {
        let missing = step.missing()?;
        complete &= missing.is_none();
        match missing {
            None => println!("there    {}", step.what()),
            Some(missing) => println!("missing  {}: {missing} ({})", step.what(), step.why()),
        }
    }
    Ok(ExitCode::from(u8::from(!complete)))
}

/// The steps for a purpose, in order.
fn steps(purpose: Purpose) -> Vec<Box<dyn Step>> {
    match purpose {
        Purpose::Build => vec![Box::new(ebpf::Compiler), Box::new(ebpf::Linker)],
        Purpose::Lint => vec![Box::new(components::Components)],
        Purpose::Unit => vec![Box::new(packages::UNIT)],
        Purpose::Lab => vec![Box::new(packages::LAB), Box::new(test_root::TestRoot)],
        Purpose::Vm => vec![
            Box::new(packages::VM),
            Box::new(emulator::Qemu),
            Box::new(vm_kernels::VmKernels),
        ],
    }
}

/// Brings what these purposes need.
pub fn ready(purposes: &[Purpose], tell: Tell) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut lock = None;
    for step in purposes.iter().copied().flat_map(steps) {
        if step.missing()?.is_none() {
            if tell == Tell::All {
                println!("set-up: {}: there ({})", step.what(), step.why());
            }
            continue;
        }
        require_root(&format!("setting up {}", step.what()))?;
        if lock.is_none() {
            lock = Some(lock_cache()?);
        }
        // Looked at again: another set-up may have brought it meanwhile.
        let Some(missing) = step.missing()? else {
            continue;
        };
        println!("set-up: {}: {missing} ({})", step.what(), step.why());
        let began = Instant::now();
        step.make()
            .with_context(|| format!("setting up {}", step.what()))?;
        if let Some(missing) = step.missing()? {
            bail!("{} was set up, and still: {missing}", step.what());
        }
        println!(
            "set-up: {}: done in {:.1} s",
            step.what(),
            began.elapsed().as_secs_f32()
        );
    }
    if tell == Tell::All {
        println!(
            "set-up: complete after {:.1} s",
            began.elapsed().as_secs_f32()
        );
    }
    Ok(())
}

/// Says so in one line if this is not root.
pub fn require_root(what: &str) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        bail!("not root: {what} is for root alone; run the same command as root");
    }
    Ok(())
}

/// PATH for cargo: with cargo's own programs, where set-up puts bpf-linker.
pub fn path() -> anyhow::Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let programs = cargo_home().join("bin");
    if env::split_paths(&path).any(|directory| directory == programs) {
        return Ok(path);
    }
    let all = env::split_paths(&path).chain([programs]);
    env::join_paths(all).context("putting PATH together")
}

fn cargo_home() -> PathBuf {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return home.into();
    }
    env::home_dir()
        .unwrap_or_else(|| "/root".into())
        .join(".cargo")
}

/// One set-up at a time makes things; another waits for it.
fn lock_cache() -> anyhow::Result<Flock<fs::File>> {
    let cache = root::cache();
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let path = cache.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusive) {
        Ok(lock) => Ok(lock),
        Err((_, e)) => Err(e).with_context(|| format!("locking {}", path.display())),
    }
}
