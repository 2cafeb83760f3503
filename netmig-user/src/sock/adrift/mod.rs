//! TCP sockets that no process holds any more: closed while the FIN is under way (orphans), and TIME_WAIT.
//!
//! Without a descriptor there is no TCP_REPAIR: at the source a program reads them out of the kernel's memory (see the object `adrift`), and
//! nothing of them changes. At the target each is rebuilt as any connection, in a socket of netmig's own. An orphan is shut down at the
//! opening, as the others are, and closed: so the kernel makes the same orphan of it. TIME_WAIT is made behind the closed gate, by the two FINs and
//! the ACK that had made it.
//!
//! A connection in a SYN queue is no socket that could be rebuilt: at the target its ACK makes it (see `accept::half_open`).
//!
//! Bytes that an orphan still has to send are read in the same way (see the object `queues`), page by page.
mod image;
mod kernel;
mod queue;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use netmig_core::{
    image::v1::sock::{Endpoint, Left, Sockets, Tcp},
    socket::{Class, State},
};
use nix::sys::socket::{Shutdown, shutdown};

pub(super) use self::image::Clock;
use self::image::{Carried, carried, ends};
use super::{
    accept, cores,
    diag::{self, Found},
    error::{Error, On},
    inject::Injector,
    make, nexthop,
    tcp::{self, Kernels},
};
use crate::sys::sockopt;

type Ends = (Endpoint, Endpoint);

/// Most sockets in TIME_WAIT that a move makes anew: each takes a part of the blackout. Those that would have stayed longest count.
const TIME_WAIT_LIMIT: usize = 1024;
/// How long the kernel may take to put what was delivered where it belongs.
const PATIENCE: Duration = Duration::from_millis(500);
const GLANCE: Duration = Duration::from_micros(500);

/// Whether this kernel lets such sockets be read, with what they still have to send. The first call takes long: it belongs before a freeze.
pub(super) fn readable() -> bool {
    kernel::readable() && queue::readable()
}

/// What becomes of one: it moves if its peer is outside, and the kernel lets it be read. Of a handshake under way too, which nobody can hold.
pub(super) fn classify(socket: &Found) -> Class {
    let inner = socket
        .on_the_wire()
        .is_none_or(|(local, peer)| peer.ip.is_loopback() || peer.ip == local.ip);
    let carried = !inner && kernel::readable();
    // The kernel counts a FIN that was not acknowledged as a byte.
    match socket.state {
        State::TimeWait if inner => Class::TcpTimeWaitInside,
        State::TimeWait if carried => Class::TcpTimeWait,
        State::TimeWait => Class::TcpTimeWaitStuck,
        State::SynRecv if carried && accept::supported() => Class::TcpSynRecv,
        State::SynRecv => Class::TcpSynRecvStuck,
        _ if carried && (socket.wqueue <= 1 || queue::readable()) => Class::TcpOrphan,
        _ => Class::TcpOrphanStuck,
    }
}

