//! What a lab is made of.
use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};

use super::{keeper, link::Line, state};
use crate::{Error, root};

/// Choices for a lab.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The test root; otherwise NETMIG_ROOT, else the one that set-up made.
    pub root: Option<PathBuf>,
    /// The netmig-user binary, which is `/usr/bin/netmig-user` in each host; otherwise NETMIG_USER_BIN, else there is none.
    pub binary: Option<PathBuf>,
    /// More files or directories of this machine to be seen in each host.
    pub binds: Vec<Bind>,
    /// The lab stays up when this process ends; otherwise it goes down then.
    pub keep: bool,
    /// Hosts that are machines of their own ([`vm::Pair`](crate::vm::Pair)): each gets a port at the switch, and no namespaces.
    pub guests: Vec<String>,
    /// The line between `peer` and the switch; none: a cable.
    pub line: Option<Line>,
    /// The program `netmig-lab-helper`; otherwise NETMIG_LAB_HELPER, this program if it calls
    /// [`helper_main_if_called`](crate::helper_main_if_called), else one that lies beside this program.
    pub helper: Option<PathBuf>,
}

/// A file or directory of this machine that is seen in each host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bind {
    /// Its path on this machine.
    pub source: PathBuf,
    /// Its path in the hosts.
    pub target: PathBuf,
    /// Hosts cannot write to it.
    pub read_only: bool,
}

/// A lab exactly: what the keeper is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub name: String,
    pub root: PathBuf,
    pub binds: Vec<Bind>,
    pub tied: bool,
    pub hosts: Vec<HostSpec>,
    /// Of the host that is no place for containers.
    pub line: Option<Line>,
}

impl Spec {
    /// Where the keeper finds it.
    fn path(name: &str) -> PathBuf {
        state::directory(name).join("spec.json")
    }

    pub(super) fn save(&self) -> io::Result<()> {
        fs::write(Self::path(&self.name), serde_json::to_vec(self)?)
    }

    pub(super) fn load(name: &str) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(Self::path(name))?)?)
    }
}

/// A host of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HostSpec {
    pub name: String,
    /// Its last byte in 192.0.2.0/24; written in decimal it is the last group in 2001:db8::/64.
    pub number: u8,
    /// A place for containers: a bridge `br0` with the uplink in it, sshd, and keys for the other.
    pub full: bool,
    /// A machine of its own, which has a TAP device of the host's name at the switch for its cable.
    pub guest: bool,
}

impl HostSpec {
    pub fn ipv4(&self) -> String {
        format!("192.0.2.{}", self.number)
    }

    pub fn ipv6(&self) -> String {
        format!("2001:db8::{}", self.number)
    }

    /// The uplink's MAC address: locally administered, and lower than those that containers get.
    pub fn mac(&self) -> String {
        format!("02:00:00:00:00:{:02x}", self.number)
    }
}

impl Options {
    pub(crate) fn spec(&self, name: &str) -> Result<Spec, Error> {
        check_name(name)?;
        let root = match &self.root {
            Some(root) => root.clone(),
            None => root::path(),
        };
        if !root.join("usr/bin").is_dir() {
            return Err(Error::Root(root));
        }
        let root = root.canonicalize().map_err(Error::file("finding", root))?;
        let binary = self
            .binary
            .clone()
            .or_else(|| env::var_os("NETMIG_USER_BIN").map(PathBuf::from));
        let mut binds = self.binds.clone();
        binds.extend(binary.map(|source| Bind {
            source,
            target: "/usr/bin/netmig-user".into(),
            read_only: true,
        }));
        for bind in &mut binds {
            let source = &bind.source;
            bind.source = source
                .canonicalize()
                .map_err(Error::file("finding", source))?;
        }
        let host = |name: &str, number, full| HostSpec {
            name: name.to_owned(),
            number,
            full,
            guest: self.guests.iter().any(|guest| guest == name),
        };
        Ok(Spec {
            name: name.to_owned(),
            root,
            binds,
            tied: !self.keep,
            line: self.line,
            hosts: vec![
                host("a", 1, true),
                host("b", 2, true),
                host("peer", 100, false),
            ],
        })
    }

    pub(crate) fn helper(&self) -> Result<PathBuf, Error> {
        if let Some(helper) = &self.helper {
            return Ok(helper.clone());
        }
        if let Some(helper) = env::var_os("NETMIG_LAB_HELPER") {
            return Ok(helper.into());
        }
        let own = env::current_exe().map_err(Error::file("finding", "/proc/self/exe"))?;
        if SELF_IS_HELPER.get().is_some() {
            return Ok(own);
        }
        // Test programs lie in target/PROFILE/deps, programs in target/PROFILE.
        own.ancestors()
            .skip(1)
            .take(2)
            .map(|directory| directory.join(keeper::PROGRAM))
            .find(|path| path.is_file())
            .ok_or(Error::Helper(own))
    }
}

/// Set by a program that becomes the helper when it is called so.
pub(super) static SELF_IS_HELPER: OnceLock<()> = OnceLock::new();

pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=32).contains(&name.len()) && name.chars().all(good) {
        return Ok(());
    }
    Err(Error::Name(name.to_owned()))
}

/// A path of a host, as seen under where its root is being put together.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["a", "demo", "story-17-0"] {
            check_name(good).expect(good);
        }
        for bad in ["", "..", "a/b", "A", "a b", &"x".repeat(33)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_for_documentation() {
        let peer = HostSpec {
            name: "peer".to_owned(),
            number: 100,
            full: false,
            guest: false,
        };
        assert_eq!(peer.ipv4(), "192.0.2.100");
        assert_eq!(peer.ipv6(), "2001:db8::100");
        assert_eq!(peer.mac(), "02:00:00:00:00:64");
    }
}
