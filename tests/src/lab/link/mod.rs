//! A long, narrow or bad line between a host and the switch, in user space: no kernel module is needed.
//!
//! Two TAP devices, one of them the host's `eth0` and the other a port of the switch, and a process that carries frames from one to the
//! other as [`line`] says. Both speak `virtio_net_hdr`, so that what is left to a device (checksums, the cutting of super-packets)
//! stays so; on a line that drops or delays single packets super-packets are cut before they come here.
mod line;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        time::TimeSpec,
    },
    time::{ClockId, clock_gettime},
    unistd::{ForkResult, Pid, fork},
};
use serde::{Deserialize, Serialize};

use line::{Fate, Way};
pub use line::{Line, Rate, Share, Unreadable, time};

/// Length of `struct virtio_net_hdr`.
const HEADER: usize = 10;
/// Longest frame: an IP packet of 64 KiB with its link header and tags.
const FRAME_MAX: usize = 65_535 + 14 + 3 * 4;
/// Packets of one direction in a row, so that the other is not kept waiting.
const TURN: usize = 64;
/// What waits in the kernel at most, while this process is not given a processor.
const QUEUE: u32 = 10_000;
/// How often the counts are written down.
const TELL: Duration = Duration::from_millis(250);

/// What happened on a line, by direction: from the host, to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Frames that came.
    pub sent: [u64; 2],
    /// Their bytes.
    pub bytes: [u64; 2],
    /// Frames given to the other end, the second of a pair included.
    pub delivered: [u64; 2],
    /// Dropped by a full queue.
    pub full: [u64; 2],
    /// Lost on the way.
    pub lost: [u64; 2],
    /// Late by reordering.
    pub late: [u64; 2],
    /// Doubled.
    pub doubled: [u64; 2],
    /// Refused by the device at the other end: it is down, or its queue is full.
    pub refused: [u64; 2],
}

/// Where the counts of a lab's line are.
pub(super) fn counts_path(directory: &Path) -> PathBuf {
    directory.join("link.json")
}

/// Two TAP devices of this process's network namespace that are not joined yet.
pub(super) struct Ends {
    host: File,
    switch: File,
}

impl Ends {
    /// Makes them, down.
    pub(super) fn make(host: &str, switch: &str, line: Line) -> anyhow::Result<Self> {
        let end = |name: &str| tap(name, line.cuts()).with_context(|| format!("making TAP {name}"));
        Ok(Self {
            host: end(host)?,
            switch: end(switch)?,
        })
    }

    /// Forks the process that joins them; it ends with this one.
    pub(super) fn join(self, line: Line, counts: &Path) -> anyhow::Result<Pid> {
        // SAFETY: the keeper has one thread, so the child may do whatever it could.
        match unsafe { fork() }.context("forking the line")? {
            ForkResult::Parent { child } => Ok(child),
            ForkResult::Child => {
                let status = self.carry(line, counts);
                if let Err(error) = &status {
                    eprintln!("the line: {error:#}");
                }
                std::process::exit(i32::from(status.is_err()));
            }
        }
    }

    fn carry(self, line: Line, counts: &Path) -> anyhow::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL).context("asking to end with the keeper")?;
        // Waits are as long as they are asked for, not up to 50 us longer.
        prctl::set_timerslack(1).context("asking for exact waits")?;
        let mut carrier = Carrier {
            ends: [self.host, self.switch],
            ways: [Way::new(line, 0), Way::new(line, 1)],
            due: BinaryHeap::new(),
            number: 0,
            counts: Counts::default(),
            buffer: vec![0; HEADER + FRAME_MAX].into(),
        };
        let mut told = (Counts::default(), 0);
        loop {
            let now = now()?;
            carrier.deliver(now)?;
            if carrier.counts != told.0 && now - told.1 >= u64::try_from(TELL.as_nanos())? {
                told = (carrier.counts, now);
                tell(&carrier.counts, counts)?;
            }
            carrier.wait(now)?;
            for from in [0, 1] {
                carrier.take(from)?;
            }
        }
    }
}

/// A frame on its way, ordered by when it arrives and then by when it was sent.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Frame {
    at: u64,
    number: u64,
    /// The end that it arrives at.
    to: usize,
    bytes: Vec<u8>,
}

struct Carrier {
    ends: [File; 2],
    ways: [Way; 2],
    due: BinaryHeap<Reverse<Frame>>,
    number: u64,
    counts: Counts,
    buffer: Box<[u8]>,
}

