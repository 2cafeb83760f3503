//! When a client ends: it is told so, its starter is gone, or its time is over; whichever comes first.
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The line that a client prints when all its connections stand and have done their first work.
pub const READY: &str = "ready";

/// Shared by the threads of a client.
#[derive(Debug, Clone)]
pub struct Stop {
    told: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Stop {
    /// Ends after `limit` at the latest.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self {
            told: Arc::default(),
            deadline: Some(Instant::now() + limit),
        }
    }

    /// Ends only when told to.
    #[must_use]
    pub fn never() -> Self {
        Self {
            told: Arc::default(),
            deadline: None,
        }
    }

    /// As [`Stop::after`], and when standard input ends.
    #[must_use]
    pub fn at_end_of_input(limit: Duration) -> Self {
        let stop = Self::after(limit);
        let told = stop.clone();
        thread::spawn(move || {
            let mut sink = [0; 64];
            while matches!(io::stdin().read(&mut sink), Ok(n) if n > 0) {}
            told.tell();
        });
        stop
    }

    /// Ends now.
    pub fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    /// Whether it is time to end.
    #[must_use]
    pub fn told(&self) -> bool {
        self.told.load(Ordering::Relaxed) || self.deadline.is_some_and(|d| Instant::now() >= d)
    }

    /// Sleeps for `duration`, or less when told to end.
    pub fn sleep(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while !self.told() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}

/// Tells the starter that the client is warm.
///
/// # Errors
/// Standard output is closed.
pub fn say_ready() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{READY}")?;
    out.flush()
}
