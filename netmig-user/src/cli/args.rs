//! The arguments of every subcommand, and what exit codes mean.
use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use netmig_core::{
    container::{Manager, MountFate},
    id::MoveId,
    proto::Attach,
    service::Asked,
};

use crate::{
    agent::local::Drain,
    wire::{destination::Destination, tls},
};

/// Moves a running container with its open connections to another host.
///
/// The container's peers see a pause: no reset, no lost byte. The processes are moved by CRIU, run by the container's own runtime, or move
/// themselves (handoff); the network is moved by netmig.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes:
  0  done: the container lives at the target (or the question was answered)
  1  failed: the container stays where it was; the report says why
  2  the arguments are wrong
  3  refused: nothing was touched; the plan says why
  4  left: the move goes on in the agent; `netmig-user migrate --attach` follows it, `recover` decides one that waits"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move a container to another host
    Migrate(Migrate),
    /// Say what a move would do and what would not survive it; nothing is changed
    Plan(Plan),
    /// List the container's sockets, links and mounts with their fate
    Inspect(Inspect),
    /// Say what this host can do for netmig, one line each
    Check(Check),
    /// Show the gates that stand on this host
    Gate(Gate),
    /// Start a program that can hand itself over, or list those that can
    Handoff(Handoff),
    /// List the moves that wait on this host, and decide one
    Recover(Recover),
    /// The network of a namespace as a JSON document: dump, restore, diff
    Net(Net),
    /// The resident agent (started by whoever needs it)
    Agent(Agent),
    /// The remote shell that rsync is given
    #[command(hide = true)]
    Rsh(Rsh),
    /// Supervises a runtime's command
    #[command(hide = true)]
    Supervise(Supervise),
    /// Waits beside the agent until a move has ended
    #[command(hide = true)]
    Guard(Guard),
    /// The engine's part in a handoff, which the agent starts
    #[command(hide = true)]
    HandoffEngine(HandoffEngine),
}

/// Which container.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// A podman container, by name or id
    #[arg(long, value_name = "NAME")]
    pub podman: Option<String>,
    /// A runc container, by id
    #[arg(long, value_name = "ID")]
    pub runc: Option<String>,
    /// A crun container, by id
    #[arg(long, value_name = "ID")]
    pub crun: Option<String>,
    /// A program that hands itself over, by the name it has registered
    #[arg(long, value_name = "NAME")]
    pub handoff: Option<String>,
}

impl Which {
    /// Manager and name; none if no container was named.
    pub fn container(&self) -> Option<(Manager, &str)> {
        named(&self.podman, &self.runc, &self.crun, &self.handoff)
    }
}

