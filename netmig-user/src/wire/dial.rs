//! Reaching the target's agent: by the system's ssh, with its keys, jump hosts and configuration.
use std::{
    fmt,
    process::Stdio,
    str::FromStr,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Where a container goes: `ssh://[user@]host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

/// A destination that netmig cannot read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadDestination {
    /// Another scheme, or none.
    #[error("{0:?} is not a destination: ssh://[user@]host[:port] is expected")]
    Scheme(String),
    /// No host, or one that ssh would take for an option.
    #[error("{0:?} names no host")]
    Host(String),
    /// Not a port.
    #[error("{text:?} has no valid port: {port:?} is not in 1..=65535")]
    Port {
        /// The destination.
        text: String,
        /// What stands for the port.
        port: String,
    },
}

impl FromStr for Destination {
    type Err = BadDestination;

    fn from_str(text: &str) -> Result<Self, BadDestination> {
        let rest = text
            .strip_prefix("ssh://")
            .ok_or_else(|| BadDestination::Scheme(text.to_owned()))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, at) = match rest.rsplit_once('@') {
            Some((user, at)) => (Some(user.to_owned()), at),
            None => (None, rest),
        };
        let (host, port) = match at.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((host, after)) => (host, after.strip_prefix(':')),
            None => match at.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (at, None),
            },
        };
        let odd =
            |part: &str| part.is_empty() || part.starts_with('-') || part.contains(['/', ' ']);
        if odd(host) || user.as_deref().is_some_and(odd) {
            return Err(BadDestination::Host(text.to_owned()));
        }
        let port = match port {
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => Some(port),
                _ => {
                    return Err(BadDestination::Port {
                        text: text.to_owned(),
                        port: port.to_owned(),
                    });
                }
            },
            None => None,
        };
        Ok(Self {
            user,
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?
        } else {
            f.write_str(&self.host)?
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Opens connections to one target.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// The host.
    pub to: Destination,
    /// How netmig-user is called there, in words.
    pub remote_command: Vec<String>,
    /// ssh's environment: the operator's HOME, SSH_AUTH_SOCK and the like.
    pub env: Vec<(String, String)>,
}

/// A connection that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "starting ssh to {to}: {source}\nnetmig reaches the target by the system's ssh: install openssh-client"
)]
pub struct Error {
    to: Destination,
    source: std::io::Error,
}

/// A running ssh with `agent --stdio` behind it. Killed when dropped.
pub struct Connection {
    /// To the target.
    pub stdin: ChildStdin,
    /// From the target.
    pub stdout: ChildStdout,
    /// The process.
    pub process: Carrier,
}

/// The ssh process that carries a connection, and what it complained of.
pub struct Carrier {
    /// Killed on drop.
    _child: Child,
    complaints: Arc<Mutex<String>>,
}

impl Carrier {
    /// ssh's own words since the start, for the error text of a connection that broke.
    pub fn complaints(&self) -> String {
        self.complaints
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .trim()
            .to_owned()
    }
}

impl Dialer {
    /// Starts ssh. That it connects shows only when the other end speaks.
    ///
    /// # Errors
    /// ssh cannot be started.
    pub fn dial(&self) -> Result<Connection, Error> {
        self.dial_with(&[])
    }

    /// As [`Self::dial`], for a connection whose throughput counts: the fastest cipher is offered first, where the operator's
    /// configuration and the target allow it.
    ///
    /// # Errors
    /// ssh cannot be started.
    pub fn dial_bulk(&self) -> Result<Connection, Error> {
        self.dial_with(&[
            "-o",
            "Ciphers=^aes128-gcm@openssh.com",
            "-o",
            "Compression=no",
            "-o",
            "IPQoS=throughput",
        ])
    }

    fn dial_with(&self, options: &[&str]) -> Result<Connection, Error> {
        let mut command = Command::new("ssh");
        command.args(options);
        // No terminal stands behind an agent: what would ask must fail. Silence is noticed within 15 s.
        command.args([
            "-T",
            "-o",
            "BatchMode=yes",
            "-o",
            "ServerAliveInterval=5",
            "-o",
            "ServerAliveCountMax=3",
            "-o",
            "ConnectTimeout=10",
        ]);
        if let Some(port) = self.to.port {
            command.args(["-p", &port.to_string()]);
        }
        if let Some(user) = &self.to.user {
            command.args(["-l", user]);
        }
        command
            .arg("--")
            .arg(&self.to.host)
            .args(&self.remote_command)
            .args(["agent", "--stdio"]);
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| Error {
            to: self.to.clone(),
            source,
        })?;
        let complaints = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(collect(BufReader::new(stderr), complaints.clone()));
        }
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Connection {
                stdin,
                stdout,
                process: Carrier {
                    _child: child,
                    complaints,
                },
            }),
            _ => Err(Error {
                to: self.to.clone(),
                source: std::io::Error::other("its pipes are missing"),
            }),
        }
    }
}

/// Keeps the last lines that ssh wrote to its standard error.
async fn collect(stderr: BufReader<tokio::process::ChildStderr>, into: Arc<Mutex<String>>) {
    const KEEP: usize = 4096;
    let mut lines = stderr.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut text = into.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        text.push_str(&line);
        text.push('\n');
        if text.len() > KEEP {
            let cut = (text.len() - KEEP..text.len())
                .find(|i| text.is_char_boundary(*i))
                .unwrap_or(0);
            text.drain(..cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_and_written_back() {
        for text in [
            "ssh://b",
            "ssh://root@b:2222",
            "ssh://root@[2001:db8::2]:22",
            "ssh://[2001:db8::2]",
        ] {
            assert_eq!(
                text.parse::<Destination>().map(|d| d.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn what_ssh_would_take_for_an_option_is_no_host() {
        for text in [
            "ssh://-oProxyCommand=x",
            "ssh://",
            "ssh://-l@b",
            "ssh://a b",
        ] {
            assert_eq!(
                text.parse::<Destination>(),
                Err(BadDestination::Host(text.to_owned()))
            );
        }
        assert!(matches!(
            "b".parse::<Destination>(),
            Err(BadDestination::Scheme(_))
        ));
        assert!(matches!(
            "ssh://b:0".parse::<Destination>(),
            Err(BadDestination::Port { .. })
        ));
    }
}
