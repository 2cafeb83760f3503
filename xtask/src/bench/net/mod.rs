//! `cargo xtask bench net`: the network of a container, read and made by netmig and by the tools of each part, in turn, on the same data.
//!
//! What both read and make lies in network namespaces of the bench's own. netmig is the shipped program; of what it does each part is compared
//! with the tool for that part: `nft`, `conntrack`, `ip`, whole processes.
mod data;
mod world;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{Bench, Goal, Output, Row, Stats};
use crate::{
    build_cmd,
    cargo::{self, Profile},
    setup::Tell,
};
use data::Set;

/// netmig's parts against the tool of each: not longer than this.
const TIMES: f64 = 1.2;
/// All that a small container's network needs inside the blackout, ms.
const WITHIN: f64 = 20.0;

#[derive(Debug, Args)]
pub struct NetArgs {
    /// Measurements of each kind.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Measures each set of data, and what a small container needs inside the blackout.
pub(super) fn run(args: &NetArgs) -> anyhow::Result<Bench> {
    // A path that is given may be relative to the directory from which the bench was started.
    let netmig = match env::var_os("NETMIG_USER_BIN") {
        Some(given) => fs::canonicalize(&given)
            .with_context(|| format!("looking for {}", Path::new(&given).display()))?,
        None => build_cmd::binary(Profile::Release, Tell::Work)?,
    };
    world::alone(|| {
        let mut rows = Vec::new();
        for set in data::SETS {
            rows.extend(measure(&netmig, &set, args.times)?);
        }
        rows.extend(inside(&netmig, args.times)?);
        Bench::new(rows)
    })
}

/// ms of several measurements.
#[derive(Debug, Default)]
struct Both {
    ours: Vec<f64>,
    /// The whole process of netmig, with what it does beside the part.
    whole: Vec<f64>,
    theirs: Vec<f64>,
}

fn measure(netmig: &Path, set: &Set, times: u32) -> anyhow::Result<Vec<Row>> {
    let (mut read, mut made) = (Both::default(), Both::default());
    world::container("from", world::ORIGINALS)?;
    let given = Path::new("/run/given");
    fs::write(given, (set.text)())?;
    world::within("from", || timed(&mut set.load.command(Some(given)), None))?;
    for turn in 0..times {
        // Namespaces are taken down in the background, so all of them stay until the end.
        let (ours, theirs) = (format!("ours{turn}"), format!("theirs{turn}"));
        let listed = PathBuf::from("/run/listed");
        let by_tool = |read: &mut Both, made: &mut Both| {
            world::container(&theirs, world::COPIES)?;
            let took = world::within("from", || timed(&mut set.list.command(None), Some(&listed)))?;
            read.theirs.push(took);
            let took = world::within(&theirs, || timed(&mut set.load.command(Some(given)), None))?;
            made.theirs.push(took);
            world::unplug(&theirs)
        };
        let by_netmig = |read: &mut Both, made: &mut Both| {
            let dumped = Net::new(netmig).dump("from", set.connections)?;
            read.ours.push(dumped.parts(set.parts)?);
            read.whole.push(dumped.whole);
            let restored = Net::new(netmig).restore(&ours, &[])?;
            made.ours.push(restored.parts(set.parts)?);
            made.whole.push(restored.whole);
            let differences = Net::new(netmig).diff("from", &ours)?;
            ensure!(
                differences.is_empty(),
                "netmig's copy is another one: {differences}"
            );
            if set.connections {
                let original = connections(DOCUMENT)?;
                Net::new(netmig).dump(&ours, true)?;
                ensure!(
                    connections(DOCUMENT)? == original,
                    "netmig's copy tracks other connections"
                );
            }
            world::unplug(&ours)
        };
        // Neither always comes first.
        if turn % 2 == 0 {
            by_netmig(&mut read, &mut made)?;
            by_tool(&mut read, &mut made)?;
        } else {
            by_tool(&mut read, &mut made)?;
            by_netmig(&mut read, &mut made)?;
        }
    }
    let sizes = |row| sized(row, set.sizes);
    let mut rows = Vec::new();
    for (verb, both, tool) in [("dump", read, set.list), ("restore", made, set.load)] {
        let ours = Stats::of(&both.ours).context("no measurements")?;
        let theirs = Stats::of(&both.theirs).context("no measurements")?;
        let whole = Stats::of(&both.whole).context("no measurements")?;
        let goal = Goal::at_most(theirs.median * TIMES);
        rows.push(sizes(
            Row::new(&format!("{verb}: {}", set.name), "ms", ours)
                .baseline(&tool.to_string(), theirs)
                .goal(goal),
        ));
        rows.push(sizes(Row::new(
            &format!("net {verb}: {}, the whole process", set.name),
            "ms",
            whole,
        )));
    }
    for turn in 0..times {
        world::remove(&format!("ours{turn}"))?;
        world::remove(&format!("theirs{turn}"))?;
    }
    world::unplug("from")?;
    world::remove("from")?;
    Ok(rows)
}

/// What is read and made again between the closing and the opening: packet filters and tracked connections, and the announcement. Links,
/// addresses and routes stand before. Also whether it counts by itself: filters and connections are read beside each other, as `traffic`.
const INSIDE: [(&str, &str, bool); 6] = [
    ("dump", "traffic", true),
    ("dump", "filters", false),
    ("dump", "connections", false),
    ("restore", "filters", true),
    ("restore", "connections", true),
    ("restore", "announcement", true),
];

fn inside(netmig: &Path, times: u32) -> anyhow::Result<Vec<Row>> {
    world::container("small", world::ORIGINALS)?;
    let given = Path::new("/run/given");
    for (text, tool) in data::small() {
        fs::write(given, text)?;
        world::within("small", || timed(&mut tool.command(Some(given)), None))?;
    }
    let mut all = Vec::new();
    let mut parts = vec![Vec::new(); INSIDE.len()];
    for turn in 0..times {
        let copy = format!("copy{turn}");
        let read = Net::new(netmig).dump("small", true)?;
        let made = Net::new(netmig).restore(&copy, &["--announce"])?;
        world::unplug(&copy)?;
        let mut sum = 0.0;
        for ((verb, part, counts), measured) in INSIDE.iter().zip(&mut parts) {
            let took = if *verb == "dump" { &read } else { &made };
            let ms = took.parts(&[part])?;
            measured.push(ms);
            if *counts {
                sum += ms;
            }
        }
        all.push(sum);
    }
    for turn in 0..times {
        world::remove(&format!("copy{turn}"))?;
    }
    world::unplug("small")?;
    world::remove("small")?;
    let stats = |measured: &[f64]| Stats::of(measured).context("no measurements");
    let mut rows =
        vec![Row::new("in the blackout", "ms", stats(&all)?).goal(Goal::at_most(WITHIN))];
    for ((verb, part, _), measured) in INSIDE.iter().zip(&parts) {
        let name = format!("in the blackout, {verb}: {part}");
        rows.push(Row::new(&name, "ms", stats(measured)?));
    }
    Ok(rows
        .into_iter()
        .map(|row| sized(row, &data::SMALL))
        .collect())
}

/// One run of `netmig-user net`.
struct Net {
    command: Command,
}

/// What it took.
struct Took {
    /// ms of the process.
    whole: f64,
    times: Times,
}

/// `netmig.net-times/1`.
#[derive(Deserialize)]
struct Times {
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    what: String,
    ms: f64,
}

const DOCUMENT: &str = "/run/document";
const TOOK: &str = "/run/took";

impl Net {
    fn new(netmig: &Path) -> Self {
        let mut command = Command::new(netmig);
        command.arg("net");
        Self { command }
    }

