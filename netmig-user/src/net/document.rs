//! A network as a JSON document, for people and programs: `netmig.net/1`.
use std::{path::Path, time::Duration};

use netmig_core::{
    id::MoveId,
    image::v1::{
        conntrack::{Connection, Expectation},
        net::{LinkKind, Network},
    },
    proto::Attach,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Created, Error, announce,
    conntrack::{self, Present},
    create::create_timed,
    link::wireguard,
    snapshot::{snapshot_timed, tracked},
    times::Times,
    topology,
};
use crate::sys::netns::within;

/// Name and version of the document's form.
pub const SCHEMA: &str = "netmig.net/1";

/// The whole network of a namespace, and where its links hang on the host that it was read on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: String,
    /// For each link that has one its bridge or parent device on the host.
    #[serde(default)]
    pub attach: Vec<Attach>,
    /// The network itself.
    pub network: Network,
    /// Connections that the namespace tracks, if they were asked for.
    #[serde(default)]
    pub connections: Vec<Connection>,
    /// Connections that helpers have seen announced inside of those.
    #[serde(default)]
    pub expected: Vec<Expectation>,
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadDocument {
    /// It is not JSON of this form.
    #[error("{name} is no {SCHEMA} document: {cause}")]
    Form {
        /// Where it came from.
        name: String,
        /// What is wrong, and where in it.
        cause: serde_json::Error,
    },
    /// It is of another form or version.
    #[error(
        "{name} says that it is {found:?}, this netmig-user reads {SCHEMA}; dump it again with this version"
    )]
    Schema {
        /// Where it came from.
        name: String,
        /// What it says.
        found: String,
    },
}

impl Document {
    /// Reads the network of the namespace at `netns`, and what it tracks if `connections`; `times` says how long each part took.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or one of its tables not be read.
    pub fn dump(netns: &Path, connections: bool, times: &mut Times) -> Result<Self, Error> {
        let attach = topology::links(netns)?
            .iter()
            .filter_map(|link| {
                Some(Attach {
                    link: link.name.clone(),
                    parent: link.parent()?.to_owned(),
                })
            })
            .collect();
        let (network, connections, expected) = if connections {
            tracked(netns, times)?
        } else {
            (snapshot_timed(netns, times)?, Vec::new(), Vec::new())
        };
        Ok(Self {
            schema: SCHEMA.to_owned(),
            attach,
            network,
            connections,
            expected,
        })
    }

    /// Takes the keys of WireGuard devices out, for who writes it down. Names each device that had any.
    pub fn without_keys(&mut self) -> Vec<String> {
        let mut had = Vec::new();
        for link in &mut self.network.links {
            if let LinkKind::Virtual { kind, settings, .. } = &mut link.kind
                && kind == wireguard::KIND
                && wireguard::without_keys(settings)
            {
                had.push(link.name.clone());
            }
        }
        had
    }

    /// Parses one; `name` says where it came from, for the error.
    ///
    /// # Errors
    /// If it is not of this form and version.
    pub fn parse(text: &str, name: &str) -> Result<Self, BadDocument> {
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let form = |cause| BadDocument::Form {
            name: name.to_owned(),
            cause,
        };
        let head: Head = serde_json::from_str(text).map_err(form)?;
        if head.schema != SCHEMA {
            return Err(BadDocument::Schema {
                name: name.to_owned(),
                found: head.schema,
            });
        }
        serde_json::from_str(text).map_err(form)
    }

    /// Makes the network in the namespace at `netns`, which is made too if it is not there. Links are attached as `attach` says, others as
    /// the document says. Their ends on the host carry `tag` in their names. `times` says how long each part took.
    ///
    /// # Errors
    /// [`Error::Refused`] before anything is made; else the step that failed, everything having been undone.
    pub fn restore(
        &self,
        netns: &Path,
        attach: &[Attach],
        tag: MoveId,
        times: &mut Times,
    ) -> Result<Created, Error> {
        let attach = self.attached(attach);
        let mut created = create_timed(netns, &self.network, &attach, tag, &mut |_| Ok(()), times)?;
        let failed = times.part("connections", || {
            within(netns, || {
                let mut failed = conntrack::insert(&self.connections, Present::Replace)?;
                failed.extend(conntrack::expect(&self.expected)?);
                Ok::<_, Error>(failed)
            })
        })?;
        created.warnings.extend(failed);
        Ok(created)
    }

    /// Tells the segments of what [`Document::restore`] has made where its addresses are now, once. What could not be told, in words.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn announce(&self, created: &Created, times: &mut Times) -> Result<Vec<String>, Error> {
        let once = Duration::ZERO;
        let (netns, links) = (&created.netns, &created.links);
        let told = times.part("announcement", || {
            announce(netns, links, &self.network, &[], once, &mut || false)
        })?;
        Ok(told.failed)
    }

    /// What speaks against a restore, without making anything.
    ///
    /// # Errors
    /// If the host's own links cannot be read.
    pub fn objections(
        &self,
        netns: &Path,
        attach: &[Attach],
        tag: MoveId,
    ) -> Result<super::check::Found, Error> {
        super::objections(netns, &self.network, &self.attached(attach), tag)
    }

    fn attached(&self, instead: &[Attach]) -> Vec<Attach> {
        let theirs = self
            .attach
            .iter()
            .filter(|a| instead.iter().all(|i| i.link != a.link));
        theirs.chain(instead).cloned().collect()
    }
}
