//! What a restore has rebuilt at the target, until it is open.
use std::{
    collections::HashMap,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use netmig_core::image::v1::{
    conntrack::Translated,
    sock::{Common, Datagram, Holder, Interface, Membership, Sockets, Tcp, TcpState},
};
use nix::sys::socket::{Shutdown, shutdown};

use super::{
    accept, common, connecting,
    error::{Error, On},
    groups,
    holders::{Place, make_room},
    inject::Injector,
    listen,
    option::{self, Refused, When},
    tcp::{self, Kernels},
    udp,
};
use crate::sys::{netns::within, pidfd::PidFd, sockopt};

/// Connections that stand at the target behind its closed gate.
#[derive(Debug)]
pub struct Rebuilt {
    netns: PathBuf,
    connections: Vec<Connection>,
    groups: Vec<Joins>,
    datagrams: Vec<(Port, Datagram)>,
    refused: Vec<Refused>,
    /// In accept queues.
    waiting: Vec<Tcp>,
    lost: Vec<String>,
    inner_open: AtomicBool,
}

#[derive(Debug)]
struct Connection {
    fd: OwnedFd,
    /// Without its queues.
    tcp: Tcp,
    /// Bytes that went in as sent.
    flight: Vec<u8>,
    /// Both ends are in the container.
    inner: bool,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
struct Port {
    number: u16,
    /// UDP-Lite.
    lite: bool,
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
}

type Placed<'a> = &'a (dyn Fn(&Holder) -> Option<Place> + Sync);

impl Rebuilt {
    /// Opens everything: the gate passes now, the tasks are still stopped. Queued datagrams are delivered; every connection learns its
    /// peer's window, so that its own data starts, and tells the peer the true one; where something was in flight the peer is asked
    /// for its ACK. No timer is waited for. Inner connections are opened too, if [`Self::open_inner`] was not called.
    ///
    /// # Errors
    /// The first step that failed; the others were done all the same.
    pub fn open(&self) -> Result<Opened, Error> {
        self.open_with(&|_| false, &[])
    }

    /// As [`Self::open`], but the peers of those that are to be told `later` are not told the window: that is to be done
    /// ([`super::tell_windows`]) when they have been given what was promised to their peers. The namespace's packet filter translates the
    /// connections that are `translated`.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(
        &self,
        later: &(dyn Fn(&Tcp) -> bool + Sync),
        translated: &[Translated],
    ) -> Result<Opened, Error> {
        let inner = self.open_inner()?;
        let mut opened = within(&self.netns, || {
            let mut injector = Injector::translating(translated);
            let mut failed = None;
            let mut datagrams = 0;
            let here = common::interfaces()?;
            for joins in &self.groups {
                for membership in &joins.groups {
                    let joined = groups::join(&joins.fd, membership, &joins.there, &here)
                        .on("joining a multicast group", &joins.name);
                    failed = failed.or(joined.err());
                }
            }
            for (port, datagram) in &self.datagrams {
                match injector.datagram(datagram, port.number, port.lite).on(
                    "delivering a datagram",
                    &format!("udp port {}", port.number),
                ) {
                    Ok(()) => datagrams += 1,
                    Err(e) => failed = failed.or(Some(e)),
                }
            }
            for tcp in self.waiting.iter().filter(|t| !t.state.fin_received()) {
                let told = injector.keepalive(tcp).on("making it tell its window", tcp);
                failed = failed.or(told.err());
            }
            let outer = self.connections.iter().filter(|c| !c.inner);
            let opened = start(outer, &mut injector, later);
            match failed {
                None => opened.map(|o| Opened { datagrams, ..o }),
                Some(e) => Err(e),
            }
        })?;
        opened.connections += inner.connections;
        opened.probed += inner.probed;
        Ok(opened)
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
            start(
                self.connections.iter().filter(|c| c.inner),
                &mut Injector::default(),
                &|_| false,
            )
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
        let mut rebuilt = Self::find(netns, image, place, State::Closed)?;
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
        // A kernel that cannot loses them, and the connections that can live do.
        rebuilt.lost = accept::put(&rebuilt.waiting, kernels).unwrap_or_else(|e| {
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
        Ok(rebuilt)
    }

    pub(super) fn adopt(netns: &Path, image: &Sockets, place: Placed<'_>) -> Result<Self, Error> {
        Self::find(netns, image, place, State::Connected)
    }

    fn build_all(&mut self, image: &Sockets, kernels: Kernels) -> Result<(), Error> {
        for (c, tcp) in self.connections.iter().zip(&image.tcp) {
            self.refused.extend(tcp::rebuild(
                &c.fd,
                tcp,
                [c.tcp.local, c.tcp.peer],
                kernels,
            )?);
        }
        // Only now: an end of an inner connection that leaves repair before the other end is there would be answered with RST.
        for (c, tcp) in self.connections.iter().zip(&image.tcp) {
            self.refused.extend(tcp::release(&c.fd, tcp)?);
        }
        Ok(())
    }

    fn others(
        &mut self,
        image: &Sockets,
        place: Placed<'_>,
        kernels: Kernels,
    ) -> Result<(), Error> {
        let mut found = Finder {
            place,
            processes: HashMap::new(),
        };
        let interfaces = common::interfaces()?;
        let here = |end| common::rescope(end, &image.interfaces, &interfaces);
        for connecting in &image.connecting {
            let fd = found.duplicate(&connecting.common, &connecting.to_string())?;
            let ends = [here(connecting.local), here(connecting.peer)];
            self.refused
                .extend(connecting::restore(&fd, connecting, ends, kernels)?);
        }
        for listener in &image.listeners {
            let fd = found.duplicate(&listener.common, &listen::name(listener.local))?;
            self.refused.extend(listen::restore(&fd, listener)?);
        }
        for udp in &image.udp {
            let fd = found.duplicate(&udp.common, &udp::name(udp))?;
            self.refused.extend(udp::restore(&fd, udp)?);
        }
        Ok(())
    }

    fn find(netns: &Path, image: &Sockets, place: Placed<'_>, state: State) -> Result<Self, Error> {
        make_room(image.tcp.len())?;
        let interfaces = common::interfaces()?;
        let here = |end| common::rescope(end, &image.interfaces, &interfaces);
        let mut found = Finder {
            place,
            processes: HashMap::new(),
        };
        let mut connections = Vec::with_capacity(image.tcp.len());
        for tcp in &image.tcp {
            let fd = found.duplicate(&tcp.common, &tcp.to_string())?;
            state.expect(&fd, tcp)?;
            let flight = tcp::split(tcp).0.to_vec();
            let head = Tcp {
                local: here(tcp.local),
                peer: here(tcp.peer),
                ..tcp.head()
            };
            connections.push(Connection {
                fd,
                tcp: head,
                flight,
                inner: false,
            });
        }
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
        let datagrams = image
            .udp
            .iter()
            .flat_map(|u| {
                let port = Port {
                    number: u.local.port,
                    lite: u.lite,
                };
                u.queue.iter().map(move |d| (port, moved(d)))
            })
            .collect();
        let mut groups = Vec::new();
        for udp in image.udp.iter().filter(|udp| !udp.groups.is_empty()) {
            let name = udp::name(udp);
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
            datagrams,
            refused: Vec::new(),
            waiting: waiting.collect(),
            lost: Vec::new(),
            inner_open: AtomicBool::new(false),
        })
    }
}

/// Own data first, then the peer, then the question for lost ACKs: the order that was measured to be the quickest.
fn start<'a>(
    connections: impl Iterator<Item = &'a Connection>,
    injector: &mut Injector,
    later: &dyn Fn(&Tcp) -> bool,
) -> Result<Opened, Error> {
    let mut opened = Opened::default();
    let mut failed = None;
    for c in connections {
        opened.connections += 1;
        match c.start(injector, later(&c.tcp)) {
            Ok(probed) => opened.probed += usize::from(probed),
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    failed.map_or(Ok(opened), Err)
}

impl Connection {
    fn start(&self, injector: &mut Injector, later: bool) -> Result<bool, Error> {
        let tcp = &self.tcp;
        let refused = option::apply(&self.fd, &tcp.common.settings, When::Open, tcp);
        // Which FIN came first decides between LAST_ACK and CLOSING.
        if matches!(tcp.state, TcpState::CloseWait | TcpState::LastAck) {
            injector.fin(tcp).on("delivering the peer's FIN", tcp)?;
        }
        if tcp.state.fin_written() {
            shutdown(self.fd.as_raw_fd(), Shutdown::Write).on("shutting it down", tcp)?;
        }
        if tcp.peer_window > 0 || tcp.state == TcpState::FinWait2 {
            injector
                .window(tcp)
                .on("telling it the peer's window", tcp)?;
        }
        match tcp.state {
            TcpState::FinWait2 => injector
                .fin_acknowledged(tcp)
                .on("delivering the ACK of its FIN", tcp)?,
            TcpState::Closing => injector.fin(tcp).on("delivering the peer's FIN", tcp)?,
            _ => {}
        }
        if tcp.shut_read && !tcp.state.fin_received() {
            shutdown(self.fd.as_raw_fd(), Shutdown::Read)
                .on("shutting it down for reading", tcp)?;
        }
        // An inner peer knows already. One that has sent its FIN sends no more; and that connection may be over by now, and would
        // answer with RST.
        if !self.inner && !later && !tcp.state.fin_received() {
            injector
                .keepalive(tcp)
                .on("making it tell its window", tcp)?;
        }
        // A window far below what the peer has offered before is one that a drain has shrunk, or one that may have opened meanwhile.
        let probe =
            !self.inner && (tcp.in_flight() > 0 || tcp.peer_window < tcp.window.max_window / 2);
        if probe {
            let stamp = tcp::stamp(&self.fd, tcp)?;
            injector
                .probe(tcp, stamp)
                .on("asking its peer for an ACK", tcp)?;
            injector
                .resend(tcp, stamp, &self.flight)
                .on("sending what was in flight once more", tcp)?;
        }
        match refused.into_iter().next() {
            Some(Refused { source, .. }) => Err(source).on("setting a timer option", tcp),
            None => Ok(probe),
        }
    }
}

/// What a descriptor must hold.
#[derive(Clone, Copy)]
enum State {
    /// A TCP socket in CLOSE, as the engine leaves it.
    Closed,
    /// The connection itself.
    Connected,
}

impl State {
    fn expect(self, fd: &OwnedFd, tcp: &Tcp) -> Result<(), Error> {
        const CLOSE: u32 = 7;
        let mismatch = |what: String| Error::Mismatch {
            socket: tcp.to_string(),
            holder: tcp.common.holders[0],
            what,
        };
        let int = |name| sockopt::int(fd, libc::SOL_SOCKET, name);
        let family = if tcp.common.v6 {
            libc::AF_INET6
        } else {
            libc::AF_INET
        };
        match (int(libc::SO_DOMAIN), int(libc::SO_PROTOCOL)) {
            (Ok(domain), Ok(libc::IPPROTO_TCP)) if domain == family => {}
            (Ok(domain), Ok(protocol)) => {
                return Err(mismatch(format!(
                    "a socket of family {domain}, protocol {protocol}"
                )));
            }
            (Err(e), _) | (_, Err(e)) => return Err(mismatch(format!("no socket: {e}"))),
        }
        let state: u32 = sockopt::read::<u32>(fd, libc::SOL_TCP, libc::TCP_INFO)
            .on("reading TCP_INFO", tcp)?
            & 0xff;
        match self {
            Self::Closed if state != CLOSE => Err(mismatch(format!(
                "a TCP socket in state {state}, not closed"
            ))),
            Self::Connected if state == CLOSE => Err(mismatch("a closed TCP socket".to_owned())),
            _ => Ok(()),
        }
    }
}

struct Finder<'a> {
    place: Placed<'a>,
    processes: HashMap<i32, PidFd>,
}

impl Finder<'_> {
    fn duplicate(&mut self, common: &Common, socket: &str) -> Result<OwnedFd, Error> {
        for holder in &common.holders {
            let Some(Place { pid, fd }) = (self.place)(holder) else {
                continue;
            };
            let process = match self.processes.entry(pid) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    new.insert(PidFd::open(pid).on("opening its process", &socket)?)
                }
            };
            if let Ok(fd) = process.fd(fd) {
                return Ok(fd);
            }
        }
        Err(Error::Missing {
            socket: socket.to_owned(),
            holder: common.holders[0],
        })
    }
}
