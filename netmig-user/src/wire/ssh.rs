//! The system's ssh, with its keys, jump hosts and configuration, and `agent --stdio` at its other end.
use std::{io, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{ChildStderr, Command},
};

use super::dial::{Carrier, Complaints, Connection, Dialer, Error, Life, Traffic};

/// The fastest cipher is offered first, where the operator's configuration and the target allow it.
const FOR_BULK: [&str; 6] = [
    "-o",
    "Ciphers=^aes128-gcm@openssh.com",
    "-o",
    "Compression=no",
    "-o",
    "IPQoS=throughput",
];

/// No terminal stands behind an agent: what would ask must fail. Silence is noticed within 15 s.
const ALWAYS: [&str; 9] = [
    "-T",
    "-o",
    "BatchMode=yes",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=3",
    "-o",
    "ConnectTimeout=10",
];

pub(super) fn dial(dialer: &Dialer, traffic: Traffic) -> Result<Connection, Error> {
    let failed = |source| Error::Ssh {
        to: dialer.to.clone(),
        source,
    };
    let mut command = command(dialer, traffic);
    let mut child = command.spawn().map_err(failed)?;
    let complaints = Complaints::default();
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(collect(BufReader::new(stderr), complaints.clone()));
    }
    match (child.stdin.take(), child.stdout.take()) {
        (Some(stdin), Some(stdout)) => Ok(Connection {
            to: Box::new(stdin),
            from: Box::new(stdout),
            carrier: Carrier::new("ssh", Life::Process { _ssh: child }, complaints),
        }),
        _ => Err(failed(io::Error::other("its pipes are missing"))),
    }
}

fn command(dialer: &Dialer, traffic: Traffic) -> Command {
    let mut command = Command::new("ssh");
    if traffic == Traffic::Bulk {
        command.args(FOR_BULK);
    }
    command.args(ALWAYS);
    if let Some(port) = dialer.to.port {
        command.args(["-p", &port.to_string()]);
    }
    if let Some(user) = &dialer.to.user {
        command.args(["-l", user]);
    }
    command
        .arg("--")
        .arg(&dialer.to.host)
        .args(&dialer.remote_command)
        .args(["agent", "--stdio"]);
    command.envs(dialer.env.iter().map(|(k, v)| (k, v)));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Keeps the last lines that ssh wrote to its standard error.
async fn collect(stderr: BufReader<ChildStderr>, into: Complaints) {
    let mut lines = stderr.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        into.add(&line);
    }
}
