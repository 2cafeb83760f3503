//! TCP connections, by TCP_REPAIR (net/ipv4/tcp.c, do_tcp_setsockopt and tcp_repair_*).
//!
//! The order of [`rebuild`] is the kernel's: sequence numbers only in CLOSE; bind with SK_FORCE_REUSE, which TCP_REPAIR sets and any
//! SO_REUSEADDR would overwrite; options only before anything was sent; the restored sent data is cut by the mss that the connect
//! knew, so TCP_MAXSEG comes before it and goes after the refill.
//!
//! What had left goes in as sent, to the last byte: a peer that has received more than our snd_nxt is not heard, neither its ACKs nor its
//! data (tcp_ack, "ACK of unsent data"), and if the congestion window, 10 after a restore, does not let the difference go, neither side
//! ever gets on. The stack does not find restored segments lost either, for they carry no send time: the opening sends them once more
//! by itself (see `inject`). The peer's window goes in as 0, where there is anything to send: so nothing leaves before the opening tells it.
use std::{io, os::fd::OwnedFd};

use netmig_core::{
    image::v1::sock::{Common, Endpoint, Tcp, TcpState, Window},
    socket::{Kind, State},
};
use nix::sys::socket::{bind, connect};
use std::os::fd::AsRawFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    common,
    diag::{Found, Name},
    error::{Error, On},
    md5,
    option::{self, Refused, When},
    repair::{self, Repair, write},
};
use crate::sys::sockopt::{
    self,
    number::{SO_BUF_LOCK, SO_PEEK_OFF, TCP_NO_QUEUE, TCP_RECV_QUEUE, TCP_SEND_QUEUE},
};

const SOL: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::SOL_TCP;

/// Reads one connection. It leaves repair whatever happens.
pub(super) fn dump(fd: &OwnedFd, common: Common, socket: &Found) -> Result<Tcp, Error> {
    let (Name::Inet(local), Name::Inet(peer)) = (&socket.local, &socket.peer) else {
        return Err(Error::Malformed {
            what: format!("the addresses of {socket}"),
        });
    };
    let mut tcp = Tcp {
        shut_read: socket.shutdown & 1 != 0,
        ..Tcp::between(common, *local, *peer)
    };
    refresh(fd, &mut tcp)?;
    Ok(tcp)
}

/// Reads everything that changes while packets arrive.
pub(super) fn refresh(fd: &OwnedFd, tcp: &mut Tcp) -> Result<(), Error> {
    let name = tcp.to_string();
    tcp.congestion = congestion(fd, tcp)?;
    tcp.window_clamp =
        sockopt::read(fd, TCP, libc::TCP_WINDOW_CLAMP).on("reading TCP_WINDOW_CLAMP", &name)?;
    from_the_beginning(fd, &name, || {
        let repair = Repair::enter(fd, tcp.common.reuseaddr, &name)?;
        let read = read(&repair, tcp);
        let left = repair.leave();
        read.and(left)
    })
}

/// Reads while SO_PEEK_OFF is off: with an offset MSG_PEEK would begin there. TCP has none before 6.9 (sk_getsockopt: no set_peek_off).
pub(super) fn from_the_beginning<T>(
    fd: &OwnedFd,
    name: &str,
    read: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let peek = match sockopt::int(fd, SOL, SO_PEEK_OFF) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => -1,
        asked => asked.on("reading SO_PEEK_OFF", &name)?,
    };
    if peek >= 0 {
        sockopt::set_int(fd, SOL, SO_PEEK_OFF, -1).on("setting SO_PEEK_OFF", &name)?;
    }
    let done = read();
    if peek >= 0 {
        sockopt::set_int(fd, SOL, SO_PEEK_OFF, peek).on("setting SO_PEEK_OFF back", &name)?;
    }
    done
}

/// The name of its congestion control.
pub(super) fn congestion(fd: &OwnedFd, socket: &impl ToString) -> Result<String, Error> {
    let name =
        sockopt::bytes(fd, TCP, libc::TCP_CONGESTION, 16).on("reading TCP_CONGESTION", socket)?;
    let name = String::from_utf8_lossy(&name);
    Ok(name.trim_end_matches('\0').to_owned())
}

/// Reads the queues of a connection that is known by its ends.
pub(super) fn read_known(
    fd: &OwnedFd,
    inode: u64,
    local: Endpoint,
    peer: Endpoint,
) -> Result<Tcp, Error> {
    let mut found = Found::new(Kind::Tcp, State::Established, inode);
    (found.local, found.peer) = (Name::Inet(local), Name::Inet(peer));
    let common = common::dump(fd, &found, Vec::new(), &mut option::Fresh::default())?;
    dump(fd, common, &found)
}