/// What `migrate` and `plan` share.
#[derive(Debug, Args)]
pub struct Move {
    /// The target host: ssh://[USER@]HOST[:PORT], by ssh's own configuration (keys, jump hosts, ports), or tls://HOST:PORT, where
    /// `netmig-user agent --listen` runs
    #[arg(long, value_name = "HOST")]
    pub to: Option<Destination>,
    /// This host's credentials for tls://: a directory with ca.pem, cert.pem and key.pem
    #[arg(long, value_name = "DIR", default_value = tls::DIRECTORY)]
    pub tls_dir: PathBuf,
    /// How ssh:// calls netmig-user at the target
    #[arg(long, value_name = "COMMAND", default_value = "netmig-user")]
    pub remote_command: String,
    /// Fate of a bind mount: DST=copy|shared|refuse (default: refuse)
    #[arg(long = "mount", value_name = "DST=FATE", value_parser = mount)]
    pub mounts: Vec<(PathBuf, MountFate)>,
    /// An address of this host by which peers know a container behind it (DNAT, masquerade): it moves along, onto the target's device of
    /// the same name or DEVICE; may be given several times
    #[arg(long = "service-address", value_name = "ADDRESS[%DEVICE]")]
    pub services: Vec<Asked>,
    /// Go on in spite of an objection, by its key (the plan names the keys)
    #[arg(long, value_name = "KEY")]
    pub allow: Vec<String>,
    /// The device of the target that takes the place of a physical one of the container
    #[arg(long = "map-link", value_name = "LINK=DEVICE", value_parser = attach)]
    pub map_links: Vec<Attach>,
    /// Refuse before the freeze if the blackout is predicted to be longer, and cancel when it becomes so
    #[arg(long, value_name = "MS")]
    pub max_blackout: Option<u64>,
    /// Write it as JSON to standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(false).args(["podman", "runc", "crun", "handoff", "attach"]))]
pub struct Migrate {
    /// A podman container, by name or id
    #[arg(long, value_name = "NAME")]
    pub podman: Option<String>,
    /// A runc container, by id
    #[arg(long, value_name = "ID")]
    pub runc: Option<String>,
    /// A crun container, by id
    #[arg(long, value_name = "ID")]
    pub crun: Option<String>,
    /// A program that hands itself over, by the name it has registered (`netmig-user handoff` lists them)
    #[arg(long, value_name = "NAME")]
    pub handoff: Option<String>,
    /// Follow a move that is under way (its terminal was closed, say)
    #[arg(long, value_name = "MOVE")]
    pub attach: Option<MoveId>,
    /// Where and how.
    #[command(flatten)]
    pub how: Move,
    /// Plan only
    #[arg(long)]
    pub dry_run: bool,
    /// What becomes of the container at the source: its record is kept (renamed, unable to start) or removed; volumes are never deleted
    #[arg(long, value_name = "WHAT", value_parser = ["keep", "remove"], default_value = "keep")]
    pub source: String,
    /// Connections that settle before the freeze: those in which bulk flows, in its direction, unless peers are answered in the blackout and need not be stopped (auto); only where the container sends it (out);
    /// all of them (both); none (off)
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = Drain::Auto, hide_possible_values = true)]
    pub drain: Drain,
    /// Longest time to let data in flight settle before the freeze; 0: none
    #[arg(long, value_name = "MS", default_value_t = 200)]
    pub drain_limit: u64,
    /// Connections that are sending begin with a new congestion window at the target, instead of with half of theirs
    #[arg(long)]
    pub cold: bool,
    /// Before the grant, the gate opens by itself when the agent has been silent for so long
    #[arg(long, value_name = "MS", default_value_t = 3000)]
    pub lease: u64,
    /// Most bytes of packets that are held during the blackout, to be delivered after it: 4096, 64K, 64M, 1G; 0: they are dropped
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = bytes)]
    pub hold_limit: u64,
    /// How long packets that come to the target wait, once it is open, for those that still come to the source
    #[arg(long, value_name = "MS", default_value_t = 20)]
    pub barrier_limit: u64,
    /// Write the report (JSON, netmig.report/1) to a file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// The container.
    #[command(flatten)]
    pub which: Which,
    /// Where and how.
    #[command(flatten)]
    pub how: Move,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The container.
    #[command(flatten)]
    pub which: Which,
    /// An address of this host by which peers know a container behind it, as `migrate` takes it
    #[arg(long = "service-address", value_name = "ADDRESS[%DEVICE]")]
    pub services: Vec<Asked>,
    /// Write it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Write it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gate`.
#[derive(Debug, Args)]
pub struct Gate {
    /// What to do with gates.
    #[command(subcommand)]
    pub verb: GateVerb,
}

/// What to do with gates.
#[derive(Debug, Subcommand)]
pub enum GateVerb {
    /// The gates that stand on this host: mode, deadline, devices, counters
    Status(GateStatus),
    /// Put a container's gate into a mode, outside of any move; one is attached if there is none
    Set(GateSet),
    /// Take a gate off that no move needs any more
    Clear(GateWhich),
}

/// Arguments of `gate status`.
#[derive(Debug, Args)]
pub struct GateStatus {
    /// Only this move's
    #[arg(value_name = "MOVE")]
    pub mv: Option<MoveId>,
    /// With the TCP connections that were seen since the last drain began
    #[arg(long)]
    pub flows: bool,
    /// Write it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `gate set`.
#[derive(Debug, Args)]
pub struct GateSet {
    /// `pass`: count, nothing else. `drain`: TCP windows go to zero as what is in flight arrives. `closed`: nothing passes, it is dropped and
    /// counted
    #[arg(value_enum)]
    pub mode: GateMode,
    /// After so many seconds a gate that drains or is closed passes by itself
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub lease: u64,
    /// Which gate.
    #[command(flatten)]
    pub which: GateWhich,
}

/// A mode that a person may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GateMode {
    /// Counts, nothing else.
    Pass,
    /// TCP windows go to zero as what is in flight arrives.
    Drain,
    /// Nothing passes.
    Closed,
}

