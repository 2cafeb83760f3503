//! Handshakes that were under way: connections in SYN queues.
//!
//! A request socket cannot be made from outside, and need not be: its SYN-ACK is out. At the target a program at the container's links waits for
//! the ACK, and has the kernel make the connection of it (see the object `accept`). The SYN-ACK may have been lost; it is sent once more at the
//! opening, and then as the kernel does it (reqsk_timer_handler): after 1, 3, 7, 15 and 31 s. After 63 s the handshake is given up, as there.
//!
//! This process does all that. Where it ends, or where the container moves on, the program ends with it; a second move takes along what has not
//! come till then.
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use netmig_common::accept::{Agreed, HalfOpen as Expected, NOT_SEEN, OVER};
use netmig_core::{
    image::v1::sock::{HalfOpen, later},
    socket::State,
};
use nix::sys::stat::stat;

use super::{
    super::{
        common,
        diag::{self, Found},
        error::{Error, On},
        inject::Injector,
        tcp::Kernels,
    },
    key, kfunc, supported,
};
use crate::sys::netns::within;

/// TCP_TIMEOUT_INIT.
const FIRST: Duration = Duration::from_secs(1);
/// How often it is looked who has come: what waits for nobody any more is to be gone.
const GLANCE: Duration = Duration::from_millis(500);
/// net.ipv4.tcp_synack_retries.
const RETRIES: u32 = 5;

/// Those of one namespace.
#[derive(Debug)]
pub(in crate::sock) struct HalfOpens {
    netns: PathBuf,
    /// Device and inode of `netns`: a path may be used again.
    id: (u64, u64),
    /// With the stamp that it would send at `since`.
    all: Vec<(HalfOpen, u32)>,
    since: Instant,
    program: Mutex<kfunc::Program>,
    forgotten: Mutex<bool>,
    woken: Condvar,
}

/// Those that are waited for after their opening.
static GOING: Mutex<Vec<Arc<HalfOpens>>> = Mutex::new(Vec::new());

fn going() -> MutexGuard<'static, Vec<Arc<HalfOpens>>> {
    GOING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The caller's namespace.
fn here() -> io::Result<(u64, u64)> {
    let here = stat("/proc/thread-self/ns/net")?;
    Ok((here.st_dev, here.st_ino))
}

/// What is waited for in the caller's namespace, and is not in `found`.
pub(in crate::sock) fn under_way(found: &[Found]) -> Result<Vec<HalfOpen>, Error> {
    let id = here()?;
    let those: Vec<_> = going().iter().filter(|g| g.id == id).cloned().collect();
    Ok(those
        .iter()
        .flat_map(|those| those.missing(found))
        .collect())
}

/// The container lives elsewhere: nothing more is sent in its name.
pub(in crate::sock) fn forget(netns: &Path) -> Result<(), Error> {
    let id = within(netns, here)?;
    for those in going().iter().filter(|g| g.id == id) {
        *those
            .forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        those.woken.notify_all();
    }
    Ok(())
}

impl HalfOpens {
    /// Waits for the ACKs of `all` in the caller's namespace, `netns`, from now on; their ends are as they are called here. Says which cannot
    /// be waited for.
    pub(in crate::sock) fn expect(
        netns: &Path,
        all: Vec<HalfOpen>,
        kernels: Kernels,
    ) -> Result<(Option<Arc<Self>>, Vec<String>), Error> {
        if all.is_empty() {
            return Ok((None, Vec::new()));
        }
        let lost = |why: &str| {
            let lost = |half: &HalfOpen| format!("{half} begins anew or is reset: {why}");
            all.iter().map(lost).collect::<Vec<_>>()
        };
        if !supported() {
            return Ok((None, lost("this kernel cannot take it (Linux 6.9)")));
        }
        let links = common::interfaces()?;
        let links: Vec<_> = links
            .iter()
            .map(|l| l.name.as_str())
            .filter(|name| *name != "lo")
            .collect();
        let mut program = match kfunc::Program::at_links(&links) {
            Ok(program) => program,
            Err(e) => return Ok((None, lost(&e.to_string()))),
        };
        let mut stamped = Vec::with_capacity(all.len());
        for half in all {
            let stamp = kernels.clock(half.timestamp);
            program
                .expect(&key(half.local, half.peer), &expected(&half, stamp))
                .map_err(|source| Error::Accept { source })?;
            stamped.push((half, stamp));
        }
        let all = Arc::new(Self {
            netns: netns.to_owned(),
            id: here()?,
            all: stamped,
            since: Instant::now(),
            program: Mutex::new(program),
            forgotten: Mutex::new(false),
            woken: Condvar::new(),
        });
        Ok((Some(all), Vec::new()))
    }

