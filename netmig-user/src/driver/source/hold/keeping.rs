//! The keeper at work at the source: what it owns is stored, then said.
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netmig_common::FlowKey;
use tracing::warn;

use super::super::super::hold::{Promised, Store, known};
use crate::{
    gate::{
        Answerer, Standing,
        hold::{Order, Packet, Queue},
        keeper::{Keeper, Took},
    },
    sock::Live,
};

/// What a stamp may be behind the container's: TCP_TIMESTAMP leaves out bit 0, as does what is reckoned from it, and all cut off.
const FINEST: Duration = Duration::from_millis(4);

/// Answers wait for more packets to come, but not for more than this many.
const BATCH: usize = 64;

/// Owned packets, and the peers that wait for an answer.
pub(super) struct Keeping {
    keeper: Keeper,
    live: Vec<Live>,
    answerers: HashMap<u16, Answerer>,
    store: Store,
    order: Order,
    /// Where each connection's packets come in.
    links: HashMap<FlowKey, u16>,
    /// Owned and not stored yet.
    fresh: Vec<(u16, Packet)>,
    /// Owned and stored.
    owned: Vec<(u16, Packet)>,
    /// To be answered.
    waiting: Vec<FlowKey>,
    /// What the programs say by themselves, for peers that were answered from here.
    said: HashMap<FlowKey, Standing>,
    /// When the stamps were read.
    read: Instant,
    /// The container's clock as the dump will have it at least: it stands from then on.
    still: Arc<OnceLock<Instant>>,
    /// Nothing is answered or owned any more: granted, given up, or nothing can be stored.
    over: bool,
    /// Packets held up to the last one that is owned.
    pub(super) needed: u64,
    /// Answers sent.
    pub(super) answered: u64,
}

impl Keeping {
    /// Of these connections, which have just been read; what is owned goes to a file at `path`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(super) fn begin(
        live: Vec<Live>,
        answerers: HashMap<u16, Answerer>,
        order: &Order,
        still: &Arc<OnceLock<Instant>>,
        path: &Path,
    ) -> Result<Self> {
        let store = Store::create(path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self {
            keeper: Keeper::new(live.iter().map(known)),
            live,
            answerers,
            store,
            order: order.clone(),
            links: HashMap::new(),
            fresh: Vec::new(),
            owned: Vec::new(),
            waiting: Vec::new(),
            said: HashMap::new(),
            read: Instant::now(),
            still: still.clone(),
            over: false,
            needed: 0,
            answered: 0,
        })
    }

    /// The sockets once more, when so many packets are held; `exact`: nothing is on its way to them any more.
    pub(super) fn again(&mut self, live: &[Live], exact: bool, held: u64) {
        if self.over {
            return;
        }
        for (key, packets) in self.keeper.again(live.iter().map(known), exact) {
            let Some(link) = self.links.get(&key).copied() else {
                continue;
            };
            self.fresh
                .extend(packets.into_iter().map(|packet| (link, packet)));
            self.needed = held;
            self.wait(key);
        }
        self.flush();
        for key in self.said.keys().copied().collect::<Vec<_>>() {
            self.tell_programs(&key);
        }
    }

    /// What lies in the hold already.
    pub(super) fn take_all(&mut self, queue: &Queue) {
        for place in 0..queue.len() {
            if let Some((link, packet)) = queue.get(place) {
                self.take(*link, packet, place as u64 + 1);
            }
        }
        self.flush();
    }

    /// A packet that was held as the `place`-th, counted from 1.
    pub(super) fn take(&mut self, link: u16, packet: &Packet, place: u64) {
        if self.over {
            return;
        }
        let key = match self.keeper.take(packet) {
            Took::Nothing => return,
            Took::Ahead(key) => {
                self.links.insert(key, link);
                return;
            }
            Took::Answer(key) => key,
            Took::Own(key) => {
                self.fresh.push((link, packet.clone()));
                let filled = self.keeper.filled().into_iter();
                self.fresh.extend(filled.map(|packet| (link, packet)));
                self.needed = place;
                key
            }
        };
        self.links.insert(key, link);
        self.wait(key);
        if self.fresh.len() >= BATCH {
            self.flush();
        }
    }

    fn wait(&mut self, key: FlowKey) {
        if !self.waiting.contains(&key) {
            self.waiting.push(key);
        }
    }

    /// Somebody waits for an answer.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Stores what is owned, and then says so.
    pub(super) fn flush(&mut self) {
        if self.over {
            return;
        }
        if !self.fresh.is_empty() {
            if let Err(e) = self.store.append(&self.fresh) {
                warn!("peers are not answered any more, for what they send cannot be stored: {e}");
                self.over = true;
                return;
            }
            self.order.own(self.fresh.len() as u64);
            self.owned.append(&mut self.fresh);
        }
        self.stamp();
        for key in std::mem::take(&mut self.waiting) {
            // First: what is acknowledged must be kept also if this agent dies with the next instruction.
            self.tell_programs(&key);
            if let Some(frame) = self.keeper.answer(&key) {
                self.say(&key, &frame);
            }
        }
    }

    /// Lets peers send one segment, if it `fits` into the hold, and more if that is `late`.
    pub(super) fn trickle(&mut self, fits: bool, late: bool) {
        if self.over {
            return;
        }
        self.flush();
        for (key, frame) in self.keeper.trickle(fits, late) {
            self.say(&key, &frame);
        }
    }

    fn tell_programs(&mut self, key: &FlowKey) {
        let link = self.links.get(key);
        let Some(answerer) = link.and_then(|link| self.answerers.get_mut(link)) else {
            return;
        };
        let told = match self.keeper.standing(key, self.read - FINEST) {
            Some(standing) if self.said.get(key) == Some(&standing) => return,
            Some(standing) => {
                self.said.insert(*key, standing);
                answerer.keeps(key, &standing)
            }
            None => {
                self.said.remove(key);
                answerer.forgets(key)
            }
        };
        if let Err(e) = told {
            // They answer nothing then, as before.
            warn!("{e}");
        }
    }

    fn stamp(&mut self) {
        let now = self.still.get().copied().unwrap_or_else(Instant::now);
        self.keeper
            .passed(now.saturating_duration_since(self.read) + FINEST);
    }

    fn say(&mut self, key: &FlowKey, frame: &[u8]) {
        let Some(answerer) = self
            .links
            .get(key)
            .and_then(|link| self.answerers.get(link))
        else {
            return;
        };
        match answerer.send(frame) {
            Ok(()) => self.answered += 1,
            // It sends again, as if the answer were lost on the wire.
            Err(e) => warn!("{e}"),
        }
    }

    /// Nothing is promised from now on.
    pub(super) fn seal(&mut self) {
        self.over = true;
    }

    /// Packets that are owned and stored.
    pub(super) fn owned(&self) -> u64 {
        self.owned.len() as u64
    }

    /// What is to be delivered here.
    pub(super) fn promised(self, netns: &Path, pids: Vec<i32>) -> Promised {
        Promised::by(self.keeper, &self.live, self.owned, netns, pids)
    }
}
