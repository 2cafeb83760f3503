//! Connections that wait in an accept queue: no process has them yet.
//!
//! At the source a duplicate of the listener accepts them, after the engine's own dump, and they are read as any connection. At the target,
//! and at the source if the move is undone, the kernel is made to put them back: the ACK that ended their handshake is delivered once more,
//! with their present sequence numbers (see the object `accept`); what they had not been asked for follows as segments, and the peer's FIN.
//! Both need Linux 6.9; on an older kernel they are left where they are, and named.
mod half_open;
mod kfunc;

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use netmig_common::{
    FlowKey,
    accept::{Agreed, NO_LISTENER, NOT_SEEN, PLACED, Waiting},
};
use netmig_core::{
    image::v1::sock::{Endpoint, Tcp, TcpState},
    socket::State,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{SockFlag, SockaddrStorage, accept4, getpeername},
};
use std::os::fd::AsFd;

use super::{
    buffer::Wider,
    common,
    diag::{self, Found},
    error::{Error, On},
    inject::Injector,
    tcp::{self, Kernels},
};

pub(super) use half_open::{HalfOpens, forget, under_way};

/// How long the kernel may take to put what was delivered where it belongs.
const PATIENCE: Duration = Duration::from_millis(500);
const GLANCE: Duration = Duration::from_micros(500);

/// Whether this kernel can put a connection into an accept queue.
pub fn supported() -> bool {
    kfunc::number().is_some()
}

/// Makes ready what [`put`] needs. On a kernel that cannot put a connection into an accept queue there is nothing to make ready.
///
/// # Errors
/// The kernel refuses the program.
pub(super) fn prepare() -> Result<(), Error> {
    if !supported() {
        return Ok(());
    }
    kfunc::load_ahead().map_err(|source| Error::Accept { source })
}

/// Ends what [`prepare`] has begun.
pub(super) fn unprepare() {
    kfunc::unload();
}

/// Accepts what waits at a listener whose tasks are stopped: at most `waiting` connections, in their order. Its mode (O_NONBLOCK) stays.
pub(super) fn take(
    listener: &OwnedFd,
    waiting: u32,
    socket: &Found,
) -> Result<Vec<OwnedFd>, Error> {
    let mut taken = Vec::new();
    for _ in 0..waiting {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::ZERO).on("polling", socket)? == 0 {
            break;
        }
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the kernel has just made this descriptor for us and nothing else knows it.
            Ok(fd) => taken.push(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(Errno::EAGAIN) => break,
            Err(Errno::ECONNABORTED | Errno::EINTR) => {}
            Err(e) => return Err(e).on("accepting at", socket),
        }
    }
    Ok(taken)
}

/// The row of the list that is this connection; none: it ended before it was accepted.
pub(super) fn listed<'a>(fd: &OwnedFd, found: &'a [Found]) -> Option<&'a Found> {
    let local = common::own_end(fd).ok()?;
    let peer: SockaddrStorage = getpeername(fd.as_raw_fd()).ok()?;
    let ends = (local.canonical(), common::endpoint(&peer)?.canonical());
    found.iter().find(|f| waits(f, ends))
}

/// Puts connections into the accept queues of the listeners of the caller's namespace, in this order. What cannot be put there is said,
/// and does not stay half-made. `listeners`: theirs.
///
/// # Errors
/// The kernel lacks what is needed, or cannot be asked.
pub(super) fn put(
    waiting: &[Tcp],
    listeners: &[OwnedFd],
    kernels: Kernels,
) -> Result<Vec<String>, Error> {
    if waiting.is_empty() {
        return Ok(Vec::new());
    }
    let rooms = listeners
        .iter()
        .map(|listener| roomy(listener, waiting))
        .collect::<Result<Vec<_>, Error>>()?;
    let lost = put_all(waiting, kernels);
    for room in rooms.into_iter().flatten() {
        room.back()?;
    }
    lost
}

/// Connections begin with the receive buffer of their listener (sk_clone), and what they have not been asked for comes at once: makes it larger
/// where it must be. None: there is room enough.
fn roomy<'a>(listener: &'a OwnedFd, waiting: &[Tcp]) -> Result<Option<Wider<&'a OwnedFd>>, Error> {
    let local = common::own_end(listener).on("asking for its name", &"a listener")?;
    let own = waiting.iter().filter(|tcp| tcp.local.port == local.port);
    // Half of it is window (tcp_win_from_space), and a segment takes twice its payload.
    let need = own.map(|tcp| 4 * tcp.recv.len() as u64 + (128 << 10)).max();
    let wider = Wider::than(listener, format!("listener {local}"), |_| need.unwrap_or(0))?;
    if let Some(wider) = &wider {
        wider.unlocked()?;
    }
    Ok(wider)
}

