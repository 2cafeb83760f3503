//! Many connections in random states, moved back and forth at random moments.
//!
//! A program that hands itself over ([`server`]) lives in a namespace on host `a`; its peers ([`client`]) keep a number of connections to it alive,
//! each of which does as it likes ([`life`]): streams, drips, bursts, silence, ends that do not read, ends that stop first, connections that are
//! being made, wait to be accepted or are over. Every byte of both directions is checked. What the hosts have is counted ([`held`]) halfway and after the
//! last move.
pub mod client;
pub mod held;
pub mod life;
pub mod server;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    Bind, Cmd, Host, Lab, Options,
    asked::Asked,
    demo::{Error, netmig},
    handing,
    lab::link::{Counts, Line},
    random::Random,
};
use client::{Mark, Outcome};
use held::Held;

/// The program's name, and its namespace's.
pub const NAME: &str = "soak";
const NUMBER: u8 = 40;
const PEER_PROGRAM: &str = "/usr/bin/netmig-peer";
/// How the program is started where it comes to.
const COMMAND: &str = "/srv/soak";
/// Agents may take so long until nothing of a move is left.
const ENDS: Duration = Duration::from_secs(20);

/// Of an agent's memory.
const COMES_AND_GOES_KIB: u64 = 16 << 10;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The lab's name.
    pub lab: String,
    /// The test root; otherwise as [`Options::root`].
    pub root: Option<PathBuf>,
    /// The program `netmig-user`; otherwise as [`Options::binary`].
    pub netmig_user: Option<PathBuf>,
    /// The program `netmig-peer`.
    pub netmig_peer: PathBuf,
    /// How many moves; an odd number is rounded up, for it ends where it began.
    pub moves: u32,
    /// How many connections there are at any time.
    pub connections: usize,
    /// Decides what the connections do and when the moves are; the machine decides too.
    pub seed: u64,
    /// Between the peers and the hosts; none: a cable.
    pub line: Option<Line>,
    /// The lab stays up.
    pub keep: bool,
}

