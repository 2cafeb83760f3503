//! The stories of a test program inside a guest, whose own root file system is their labs' test root.

use std::path::Path;

use super::{Error, PROGRAMS, Spec};
use crate::{Cmd, demo, root};

/// Where a story finds `netmig-peer`, if it is not where cargo has built it.
pub const PEER: &str = "NETMIG_PEER_BIN";

/// Where a story finds the archive of the demo's image, if it is not to build it.
pub const IMAGE: &str = "NETMIG_DEMO_IMAGE";

/// Set where the hosts of a story are emulated: everything takes many times as long there, and hosts, peer and load share a few
/// processors. Clients without pause would leave nothing of them to a move.
pub const EMULATED: &str = "NETMIG_LAB_EMULATED";

impl Spec {
    /// Adds the test program `test` with what its stories need, and gives the command that runs it in the guest, one
    /// story at a time. `programs` is the directory with the lab's programs.
    ///
    /// # Errors
    /// [`Error::Image`] if the demo's image cannot be made, [`Error::Io`] for a path without a name.
    pub fn add_stories(&mut self, test: &Path, programs: &Path) -> Result<Cmd, Error> {
        let peer = programs.join("netmig-peer");
        // Building it takes a minute of an emulated processor.
        let image = demo::Image::build(&self.root, &peer, &root::cache().join("demo"))?;
        let helper = format!("{PROGRAMS}/netmig-lab-helper");
        let [test, peer, image] = [test, &peer, image.archive()].map(|path| self.carry(path));
        Ok(Cmd::new([test?])
            .args(["--test-threads", "1"])
            .env("NETMIG_ROOT", "/")
            .env("NETMIG_LAB_HELPER", helper)
            .env("NETMIG_USER_BIN", format!("{PROGRAMS}/netmig-user"))
            .env(EMULATED, "1")
            .env(PEER, peer?)
            .env(IMAGE, image?))
    }

    /// Adds a file under its own name and tells its path in the guest.
    ///
    /// # Errors
    /// As [`add_program`](Spec::add_program).
    pub fn carry(&mut self, path: &Path) -> Result<String, Error> {
        self.add_program(path)?;
        let name = self.programs.last().map(|(name, _)| name.as_str());
        Ok(format!("{PROGRAMS}/{}", name.unwrap_or_default()))
    }
}
