//! TCP connections, by TCP_REPAIR (net/ipv4/tcp.c, do_tcp_setsockopt and tcp_repair_*).
//!
//! The order of [`rebuild`] is the kernel's: sequence numbers only in CLOSE; bind with SK_FORCE_REUSE, which TCP_REPAIR sets and any
//! SO_REUSEADDR would overwrite; options only before anything was sent; the restored sent data is cut by the mss that the connect
//! knew, so TCP_MAXSEG comes before it and goes after the refill.
//!
//! What had left goes in as sent, to the last byte: a peer that has received more than our snd_nxt is not heard, neither its ACKs nor its
//! data (tcp_ack, "ACK of unsent data"), and if the congestion window, 10 after a restore, does not let the difference go, neither side
//! ever gets on. The stack does not find restored segments lost either, for they carry no send time: the opening sends them once more
//! by itself (see `inject`). The peer's window goes in as 0: so nothing leaves before the opening tells it.
use std::{io, os::fd::OwnedFd};

use netmig_core::{
    image::v1::sock::{Common, Endpoint, Tcp, TcpState, Window},
    socket::{Kind, State},
};
use nix::sys::socket::{MsgFlags, bind, connect, recv, send};
use std::os::fd::AsRawFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    common,
    diag::{Found, Name},
    error::{Error, On},
    live::Live,
    option::{self, Refused, When},
};
use crate::sys::sockopt::{
    self,
    number::{
        SO_BUF_LOCK, SO_PEEK_OFF, TCP_NO_QUEUE, TCP_RECV_QUEUE, TCP_REPAIR_OFF_NO_WP,
        TCP_SEND_QUEUE,
    },
};

const SOL: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::SOL_TCP;

/// Bytes handed to the kernel at once: a receive queue takes at most 17 pages a call (tcp_send_rcvq).
const CHUNK: usize = 32 << 10;

/// Reads one connection. It leaves repair whatever happens.
pub(super) fn dump(fd: &OwnedFd, common: Common, socket: &Found) -> Result<Tcp, Error> {
    let (Name::Inet(local), Name::Inet(peer)) = (&socket.local, &socket.peer) else {
        return Err(Error::Malformed {
            what: format!("the addresses of {socket}"),
        });
    };
    let mut tcp = Tcp {
        common,
        state: TcpState::Established,
        shut_read: socket.shutdown & 1 != 0,
        local: *local,
        peer: *peer,
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
        timestamp: 0,
        window: Window::default(),
        peer_window: 0,
        ts_recent: None,
        congestion: String::new(),
        cwnd: 0,
        ssthresh: 0,
        rtt: 0,
        window_clamp: 0,
    };
    refresh(fd, &mut tcp)?;
    Ok(tcp)
}

/// Reads everything that changes while packets arrive.
pub(super) fn refresh(fd: &OwnedFd, tcp: &mut Tcp) -> Result<(), Error> {
    let name = tcp.to_string();
    let congestion =
        sockopt::bytes(fd, TCP, libc::TCP_CONGESTION, 16).on("reading TCP_CONGESTION", &name)?;
    tcp.congestion = String::from_utf8_lossy(&congestion)
        .trim_end_matches('\0')
        .to_owned();
    tcp.window_clamp =
        sockopt::read(fd, TCP, libc::TCP_WINDOW_CLAMP).on("reading TCP_WINDOW_CLAMP", &name)?;
    // With an offset MSG_PEEK would begin there. TCP has none before 6.9 (sk_getsockopt: no set_peek_off).
    let peek = match sockopt::int(fd, SOL, SO_PEEK_OFF) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => -1,
        read => read.on("reading SO_PEEK_OFF", &name)?,
    };
    if peek >= 0 {
        sockopt::set_int(fd, SOL, SO_PEEK_OFF, -1).on("setting SO_PEEK_OFF", &name)?;
    }
    let repair = Repair::enter(fd, tcp.common.reuseaddr, &name)?;
    let read = repair.read(tcp);
    let left = repair.leave();
    if peek >= 0 {
        sockopt::set_int(fd, SOL, SO_PEEK_OFF, peek).on("setting SO_PEEK_OFF back", &name)?;
    }
    read.and(left)
}

