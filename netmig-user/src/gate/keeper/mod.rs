//! The keeper: while the gate is closed it answers the peers in the container's name, so that none of them sends again or gives up.
//!
//! It says what the container's stack would say if its receive buffer had just become full: an ACK with window 0. It **owns** in-order
//! payload: acknowledges it. That is a promise, so the caller stores what [`Keeper::take`] calls owned before an answer leaves, and
//! delivers it whatever comes. Owned is only what the container's stack will take as well when the packet is given to it later: whole,
//! right checksum, in order, with an ACK that it believes, and not beyond the right edge that the container has announced, but for
//! [`BEYOND`]: a peer whose window was full at the closing sends nothing by itself, and would lose its own window to the silence (slow start
//! after idle), so it is asked for a segment now and then, and the socket's edge is moved before they are delivered. So the packets
//! themselves are what is delivered ([`Keeper::promises`] says how far each socket must get by them).
//!
//! Never answered: pure ACKs, RST, signed segments, connections that are not known. FINs are never owned.
mod answer;
mod segment;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use netmig_common::FlowKey;
use netmig_core::image::v1::sock::later;

use self::{answer::Ack, segment::Segment};
use super::{Standing, hold::Packet};

/// A connection as its socket has it once the gate is closed. Only established ones that are not signed and have no FIN either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// First byte that the peer has not acknowledged.
    pub snd_una: u32,
    /// First byte not sent: the sequence number of an ACK.
    pub snd_nxt: u32,
    /// Next byte expected.
    pub rcv_nxt: u32,
    /// Right edge of the window that the container has announced.
    pub edge: u32,
    /// Largest window that the peer has ever announced: ACKs older than that are not believed (RFC 5961, section 5.2).
    pub max_window: u32,
    /// The stamp that the container would have sent when it was read; none without timestamps.
    pub stamp: Option<u32>,
    /// Shift of the windows that the container announces.
    pub rcv_wscale: u8,
    /// Bytes of payload that a segment of the peer may have.
    pub rcv_mss: u32,
    /// Bytes received in all (`tcpi_bytes_received`) when `rcv_nxt` was read.
    pub received: u64,
}

/// Bytes beyond the announced edge that are owned at most, for each connection.
pub const BEYOND: u32 = 1 << 20;

/// Bytes that are not more than the first buffer of a peer's send queue: where it does not fit into the window as a whole, a Linux peer with
/// TCP_USER_TIMEOUT goes on counting from its first probe, whatever it sends meanwhile (`tcp_ack_probe`, `icsk_probes_tstamp`).
pub const WIDE: u32 = 65_534;

impl Known {
    /// End of what may be owned.
    fn limit(&self) -> u32 {
        self.edge.wrapping_add(BEYOND)
    }
}

/// What is to be done about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Took {
    /// Nothing.
    Nothing,
    /// Nothing yet: it is remembered, for what comes before it is missing.
    Ahead(FlowKey),
    /// It wants an answer.
    Answer(FlowKey),
    /// It brought new payload: it is to be stored, with what [`Keeper::filled`] gives, then answered.
    Own(FlowKey),
}

/// A promise to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The connection.
    pub key: FlowKey,
    /// As it was when nothing was promised.
    pub known: Known,
    /// Its next byte, after all that was promised.
    pub next: u32,
    /// Packets that were owned.
    pub packets: u64,
}

/// Held segments of one connection behind a hole that are remembered at most.
const AHEAD: usize = 256;

/// Owned payload of one connection, and what the peer knows.
#[derive(Clone, Debug)]
struct Flow {
    known: Known,
    /// End of what is owned.
    next: u32,
    /// End of what the peer has acknowledged.
    acked: u32,
    owned: u64,
    /// Segments behind a hole, in the order in which they came: sequence number, its end, packet.
    ahead: Vec<(u32, u32, Packet)>,
    /// The peer's newest stamp of what is owned.
    newest: Option<u32>,
    /// The stamp to echo.
    echo: u32,
    /// The last frame, which says how to reach the peer, and where its IP header begins.
    frame: Option<(Packet, usize)>,
    answered: bool,
    /// It was allowed something.
    woken: bool,
    /// Reset by the peer, or signed after all.
    over: bool,
}

/// The connections of one container in its blackout.
#[derive(Debug, Default)]
pub struct Keeper {
    flows: HashMap<FlowKey, Flow>,
    filled: Vec<Packet>,
    /// Since the stamps were read.
    age: Duration,
    /// Data out of order is answered too: `rcv_nxt` was read after everything that had passed the gate was in.
    exact: bool,
}

impl Keeper {
    /// Of these connections.
    #[must_use]
    pub fn new(known: impl IntoIterator<Item = (FlowKey, Known)>) -> Self {
        let flows = known.into_iter().map(|(key, known)| {
            let flow = Flow {
                known,
                next: known.rcv_nxt,
                acked: known.snd_una,
                owned: 0,
                ahead: Vec::new(),
                newest: None,
                echo: 0,
                frame: None,
                answered: false,
                woken: false,
                over: false,
            };
            (key, flow)
        });
        Self {
            flows: flows.collect(),
            filled: Vec::new(),
            age: Duration::ZERO,
            exact: false,
        }
    }

