//! A gate as people and programs read it (`netmig.gate/1`).
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use netmig_common::{Direction, FlowKey, FlowState, Mode, Protocol, Side, Tally, Unhandled};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Error, Gate, Orientation, Point, word};

/// Name and version of the form.
pub const SCHEMA: &str = "netmig.gate/1";

/// All gates of a host.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Gates {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// One each.
    pub gates: Vec<Status>,
}

/// One gate.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Status {
    /// The move that it belongs to, 32 hex digits; of one that was set by hand an id that no move has.
    #[serde(rename = "move")]
    pub mv: String,
    /// `source` or `target`.
    pub side: &'static str,
    /// `pass`, `drain`, `closed`, `granted`, `expired` or `opening`.
    pub mode: &'static str,
    /// Which life of the agent set it.
    pub epoch: u16,
    /// Until the gate changes its mode by itself, ms; none if it does not.
    pub deadline_in_ms: Option<u64>,
    /// Where it stands.
    pub devices: Vec<Device>,
    /// To the container.
    pub inbound: Counted,
    /// From the container.
    pub outbound: Counted,
    /// On the container's `lo`.
    pub loopback: Counted,
    /// Packets given to the hold and not delivered, nor given up.
    pub waiting: u64,
    /// Packets given to the hold whose payload was acknowledged to the peer already.
    pub owned: u64,
    /// Connections that it has seen since the last `drain` began; none unless asked for.
    pub flows: Option<Vec<Flow>>,
}

/// A device with the gate's programs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Device {
    /// Its name when the gate was attached.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// The namespace that it is in; none: the host's.
    pub netns: Option<PathBuf>,
    /// `host side`, `inside` or `loopback`.
    pub stands: &'static str,
}

/// What was counted in one direction. A super-packet counts as one.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Counted {
    /// Packets passed.
    pub packets: u64,
    /// Bytes passed.
    pub bytes: u64,
    /// Packets dropped, by kind; kinds without any are left out.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Bytes dropped.
    pub dropped_bytes: u64,
    /// Packets given to the hold, by kind.
    pub held: BTreeMap<&'static str, u64>,
    /// Bytes given to the hold.
    pub held_bytes: u64,
    /// ARP, neighbour discovery and the like that passed though the gate was closed.
    pub neighbours: u64,
    /// TCP windows rewritten.
    pub windows: u64,
    /// Sequence numbers of pure ACKs put right.
    pub sequences: u64,
    /// Packets that `drain` left as they were, by reason.
    pub unhandled: BTreeMap<&'static str, u64>,
    /// Times that the lease ran out.
    pub expired: u64,
    /// Outbound: sent to peers in the container's name while the gate was closed. Inbound: answered by the program itself.
    pub answered: u64,
}

/// A TCP connection as the gate has seen it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Flow {
    /// Address and port of the container.
    pub container: SocketAddr,
    /// Address and port of the peer.
    pub peer: SocketAddr,
    /// Whether all that was seen going to the container has been acknowledged on the wire.
    pub inbound_acknowledged: bool,
    /// The same of what the container has sent.
    pub outbound_acknowledged: bool,
    /// Segments whose window was rewritten: to the container, from it.
    pub rewritten: [u32; 2],
    /// Segments sent again: to the container, from it.
    pub resent: [u32; 2],
}

impl Status {
    /// What `gate` is doing; with every flow if `flows`.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn of(gate: &Gate, flows: bool) -> Result<Self, Error> {
        let word = gate.mode()?;
        let counters = gate.counters()?;
        let deadline_in_ms = match word.deadline_ms {
            0 => None,
            deadline => Some(deadline.saturating_sub(word::now_ms()?)),
        };
        let flows = match flows {
            false => None,
            true => Some(gate.flows()?.iter().map(|(k, s)| flow(k, s)).collect()),
        };
        Ok(Self {
            mv: gate.mv().to_string(),
            side: match word.side {
                Side::Source => "source",
                Side::Target => "target",
            },
            mode: mode(word.mode),
            epoch: word.epoch,
            deadline_in_ms,
            devices: gate.points().map(device).collect(),
            inbound: counted(&counters.inbound),
            outbound: counted(&counters.outbound),
            loopback: counted(&counters.loopback),
            waiting: gate.pending(),
            owned: gate.order().owned(),
            flows,
        })
    }
}

/// The mode in one word.
#[must_use]
pub const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Pass => "pass",
        Mode::Drain => "drain",
        Mode::Closed => "closed",
        Mode::Granted => "granted",
        Mode::Expired => "expired",
        Mode::Opening => "opening",
    }
}