impl Carrier {
    /// Reads what has come in at an end.
    fn take(&mut self, from: usize) -> anyhow::Result<()> {
        for _ in 0..TURN {
            let length = match self.ends[from].read(&mut self.buffer) {
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The device is down, or on its way into the host.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(()),
                Err(e) => return Err(e).context("reading a frame"),
            };
            let frame = length.saturating_sub(HEADER);
            self.counts.sent[from] += 1;
            self.counts.bytes[from] += u64::try_from(frame)?;
            match self.ways[from].send(now()?, frame) {
                Fate::Full => self.counts.full[from] += 1,
                Fate::Lost => self.counts.lost[from] += 1,
                Fate::Arrives { at, twice, late } => {
                    self.counts.late[from] += u64::from(late);
                    self.counts.doubled[from] += u64::from(twice);
                    for _ in 0..=u8::from(twice) {
                        self.number += 1;
                        self.due.push(Reverse(Frame {
                            at,
                            number: self.number,
                            to: 1 - from,
                            bytes: self.buffer[..length].to_vec(),
                        }));
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives what is due to the other end.
    fn deliver(&mut self, now: u64) -> anyhow::Result<()> {
        while let Some(Reverse(frame)) = self.due.peek()
            && frame.at <= now
        {
            let to = frame.to;
            match self.ends[to].write(&frame.bytes) {
                Ok(_) => self.counts.delivered[1 - to] += 1,
                Err(e)
                    if matches!(
                        e.raw_os_error(),
                        Some(libc::EIO | libc::EAGAIN | libc::ENOBUFS)
                    ) =>
                {
                    self.counts.refused[1 - to] += 1;
                }
                Err(e) => return Err(e).context("delivering a frame"),
            }
            self.due.pop();
        }
        Ok(())
    }

    /// Until something comes or is due, at most until the counts want to be told.
    fn wait(&self, now: u64) -> anyhow::Result<()> {
        let next = self.due.peek().map_or(Duration::MAX, |Reverse(frame)| {
            Duration::from_nanos(frame.at.saturating_sub(now))
        });
        let wait = TimeSpec::from_duration(next.min(TELL));
        let [host, switch] = &self.ends;
        let mut fds = [host, switch].map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        match ppoll(&mut fds, Some(wait), Some(SigSet::empty())) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e).context("waiting for frames"),
        }
    }
}

fn now() -> anyhow::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

/// Whoever reads the file sees all of one moment.
fn tell(counts: &Counts, path: &Path) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(counts)?)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// include/uapi/linux/if_tun.h
mod tun {
    nix::ioctl_write_int!(set_offload, b'T', 208);
    nix::ioctl_write_ptr!(set_interface, b'T', 202, libc::c_int);
    nix::ioctl_write_ptr!(set_header_size, b'T', 216, libc::c_int);

    pub(super) const CSUM: u64 = 0x01;
    pub(super) const TSO4: u64 = 0x02;
    pub(super) const TSO6: u64 = 0x04;
    pub(super) const TSO_ECN: u64 = 0x08;
}

fn tap(name: &str, cuts: bool) -> io::Result<File> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the field is a short, the flags fit"
    )]
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL) as i16;
    request.ifr_ifru.ifru_flags = flags;
    let fd = tap.as_raw_fd();
    // SAFETY: TUNSETIFF takes a `struct ifreq`, though its number says int.
    unsafe { tun::set_interface(fd, (&raw const request).cast()) }?;
    let header = i32::try_from(HEADER).map_err(io::Error::other)?;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    unsafe { tun::set_header_size(fd, &raw const header) }?;
    let whole = if cuts {
        0
    } else {
        tun::TSO4 | tun::TSO6 | tun::TSO_ECN
    };
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    unsafe { tun::set_offload(fd, tun::CSUM | whole) }?;
    Ok(tap)
}

/// The commands for ip(8) that put the ends in their places: the host's as `eth0` with address `mac` into the namespace of process
/// `pid`, the switch's at bridge `bridge`.
pub(super) fn places(host: &str, switch: &str, mac: &str, pid: i32, bridge: &str) -> String {
    format!(
        "link set dev {host} txqueuelen {QUEUE} address {mac}\nlink set dev {host} netns {pid} name eth0\n\
         link set dev {switch} txqueuelen {QUEUE} master {bridge} up\n"
    )
}
