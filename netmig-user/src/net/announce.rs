//! Telling the segment where the container is now: its neighbours by ARP and neighbour advertisement, bridges by any frame, switches that
//! listen to membership reports by those.
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use netmig_core::image::v1::net::{self, Mac, Network};

use super::{
    Doing, Error, Link, LinkKind, addr,
    frame::{announcements, membership, rarp},
    link,
    membership::groups,
    open,
    packet::PacketSocket,
    sysctl,
};
use crate::sys::netns::within;

/// Gap after the first round; each is twice the one before.
const FIRST_GAP: Duration = Duration::from_millis(20);
/// So many rounds are sent in any case: who is heard first may not be the only one who has to hear it, and a frame may be lost on its way
/// (RFC 5227 2.3 and RFC 4861 7.2.6 send more than one too).
const FEWEST: u32 = 4;
/// How often [`announce()`] looks whether anything was heard.
const LOOK: Duration = Duration::from_millis(2);

/// What was announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Rounds sent.
    pub rounds: u32,
    /// Frames sent.
    pub frames: u64,
    /// Whether it ended because the peers were heard, not because of the limit.
    pub heard: bool,
    /// Links that could not be announced on, and why. The others were.
    pub failed: Vec<String>,
}

/// An address of the host itself that is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The host's device.
    pub device: String,
    /// The address.
    pub address: IpAddr,
}

/// Announces every address of `network` on its link, and each of `own` on its device of the calling thread's namespace, in rounds with growing
/// gaps: four at least (20, 40 and 80 ms apart) as far as `limit` lets them, and more until `heard` says that packets arrive, or `limit`. An address
/// of `own` that is not on its device any more is announced no further.
///
/// The frames leave the container's own end of each link, in the namespace `netns`, and pass its gate, which must be open: so the bridge
/// learns the MAC on the right port, and everything behind it the same way. Those of a bridge, a bond or a VLAN leave that, and with its tag.
///
/// # Errors
/// If the namespace cannot be entered. A link that is gone or down is in [`Announced::failed`]: by now the container lives here.
pub fn announce(
    netns: &Path,
    links: &[Link],
    network: &Network,
    own: &[Own],
    limit: Duration,
    heard: &mut dyn FnMut() -> bool,
) -> Result<Announced, Error> {
    let mut done = Announced::default();
    let opened = within(netns, || {
        let reaching = reaching(network, links);
        let ours = links.iter().filter(|l| reaching.contains(l.name.as_str()));
        let up = ours.filter(|l| network.link(&l.name).is_some_and(|l| l.is_up()));
        Ok::<_, Error>(
            up.filter_map(|l| Some(Line::open(l, l.mac?, network)))
                .collect::<Vec<_>>(),
        )
    })?;
    let mut lines = Vec::new();
    for line in opened.into_iter().chain(own.iter().map(Line::of_host)) {
        match line {
            Ok(line) => lines.push(line),
            Err(e) => done.failed.push(e.to_string()),
        }
    }
    rounds(&mut lines, limit, heard, &mut done);
    // Who announces need not wait until the sockets are closed.
    thread::spawn(move || drop(lines));
    Ok(done)
}