    /// The gate passes: the SYN-ACKs are sent once more, now and by their timer.
    pub(in crate::sock) fn open(self: Arc<Self>, injector: &mut Injector) -> Result<(), Error> {
        let sent = remind(injector, &self.missing(&diag::tcp()?));
        going().push(Arc::clone(&self));
        thread::Builder::new()
            .name("half-open".to_owned())
            .spawn(move || {
                self.go_on();
                going().retain(|going| !Arc::ptr_eq(going, &self));
            })?;
        sent
    }

    /// Until all have come, or the last timer has run out.
    fn go_on(&self) {
        let (mut wait, mut turn) = (FIRST, 0);
        let mut next = Instant::now() + wait;
        loop {
            if self.sleeps(GLANCE) {
                return;
            }
            let due = Instant::now() >= next;
            let left = within(&self.netns, || {
                if here()? != self.id {
                    return Ok(0);
                }
                let missing = self.missing(&diag::tcp()?);
                if due && turn < RETRIES {
                    remind(&mut Injector::default(), &missing)?;
                }
                Ok::<_, Error>(missing.len())
            });
            match left {
                Ok(0) => return,
                Ok(left) if due && turn == RETRIES => {
                    return tracing::info!("{left} handshakes were not ended by their peers");
                }
                Ok(_) => {}
                // With its container the namespace ends.
                Err(e) => return tracing::debug!("handshakes under way: {e}"),
            }
            if due {
                (wait, turn) = (wait * 2, turn + 1);
                next += wait;
            }
        }
    }

    /// Whether it was forgotten meanwhile.
    fn sleeps(&self, time: Duration) -> bool {
        let forgotten = self
            .forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (forgotten, _) = self
            .woken
            .wait_timeout_while(forgotten, time, |forgotten| !*forgotten)
            .unwrap_or_else(PoisonError::into_inner);
        *forgotten
    }

    /// Those whose ACK has not come, as they would be dumped now.
    fn missing(&self, found: &[Found]) -> Vec<HalfOpen> {
        let mut program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        let stands = |half: &HalfOpen| {
            let ends = Some((half.local.canonical(), half.peer.canonical()));
            found
                .iter()
                .any(|f| f.state != State::SynRecv && f.on_the_wire() == ends)
        };
        let mut missing = Vec::new();
        for (half, stamp) in &self.all {
            let seen = program.half_open(&key(half.local, half.peer));
            let over = seen.is_ok_and(|seen| seen.outcome == OVER);
            if !over && !stands(half) {
                missing.push(HalfOpen {
                    timestamp: later(*stamp, self.since.elapsed()),
                    ..half.clone()
                });
            }
        }
        missing
    }
}

/// Sends their SYN-ACKs.
fn remind(injector: &mut Injector, missing: &[HalfOpen]) -> Result<(), Error> {
    let mut failed = None;
    for half in missing {
        let sent = injector.syn_ack(half).on("sending its SYN-ACK", half);
        failed = failed.or(sent.err());
    }
    failed.map_or(Ok(()), Err)
}

fn expected(half: &HalfOpen, stamp: u32) -> Expected {
    let (snd_wscale, rcv_wscale) = half.wscale.unwrap_or_default();
    Expected {
        agreed: Agreed {
            rcv_tsval: half.ts_recent.unwrap_or(0),
            rcv_tsecr: stamp,
            mss: half.mss,
            rcv_wscale,
            snd_wscale,
            ecn_ok: u8::from(half.ecn),
            wscale_ok: u8::from(half.wscale.is_some()),
            sack_ok: u8::from(half.sack),
            tstamp_ok: u8::from(half.ts_recent.is_some()),
            usec_ts_ok: u8::from(half.ts_recent.is_some() && stamp & 1 == 1),
            reserved: [0; 3],
        },
        isn: half.isn,
        peer_isn: half.peer_isn,
        outcome: NOT_SEEN,
    }
}
