//! A gate that a person sets, outside of any move: to see what it does to a container's peers, or to quiet a container for a while.
use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use netmig_common::{Mode, Side};
use netmig_core::{
    container::Manager,
    id::{Epoch, MoveId},
};

use super::{hint::hint, look::netns_of, points, random};
use crate::{
    agent::{local::Drain, paths},
    gate::{self, Gate, Point},
    net,
    runtime::{self, Mounts},
    sock,
};

/// A gate set by hand has one life.
const EPOCH: Epoch = Epoch(1);

/// Which gate.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// That of a move.
    Move(MoveId),
    /// That at a container's links.
    Container(Manager, &'a str),
}

/// All gates that stand on this host, ordered by move.
///
/// # Errors
/// The pins cannot be read.
pub fn all() -> Result<Vec<Gate>> {
    let mut moves: Vec<MoveId> = gate::pinned(&paths::all_pins())?
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .collect();
    moves.sort_by_key(|mv| mv.0);
    moves.into_iter().map(reopen).collect()
}

/// The gates that are meant; for a container without one, none.
///
/// # Errors
/// No such container, or no gate of that move.
pub fn find(which: Which<'_>) -> Result<Option<Gate>> {
    match which {
        Which::Move(mv) => reopen(mv).map(Some),
        Which::Container(manager, name) => at(&place(manager, name)?.1),
    }
}

/// Puts the gate of a container into `mode` for at most `lease`, after which it passes by itself. A container without a gate gets one.
///
/// # Errors
/// A move has it; the kernel refuses it.
pub fn set(which: Which<'_>, mode: Mode, lease: Duration) -> Result<Gate> {
    let found = find(which)?;
    let gate = match (found, which) {
        (Some(gate), _) => {
            nobody_moves(&gate)?;
            gate
        }
        (None, Which::Move(mv)) => bail!("no gate of move {mv} stands on this host"),
        (None, Which::Container(manager, name)) => {
            let mv = MoveId(random()?);
            let points = place(manager, name)?.1;
            Gate::attach(
                mv,
                Side::Source,
                Mode::Pass,
                EPOCH,
                &points,
                &paths::pins(mv),
            )?
        }
    };
    if mode == Mode::Drain {
        let netns = match which {
            Which::Container(manager, name) => place(manager, name)?.0,
            Which::Move(mv) => bail!(
                "the windows of a container's connections are read from its sockets: name the container, not move {mv}"
            ),
        };
        for flow in sock::flows(&netns)? {
            let (key, scales) = hint(&flow, Drain::Both);
            gate.hint(&key, &scales)?;
        }
        gate.drain_all(true, true)?;
    }
    let now = gate.mode()?;
    let epoch = Epoch(u32::from(now.epoch));
    if now.mode == Mode::Expired {
        // It passes already; a move must not close it again, a person may.
        gate.set_mode(Mode::Pass, epoch, None)?;
    }
    gate.set_mode(mode, epoch, (mode != Mode::Pass).then_some(lease))?;
    Ok(gate)
}

/// Takes the gate off.
///
/// # Errors
/// A move has it; something of it cannot be removed.
pub fn clear(which: Which<'_>) -> Result<MoveId> {
    let Some(gate) = find(which)? else {
        bail!("no gate stands at that container's links");
    };
    nobody_moves(&gate)?;
    let mv = gate.mv();
    gate.detach().map_err(|left| {
        let left: Vec<_> = left
            .into_iter()
            .map(|e| format!("{:#}", anyhow::Error::from(e)))
            .collect();
        anyhow::anyhow!("the gate of {mv} is not gone: {}", left.join("; "))
    })?;
    Ok(mv)
}

fn reopen(mv: MoveId) -> Result<Gate> {
    Gate::reopen(mv, &paths::pins(mv)).with_context(|| format!("opening the gate of move {mv}"))
}

/// A container's namespace, and where a gate at its links stands.
fn place(manager: Manager, name: &str) -> Result<(PathBuf, Vec<Point>)> {
    let container = runtime::of(manager)
        .inspect(name, &Mounts::default())?
        .container;
    let netns = netns_of(&container)
        .with_context(|| format!("container {name} has no network namespace"))?;
    let points = points::of(&net::links(&netns)?, &netns);
    if points.is_empty() {
        bail!("container {name} has no link of its own where a gate could stand");
    }
    Ok((netns, points))
}

fn at(points: &[Point]) -> Result<Option<Gate>> {
    Ok(all()?
        .into_iter()
        .find(|gate| gate.points().any(|point| points.contains(point))))
}

/// A gate of a move is its agent's: opened by somebody else, a container could live twice.
fn nobody_moves(gate: &Gate) -> Result<()> {
    let mv = gate.mv();
    if paths::run(mv).exists() || gate.mode()?.mode == Mode::Granted {
        bail!(
            "the gate belongs to move {mv}, which is not over: `netmig-user recover {mv}` says where it stands and decides it"
        );
    }
    Ok(())
}