/// Names of the links through which the namespace is on a segment outside: those that hang on the host, and the bridges, bonds and VLANs
/// that send through one of them.
fn reaching<'a>(network: &'a Network, links: &'a [Link]) -> BTreeSet<&'a str> {
    let outer = |l: &&Link| {
        matches!(
            l.kind,
            LinkKind::Veth { .. }
                | LinkKind::Macvlan { .. }
                | LinkKind::Ipvlan { .. }
                | LinkKind::Physical
        )
    };
    let mut found: BTreeSet<_> = links
        .iter()
        .filter(outer)
        .map(|l| l.name.as_str())
        .collect();
    loop {
        let sends_through = |link: &&net::Link| match &link.kind {
            net::LinkKind::Virtual { kind, parent, .. } => match (kind.as_str(), parent) {
                ("vlan", Some(parent)) => found.contains(parent.as_str()),
                ("bridge" | "bond", _) => network.links.iter().any(|port| {
                    port.master.as_ref() == Some(&link.name) && found.contains(port.name.as_str())
                }),
                _ => false,
            },
            _ => false,
        };
        let more: Vec<_> = (network.links.iter().filter(sends_through))
            .map(|l| l.name.as_str())
            .filter(|name| !found.contains(name))
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn rounds(
    lines: &mut Vec<Line>,
    limit: Duration,
    heard: &mut dyn FnMut() -> bool,
    done: &mut Announced,
) {
    let until = Instant::now() + limit;
    let mut gap = FIRST_GAP;
    while !lines.is_empty() {
        let first = done.rounds == 0;
        lines.retain(|line| match line.send(first) {
            Ok(frames) => {
                done.frames += frames;
                frames > 0
            }
            Err(e) => {
                done.failed.push(e.to_string());
                false
            }
        });
        done.rounds += 1;
        let next = Instant::now() + gap;
        gap *= 2;
        while Instant::now() < next {
            done.heard = done.heard || heard();
            let enough = done.heard && done.rounds >= FEWEST;
            if enough || Instant::now() >= until {
                return;
            }
            thread::sleep(LOOK);
        }
    }
}

/// Announces each of `own` once on its device of the calling thread's namespace. What failed, in words.
pub fn announce_own(own: &[Own]) -> Vec<String> {
    let said = own
        .iter()
        .map(|own| Line::of_host(own).and_then(|line| line.send_frames().map(drop)));
    said.filter_map(|said| said.err().map(|e| e.to_string()))
        .collect()
}

/// A link and what is said on it.
struct Line {
    name: String,
    socket: PacketSocket,
    frames: Vec<Vec<u8>>,
    /// The host's, which may take it off.
    own: Option<IpAddr>,
}

impl Line {
    fn open(link: &Link, mac: Mac, network: &Network) -> Result<Self, Error> {
        let socket = PacketSocket::sender(link.ifindex)
            .doing(|| format!("opening a packet socket on link {}", link.name))?;
        let addresses = || network.addresses_of(&link.name).map(|a| a.local.address);
        let forwarding = format!("ipv6/conf/{}/forwarding", link.name);
        let router = sysctl::read(&forwarding)?.is_some_and(|value| value != "0");
        let mut frames = vec![rarp(mac)];
        frames.extend(addresses().flat_map(|a| announcements(mac, a, router)));
        let own4 = addresses().find_map(|a| if let IpAddr::V4(a) = a { Some(a) } else { None });
        let own6 = addresses().find_map(|a| match a {
            IpAddr::V6(a) if a.is_unicast_link_local() => Some(a),
            _ => None,
        });
        let own = (
            own4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            own6.unwrap_or(Ipv6Addr::UNSPECIFIED),
        );
        frames.extend(
            groups(link.ifindex)?
                .into_iter()
                .map(|group| membership(mac, group, own)),
        );
        Ok(Self {
            name: link.name.clone(),
            socket,
            frames,
            own: None,
        })
    }

    /// An address of the host: its device has told where it is already.
    fn of_host(own: &Own) -> Result<Self, Error> {
        let Own { device, address } = own;
        let found = link::find(&mut open()?, device)?;
        let Some((index, mac)) = found.and_then(|seen| Some((seen.index, seen.mac?))) else {
            return Err(Error::Refused(vec![format!(
                "there is no Ethernet device {device} to announce {address} on"
            )]));
        };
        let socket =
            PacketSocket::sender(index).doing(|| format!("opening a packet socket on {device}"))?;
        let router = sysctl::read(&format!("ipv6/conf/{device}/forwarding"))?;
        Ok(Self {
            name: device.clone(),
            socket,
            frames: announcements(mac, *address, router.is_some_and(|value| value != "0")),
            own: Some(*address),
        })
    }

    /// Frames sent: later than the first time, none of an address that the host does not have any more.
    fn send(&self, first: bool) -> Result<u64, Error> {
        match self.own {
            Some(address) if !first && !addr::own()?.contains(&address) => Ok(0),
            _ => self.send_frames(),
        }
    }

    fn send_frames(&self) -> Result<u64, Error> {
        for frame in &self.frames {
            self.socket
                .send(frame)
                .doing(|| format!("announcing on link {}", self.name))?;
        }
        Ok(self.frames.len() as u64)
    }
}
