//! The steps of a move that goes nowhere, for tests of single ones.
use std::sync::Arc;

use netmig_core::{
    container::Manager,
    id::{Epoch, Life, MoveId},
};

use super::steps::Steps;
use crate::{
    agent::local::{Drain, MoveSpec},
    driver::feed::Feed,
};

/// Of a move in its first life, whose lease is a second. To be called in a runtime.
pub(super) fn steps() -> Arc<Steps> {
    let life = Life {
        epoch: Epoch(1),
        nonce: 1,
    };
    let to = "ssh://b".parse().expect("a destination");
    let steps = Steps::new(MoveId([0xee; 16]), spec(), to, life, Feed::default());
    Arc::new(steps)
}

fn spec() -> MoveSpec {
    MoveSpec {
        manager: Manager::Podman,
        name: "web".to_owned(),
        to: "ssh://b".to_owned(),
        remote_command: Vec::new(),
        mounts: Vec::new(),
        services: Vec::new(),
        allow: Vec::new(),
        map_links: Vec::new(),
        drain: Drain::Auto,
        drain_limit_ms: 0,
        cold: false,
        max_blackout_ms: None,
        lease_ms: 1000,
        hold_limit: 0,
        barrier_limit_ms: 0,
        remove_source: false,
        dry_run: false,
        env: Vec::new(),
        credentials: "/nowhere".into(),
    }
}
