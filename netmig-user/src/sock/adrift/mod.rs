//! TCP sockets that no process holds any more: closed while the FIN is under way (orphans), and TIME_WAIT.
//!
//! Without a descriptor there is no TCP_REPAIR: at the source a program reads them out of the kernel's memory (see the object `adrift`), and
//! nothing of them changes. At the target each is rebuilt as any connection, in a socket of netmig's own. An orphan is shut down at the
//! opening, as the others are, and closed: so the kernel makes the same orphan of it. TIME_WAIT is made behind the closed gate, by the two FINs and
//! the ACK that had made it.
//!
//! What still has bytes to send is not carried: they lie in pages whose addresses the kernel tells no program.
mod kernel;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use netmig_core::{
    image::v1::sock::{Common, Endpoint, Interface, Left, Sockets, Tcp, TcpState, Window},
    socket::{Class, State},
};
use nix::{
    sys::socket::{Shutdown, shutdown},
    time::{ClockId, clock_gettime},
};

use self::kernel::Values;
use super::{
    diag::{self, Found},
    error::{Error, On},
    inject::Injector,
    make, nexthop,
    tcp::{self, Kernels},
};
use crate::sys::sockopt;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Ends = (Endpoint, Endpoint);

/// Most sockets in TIME_WAIT that a move makes anew: each takes a part of the blackout. Those that would have stayed longest count.
const TIME_WAIT_LIMIT: usize = 1024;
/// How long the kernel may take to put what was delivered where it belongs.
const PATIENCE: Duration = Duration::from_millis(500);
const GLANCE: Duration = Duration::from_micros(500);

/// Whether this kernel lets such sockets be read. The first call takes some milliseconds: it belongs before a freeze.
pub(super) fn readable() -> bool {
    kernel::readable()
}

/// What becomes of one: only FINs are under way, and with a peer outside.
pub(super) fn classify(socket: &Found) -> Class {
    let inner = match (socket.local.endpoint(), socket.peer.endpoint()) {
        (Some(local), Some(peer)) => {
            let (local, peer) = (local.canonical().ip, peer.canonical().ip);
            peer.is_loopback() || peer == local
        }
        _ => true,
    };
    let carried = !inner && readable();
    // The kernel counts a FIN that was not acknowledged as a byte.
    match socket.state {
        State::TimeWait if carried => Class::TcpTimeWait,
        State::TimeWait => Class::TcpTimeWaitStuck,
        _ if carried && socket.wqueue <= 1 => Class::TcpOrphan,
        _ => Class::TcpOrphanStuck,
    }
}

/// What the image has to say of those among `found` that move; says which of them were read.
pub(super) fn dump<'a>(
    found: impl Iterator<Item = &'a Found>,
    image: &mut Sockets,
) -> Result<Vec<Found>, Error> {
    let mut wanted: HashMap<Ends, &Found> = found
        .filter(|f| matches!(classify(f), Class::TcpOrphan | Class::TcpTimeWait))
        .filter_map(|f| {
            Some((
                (
                    f.local.endpoint()?.canonical(),
                    f.peer.endpoint()?.canonical(),
                ),
                f,
            ))
        })
        .collect();
    let mut read = Vec::new();
    if wanted.is_empty() {
        return Ok(read);
    }
    let mut time_wait = Vec::new();
    let clock = Clock::now()?;
    let interfaces = std::mem::take(&mut image.interfaces);
    kernel::each(&mut |values| {
        let Some(ends) = ends(values) else { return };
        // One that has ended meanwhile needs nothing; one that has sent its FIN meanwhile is not there yet.
        let Some((_, socket)) = wanted.remove_entry(&ends) else {
            return;
        };
        match carried(values, socket, &interfaces, clock) {
            Some(Carried::Orphan(tcp)) => image.orphans.push(tcp),
            Some(Carried::TimeWait(tcp)) => time_wait.push((socket.expires_ms, tcp)),
            None => {
                image.left.push(Left {
                    socket: socket.to_string(),
                    why: "it is signed, or has bytes to send by now".to_owned(),
                });
                return;
            }
        }
        read.push(socket.clone());
    })
    .map_err(|source| Error::Adrift { source })?;
    image.interfaces = interfaces;
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

/// The kernel's clock for timestamps (tcp_clock_ns).
#[derive(Clone, Copy)]
struct Clock {
    us: u64,
}

impl Clock {
    fn now() -> io::Result<Self> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        Ok(Self {
            us: now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1000,
        })
    }

    /// As TCP_TIMESTAMP would give it.
    fn stamp(self, values: &Values<'_>) -> u32 {
        let offset = values.word("tsoffset");
        if values.is("usec") {
            (self.us as u32).wrapping_add(offset) | 1
        } else {
            ((self.us / 1000) as u32).wrapping_add(offset) & !1
        }
    }
}

