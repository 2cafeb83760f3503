//! A move as its operator sees it: phases with bytes and rate on a terminal, plain lines otherwise; ^C asks for the container back.
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use netmig_core::{id::MoveId, machine::source::Phase};
use tokio::net::UnixStream;

use crate::agent::local::{self, Say, Told};

/// How a followed move came to its end.
pub struct End {
    /// The move.
    pub mv: Option<MoveId>,
    /// The plan as JSON, if one was made.
    pub plan: Option<String>,
    /// The report as JSON.
    pub report: String,
}

/// What became of following a move.
pub enum Followed {
    /// The move is over.
    Ended(End),
    /// It goes on without us; what the operator should know.
    Left(String),
}

/// Follows until the end. The first ^C asks for the container back, a second one leaves the move to the agent.
///
/// # Errors
/// The agent's own, or the connection's; the move goes on without us in that case.
pub async fn follow(stream: UnixStream, quiet: bool) -> Result<Followed> {
    let (mut from, mut to) = stream.into_split();
    let mut screen = Screen::new(quiet);
    let mut end = End {
        mv: None,
        plan: None,
        report: String::new(),
    };
    let mut asked = false;
    loop {
        let told = tokio::select! {
            told = local::read::<Told>(&mut from) => told.context("the connection to the agent broke")?,
            signal = tokio::signal::ctrl_c() => {
                signal.context("waiting for ^C")?;
                if asked {
                    return Ok(Followed::Left(format!(
                        "left: the move goes on in the agent{}",
                        rejoin(end.mv)
                    )));
                }
                asked = true;
                screen.line("asking for the container back (a second ^C leaves the move to the agent)");
                local::write(&mut to, &Say::Cancel).await.context("the connection to the agent broke")?;
                continue;
            }
        };
        match told {
            None => {
                return Ok(Followed::Left(format!(
                    "the agent is gone; the next one takes the move up{}",
                    rejoin(end.mv)
                )));
            }
            Some(Told::Begun(mv)) => {
                end.mv = Some(mv);
                screen.line(&format!("move {mv}"));
            }
            Some(Told::Phase(phase)) => screen.phase(phase),
            Some(Told::Bytes { sent, total }) => screen.bytes(sent, total),
            Some(Told::Note(text)) => screen.line(&text),
            Some(Told::Plan(plan)) => end.plan = Some(plan),
            Some(Told::Ended(report)) => {
                screen.done();
                end.report = report;
                return Ok(Followed::Ended(end));
            }
            Some(Told::Error(text)) => {
                screen.done();
                bail!(text);
            }
        }
    }
}

fn rejoin(mv: Option<MoveId>) -> String {
    mv.map_or_else(String::new, |mv| {
        format!("; netmig-user migrate --attach {mv} follows it")
    })
}

/// Standard error, as a bar or as lines.
struct Screen {
    bar: Option<ProgressBar>,
    quiet: bool,
    begun: Instant,
    phase: Option<(Phase, Instant)>,
}

impl Screen {
    fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            quiet,
            begun: Instant::now(),
            phase: None,
        }
    }

    fn phase(&mut self, phase: Phase) {
        if let Some((old, since)) = self.phase.replace((phase, Instant::now())) {
            self.line(&format!(
                "{:>9}  {:8.1} ms",
                name(old),
                since.elapsed().as_secs_f64() * 1e3
            ));
        }
        if let Some(bar) = &self.bar {
            bar.set_style(ProgressStyle::default_spinner());
            bar.set_message(name(phase));
        }
    }

    fn bytes(&self, sent: u64, total: Option<u64>) {
        let Some(bar) = &self.bar else { return };
        if let Some(total) = total {
            bar.set_length(total.max(sent));
        }
        bar.set_position(sent);
        let template = if total.is_some() {
            "{spinner} {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}"
        } else {
            "{spinner} {msg} {bytes} {bytes_per_sec}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
    }

    fn line(&self, text: &str) {
        match (&self.bar, self.quiet) {
            (Some(bar), _) => bar.println(text),
            (None, false) => eprintln!("[{:8.3}] {text}", self.begun.elapsed().as_secs_f64()),
            (None, true) => {}
        }
    }

    fn done(&mut self) {
        if let Some((old, since)) = self.phase.take() {
            self.line(&format!(
                "{:>9}  {:8.1} ms",
                name(old),
                since.elapsed().as_secs_f64() * 1e3
            ));
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Plan => "plan",
        Phase::Attach => "attach",
        Phase::Precopy => "precopy",
        Phase::Drain => "drain",
        Phase::Freeze => "freeze",
        Phase::Dump => "dump",
        Phase::Transfer => "transfer",
        Phase::Rebuild => "rebuild",
        Phase::Grant => "grant",
        Phase::Open => "open",
        Phase::Announce => "announce",
        Phase::Clean => "clean",
    }
}
