//! What a restore has rebuilt at the target, until it is open.
use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use netmig_core::image::v1::{
    conntrack::Translated,
    sock::{Datagram, HalfOpen, Interface, Membership, Sockets, Tcp, Udp},
};

use super::{
    accept::{self, HalfOpens},
    adrift::{self, Orphan},
    common, connecting, cores,
    error::{Error, On},
    finder::{Finder, Placed, State},
    groups,
    holders::make_room,
    inject::Injector,
    listen,
    option::Refused,
    over,
    starting::{Coming, Starting, start},
    tcp::{self, Kernels},
    udp::{self, Delivered},
    warm,
};
use crate::sys::netns::within;

/// Connections that stand at the target behind its closed gate.
#[derive(Debug)]
pub struct Rebuilt {
    netns: PathBuf,
    connections: Vec<Connection>,
    groups: Vec<Joins>,
    /// UDP sockets, for what waited in their queues.
    queues: Vec<(OwnedFd, Udp)>,
    refused: Vec<Refused>,
    /// In accept queues.
    waiting: Vec<Tcp>,
    /// Until the opening, as what follows.
    orphans: Mutex<Vec<Orphan>>,
    half_open: Mutex<Option<Arc<HalfOpens>>>,
    lost: Vec<String>,
    inner_open: AtomicBool,
    spent: Spent,
}

/// How long the connections took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Until all descriptors were found.
    pub found: Duration,
    /// From then on until all stood in repair, with what had left in their queues.
    pub rebuilt: Duration,
    /// From then on until all had left repair, with everything.
    pub released: Duration,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    /// Without its queues.
    pub(super) tcp: Tcp,
    /// Bytes that went in as sent.
    pub(super) flight: Vec<u8>,
    /// Both ends are in the container.
    pub(super) inner: bool,
}

/// A socket that joins multicast groups at the opening.
#[derive(Debug)]
struct Joins {
    fd: OwnedFd,
    name: String,
    groups: Vec<Membership>,
    /// Interfaces of the source.
    there: Vec<Interface>,
}

/// What an opening did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Connections that were started.
    pub connections: usize,
    /// Peers that were asked for their ACK, because something was in flight or their window was not known.
    pub probed: usize,
    /// Datagrams delivered out of receive queues.
    pub datagrams: usize,
    /// Those of them that found no room.
    pub refused: u32,
}

impl Rebuilt {
    /// Opens everything: the gate passes now, the tasks are still stopped. Queued datagrams are delivered; every connection learns its
    /// peer's window, so that its own data starts, and tells the peer the true one; where something was in flight the peer is asked
    /// for its ACK. No timer is waited for. Inner connections are opened too, if [`Self::open_inner`] was not called.
    ///
    /// # Errors
    /// The first step that failed; the others were done all the same.
    pub fn open(&self) -> Result<Opened, Error> {
        self.open_with(&|_| Coming::default(), &[])
    }

