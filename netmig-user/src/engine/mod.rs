//! What moves the processes: CRIU run by the container's own runtime, or the program itself (handoff).
//!
//! The `criu` engine never calls CRIU. The container's runtime does, through [`criu::shim`]; CRIU calls a hook at its action points, and the
//! hook hands the moment to the agent ([`criu::hook`]). So an engine is only: make ready, start a command under a supervisor ([`job`]), answer
//! its hooks, look at its end. Under `handoff` that command is a helper of netmig's own, which calls the same hooks.
use std::{
    fmt,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use netmig_core::{container::Container, id::MoveId, socket};

use crate::runtime::CreatedContainer;
use job::Command;

pub mod cgroup;
pub mod criu;
pub mod facts;
pub mod handoff;
pub mod job;
pub mod memory;
pub mod task;

/// Making an engine ready failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// CRIU's.
    #[error(transparent)]
    Criu(#[from] criu::Error),
    /// That of a program that hands itself over.
    #[error(transparent)]
    Handoff(#[from] handoff::Error),
}

/// An engine on one host for one move. It never touches TCP state.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Where it writes or reads its images.
    fn images(&self) -> &Path;

    /// CRIU's kit, for a runtime that runs CRIU.
    fn criu(&self) -> Option<&criu::Kit>;

    /// At the target, once the namespace stands behind its closed gate: what must be there before the source freezes. `given_up` ends a wait.
    ///
    /// # Errors
    /// It does not come up.
    fn stand_by(
        &self,
        container: &Container,
        created: &CreatedContainer,
        given_up: &AtomicBool,
    ) -> Result<(), Error>;

    /// What its commands are called for an operator: the dump, and the restore.
    fn words(&self) -> [&'static str; 2] {
        ["the runtime's checkpoint", "the runtime's restore"]
    }

    /// The command that dumps the container; hooks come while it runs.
    ///
    /// It ends with 0 when the container is gone, with another code when the dump was cancelled and the container runs on.
    ///
    /// # Errors
    /// The engine's.
    fn checkpoint_command(&self, container: &Container) -> Result<Command, Error>;

    /// At the source's `post-dump`: adds to the images what the command does not write.
    ///
    /// # Errors
    /// The engine's.
    fn collect_extras(&self, container: &Container) -> Result<(), Error>;

    /// At the target, before the restore is started: what its runtime looks for in its own record.
    ///
    /// # Errors
    /// The engine's.
    fn stage_record(&self, created: &CreatedContainer) -> Result<(), Error>;

    /// At the target, when all images have arrived and the restore waits for them ([`criu::hook::Action::Images`]): makes them fit the container
    /// that [`crate::runtime::Runtime::create`] made.
    ///
    /// # Errors
    /// The engine's.
    fn stage_images(&self, created: &CreatedContainer) -> Result<(), Error>;

    /// The command that restores the container from the images; [`Engine::stage_record`] comes before it.
    ///
    /// It ends with 0 when the container runs, with another code when the restore failed and nothing runs.
    ///
    /// # Errors
    /// The engine's.
    fn restore_command(
        &self,
        container: &Container,
        created: &CreatedContainer,
    ) -> Result<Command, Error>;

    /// Lines of logs that say why a command failed, at most `limit`, for an operator.
    fn why(&self, limit: usize) -> Vec<String>;
}

/// Makes the engine of `container` ready in the move's directory `dir`. `exe` is this binary.
///
/// # Errors
/// A program is missing, or a file cannot be written.
pub fn prepare(
    dir: &Path,
    side: criu::hook::Side,
    container: &Container,
    mv: MoveId,
    exe: &Path,
) -> Result<Arc<dyn Engine>, Error> {
    Ok(match container.manager.engine() {
        socket::Engine::Criu => {
            let kit = criu::Kit::prepare(dir, side, container, exe, None)?;
            criu::warm()?;
            Arc::new(kit)
        }
        socket::Engine::Handoff => Arc::new(handoff::Kit::prepare(dir, side, container, mv, exe)?),
    })
}

/// The engine that [`prepare`] made ready in `dir`; none if it has not.
#[must_use]
pub fn open(dir: &Path) -> Option<Arc<dyn Engine>> {
    if let Ok(kit) = criu::Kit::open(dir) {
        return Some(Arc::new(kit));
    }
    let kit = handoff::Kit::open(dir).ok()?;
    Some(Arc::new(kit))
}