/// Everything of a connection in repair.
fn read(repair: &Repair<'_>, tcp: &mut Tcp) -> Result<(), Error> {
    let (fd, name) = (repair.fd, repair.name);
    let info: Info = sockopt::read(fd, TCP, libc::TCP_INFO).on("reading TCP_INFO", &name)?;
    tcp.state = match State::from_kernel(info.state) {
        State::Established => TcpState::Established,
        State::CloseWait => TcpState::CloseWait,
        State::FinWait1 => TcpState::FinWait1,
        State::FinWait2 => TcpState::FinWait2,
        State::Closing => TcpState::Closing,
        State::LastAck => TcpState::LastAck,
        other => {
            return Err(Error::Changed {
                socket: name.to_string(),
                state: format!("{other:?}"),
            });
        }
    };
    tcp.sack = info.options & 2 != 0;
    tcp.timestamps = info.options & 1 != 0;
    tcp.ecn = info.options & 8 != 0;
    tcp.wscale = (info.options & 4 != 0).then_some((info.wscale & 0xf, info.wscale >> 4));
    (tcp.cwnd, tcp.ssthresh, tcp.rtt, tcp.snd_mss) =
        (info.snd_cwnd, info.snd_ssthresh, info.rtt, info.snd_mss);
    // In repair it is mss_clamp, out of it mss_cache.
    tcp.mss = sockopt::read(fd, TCP, libc::TCP_MAXSEG).on("reading TCP_MAXSEG", &name)?;
    tcp.timestamp =
        sockopt::read(fd, TCP, libc::TCP_TIMESTAMP).on("reading TCP_TIMESTAMP", &name)?;
    let window: [u32; 5] =
        sockopt::read(fd, TCP, libc::TCP_REPAIR_WINDOW).on("reading TCP_REPAIR_WINDOW", &name)?;
    let [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] = window;
    tcp.window = Window {
        snd_wl1,
        snd_wnd,
        max_window,
        rcv_wnd,
        rcv_wup,
    };
    tcp.peer_window = snd_wnd;

    repair.queue(TCP_SEND_QUEUE)?;
    let end = repair.seq()?;
    let queued = sockopt::queue_len(fd, libc::TIOCOUTQ).on("reading SIOCOUTQ", &name)?;
    let unsent = sockopt::queue_len(fd, libc::SIOCOUTQNSD as libc::Ioctl)
        .on("reading SIOCOUTQNSD", &name)?;
    // The kernel counts a FIN as a byte of the queue until it is acknowledged, and of the sequence space for ever.
    let fin = u32::from(tcp.state.fin_written());
    let fin_queued = usize::from(tcp.state.fin_written() && tcp.state != TcpState::FinWait2);
    tcp.write_seq = end.wrapping_sub(fin);
    tcp.send = repair.peek(queued.saturating_sub(fin_queued), "send")?;
    tcp.snd_una = tcp.write_seq.wrapping_sub(seq(tcp.send.len())?);
    tcp.snd_nxt = tcp
        .write_seq
        .wrapping_sub(seq(unsent.saturating_sub(fin_queued))?);

    repair.queue(TCP_RECV_QUEUE)?;
    tcp.rcv_nxt = repair
        .seq()?
        .wrapping_sub(u32::from(tcp.state.fin_received()));
    let unread = sockopt::queue_len(fd, libc::FIONREAD).on("reading SIOCINQ", &name)?;
    tcp.recv = repair.peek(unread, "receive")?;
    if tcp.window.rcv_wup == tcp.rcv_nxt.wrapping_add(1) {
        tcp.window.rcv_wup = tcp.rcv_nxt;
    }
    repair.queue(TCP_NO_QUEUE)
}