/// What the image has to say of those among `found` that move; says which of them were read.
pub(super) fn dump<'a>(
    found: impl Iterator<Item = &'a Found>,
    image: &mut Sockets,
) -> Result<Vec<Found>, Error> {
    let mut wanted: HashMap<Ends, &Found> = found
        .filter(|f| {
            let class = classify(f);
            matches!(
                class,
                Class::TcpOrphan | Class::TcpTimeWait | Class::TcpSynRecv
            )
        })
        .filter_map(|f| Some((f.on_the_wire()?, f)))
        .collect();
    let mut read = Vec::new();
    if wanted.is_empty() {
        return Ok(read);
    }
    let (mut orphans, mut time_wait) = (Vec::new(), Vec::new());
    let clock = Clock::now()?;
    let interfaces = std::mem::take(&mut image.interfaces);
    kernel::each(&mut |values| {
        let Some(ends) = ends(values) else { return };
        // One that has ended meanwhile needs nothing; one that has sent its FIN meanwhile is not there yet.
        let Some((_, socket)) = wanted.remove_entry(&ends) else {
            return;
        };
        match carried(values, socket, &interfaces, clock) {
            Some(Carried::Orphan(tcp)) => orphans.push((values.address(), tcp, socket)),
            Some(Carried::TimeWait(tcp)) => {
                time_wait.push((socket.expires_ms, tcp));
                read.push(socket.clone());
            }
            Some(Carried::HalfOpen(half)) => image.half_open.push(half),
            None => image.left.push(left(
                socket,
                "it is signed, begun with data, a path of MPTCP, or has changed",
            )),
        }
    })
    .map_err(|source| Error::Adrift { source })?;
    image.interfaces = interfaces;
    let queued = |tcp: &Tcp| tcp.write_seq.wrapping_sub(tcp.snd_una) as usize;
    let streams = if orphans.iter().any(|(_, tcp, _)| queued(tcp) > 0) {
        queue::streams().unwrap_or_else(|e| {
            tracing::warn!("reading what closed connections still have to send: {e}");
            queue::Streams::new()
        })
    } else {
        queue::Streams::new()
    };
    for (address, tcp, socket) in orphans {
        let pieces = streams.get(&address).map_or(&[][..], Vec::as_slice);
        match queue::whole(pieces, tcp.snd_una, queued(&tcp)) {
            Some(send) => {
                image.orphans.push(Tcp { send, ..tcp });
                read.push(socket.clone());
            }
            None => image
                .left
                .push(left(socket, "what it still has to send cannot be read")),
        }
    }
    time_wait.sort_by_key(|(expires_ms, _)| std::cmp::Reverse(*expires_ms));
    if let Some(more @ 1..) = time_wait.len().checked_sub(TIME_WAIT_LIMIT) {
        image.left.push(Left {
            socket: format!("tcp time-wait: {more} sockets"),
            why: format!("only {TIME_WAIT_LIMIT} are made anew; the ports of these are not protected at the target"),
        });
    }
    time_wait.truncate(TIME_WAIT_LIMIT);
    image.time_wait = time_wait.into_iter().map(|(_, tcp)| tcp).collect();
    Ok(read)
}

fn left(socket: &Found, why: &str) -> Left {
    Left {
        socket: socket.to_string(),
        why: why.to_owned(),
    }
}

/// An orphan that has a descriptor yet, ours.
#[derive(Debug)]
pub(super) struct Orphan {
    fd: OwnedFd,
    /// Its ends are those here.
    pub tcp: Tcp,
    closes: bool,
}

impl Orphan {
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Closes it: the kernel goes on alone.
    pub(super) fn close(mut self) {
        self.closes = true;
    }
}

impl Drop for Orphan {
    /// One that was not closed never was: in repair it goes without a word (tcp_close).
    fn drop(&mut self) {
        if !self.closes
            && let Err(e) = sockopt::set_int(&self.fd, libc::SOL_TCP, libc::TCP_REPAIR, 1)
        {
            tracing::warn!("entering TCP_REPAIR on {}: {e}", self.tcp);
        }
    }
}

/// Rebuilds one in a socket of ours, behind the closed gate; `tcp` has its ends as they are called here.
fn rebuild(tcp: Tcp, kernels: Kernels) -> Result<Orphan, Error> {
    let fd = make::closed(&tcp)?;
    let orphan = Orphan {
        fd,
        tcp,
        closes: false,
    };
    let Orphan { fd, tcp, .. } = &orphan;
    // What this kernel refuses nobody would use any more.
    tcp::rebuild(fd, tcp, [tcp.local, tcp.peer], kernels)?;
    tcp::release(fd, tcp)?;
    Ok(orphan)
}

/// Rebuilds orphans; those that cannot be are said.
pub(super) fn orphans(tcps: Vec<Tcp>, kernels: Kernels) -> (Vec<Orphan>, Vec<String>) {
    let (mut built, mut lost) = (Vec::new(), Vec::new());
    for tcp in tcps {
        let name = tcp.to_string();
        match rebuild(tcp, kernels) {
            Ok(orphan) => built.push(orphan),
            Err(e) => lost.push(format!(
                "{name}, which its program had closed, ends: {}",
                chain(&e)
            )),
        }
    }
    (built, lost)
}

