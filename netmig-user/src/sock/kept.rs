//! What the source keeps of a dump until the move is decided.
use std::{
    collections::{HashMap, HashSet},
    fmt, mem,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use netmig_core::{
    image::v1::sock::{Common, Tcp, Udp},
    socket::{Class, Engine, Kind, Row},
};

use super::{
    accept, adrift, common,
    diag::{Found, Name},
    error::{Error, On},
    holders::Held,
    inject::Injector,
    rows,
    tcp::Kernels,
    udp,
};
use crate::sys::{
    netns::within,
    sockopt::{self, number::TCP_REPAIR_OFF_NO_WP},
};

/// Duplicates of the connections that were dumped, in the order of the image.
#[derive(Debug, Default)]
pub struct Kept {
    sockets: Vec<Socket>,
    /// Connections that are being made.
    connecting: Vec<Socket>,
    /// Accepted away from a listener, with what they are.
    accepted: Vec<(OwnedFd, Tcp)>,
    /// Their listeners.
    listeners: Vec<OwnedFd>,
    /// Datagrams taken out of receive queues.
    taken: Vec<(OwnedFd, Udp)>,
    /// What no process holds and the image has.
    adrift: Vec<Found>,
    netns: PathBuf,
    seen: Option<Seen>,
}

/// What the dump found: rows are made of it when nobody waits any more.
#[derive(Debug)]
struct Seen {
    found: Vec<Found>,
    unlisted: Vec<Row>,
    held: Held,
    engine: Engine,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    kind: Kind,
    local: Name,
    peer: Name,
    reuseaddr: i32,
    reuseport: i32,
}

impl Kept {
    /// How many connections.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// No connection at all.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// The move is off: makes sure that no connection is in repair and that the options which repair touches are what they were. Goes on
    /// after an error and reports them all.
    pub fn undo(&self) -> Vec<Error> {
        self.sockets
            .iter()
            .chain(&self.connecting)
            .filter_map(|s| s.undo().err())
            .collect()
    }

    /// The move is off, `lo` passes, and nothing from outside has been delivered yet: connections that were accepted away from their listener
    /// are put back, and datagrams that were taken are delivered. What cannot be is said.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or the kernel cannot be asked.
    pub fn put_back(&mut self, netns: &Path) -> Result<Vec<String>, Error> {
        let accepted = mem::take(&mut self.accepted);
        let listeners = mem::take(&mut self.listeners);
        let taken = mem::take(&mut self.taken);
        if accepted.is_empty() && taken.is_empty() {
            return Ok(Vec::new());
        }
        within(netns, || {
            let mut lost = Vec::new();
            let mut injector = Injector::default();
            for (fd, udp) in taken {
                let (done, failed) = udp::deliver(&fd, &udp, &mut injector);
                lost.extend(failed.map(|e| e.to_string()));
                lost.extend(done.loss(&udp));
            }
            let here = common::kernel()?;
            let kernels = Kernels { source: here, here };
            let mut waiting = Vec::with_capacity(accepted.len());
            for (fd, tcp) in accepted {
                // In repair it goes without a word (tcp_close).
                sockopt::set_int(&fd, libc::SOL_TCP, libc::TCP_REPAIR, 1)
                    .on("entering TCP_REPAIR", &tcp)?;
                waiting.push(tcp);
            }
            lost.extend(accept::put(&waiting, &listeners, kernels)?);
            Ok(lost)
        })
    }

    /// The container lives at the target: its connections here end without a FIN, an RST or an orphan, so that nothing of them is left
    /// in a namespace that stays; what no process holds is ended first. They are put into repair, in which the last close is silent
    /// (tcp_close), so the tasks must never run again. Goes on after an error and reports them all.
    pub fn silence(self) -> Vec<Error> {
        let repair = |s: &Socket| {
            sockopt::set_int(&s.fd, libc::SOL_TCP, libc::TCP_REPAIR, 1).on("entering TCP_REPAIR", s)
        };
        let accepted = self.accepted.iter().filter_map(|(fd, tcp)| {
            sockopt::set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, 1)
                .on("entering TCP_REPAIR", tcp)
                .err()
        });
        // Where there is no namespace any more nothing is sent from it.
        if let Err(e) = accept::forget(&self.netns) {
            tracing::debug!("{}: {e}", self.netns.display());
        }
        let adrift = if self.adrift.is_empty() {
            Vec::new()
        } else {
            within(&self.netns, || Ok(adrift::destroy(&self.adrift))).unwrap_or_else(|e| vec![e])
        };
        self.sockets
            .iter()
            .chain(&self.connecting)
            .filter_map(|s| repair(s).err())
            .chain(accepted)
            .chain(adrift)
            .collect()
    }

    /// Every socket as it was at the freeze, with what has come of it by the rules. Options are those of `before`, a list made earlier, and what
    /// a program that hands itself over keeps to itself is as it was there. The second time it is empty.
    ///
    /// # Errors
    /// A row cannot be made.
    pub fn rows(&mut self, before: &[Row]) -> Result<Vec<Row>, Error> {
        let Some(seen) = self.seen.take() else {
            return Ok(Vec::new());
        };
        let handed_over = |inode| inode == 0 || seen.held.get(inode).is_some();
        let mut rows = Vec::with_capacity(seen.found.len() + seen.unlisted.len());
        for found in &seen.found {
            if seen.engine == Engine::Criu || handed_over(found.inode) {
                rows.push(rows::row(found, &seen.held, seen.engine)?);
            }
        }
        rows.extend(seen.unlisted);
        let options: HashMap<u64, &Row> = before
            .iter()
            .filter(|row| row.inode != 0)
            .map(|row| (row.inode, row))
            .collect();
        // What nobody of the container holds and was not there before is the engine's own.
        rows.retain(|row| row.class != Class::Foreign || options.contains_key(&row.inode));
        for row in &mut rows {
            if let Some(earlier) = options.get(&row.inode).filter(|e| e.kind == row.kind) {
                row.options.clone_from(&earlier.options);
                if seen.engine == Engine::Handoff {
                    // A helper holds it meanwhile.
                    row.owners.clone_from(&earlier.owners);
                }
            }
        }
        if seen.engine == Engine::Handoff {
            // What the program keeps to itself is as it was, where it is still there.
            let there: HashSet<u64> = seen.found.iter().map(|found| found.inode).collect();
            let kept = before.iter().filter(|row| {
                row.inode != 0
                    && !handed_over(row.inode)
                    && (there.contains(&row.inode) || !rows::concerns(row, seen.engine))
            });
            rows.extend(kept.cloned());
        }
        Ok(rows)
    }

    pub(super) fn saw(
        &mut self,
        found: Vec<Found>,
        unlisted: Vec<Row>,
        held: Held,
        engine: Engine,
    ) {
        self.seen = Some(Seen {
            found,
            unlisted,
            held,
            engine,
        });
    }

    pub(super) fn lived_in(&mut self, netns: &Path) {
        self.netns = netns.to_owned();
    }

    pub(super) fn adrift(&mut self, sockets: Vec<Found>) {
        self.adrift = sockets;
    }

    pub(super) fn accepted(&mut self, fd: OwnedFd, tcp: Tcp) {
        self.accepted.push((fd, tcp));
    }

    pub(super) fn listens(&mut self, fd: OwnedFd) {
        self.listeners.push(fd);
    }

    pub(super) fn took(&mut self, fd: OwnedFd, udp: Udp) {
        self.taken.push((fd, udp));
    }

    pub(super) fn keep(&mut self, fd: OwnedFd, common: &Common, found: &Found) {
        self.sockets.push(Socket::new(fd, common, found));
    }

    pub(super) fn keep_connecting(&mut self, fd: OwnedFd, common: &Common, found: &Found) {
        self.connecting.push(Socket::new(fd, common, found));
    }

    pub(super) fn fd(&self, slot: usize) -> &OwnedFd {
        &self.sockets[slot].fd
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.kind, self.local, self.peer)
    }
}

impl Socket {
    fn new(fd: OwnedFd, common: &Common, found: &Found) -> Self {
        Self {
            fd,
            kind: found.kind,
            local: found.local.clone(),
            peer: found.peer.clone(),
            reuseaddr: common.reuseaddr,
            reuseport: common.reuseport,
        }
    }

    fn undo(&self) -> Result<(), Error> {
        let (fd, name) = (&self.fd, self);
        if sockopt::int(fd, libc::SOL_TCP, libc::TCP_REPAIR).on("reading TCP_REPAIR", name)? != 0 {
            sockopt::set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
                .on("leaving TCP_REPAIR", name)?;
        }
        for (option, value, call) in [
            (
                libc::SO_REUSEADDR,
                self.reuseaddr,
                "setting SO_REUSEADDR back",
            ),
            (
                libc::SO_REUSEPORT,
                self.reuseport,
                "setting SO_REUSEPORT back",
            ),
        ] {
            if sockopt::int(fd, libc::SOL_SOCKET, option).on(call, name)? != value {
                sockopt::set_int(fd, libc::SOL_SOCKET, option, value).on(call, name)?;
            }
        }
        Ok(())
    }
}
