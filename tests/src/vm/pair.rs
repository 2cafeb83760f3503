//! A lab whose hosts `a` and `b` are guests with kernels of their own, on one segment with `peer`, which stays a host of namespaces
//! on the development host.
//!
//! ```text
//! development host: the lab's keeper
//!   switch (a bridge that learns)
//!     ├── tap a ── QEMU ── eth0 of guest a, in its br0
//!     ├── tap b ── QEMU ── eth0 of guest b, in its br0
//!     └── peer: namespaces
//! ```
//! The peer lives in neither guest and the switch is the same as between namespaces, so a container that moves from one guest to
//! the other is reached as it would be on a real segment.
use std::{
    path::{Path, PathBuf},
    thread,
};

use super::{Card, Error, Spec, VmHost};
use crate::{Cmd, Host, Input, Lab, NamespaceHost, Options, lab::guest};

/// A lab with two guests. Dropped, all of it ends.
#[derive(Debug)]
pub struct Pair {
    // The guests go first: their cables are the lab's.
    guests: [VmHost; 2],
    lab: Lab,
}

impl Pair {
    /// Brings up a lab of this name with guests `a` and `b`. Names, cards and network are the lab's to give; the rest of each guest is as
    /// `specs` say.
    ///
    /// # Errors
    /// [`Error::Lab`] if the lab or a guest's place in it cannot be made, else as [`VmHost::boot`].
    pub fn up(name: &str, options: &Options, specs: [Spec; 2]) -> Result<Self, Error> {
        let options = Options {
            guests: ["a", "b"].map(str::to_owned).to_vec(),
            ..options.clone()
        };
        let lab = Lab::up(name, &options)?;
        let netns = Path::new("/proc")
            .join(lab.state().keeper.pid.to_string())
            .join("ns/net");
        let [a, b] = specs;
        // Each takes one processor of the development host for some seconds.
        let guests = thread::scope(|scope| {
            let start = |name, spec| {
                let (lab, netns) = (lab.name(), netns.clone());
                scope.spawn(move || boot(lab, name, spec, netns))
            };
            [start("a", a), start("b", b)].map(|starting| starting.join())
        });
        let [a, b] =
            guests.map(|booted| booted.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        Ok(Self {
            guests: [a?, b?],
            lab,
        })
    }

    /// Ends the guests and the lab.
    ///
    /// # Errors
    /// [`Error::Lab`] with each thing of the lab that could not be removed.
    pub fn down(self) -> Result<(), Error> {
        drop(self.guests);
        Ok(self.lab.down()?)
    }

    /// Guest `a`, 192.0.2.1 and 2001:db8::1.
    pub fn a(&self) -> &VmHost {
        &self.guests[0]
    }

    /// Guest `b`, 192.0.2.2 and 2001:db8::2.
    pub fn b(&self) -> &VmHost {
        &self.guests[1]
    }

    /// Host `peer`, 192.0.2.100 and 2001:db8::100.
    pub fn peer(&self) -> &NamespaceHost {
        self.lab.peer()
    }

    /// The host of this name, if there is one.
    pub fn host(&self, name: &str) -> Option<&dyn Host> {
        match name {
            "a" => Some(self.a()),
            "b" => Some(self.b()),
            "peer" => Some(self.peer()),
            _ => None,
        }
    }
}

fn boot(lab: &str, name: &str, mut spec: Spec, netns: PathBuf) -> Result<VmHost, Error> {
    let papers = guest::Papers::load(lab, name)?;
    spec.name = name.to_owned();
    spec.netns = Some(netns);
    spec.cards = vec![Card {
        tap: name.to_owned(),
        mac: papers.mac(),
    }];
    let host = VmHost::boot(&spec)?;
    let furnish = Cmd::new(["netmig-lab-helper", guest::VERB]);
    host.run_cmd(&furnish.stdin(Input::Bytes(papers.json())))?;
    Ok(host)
}