/// Reads the queues of a connection that is known by its ends.
pub(super) fn read(
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

/// What a keeper has to know of a connection; none if it is not (or not only) established, or filters what comes.
pub(super) fn live(fd: &OwnedFd, local: Endpoint, peer: Endpoint) -> Result<Option<Live>, Error> {
    let name = format!("tcp {local} -> {peer}");
    // struct tcp_info: advmss at 84, bytes_received at 128.
    let info: [u8; 136] = sockopt::read(fd, TCP, libc::TCP_INFO).on("reading TCP_INFO", &name)?;
    let (options, scales) = (info[5], info[6]);
    // A filter might drop what is given to it later.
    let filtered = !sockopt::filter(fd).is_ok_and(|filter| filter.is_empty());
    if State::from_kernel(info[0]) != State::Established || filtered {
        return Ok(None);
    }
    let reuseaddr = sockopt::int(fd, SOL, libc::SO_REUSEADDR).on("reading SO_REUSEADDR", &name)?;
    let repair = Repair::enter(fd, reuseaddr, &name)?;
    let read = || -> Result<Live, Error> {
        let [_, _, max_window, rcv_wnd, rcv_wup]: [u32; 5] =
            sockopt::read(fd, TCP, libc::TCP_REPAIR_WINDOW)
                .on("reading TCP_REPAIR_WINDOW", &name)?;
        let stamp =
            sockopt::read(fd, TCP, libc::TCP_TIMESTAMP).on("reading TCP_TIMESTAMP", &name)?;
        repair.queue(TCP_SEND_QUEUE)?;
        let write_seq = repair.seq()?;
        let queued = sockopt::queue_len(fd, libc::TIOCOUTQ).on("reading SIOCOUTQ", &name)?;
        let unsent = sockopt::queue_len(fd, libc::SIOCOUTQNSD as libc::Ioctl)
            .on("reading SIOCOUTQNSD", &name)?;
        repair.queue(TCP_RECV_QUEUE)?;
        let rcv_nxt = repair.seq()?;
        repair.queue(TCP_NO_QUEUE)?;
        let [a, b, c, d] = [info[84], info[85], info[86], info[87]];
        let mut received = [0; 8];
        received.copy_from_slice(&info[128..]);
        Ok(Live {
            local: local.canonical(),
            peer: peer.canonical(),
            snd_una: write_seq.wrapping_sub(seq(queued)?),
            snd_nxt: write_seq.wrapping_sub(seq(unsent)?),
            rcv_nxt,
            rcv_wup,
            rcv_wnd,
            max_window,
            stamp: (options & 1 != 0).then_some(stamp),
            rcv_wscale: if options & 4 != 0 { scales >> 4 } else { 0 },
            rcv_mss: u32::from_ne_bytes([a, b, c, d]),
            received: u64::from_ne_bytes(received),
        })
    };
    let live = read();
    repair.leave()?;
    let live = live?;
    if live.rcv_nxt != live.rcv_wup {
        // An ACK is delayed: it leaves now, and the socket goes on as before (__tcp_sock_set_quickack: the low bit would keep it quick).
        const NOW: i32 = 2;
        sockopt::set_int(fd, TCP, libc::TCP_QUICKACK, NOW).on("setting TCP_QUICKACK", &name)?;
    }
    Ok(Some(live))
}

/// A socket in repair; leaves it when dropped, without a window probe.
struct Repair<'a> {
    fd: &'a OwnedFd,
    reuseaddr: i32,
    name: &'a str,
    inside: bool,
}

