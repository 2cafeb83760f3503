//! Mode `drain`: what user space tells the programs of connections, and how far they have come.
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use netmig_common::{
    Direction, FlowHint, FlowKey, FlowState, HOLD_DATAGRAMS, Mode, SCALE_UNKNOWN, Settings,
};
use netmig_core::id::Epoch;
use nix::time::{ClockId, clock_gettime};

use super::{Error, Gate};

/// Window scales of a connection, from its socket (`tcpi_snd_wscale`, `tcpi_rcv_wscale`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowScales {
    /// Of the windows that the peer announces (`tcpi_snd_wscale`); none if scaling was not negotiated or is not known.
    pub snd: Option<u8>,
    /// Of the windows that the container announces (`tcpi_rcv_wscale`).
    pub rcv: Option<u8>,
    /// TCP-MD5 or TCP-AO: never rewritten.
    pub signed: bool,
    /// Let windows shrink that stop the peer.
    pub stop_peer: bool,
    /// Let windows shrink that stop the container.
    pub stop_container: bool,
}

/// How far the drain is, by what passed on the wire since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Connections seen.
    pub flows: usize,
    /// Those that are not quiet.
    pub busy: Vec<FlowKey>,
}

/// How a drain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// How long it took.
    pub took: Duration,
    /// Everything was quiet; else the limit came first, and `progress` names what was still in flight.
    pub quiet: bool,
    /// What was last seen.
    pub progress: Progress,
}

/// How often a drain looks at the sockets and the flows.
const LOOK: Duration = Duration::from_micros(500);

impl Gate {
    /// Sets mode `Drain` and waits until everything is quiet, or for `limit`. Quiet is what [`Gate::progress`] calls so, with `silence` (one
    /// round trip) gone by since the start, and `in_flight` saying no: whether any socket of the container has bytes that are not
    /// acknowledged. The mode stays `Drain`; a lease is not renewed here.
    ///
    /// # Errors
    /// Those of [`Gate::set_mode`] and [`Gate::progress`]; [`Error::Expired`] if the lease ran out meanwhile.
    pub fn drain(
        &self,
        epoch: Epoch,
        lease: Option<Duration>,
        limit: Duration,
        silence: Duration,
        in_flight: &mut dyn FnMut() -> bool,
    ) -> Result<Drained, Error> {
        self.set_mode(Mode::Drain, epoch, lease)?;
        let begin = Instant::now();
        loop {
            let progress = self.progress(silence)?;
            let took = begin.elapsed();
            // Before that a connection may be silent only because what it has sent is on its way.
            let quiet = took >= silence && progress.busy.is_empty() && !in_flight();
            if quiet || took >= limit {
                return match self.mode()?.mode {
                    Mode::Drain => Ok(Drained {
                        took,
                        quiet,
                        progress,
                    }),
                    _ => Err(Error::Expired),
                };
            }
            sleep(LOOK.min(limit - took));
        }
    }

    /// Tells the programs of a connection, before or while it is drained. A connection without this is drained as [`Gate::drain_all`]
    /// says if the gate saw its SYNs, and left alone (and counted) if not: without its scales no window can be rewritten.
    ///
    /// # Errors
    /// If the map is full or cannot be written.
    pub fn hint(&self, key: &FlowKey, scales: &FlowScales) -> Result<(), Error> {
        let hint = FlowHint {
            // Inbound segments carry the peer's windows, outbound ones the container's.
            scales: [
                scales.snd.unwrap_or(SCALE_UNKNOWN),
                scales.rcv.unwrap_or(SCALE_UNKNOWN),
            ],
            drain: u8::from(scales.stop_container) | u8::from(scales.stop_peer) << 1,
            signed: scales.signed.into(),
        };
        let mut hints = self
            .hints
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        hints.insert(key, hint, 0).map_err(|source| Error::Map {
            map: "HINTS",
            source,
        })
    }

    /// Which windows shrink in `drain` for connections without a hint: those that stop the peer, those that stop the container.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn drain_all(&self, stop_peer: bool, stop_container: bool) -> Result<(), Error> {
        self.set(|settings| {
            settings.drain = settings.drain & HOLD_DATAGRAMS
                | u32::from(stop_container)
                | u32::from(stop_peer) << 1;
        })
    }

    /// In `drain`, datagrams to the container go to the hold of their device from now on (or not): for the time in which its tasks are
    /// stopped one after the other, and read no more.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn hold_datagrams(&self, hold: bool) -> Result<(), Error> {
        self.set(|settings| {
            settings.drain &= !HOLD_DATAGRAMS;
            settings.drain |= if hold { HOLD_DATAGRAMS } else { 0 };
        })
    }

    pub(super) fn settings(&self) -> Result<Settings, Error> {
        let map = self
            .settings
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        map.get(&0, 0).map_err(|source| Error::Map {
            map: "SETTINGS",
            source,
        })
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Settings)) -> Result<(), Error> {
        let at = |source| Error::Map {
            map: "SETTINGS",
            source,
        };
        let mut map = self
            .settings
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut settings = map.get(&0, 0).map_err(at)?;
        change(&mut settings);
        map.set(0, settings, 0).map_err(at)
    }

    /// What the programs saw of each connection since the last `drain` began.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn flows(&self) -> Result<Vec<(FlowKey, FlowState)>, Error> {
        let round = self.settings()?.round as u16;
        let current = |entry: &Result<(_, FlowState), _>| {
            entry.as_ref().map_or(true, |(_, flow)| flow.round == round)
        };
        let flows: Result<_, _> = self.flows.iter().filter(current).collect();
        flows.map_err(|source| Error::Map {
            map: "FLOWS",
            source,
        })
    }

    /// Which connections are not quiet. Quiet on the wire: all that was seen going either way is acknowledged, and the peer has sent no
    /// payload for `silence` (one round trip). What the programs cannot see, the sockets know: bytes not acknowledged that were lost
    /// before the gate, an acknowledgement that is still delayed.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn progress(&self, silence: Duration) -> Result<Progress, Error> {
        let now = Duration::from(
            clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|e| Error::Clock(e.into()))?,
        );
        let silent_since = now.saturating_sub(silence).as_nanos();
        let flows = self.flows()?;
        let busy = flows.iter().filter(|(_, flow)| {
            let payload = flow.payload_ns[Direction::Inbound as usize];
            !flow.is_acknowledged(Direction::Inbound)
                || !flow.is_acknowledged(Direction::Outbound)
                || (payload != 0 && u128::from(payload) > silent_since)
        });
        Ok(Progress {
            busy: busy.map(|(key, _)| *key).collect(),
            flows: flows.len(),
        })
    }

    #[cfg(test)]
    pub(super) fn forget_flow(&self, key: &FlowKey) {
        let data = super::object::map_data(&self.pins, "FLOWS").expect("the map");
        let map = aya::maps::Map::from_map_data(data).expect("the map");
        let mut flows: aya::maps::HashMap<_, FlowKey, FlowState> = map.try_into().expect("the map");
        if let Err(e) = flows.remove(key) {
            assert!(matches!(e, aya::maps::MapError::SyscallError(_)), "{e}");
        }
    }
}
