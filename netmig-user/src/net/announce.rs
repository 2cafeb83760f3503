//! Telling the segment where the container is now: its neighbours by ARP and neighbour advertisement, bridges by any frame, switches that
//! listen to membership reports by those.
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use netmig_core::image::v1::net::{Mac, Network};

use super::{
    Doing, Error, Link, LinkKind,
    frame::{announcements, membership, rarp},
    membership::groups,
    packet::PacketSocket,
    sysctl,
};
use crate::sys::netns::within;

/// Gap after the first round; each is twice the one before.
const FIRST_GAP: Duration = Duration::from_millis(20);
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

/// Announces every address of `network` on its link, in rounds with growing gaps until `heard` says that packets arrive, or `limit`.
///
/// The frames leave the container's own end of each link, in the namespace `netns`, and pass its gate, which must be open: so the bridge
/// learns the MAC on the right port, and everything behind it the same way.
///
/// # Errors
/// If the namespace cannot be entered. A link that is gone or down is in [`Announced::failed`]: by now the container lives here.
pub fn announce(
    netns: &Path,
    links: &[Link],
    network: &Network,
    limit: Duration,
    heard: &mut dyn FnMut() -> bool,
) -> Result<Announced, Error> {
    let mut done = Announced::default();
    let opened = within(netns, || {
        let ours = links
            .iter()
            .filter(|l| matches!(l.kind, LinkKind::Veth { .. } | LinkKind::Macvlan { .. }));
        let up = ours.filter(|l| network.link(&l.name).is_some_and(|l| l.is_up()));
        Ok::<_, Error>(
            up.filter_map(|l| Some(Line::open(l, l.mac?, network)))
                .collect::<Vec<_>>(),
        )
    })?;
    let mut lines = Vec::new();
    for line in opened {
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

fn rounds(
    lines: &mut Vec<Line>,
    limit: Duration,
    heard: &mut dyn FnMut() -> bool,
    done: &mut Announced,
) {
    let until = Instant::now() + limit;
    let mut gap = FIRST_GAP;
    while !lines.is_empty() {
        lines.retain(|line| match line.send() {
            Ok(frames) => {
                done.frames += frames;
                true
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
            if heard() {
                done.heard = true;
                return;
            }
            if Instant::now() >= until {
                return;
            }
            thread::sleep(LOOK);
        }
    }
}

/// A link and what is said on it.
struct Line {
    name: String,
    socket: PacketSocket,
    frames: Vec<Vec<u8>>,
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
        })
    }

    fn send(&self) -> Result<u64, Error> {
        for frame in &self.frames {
            self.socket
                .send(frame)
                .doing(|| format!("announcing on link {}", self.name))?;
        }
        Ok(self.frames.len() as u64)
    }
}