impl<'a> Repair<'a> {
    fn enter(fd: &'a OwnedFd, reuseaddr: i32, name: &'a str) -> Result<Self, Error> {
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR, 1).on("entering TCP_REPAIR", &name)?;
        Ok(Self {
            fd,
            reuseaddr,
            name,
            inside: true,
        })
    }

    /// Leaves repair and sets SO_REUSEADDR, which that clears.
    fn leave(mut self) -> Result<(), Error> {
        self.inside = false;
        leave(self.fd, self.reuseaddr, self.name)
    }

    /// It stays in repair until all are rebuilt: see [`release`].
    fn stay(mut self) {
        self.inside = false;
    }

    fn queue(&self, queue: i32) -> Result<(), Error> {
        sockopt::set_int(self.fd, TCP, libc::TCP_REPAIR_QUEUE, queue)
            .on("choosing a repair queue", &self.name)
    }

    fn read(&self, tcp: &mut Tcp) -> Result<(), Error> {
        let (fd, name) = (self.fd, self.name);
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
                    socket: name.to_owned(),
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
        let window: [u32; 5] = sockopt::read(fd, TCP, libc::TCP_REPAIR_WINDOW)
            .on("reading TCP_REPAIR_WINDOW", &name)?;
        let [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] = window;
        tcp.window = Window {
            snd_wl1,
            snd_wnd,
            max_window,
            rcv_wnd,
            rcv_wup,
        };
        tcp.peer_window = snd_wnd;

        self.queue(TCP_SEND_QUEUE)?;
        let end = self.seq()?;
        let queued = sockopt::queue_len(fd, libc::TIOCOUTQ).on("reading SIOCOUTQ", &name)?;
        let unsent = sockopt::queue_len(fd, libc::SIOCOUTQNSD as libc::Ioctl)
            .on("reading SIOCOUTQNSD", &name)?;
        // The kernel counts a FIN as a byte of the queue until it is acknowledged, and of the sequence space for ever.
        let fin = u32::from(tcp.state.fin_written());
        let fin_queued = usize::from(tcp.state.fin_written() && tcp.state != TcpState::FinWait2);
        tcp.write_seq = end.wrapping_sub(fin);
        tcp.send = self.peek(queued.saturating_sub(fin_queued), "send")?;
        tcp.snd_una = tcp.write_seq.wrapping_sub(seq(tcp.send.len())?);
        tcp.snd_nxt = tcp
            .write_seq
            .wrapping_sub(seq(unsent.saturating_sub(fin_queued))?);

        self.queue(TCP_RECV_QUEUE)?;
        tcp.rcv_nxt = self
            .seq()?
            .wrapping_sub(u32::from(tcp.state.fin_received()));
        let unread = sockopt::queue_len(fd, libc::FIONREAD).on("reading SIOCINQ", &name)?;
        tcp.recv = self.peek(unread, "receive")?;
        if tcp.window.rcv_wup == tcp.rcv_nxt.wrapping_add(1) {
            tcp.window.rcv_wup = tcp.rcv_nxt;
        }
        self.queue(TCP_NO_QUEUE)
    }

    fn seq(&self) -> Result<u32, Error> {
        sockopt::read(self.fd, TCP, libc::TCP_QUEUE_SEQ).on("reading TCP_QUEUE_SEQ", &self.name)
    }

    fn set_seq(&self, queue: i32, seq: u32) -> Result<(), Error> {
        self.queue(queue)?;
        sockopt::set_u32(self.fd, TCP, libc::TCP_QUEUE_SEQ, seq)
            .on("setting TCP_QUEUE_SEQ", &self.name)
    }

    fn peek(&self, len: usize, queue: &'static str) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        if len > 0 {
            let got = recv(
                self.fd.as_raw_fd(),
                &mut bytes,
                MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
            )
            .on("reading a queue", &self.name)?;
            if got != len {
                return Err(Error::Short {
                    socket: self.name.to_owned(),
                    queue,
                    got,
                    want: len,
                });
            }
        }
        Ok(bytes)
    }

    fn refill(&self, queue: i32, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.queue(queue)?;
        write(
            self.fd,
            bytes,
            if queue == TCP_SEND_QUEUE {
                "send"
            } else {
                "receive"
            },
            self.name,
        )
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        if self.inside
            && let Err(e) = leave(self.fd, self.reuseaddr, self.name)
        {
            tracing::error!(
                "{e}: {}",
                std::error::Error::source(&e)
                    .map(ToString::to_string)
                    .unwrap_or_default()
            );
        }
    }
}

