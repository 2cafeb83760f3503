//! Reaching the target's agent.
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{process::Child, sync::oneshot};

use super::{
    destination::{Destination, Scheme},
    pipe::{Reader, Writer},
    ssh, tls,
};

/// Opens connections to one target.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// The host.
    pub to: Destination,
    /// How netmig-user is called there, in words; for ssh.
    pub remote_command: Vec<String>,
    /// ssh's environment: the operator's HOME, SSH_AUTH_SOCK and the like.
    pub env: Vec<(String, String)>,
    /// Where this host's credentials are; for TLS.
    pub credentials: PathBuf,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Small and soon.
    Control,
    /// Its throughput counts.
    Bulk,
}

/// A connection that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no ssh.
    #[error(
        "starting ssh to {to}: {source}\nnetmig reaches the target by the system's ssh: install openssh-client"
    )]
    Ssh {
        /// The target.
        to: Destination,
        /// Why.
        source: std::io::Error,
    },
}

/// A connection with the target's agent behind it, if it comes about: that shows only when the other end speaks.
pub struct Connection {
    /// To the target.
    pub to: Writer,
    /// From the target.
    pub from: Reader,
    /// What it stands on.
    pub carrier: Carrier,
}

/// What carries a connection, and what it complained of. The connection ends when it is dropped.
pub struct Carrier {
    /// Its name, in complaints.
    name: &'static str,
    _life: Life,
    complaints: Complaints,
}

/// What ends a connection when it is dropped.
pub(super) enum Life {
    /// Killed on drop.
    Process { _ssh: Child },
    /// The task at the other end of this ends with it.
    Task { _hung_up: oneshot::Sender<()> },
}

/// A carrier's own words since the start.
#[derive(Clone, Default)]
pub(super) struct Complaints(Arc<Mutex<String>>);

impl Complaints {
    /// Keeps another line, and forgets the oldest ones when there are many.
    pub(super) fn add(&self, line: &str) {
        const KEEP: usize = 4096;
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.push_str(line);
        text.push('\n');
        if text.len() > KEEP {
            let cut = (text.len() - KEEP..text.len())
                .find(|i| text.is_char_boundary(*i))
                .unwrap_or(0);
            text.drain(..cut);
        }
    }
}

impl Carrier {
    pub(super) fn new(name: &'static str, life: Life, complaints: Complaints) -> Self {
        Self {
            name,
            _life: life,
            complaints,
        }
    }

    /// `why` with what the carrier has said, if it has said something.
    pub fn explain(&self, why: impl fmt::Display) -> String {
        let said = self
            .complaints
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match said.trim() {
            "" => why.to_string(),
            said => format!("{why}; {} says: {said}", self.name),
        }
    }
}

impl Dialer {
    /// Begins to connect.
    ///
    /// # Errors
    /// ssh cannot be started.
    pub fn dial(&self) -> Result<Connection, Error> {
        self.dial_for(Traffic::Control)
    }

    /// As [`Self::dial`], for a connection whose throughput counts.
    ///
    /// # Errors
    /// ssh cannot be started.
    pub fn dial_bulk(&self) -> Result<Connection, Error> {
        self.dial_for(Traffic::Bulk)
    }

    fn dial_for(&self, traffic: Traffic) -> Result<Connection, Error> {
        match self.to.scheme {
            Scheme::Ssh => ssh::dial(self, traffic),
            Scheme::Tls => Ok(tls::dial(&self.to, &self.credentials)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_carrier_are_kept() {
        let complaints = Complaints::default();
        let life = Life::Task {
            _hung_up: oneshot::channel().0,
        };
        let carrier = Carrier::new("ssh", life, complaints.clone());
        assert_eq!(carrier.explain("it broke"), "it broke");
        for number in 0..2000 {
            complaints.add(&format!("line {number} ü"));
        }
        let said = carrier.explain("it broke");
        assert!(said.starts_with("it broke; ssh says: "), "{said}");
        assert!(said.ends_with("line 1999 ü") && said.len() < 4200, "{said}");
    }
}
