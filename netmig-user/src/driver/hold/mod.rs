//! The hold of a move: what comes to the closed gate is kept, shipped, and delivered where the container is when the gate opens.
//!
//! The source keeps every held packet until the move has ended: if it takes the container back, it delivers them itself. The target
//! delivers the source's packets first and what came to itself behind them. Held packets are no promise: what is lost here is lost as on
//! a wire, and counted. But those that the keeper owns are one: they lie in a file on either host ([`Store`]), and their delivery is
//! looked after ([`Promised`]).
mod delivery;
mod promised;
mod store;

pub use delivery::Delivery;
pub use promised::{Promised, key, known};
pub use store::Store;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use netmig_common::{FlowKey, Side};
use netmig_core::{
    id::{Epoch, MoveId},
    image::v1::net::Network,
};

use crate::{
    gate::{
        self, Gate, Orientation, Point,
        hold::{Injector, Order, Packet, Reader},
    },
    net::Link,
    sock::{self, Look},
};

/// An opening that nobody has renewed for so long ends: the gate passes whatever is still held.
pub const OPENING: Duration = Duration::from_secs(3);
/// Between two renewals ([`Renewed`]).
const RENEWING: Duration = Duration::from_millis(300);

/// Longest wait for a packet before a reader looks whether it is still wanted.
pub const LOOK: Duration = Duration::from_millis(50);

/// An opening in which somebody delivers: on a host that has much to do a container may take longer to run than [`OPENING`], and what came next would
/// overtake what is held for it.
pub struct Renewed {
    epoch: Epoch,
    last: Instant,
}

impl Renewed {
    /// Of a gate that has just been set to open.
    pub fn begin(epoch: Epoch) -> Self {
        Self {
            epoch,
            last: Instant::now(),
        }
    }

    /// To be called often while packets are delivered.
    pub fn go_on(&mut self, order: &Order) {
        if self.last.elapsed() < RENEWING {
            return;
        }
        self.last = Instant::now();
        if let Err(e) = order.go_on(self.epoch, OPENING) {
            tracing::warn!("the gate is not kept opening, and what is held may be overtaken: {e}");
        }
    }
}

/// Where packets of one link are held.
pub struct Tap {
    /// Place of the link in the move's network.
    pub link: u16,
    /// The gate's point.
    pub point: Point,
    /// Its packets.
    pub reader: Reader,
}

/// The links whose packets can be held, with the gate's points: those with an end on the host, where packets can be put in.
pub fn places(links: &[Link], network: &Network, points: &[Point]) -> Vec<(u16, Point)> {
    let place = |link: &Link| {
        let place = network.links.iter().position(|l| l.name == link.name)?;
        let crate::net::LinkKind::Veth { host_ifindex, .. } = &link.kind else {
            return None;
        };
        let point = points.iter().find(|point| {
            point.orientation == Orientation::HostSide && point.ifindex == *host_ifindex
        })?;
        Some((u16::try_from(place).ok()?, point.clone()))
    };
    links.iter().filter_map(place).collect()
}

/// Makes a TAP for each place. It holds nothing before the gate is told.
///
/// # Errors
/// One cannot be made.
pub fn taps(mv: MoveId, side: Side, places: Vec<(u16, Point)>) -> Result<Vec<Tap>, gate::Error> {
    places
        .into_iter()
        .map(|(link, point)| {
            let reader = Reader::create(point.netns.as_deref(), &name(mv, side, link))?;
            Ok(Tap {
                link,
                point,
                reader,
            })
        })
        .collect()
}

/// A name of 15 characters at most (`IFNAMSIZ`) that no other move's hold has.
fn name(mv: MoveId, side: Side, link: u16) -> String {
    let side = match side {
        Side::Source => 's',
        Side::Target => 't',
    };
    let id = mv.to_string();
    format!("nm{side}{}{link}", id.get(..8).unwrap_or(&id))
}

/// Where held packets are put in.
///
/// # Errors
/// A point has no host's end, or the kernel refuses.
pub fn injectors<'a>(
    places: impl IntoIterator<Item = (u16, &'a Point)>,
) -> Result<Vec<(u16, Injector)>, gate::Error> {
    places
        .into_iter()
        .map(|(link, point)| Ok((link, Injector::open(point)?)))
        .collect()
}

/// Delivers `packets` that an agent which is gone has promised, past a gate that passes, and tells the true window to the peers of the connections
/// that it has `told` anything. What failed, in words.
///
/// # Errors
/// Nothing could be delivered.
pub fn deliver_stored(
    gate: &Gate,
    places: &[(u16, Point)],
    packets: Vec<(u16, Packet)>,
    told: &[FlowKey],
    netns: &Path,
    pids: Vec<i32>,
) -> anyhow::Result<Vec<String>> {
    let injectors = injectors(places.iter().map(|(link, point)| (*link, point)))?;
    let mut delivery = Delivery::new(injectors, gate.order(), netns);
    let live = sock::live(netns, &pids, Look::Again)?;
    let mut promised = Promised::of(&live, packets.iter().cloned(), netns, pids);
    let mut left = promised.make_room();
    for (link, packet) in packets {
        delivery.give(link, packet, false);
    }
    let others: Vec<_> = live
        .iter()
        .filter(|live| told.contains(&key(live.local, live.peer)))
        .filter(|live| !promised.has(live.local, live.peer))
        .copied()
        .collect();
    left.extend(promised.keep(&mut delivery));
    left.extend(
        sock::tell_windows(netns, &others)
            .err()
            .map(|e| e.to_string()),
    );
    Ok(left)
}

/// A hold whose reader died with its agent is none: the gate drops and counts again.
pub fn forget(gate: &Gate) {
    for point in gate.points() {
        if let Err(e) = gate.end_hold(point) {
            tracing::warn!("{}: {e}", point.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_links_and_sides_apart() {
        let mv = MoveId(*b"0123456789abcdef");
        let names = [
            name(mv, Side::Source, 0),
            name(mv, Side::Source, 9999),
            name(mv, Side::Target, 0),
        ];
        assert!(names.iter().all(|name| name.len() < libc::IFNAMSIZ));
        assert!(names[0] != names[1] && names[0] != names[2]);
    }
}
