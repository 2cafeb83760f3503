//! A lab with the gauge's programs in it, and one move after the other.
use std::{path::PathBuf, thread, time::Duration};

use serde_json::Value;

use super::{Ended, Load, Moment, NAME, PORT, client::Answer, server::WAIT};
use crate::{
    Bind, Cmd, Host, Lab, Options, Process,
    asked::Asked,
    demo::{self, Error, Image},
    handing,
    lab::link::Line,
    peers::clock::ms,
};

/// The program that stays where it is.
const STILL: &str = "still";
const NUMBER: u8 = 41;
const STILL_NUMBER: u8 = 42;
const PEER_PROGRAM: &str = "/usr/bin/netmig-peer";
/// How the program is started where it comes to.
const COMMAND: &str = "/srv/gauge";
const AGENT_LOG: &str = "/run/netmig/agent.log";
/// What an agent writes when a gate closes, and when one opens, with the moment.
const CLOSED: &str = "the gate is closed";
const OPENS: &str = "the gate opens";
/// And how long it took until nothing was in flight.
const DRAINED: &str = "drained";
/// The connections become what they are for so long: their windows grow.
const WARM: Duration = Duration::from_millis(800);
/// How long after the opening the longest figure is waited for.
const FELT_LIMIT: Duration = Duration::from_secs(15);
/// Before the drain begins the plan is made; a scheduler's turn more.
const CALM_NS: u64 = 20_000_000;
/// CRIU as the target's runtime finds it, with a pause before it restores.
const SLOW: &str =
    "#!/bin/sh\ncase \"$*\" in *swrk*) sleep SECONDS ;; esac\nexec /usr/sbin/criu.real \"$@\"\n";

/// What moves the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// It saves and loads itself.
    Handoff,
    /// It is a container of podman's.
    Criu,
}

/// What is measured of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// What the peers do.
    pub load: Load,
    /// Connections of the peer (none with [`Load::Datagrams`], which has one socket).
    pub connections: usize,
    /// Over IPv6.
    pub v6: bool,
    /// What the engine waits at the target, which the blackout lasts longer. CRIU is called two or three times.
    pub wait: Duration,
    /// Bytes a second of each direction (0: as fast as it goes), or datagrams a second.
    pub rate: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Moved {
    /// From the closing to the opening of the gate, ms.
    pub blackout_ms: f64,
    /// How long what was in flight was waited for, ms.
    pub drain_ms: f64,
    /// What was felt of it.
    pub answer: Answer,
    /// How the connections ended, some time later.
    pub ended: Ended,
    /// `netmig.report/1`.
    pub report: Value,
}

/// A lab with the program on host `a`. It goes down when dropped.
#[derive(Debug)]
pub struct Stage {
    lab: Lab,
    engine: Engine,
    line: Option<Line>,
    on_a: bool,
    _still: Process,
}

/// What a stage is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The lab's name.
    pub lab: String,
    /// The test root.
    pub root: PathBuf,
    /// The program `netmig-user`; otherwise as [`Options::binary`].
    pub netmig_user: Option<PathBuf>,
    /// The program `netmig-peer`.
    pub netmig_peer: PathBuf,
    /// Where images are cached.
    pub cache: PathBuf,
    /// Between the peer and the hosts; none: a cable.
    pub line: Option<Line>,
    /// What moves the program.
    pub engine: Engine,
}