enum Carried {
    Orphan(Tcp),
    TimeWait(Tcp),
}

/// The image of one; none: it cannot be carried.
fn carried(
    values: &Values<'_>,
    socket: &Found,
    interfaces: &[Interface],
    clock: Clock,
) -> Option<Carried> {
    let (local, peer) = (socket.local.endpoint()?, socket.peer.endpoint()?);
    let device = interfaces
        .iter()
        .find(|i| i.index == values.word("device") && local.scope == 0 && peer.scope == 0);
    let common = Common {
        v6: socket.v6,
        reuseaddr: i32::from(values.is("reuse")),
        reuseport: i32::from(values.is("reuseport")),
        device: device.map(|i| i.name.clone()).unwrap_or_default(),
        sndbuf: values.word("sndbuf") as i32,
        rcvbuf: values.word("rcvbuf") as i32,
        keys: socket.keys.clone(),
        ..Common::default()
    };
    let tcp = Tcp {
        common,
        state: TcpState::FinWait2,
        shut_read: false,
        local,
        peer,
        snd_una: 0,
        snd_nxt: 0,
        write_seq: 0,
        rcv_nxt: 0,
        send: Vec::new(),
        recv: Vec::new(),
        mss: 0,
        snd_mss: 0,
        wscale: None,
        sack: false,
        timestamps: false,
        ecn: false,
        timestamp: clock.stamp(values),
        window: Window::default(),
        peer_window: 0,
        ts_recent: None,
        congestion: String::new(),
        cwnd: 10,
        ssthresh: 0,
        rtt: 0,
        window_clamp: values.word("window_clamp"),
    };
    if values.is_time_wait() {
        time_wait(values, tcp)
    } else {
        orphan(values, tcp).map(Carried::Orphan)
    }
}

fn orphan(values: &Values<'_>, tcp: Tcp) -> Option<Tcp> {
    let state = match State::from_kernel(values.state()) {
        State::FinWait1 => TcpState::FinWait1,
        State::FinWait2 => TcpState::FinWait2,
        State::Closing => TcpState::Closing,
        State::LastAck => TcpState::LastAck,
        _ => return None,
    };
    // The FIN is the last byte of the sequence space.
    let write_seq = values.word("write_seq").wrapping_sub(1);
    let unacknowledged = values
        .word("write_seq")
        .wrapping_sub(values.word("snd_una"));
    if values.is("socket") || unacknowledged > 1 {
        return None;
    }
    let rcv_nxt = values
        .word("rcv_nxt")
        .wrapping_sub(u32::from(state.fin_received()));
    let rcv_wup = match values.word("rcv_wup") {
        wup if wup == rcv_nxt.wrapping_add(1) => rcv_nxt,
        wup => wup,
    };
    let timestamps = values.is("tstamp_ok");
    let scales = (
        values.word("snd_wscale") as u8,
        values.word("rcv_wscale") as u8,
    );
    Some(Tcp {
        state,
        snd_una: write_seq,
        snd_nxt: write_seq,
        write_seq,
        rcv_nxt,
        mss: values.word("mss_clamp"),
        snd_mss: values.word("mss_cache"),
        wscale: values.is("wscale_ok").then_some(scales),
        sack: values.is("sack_ok"),
        timestamps,
        ecn: values.word("ecn") & 1 != 0,
        window: Window {
            snd_wl1: values.word("snd_wl1"),
            snd_wnd: values.word("snd_wnd"),
            max_window: values.word("max_window"),
            rcv_wnd: values.word("rcv_wnd"),
            rcv_wup,
        },
        peer_window: values.word("snd_wnd"),
        ts_recent: timestamps.then(|| values.word("ts_recent")),
        cwnd: values.word("snd_cwnd"),
        ssthresh: values.word("snd_ssthresh"),
        rtt: values.word("srtt") / 8,
        ..tcp
    })
}