    /// The sockets once more, later: what had been on its way to them when the first ones were read is in now. What cannot be any more is
    /// given up; `exact`: nothing is on its way any more. What is owned now, though it came earlier, is to be stored, then answered.
    pub fn again(
        &mut self,
        known: impl IntoIterator<Item = (FlowKey, Known)>,
        exact: bool,
    ) -> Vec<(FlowKey, Vec<Packet>)> {
        let mut owned = Vec::new();
        for (key, now) in known {
            let Some(flow) = self.flows.get_mut(&key) else {
                continue;
            };
            if before(now.rcv_nxt, flow.known.rcv_nxt) || before(now.edge, flow.known.edge) {
                flow.over = true;
            }
            // What the socket has by itself counts as delivered.
            if before(flow.next, now.rcv_nxt) && !flow.over {
                flow.next = now.rcv_nxt;
                let mut filled = Vec::new();
                flow.fill(&mut filled);
                if !filled.is_empty() {
                    owned.push((key, filled));
                }
            }
        }
        self.exact |= exact;
        owned
    }

    /// Looks at a held packet, in the order in which they came.
    pub fn take(&mut self, packet: &Packet) -> Took {
        let Some(segment) = Segment::read(packet) else {
            return Took::Nothing;
        };
        let exact = self.exact;
        match self.flows.get_mut(&segment.key) {
            Some(flow) if !flow.over => flow.take(&segment, packet, exact, &mut self.filled),
            _ => Took::Nothing,
        }
    }

    /// Packets taken earlier, behind a hole that the last one which is owned has filled: they are owned with it, and came in where it did.
    pub fn filled(&mut self) -> Vec<Packet> {
        std::mem::take(&mut self.filled)
    }

    /// So much time has passed since the stamps were read. Answers go with the container's clock: one that is stamped before an ACK which the
    /// stack still got out would be dropped (PAWS). It must stand before the sockets are dumped, for at the target their clocks go on from
    /// there.
    pub fn passed(&mut self, since: Duration) {
        self.age = since;
    }

    /// The answer to whatever came last of a connection, as a frame from the container.
    pub fn answer(&mut self, key: &FlowKey) -> Option<Vec<u8>> {
        self.flows.get_mut(key)?.say(key, 0, self.age)
    }

    /// Answers for connections of which something is owned, or whose window is full. They allow the peer one segment, as long as that `fits` into
    /// the hold and may be owned: it stays warm. Then they say once more that there is no room, and their pace alone keeps a peer that wants
    /// progress: a timer that is put off before it expires does not see that there was none. Where it may have expired, because the window was
    /// full before or these answers are `late`, they allow as much as a stack takes for progress ([`WIDE`]).
    pub fn trickle(&mut self, fits: bool, late: bool) -> Vec<(FlowKey, Vec<u8>)> {
        let age = self.age;
        let waiting = |flow: &Flow| flow.owned > 0 || flow.is_full();
        let sending = self.flows.iter_mut().filter(|(_, flow)| waiting(flow));
        let said = sending.filter_map(|(key, flow)| {
            if flow.over {
                return None;
            }
            let wide = late || !flow.woken && flow.is_full();
            let window = flow.allowed(fits, wide);
            let said = flow.say(key, window, age)?;
            flow.woken = true;
            Some((*key, said))
        });
        said.collect()
    }

    /// What the programs may say to this peer by themselves, if the stamps were read at `read`; none if nobody speaks for the connection.
    #[must_use]
    pub fn standing(&self, key: &FlowKey, read: Instant) -> Option<Standing> {
        let flow = self.flows.get(key).filter(|flow| !flow.over)?;
        Some(Standing {
            seq: flow.known.snd_nxt,
            ack: flow.next,
            stamp: flow.known.stamp.map(|stamp| (stamp, read)),
            owned: flow.owned > 0,
        })
    }

    /// End of what the peer has acknowledged, by the packets that were looked at; none if nobody speaks for the connection.
    #[must_use]
    pub fn acknowledged(&self, key: &FlowKey) -> Option<u32> {
        let flow = self.flows.get(key).filter(|flow| !flow.over)?;
        Some(flow.acked)
    }

    /// What was promised.
    #[must_use]
    pub fn promises(&self) -> Vec<Promise> {
        let owned = self.flows.iter().filter(|(_, flow)| flow.owned > 0);
        owned.map(|(key, flow)| flow.promise(key)).collect()
    }

    /// Connections whose peers have been told anything: their windows are to be said anew.
    #[must_use]
    pub fn answered(&self) -> Vec<Promise> {
        let answered = self.flows.iter().filter(|(_, flow)| flow.answered);
        answered.map(|(key, flow)| flow.promise(key)).collect()
    }
}

impl Flow {
    fn promise(&self, key: &FlowKey) -> Promise {
        Promise {
            key: *key,
            known: self.known,
            next: self.next,
            packets: self.owned,
        }
    }