/// Which gate.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct GateWhich {
    /// At the links of a podman container, by name or id
    #[arg(long, value_name = "NAME")]
    pub podman: Option<String>,
    /// At the links of a runc container, by id
    #[arg(long, value_name = "ID")]
    pub runc: Option<String>,
    /// At the links of a crun container, by id
    #[arg(long, value_name = "ID")]
    pub crun: Option<String>,
    /// At the links of a program that hands itself over, by the name it has registered
    #[arg(long, value_name = "NAME")]
    pub handoff: Option<String>,
    /// That of a move, or one set by hand, by its id
    #[arg(long = "move", value_name = "MOVE")]
    pub mv: Option<MoveId>,
}

/// Arguments of `recover`.
#[derive(Debug, Args)]
pub struct Recover {
    /// The move; without it, all that wait are listed
    #[arg(value_name = "MOVE")]
    pub mv: Option<MoveId>,
    /// On the source: take the container back after a grant. Only when the target is fenced: if it releases too, the container lives twice
    #[arg(long, requires = "mv", requires = "target_is_fenced", conflicts_with_all = ["release", "give_up"])]
    pub take_back: bool,
    /// I know that the target host cannot run the container (it is off, or cut off for good)
    #[arg(long)]
    pub target_is_fenced: bool,
    /// On the target: release what is prepared here. Only when the source is fenced: if it goes on too, the container lives twice
    #[arg(
        long,
        requires = "mv",
        requires = "source_is_fenced",
        conflicts_with = "give_up"
    )]
    pub release: bool,
    /// I know that the source host cannot run the container
    #[arg(long)]
    pub source_is_fenced: bool,
    /// On the target: give up what is prepared here
    #[arg(long, requires = "mv")]
    pub give_up: bool,
    /// Write the list as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `net`.
#[derive(Debug, Args)]
pub struct Net {
    /// What to do.
    #[command(subcommand)]
    pub verb: NetVerb,
}

/// What `net` can do.
#[derive(Debug, Subcommand)]
pub enum NetVerb {
    /// Write the network of a namespace (links, addresses, routes, rules, neighbours, sysctls, packet filters) as JSON
    Dump(NetDump),
    /// Make the network of a document in a namespace; exit code 3: refused, nothing was made
    Restore(NetRestore),
    /// Say what is different between two networks; exit code 1: something is
    Diff(NetDiff),
    /// Write the JSON schema of the document
    Schema,
}

/// Arguments of `net dump`.
#[derive(Debug, Args)]
pub struct NetDump {
    /// The namespace: a path, the id of a process in it, or a name as `ip netns` has it
    #[arg(long, value_name = "PATH|PID|NAME")]
    pub netns: String,
    /// The connections that it tracks too
    #[arg(long)]
    pub connections: bool,
    /// The private and preshared keys of WireGuard devices too: who can read the document can read what they encrypt
    #[arg(long)]
    pub keys: bool,
    /// Where to write it; without, to standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write how long each part took (JSON, netmig.net-times/1) to a file
    #[arg(long, value_name = "FILE")]
    pub times: Option<PathBuf>,
}

/// Arguments of `net restore`.
#[derive(Debug, Args)]
pub struct NetRestore {
    /// The document; `-`: standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// The namespace: a path or a name, made if it is not there, or the id of a process in it
    #[arg(long, value_name = "PATH|PID|NAME")]
    pub netns: String,
    /// Attach a link to this bridge (or parent device) instead of the one of the document
    #[arg(long, value_name = "LINK=PARENT", value_parser = attach)]
    pub attach: Vec<Attach>,
    /// The device of this host that takes the place of a physical one of the document
    #[arg(long = "map-link", value_name = "LINK=DEVICE", value_parser = attach)]
    pub map_links: Vec<Attach>,
    /// Only say what stands against it
    #[arg(long)]
    pub check: bool,
    /// Go on without packet filters and links that cannot be made here, and without what needs a link that is not there
    #[arg(long)]
    pub partial: bool,
    /// Tell the segment, once, where the addresses are now
    #[arg(long)]
    pub announce: bool,
    /// Write how long each part took (JSON, netmig.net-times/1) to a file
    #[arg(long, value_name = "FILE")]
    pub times: Option<PathBuf>,
}

