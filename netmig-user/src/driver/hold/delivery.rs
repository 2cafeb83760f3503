//! Held packets given to the container, behind a gate that opens.
use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use netmig_common::Protocol;

use crate::{
    gate::{
        self,
        hold::{Counts, Injector, Order, Packet},
    },
    sock::{Room, Rooms},
};

/// A socket whose receive buffer stays full for so long gets its datagrams all the same: nobody reads it.
const STUCK: Duration = Duration::from_secs(2);
/// Between two looks at full buffers.
const PACE: Duration = Duration::from_millis(1);
/// How often a packet is tried where the container's backlog is full, each time after [`PACE`].
const TRIES: u32 = 100;

/// Puts packets in, in the order in which they are given. Datagrams wait until the socket that they are for has room ([`Delivery::go_on`]), and keep their
/// order among themselves; nothing else waits for them.
pub struct Delivery {
    injectors: HashMap<u16, Injector>,
    order: Order,
    rooms: Option<Rooms>,
    seen: Vec<Room>,
    looked: Option<Instant>,
    waiting: VecDeque<Waiting>,
    full_since: Option<Instant>,
    /// No process of the container runs yet.
    nobody: bool,
    stuck: HashSet<u16>,
    replayed: u64,
    dropped: Counts,
}

struct Waiting {
    link: u16,
    packet: Packet,
    ends: Option<(SocketAddr, SocketAddr)>,
    own: bool,
}

impl Delivery {
    /// To the links of the container whose namespace is at `netns`; `order` hears of packets that its gate has redirected.
    pub fn new(injectors: Vec<(u16, Injector)>, order: Order, netns: &Path) -> Self {
        let rooms = match Rooms::open(netns) {
            Ok(rooms) => Some(rooms),
            Err(e) => {
                tracing::warn!("datagrams are delivered without a pace: {e}");
                None
            }
        };
        Self {
            injectors: injectors.into_iter().collect(),
            order,
            rooms,
            seen: Vec::new(),
            looked: None,
            waiting: VecDeque::new(),
            full_since: None,
            nobody: false,
            stuck: HashSet::new(),
            replayed: 0,
            dropped: Counts::default(),
        }
    }

    /// Takes one packet; `own` if the gate that opens has redirected it. A datagram goes no further: there may be thousands of them, and who has asked
    /// something over TCP waits for the answer.
    pub fn give(&mut self, link: u16, packet: Packet, own: bool) {
        let parsed = packet.parse();
        if parsed.protocol != Protocol::Udp {
            return self.put_in(link, &packet, parsed.protocol, own);
        }
        self.waiting.push_back(Waiting {
            link,
            packet,
            ends: parsed.datagram,
            own,
        });
    }

    /// Whether a buffer that stays full says nothing, for no process of the container runs.
    pub fn nobody_reads(&mut self, nobody: bool) {
        self.nobody = nobody;
    }

    /// Delivers the datagrams that have room now. False if some must wait: to be called again after a millisecond.
    pub fn go_on(&mut self) -> bool {
        while let Some(first) = self.waiting.front() {
            let (ends, size) = (first.ends, first.packet.truesize());
            if !self.admits(ends, size) {
                return false;
            }
            if let Some(first) = self.waiting.pop_front() {
                self.put_in(first.link, &first.packet, Protocol::Udp, first.own);
            }
        }
        true
    }

    /// Puts in once more what may have been lost on its way to the socket; not counted.
    pub fn again(&self, link: u16, packet: &Packet) {
        let sent = self.injectors.get(&link).map(|to| send(to, packet));
        if let Some(Err(e)) = sent {
            tracing::warn!("{e}");
        }
    }

    /// Nothing waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Packets put in.
    pub fn replayed(&self) -> u64 {
        self.replayed
    }

    /// Packets that could not be put in.
    pub fn dropped(&self) -> Counts {
        self.dropped
    }

    fn admits(&mut self, ends: Option<(SocketAddr, SocketAddr)>, size: u64) -> bool {
        let (Some((from, to)), Some(rooms)) = (ends, &self.rooms) else {
            return true;
        };
        if self.stuck.contains(&to.port()) {
            return true;
        }
        if take(&mut self.seen, from, to, size) == Some(true) {
            self.full_since = None;
            return true;
        }
        if self.looked.is_some_and(|looked| looked.elapsed() < PACE) {
            return false;
        }
        match rooms.look() {
            Ok(seen) => (self.seen, self.looked) = (seen, Some(Instant::now())),
            Err(e) => {
                tracing::warn!("datagrams are delivered without a pace: {e}");
                self.rooms = None;
                return true;
            }
        }
        // For nobody: the kernel may answer.
        if take(&mut self.seen, from, to, size) != Some(false) {
            self.full_since = None;
            return true;
        }
        if self.nobody {
            self.full_since = None;
            return false;
        }
        if self.full_since.get_or_insert_with(Instant::now).elapsed() < STUCK {
            return false;
        }
        tracing::warn!(%to, "nobody reads this socket: its datagrams are not held back any longer");
        self.full_since = None;
        self.stuck.insert(to.port());
        true
    }

    fn put_in(&mut self, link: u16, packet: &Packet, protocol: Protocol, own: bool) {
        let sent = match self.injectors.get(&link) {
            Some(injector) => send(injector, packet),
            None => Ok(false),
        };
        match sent {
            Ok(true) => self.replayed += 1,
            Ok(false) => self.dropped.add(protocol),
            Err(e) => {
                if self.dropped.total() == 0 {
                    tracing::warn!("{e}");
                }
                self.dropped.add(protocol);
            }
        }
        if own {
            self.order.done(1);
        }
    }
}

/// Takes room for a datagram from the sockets that fit it best (several share a port by SO_REUSEPORT). None: it is for no socket.
fn take(rooms: &mut [Room], from: SocketAddr, to: SocketAddr, size: u64) -> Option<bool> {
    let best = rooms.iter().filter_map(|room| room.fits(from, to)).max()?;
    let mut fitting: Vec<_> = rooms
        .iter_mut()
        .filter(|room| room.fits(from, to) == Some(best))
        .collect();
    // An empty buffer takes a datagram of any size (`__udp_enqueue_schedule_skb`).
    let room = fitting.iter().all(|room| room.empty || room.free >= size);
    if room {
        for room in &mut fitting {
            room.free = room.free.saturating_sub(size);
            room.empty = false;
        }
    }
    Some(room)
}

/// True once it is in; false if the container's backlog stayed full.
fn send(injector: &Injector, packet: &Packet) -> Result<bool, gate::Error> {
    for _ in 0..TRIES {
        match injector.send(packet) {
            Ok(()) => return Ok(true),
            Err(e) if is_full(&e) => thread::sleep(PACE),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

fn is_full(error: &gate::Error) -> bool {
    let gate::Error::Device { source, .. } = error else {
        return false;
    };
    source
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error)
        .is_some_and(|errno| matches!(errno, libc::ENOBUFS | libc::EAGAIN))
}