    /// As [`Self::open`], where more of a peer is `coming`, and is to be delivered now. If anything of it was promised the peer is not told the
    /// window: that is to be done ([`super::tell_windows`]) when it is in. The namespace's packet filter translates the
    /// connections that are `translated`.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(
        &self,
        coming: &(dyn Fn(&Tcp) -> Coming + Sync),
        translated: &[Translated],
    ) -> Result<Opened, Error> {
        let inner = self.open_inner()?;
        let mut opened = within(&self.netns, || {
            let mut injector = Injector::translating(translated);
            let mut failed = None;
            let here = common::interfaces()?;
            for joins in &self.groups {
                for membership in &joins.groups {
                    let joined = groups::join(&joins.fd, membership, &joins.there, &here)
                        .on("joining a multicast group", &joins.name);
                    failed = failed.or(joined.err());
                }
            }
            // There may be thousands: connections do not wait for them. A thread begins in the namespace of the one that made it.
            let queues = || self.deliver_queues(translated);
            let (queues, opened) = thread::scope(|scope| {
                let queues = scope.spawn(queues);
                let opened = self.open_outer(&mut injector, translated, coming);
                (queues.join(), opened)
            });
            let (delivered, undelivered) =
                queues.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            failed = failed.or(undelivered);
            let opened = Opened {
                datagrams: delivered.given,
                refused: delivered.refused,
                ..opened?
            };
            failed.map_or(Ok(opened), Err)
        })?;
        opened.connections += inner.connections;
        opened.probed += inner.probed;
        Ok(opened)
    }

    /// What waited in UDP sockets, and the first that failed.
    fn deliver_queues(&self, translated: &[Translated]) -> (Delivered, Option<Error>) {
        let mut injector = Injector::translating(translated);
        let (mut all, mut failed) = (Delivered::default(), None);
        for (fd, udp) in &self.queues {
            let (done, error) = udp::deliver(fd, udp, &mut injector);
            all.given += done.given;
            all.refused += done.refused;
            failed = failed.or(error);
        }
        (all, failed)
    }

    /// Opens everything that has a peer outside and is TCP's.
    fn open_outer(
        &self,
        injector: &mut Injector,
        translated: &[Translated],
        coming: &(dyn Fn(&Tcp) -> Coming + Sync),
    ) -> Result<Opened, Error> {
        let mut failed = None;
        for tcp in self.waiting.iter().filter(|t| !t.state.fin_received()) {
            let told = injector.keepalive(tcp).on("making it tell its window", tcp);
            failed = failed.or(told.err());
        }
        let orphans =
            std::mem::take(&mut *self.orphans.lock().unwrap_or_else(PoisonError::into_inner));
        for orphan in orphans {
            let ends = Starting {
                fd: orphan.fd(),
                tcp: &orphan.tcp,
                flight: tcp::split(&orphan.tcp).0,
                inner: false,
            };
            failed = failed.or(ends.start(injector, Coming::default()).err());
            orphan.close();
        }
        let outer: Vec<_> = self.connections.iter().filter(|c| !c.inner).collect();
        let opened = start(&outer, translated, coming);
        let half_open = self
            .half_open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(half_open) = half_open {
            failed = failed.or(half_open.open(injector).err());
        }
        accept::unprepare();
        failed.map_or(opened, Err)
    }

    /// Opens the connections with both ends in the container: their traffic goes over `lo`, whose gate passes now.
    ///
    /// # Errors
    /// The first step that failed; the others were done all the same.
    pub fn open_inner(&self) -> Result<Opened, Error> {
        if self.inner_open.swap(true, Ordering::AcqRel) {
            return Ok(Opened::default());
        }
        within(&self.netns, || {
            let inner: Vec<_> = self.connections.iter().filter(|c| c.inner).collect();
            start(&inner, &[], &|_| Coming::default())
        })
    }

    /// Options that this kernel refused.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Connections that could not be rebuilt, and why.
    pub fn lost(&self) -> &[String] {
        &self.lost
    }

    /// How long it took; nothing if they were adopted.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// How many connections.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// No connection at all.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    pub(super) fn build(netns: &Path, image: &Sockets, place: Placed<'_>) -> Result<Self, Error> {
        let kernels = Kernels {
            source: image.kernel,
            here: common::kernel()?,
        };
        let began = Instant::now();
        let mut rebuilt = Self::find(netns, image, place, State::Closed)?;
        rebuilt.spent.found = began.elapsed();
        let built = rebuilt.build_all(image, kernels);
        if let Err(e) = built {
            for c in &rebuilt.connections {
                if let Err(also) = tcp::discard(&c.fd, &c.tcp) {
                    tracing::warn!("{also}");
                }
            }
            return Err(e);
        }
        rebuilt.others(image, place, kernels)?;
        let unheld = rebuilt.unheld(image, kernels)?;
        rebuilt.lost.extend(unheld);
        // A kernel that cannot loses them, and the connections that can live do.
        let mut found = Finder::new(place);
        let ports: HashSet<_> = rebuilt.waiting.iter().map(|tcp| tcp.local.port).collect();
        let listeners = image.listeners.iter();
        let listeners = listeners
            .filter(|listener| ports.contains(&listener.local.port))
            .map(|l| found.duplicate(&l.common, &listen::name(l.local)))
            .collect::<Result<Vec<_>, Error>>()?;
        let in_queues = accept::put(&rebuilt.waiting, &listeners, kernels).unwrap_or_else(|e| {
            let why = std::error::Error::source(&e).map(ToString::to_string);
            let named = rebuilt.waiting.iter().map(ToString::to_string);
            let which: Vec<String> = named.collect();
            vec![format!(
                "{} in accept queues are lost ({}): {}",
                which.len(),
                which.join(", "),
                why.unwrap_or_default()
            )]
        });
        rebuilt.lost.extend(in_queues);
        rebuilt.expect(image, kernels)?;
        Ok(rebuilt)
    }

    pub(super) fn adopt(netns: &Path, image: &Sockets, place: Placed<'_>) -> Result<Self, Error> {
        let mut rebuilt = Self::find(netns, image, place, State::Connected)?;
        rebuilt.expect(
            image,
            Kernels {
                source: image.kernel,
                here: common::kernel()?,
            },
        )?;
        Ok(rebuilt)
    }

    /// Handshakes that are under way.
    fn expect(&mut self, image: &Sockets, kernels: Kernels) -> Result<(), Error> {
        let interfaces = common::interfaces()?;
        let here = |end| common::rescope(end, &image.interfaces, &interfaces);
        let half_open = image.half_open.iter().map(|half| HalfOpen {
            local: here(half.local),
            peer: here(half.peer),
            ..half.clone()
        });
        let (expected, lost) = HalfOpens::expect(&self.netns, half_open.collect(), kernels)?;
        self.half_open = Mutex::new(expected);
        self.lost.extend(lost);
        Ok(())
    }

    fn build_all(&mut self, image: &Sockets, kernels: Kernels) -> Result<(), Error> {
        let all: Vec<_> = self.connections.iter().zip(&image.tcp).collect();
        let began = Instant::now();
        self.refused.extend(each(&all, |c, tcp| {
            tcp::rebuild(&c.fd, tcp, [c.tcp.local, c.tcp.peer], kernels)
        })?);
        let connections: Vec<_> = all.iter().map(|(c, tcp)| (&c.fd, *tcp)).collect();
        match warm::warm(&connections) {
            Ok(0) => {}
            Ok(cold) => tracing::warn!("{cold} congestion windows begin anew"),
            Err(e) => tracing::warn!("congestion windows begin anew: {e}"),
        }
        let rebuilt = Instant::now();
        // Only now: an end of an inner connection that leaves repair before the other end is there would be answered with RST.
        self.refused
            .extend(each(&all, |c, tcp| tcp::release(&c.fd, tcp))?);
        self.spent.rebuilt = rebuilt - began;
        self.spent.released = rebuilt.elapsed();
        Ok(())
    }

    fn others(
        &mut self,
        image: &Sockets,
        place: Placed<'_>,
        kernels: Kernels,
    ) -> Result<(), Error> {
        let mut found = Finder::new(place);
        let interfaces = common::interfaces()?;
        let here = |end| common::rescope(end, &image.interfaces, &interfaces);
        for connecting in &image.connecting {
            let fd = found.duplicate(&connecting.common, connecting)?;
            let ends = [here(connecting.local), here(connecting.peer)];
            self.refused
                .extend(connecting::restore(&fd, connecting, ends, kernels)?);
        }
        for over in &image.over {
            let fd = found.duplicate(&over.common, over)?;
            match over::restore(&fd, over, here(over.local), kernels) {
                Ok(refused) => self.refused.extend(refused),
                // Nobody waits for it: the connections that live do not depend on it.
                Err(e) => self.lost.push(format!("{over}: {}: {e}", over.loses())),
            }
        }
        for listener in &image.listeners {
            let fd = found.duplicate(&listener.common, &listen::name(listener.local))?;
            self.refused.extend(listen::restore(&fd, listener)?);
        }
        for udp in &image.udp {
            let fd = found.duplicate(&udp.common, udp)?;
            self.refused.extend(udp::restore(&fd, udp)?);
        }
        Ok(())
    }

    /// What no process held. Those that cannot be rebuilt are said.
    fn unheld(&mut self, image: &Sockets, kernels: Kernels) -> Result<Vec<String>, Error> {
        let interfaces = common::interfaces()?;
        let here = |end| common::rescope(end, &image.interfaces, &interfaces);
        let moved = |tcps: &[Tcp]| -> Vec<Tcp> {
            let at_home = |tcp: &Tcp| Tcp {
                local: here(tcp.local),
                peer: here(tcp.peer),
                ..tcp.clone()
            };
            tcps.iter().map(at_home).collect()
        };
        let (orphans, mut lost) = adrift::orphans(moved(&image.orphans), kernels);
        self.orphans = Mutex::new(orphans);
        lost.extend(adrift::end(moved(&image.time_wait), kernels)?);
        Ok(lost)
    }

    fn find(netns: &Path, image: &Sockets, place: Placed<'_>, state: State) -> Result<Self, Error> {
        make_room(image.tcp.len())?;
        let interfaces = common::interfaces()?;
        let here = |end| common::rescope(end, &image.interfaces, &interfaces);
        let connection = |found: &mut Finder<'_>, tcp: &Tcp| {
            let fd = found.duplicate(&tcp.common, tcp)?;
            state.expect(&fd, tcp)?;
            let head = Tcp {
                local: here(tcp.local),
                peer: here(tcp.peer),
                ..tcp.head()
            };
            Ok(Connection {
                fd,
                tcp: head,
                flight: tcp::split(tcp).0.to_vec(),
                inner: false,
            })
        };
        let mut connections = Vec::with_capacity(image.tcp.len());
        for part in cores::parts(&image.tcp, |part| {
            let mut found = Finder::new(place);
            part.iter()
                .map(|tcp| connection(&mut found, tcp))
                .collect::<Result<Vec<_>, Error>>()
        }) {
            connections.extend(part?);
        }
        let mut found = Finder::new(place);
        let waiting = image.waiting.iter().map(|tcp| Tcp {
            local: here(tcp.local),
            peer: here(tcp.peer),
            ..tcp.clone()
        });
        for &(a, b) in &image.pairs {
            connections[a as usize].inner = true;
            connections[b as usize].inner = true;
        }
        let moved = |d: &Datagram| Datagram {
            from: here(d.from),
            ..d.clone()
        };
        let mut queues = Vec::new();
        let mut lost = Vec::new();
        for udp in &image.udp {
            if !udp.queue.is_empty() {
                let fd = found.duplicate(&udp.common, udp)?;
                let queue = udp.queue.iter().map(moved).collect();
                queues.push((
                    fd,
                    Udp {
                        queue,
                        ..udp.clone()
                    },
                ));
            }
            if udp.lost > 0 {
                lost.push(format!("{udp}: {} datagrams could not be read", udp.lost));
            }
        }
        let mut groups = Vec::new();
        for udp in image.udp.iter().filter(|udp| !udp.groups.is_empty()) {
            let name = udp.to_string();
            groups.push(Joins {
                fd: found.duplicate(&udp.common, &name)?,
                name,
                groups: udp.groups.clone(),
                there: image.interfaces.clone(),
            });
        }
        Ok(Self {
            netns: netns.to_owned(),
            connections,
            groups,
            queues,
            refused: Vec::new(),
            waiting: waiting.collect(),
            orphans: Mutex::default(),
            half_open: Mutex::default(),
            lost,
            inner_open: AtomicBool::new(false),
            spent: Spent::default(),
        })
    }
}

/// Does something with every connection, on all processors; the first error if there are any.
fn each(
    all: &[(&Connection, &Tcp)],
    one: impl Fn(&Connection, &Tcp) -> Result<Vec<Refused>, Error> + Sync,
) -> Result<Vec<Refused>, Error> {
    let mut refused = Vec::new();
    for part in cores::parts(all, |part| {
        let mut refused = Vec::new();
        for (c, tcp) in part {
            refused.extend(one(c, tcp)?);
        }
        Ok::<_, Error>(refused)
    }) {
        refused.extend(part?);
    }
    Ok(refused)
}
