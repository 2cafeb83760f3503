//! The mode word in shared memory with the programs: every change is one compare-and-set.
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use aya::maps::MapData;
use netmig_common::{Mode, ModeWord, Side};
use netmig_core::id::Epoch;
use nix::time::{ClockId, clock_gettime};

use super::{Error, shared::Shared};

/// The one element of map `MODE`.
pub(super) struct Word(Shared);

impl Word {
    pub(super) fn map(map: &MapData) -> Result<Self, Error> {
        Shared::map(map, 1).map(Self)
    }

    fn atomic(&self) -> &AtomicU64 {
        &self.0.counts()[0]
    }

    /// The first word of a new gate, before anything is attached.
    pub(super) fn start(&self, mode: Mode, side: Side, epoch: Epoch) -> Result<(), Error> {
        if matches!(mode, Mode::Granted | Mode::Expired | Mode::Opening) {
            return Err(Error::Unsettable { mode });
        }
        let word = ModeWord {
            mode,
            side,
            epoch: narrow(epoch)?,
            deadline_ms: 0,
        };
        self.atomic().store(word.pack(), Ordering::SeqCst);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn store_raw(&self, bits: u64) {
        self.atomic().store(bits, Ordering::SeqCst);
    }

    pub(super) fn read(&self) -> Result<ModeWord, Error> {
        let bits = self.atomic().load(Ordering::SeqCst);
        let bits = ModeWord::after_deadline(bits, now_ms()?)
            .map_or(bits, |mode| ModeWord::with_mode(bits, mode));
        ModeWord::unpack(bits).ok_or(Error::Word(bits))
    }

    pub(super) fn set_mode(
        &self,
        mode: Mode,
        epoch: Epoch,
        lease: Option<Duration>,
    ) -> Result<(), Error> {
        self.change(epoch, |word| match (word.mode, mode) {
            (_, Mode::Granted | Mode::Expired | Mode::Opening) => Err(Error::Unsettable { mode }),
            (Mode::Granted, _) => Err(Error::Granted),
            (Mode::Expired, Mode::Drain | Mode::Closed) => Err(Error::Expired),
            _ if lease.is_some() && word.side == Side::Target => Err(Error::AtTarget),
            _ => Ok(ModeWord {
                mode,
                deadline_ms: deadline(lease)?,
                ..word
            }),
        })
    }

    pub(super) fn renew(&self, epoch: Epoch, lease: Duration) -> Result<(), Error> {
        self.change(epoch, |word| match word.mode {
            _ if word.side == Side::Target => Err(Error::AtTarget),
            Mode::Expired => Err(Error::Expired),
            Mode::Drain | Mode::Closed => Ok(ModeWord {
                deadline_ms: deadline(Some(lease))?,
                ..word
            }),
            Mode::Pass | Mode::Granted | Mode::Opening => Ok(word),
        })
    }

    pub(super) fn open(&self, epoch: Epoch, limit: Duration) -> Result<(), Error> {
        self.change(epoch, |word| match word.mode {
            Mode::Closed | Mode::Opening => Ok(ModeWord {
                mode: Mode::Opening,
                deadline_ms: deadline(Some(limit))?,
                ..word
            }),
            Mode::Pass => Ok(word),
            Mode::Expired => Err(Error::Expired),
            Mode::Granted => Err(Error::Granted),
            mode => Err(Error::NotClosed { mode }),
        })
    }

    pub(super) fn go_on_opening(&self, epoch: Epoch, limit: Duration) -> Result<(), Error> {
        self.change(epoch, |word| match word.mode {
            Mode::Opening => Ok(ModeWord {
                deadline_ms: deadline(Some(limit))?,
                ..word
            }),
            _ => Ok(word),
        })
    }

    pub(super) fn grant(&self, epoch: Epoch) -> Result<(), Error> {
        self.change(epoch, |word| match word.mode {
            _ if word.side == Side::Target => Err(Error::AtTarget),
            Mode::Closed | Mode::Granted => Ok(ModeWord {
                mode: Mode::Granted,
                deadline_ms: 0,
                ..word
            }),
            Mode::Expired => Err(Error::Expired),
            mode => Err(Error::NotClosed { mode }),
        })
    }

    pub(super) fn reclaim(&self, epoch: Epoch) -> Result<(), Error> {
        self.change(epoch, |word| match word.mode {
            Mode::Granted => Ok(ModeWord {
                mode: Mode::Closed,
                deadline_ms: 0,
                ..word
            }),
            _ => Ok(word),
        })
    }

    /// Replaces the word by what `change` makes of it, unless somebody else was faster: then from the start. A lease that has run out is
    /// latched first, whatever is to follow, as the programs would.
    fn change(
        &self,
        epoch: Epoch,
        change: impl Fn(ModeWord) -> Result<ModeWord, Error>,
    ) -> Result<(), Error> {
        let given = narrow(epoch)?;
        let swap = |from, to| {
            self.atomic()
                .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        };
        loop {
            let bits = self.atomic().load(Ordering::SeqCst);
            if let Some(mode) = ModeWord::after_deadline(bits, now_ms()?) {
                swap(bits, ModeWord::with_mode(bits, mode));
                continue;
            }
            let word = ModeWord::unpack(bits).ok_or(Error::Word(bits))?;
            if word.epoch > given {
                return Err(Error::Stale {
                    given: epoch.0,
                    current: word.epoch,
                });
            }
            if swap(
                bits,
                ModeWord {
                    epoch: given,
                    ..change(word)?
                }
                .pack(),
            ) {
                return Ok(());
            }
        }
    }
}

fn narrow(epoch: Epoch) -> Result<u16, Error> {
    u16::try_from(epoch.0).map_err(|_| Error::Epoch(epoch.0))
}

/// CLOCK_BOOTTIME in ms, as `bpf_ktime_get_boot_ns` sees it: it goes on while the host is suspended.
pub(super) fn now_ms() -> Result<u64, Error> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|e| Error::Clock(e.into()))?;
    Ok(u64::try_from(Duration::from(now).as_millis()).unwrap_or(u64::MAX))
}

fn deadline(lease: Option<Duration>) -> Result<u64, Error> {
    let Some(lease) = lease else { return Ok(0) };
    let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    Ok(now_ms()?.saturating_add(lease).min(ModeWord::DEADLINE_MAX))
}