fn device(point: &Point) -> Device {
    Device {
        name: point.name.clone(),
        ifindex: point.ifindex,
        netns: point.netns.clone(),
        stands: match point.orientation {
            Orientation::HostSide => "host side",
            Orientation::Inside => "inside",
            Orientation::Loopback => "loopback",
        },
    }
}

fn counted(tally: &Tally) -> Counted {
    let by_protocol = |counts: &[u64; 8]| {
        Protocol::ALL
            .into_iter()
            .filter_map(|p| some(protocol(p), counts[p as usize]))
            .collect()
    };
    Counted {
        packets: tally.packets,
        bytes: tally.bytes,
        dropped: by_protocol(&tally.dropped),
        dropped_bytes: tally.dropped_bytes,
        held: by_protocol(&tally.held),
        held_bytes: tally.held_bytes,
        neighbours: tally.neighbours,
        windows: tally.windows,
        sequences: tally.sequences,
        unhandled: Unhandled::ALL
            .into_iter()
            .filter_map(|u| some(unhandled(u), tally.unhandled[u as usize]))
            .collect(),
        expired: tally.expired,
        answered: tally.answered,
    }
}

fn some(name: &'static str, count: u64) -> Option<(&'static str, u64)> {
    (count > 0).then_some((name, count))
}

const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
        Protocol::Neighbour => "neighbour",
        Protocol::Sctp => "sctp",
        Protocol::OtherIp => "other ip",
        Protocol::OtherLink => "other link layer",
        Protocol::Unparsed => "unparsed",
    }
}

const fn unhandled(why: Unhandled) -> &'static str {
    match why {
        Unhandled::Malformed => "malformed",
        Unhandled::Fragment => "fragment",
        Unhandled::TooDeep => "too deep",
        Unhandled::Signed => "signed",
        Unhandled::Scale => "scale not known",
        Unhandled::OneWay => "one way",
        Unhandled::TableFull => "table full",
        Unhandled::Refused => "refused",
    }
}

fn flow(key: &FlowKey, state: &FlowState) -> Flow {
    let address = |octets: [u8; 16], port| {
        let ip = Ipv6Addr::from(octets);
        SocketAddr::new(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4), port)
    };
    Flow {
        container: address(key.container, key.container_port),
        peer: address(key.peer, key.peer_port),
        inbound_acknowledged: state.is_acknowledged(Direction::Inbound),
        outbound_acknowledged: state.is_acknowledged(Direction::Outbound),
        rewritten: state.rewritten,
        resent: state.resent,
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mv,
            side,
            mode,
            epoch,
            ..
        } = self;
        write!(f, "gate {mv}: {mode}, {side}, epoch {epoch}")?;
        if let Some(ms) = self.deadline_in_ms {
            write!(f, ", deadline in {ms} ms")?;
        }
        writeln!(f)?;
        for Device { name, stands, .. } in &self.devices {
            writeln!(f, "  at {name} ({stands})")?;
        }
        for (name, counted) in [
            ("inbound", &self.inbound),
            ("outbound", &self.outbound),
            ("loopback", &self.loopback),
        ] {
            writeln!(f, "  {name:<9} {counted}")?;
        }
        if self.owned + self.waiting > 0 {
            writeln!(
                f,
                "  {} held packets wait; {} were acknowledged",
                self.waiting, self.owned
            )?;
        }
        for flow in self.flows.iter().flatten() {
            writeln!(
                f,
                "  {} <- {}: open in {}, open out {}, rewritten {:?}, sent again {:?}",
                flow.container,
                flow.peer,
                !flow.inbound_acknowledged,
                !flow.outbound_acknowledged,
                flow.rewritten,
                flow.resent
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets, {} bytes passed", self.packets, self.bytes)?;
        for (what, bytes, counts) in [
            ("dropped", self.dropped_bytes, &self.dropped),
            ("held", self.held_bytes, &self.held),
        ] {
            if !counts.is_empty() {
                write!(f, "; {what} {}, {bytes} bytes", listed(counts))?;
            }
        }
        for (what, count) in [
            ("neighbour messages answered", self.neighbours),
            ("windows rewritten", self.windows),
            ("sequence numbers put right", self.sequences),
            ("leases run out", self.expired),
            ("answers sent for it", self.answered),
        ] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        if !self.unhandled.is_empty() {
            write!(f, "; left alone: {}", listed(&self.unhandled))?;
        }
        Ok(())
    }
}

fn listed(counts: &BTreeMap<&'static str, u64>) -> String {
    let listed: Vec<_> = counts
        .iter()
        .map(|(what, n)| format!("{n} {what}"))
        .collect();
    listed.join(", ")
}