impl Stage {
    /// Brings up the lab and starts the programs.
    ///
    /// # Errors
    /// Whatever of this failed.
    pub fn up(parts: &Parts) -> Result<Self, Error> {
        let options = Options {
            root: Some(parts.root.clone()),
            binary: parts.netmig_user.clone(),
            binds: vec![Bind {
                source: parts.netmig_peer.clone(),
                target: PEER_PROGRAM.into(),
                read_only: true,
            }],
            line: parts.line,
            ..Options::default()
        };
        let lab = Lab::up(&parts.lab, &options)?;
        let (a, b): (&dyn Host, &dyn Host) = (lab.a(), lab.b());
        match parts.engine {
            Engine::Handoff => {
                let program = format!("{PEER_PROGRAM} gauge-server --command {COMMAND}");
                let load = format!("#!/bin/sh\nexec {program} --load\n");
                for host in [a, b] {
                    host.write(COMMAND, load.as_bytes(), 0o755)?;
                }
                handing::network(a, NAME, NUMBER)?;
                handing::start(a, NAME, &program)?;
            }
            Engine::Criu => {
                let image = Image::build(&parts.root, &parts.netmig_peer, &parts.cache)?;
                for host in [a, b] {
                    host.sh("mv /usr/sbin/criu /usr/sbin/criu.real")?;
                    wait_in_criu(host, Duration::ZERO)?;
                    image.load(host)?;
                }
                demo::start_with(a, &image, &["/bin/netmig-peer", "gauge-server"])?;
            }
        }
        handing::network(b, STILL, STILL_NUMBER)?;
        let still = Cmd::new(["ip", "netns", "exec", STILL, PEER_PROGRAM, "gauge-server"]);
        let still = b.spawn(&still)?;
        Ok(Self {
            lab,
            engine: parts.engine,
            line: parts.line,
            on_a: true,
            _still: still,
        })
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Where the program is.
    #[must_use]
    pub fn here(&self) -> &dyn Host {
        if self.on_a {
            self.lab.a()
        } else {
            self.lab.b()
        }
    }

    /// Round trip of the line, without what the machine takes for it.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.line.map_or(Duration::ZERO, |line| line.rtt)
    }

    /// Ends the lab.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn down(self) -> Result<(), Error> {
        Ok(self.lab.down()?)
    }

    /// One move to the other host under the cell's load, with more options of `netmig-user migrate`.
    ///
    /// # Errors
    /// The move, or a peer, does not come to its end.
    pub fn move_once(&mut self, cell: &Cell, options: &[&str]) -> Result<Moved, Error> {
        let mut peer = self.peer(cell)?;
        thread::sleep(WARM);
        let (from, to): (&dyn Host, &dyn Host) = if self.on_a {
            (self.lab.a(), self.lab.b())
        } else {
            (self.lab.b(), self.lab.a())
        };
        let report = match self.engine {
            Engine::Handoff => {
                to.write(WAIT, cell.wait.as_millis().to_string().as_bytes(), 0o644)?;
                let moved = handing::migrate(from, to, NAME, options)?;
                moved.report.ok_or_else(|| {
                    let said = format!("{}{}", moved.output.errors(), moved.output.text());
                    error("netmig-user migrate", said)
                })?
            }
            Engine::Criu => {
                wait_in_criu(from, Duration::ZERO)?;
                wait_in_criu(to, cell.wait)?;
                let moved = demo::netmig::migrate_with(from, to, options)?;
                // The record that netmig keeps at the source would be in the way of a container of that name.
                demo::remove(from)?;
                moved.report
            }
        };
        if report["outcome"] != "moved" {
            let logs = [from, to].map(demo::netmig::agent_log).concat();
            return Err(error("netmig-user migrate", format!("{report:#}\n{logs}")));
        }
        self.on_a = !self.on_a;
        let mv = report["move"].as_str().unwrap_or_default();
        let (left, came) = (from.read(AGENT_LOG)?, to.read(AGENT_LOG)?);
        let closed_ns = needed(&left, mv, CLOSED)? * 1000;
        let opened_ns = needed(&came, mv, OPENS)? * 1000;
        // With `--drain off` there is none.
        let drain_us = field_of(&left, mv, DRAINED, "took_us").unwrap_or(0);
        let disturbed_ms = phase_ms(&report, "drain") + phase_ms(&report, "freeze");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "phases are short and not negative"
        )]
        let disturbed_ns = (disturbed_ms * 1e6) as u64;
        let answer: Answer = peer.ask(&Moment {
            calm_ns: closed_ns - disturbed_ns - CALM_NS,
            closed_ns,
            opened_ns,
            half_rtt_ns: u64::try_from(self.rtt().as_nanos() / 2).unwrap_or_default(),
        })?;
        Ok(Moved {
            blackout_ms: ms(opened_ns.saturating_sub(closed_ns)),
            drain_ms: ms(drain_us * 1000),
            answer,
            ended: peer.finish()?,
            report,
        })
    }

    /// The cell's load for `time`, without a move.
    ///
    /// # Errors
    /// The peer does not come to its end.
    pub fn stand(&self, cell: &Cell, time: Duration) -> Result<Ended, Error> {
        let peer = self.peer(cell)?;
        thread::sleep(time);
        peer.finish()
    }

    fn peer(&self, cell: &Cell) -> Result<Asked, Error> {
        let number = match self.engine {
            Engine::Handoff => NUMBER,
            Engine::Criu => demo::NUMBER,
        };
        let at = |number: u8| match cell.v6 {
            true => format!("[2001:db8::{number}]:{PORT}"),
            false => format!("192.0.2.{number}:{PORT}"),
        };
        let load = clap::ValueEnum::to_possible_value(&cell.load)
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        let command = Cmd::new([PEER_PROGRAM, "gauge-client", "--load", &load])
            .args(["--to".to_owned(), at(number)])
            .args(["--still".to_owned(), at(STILL_NUMBER)])
            .args(["--connections".to_owned(), cell.connections.to_string()])
            .args(["--rate".to_owned(), cell.rate.to_string()])
            .args(["--limit".to_owned(), FELT_LIMIT.as_millis().to_string()]);
        Asked::start(self.lab.peer(), "gauge-client", command)
    }
}