fn leave(fd: &OwnedFd, reuseaddr: i32, name: &str) -> Result<(), Error> {
    sockopt::set_int(fd, TCP, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
        .on("leaving TCP_REPAIR", &name)?;
    sockopt::set_int(fd, SOL, libc::SO_REUSEADDR, reuseaddr).on("setting SO_REUSEADDR", &name)
}

/// Rebuilds a connection in a closed socket and leaves it in repair: first half of a restore. What CRIU left of its shutdown is undone.
/// `ends`: its two ends as they are called here.
pub(super) fn rebuild(
    fd: &OwnedFd,
    tcp: &Tcp,
    ends: [Endpoint; 2],
    kernels: Kernels,
) -> Result<Vec<Refused>, Error> {
    let name = tcp.to_string();
    let common = &tcp.common;
    let timestamp = kernels.translate(tcp)?;
    sockopt::disconnect(fd).on("disconnecting", &name)?;
    // The timers that could end the connection behind the closed gate come at the opening.
    sockopt::set_int(fd, SOL, libc::SO_KEEPALIVE, 0).on("setting SO_KEEPALIVE", &name)?;
    sockopt::set_int(fd, TCP, libc::TCP_USER_TIMEOUT, 0).on("setting TCP_USER_TIMEOUT", &name)?;
    sockopt::set_int(fd, SOL, libc::SO_REUSEPORT, common.reuseport)
        .on("setting SO_REUSEPORT", &name)?;
    if !common.device.is_empty() {
        sockopt::set(fd, SOL, libc::SO_BINDTODEVICE, common.device.as_bytes())
            .on("setting SO_BINDTODEVICE", &name)?;
    }
    let mut refused = option::apply(fd, &common.settings, When::First, &name);

    let repair = Repair::enter(fd, common.reuseaddr, &name)?;
    force_buffers(fd, tcp, &name)?;
    let (sent, _) = split(tcp);
    repair.set_seq(TCP_SEND_QUEUE, tcp.snd_una)?;
    repair.set_seq(
        TCP_RECV_QUEUE,
        tcp.rcv_nxt.wrapping_sub(seq(tcp.recv.len())?),
    )?;
    if let Err(source) = sockopt::set(fd, TCP, libc::TCP_CONGESTION, tcp.congestion.as_bytes()) {
        refused.push(Refused {
            option: format!("TCP_CONGESTION {}", tcp.congestion),
            socket: name.clone(),
            source,
        });
    }
    sockopt::set_u32(fd, TCP, libc::TCP_MAXSEG, tcp.mss.clamp(88, 32767))
        .on("setting TCP_MAXSEG", &name)?;
    bind(fd.as_raw_fd(), common::address(ends[0]).as_ref()).on("binding", &name)?;
    connect(fd.as_raw_fd(), common::address(ends[1]).as_ref()).on("connecting in repair", &name)?;
    set_negotiated(fd, tcp, &name)?;
    sockopt::set_u32(fd, TCP, libc::TCP_TIMESTAMP, timestamp).on("setting TCP_TIMESTAMP", &name)?;
    repair.refill(TCP_RECV_QUEUE, &tcp.recv)?;
    repair.refill(TCP_SEND_QUEUE, sent)?;
    repair.queue(TCP_NO_QUEUE)?;
    let w = tcp.window;
    let window = [
        w.snd_wl1,
        0,
        w.max_window.max(tcp.peer_window),
        w.rcv_wnd,
        w.rcv_wup,
    ];
    sockopt::set_value(fd, TCP, libc::TCP_REPAIR_WINDOW, &window)
        .on("setting TCP_REPAIR_WINDOW", &name)?;
    repair.stay();
    Ok(refused)
}

/// Second half of a restore: leaves repair behind the closed gate and writes what had not been sent.
pub(super) fn release(fd: &OwnedFd, tcp: &Tcp) -> Result<Vec<Refused>, Error> {
    let name = tcp.to_string();
    leave(fd, tcp.common.reuseaddr, &name)?;
    // rcv_ssthresh is not part of the repair state: the clamp going up raises it to the window that was offered
    // (tcp_set_window_clamp), and so the window does not have to grow anew.
    for clamp in [1 << 30, tcp.window_clamp] {
        sockopt::set_u32(fd, TCP, libc::TCP_WINDOW_CLAMP, clamp)
            .on("setting TCP_WINDOW_CLAMP", &name)?;
    }
    let refused = option::apply(fd, &tcp.common.settings, When::Connected, &name);
    let (_, unsent) = split(tcp);
    write(fd, unsent, "send", &name)?;
    sockopt::set_u32(fd, TCP, libc::TCP_MAXSEG, 0).on("releasing TCP_MAXSEG", &name)?;
    sockopt::set_int(fd, SOL, libc::SO_SNDBUFFORCE, tcp.common.sndbuf / 2)
        .on("setting SO_SNDBUFFORCE", &name)?;
    sockopt::set_int(fd, SOL, libc::SO_RCVBUFFORCE, tcp.common.rcvbuf / 2)
        .on("setting SO_RCVBUFFORCE", &name)?;
    sockopt::set_int(fd, SOL, SO_BUF_LOCK, tcp.common.buf_lock & 3)
        .on("setting SO_BUF_LOCK", &name)?;
    Ok(refused)
}

/// Gives a half-built socket back as the engine made it: closed. In repair this sends nothing.
pub(super) fn discard(fd: &OwnedFd, tcp: &Tcp) -> Result<(), Error> {
    let name = tcp.to_string();
    sockopt::set_int(fd, TCP, libc::TCP_REPAIR, 1).on("entering TCP_REPAIR", &name)?;
    sockopt::disconnect(fd).on("disconnecting", &name)?;
    leave(fd, tcp.common.reuseaddr, &name)
}

/// The stamp that the connection would send now.
pub(super) fn stamp(fd: &OwnedFd, tcp: &Tcp) -> Result<u32, Error> {
    sockopt::read(fd, TCP, libc::TCP_TIMESTAMP).on("reading TCP_TIMESTAMP", tcp)
}

/// What goes in as sent, and what as unsent.
pub(super) fn split(tcp: &Tcp) -> (&[u8], &[u8]) {
    tcp.send.split_at(tcp.in_flight() as usize)
}

/// The kernels of an image and of this host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub source: (u16, u16),
    pub here: (u16, u16),
}

