//! How fast the link is, and what that makes of the blackout.
use std::time::Duration;

use anyhow::{Context, Result};
use netmig_core::{
    frame::Frame,
    plan::{self, Prediction, Rate},
    proto::Channel,
};

use super::steps::Steps;
use crate::wire::{measure, pipe::Pipe};

/// Longest time that a plan waits for it: ssh alone may take as long to connect.
const LIMIT: Duration = Duration::from_secs(10);

/// A round that sent so many bytes tells more of the link than the burst did, which may have ended in TCP's slow start.
const TELLING: u64 = 16 << 20;

impl Steps {
    /// Measures the link, on a connection like the one for images.
    pub async fn measure(&self) -> Result<Rate> {
        let (mut pipe, carrier) = Pipe::of_connection(self.dialer.dial_bulk()?);
        let measured = async {
            pipe.send(Frame::Hello(Box::new(self.hello(Channel::Measure))))
                .await?;
            anyhow::Ok(measure::measure(pipe).await?)
        };
        tokio::time::timeout(LIMIT, measured)
            .await
            .with_context(|| format!("it takes longer than {LIMIT:?}"))
            .flatten()
            .with_context(|| carrier.explain("the target's answers"))
    }

    /// What came of it.
    pub fn measured(&self, rate: Option<Rate>) {
        self.state().rate = rate;
    }

    /// A round has sent so many bytes in this time.
    pub(super) fn round_sent(&self, bytes: u64, took: Duration) {
        if let Some(rate) = &mut self.state().rate
            && bytes >= TELLING
        {
            rate.bytes_per_s = rate.bytes_per_s.max(bytes as f64 / took.as_secs_f64());
        }
    }

    /// Blackout in ms, if the freeze begins after the round that was the last so far: about as much has changed again as it has found.
    pub(super) fn blackout_ms(&self) -> u64 {
        let state = self.state();
        plan::blackout_ms(state.memory_bytes, state.left_bytes, state.rate).ceil() as u64
    }

    /// Puts into a plan's prediction what the rounds have shown.
    pub fn predict(&self, prediction: &mut Prediction) {
        prediction.blackout_ms = self.blackout_ms() as f64;
        let state = self.state();
        (prediction.frozen_bytes, prediction.rate) = (state.left_bytes, state.rate);
    }
}
