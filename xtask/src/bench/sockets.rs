//! `cargo xtask bench sockets`: many TCP connections moved between two namespaces, by netmig and by a plain TCP_REPAIR loop, in turn.
//!
//! What is measured is netmig-user/benches/sockets; here its figures become rows.
use std::process::Stdio;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Deserialize;

use super::{Bench, Goal, Output, Row, Stats};
use crate::{
    cargo,
    setup::{self, Purpose, Tell},
};

const LOOP: &str = "one thread, a system call for each value";

/// What the goals are for.
const MANY: u64 = 10_000;
/// From the freeze to the release of so many idle ones, ms.
const BLACKOUT: f64 = 150.0;
/// The same, as a part of what the loop takes.
const PART: f64 = 0.45;
/// Dump of an idle connection, us.
const DUMP: f64 = 2.0;
/// Memory of a connection besides its queues, bytes.
const MEMORY: f64 = 1024.0;
/// A connection among many against one among the fewest.
const LINEAR: f64 = 1.1;

#[derive(Debug, Args)]
pub struct SocketsArgs {
    /// How many connections, in turn.
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', default_value = "100,1000,10000", value_parser = clap::value_parser!(u64).range(1..))]
    connections: Vec<u64>,
    /// Bytes in each of their queues.
    #[arg(
        long,
        value_name = "BYTES,...",
        value_delimiter = ',',
        default_value = "0,4096"
    )]
    queued: Vec<u64>,
    /// Measurements of each kind.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    #[command(flatten)]
    pub(super) output: Output,
}

/// What the bench of the library says of so many connections.
#[derive(Deserialize)]
struct Case {
    connections: u64,
    queued: u64,
    family: String,
    netmig: Vec<Netmig>,
    naive: Vec<Naive>,
}

/// us, and bytes.
#[derive(Deserialize)]
struct Netmig {
    dump: f64,
    image: f64,
    find: f64,
    restore: f64,
    repair_off: f64,
    open: f64,
    freeze_to_release: f64,
    processor: f64,
    memory: f64,
}

/// us.
#[derive(Deserialize)]
struct Naive {
    dump: f64,
    restore: f64,
    repair_off: f64,
    freeze_to_release: f64,
    processor: f64,
}

/// Measures each number with each length of the queues, over IPv4 and IPv6.
pub(super) fn run(args: &SocketsArgs) -> anyhow::Result<Bench> {
    setup::ready(&[Purpose::Build], Tell::Work)?;
    let list = |numbers: &[u64]| {
        let words: Vec<_> = numbers.iter().map(ToString::to_string).collect();
        words.join(",")
    };
    let mut bench = cargo::cargo("bench")?;
    bench
        .args(["--package", "netmig-user", "--bench", "sockets", "--"])
        .args(["--connections", &list(&args.connections)])
        .args(["--queued", &list(&args.queued)])
        .args(["--times", &args.times.to_string()])
        .stdout(Stdio::piped());
    let line = cargo::line(&bench);
    let output = bench
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("starting `{line}`"))?;
    ensure!(output.status.success(), "`{line}`: {}", output.status);
    let cases: Vec<Case> =
        serde_json::from_slice(&output.stdout).with_context(|| format!("what `{line}` says"))?;
    let mut rows = Vec::new();
    for case in &cases {
        rows.extend(case.rows(&cases)?);
    }
    Bench::new(rows)
}

