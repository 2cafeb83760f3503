//! What the source's steps do with the hold.
use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use netmig_common::{Mode, Side};
use netmig_core::{frame::HoldBegin, proto::Channel};

use super::{
    super::{super::hold, steps::Steps},
    Hold, OPENING, Returning,
};
use crate::{
    agent::local::Told,
    gate::{Gate, Point, hold::Limit},
};

/// How long the connection for held packets may take, once everything else is ready.
const COMING: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(2);

impl Steps {
    /// A hold for the gate that has just been attached. Without one the gate drops, and that is said.
    pub(in crate::driver::source) fn begin_hold(
        &self,
        gate: &Gate,
        places: Vec<(u16, Point)>,
    ) -> Option<Arc<Hold>> {
        // Everything would be dropped in any case.
        if self.spec.hold_limit == 0 || places.is_empty() {
            return None;
        }
        let begun = hold::taps(self.id, Side::Source, places)
            .map_err(anyhow::Error::from)
            .and_then(|taps| {
                Hold::begin(self.id, gate, taps, Limit::of_bytes(self.spec.hold_limit))
            });
        match begun {
            Ok(hold) => Some(Arc::new(hold)),
            Err(e) => {
                hold::forget(gate);
                self.feed.tell(Told::Note(format!(
                    "packets of the blackout are dropped, for they cannot be held: {e:#}"
                )));
                None
            }
        }
    }

    /// The connection for held packets, opened while there is time.
    pub(in crate::driver::source) fn open_hold(&self) {
        let Some(hold) = self.state().hold.clone() else {
            return;
        };
        let begin = HoldBegin {
            limit: self.spec.hold_limit,
            barrier_us: self.spec.barrier_limit_ms.saturating_mul(1000),
        };
        let (dialer, hello) = (self.dialer.clone(), self.hello(Channel::Hold));
        self.handle.spawn(hold.ship(dialer, hello, begin));
    }

    /// Waits until the target says that it stores what is held: the tasks run still, and without that nobody answers the peers in the blackout.
    pub(in crate::driver::source) fn expect_hold(&self) {
        let Some(hold) = self.state().hold.clone() else {
            return;
        };
        let until = Instant::now() + COMING;
        while !hold.can_keep() {
            if Instant::now() >= until || self.over.load(Ordering::SeqCst) {
                self.feed.tell(Told::Note(format!(
                    "peers are not answered in the blackout: the connection for held packets has not come up within {COMING:?}"
                )));
                return;
            }
            thread::sleep(GLANCE);
        }
    }

    /// The tasks are about to be stopped one after the other: from now on datagrams, which nobody may read in time, are held.
    pub(in crate::driver::source) fn hold_datagrams(self: &Arc<Self>) -> Result<()> {
        let state = self.state();
        let (Some(gate), Some(_)) = (&state.gate, &state.hold) else {
            return Ok(());
        };
        match gate.mode()?.mode {
            Mode::Pass => {
                gate.drain_all(false, false)?;
                gate.hold_datagrams(true)?;
                gate.set_mode(Mode::Drain, self.life.epoch, Some(self.lease()))?;
                drop(state);
                self.keep_the_lease();
            }
            Mode::Drain => gate.hold_datagrams(true)?,
            // Everything is held.
            _ => {}
        }
        Ok(())
    }

    /// Opens the gate in order, what was held first; none where nothing was held, then the gate is to be opened as it is.
    pub(in crate::driver::source) fn return_held(
        &self,
        gate: &Gate,
        before: &mut dyn FnMut(),
    ) -> Result<Option<Returning>> {
        let hold = self.state().hold.clone();
        let Some(hold) = hold else { return Ok(None) };
        let netns = self.netns()?;
        let pids = self.holders();
        match gate.mode()?.mode {
            Mode::Closed => gate.open_in_order(self.life.epoch, OPENING)?,
            // Datagrams may be held already.
            Mode::Drain => {
                gate.set_mode(Mode::Closed, self.life.epoch, None)?;
                gate.open_in_order(self.life.epoch, OPENING)?;
            }
            // The lease ran out and has opened it; what was held until then is delivered all the same.
            Mode::Expired => gate.set_mode(Mode::Pass, self.life.epoch, None)?,
            // It was never closed.
            _ => {
                hold.stop(Some(gate));
                return Ok(None);
            }
        }
        before();
        // Without them only buffers are not widened.
        let mut returning = hold.return_here(&netns, pids.unwrap_or_default(), self.life.epoch)?;
        returning.left.extend(self.remove_owned());
        Ok(Some(returning))
    }
}
