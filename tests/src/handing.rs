//! A place for a program that saves and loads itself, and its moves.
use std::time::Duration;

use serde_json::Value;

use crate::{Cmd, Error, Host, Output};

/// A namespace on the segment.
const NETWORK: &str = r#"
ip netns add "$NAME"
ip link add "$NAME-br" type veth peer name eth0 address "02:00:00:00:01:$NUMBER" netns "$NAME"
ip link set "$NAME-br" master br0 up
ip -n "$NAME" link set lo up
ip -n "$NAME" link set eth0 up
ip -n "$NAME" addr add "192.0.2.$NUMBER/24" brd + dev eth0
ip -n "$NAME" addr add "2001:db8::$NUMBER/64" dev eth0 nodad
ip -n "$NAME" route add default via 192.0.2.100
"#;
const REPORT: &str = "/tmp/report.json";
const LIMIT: Duration = Duration::from_secs(90);
const START_LIMIT: Duration = Duration::from_secs(10);

/// Makes a namespace `name` on the segment, with 192.0.2.`number`, 2001:db8::`number` (in decimal) and a default route.
///
/// # Errors
/// What ip said.
pub fn network(host: &dyn Host, name: &str, number: u8) -> Result<(), Error> {
    let make = Cmd::sh(NETWORK)
        .env("NAME", name)
        .env("NUMBER", number.to_string());
    host.run_cmd(&make).map(drop)
}

/// Starts `argv` in the namespace `name`, as program `name`; what it says is in `/tmp/NAME.log`.
///
/// # Errors
/// It does not register in time; what it said.
pub fn start(host: &dyn Host, name: &str, argv: &str) -> Result<(), Error> {
    host.sh(&format!(
        "netmig-user handoff --netns {name} -- {argv} </dev/null >/tmp/{name}.log 2>&1 &"
    ))
    .or_else(|_| host.sh(&format!("cat /tmp/{name}.log >&2; false")))?;
    registered(host, name)
}

/// Waits until program `name` can be moved from `host`.
///
/// # Errors
/// It does not register in time; what the programs and the agent said.
pub fn registered(host: &dyn Host, name: &str) -> Result<(), Error> {
    let asked = format!("netmig-user handoff | grep -q '^{name} '");
    match host.wait_for(&asked, START_LIMIT) {
        Ok(_) => Ok(()),
        Err(error) => Err(host
            .sh("{ pgrep -af handoff; ls -l /run/netmig/handoff*; tail -n 20 /tmp/*.log /run/netmig/agent.log; } >&2; false")
            .err()
            .unwrap_or(error)),
    }
}

/// A move of such a program that ended, however it did.
#[derive(Debug)]
pub struct Moved {
    /// How `netmig-user migrate` ended, and what it said.
    pub output: Output,
    /// `netmig.report/1`, if it wrote one that is JSON.
    pub report: Option<Value>,
}

/// Moves program `name`, with more options of `netmig-user migrate`.
///
/// # Errors
/// The host does not answer.
pub fn migrate(from: &dyn Host, to: &dyn Host, name: &str, more: &[&str]) -> Result<Moved, Error> {
    from.run(&["rm", "-f", REPORT])?;
    let to = format!("ssh://{}", to.name());
    let command = [
        "netmig-user",
        "migrate",
        "--handoff",
        name,
        "--to",
        &to,
        "--report",
        REPORT,
    ];
    let output = from.exec(&Cmd::new(command).args(more.iter().copied()).limit(LIMIT))?;
    let report = match from.read(REPORT) {
        Ok(text) => serde_json::from_slice(&text).ok(),
        Err(Error::Command { .. }) => None,
        Err(e) => return Err(e),
    };
    Ok(Moved { output, report })
}