/// What is left of one that has ended: nothing but what its late answers need.
fn time_wait(values: &Values<'_>, tcp: Tcp) -> Option<Carried> {
    /// RFC 9293, 3.7.1; no segment of it has a payload any more.
    const MSS: u32 = 536;
    const BUFFER: i32 = 1 << 16;
    if values.is("key") {
        return None;
    }
    // FIN_WAIT2 of an orphan ends as such a socket, too: the peer's FIN has not come there.
    let ended = State::from_kernel(values.word("substate") as u8) == State::TimeWait;
    let write_seq = values.word("snd_nxt").wrapping_sub(1);
    let rcv_nxt = values.word("rcv_nxt").wrapping_sub(u32::from(ended));
    let timestamps = values.is("stamped");
    let rcv_wscale = values.word("rcv_wscale") as u8;
    let tcp = Tcp {
        common: Common {
            sndbuf: BUFFER,
            rcvbuf: BUFFER,
            ..tcp.common
        },
        snd_una: write_seq,
        snd_nxt: write_seq,
        write_seq,
        rcv_nxt,
        mss: MSS,
        snd_mss: MSS,
        wscale: (rcv_wscale > 0).then_some((0, rcv_wscale)),
        timestamps,
        window: Window {
            snd_wl1: rcv_nxt,
            snd_wnd: 0,
            max_window: 0,
            rcv_wnd: values.word("rcv_wnd"),
            rcv_wup: rcv_nxt,
        },
        ts_recent: timestamps.then(|| values.word("ts_recent")),
        window_clamp: u32::from(u16::MAX) << rcv_wscale.min(14),
        ..tcp
    };
    Some(if ended {
        Carried::TimeWait(tcp)
    } else {
        Carried::Orphan(tcp)
    })
}

fn ends(values: &Values<'_>) -> Option<Ends> {
    let v6 = |low: &str, high: &str| {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&values.long(low).to_ne_bytes());
        octets[8..].copy_from_slice(&values.long(high).to_ne_bytes());
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let v4 = |key: &str| IpAddr::V4(Ipv4Addr::from(values.word(key).to_ne_bytes()));
    let (local, peer) = match values.word("family") as i32 {
        libc::AF_INET => (v4("local"), v4("peer")),
        libc::AF_INET6 => (v6("local6", "local6+"), v6("peer6", "peer6+")),
        _ => return None,
    };
    let end = |ip: IpAddr, port: u16| {
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        Endpoint {
            ip,
            port,
            scope: if link_local { values.word("device") } else { 0 },
        }
        .canonical()
    };
    Some((
        end(local, values.word("local port") as u16),
        end(peer, u16::from_be(values.word("peer port") as u16)),
    ))
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
    let mut injector = Injector::default();
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
            for tcp in tcps {
                let name = tcp.to_string();
                match rebuild(tcp, kernels).and_then(|orphan| last_words(orphan, &mut injector)) {
                    Ok(ends) => made.push((ends, name)),
                    // The kernel still has the one that it had when the container left.
                    Err(Error::Socket { source, .. })
                        if source.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                    Err(e) => lost.push(unprotected(&name, &chain(&e))),
                }
            }
            Ok(())
        })
        .on("making", &to)?;
    }
    lost.extend(verify(made)?);
    Ok(lost)
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
            .filter_map(|f| {
                Some((
                    (
                        f.local.endpoint()?.canonical(),
                        f.peer.endpoint()?.canonical(),
                    ),
                    f.state,
                ))
            })
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
