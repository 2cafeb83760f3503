//! The first step of a move, and all of `inspect`: the container, its sockets, network, files and tasks as they are. Nothing is changed.
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use netmig_core::{
    container::{Container, Manager, MountFate},
    image::v1::net::Link,
    proto::{Attach, Question},
    service::Asked,
    socket::{Class, Engine, Fate, Kind, Row},
};

use crate::{
    agent::paths,
    engine::{facts, handoff::programs::SOCKET, task},
    files, host, net,
    runtime::{self, Mounts},
    sock,
};

/// What was seen.
pub struct Look {
    /// For the target.
    pub question: Question,
    /// Every socket with its fate.
    pub rows: Vec<Row>,
    /// Reasons against a move, each with what to do.
    pub objections: Vec<String>,
    /// What will be different afterwards.
    pub warnings: Vec<String>,
    /// What stands against taking a service address off this host.
    pub against: Vec<net::service::Against>,
}

/// Looks at a running container.
///
/// # Errors
/// There is none of this name, it does not run, or something about it cannot be read.
///
/// `map` names the target's devices for the container's physical ones.
pub fn look(
    manager: Manager,
    name: &str,
    mounts: &Mounts,
    allow: &[String],
    map: &[Attach],
    services: &[Asked],
) -> Result<Look> {
    let found = runtime::of(manager).inspect(name, mounts)?;
    let (container, mut objections, mut warnings) =
        (found.container, found.objections, found.warnings);
    let Some(netns) = netns_of(&container) else {
        bail!("container {} has no network namespace", container.name)
    };
    let facts = host::facts(&paths::state_moves(), &paths::run_moves());
    objections.extend(refused_mounts(&container));
    let topology = net::topology(&netns)?;
    objections.extend(topology.refusals.iter().cloned());
    warnings.extend(topology.warnings.iter().cloned());
    let (mapped, against) = topology.mapped(map);
    objections.extend(against);
    let mut network = net::snapshot(&netns)?;
    let unfit = |link: &Link| {
        let (_, what) = topology.unfit.iter().find(|(name, _)| *name == link.name)?;
        Some(format!(
            "it is a {what}, which cannot be made at the target"
        ))
    };
    let left_out = network.leave_out(unfit);
    if allow.iter().any(|key| key == "links") {
        warnings.extend(left_out);
    } else {
        objections.extend(topology.unfit.iter().map(|(name, what)| {
            format!(
                "link {name} is a {what}, which cannot be made at the target; attach the container to a bridge or macvlan on a segment that both hosts are on, or --allow links goes on \
                 without it, and without what needs it"
            )
        }));
    }
    warnings.extend(network.not_carried.iter().cloned());
    let here = net::service::here::look(services, &topology, &network)?;
    objections.extend(here.refusals.iter().cloned());
    warnings.extend(here.warnings.iter().cloned());
    network.filters.partial = allow.iter().any(|key| key == "filters");
    let unfit = net::filter::rehearse(&network.filters, &network.links)?;
    for what in network.filters.lost.iter().chain(&unfit) {
        if network.filters.partial {
            warnings.push(what.clone());
        } else {
            objections.push(format!("{what}; --allow filters goes on without it"));
        }
    }
    let engine = manager.engine();
    let mut rows = sock::rows_under(&netns, &tasks(&container)?, engine)?;
    if engine == Engine::Handoff {
        without_our_own(&mut rows);
    }
    let judge = |rows: &mut Vec<Row>| {
        if let Some(behind) = &here.behind {
            net::service::fate::judge(rows, behind, &network, &here.tracked, &here.own);
        }
    };
    // Without a service address nothing survives, and one objection says so.
    if !services.is_empty() {
        judge(&mut rows);
    }
    for row in &rows {
        match &row.fate {
            Fate::Refused(why) => objections.push(format!("{row}: {why}")),
            Fate::Reset(_) if row.class == Class::TcpTimeWaitInside => {}
            // Nobody can notice by a descriptor: a port's protection, a handshake that lasts a round trip and is another one at the freeze, a tool
            // that looks at the namespace at this moment.
            Fate::Reset(why)
                if matches!(
                    row.class,
                    Class::TcpTimeWaitStuck | Class::TcpSynRecvStuck | Class::Foreign
                ) =>
            {
                warnings.push(format!("{row}: {why}"))
            }
            // The program knows what it does not hand over; what it has not accepted yet it accepts before it saves.
            Fate::Reset(why)
                if engine == Engine::Handoff
                    && (row.class == Class::TcpEmbryoStuck
                        || !matches!(row.kind, Kind::Tcp | Kind::Mptcp)) =>
            {
                warnings.push(format!("{row}: {why}"))
            }
            Fate::Reset(why) if row.waived(allow) => warnings.push(format!("{row}: {why}")),
            Fate::Reset(why) => objections.push(format!(
                "{row}: would be reset: {why}; --allow {} goes on without it, --allow reset without any that would be",
                row.class
            )),
            Fate::Moves | Fate::MovesWithout(_) => {}
        }
    }
    if services.is_empty() {
        judge(&mut rows);
    }
    let mut memory_bytes = 0;
    if engine == Engine::Criu {
        let walked = facts::walk(container.init_pid)?;
        objections.extend(walked.objections);
        warnings.extend(walked.warnings);
        memory_bytes = walked.memory_bytes;
    }
    let mut file_bytes = 0;
    for place in files::sources(&container) {
        file_bytes += files::estimate(&place)?;
    }
    let question = Question {
        image_bytes: found.image_bytes,
        attach: [topology.attach(), mapped].concat(),
        container,
        network,
        facts,
        memory_bytes,
        file_bytes,
        behind: here.behind,
    };
    Ok(Look {
        question,
        rows,
        objections,
        warnings,
        against: here.against,
    })
}

/// The namespace that the container's processes are in. One that outlives them is preferred.
pub fn netns_of(container: &Container) -> Option<PathBuf> {
    let by_task = || {
        (container.init_pid > 0).then(|| {
            Path::new("/proc")
                .join(container.init_pid.to_string())
                .join("ns/net")
        })
    };
    container
        .netns
        .clone()
        .filter(|path| path.exists())
        .or_else(by_task)
}

/// The processes that hold the container's sockets while they run. A program without a container is one process among all of the host's.
pub fn tasks(container: &Container) -> Result<Vec<i32>, task::Error> {
    match container.manager.engine() {
        Engine::Criu => task::tasks(container.init_pid),
        Engine::Handoff => Ok(vec![container.init_pid]),
    }
}

/// The program's connection with the agent is netmig's matter.
fn without_our_own(rows: &mut Vec<Row>) {
    let ours: Vec<u64> = rows
        .iter()
        .filter(|row| row.kind == Kind::Unix && row.local == SOCKET)
        .map(|row| row.inode)
        .collect();
    let is_ours = |row: &Row| {
        row.kind == Kind::Unix
            && (ours.contains(&row.inode)
                || ours
                    .iter()
                    .any(|inode| row.peer == format!("inode {inode}")))
    };
    rows.retain(|row| !is_ours(row));
}

fn refused_mounts(container: &Container) -> Vec<String> {
    let refused = container
        .mounts
        .iter()
        .filter(|mount| mount.fate == MountFate::Refuse);
    refused
        .map(|mount| {
            let source = mount.source.as_deref().unwrap_or(Path::new("?")).display();
            let at = mount.destination.display();
            format!("{source} is mounted at {at} and netmig does not know whether the target has it: --mount {at}=copy sends it, --mount {at}=shared says it is there")
        })
        .collect()
}
