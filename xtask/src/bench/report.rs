//! `netmig.bench/1`: figures beside those of a baseline from the same run, and whether they meet their goals.
use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

/// All figures of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bench {
    schema: &'static str,
    kernel: String,
    rows: Vec<Row>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What is measured.
    pub name: String,
    /// Under which conditions.
    pub params: BTreeMap<String, Value>,
    /// Of median, p99 and the goal's value.
    pub unit: String,
    netmig: Stats,
    baseline: Option<Baseline>,
    goal: Option<Goal>,
    met: Option<bool>,
}

/// Several measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stats {
    /// The middle one, or between the two middle ones.
    pub median: f64,
    /// The smallest that is not below 99 of 100.
    pub p99: f64,
    /// How many.
    pub n: usize,
}

/// The same by other means.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Baseline {
    what: String,
    #[serde(flatten)]
    stats: Stats,
}

/// What netmig's median must be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goal {
    op: &'static str,
    value: f64,
}

impl Bench {
    /// Figures measured on this machine's kernel.
    pub fn new(rows: Vec<Row>) -> anyhow::Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("reading the kernel's version")?;
        Ok(Self {
            schema: "netmig.bench/1",
            kernel: kernel.trim().to_owned(),
            rows,
        })
    }

    /// The rows whose goal is missed.
    pub fn missed(&self) -> Vec<&Row> {
        self.rows
            .iter()
            .filter(|row| row.met == Some(false))
            .collect()
    }

    /// The conditions of a row that are not those of all rows that have them, as `name value`.
    fn different(&self, row: &Row) -> String {
        let differs = |name: &String, value: &Value| {
            let mut others = self.rows.iter().filter_map(|other| other.params.get(name));
            others.any(|other| other != value)
        };
        let different = row
            .params
            .iter()
            .filter(|(name, value)| differs(name, value));
        let different: Vec<_> = different
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        different.join(", ")
    }

    /// Writes it as JSON.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

impl Stats {
    /// None of no measurements.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let upper = *sorted.get(n / 2)?;
        let median = if n.is_multiple_of(2) {
            f64::midpoint(sorted[n / 2 - 1], upper)
        } else {
            upper
        };
        Some(Self {
            median,
            p99: sorted[(n * 99).div_ceil(100) - 1],
            n,
        })
    }
}

impl Goal {
    /// Not more than `value`.
    pub fn at_most(value: f64) -> Self {
        Self { op: "<=", value }
    }

    /// Not less than `value`.
    pub fn at_least(value: f64) -> Self {
        Self { op: ">=", value }
    }

    fn met(self, stats: Stats) -> bool {
        match self.op {
            ">=" => stats.median >= self.value,
            _ => stats.median <= self.value,
        }
    }
}

impl Row {
    /// A figure of netmig's own.
    pub fn new(name: &str, unit: &str, netmig: Stats) -> Self {
        Self {
            name: name.to_owned(),
            params: BTreeMap::new(),
            unit: unit.to_owned(),
            netmig,
            baseline: None,
            goal: None,
            met: None,
        }
    }

    /// A condition.
    pub fn param(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.params.insert(name.to_owned(), value.into());
        self
    }

    /// The same by `what`.
    pub fn baseline(mut self, what: &str, stats: Stats) -> Self {
        self.baseline = Some(Baseline {
            what: what.to_owned(),
            stats,
        });
        self
    }

    /// Whether it must be anything.
    #[cfg(test)]
    pub fn has_goal(&self) -> bool {
        self.goal.is_some()
    }

    /// What it must be; says at once whether it is.
    pub fn goal(mut self, goal: Goal) -> Self {
        self.met = Some(goal.met(self.netmig));
        self.goal = Some(goal);
        self
    }
}

impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}", self.kernel)?;
        let mut said = String::new();
        for row in &self.rows {
            let Row {
                name, unit, netmig, ..
            } = row;
            let conditions = self.different(row);
            if conditions != said {
                writeln!(f, "{conditions}")?;
                said = conditions;
            }
            write!(
                f,
                "{name:<28} {:>10.1} {unit:<9} (p99 {:.1}, n {})",
                netmig.median, netmig.p99, netmig.n
            )?;
            if let Some(Baseline { what, stats }) = &row.baseline {
                write!(
                    f,
                    "  {what}: {:.1} (p99 {:.1}, n {})",
                    stats.median, stats.p99, stats.n
                )?;
            }
            if let (Some(goal), Some(met)) = (row.goal, row.met) {
                write!(
                    f,
                    "  goal {} {}: {}",
                    goal.op,
                    goal.value,
                    if met { "met" } else { "missed" }
                )?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stats(values: &[f64]) -> Stats {
        Stats::of(values).expect("values")
    }

    #[test]
    fn medians_and_tails() {
        assert_eq!(Stats::of(&[]), None);
        assert_eq!(
            stats(&[3.0, 1.0, 2.0]),
            Stats {
                median: 2.0,
                p99: 3.0,
                n: 3
            }
        );
        assert_eq!(
            stats(&[4.0, 1.0]),
            Stats {
                median: 2.5,
                p99: 4.0,
                n: 2
            }
        );
        let many: Vec<f64> = (1..=200).map(f64::from).collect();
        assert!((stats(&many).p99 - 198.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_goal_is_met_or_missed_by_the_median() {
        let row =
            |goal| Row::new("pause", "ms", stats(&[10.0, 20.0, 90.0])).goal(Goal::at_most(goal));
        let least = |goal| Row::new("kept", "", stats(&[0.9, 1.0, 1.0])).goal(Goal::at_least(goal));
        assert_eq!((least(1.0).met, least(1.1).met), (Some(true), Some(false)));
        let bench = Bench::new(vec![row(20.0), row(19.9)]).expect("kernel");
        assert_eq!(bench.missed().len(), 1);
        assert_eq!(
            (bench.rows[0].met, bench.rows[1].met),
            (Some(true), Some(false))
        );
    }

    #[test]
    fn what_differs_between_rows_of_a_name_heads_them() {
        let row = |name, rtt| {
            Row::new(name, "ms", stats(&[1.0]))
                .param("rtt_ms", rtt)
                .param("clients", 50)
        };
        let rows = vec![row("pause", 0), row("other", 0), row("pause", 20)];
        let text = Bench::new(rows).expect("kernel").to_string();
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines[0], "rtt_ms 0", "{text}");
        assert_eq!(
            lines.iter().filter(|l| l.starts_with("rtt_ms 20")).count(),
            1
        );
        assert!(!text.contains("clients"), "{text}");
    }

    #[test]
    fn the_json_has_the_schema_s_shape() {
        let row = Row::new("pause", "ms", stats(&[10.0]))
            .param("clients", 50)
            .baseline("usual way", stats(&[30.0]));
        let json = serde_json::to_value(row.goal(Goal::at_most(15.0))).expect("JSON");
        let expected = json!({
            "name": "pause", "params": {"clients": 50}, "unit": "ms",
            "netmig": {"median": 10.0, "p99": 10.0, "n": 1},
            "baseline": {"what": "usual way", "median": 30.0, "p99": 30.0, "n": 1},
            "goal": {"op": "<=", "value": 15.0}, "met": true,
        });
        assert_eq!(json, expected);
    }
}
