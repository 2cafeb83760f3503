//! A move by netmig, and what its report says.
use std::time::Duration;

use serde_json::Value;

use super::{CONTAINER, Error};
use crate::{Cmd, Host, peers::clock};

const REPORT: &str = "/tmp/netmig-report.json";
/// Where the agent of a host writes what it does.
const AGENT_LOG: &str = "/run/netmig/agent.log";
const LIMIT: Duration = Duration::from_secs(180);

/// A move that ended, however it did.
#[derive(Debug, Clone)]
pub struct Moved {
    /// `netmig.report/1`.
    pub report: Value,
    /// When the command was started, CLOCK_REALTIME ns.
    pub began_ns: u64,
    /// When it ended, CLOCK_REALTIME ns.
    pub ended_ns: u64,
}

impl Moved {
    /// The report's `outcome`.
    #[must_use]
    pub fn outcome(&self) -> &str {
        self.report["outcome"].as_str().unwrap_or("not told")
    }

    /// The report's `blackout_ms`.
    #[must_use]
    pub fn blackout_ms(&self) -> Option<f64> {
        self.report["blackout_ms"].as_f64()
    }

    /// The report's phases and their ms, in its order.
    #[must_use]
    pub fn phases(&self) -> Vec<(String, f64)> {
        match &self.report["phases"] {
            Value::Object(phases) => phases
                .iter()
                .filter_map(|(name, ms)| Some((name.clone(), ms.as_f64()?)))
                .collect(),
            Value::Array(phases) => phases
                .iter()
                .filter_map(|phase| {
                    let name = phase["phase"].as_str().or_else(|| phase["name"].as_str())?;
                    Some((name.to_owned(), phase["ms"].as_f64()?))
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Runs `netmig-user migrate` on `from`.
///
/// # Errors
/// It wrote no report; what it said instead.
pub fn migrate(from: &dyn Host, to: &dyn Host) -> Result<Moved, Error> {
    migrate_with(from, to, &[])
}

/// The same, with more options.
///
/// # Errors
/// As [`migrate`].
pub fn migrate_with(from: &dyn Host, to: &dyn Host, more: &[&str]) -> Result<Moved, Error> {
    from.run(&["rm", "-f", REPORT])?;
    let target = format!("ssh://{}", to.name());
    let migrate = [
        "netmig-user",
        "migrate",
        "--podman",
        CONTAINER,
        "--to",
        &target,
        "--report",
        REPORT,
    ];
    let began_ns = clock::now_ns();
    let output = from.exec(&Cmd::new(migrate).args(more.iter().copied()).limit(LIMIT))?;
    let ended_ns = clock::now_ns();
    let said = || format!("{}: {}{}", output.status, output.errors(), output.text());
    let error = |what: String| Error::Client {
        name: "netmig-user migrate".to_owned(),
        said: what,
    };
    let text = from.read(REPORT).map_err(|_| error(said()))?;
    let report = serde_json::from_slice(&text)
        .map_err(|e| error(format!("a report that is no JSON ({e}); {}", said())))?;
    Ok(Moved {
        report,
        began_ns,
        ended_ns,
    })
}

/// The end of the agent's log on `host`, for a move that did not go well; empty if there is none.
#[must_use]
pub fn agent_log(host: &dyn Host) -> String {
    host.run(&["tail", "-n", "60", AGENT_LOG])
        .unwrap_or_default()
}
