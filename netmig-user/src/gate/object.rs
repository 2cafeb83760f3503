//! The embedded object, loaded and pinned; the directory of pins.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, include_bytes_aligned,
    maps::{Map, MapData, MapError},
    programs::{ProgramError, SchedClassifier},
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{Error, Step};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate"));

pub(super) const MAPS: [&str; 8] = [
    "MODE", "SETTINGS", "TALLIES", "HOLDS", "ORDER", "HINTS", "FLOWS", "KEPT",
];

/// A program of the object. The kernel keeps 15 characters of a name: these fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Inbound,
    Outbound,
    Loopback,
    Answer,
}

impl Program {
    pub(super) const ALL: [Self; 4] = [Self::Inbound, Self::Outbound, Self::Loopback, Self::Answer];
    /// What all names begin with: a program of this name at a device is a gate's.
    pub(super) const PREFIX: &str = "netmig_";

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inbound => "netmig_inbound",
            Self::Outbound => "netmig_outbound",
            Self::Loopback => "netmig_loopback",
            Self::Answer => "netmig_answer",
        }
    }

    pub(super) fn open(self, pins: &Path) -> Result<SchedClassifier, Error> {
        SchedClassifier::from_pin(pins.join(self.name())).map_err(|source| self.failed(source))
    }

    fn failed(self, source: ProgramError) -> Error {
        Error::Program {
            program: self.name(),
            source: Box::new(source),
        }
    }
}

/// Makes the directory of pins, which must be new.
pub(super) fn create_directory(pins: &Path) -> Result<(), Error> {
    let at = |path: &Path, source| Error::Pins {
        step: Step::Create,
        path: path.to_owned(),
        source,
    };
    let parent = pins.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|e| at(parent, e))?;
    let kind = statfs(parent)
        .map_err(|e| at(parent, e.into()))?
        .filesystem_type();
    if kind != BPF_FS_MAGIC {
        return Err(Error::NotBpffs {
            path: pins.to_owned(),
        });
    }
    match fs::create_dir(pins) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists {
            pins: pins.to_owned(),
        }),
        made => made.map_err(|e| at(pins, e)),
    }
}

/// Loads maps and programs and pins them; what is used afterwards is opened from the pins.
pub(super) fn load(pins: &Path) -> Result<(), Error> {
    let mut object = Ebpf::load(OBJECT).map_err(|e| Error::Load(Box::new(e)))?;
    for program in Program::ALL {
        let loaded: &mut SchedClassifier = object
            .program_mut(program.name())
            .ok_or(ProgramError::NotLoaded)
            .and_then(TryInto::try_into)
            .map_err(|e| program.failed(e))?;
        loaded.load().map_err(|e| program.failed(e))?;
        loaded
            .pin(pins.join(program.name()))
            .map_err(|source| Error::Pin {
                name: program.name().to_owned(),
                source,
            })?;
    }
    for map in MAPS {
        let loaded = object.map(map).ok_or_else(|| Error::Map {
            map,
            source: MapError::InvalidName {
                name: map.to_owned(),
            },
        })?;
        loaded.pin(pins.join(map)).map_err(|source| Error::Pin {
            name: map.to_owned(),
            source,
        })?;
    }
    Ok(())
}

pub(super) fn map_data(pins: &Path, map: &'static str) -> Result<MapData, Error> {
    MapData::from_pin(pins.join(map)).map_err(|source| Error::Map { map, source })
}

/// Opens a pinned map as what it is.
pub(super) fn map<M: TryFrom<Map, Error = MapError>>(
    pins: &Path,
    map: &'static str,
) -> Result<M, Error> {
    Map::from_map_data(map_data(pins, map)?)
        .and_then(M::try_from)
        .map_err(|source| Error::Map { map, source })
}

/// Removes the directory with all that is in it.
pub(super) fn remove(pins: &Path) -> Vec<Error> {
    let at = |path: PathBuf| {
        move |source| Error::Pins {
            step: Step::Unpin,
            path,
            source,
        }
    };
    let mut left = Vec::new();
    let entries = match fs::read_dir(pins) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return left,
        Err(e) => return vec![at(pins.to_owned())(e)],
    };
    for entry in entries {
        match entry {
            Ok(entry) => left.extend(
                fs::remove_file(entry.path())
                    .map_err(at(entry.path()))
                    .err(),
            ),
            Err(e) => left.push(at(pins.to_owned())(e)),
        }
    }
    left.extend(fs::remove_dir(pins).map_err(at(pins.to_owned())).err());
    left
}
