//! The line between `peer` and the hosts, as arguments.
use std::time::Duration;

use clap::Args;
use netmig_lab::lab::link::{self, Line, Rate, Share};

/// The line between peer and the switch. Without any of these it is a cable; with a rate, loss, reordering or doubling it carries no
/// super-packets
#[derive(Args)]
pub struct LineArguments {
    /// There and back, as in 20ms
    #[arg(long, value_name = "TIME", value_parser = link::time)]
    rtt: Option<Duration>,
    /// Each way, as in 400mbit
    #[arg(long)]
    rate: Option<Rate>,
    /// How long a packet waits at most for its turn at the rate, as in 40ms; one that would wait longer is dropped
    #[arg(long, value_name = "TIME", value_parser = link::time, requires = "rate")]
    queue: Option<Duration>,
    /// Share of packets that are lost, as in 0.1%
    #[arg(long, value_name = "SHARE")]
    loss: Option<Share>,
    /// Share of packets that come 1 ms late, behind what was sent after them
    #[arg(long, value_name = "SHARE")]
    reorder: Option<Share>,
    /// Share of packets that come twice
    #[arg(long, value_name = "SHARE")]
    duplicate: Option<Share>,
    /// Which packets; the same for the same seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl LineArguments {
    /// None if nothing was asked for.
    pub fn line(&self) -> Option<Line> {
        let line = Line {
            rtt: self.rtt.unwrap_or_default(),
            rate: self.rate,
            queue: self.queue,
            loss: self.loss.unwrap_or_default(),
            reorder: self.reorder.unwrap_or_default(),
            duplicate: self.duplicate.unwrap_or_default(),
            seed: self.seed,
        };
        (line
            != Line {
                seed: self.seed,
                ..Line::default()
            })
        .then_some(line)
    }
}
