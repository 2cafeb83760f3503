//! Sockets as inspect, plan and report name them: kind, state, owner, queues and fate.
//!
//! What becomes of a socket depends on its [`Class`] and on the engine that moves the processes; [`RULES`] is the only place that
//! says so.
mod kind;
mod rules;
mod table;

pub use kind::{Kind, State};
pub use rules::{ARRIVALS, By, Class, ECN, Engine, RULES, Rule, Verdict, rule_for};
pub use table::Table;

use serde::{Deserialize, Serialize};
use std::fmt;

/// A process that holds a socket, and under which number.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
pub struct Owner {
    /// Pid as the host sees it.
    pub pid: i32,
    /// File descriptor.
    pub fd: i32,
}

/// What becomes of a socket when the container moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It lives on at the target.
    Moves,
    /// It lives on, less what is named.
    MovesWithout(Vec<String>),
    /// It ends; the text says what is lost.
    Reset(String),
    /// The container cannot move with it; the text says why and what helps.
    Refused(String),
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moves => f.write_str("moves"),
            Self::MovesWithout(what) => write!(f, "moves without {}", what.join(", ")),
            Self::Reset(why) => write!(f, "reset: {why}"),
            Self::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}

/// One socket of the container's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Row {
    /// Protocol.
    pub kind: Kind,
    /// State.
    pub state: State,
    /// Own address, as text; for unix sockets the path or `@abstract` name.
    pub local: String,
    /// The other end, as text; empty if there is none.
    pub peer: String,
    /// Inode of the socket; 0 if it has none (orphans, TIME_WAIT, connections not yet accepted).
    pub inode: u64,
    /// Who holds it; empty: no descriptor of the container's processes.
    pub owners: Vec<Owner>,
    /// Bytes not yet read; of a listener: connections not yet accepted.
    pub rqueue: u32,
    /// Bytes not yet acknowledged; of a listener: its backlog.
    pub wqueue: u32,
    /// Options that differ from those of a new socket: name and value.
    pub options: Vec<(String, String)>,
    /// What the rules look at.
    pub class: Class,
    /// What becomes of it.
    pub fate: Fate,
}

impl Row {
    /// Whether the operator goes on without it: `--allow reset`, or the name of its class.
    pub fn waived(&self, allow: &[String]) -> bool {
        let class = self.class.to_string();
        allow.iter().any(|key| *key == "reset" || *key == class)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kind, self.state, self.local)?;
        if !self.peer.is_empty() {
            write!(f, " -> {}", self.peer)?;
        }
        match self.owners.first() {
            Some(owner) => write!(f, " (pid {} fd {})", owner.pid, owner.fd),
            None => f.write_str(" (no fd)"),
        }
    }
}