impl Kernels {
    /// From 6.12 on bit 0 of TCP_TIMESTAMP selects microseconds; before, it is as chance has it.
    fn translate(self, tcp: &Tcp) -> Result<u32, Error> {
        const MICROSECONDS: (u16, u16) = (6, 12);
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
struct Info {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    wscale: u8,
    flags: u8,
    rto: u32,
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

fn set_negotiated(fd: &OwnedFd, tcp: &Tcp, name: &str) -> Result<(), Error> {
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
        .on("setting TCP_REPAIR_OPTIONS", &name)
}

/// Room for the queues whatever their segments looked like at the source: a refill that finds none would hang.
fn force_buffers(fd: &OwnedFd, tcp: &Tcp, name: &str) -> Result<(), Error> {
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
    .on("setting SO_SNDBUFFORCE", &name)?;
    sockopt::set_int(
        fd,
        SOL,
        libc::SO_RCVBUFFORCE,
        room(common.rcvbuf, tcp.recv.len()),
    )
    .on("setting SO_RCVBUFFORCE", &name)
}

fn write(fd: &OwnedFd, bytes: &[u8], queue: &'static str, name: &str) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes.len() {
        let end = bytes.len().min(done + CHUNK);
        match send(
            fd.as_raw_fd(),
            &bytes[done..end],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
        ) {
            Ok(0) | Err(nix::Error::EAGAIN) => {
                return Err(Error::Short {
                    socket: name.to_owned(),
                    queue,
                    got: done,
                    want: bytes.len(),
                });
            }
            Ok(n) => done += n,
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).on("refilling a queue", &name),
        }
    }
    Ok(())
}

fn seq(len: usize) -> Result<u32, Error> {
    u32::try_from(len).map_err(|e| Error::Namespace(io::Error::other(e)))
}
