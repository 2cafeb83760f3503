//! What a pinned gate says of itself. A bpffs holds no regular files, but symbolic links: a record is the target of one, made at once and
//! gone with the pins.
use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use netmig_common::{LAYOUT, Side};
use netmig_core::id::MoveId;
use serde::{Deserialize, Serialize};

use super::{Error, Step};

/// A device where the gate stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The network namespace of the device; none: the caller's own.
    pub netns: Option<PathBuf>,
    /// Index of the device in that namespace.
    pub ifindex: u32,
    /// Its name, for messages.
    pub name: String,
    /// Which way is in.
    pub orientation: Orientation,
}

/// Which way is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Orientation {
    /// The host's end of a veth pair: TC egress is inbound.
    HostSide,
    /// A device in the container's namespace (macvlan, ipvlan, a moved NIC): TC ingress is inbound.
    Inside,
    /// The namespace's `lo`.
    Loopback,
}

/// Which move a gate belongs to.
pub(super) struct Identity {
    pub(super) mv: MoveId,
    pub(super) side: Side,
}

/// What is (about to be) attached at a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The N of `at_N`.
    pub(super) number: u32,
    pub(super) point: Point,
    /// Device and inode number of the namespace: its path may name another one later.
    pub(super) namespace: (u64, u64),
    pub(super) how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum How {
    /// Links, pinned beside the record.
    Tcx,
    /// Filters, which cannot be pinned.
    Clsact {
        priority: u16,
        handle: u32,
        /// The qdisc was not there before.
        made_qdisc: bool,
    },
}

const IDENTITY: &str = "gate";
const PREFIX: &str = "at_";

impl Record {
    pub(super) fn path(&self, pins: &Path) -> PathBuf {
        pins.join(format!("{PREFIX}{}", self.number))
    }

    /// Where the link of `program` at this point is pinned.
    pub(super) fn link(&self, pins: &Path, program: &str) -> PathBuf {
        pins.join(format!("{PREFIX}{}_{program}", self.number))
    }

    pub(super) fn write(&self, pins: &Path) -> Result<(), Error> {
        let path = self.path(pins);
        let text = serde_json::to_string(self).map_err(|e| Error::Pins {
            step: Step::Record,
            path: path.clone(),
            source: e.into(),
        })?;
        symlink(text, &path).map_err(|source| Error::Pins {
            step: Step::Record,
            path,
            source,
        })
    }
}

pub(super) fn write_identity(pins: &Path, mv: MoveId, side: Side) -> Result<(), Error> {
    let path = pins.join(IDENTITY);
    let side = match side {
        Side::Source => "source",
        Side::Target => "target",
    };
    symlink(format!("netmig-gate/{LAYOUT} {mv} {side}"), &path).map_err(|source| Error::Pins {
        step: Step::Record,
        path,
        source,
    })
}

/// Reads whose gate is pinned at `pins`.
pub(super) fn read_identity(pins: &Path) -> Result<Identity, Error> {
    let path = pins.join(IDENTITY);
    let text = read(&path, pins)?;
    let bad = || Error::BadRecord {
        path: path.clone(),
        text: text.clone(),
    };
    let (layout, rest) = text
        .strip_prefix("netmig-gate/")
        .and_then(|rest| rest.split_once(' '))
        .ok_or_else(bad)?;
    let found = layout.parse().map_err(|_| bad())?;
    if found != LAYOUT {
        return Err(Error::Layout {
            pins: pins.to_owned(),
            found,
        });
    }
    let (mv, side) = rest.split_once(' ').ok_or_else(bad)?;
    let side = match side {
        "source" => Side::Source,
        "target" => Side::Target,
        _ => return Err(bad()),
    };
    Ok(Identity {
        mv: mv.parse().map_err(|_| bad())?,
        side,
    })
}

/// All points, by number.
pub(super) fn read_all(pins: &Path) -> Result<Vec<Record>, Error> {
    let at = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::Absent {
            pins: pins.to_owned(),
        },
        _ => Error::Pins {
            step: Step::List,
            path: pins.to_owned(),
            source,
        },
    };
    let mut records = Vec::new();
    for entry in fs::read_dir(pins).map_err(at)? {
        let path = entry.map_err(at)?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if name
            .strip_prefix(PREFIX)
            .is_some_and(|n| n.parse::<u32>().is_ok())
        {
            let text = read(&path, pins)?;
            let record: Record = serde_json::from_str(&text).map_err(|_| Error::BadRecord {
                path: path.clone(),
                text,
            })?;
            records.push(record);
        }
    }
    records.sort_by_key(|r| r.number);
    Ok(records)
}

fn read(path: &Path, pins: &Path) -> Result<String, Error> {
    match fs::read_link(path) {
        Ok(text) => Ok(text.to_string_lossy().into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::Absent {
            pins: pins.to_owned(),
        }),
        Err(source) => Err(Error::Pins {
            step: Step::ReadRecord,
            path: path.to_owned(),
            source,
        }),
    }
}
