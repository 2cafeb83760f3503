//! Hosts of a lab that are machines of their own: the keeper makes a port for each at the switch and leaves what the host needs
//! to be put together; `netmig-lab-helper @guest` does that inside the machine.
use std::{fs, io, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::{
    files, init,
    keys::Keys,
    network,
    options::{HostSpec, Spec},
    state,
};
use crate::Error;

/// The argument by which the helper program becomes this; no lab can have that name.
pub(crate) const VERB: &str = "@guest";

/// All that a machine needs to know to be a host.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Papers {
    spec: Spec,
    host: HostSpec,
    keys: Keys,
}

impl Papers {
    /// Reads what the keeper has left for a host.
    pub(crate) fn load(lab: &str, host: &str) -> Result<Self, Error> {
        let path = path(lab, host);
        let read = fs::read(&path).and_then(|json| Ok(serde_json::from_slice(&json)?));
        read.map_err(Error::file("reading", path))
    }

    /// The address that the machine's card must have.
    pub(crate) fn mac(&self) -> String {
        self.host.mac()
    }

    /// For the standard input of the helper inside the machine.
    pub(crate) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("these are strings and numbers")
    }
}

fn path(lab: &str, host: &str) -> PathBuf {
    state::directory(lab).join(format!("{host}.papers"))
}

/// Writes the papers of a host, readable for nobody else: there are private keys in them.
pub(super) fn leave_papers(spec: &Spec, host: &HostSpec, keys: &Keys) -> io::Result<()> {
    let papers = Papers {
        spec: spec.clone(),
        host: host.clone(),
        keys: keys.clone(),
    };
    let file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path(&spec.name, &host.name))?;
    Ok(serde_json::to_writer(file, &papers)?)
}

/// Makes the machine that this runs on the host that the papers on the standard input tell of. Its uplink is `eth0`.
pub(super) fn main() -> anyhow::Result<()> {
    let papers: Papers =
        serde_json::from_reader(io::stdin()).context("understanding what this host is")?;
    files::write(&papers.spec, &papers.host, &papers.keys)?;
    network::configure(&papers.host)?;
    if papers.host.full {
        init::start_sshd()?;
    }
    Ok(())
}
