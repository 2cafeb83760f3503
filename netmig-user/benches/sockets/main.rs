//! Many TCP connections moved from one namespace to another, by netmig and by a plain TCP_REPAIR loop, in turn.
//!
//! A container's namespace and a target's stand at a bridge with a peer. Their ports are out of the bridge while something is measured: that is the
//! closed gate. Who holds the container's sockets, who holds the peer's, who holds the closed ones at the target (as an engine would), netmig's two
//! agents and the loop are processes of their own, for each has a limit of descriptors. `cargo xtask bench sockets` starts this and makes rows
//! of what it says.
mod ends;
mod hosts;
mod moving;
mod naive;
mod role;

use anyhow::{Context as _, ensure};
use clap::Parser;
use serde::Serialize;

use self::{
    hosts::Hosts,
    moving::Netmig,
    naive::Naive,
    role::{Child, Role},
};

#[derive(Parser)]
struct Arguments {
    /// How many, in turn.
    #[arg(long, value_delimiter = ',', default_value = "100")]
    connections: Vec<usize>,
    /// Bytes in the receive queue, and in the send queue, of each.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    queued: Vec<usize>,
    /// Measurements of each kind.
    #[arg(long, default_value_t = 3)]
    times: usize,
    /// What cargo gives to every bench.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What was measured of so many connections.
#[derive(Serialize)]
struct Case {
    connections: usize,
    queued: usize,
    family: &'static str,
    netmig: Vec<Netmig>,
    naive: Vec<Naive>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(role) = arguments.role {
        return role.play();
    }
    let mut cases = Vec::new();
    for &connections in &arguments.connections {
        for &queued in &arguments.queued {
            for v6 in [false, true] {
                let case = measure(connections, queued, v6, arguments.times)?;
                eprintln!("{}", serde_json::to_string(&case)?);
                cases.push(case);
            }
        }
    }
    println!("{}", serde_json::to_string(&cases)?);
    Ok(())
}

fn measure(count: usize, queued: usize, v6: bool, times: usize) -> anyhow::Result<Case> {
    let hosts = Hosts::up()?;
    let netns = hosts.source.path();
    let mut container = Child::start(&Role::Container {
        netns,
        count,
        queued,
        v6,
    })?;
    let netns = hosts.peer.path();
    let mut peer = Child::start(&Role::Peer {
        netns,
        count,
        queued,
        v6,
    })?;
    let first: i32 = container.hear()?.parse().context("its first descriptor")?;
    peer.hear()?;
    hosts.close_source()?;
    container.say("write")?;
    container.hear()?;
    let mut case = Case {
        connections: count,
        queued,
        family: if v6 { "IPv6" } else { "IPv4" },
        netmig: Vec::new(),
        naive: Vec::new(),
    };
    for turn in 0..times {
        // Neither always comes first.
        for by_netmig in [turn % 2 == 0, turn % 2 == 1] {
            let engine = Engine::start(&hosts, count, v6)?;
            let (held, free) = ((container.id(), first), (engine.child.id(), engine.first));
            if by_netmig {
                case.netmig
                    .push(moving::by_netmig(&hosts, held, free, None)?);
            } else {
                case.naive.push(naive::measured(held, free, count)?);
            }
        }
    }
    // Once with the gate open at the end, to see that what is measured is a move.
    let engine = Engine::start(&hosts, count, v6)?;
    hosts.open_target()?;
    let (held, free) = ((container.id(), first), (engine.child.id(), engine.first));
    moving::by_netmig(&hosts, held, free, Some(count))?;
    peer.say("check")?;
    let exact = peer.hear()?;
    ensure!(
        exact == count.to_string(),
        "only {exact} of {count} connections live at the target"
    );
    Ok(case)
}

/// Who holds the sockets at the target before they are connections.
struct Engine {
    child: Child,
    /// Its first descriptor of them.
    first: i32,
}

impl Engine {
    fn start(hosts: &Hosts, count: usize, v6: bool) -> anyhow::Result<Self> {
        let mut child = Child::start(&Role::Engine {
            netns: hosts.target.path(),
            count,
            v6,
        })?;
        let first = child.hear()?.parse().context("its first descriptor")?;
        Ok(Self { child, first })
    }
}
