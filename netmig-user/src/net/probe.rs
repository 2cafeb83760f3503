//! Asking a segment who has the container's addresses.
//!
//! At the plan the container still lives at the source, and answers: that is what shows that both hosts are on one segment. Any other
//! MAC that answers is a clash.
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use netmig_core::image::v1::net::{Mac, Network};

use super::{
    Doing, Error, addr,
    frame::{claim, probe},
    link, open,
    packet::PacketSocket,
};

/// The question is repeated this often, spread over the limit.
const PROBES: u32 = 3;
/// When everything is answered, how long a second answer may still come.
const SETTLE: Duration = Duration::from_millis(50);

/// A station that has one of the container's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clash {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub mac: Mac,
    /// It is the container's own MAC: the container itself, at the source.
    pub own: bool,
}

/// Which addresses of a container were answered for by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Answered by the container's own MAC: it is on this segment.
    pub seen: Vec<IpAddr>,
    /// Not answered by it.
    pub unseen: Vec<IpAddr>,
}

impl Segment {
    /// Whether the container was seen at all. One address suffices: a container may ignore questions for another (arp_ignore).
    pub fn same(&self) -> bool {
        !self.seen.is_empty()
    }
}

/// Asks on the device `parent` of the caller's namespace who has the addresses of `link`; gives every answer within `limit`, the
/// container's own too. This host's own addresses are among them.
///
/// # Errors
/// If `parent` is not there, or down.
pub fn clashes(
    parent: &str,
    link: &str,
    network: &Network,
    limit: Duration,
) -> Result<Vec<Clash>, Error> {
    let mut nl = open()?;
    let device = link::find(&mut nl, parent)?.ok_or_else(|| {
        Error::Refused(vec![format!(
            "there is no {parent} on this host to ask for the container's addresses"
        )])
    })?;
    let mac = device.mac.ok_or_else(|| {
        Error::Refused(vec![format!(
            "{parent} is no Ethernet device: it cannot be asked on"
        )])
    })?;
    let container = network.link(link).and_then(|l| l.mac);
    let wanted: Vec<IpAddr> = network
        .addresses_of(link)
        .map(|a| a.local.address)
        .filter(|a| !a.is_loopback())
        .collect();
    let mut found = Vec::new();
    let host = link::dump(&mut nl)?;
    for own in addr::dump(&mut nl, &link::names(&host))?
        .0
        .iter()
        .filter(|a| wanted.contains(&a.local.address))
    {
        let mac = host
            .iter()
            .find(|h| h.name == own.link)
            .and_then(|h| h.mac)
            .unwrap_or(mac);
        found.push(Clash {
            address: own.local.address,
            mac,
            own: false,
        });
    }
    ask(device.index, mac, &wanted, limit, |address, mac| {
        let clash = Clash {
            address,
            mac,
            own: Some(mac) == container,
        };
        if !found.contains(&clash) {
            found.push(clash);
        }
    })
    .doing(|| format!("asking on {parent} for the addresses of link {link}"))?;
    found.sort_by_key(|c| (c.address, c.mac));
    Ok(found)
}

/// Asks on `parent` whether the container, which runs at the source, answers for the addresses of `link`.
///
/// # Errors
/// As [`clashes`].
pub fn same_segment(
    parent: &str,
    link: &str,
    network: &Network,
    limit: Duration,
) -> Result<Segment, Error> {
    Ok(segment(
        &clashes(parent, link, network, limit)?,
        link,
        network,
    ))
}

/// The same from answers that are there already.
pub fn segment(answers: &[Clash], link: &str, network: &Network) -> Segment {
    let own = |address: &IpAddr| answers.iter().any(|c| c.own && c.address == *address);
    let (seen, unseen) = network
        .addresses_of(link)
        .map(|a| a.local.address)
        .filter(|a| !a.is_loopback())
        .partition(own);
    Segment { seen, unseen }
}

/// Asks on the device of that index, whose MAC is `mac`, who has the addresses `wanted`, and tells each answer within `limit`.
pub(super) fn ask(
    ifindex: u32,
    mac: Mac,
    wanted: &[IpAddr],
    limit: Duration,
    mut each: impl FnMut(IpAddr, Mac),
) -> std::io::Result<()> {
    let socket = PacketSocket::open(ifindex)?;
    let begin = Instant::now();
    let mut end = begin + limit;
    let mut sent = 0;
    let mut open: Vec<IpAddr> = wanted.to_vec();
    loop {
        let now = Instant::now();
        if now >= end || wanted.is_empty() {
            return Ok(());
        }
        if sent < PROBES && now >= begin + limit * sent / PROBES {
            sent += 1;
            for address in wanted {
                socket.send(&probe(mac, *address))?;
            }
        }
        let next = if sent < PROBES {
            end.min(begin + limit * sent / PROBES)
        } else {
            end
        };
        // Rounded up to a whole millisecond, so that the wait does not spin.
        let wait = next.saturating_duration_since(now) + Duration::from_millis(1);
        let Some(claim) = socket.receive(wait)?.as_deref().and_then(claim) else {
            continue;
        };
        if claim.mac == mac || !wanted.contains(&claim.address) {
            continue; // this host's own question comes back, or it is about something else
        }
        each(claim.address, claim.mac);
        open.retain(|a| *a != claim.address);
        if open.is_empty() {
            end = end.min(Instant::now() + SETTLE);
        }
    }
}