/// Arguments of `net diff`.
#[derive(Debug, Args)]
pub struct NetDiff {
    /// A document; `-`: standard input; `netns:PATH|PID|NAME`: a namespace as it is
    #[arg(value_name = "FILE|netns:WHERE")]
    pub before: String,
    /// Another one
    #[arg(value_name = "FILE|netns:WHERE")]
    pub after: String,
    /// Counters and lifetimes count too
    #[arg(long)]
    pub exact: bool,
    /// Write the differences as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `agent`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("how").required(true).multiple(false).args(["stdio", "resident", "listen"]))]
pub struct Agent {
    /// Be the far end of an ssh connection: a pipe to the resident agent, which is started if none runs
    #[arg(long)]
    pub stdio: bool,
    /// Be the resident agent, in the foreground
    #[arg(long)]
    pub resident: bool,
    /// Take TLS connections of other hosts' `--to tls://`, in the foreground, each a pipe to the resident agent
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// This host's credentials for --listen: a directory with ca.pem, cert.pem and key.pem
    #[arg(long, value_name = "DIR", default_value = tls::DIRECTORY)]
    pub tls_dir: PathBuf,
}

/// Arguments of `rsh`, as rsync gives them.
#[derive(Debug, Args)]
pub struct Rsh {
    /// The move
    pub mv: MoveId,
    /// Host name (ignored: the move knows its target) and rsync's own command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Arguments of `supervise`.
#[derive(Debug, Args)]
pub struct Supervise {
    /// Where the exit status goes
    pub dir: PathBuf,
    /// The command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Arguments of `guard`.
#[derive(Debug, Args)]
pub struct Guard {
    /// The move
    pub mv: MoveId,
}

/// Arguments of `handoff`.
#[derive(Debug, Args)]
pub struct Handoff {
    /// Start it in this network namespace: a name as `ip netns` has it, or a path
    #[arg(long, value_name = "NETNS", requires = "command")]
    pub netns: Option<PathBuf>,
    /// List as JSON
    #[arg(long, conflicts_with = "command")]
    pub json: bool,
    /// The program and its arguments; without one, the programs that have registered are listed
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// Arguments of `handoff-engine`.
#[derive(Debug, Args)]
pub struct HandoffEngine {
    /// Which end
    #[arg(value_parser = ["save", "load"])]
    pub verb: String,
    /// The move's directory
    pub dir: PathBuf,
}

/// The one container that is named.
pub fn named<'a>(
    podman: &'a Option<String>,
    runc: &'a Option<String>,
    crun: &'a Option<String>,
    handoff: &'a Option<String>,
) -> Option<(Manager, &'a str)> {
    let of = |manager, name: &'a Option<String>| name.as_deref().map(|name| (manager, name));
    of(Manager::Podman, podman)
        .or(of(Manager::Runc, runc))
        .or(of(Manager::Crun, crun))
        .or(of(Manager::Bare, handoff))
}

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        other => return Err(format!("{other:?} is none of K, M, G")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a number of bytes"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is more than a hold can have"))
}

fn attach(text: &str) -> Result<Attach, String> {
    match text.split_once('=') {
        Some((link, parent)) if !link.is_empty() && !parent.is_empty() => Ok(Attach {
            link: link.to_owned(),
            parent: parent.to_owned(),
        }),
        _ => Err("LINK=PARENT (LINK=DEVICE) is expected, for instance eth0=br0".to_owned()),
    }
}

fn mount(text: &str) -> Result<(PathBuf, MountFate), String> {
    let (destination, fate) = text
        .rsplit_once('=')
        .ok_or("DST=copy|shared|refuse is expected")?;
    let fate = match fate {
        "copy" => MountFate::Copy,
        "shared" => MountFate::Shared,
        "refuse" => MountFate::Refuse,
        other => return Err(format!("{other:?} is none of copy, shared, refuse")),
    };
    if !destination.starts_with('/') {
        return Err(format!(
            "{destination:?} is not an absolute path inside the container"
        ));
    }
    Ok((destination.into(), fate))
}