/// The length of one of the report's phases, ms.
fn phase_ms(report: &Value, phase: &str) -> f64 {
    let phases = report["phases"].as_array();
    let mut all = phases.into_iter().flatten();
    all.find(|one| one["phase"] == phase)
        .and_then(|one| one["ms"].as_f64())
        .unwrap_or_default()
}

/// When an agent wrote `what` of move `mv`, us since 1970.
fn needed(log: &[u8], mv: &str, what: &str) -> Result<u64, Error> {
    field_of(log, mv, what, "at_us")
        .ok_or_else(|| error("agent.log", format!("`{what}` of move {mv} is not there")))
}

/// What it wrote as `field` beside that.
fn field_of(log: &[u8], mv: &str, what: &str, field: &str) -> Option<u64> {
    let log = String::from_utf8_lossy(log);
    let mut lines = log.lines();
    let line = lines.rfind(|line| line.contains(what) && line.contains(mv))?;
    let (_, value) = line.split_once(&format!(" {field}="))?;
    value
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// Makes the host's engine wait before each thing that it is asked.
fn wait_in_criu(host: &dyn Host, wait: Duration) -> Result<(), Error> {
    let script = SLOW.replace("SECONDS", &wait.as_secs_f64().to_string());
    Ok(host.write("/usr/sbin/criu", script.as_bytes(), 0o755)?)
}

fn error(name: &str, said: String) -> Error {
    Error::Client {
        name: name.to_owned(),
        said,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_found_in_a_log() {
        let log = b"1 INFO x: the gate is closed mv=aa at_us=17\n2 INFO x: the gate is closed mv=bb at_us=18 more\n";
        assert_eq!(field_of(log, "aa", CLOSED, "at_us"), Some(17));
        assert_eq!(field_of(log, "bb", CLOSED, "at_us"), Some(18));
        assert_eq!(field_of(log, "bb", CLOSED, "s"), None);
        assert_eq!(field_of(log, "cc", CLOSED, "at_us"), None);
        assert_eq!(field_of(log, "aa", OPENS, "at_us"), None);
    }

    #[test]
    fn phases_are_found_in_a_report() {
        let report = json!({"phases": [{"phase": "drain", "ms": 4.5}]});
        assert!((phase_ms(&report, "drain") - 4.5).abs() < 1e-9);
        assert!(phase_ms(&report, "freeze").abs() < 1e-9);
    }
}