fn put_all(waiting: &[Tcp], kernels: Kernels) -> Result<Vec<String>, Error> {
    let mut program = kfunc::Program::at_lo().map_err(|source| Error::Accept { source })?;
    let mut injector = Injector::default();
    let mut lost = Vec::new();
    let mut put = Vec::new();
    for tcp in waiting {
        match place(&mut program, &mut injector, tcp, kernels)? {
            Ok(()) => put.push(tcp),
            Err(why) => lost.push(format!("{tcp} is not in its accept queue: {why}")),
        }
    }
    lost.extend(verify(&put)?);
    Ok(lost)
}

fn place(
    program: &mut kfunc::Program,
    injector: &mut Injector,
    tcp: &Tcp,
    kernels: Kernels,
) -> Result<Result<(), String>, Error> {
    let failed = |source| Error::Accept { source };
    let key = key(tcp.local, tcp.peer);
    let waiting = Waiting {
        agreed: agreed(tcp, kernels)?,
        outcome: NOT_SEEN,
    };
    program.offer(&key, &waiting).map_err(failed)?;
    // What is sent to oneself is delivered before sendto(2) returns, or a softirq later.
    injector
        .accept(tcp)
        .on("delivering the ACK of its handshake", tcp)?;
    let until = Instant::now() + PATIENCE;
    let outcome = loop {
        match program.outcome(&key).map_err(failed)? {
            NOT_SEEN if Instant::now() < until => thread::sleep(GLANCE),
            outcome => break outcome,
        }
    };
    match outcome {
        PLACED => {}
        NOT_SEEN => return Ok(Err("its ACK did not come through lo".to_owned())),
        NO_LISTENER => return Ok(Err("nobody listens there".to_owned())),
        error => {
            let why = std::io::Error::from_raw_os_error(-error);
            return Ok(Err(format!("the kernel refuses it: {why}")));
        }
    }
    injector
        .unread(tcp)
        .on("delivering what it has not read", tcp)?;
    if tcp.state == TcpState::CloseWait {
        injector.fin(tcp).on("delivering the peer's FIN", tcp)?;
    }
    Ok(Ok(()))
}

/// Waits until every connection stands with all its bytes. One that lacks some would wait for ever: its peer has been told that they came.
fn verify(put: &[&Tcp]) -> Result<Vec<String>, Error> {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = diag::tcp()?;
        let stands = |tcp: &Tcp| {
            let own = found.iter().find(|f| is(f, tcp));
            let fin = usize::from(tcp.state == TcpState::CloseWait);
            own.map(|f| (f.rqueue as usize).saturating_sub(fin) >= tcp.recv.len())
        };
        let wrong: Vec<&Tcp> = put
            .iter()
            .copied()
            .filter(|tcp| stands(tcp) != Some(true))
            .collect();
        if wrong.is_empty() {
            return Ok(Vec::new());
        }
        if Instant::now() < until {
            thread::sleep(GLANCE);
            continue;
        }
        let mut lost = Vec::new();
        for tcp in wrong {
            let why = match found.iter().find(|f| is(f, tcp)) {
                None => "the listener has no room for it".to_owned(),
                Some(half) => {
                    diag::destroy(half)?;
                    format!(
                        "it took {} of {} bytes, and was reset",
                        half.rqueue,
                        tcp.recv.len()
                    )
                }
            };
            lost.push(format!("{tcp} is not in its accept queue: {why}"));
        }
        return Ok(lost);
    }
}

fn is(found: &Found, tcp: &Tcp) -> bool {
    waits(found, (tcp.local.canonical(), tcp.peer.canonical()))
}

/// It is the connection with these ends, and nobody has it yet.
fn waits(found: &Found, ends: (Endpoint, Endpoint)) -> bool {
    found.inode == 0
        && matches!(found.state, State::Established | State::CloseWait)
        && found.on_the_wire() == Some(ends)
}

fn key(local: Endpoint, peer: Endpoint) -> FlowKey {
    let octets = |ip: std::net::IpAddr| match ip.to_canonical() {
        std::net::IpAddr::V4(ip) => FlowKey::mapped(ip.octets()),
        std::net::IpAddr::V6(ip) => ip.octets(),
    };
    FlowKey {
        container: octets(local.ip),
        peer: octets(peer.ip),
        container_port: local.port,
        peer_port: peer.port,
    }
}

fn agreed(tcp: &Tcp, kernels: Kernels) -> Result<Agreed, Error> {
    let stamp = tcp::stamp_here(tcp, kernels)?;
    let (snd_wscale, rcv_wscale) = tcp.wscale.unwrap_or_default();
    Ok(Agreed {
        rcv_tsval: tcp.ts_recent.unwrap_or(0),
        rcv_tsecr: stamp,
        mss: u16::try_from(tcp.mss).unwrap_or(u16::MAX),
        rcv_wscale,
        snd_wscale,
        ecn_ok: u8::from(tcp.ecn),
        wscale_ok: u8::from(tcp.wscale.is_some()),
        sack_ok: u8::from(tcp.sack),
        tstamp_ok: u8::from(tcp.timestamps),
        usec_ts_ok: u8::from(tcp.timestamps && stamp & 1 == 1),
        reserved: [0; 3],
    })
}