/// Rebuilds a connection in a closed socket and leaves it in repair: first half of a restore. What CRIU left of its shutdown is undone.
/// `ends`: its two ends as they are called here.
pub(super) fn rebuild(
    fd: &OwnedFd,
    tcp: &Tcp,
    ends: [Endpoint; 2],
    kernels: Kernels,
) -> Result<Vec<Refused>, Error> {
    let common = &tcp.common;
    let timestamp = kernels.translate(tcp)?;
    sockopt::disconnect(fd).on("disconnecting", tcp)?;
    // The timers that could end the connection behind the closed gate come at the opening. An engine has set those that the image has.
    for (level, name, call) in [
        (SOL, libc::SO_KEEPALIVE, "setting SO_KEEPALIVE"),
        (TCP, libc::TCP_USER_TIMEOUT, "setting TCP_USER_TIMEOUT"),
    ] {
        if common
            .settings
            .iter()
            .any(|s| (s.level, s.name) == (level, name))
        {
            sockopt::set_int(fd, level, name, 0).on(call, tcp)?;
        }
    }
    sockopt::set_int(fd, SOL, libc::SO_REUSEPORT, common.reuseport)
        .on("setting SO_REUSEPORT", tcp)?;
    if !common.device.is_empty() {
        sockopt::set(fd, SOL, libc::SO_BINDTODEVICE, common.device.as_bytes())
            .on("setting SO_BINDTODEVICE", tcp)?;
    }
    let mut refused = option::apply(fd, &common.settings, When::First, tcp);
    md5::set(fd, common, tcp)?;

    let repair = Repair::enter(fd, common.reuseaddr, tcp)?;
    let (sent, _) = split(tcp);
    if !(tcp.recv.is_empty() && tcp.send.is_empty()) {
        force_buffers(fd, tcp)?;
    }
    repair.set_seq(TCP_SEND_QUEUE, tcp.snd_una)?;
    repair.set_seq(
        TCP_RECV_QUEUE,
        tcp.rcv_nxt.wrapping_sub(seq(tcp.recv.len())?),
    )?;
    if !tcp.congestion.is_empty()
        && let Err(source) = sockopt::set(fd, TCP, libc::TCP_CONGESTION, tcp.congestion.as_bytes())
    {
        refused.push(Refused {
            option: format!("TCP_CONGESTION {}", tcp.congestion),
            socket: tcp.to_string(),
            source,
        });
    }
    sockopt::set_u32(fd, TCP, libc::TCP_MAXSEG, tcp.mss.clamp(88, 32767))
        .on("setting TCP_MAXSEG", tcp)?;
    // CRIU binds what it takes for a socket that has never been connected.
    if common::own_end(fd).on("asking for its name", tcp)?.port == 0 {
        bind(fd.as_raw_fd(), common::address(ends[0]).as_ref()).on("binding", tcp)?;
    }
    connect(fd.as_raw_fd(), common::address(ends[1]).as_ref()).on("connecting in repair", tcp)?;
    set_negotiated(fd, tcp)?;
    sockopt::set_u32(fd, TCP, libc::TCP_TIMESTAMP, timestamp).on("setting TCP_TIMESTAMP", tcp)?;
    if !(tcp.recv.is_empty() && sent.is_empty()) {
        repair.refill(TCP_RECV_QUEUE, &tcp.recv)?;
        repair.refill(TCP_SEND_QUEUE, sent)?;
        repair.queue(TCP_NO_QUEUE)?;
    }
    let w = tcp.window;
    let window = [
        w.snd_wl1,
        if knows_window(tcp) {
            tcp.peer_window
        } else {
            0
        },
        w.max_window.max(tcp.peer_window),
        w.rcv_wnd,
        w.rcv_wup,
    ];
    sockopt::set_value(fd, TCP, libc::TCP_REPAIR_WINDOW, &window)
        .on("setting TCP_REPAIR_WINDOW", tcp)?;
    repair.stay();
    Ok(refused)
}

/// Whether a rebuilt connection knows its peer's window from the first: it has nothing that could leave before the opening.
pub(super) fn knows_window(tcp: &Tcp) -> bool {
    tcp.state == TcpState::Established && tcp.snd_una == tcp.write_seq
}

/// Second half of a restore: leaves repair behind the closed gate and writes what had not been sent.
pub(super) fn release(fd: &OwnedFd, tcp: &Tcp) -> Result<Vec<Refused>, Error> {
    repair::leave(fd, tcp.common.reuseaddr, tcp)?;
    // rcv_ssthresh is not part of the repair state: the clamp going up raises it to the window that was offered
    // (tcp_set_window_clamp), and so the window does not have to grow anew.
    for clamp in [1 << 30, tcp.window_clamp] {
        sockopt::set_u32(fd, TCP, libc::TCP_WINDOW_CLAMP, clamp)
            .on("setting TCP_WINDOW_CLAMP", tcp)?;
    }
    let refused = option::apply(fd, &tcp.common.settings, When::Connected, tcp);
    let (_, unsent) = split(tcp);
    write(fd, unsent, "send", tcp)?;
    sockopt::set_u32(fd, TCP, libc::TCP_MAXSEG, 0).on("releasing TCP_MAXSEG", tcp)?;
    sockopt::set_int(fd, SOL, libc::SO_SNDBUFFORCE, tcp.common.sndbuf / 2)
        .on("setting SO_SNDBUFFORCE", tcp)?;
    sockopt::set_int(fd, SOL, libc::SO_RCVBUFFORCE, tcp.common.rcvbuf / 2)
        .on("setting SO_RCVBUFFORCE", tcp)?;
    sockopt::set_int(fd, SOL, SO_BUF_LOCK, tcp.common.buf_lock & 3)
        .on("setting SO_BUF_LOCK", tcp)?;
    Ok(refused)
}