/// Makes sockets in TIME_WAIT, behind the closed gate: what leaves is dropped. Those that cannot be made are said.
pub(super) fn end(tcps: Vec<Tcp>, kernels: Kernels) -> Result<Vec<String>, Error> {
    if tcps.is_empty() {
        return Ok(Vec::new());
    }
    let (mut made, mut lost) = (Vec::new(), Vec::new());
    let mut by_peer = BTreeMap::<IpAddr, Vec<Tcp>>::new();
    for tcp in tcps {
        by_peer
            .entry(tcp.peer.canonical().ip)
            .or_default()
            .push(tcp);
    }
    for tcps in by_peer.into_values() {
        let peer = tcps[0].peer.canonical();
        let to = format!("sockets in TIME_WAIT towards {}", peer.ip);
        // Segments that wait for a link address would leave when the gate is open, and a peer that has ended answers with a RST.
        nexthop::without_asking(peer, || {
            for (of_part, not) in cores::parts(&tcps, |part| end_some(part, kernels)) {
                made.extend(of_part);
                lost.extend(not);
            }
            Ok(())
        })
        .on("making", &to)?;
    }
    lost.extend(verify(made)?);
    Ok(lost)
}

/// Those that were made, and what there is to say of those that were not.
fn end_some(tcps: &[Tcp], kernels: Kernels) -> (Vec<(Ends, String)>, Vec<String>) {
    let (mut made, mut lost) = (Vec::new(), Vec::new());
    let mut injector = Injector::default();
    for tcp in tcps {
        let name = tcp.to_string();
        match rebuild(tcp.clone(), kernels).and_then(|orphan| last_words(orphan, &mut injector)) {
            Ok(ends) => made.push((ends, name)),
            // The kernel still has the one that it had when the container left.
            Err(Error::Socket { source, .. })
                if source.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
            Err(e) => lost.push(unprotected(&name, &chain(&e))),
        }
    }
    (made, lost)
}

/// Both FINs, and the ACK of ours.
fn last_words(orphan: Orphan, injector: &mut Injector) -> Result<Ends, Error> {
    let tcp = &orphan.tcp;
    let ends = (tcp.local.canonical(), tcp.peer.canonical());
    shutdown(orphan.fd.as_raw_fd(), Shutdown::Write).on("shutting it down", tcp)?;
    injector
        .window(tcp)
        .on("telling it the peer's window", tcp)?;
    injector
        .fin_acknowledged(tcp)
        .on("delivering the ACK of its FIN", tcp)?;
    injector
        .last_fin(tcp)
        .on("delivering the peer's FIN", tcp)?;
    orphan.close();
    Ok(ends)
}

/// What is sent to oneself is delivered a softirq later.
fn verify(mut made: Vec<(Ends, String)>) -> Result<Vec<String>, Error> {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = diag::tcp()?;
        let standing: HashMap<Ends, State> = found
            .iter()
            .filter_map(|f| Some((f.on_the_wire()?, f.state)))
            .collect();
        made.retain(|(ends, _)| standing.get(ends) != Some(&State::TimeWait));
        if made.is_empty() || Instant::now() >= until {
            let why = |ends| match standing.get(ends) {
                Some(state) => format!("it is in {state} here"),
                None => "it is not there".to_owned(),
            };
            return Ok(made
                .iter()
                .map(|(ends, name)| unprotected(name, &why(ends)))
                .collect());
        }
        thread::sleep(GLANCE);
    }
}

fn unprotected(name: &str, why: &str) -> String {
    format!("{name}: in TIME_WAIT, and its port is not protected here: {why}")
}

fn chain(e: &Error) -> String {
    match std::error::Error::source(e) {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}

/// The container lives elsewhere: its orphans and sockets in TIME_WAIT end here, behind the closed gate, for they would hold their ports when it
/// comes back.
pub(super) fn destroy(sockets: &[Found]) -> Vec<Error> {
    // One that has ended, and a kernel without SOCK_DESTROY, say the same; both leave nothing that a timer does not end.
    let gone = |e: &Error| matches!(e, Error::Diag { source, .. } if source.kind() == io::ErrorKind::Unsupported);
    sockets
        .iter()
        .filter_map(|socket| diag::destroy(socket).err())
        .filter(|e| !gone(e))
        .collect()
}
