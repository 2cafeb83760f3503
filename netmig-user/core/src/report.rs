//! What a move did, for machines (`netmig.report/1`) and for people.
use crate::{
    machine::source::Phase,
    plan::{Plan, write_sockets},
    socket::Row,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Name and version of the report's form.
pub const SCHEMA: &str = "netmig.report/1";

/// The report of one move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The move's id, 32 hex digits.
    #[serde(rename = "move")]
    pub mv: String,
    /// Name of the container.
    pub container: String,
    /// Host that it was on.
    pub from: String,
    /// Where it was to go, as asked for.
    pub to: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where it did not move.
    pub reasons: Vec<String>,
    /// From the command to the end, in ms.
    pub total_ms: f64,
    /// Phases in the order in which they began.
    pub phases: Vec<PhaseTime>,
    /// From the gate's close at the source to its opening at the target (moved) or at the source again (kept), in ms; none if it was
    /// never closed.
    pub blackout_ms: Option<f64>,
    /// Bytes sent to the target: images and files.
    pub bytes: u64,
    /// Every socket with its fate.
    pub sockets: Vec<Row>,
    /// What the gates did to packets.
    pub packets: Packets,
    /// What is different, what is left, what could not be set up.
    pub warnings: Vec<String>,
    /// The plan that was followed, if one was made.
    pub plan: Option<Box<Plan>>,
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The container lives at the target.
    Moved,
    /// It lives at the source; the move was begun and undone.
    Kept,
    /// Nothing was begun.
    Refused,
    /// `--dry-run`: nothing was to be begun.
    Planned,
}

/// How long a phase was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// Its length in ms.
    pub ms: f64,
}

/// What the gates did to packets, both hosts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Packets {
    /// Copied out to be delivered later.
    pub held: u64,
    /// Delivered later.
    pub replayed: u64,
    /// Dropped by a closed gate.
    pub dropped: u64,
    /// Sent to peers in the container's name.
    pub answered: u64,
    /// Those of the held ones whose payload was acknowledged before the container had it.
    pub owned: u64,
}

/// The JSON schema of [`Report`].
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Report).to_value()
}

/// Phases with their lengths; those that came more than once are summed at their first place.
pub fn phases(marks: impl IntoIterator<Item = (Phase, f64)>) -> Vec<PhaseTime> {
    let mut phases: Vec<PhaseTime> = Vec::new();
    for (phase, ms) in marks {
        match phases.iter_mut().find(|p| p.phase == phase) {
            Some(known) => known.ms += ms,
            None => phases.push(PhaseTime { phase, ms }),
        }
    }
    phases
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Moved => "moved",
            Self::Kept => "kept",
            Self::Refused => "refused",
            Self::Planned => "planned",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            container,
            from,
            to,
            outcome,
            ..
        } = self;
        if let (Outcome::Planned, Some(plan)) = (outcome, &self.plan) {
            return write!(f, "{plan}");
        }
        match outcome {
            Outcome::Moved => writeln!(
                f,
                "{container} moved from {from} to {to} in {:.1} s",
                self.total_ms / 1e3
            )?,
            Outcome::Kept => writeln!(f, "{container} stays on {from}, it runs as before")?,
            Outcome::Refused => writeln!(f, "{container} stays on {from}, nothing was touched")?,
            Outcome::Planned => writeln!(f, "{container} can move from {from} to {to}")?,
        }
        self.reasons
            .iter()
            .try_for_each(|reason| writeln!(f, "  because {reason}"))?;
        if let Some(ms) = self.blackout_ms {
            writeln!(f, "  blackout {ms:.0} ms")?;
        }
        if !self.phases.is_empty() && *outcome != Outcome::Refused {
            let phases: Vec<_> = self
                .phases
                .iter()
                .map(|p| format!("{} {:.0}", p.phase, p.ms))
                .collect();
            writeln!(f, "  ms: {}", phases.join(", "))?;
        }
        if *outcome == Outcome::Moved {
            let Packets {
                held,
                replayed,
                dropped,
                answered,
                owned,
            } = self.packets;
            writeln!(
                f,
                "  {} sent; packets held {held}, replayed {replayed}, dropped {dropped}, answered {answered}, owned {owned}",
                crate::plan::Bytes(self.bytes)
            )?;
            write_sockets(f, &self.sockets)?;
        }
        self.warnings
            .iter()
            .try_for_each(|warning| writeln!(f, "  warning: {warning}"))
    }
}

#[cfg(test)]
mod tests;