impl Case {
    fn rows(&self, all: &[Self]) -> anyhow::Result<Vec<Row>> {
        let each = self.each();
        let goal = |row: Row, goal: Goal| {
            if self.connections == MANY && self.queued == 0 {
                row.goal(goal)
            } else {
                row
            }
        };
        let whole = |n: &Netmig| n.freeze_to_release;
        let ms = |us: f64| us / 1e3;
        let parts: Vec<f64> = self
            .netmig
            .iter()
            .zip(&self.naive)
            .map(|(ours, theirs)| ours.freeze_to_release / theirs.freeze_to_release)
            .collect();
        let queues = 2.0 * float(self.queued);
        let mut rows = vec![
            goal(
                Row::new("freeze to release", "ms", self.ours(|n| ms(whole(n)))?)
                    .baseline(LOOP, self.theirs(|n| ms(n.freeze_to_release))?),
                Goal::at_most(BLACKOUT),
            ),
            goal(
                Row::new(
                    "freeze to release / the loop's",
                    "",
                    Stats::of(&parts).context("nothing was measured")?,
                ),
                Goal::at_most(PART),
            ),
            goal(
                Row::new("dump", "us each", self.ours(|n| n.dump / each)?)
                    .baseline(LOOP, self.theirs(|n| n.dump / each)?),
                Goal::at_most(DUMP),
            ),
            Row::new("image", "us each", self.ours(|n| n.image / each)?),
            Row::new(
                "restore",
                "us each",
                self.ours(|n| (n.find + n.restore) / each)?,
            )
            .baseline(LOOP, self.theirs(|n| n.restore / each)?),
            Row::new("repair off", "us each", self.ours(|n| n.repair_off / each)?)
                .baseline(LOOP, self.theirs(|n| n.repair_off / each)?),
            Row::new("open", "us each", self.ours(|n| n.open / each)?),
            Row::new(
                "processor time",
                "us each",
                self.ours(|n| n.processor / each)?,
            )
            .baseline(LOOP, self.theirs(|n| n.processor / each)?),
        ];
        // Of few it would be what the process had at hand before.
        if self.connections >= MANY {
            let memory = self.ours(|n| n.memory / each - queues)?;
            let row = Row::new("memory", "bytes each", memory).param("without", "the queues");
            rows.push(goal(row, Goal::at_most(MEMORY)));
        }
        if let Some(fewest) = self.fewest(all) {
            let theirs = fewest.ours(|n| n.freeze_to_release / fewest.each())?.median;
            let growth = self.ours(|n| n.freeze_to_release / each / theirs)?;
            rows.push(goal(
                Row::new("freeze to release, each / each of the fewest", "", growth)
                    .param("fewest", fewest.connections),
                Goal::at_most(LINEAR),
            ));
        }
        Ok(rows
            .into_iter()
            .map(|row| {
                row.param("connections", self.connections)
                    .param("queued", self.queued)
                    .param("family", self.family.as_str())
            })
            .collect())
    }

    fn each(&self) -> f64 {
        float(self.connections)
    }

    /// The case with the fewest connections of those that differ in nothing else; none: it is this one.
    fn fewest<'a>(&self, all: &'a [Self]) -> Option<&'a Self> {
        all.iter()
            .filter(|other| (other.queued, &other.family) == (self.queued, &self.family))
            .min_by_key(|other| other.connections)
            .filter(|other| other.connections < self.connections)
    }

    fn ours(&self, figure: impl Fn(&Netmig) -> f64) -> anyhow::Result<Stats> {
        let figures: Vec<f64> = self.netmig.iter().map(figure).collect();
        Stats::of(&figures).context("nothing was measured")
    }

    fn theirs(&self, figure: impl Fn(&Naive) -> f64) -> anyhow::Result<Stats> {
        let figures: Vec<f64> = self.naive.iter().map(figure).collect();
        Stats::of(&figures).context("nothing was measured")
    }
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(connections: u64, queued: u64, us: f64) -> Case {
        let netmig = || Netmig {
            dump: us / 5.0,
            image: us / 5.0,
            find: us / 10.0,
            restore: us / 10.0,
            repair_off: us / 5.0,
            open: us / 5.0,
            freeze_to_release: us,
            processor: us,
            memory: 1000.0 * float(connections) + 2.0 * float(queued * connections),
        };
        let naive = || Naive {
            dump: us,
            restore: us,
            repair_off: us,
            freeze_to_release: 3.0 * us,
            processor: us,
        };
        Case {
            connections,
            queued,
            family: "IPv4".to_owned(),
            netmig: vec![netmig(), netmig()],
            naive: vec![naive(), naive()],
        }
    }

    #[test]
    fn goals_are_those_of_many_idle_connections() {
        let all = [
            case(100, 0, 1000.0),
            case(MANY, 0, 90_000.0),
            case(MANY, 4096, 9e6),
        ];
        let rows: Vec<Row> = all
            .iter()
            .flat_map(|c| c.rows(&all).expect("rows"))
            .collect();
        let with_goal = rows.iter().filter(|row| row.has_goal()).count();
        assert_eq!(with_goal, 5);
        let bench = Bench::new(rows).expect("kernel");
        assert!(bench.missed().is_empty(), "{bench}");

        let slow = [case(100, 0, 1000.0), case(MANY, 0, 210_000.0)];
        let rows = slow[1].rows(&slow).expect("rows");
        let bench = Bench::new(rows).expect("kernel");
        let missed: Vec<&str> = bench.missed().iter().map(|row| row.name.as_str()).collect();
        assert_eq!(
            missed,
            [
                "freeze to release",
                "dump",
                "freeze to release, each / each of the fewest"
            ]
        );
    }
}
