//! The containers of the stories.
use std::net::SocketAddr;

use netmig_lab::{Cmd, Host};
use serde_json::Value;

/// Whose a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// podman, which calls this runtime.
    Podman(&'static str),
    Runc,
    Crun,
}

/// A container with a redis in it.
#[derive(Debug, Clone, Copy)]
pub struct Container {
    pub how: How,
    pub name: &'static str,
    /// The last byte of its addresses.
    pub number: u8,
}

impl Container {
    pub fn new(how: How) -> Self {
        Self {
            how,
            name: "web",
            number: 10,
        }
    }

    pub fn ipv4(&self) -> String {
        format!("192.0.2.{}", self.number)
    }

    pub fn ipv6(&self) -> String {
        format!("2001:db8::{}", self.number)
    }

    pub fn mac(&self) -> String {
        format!("02:00:00:00:01:{:02x}", self.number)
    }

    /// The command that its manager is.
    pub fn tool(&self) -> &'static str {
        match self.how {
            How::Podman(_) => "podman",
            How::Runc => "runc",
            How::Crun => "crun",
        }
    }

    /// Where its redis listens.
    pub fn redis(&self, v6: bool) -> SocketAddr {
        let ip = if v6 {
            format!("[{}]", self.ipv6())
        } else {
            self.ipv4()
        };
        format!("{ip}:6379").parse().expect("an address")
    }

    /// Its manager's word for its state on `host` (`running`, `exited`, `stopped`); none if it is not there.
    pub fn state(&self, host: &dyn Host) -> Option<String> {
        let ask = match self.how {
            How::Podman(_) => Cmd::new([
                "podman",
                "inspect",
                "--type",
                "container",
                "--format",
                "{{.State.Status}}",
                self.name,
            ]),
            How::Runc | How::Crun => Cmd::new([self.tool(), "state", self.name]),
        };
        let told = host.exec(&ask).expect("the host answers");
        if !told.status.success() {
            return None;
        }
        match self.how {
            How::Podman(_) => Some(told.text().trim().to_owned()),
            How::Runc | How::Crun => {
                let state: Value = serde_json::from_str(&told.text()).expect("a state");
                state["status"].as_str().map(ToOwned::to_owned)
            }
        }
    }

    pub fn runs_on(&self, host: &dyn Host) -> bool {
        self.state(host).as_deref() == Some("running")
    }
}
