//! podman (5.1 and newer, as root), with runc or crun underneath.
use netmig_core::container::{Container, SourcePolicy};

use super::{
    Accepted, AfterRelease, CreatedContainer, Disarmed, Error, Inspected, Mounts, Runtime,
};
use crate::engine::Engine;

mod args;
mod create;
pub mod image;
mod inspect;
pub mod netavark;
mod network;
mod objections;
mod record;
mod source;
mod unstartable;

/// The podman of this host.
#[derive(Clone, Copy, Debug)]
pub struct Podman;

impl Runtime for Podman {
    fn inspect(&self, name: &str, mounts: &Mounts) -> Result<Inspected, Error> {
        inspect::inspect(name, mounts)
    }

    fn accepts(&self, container: &Container) -> Result<Accepted, Error> {
        create::accepts(container)
    }

    fn disarm(&self, container: &Container) -> Result<Disarmed, Error> {
        source::disarm(container)
    }

    fn rearm(&self, disarmed: &Disarmed) -> Vec<Error> {
        source::rearm(disarmed)
    }

    fn create(
        &self,
        container: &Container,
        engine: &dyn Engine,
    ) -> Result<CreatedContainer, Error> {
        let kit = engine.criu().ok_or_else(|| {
            Error::Refused("a container of podman is moved by CRIU and nothing else".to_owned())
        })?;
        create::create(container, kit)
    }

    fn discard(&self, created: &CreatedContainer) -> Vec<Error> {
        create::discard(created)
    }

    fn settle(&self, created: &CreatedContainer) -> Vec<Error> {
        create::settle(created)
    }

    fn bar(&self, container: &Container, target: &str) -> Result<(), Error> {
        source::bar(container, target)
    }

    fn after_release(
        &self,
        container: &Container,
        policy: SourcePolicy,
        target: &str,
    ) -> Result<AfterRelease, Error> {
        source::after_release(container, policy, target)
    }

    fn after_abort(&self, container: &Container) -> Vec<Error> {
        source::after_abort(container)
    }
}
