//! What peers were promised at the source, at the target.
use std::{collections::HashMap, path::Path, sync::Arc};

use anyhow::{Context, Result};
use netmig_core::{
    image::v1::{
        net::Network,
        sock::{Sockets, Tcp},
    },
    proto::Question,
};
use tracing::info;

use super::{
    super::hold::{self, Delivery, Promised, Store, key},
    Made,
    hold::{Hold, forget_owned, owned},
    steps::{self, Steps},
};
use crate::{
    gate::{Gate, hold::Packet},
    net,
    sock::{self, Coming, Live},
};

/// What peers were promised before the opening, in this life of the agent or before.
#[derive(Default)]
pub(super) struct Before {
    promised: Option<Promised>,
    /// To be delivered by whoever opens; none where the hold delivers them.
    stored: Vec<(u16, Packet)>,
}

impl Before {
    /// What will be delivered of the peer of this connection.
    pub(super) fn coming(&self, tcp: &Tcp) -> Coming {
        let promised = self.promised.as_ref();
        promised.map_or_else(Coming::default, |promised| Coming {
            promised: promised.has(tcp.local, tcp.peer),
            acked: promised.acknowledged(tcp.local, tcp.peer),
        })
    }
}

impl Steps {
    /// To be called behind the closed gate, when the connections stand.
    pub(super) fn before(
        &self,
        hold: Option<&Arc<Hold>>,
        made: &Made,
        sockets: &Option<Sockets>,
        question: &Option<Question>,
    ) -> Result<Before> {
        let (Some(init_pid), Some(sockets), Some(question)) = (made.init_pid, sockets, question)
        else {
            return Ok(Before::default());
        };
        let (packets, stored) = match hold {
            Some(hold) => (hold.shipped(), Vec::new()),
            None => {
                let path = owned(self.id);
                let stored =
                    Store::read(&path).with_context(|| format!("reading {}", path.display()))?;
                (stored.clone(), stored)
            }
        };
        if packets.is_empty() {
            return Ok(Before::default());
        }
        let netns = steps::netns(&question.container, init_pid)?;
        let mut dumped: HashMap<_, _> = sockets
            .tcp
            .iter()
            .filter_map(Live::of)
            .map(|live| (key(live.local, live.peer), live))
            .collect();
        let mut here = Vec::new();
        for (local, peer, received) in sock::received(&netns)? {
            if let Some(dumped) = dumped.remove(&key(local, peer)) {
                here.push(Live {
                    local,
                    peer,
                    received,
                    ..dumped
                });
            }
        }
        let promised = Promised::of(
            &here,
            packets,
            &netns,
            steps::holders(&question.container, init_pid)?,
        );
        Ok(Before {
            promised: Some(promised),
            stored,
        })
    }

    /// Delivers what an earlier agent had taken from the source, and says what failed. What this one has taken is left to its hold.
    pub(super) fn deliver_stored(
        &self,
        gate: &Gate,
        links: &[net::Link],
        network: &Network,
        before: Before,
        netns: &Path,
    ) -> Result<(Option<Promised>, Vec<String>)> {
        let Before {
            promised: Some(mut promised),
            stored,
        } = before
        else {
            return Ok((None, Vec::new()));
        };
        if stored.is_empty() {
            return Ok((Some(promised), Vec::new()));
        }
        info!(mv = %self.id, packets = stored.len(), "delivering what an earlier agent has taken from the source");
        let points: Vec<_> = gate.points().cloned().collect();
        let places = hold::places(links, network, &points);
        let injectors = hold::injectors(places.iter().map(|(link, point)| (*link, point)))?;
        let mut delivery = Delivery::new(injectors, gate.order(), netns);
        let mut left = promised.make_room();
        for (link, packet) in stored {
            delivery.give(link, packet, false);
        }
        left.extend(promised.keep(&mut delivery));
        left.extend(forget_owned(self.id));
        Ok((None, left))
    }
}
