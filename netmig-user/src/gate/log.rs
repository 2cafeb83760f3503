//! What the programs say of single packets (feature `aya-log`).
use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    thread,
};

use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, warn};

use super::{Gate, object::Program};

/// How often it is looked whether the gate still stands, in ms.
const GLANCE: u16 = 500;

impl Gate {
    /// Passes on what the programs say, at level `debug`, until the gate's pins are gone. Of several that do so each record goes to one.
    pub fn tell_log(&self) {
        let mut logger = match self.logger() {
            Ok(logger) => logger,
            Err(e) => return warn!("what the gate's programs say cannot be read: {e:#}"),
        };
        let pins = self.pins.clone();
        thread::spawn(move || {
            while let Ok(()) = wait(logger.as_fd(), &pins) {
                logger.flush();
            }
            logger.flush();
            debug!(pins = %pins.display(), "the gate is gone, and its log ends");
        });
    }

    fn logger(&self) -> anyhow::Result<EbpfLogger<&'static dyn log::Log>> {
        Ok(EbpfLogger::init_from_id(self.program_id()?)?)
    }

    /// All programs of a gate write to one log.
    pub(super) fn program_id(&self) -> anyhow::Result<u32> {
        Ok(Program::Inbound.open(&self.pins)?.info()?.id())
    }
}

/// Until there is something to read, or for a moment; an error once the pins are gone.
fn wait(fd: BorrowedFd<'_>, pins: &Path) -> std::io::Result<()> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(GLANCE)) {
        Ok(0) if !pins.exists() => Err(std::io::ErrorKind::NotFound.into()),
        Err(e) if e != nix::errno::Errno::EINTR => Err(e.into()),
        _ => Ok(()),
    }
}