/// One of the moves.
#[derive(Clone, Debug, Serialize)]
pub struct OneMove {
    /// From which host.
    pub from: String,
    /// The report's.
    pub outcome: String,
    /// The report's.
    pub blackout_ms: f64,
    /// How long the command ran, ms.
    pub took_ms: f64,
    /// Memory of the agents on `a` and `b` after it, KiB.
    pub memory_kib: [u64; 2],
    /// The report's phases, ms.
    pub phases: Value,
    /// Of each connection that is never silent: its longest time without a byte, less the blackout, ms.
    pub settled_ms: Vec<f64>,
    /// TCP sockets by class, as the report counts them.
    pub sockets: BTreeMap<String, u64>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Soaked {
    /// Each move.
    pub moves: Vec<OneMove>,
    /// The connections'.
    pub peers: Outcome,
    /// Packets that the line lost and reordered.
    pub line: Option<Counts>,
    /// Everything that is not as it should be.
    pub faults: Vec<String>,
}

/// Brings up a lab, moves, and takes it down.
///
/// # Errors
/// The lab does not come up, or a host does not answer. A move or a connection that goes wrong is a fault of the result.
pub fn run(plan: &Plan, tell: &mut dyn FnMut(&str)) -> Result<Soaked, Error> {
    let options = Options {
        root: plan.root.clone(),
        binary: plan.netmig_user.clone(),
        binds: vec![Bind {
            source: plan.netmig_peer.clone(),
            target: PEER_PROGRAM.into(),
            read_only: true,
        }],
        keep: plan.keep,
        line: plan.line,
        ..Options::default()
    };
    let lab = Lab::up(&plan.lab, &options)?;
    let soaked = soak(&lab, plan, tell)?;
    if !plan.keep {
        lab.down()?;
    }
    Ok(soaked)
}

fn soak(lab: &Lab, plan: &Plan, tell: &mut dyn FnMut(&str)) -> Result<Soaked, Error> {
    let (a, b): (&dyn Host, &dyn Host) = (lab.a(), lab.b());
    let load = format!("#!/bin/sh\nexec {PEER_PROGRAM} soak-server --command {COMMAND} --load\n");
    for host in [a, b] {
        host.write(COMMAND, load.as_bytes(), 0o755)?;
    }
    handing::network(a, NAME, NUMBER)?;
    let start = format!(
        "{PEER_PROGRAM} soak-server --command {COMMAND} --seed {}",
        plan.seed
    );
    handing::start(a, NAME, &start)?;
    let mut peers = peers(lab.peer(), plan)?;
    let mut random = Random::new(plan.seed);
    let mut soaked = Soaked {
        moves: Vec::new(),
        peers: Outcome::default(),
        line: None,
        faults: Vec::new(),
    };
    let mut before = None;
    for turn in 0..plan.moves.next_multiple_of(2) {
        thread::sleep(Duration::from_millis(random.below(300).into()));
        peers.ask::<Mark>(&())?;
        let (from, to) = if turn % 2 == 0 { (a, b) } else { (b, a) };
        let begun = Instant::now();
        let moved = handing::migrate(from, to, NAME, &[])?;
        let took = begun.elapsed();
        // What comes late, comes within this time.
        thread::sleep(Duration::from_millis((100 + random.below(200)).into()));
        let mark: Mark = peers.ask(&())?;
        let report = moved.report.clone().unwrap_or(Value::Null);
        let one = OneMove {
            took_ms: took.as_secs_f64() * 1e3,
            memory_kib: [held::memory(a)?, held::memory(b)?],
            ..one_move(from.name(), &report, &mark)
        };
        tell(&line(turn, &one, &mark));
        let went = one.outcome == "moved";
        soaked.moves.push(one);
        if !went {
            let said = format!("{}{}", moved.output.errors(), moved.output.text());
            soaked.faults.push(format!(
                "move {turn} from {}: {said}\n{}",
                from.name(),
                logs(a, b)
            ));
            break;
        }
        // Halfway: what is made once, when it is first needed, has been made.
        if turn + 1 == plan.moves.div_ceil(4) * 2 {
            before = Some([settled(a)?, settled(b)?]);
        }
    }
    if let Some(before) = before {
        for (host, before) in [a, b].into_iter().zip(before.iter()) {
            settled(host)?;
            let grown = held::grown(host, before)?;
            soaked.faults.extend(grown.iter().map(ToString::to_string));
        }
    }
    soaked.faults.extend(swollen(&soaked.moves));
    soaked.peers = peers.finish()?;
    soaked.line = lab.line_counts()?;
    let seen = &soaked.peers;
    if seen.faults + seen.hung > 0 || seen.ended + seen.faults + seen.hung != seen.begun {
        soaked.faults.push(format!(
            "of {} connections {} came to their ends, {} went wrong (of these {} were reset before they had heard anything), {} hung: {}",
            seen.begun,
            seen.ended,
            seen.faults,
            seen.refused,
            seen.hung,
            seen.told.join("; ")
        ));
    }
    for host in [a, b] {
        let told = host.sh(&format!("cat {} 2>/dev/null || true", server::FAULTS))?;
        let told = told.lines();
        soaked
            .faults
            .extend(told.map(|line| format!("container on {}: {line}", host.name())));
    }
    Ok(soaked)
}

/// An agent whose memory has grown since halfway by more than what comes and goes.
fn swollen(moves: &[OneMove]) -> Vec<String> {
    let (Some(half), Some(last)) = (moves.get(moves.len() / 2), moves.last()) else {
        return Vec::new();
    };
    let hosts = ["a", "b"]
        .into_iter()
        .zip(half.memory_kib.into_iter().zip(last.memory_kib));
    let swollen = hosts.filter(|(_, (half, last))| last.saturating_sub(*half) > COMES_AND_GOES_KIB);
    swollen
        .map(|(host, (half, last))| {
            format!("the agent on {host} had {half} KiB halfway, and has {last} KiB")
        })
        .collect()
}

/// What `host` has, once nothing of a move is left there.
fn settled(host: &dyn Host) -> Result<Held, Error> {
    host.wait_for(
        "test -z \"$(ls -d /sys/fs/bpf/netmig/* /run/netmig/moves/* 2>/dev/null)\"",
        ENDS,
    )?;
    Ok(Held::by(host)?)
}

fn one_move(from: &str, report: &Value, mark: &Mark) -> OneMove {
    let blackout_ms = report["blackout_ms"].as_f64().unwrap_or_default();
    let mut sockets = BTreeMap::new();
    for row in report["sockets"].as_array().into_iter().flatten() {
        if let Some(class) = row["class"].as_str() {
            *sockets.entry(class.to_owned()).or_default() += 1;
        }
    }
    OneMove {
        from: from.to_owned(),
        outcome: report["outcome"].as_str().unwrap_or("not told").to_owned(),
        blackout_ms,
        took_ms: 0.0,
        memory_kib: [0; 2],
        phases: report["phases"].clone(),
        settled_ms: mark
            .silences_ms
            .iter()
            .map(|ms| (ms - blackout_ms).max(0.0))
            .collect(),
        sockets,
    }
}

fn line(turn: u32, one: &OneMove, mark: &Mark) -> String {
    let longest = one.settled_ms.iter().copied().fold(0.0, f64::max);
    let classes: Vec<_> = one
        .sockets
        .iter()
        .map(|(class, count)| format!("{count} {class}"))
        .collect();
    format!(
        "move {} from {}: {} after {:.0} ms, blackout {:.0} ms, longest silence beyond it {longest:.0} ms, {} connections begun, {} wrong; agents have {} and {} MiB; {}",
        turn + 1,
        one.from,
        one.outcome,
        one.took_ms,
        one.blackout_ms,
        mark.begun,
        mark.faults,
        one.memory_kib[0] >> 10,
        one.memory_kib[1] >> 10,
        classes.join(", ")
    )
}

fn logs(a: &dyn Host, b: &dyn Host) -> String {
    [a, b]
        .map(|host| format!("agent on {}:\n{}\n", host.name(), netmig::agent_log(host)))
        .concat()
}

/// The client's process. It is asked, for its [`Mark`], by any line.
fn peers(host: &dyn Host, plan: &Plan) -> Result<Asked, Error> {
    let command = Cmd::new([PEER_PROGRAM, "soak-client"])
        .args(["--connections".to_owned(), plan.connections.to_string()])
        .args(["--seed".to_owned(), plan.seed.to_string()])
        .args([
            "--to".to_owned(),
            format!("192.0.2.{NUMBER}:{}", server::PORT),
        ])
        .args([
            "--to".to_owned(),
            format!("[2001:db8::{NUMBER}]:{}", server::PORT),
        ]);
    Asked::start(host, "soak-client", command)
}
