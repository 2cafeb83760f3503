//! What a move will do and what will not survive it, made before anything is touched.
mod compare;
mod predict;
mod version;

pub use compare::{needs, too_old};
pub(crate) use predict::Bytes;
pub use predict::{Prediction, Rate, blackout_ms};
pub use version::Version;

use crate::{
    container::{Manager, Mount, Recipe, Resurrector},
    proto::{Answer, Attach, HostFacts, Question},
    service::{Behind, Planned},
    socket::{Class, Engine, Fate, Row},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

/// Name and version of the plan's form.
pub const SCHEMA: &str = "netmig.plan/1";

/// The plan of one move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// [`SCHEMA`].
    pub schema: String,
    /// What moves.
    pub container: Subject,
    /// Where it is.
    pub source: Host,
    /// Where it goes.
    pub target: Host,
    /// Every mount and its fate.
    pub mounts: Vec<Mount>,
    /// Every socket and its fate.
    pub sockets: Vec<Row>,
    /// Its image, where the target has not got it and is sent it.
    pub image: Option<SentImage>,
    /// Where its links hang.
    pub topology: Vec<Junction>,
    /// Addresses of the hosts by which peers know the container.
    #[serde(default)]
    pub services: Vec<Planned>,
    /// What could start the container again at the source: disarmed before the freeze, armed again by an abort.
    pub disarm: Vec<Resurrector>,
    /// What the move will take.
    pub prediction: Prediction,
    /// Why it cannot go, or should not.
    pub objections: Vec<Objection>,
    /// What will be different afterwards.
    pub warnings: Vec<String>,
}

/// The container of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    /// Who manages it.
    pub manager: Manager,
    /// Full id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A host of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// `uname -n`.
    pub hostname: String,
    /// `uname -m`.
    pub arch: String,
    /// `uname -r`.
    pub kernel: String,
    /// Programs that matter and their versions.
    pub tools: Vec<(String, String)>,
}

/// Where a link of the container hangs, on both hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Junction {
    /// The link inside the container.
    pub link: String,
    /// Bridge or parent device, of the same name on both hosts.
    pub parent: String,
}

/// An image that the target lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SentImage {
    /// As the container's maker named it.
    pub name: String,
    /// What identifies it, 64 hex digits.
    pub id: String,
    /// Bytes of its layers.
    pub bytes: u64,
}

/// A reason against the move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Objection {
    /// Names its kind, for `--allow`.
    pub key: String,
    /// What stands against the move.
    pub reason: String,
    /// What to do about it; empty where the reason says so.
    pub help: String,
    /// The operator may go on in spite of it.
    pub waivable: bool,
    /// The operator does.
    pub waived: bool,
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        if !self.help.is_empty() {
            write!(f, "; {}", self.help)?;
        }
        if self.waivable && !self.waived {
            write!(f, "; --allow {} goes on all the same", self.key)?;
        }
        Ok(())
    }
}

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// What moves, and the source host.
    pub question: &'a Question,
    /// The target host, and what it objects.
    pub answer: &'a Answer,
    /// What the source found against it.
    pub objections: &'a [String],
    /// What the source found that will be different.
    pub warnings: &'a [String],
    /// Sockets with their fate.
    pub sockets: &'a [Row],
    /// What moves the processes.
    pub engine: Engine,
    /// Keys of objections that the operator waives.
    pub allow: &'a [String],
    /// The link between the hosts, if it has been measured.
    pub rate: Option<Rate>,
    /// `--max-blackout`.
    pub max_blackout_ms: Option<u64>,
}

/// Combines what both hosts know.
pub fn decide(given: &Given<'_>) -> Plan {
    let Given {
        question, answer, ..
    } = *given;
    let prediction = Prediction::new(
        question.memory_bytes,
        question.file_bytes + sent_image(question, answer).map_or(0, |image| image.bytes),
        given.rate,
    );
    let (mut objections, mut warnings) = compare::compare(question, answer, given.engine);
    objections.extend(prediction.objection(given.max_blackout_ms));
    objections.extend(
        given
            .objections
            .iter()
            .map(|reason| Objection::plain("source", reason)),
    );
    objections.extend(
        answer
            .objections
            .iter()
            .map(|reason| Objection::plain("target", reason)),
    );
    objections.extend(accept_queues(given));
    for objection in &mut objections {
        objection.waived = objection.waivable && given.allow.contains(&objection.key);
    }
    warnings.extend(given.warnings.iter().chain(&answer.warnings).cloned());
    warnings.extend(
        objections
            .iter()
            .filter(|o| o.waived)
            .map(|o| format!("waived by --allow {}: {}", o.key, o.reason)),
    );
    let container = &question.container;
    Plan {
        schema: SCHEMA.to_owned(),
        container: Subject {
            manager: container.manager,
            id: container.id.clone(),
            name: container.name.clone(),
        },
        source: host(&question.facts),
        target: host(&answer.facts),
        mounts: container.mounts.clone(),
        sockets: given.sockets.to_vec(),
        image: sent_image(question, answer),
        topology: question
            .attach
            .iter()
            .map(|Attach { link, parent }| Junction {
                link: link.clone(),
                parent: parent.clone(),
            })
            .collect(),
        services: question
            .behind
            .iter()
            .flat_map(|behind| services(behind, &answer.shared))
            .collect(),
        disarm: container.resurrectors.clone(),
        prediction,
        objections,
        warnings,
    }
}