    fn take(
        &mut self,
        segment: &Segment,
        packet: &Packet,
        exact: bool,
        filled: &mut Vec<Packet>,
    ) -> Took {
        if segment.signed {
            self.over = true;
        }
        if segment.is_rst() {
            // Any other sequence number resets nothing (RFC 5961, section 3.2).
            self.over |= segment.seq == self.next;
        }
        if self.over || segment.is_syn() || segment.is_rst() || !self.believes(segment) {
            return Took::Nothing;
        }
        if before(self.acked, segment.ack) {
            self.acked = segment.ack;
        }
        let took = self.judge(segment, exact);
        let ahead = before(self.next, segment.seq) && self.fits(segment);
        if took != Took::Nothing || ahead {
            self.frame = Some((packet.clone(), segment.ip));
            self.echo = segment.tsval.unwrap_or(0);
        }
        if matches!(took, Took::Own(_)) {
            self.next = segment.seq.wrapping_add(segment.payload);
            self.newest = segment.tsval;
            self.owned += 1;
            self.fill(filled);
        } else if ahead && self.ahead.len() < AHEAD {
            let end = segment.seq.wrapping_add(segment.payload);
            self.ahead.push((segment.seq, end, packet.clone()));
            if took == Took::Nothing {
                return Took::Ahead(segment.key);
            }
        }
        took
    }

    /// What comes behind the end of what is owned, as far as there is no hole.
    fn fill(&mut self, filled: &mut Vec<Packet>) {
        let reaches = |next: u32| {
            move |(seq, end, _): &(u32, u32, Packet)| !before(next, *seq) && before(next, *end)
        };
        while let Some(place) = self.ahead.iter().position(reaches(self.next)) {
            let (_, end, packet) = self.ahead.remove(place);
            self.next = end;
            self.owned += 1;
            filled.push(packet);
        }
        let next = self.next;
        self.ahead.retain(|(_, end, _)| before(next, *end));
    }

    /// A window that may be owned: of a segment or more.
    fn allowed(&self, fits: bool, wide: bool) -> u16 {
        let of = |bytes: u32| {
            let window = u16::try_from((bytes >> self.known.rcv_wscale) + 1).ok()?;
            let size = u32::from(window) << self.known.rcv_wscale;
            let edge = self.next.wrapping_add(size);
            (fits && !before(self.known.limit(), edge)).then_some(window)
        };
        let segment = || of(self.known.rcv_mss);
        let window = if wide {
            of(WIDE).or_else(segment)
        } else {
            segment()
        };
        window.unwrap_or(0)
    }

    /// Whether the peer may send less than a segment.
    fn is_full(&self) -> bool {
        before(self.known.edge, self.next.wrapping_add(self.known.rcv_mss))
    }

    /// Payload that the container's stack will take where it is in order.
    fn fits(&self, segment: &Segment) -> bool {
        let end = segment.seq.wrapping_add(segment.payload);
        segment.payload > 0 && !before(self.known.limit(), end) && !segment.is_urgent()
    }

    /// Whether the container's stack will look at what it carries: PAWS (RFC 7323, section 5), and its ACK (tcp_ack).
    fn believes(&self, segment: &Segment) -> bool {
        let stamped = match (self.known.stamp, segment.tsval) {
            (Some(_), Some(tsval)) => self.newest.is_none_or(|newest| !before(tsval, newest)),
            (None, _) => true,
            (Some(_), None) => false,
        };
        let oldest = self.known.snd_una.wrapping_sub(self.known.max_window);
        segment.has_ack()
            && stamped
            && !before(self.known.snd_nxt, segment.ack)
            && !before(segment.ack, oldest)
    }

    fn judge(&self, segment: &Segment, exact: bool) -> Took {
        let end = segment.seq.wrapping_add(segment.payload);
        if segment.payload == 0 {
            // A keepalive or a probe, both of which begin before what is expected. What is no probe is a pure ACK.
            let probe = before(segment.seq, self.next) && !segment.is_fin();
            return if probe {
                Took::Answer(segment.key)
            } else {
                Took::Nothing
            };
        }
        let otherwise = if exact {
            Took::Answer(segment.key)
        } else {
            Took::Nothing
        };
        if !before(self.next, end) {
            // It has come before: the peer has not seen the answer.
            return Took::Answer(segment.key);
        }
        if before(self.next, segment.seq) {
            return otherwise;
        }
        if before(self.known.limit(), end) {
            // A probe with a byte, or one that knows no edge.
            return Took::Answer(segment.key);
        }
        if segment.is_urgent() {
            return Took::Nothing;
        }
        Took::Own(segment.key)
    }

    fn say(&mut self, key: &FlowKey, window: u16, age: Duration) -> Option<Vec<u8>> {
        let (packet, ip) = self.frame.as_ref()?;
        let ack = Ack {
            key: *key,
            seq: self.known.snd_nxt,
            ack: self.next,
            window,
            stamps: self.known.stamp.map(|own| (later(own, age), self.echo)),
        };
        self.answered = true;
        Some(ack.frame(packet.frame(), *ip))
    }
}

/// Whether `a` comes before `b` in sequence space.
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
