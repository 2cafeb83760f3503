//! What was promised to peers, delivered: a packet that is put in may still be dropped on its way to the socket, so the socket is asked.
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use netmig_common::FlowKey;
use netmig_core::image::v1::sock::Endpoint;

use super::Delivery;
use crate::{
    gate::{
        hold::Packet,
        keeper::{Keeper, Known, Promise, Took},
    },
    sock::{self, Live, Need, Widened},
};

/// Waits between looks at the sockets, in ms; before each but the first ones the packets of who is behind are put in once more.
const LOOKS: [u64; 12] = [0, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 640];
/// Looks that packets on their way are given.
const PATIENCE: usize = 4;

/// Connections whose peers were promised something, and the packets that keep it.
pub struct Promised {
    netns: PathBuf,
    pids: Vec<i32>,
    keeper: Keeper,
    live: HashMap<FlowKey, Live>,
    /// Connections of whose peers something was acknowledged.
    keys: HashSet<FlowKey>,
    packets: Vec<(u16, Packet)>,
    widened: Widened,
}

/// A connection as the gate knows it.
#[must_use]
pub fn key(local: Endpoint, peer: Endpoint) -> FlowKey {
    let octets = |ip: IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => FlowKey::mapped(ip.octets()),
        IpAddr::V6(ip) => ip.octets(),
    };
    FlowKey {
        container: octets(local.ip),
        peer: octets(peer.ip),
        container_port: local.port,
        peer_port: peer.port,
    }
}

/// A connection as the keeper wants it.
#[must_use]
pub fn known(live: &Live) -> (FlowKey, Known) {
    let known = Known {
        snd_una: live.snd_una,
        snd_nxt: live.snd_nxt,
        rcv_nxt: live.rcv_nxt,
        edge: live.edge(),
        max_window: live.max_window,
        stamp: live.stamp,
        rcv_wscale: live.rcv_wscale,
        rcv_mss: live.rcv_mss,
        received: live.received,
    };
    (key(live.local, live.peer), known)
}

impl Promised {
    /// What a keeper that owned `packets` of these connections has promised.
    pub fn by(
        keeper: Keeper,
        live: &[Live],
        packets: Vec<(u16, Packet)>,
        netns: &Path,
        pids: Vec<i32>,
    ) -> Self {
        Self {
            netns: netns.to_owned(),
            pids,
            keys: keeper.promises().iter().map(|p| p.key).collect(),
            keeper,
            live: live
                .iter()
                .map(|live| (key(live.local, live.peer), *live))
                .collect(),
            packets,
            widened: Widened::default(),
        }
    }

    /// What a keeper at the source may have promised of these held packets: as much as one would that looks at them now.
    pub fn of(
        live: &[Live],
        packets: impl IntoIterator<Item = (u16, Packet)>,
        netns: &Path,
        pids: Vec<i32>,
    ) -> Self {
        let mut keeper = Keeper::new(live.iter().map(known));
        let mut owned = Vec::new();
        for (link, packet) in packets {
            if matches!(keeper.take(&packet), Took::Own(_)) {
                owned.push((link, packet));
                owned.extend(keeper.filled().into_iter().map(|packet| (link, packet)));
            }
        }
        Self::by(keeper, live, owned, netns, pids)
    }

    /// Whether anything was promised to the peer of this connection.
    #[must_use]
    pub fn has(&self, local: Endpoint, peer: Endpoint) -> bool {
        self.keys.contains(&key(local, peer))
    }

    /// End of what its peer has acknowledged, as far as is known.
    #[must_use]
    pub fn acknowledged(&self, local: Endpoint, peer: Endpoint) -> Option<u32> {
        self.keeper.acknowledged(&key(local, peer))
    }

    /// Makes room in the receive buffers and windows, before anything is delivered. What failed, in words.
    pub fn make_room(&mut self) -> Vec<String> {
        let promises = self.keeper.promises();
        if promises.is_empty() {
            return Vec::new();
        }
        // Every packet may be for any of them; a buffer that is too wide for a moment does no harm.
        let bytes = self.packets.iter().map(|(_, p)| p.truesize()).sum();
        let needs: Vec<_> = promises
            .iter()
            .filter_map(|p| {
                let live = self.live.get(&p.key)?;
                Some(Need {
                    local: live.local,
                    peer: live.peer,
                    bytes,
                    edge: p.next,
                })
            })
            .collect();
        let (widened, failed) = sock::widen(&self.netns, &self.pids, &needs);
        self.widened = widened;
        failed.iter().map(ToString::to_string).collect()
    }

    /// After the packets were given to `delivery`: looks until every socket has what was promised, and gives it once more where one has not.
    /// Then their buffers are as they were, and every peer that was told anything is told the true window. What failed, in words.
    pub fn keep(mut self, delivery: &mut Delivery) -> Vec<String> {
        let mut failed = Vec::new();
        let mut behind = self.keeper.promises();
        for (look, wait) in LOOKS.into_iter().enumerate() {
            if behind.is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(wait));
            if look >= PATIENCE {
                self.once_more(&behind, delivery);
            }
            match self.behind(&behind) {
                Ok(left) => behind = left,
                Err(e) => {
                    failed.push(format!("whether peers' data has arrived is not known: {e}"));
                    break;
                }
            }
        }
        for promise in &behind {
            let ends = self.live.get(&promise.key);
            failed.push(format!(
                "{} could not be given all that its peer was told it has: {} bytes",
                ends.map_or_else(String::new, |l| format!("tcp {} -> {}", l.local, l.peer)),
                promise.next.wrapping_sub(promise.known.rcv_nxt)
            ));
        }
        failed.extend(self.widened.end().iter().map(ToString::to_string));
        let told: Vec<_> = self
            .keeper
            .answered()
            .iter()
            .map(|p| p.key)
            .chain(self.keys.iter().copied())
            .collect::<HashSet<_>>()
            .iter()
            .filter_map(|key| self.live.get(key).copied())
            .collect();
        if let Err(e) = sock::tell_windows(&self.netns, &told) {
            failed.push(e.to_string());
        }
        failed
    }

    /// Those of `promises` whose sockets have received less.
    fn behind(&self, promises: &[Promise]) -> Result<Vec<Promise>, sock::Error> {
        let received: HashMap<_, _> = sock::received(&self.netns)?
            .into_iter()
            .map(|(local, peer, bytes)| (key(local, peer), bytes))
            .collect();
        let is_behind = |p: &&Promise| {
            // One that is not established any more has received its FIN, which came behind, or is closed.
            received.get(&p.key).is_some_and(|now| {
                now.wrapping_sub(p.known.received) < u64::from(p.next.wrapping_sub(p.known.rcv_nxt))
            })
        };
        Ok(promises.iter().filter(is_behind).copied().collect())
    }

    fn once_more(&mut self, behind: &[Promise], delivery: &mut Delivery) {
        let mut reader = Keeper::new(behind.iter().map(|p| (p.key, p.known)));
        for (link, packet) in &self.packets {
            if matches!(reader.take(packet), Took::Own(_)) {
                delivery.again(*link, packet);
            }
        }
    }
}