/// Gives a half-built socket back as the engine made it: closed. In repair this sends nothing.
pub(super) fn discard(fd: &OwnedFd, tcp: &Tcp) -> Result<(), Error> {
    sockopt::set_int(fd, TCP, libc::TCP_REPAIR, 1).on("entering TCP_REPAIR", tcp)?;
    sockopt::disconnect(fd).on("disconnecting", tcp)?;
    repair::leave(fd, tcp.common.reuseaddr, tcp)
}

/// The stamp that the connection would send now.
pub(super) fn stamp(fd: &OwnedFd, tcp: &Tcp) -> Result<u32, Error> {
    sockopt::read(fd, TCP, libc::TCP_TIMESTAMP).on("reading TCP_TIMESTAMP", tcp)
}

/// TCP_TIMESTAMP as it is set here.
pub(super) fn stamp_here(tcp: &Tcp, kernels: Kernels) -> Result<u32, Error> {
    kernels.translate(tcp)
}

/// What goes in as sent, and what as unsent.
pub(super) fn split(tcp: &Tcp) -> (&[u8], &[u8]) {
    tcp.send.split_at(tcp.in_flight() as usize)
}

/// From this kernel on bit 0 of TCP_TIMESTAMP selects microseconds.
const MICROSECONDS: (u16, u16) = (6, 12);

/// The kernels of an image and of this host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub source: (u16, u16),
    pub here: (u16, u16),
}

impl Kernels {
    /// A clock of the source as it is set here.
    pub(super) fn clock(self, timestamp: u32) -> u32 {
        if self.source >= MICROSECONDS && self.here >= MICROSECONDS {
            timestamp
        } else {
            timestamp & !1
        }
    }

    /// From 6.12 on bit 0 of TCP_TIMESTAMP selects microseconds; before, it is as chance has it.
    fn translate(self, tcp: &Tcp) -> Result<u32, Error> {
        let knows = |kernel| kernel >= MICROSECONDS;
        match (knows(self.source), knows(self.here)) {
            (false, _) => Ok(tcp.timestamp & !1),
            (true, false) if tcp.timestamps && tcp.timestamp & 1 == 1 => Err(Error::Microseconds {
                socket: tcp.to_string(),
                major: self.here.0,
                minor: self.here.1,
            }),
            _ => Ok(tcp.timestamp),
        }
    }
}

/// The head of struct tcp_info.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Info {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    wscale: u8,
    flags: u8,
    pub(super) rto: u32,
    ato: u32,
    snd_mss: u32,
    rcv_mss: u32,
    unacked: u32,
    sacked: u32,
    lost: u32,
    retrans: u32,
    fackets: u32,
    last: [u32; 4],
    pmtu: u32,
    rcv_ssthresh: u32,
    rtt: u32,
    rttvar: u32,
    snd_ssthresh: u32,
    snd_cwnd: u32,
}

fn set_negotiated(fd: &OwnedFd, tcp: &Tcp) -> Result<(), Error> {
    const MSS: u32 = 2;
    const WINDOW: u32 = 3;
    const SACK_PERMITTED: u32 = 4;
    const TIMESTAMP: u32 = 8;
    let mut options = vec![[MSS, tcp.mss]];
    if let Some((snd, rcv)) = tcp.wscale {
        options.push([WINDOW, u32::from(snd) | u32::from(rcv) << 16]);
    }
    if tcp.sack {
        options.push([SACK_PERMITTED, 0]);
    }
    if tcp.timestamps {
        options.push([TIMESTAMP, 0]);
    }
    sockopt::set_value(fd, TCP, libc::TCP_REPAIR_OPTIONS, options.as_slice())
        .on("setting TCP_REPAIR_OPTIONS", tcp)
}

/// Room for the queues whatever their segments looked like at the source: a refill that finds none would hang.
fn force_buffers(fd: &OwnedFd, tcp: &Tcp) -> Result<(), Error> {
    let room = |size: i32, queue: usize| {
        let need = queue.saturating_mul(2).saturating_add(64 << 10);
        (size / 2).max(i32::try_from(need).unwrap_or(i32::MAX / 2))
    };
    let common = &tcp.common;
    sockopt::set_int(
        fd,
        SOL,
        libc::SO_SNDBUFFORCE,
        room(common.sndbuf, tcp.send.len()),
    )
    .on("setting SO_SNDBUFFORCE", tcp)?;
    sockopt::set_int(
        fd,
        SOL,
        libc::SO_RCVBUFFORCE,
        room(common.rcvbuf, tcp.recv.len()),
    )
    .on("setting SO_RCVBUFFORCE", tcp)
}

fn seq(len: usize) -> Result<u32, Error> {
    u32::try_from(len).map_err(|e| Error::Namespace(io::Error::other(e)))
}