    fn dump(mut self, netns: &str, connections: bool) -> anyhow::Result<Took> {
        self.command
            .args(["dump", "--netns", netns, "--out", DOCUMENT]);
        if connections {
            self.command.arg("--connections");
        }
        self.took()
    }

    fn restore(mut self, netns: &str, options: &[&str]) -> anyhow::Result<Took> {
        self.command
            .args(["restore", DOCUMENT, "--netns", netns])
            .arg(format!("--attach=eth0={}", world::COPIES))
            .args(options);
        self.took()
    }

    fn took(mut self) -> anyhow::Result<Took> {
        self.command.args(["--times", TOOK]);
        let whole = timed(&mut self.command, None)?;
        let times = fs::read(TOOK).with_context(|| format!("reading {TOOK}"))?;
        Ok(Took {
            whole,
            times: serde_json::from_slice(&times).with_context(|| format!("reading {TOOK}"))?,
        })
    }

    fn diff(mut self, a: &str, b: &str) -> anyhow::Result<String> {
        let names = [format!("netns:{a}"), format!("netns:{b}")];
        let output = self.command.arg("diff").args(names).output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

impl Took {
    /// The sum of these parts.
    fn parts(&self, wanted: &[&str]) -> anyhow::Result<f64> {
        wanted
            .iter()
            .map(|wanted| {
                let part = self.times.parts.iter().find(|part| part.what == *wanted);
                part.map(|part| part.ms)
                    .with_context(|| format!("netmig-user names no part {wanted}"))
            })
            .sum()
    }
}

/// The tracked connections of a document, without what counts down: `net diff` does not look at them.
fn connections(document: &str) -> anyhow::Result<Vec<Value>> {
    #[derive(Deserialize)]
    struct Connections {
        connections: Vec<Value>,
    }
    let text = fs::read(document).with_context(|| format!("reading {document}"))?;
    let mut read: Connections =
        serde_json::from_slice(&text).with_context(|| format!("reading {document}"))?;
    ensure!(!read.connections.is_empty(), "no connection is tracked");
    for connection in &mut read.connections {
        connection
            .as_object_mut()
            .context("a tracked connection is no object")?
            .remove("timeout");
    }
    Ok(read.connections)
}

/// Runs a command to its end, its output in a file; ms.
fn timed(command: &mut Command, out: Option<&Path>) -> anyhow::Result<f64> {
    let line = cargo::line(command);
    if let Some(out) = out {
        command.stdout(fs::File::create(out)?);
    } else {
        command.stdout(Stdio::null());
    }
    let began = Instant::now();
    let output = command
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .and_then(|child| child.wait_with_output())
        .with_context(|| format!("starting `{line}`"))?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    ensure!(
        output.status.success(),
        "`{line}`: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(took)
}

fn sized(row: Row, sizes: &[(&str, u32)]) -> Row {
    sizes
        .iter()
        .fold(row, |row, (what, count)| row.param(what, *count))
}
