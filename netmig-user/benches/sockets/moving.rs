//! netmig's two agents, in processes of their own, and the image that goes from one to the other.
use std::{
    fs,
    io::{Read as _, Write as _, stdin},
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use netmig_core::image::v1::sock::{Holder, Sockets};
use netmig_user::{
    sock::{self, Place},
    sys::{pidfd::PidFd, sockopt},
};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike as _,
    },
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use super::{
    ends::{MOVED, all_descriptors},
    hosts::Hosts,
    role::{Child, Role, tell, told},
};

/// One move, in us.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Netmig {
    /// Dump of all sockets.
    dump: f64,
    /// The image's way: encoded, written, read, decoded, checked.
    image: f64,
    /// Until the descriptors are found.
    find: f64,
    /// Until all are rebuilt, in repair.
    restore: f64,
    /// Until all have left repair.
    repair_off: f64,
    /// Peers' windows told, and told to peers.
    open: f64,
    /// From the dump's begin to the end of the opening.
    freeze_to_release: f64,
    /// Processor time of both agents.
    processor: f64,
    /// Most memory that the source's agent took for it, bytes.
    memory: f64,
    /// Of the image as it travels, bytes.
    bytes: f64,
}

/// What the source's agent says.
#[derive(Serialize, Deserialize)]
struct Dumped {
    began: f64,
    dumped: f64,
    processor: f64,
    memory: f64,
}

/// What the target's agent says.
#[derive(Serialize, Deserialize)]
struct Restored {
    decoded: f64,
    find: f64,
    restore: f64,
    repair_off: f64,
    restored: f64,
    opened: f64,
    processor: f64,
    bytes: f64,
}

/// The kernel's clock, us; the same in all processes.
pub fn now() -> anyhow::Result<f64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    #[expect(clippy::cast_precision_loss, reason = "some days of microseconds")]
    let us = now.tv_sec() as f64 * 1e6 + now.tv_nsec() as f64 / 1e3;
    Ok(us)
}

/// Processor time of this process, us.
pub fn processor() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    #[expect(clippy::cast_precision_loss, reason = "some minutes of microseconds")]
    let us = (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64;
    Ok(us)
}

/// Moves what `held` (a process, its first descriptor) holds to the sockets of `free`. `live`: so many connections are given a word to carry,
/// and stay; else they are taken back.
pub fn by_netmig(
    hosts: &Hosts,
    held: (u32, i32),
    free: (u32, i32),
    live: Option<usize>,
) -> anyhow::Result<Netmig> {
    let mut target = Child::start(&Role::Restore {
        netns: hosts.target.path(),
        pid: free.0,
        shift: free.1 - held.1,
    })?;
    let mut source = Child::start(&Role::Dump {
        netns: hosts.source.path(),
        pid: held.0,
    })?;
    source.hear()?;
    let image = target.hear()?;
    source.say(&image)?;
    let dumped: Dumped = serde_json::from_str(&source.hear()?)?;
    let restored: Restored = serde_json::from_str(&target.hear()?)?;
    target.say(if live.is_some() { "write" } else { "take back" })?;
    ensure!(target.hear()? == "done", "the target's agent is not done");
    Ok(Netmig {
        dump: dumped.dumped - dumped.began,
        image: restored.decoded - dumped.dumped,
        find: restored.find,
        restore: restored.restore,
        repair_off: restored.repair_off,
        open: restored.opened - restored.restored,
        freeze_to_release: restored.opened - dumped.began,
        processor: dumped.processor + restored.processor,
        memory: dumped.memory,
        bytes: restored.bytes,
    })
}

/// The source's agent: dumps when it is told where the image goes to.
pub fn dump(netns: &Path, pid: i32) -> anyhow::Result<()> {
    all_descriptors()?;
    // What the plan asks, before the freeze.
    sock::rows(netns, &[pid])?;
    tell("ready")?;
    let Some(path) = told()? else { return Ok(()) };
    let mut wire = std::os::unix::net::UnixStream::connect(path)?;
    let before = Memory::now()?;
    let (began, spent) = (now()?, processor()?);
    let (image, kept) = sock::dump(netns, &[pid])?;
    let dumped = now()?;
    let memory = before.most_since()?;
    wire.write_all(&postcard::to_stdvec(&image)?)?;
    drop(wire);
    tell(serde_json::to_string(&Dumped {
        began,
        dumped,
        processor: processor()? - spent,
        memory,
    })?)?;
    told()?;
    drop(kept);
    Ok(())
}

/// The target's agent.
pub fn restore(netns: &Path, pid: i32, shift: i32) -> anyhow::Result<()> {
    all_descriptors()?;
    sock::prepare()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("image");
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    tell(path.display())?;
    let (mut wire, _) = listener.accept()?;
    let before = processor()?;
    let mut bytes = Vec::new();
    wire.read_to_end(&mut bytes)?;
    let image: Sockets = postcard::from_bytes(&bytes)?;
    let decoded = now()?;
    let place = |holder: &Holder| {
        Some(Place {
            pid,
            fd: holder.fd + shift,
        })
    };
    let rebuilt = sock::restore_at(netns, &image, &place)?;
    let restored = now()?;
    rebuilt.open()?;
    let opened = now()?;
    let processor = processor()? - before;
    ensure!(rebuilt.len() == image.tcp.len(), "not all were rebuilt");
    let spent = rebuilt.spent();
    let us = |d: Duration| d.as_secs_f64() * 1e6;
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let bytes = bytes.len() as f64;
    tell(serde_json::to_string(&Restored {
        decoded,
        find: us(spent.found),
        restore: us(spent.rebuilt),
        repair_off: us(spent.released),
        restored,
        opened,
        processor,
        bytes,
    })?)?;
    let what = told()?;
    let process = PidFd::open(pid)?;
    for tcp in &image.tcp {
        let holder = tcp.common.holders.first().context("nobody holds it")?;
        let fd = process.fd(holder.fd + shift)?;
        match what.as_deref() {
            Some("write") => write(&fd)?,
            Some(_) => take_back(&fd)?,
            None => bail!("the bench has ended"),
        }
    }
    drop(rebuilt);
    tell("done")?;
    let mut rest = String::new();
    stdin().read_to_string(&mut rest)?;
    Ok(())
}

fn write(fd: &OwnedFd) -> anyhow::Result<()> {
    let wrote = nix::unistd::write(fd, MOVED)?;
    ensure!(wrote == MOVED.len(), "a socket took only {wrote} bytes");
    Ok(())
}

/// As the engine has made it: closed, and nobody hears of it.
pub fn take_back(fd: &OwnedFd) -> anyhow::Result<()> {
    sockopt::set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, 1)?;
    sockopt::disconnect(fd)?;
    sockopt::set_int(
        fd,
        libc::SOL_TCP,
        libc::TCP_REPAIR,
        sockopt::number::TCP_REPAIR_OFF_NO_WP,
    )?;
    Ok(())
}

/// Resident memory of this process, bytes.
struct Memory(f64);

impl Memory {
    fn now() -> anyhow::Result<Self> {
        // Documentation/filesystems/proc.rst: 5 resets the peak.
        fs::write("/proc/self/clear_refs", "5").context("resetting VmHWM")?;
        read("VmRSS").map(Self)
    }

    fn most_since(self) -> anyhow::Result<f64> {
        Ok(read("VmHWM")? - self.0)
    }
}

fn read(field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    let kib = line
        .and_then(|l| l.split_whitespace().next())
        .with_context(|| format!("/proc/self/status has no {field}"))?;
    Ok(kib.parse::<f64>()? * 1024.0)
}