/// The JSON schema of [`Plan`].
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Plan).to_value()
}

impl Plan {
    /// Objections that stand, in words: any refuses the move.
    pub fn refusals(&self) -> Vec<String> {
        self.objections
            .iter()
            .filter(|o| !o.waived)
            .map(Objection::to_string)
            .collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            container,
            source,
            target,
            ..
        } = self;
        writeln!(
            f,
            "{} {} from {} to {}",
            container.manager, container.name, source.hostname, target.hostname
        )?;
        writeln!(f, "  {}", self.prediction)?;
        if let Some(SentImage { name, bytes, .. }) = &self.image {
            writeln!(
                f,
                "  image {name} is not at the target and will be sent ({})",
                Bytes(*bytes)
            )?;
        }
        for junction in &self.topology {
            writeln!(f, "  link {} on {}", junction.link, junction.parent)?;
        }
        for service in &self.services {
            writeln!(f, "  service address {service}")?;
        }
        for mount in &self.mounts {
            writeln!(f, "  mount {}: {}", mount.destination.display(), mount.fate)?;
        }
        for what in &self.disarm {
            writeln!(f, "  disarmed: {what}")?;
        }
        write_sockets(f, &self.sockets)?;
        for objection in self.objections.iter().filter(|o| !o.waived) {
            writeln!(f, "  refused: {objection}")?;
        }
        self.warnings
            .iter()
            .try_for_each(|warning| writeln!(f, "  warning: {warning}"))
    }
}

/// What waits in an accept queue is put back by the kernel (kfunc `bpf_sk_assign_tcp_reqsk`).
fn accept_queues(given: &Given<'_>) -> Option<Objection> {
    const SINCE: Version = Version(6, 9, 0);
    let waiting = given
        .sockets
        .iter()
        .filter(|row| row.class == Class::TcpEmbryo)
        .count();
    let kernel = &given.answer.facts.kernel;
    let old = kernel
        .parse()
        .map_or(true, |kernel: Version| kernel < SINCE);
    (waiting > 0 && old).then(|| {
        Objection::new(
            "reset",
            format!("{waiting} connections wait in an accept queue, and the target's kernel {kernel} cannot take them"),
            "Linux 6.9 or newer can; or move when they are accepted",
            true,
        )
    })
}

/// How many move, and each that does not move whole.
pub(crate) fn write_sockets(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    let whole = rows.iter().filter(|row| row.fate == Fate::Moves).count();
    writeln!(f, "  sockets: {whole} of {} move whole", rows.len())?;
    for row in rows.iter().filter(|row| row.fate != Fate::Moves) {
        let peer = if row.peer.is_empty() {
            String::new()
        } else {
            format!(" - {}", row.peer)
        };
        writeln!(f, "    {} {}{peer}: {}", row.kind, row.local, row.fate)?;
    }
    Ok(())
}

impl Objection {
    fn new(key: &str, reason: String, help: impl Into<String>, waivable: bool) -> Self {
        Self {
            key: key.to_owned(),
            reason,
            help: help.into(),
            waivable,
            waived: false,
        }
    }

    /// What a host said in its own words, help included.
    fn plain(key: &str, reason: &str) -> Self {
        Self::new(key, reason.to_owned(), "", false)
    }
}

fn sent_image(question: &Question, answer: &Answer) -> Option<SentImage> {
    match &question.container.recipe {
        Recipe::Podman {
            image_id,
            image_name,
            ..
        } if answer.lacks_image => Some(SentImage {
            name: image_name.clone(),
            id: image_id.clone(),
            bytes: question.image_bytes,
        }),
        _ => None,
    }
}

fn services(behind: &Behind, shared: &[IpAddr]) -> Vec<Planned> {
    let services = behind.services.iter();
    services
        .map(|service| Planned {
            address: service.address.local,
            from: service.address.link.clone(),
            to: service.device.clone(),
            moves: !shared.contains(&service.address.local.address),
        })
        .collect()
}

fn host(facts: &HostFacts) -> Host {
    let criu = facts
        .criu
        .iter()
        .map(|version| ("criu".to_owned(), version.clone()));
    Host {
        hostname: facts.hostname.clone(),
        arch: facts.arch.clone(),
        kernel: facts.kernel.clone(),
        tools: criu.chain(facts.tools.iter().cloned()).collect(),
    }
}

#[cfg(test)]
mod tests;
