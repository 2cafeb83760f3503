//! The container's sockets.
//!
//! Sequence numbers are TCP's own, mod 2^32, host order. Queues are bytes; lengths are bounded by [`Sockets::check`] before use.
mod check;
mod udp;

pub use check::Impossible;
pub use udp::{Datagram, Membership, Udp};

use super::queue;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, time::Duration};

/// Longest queue that an image may carry, in bytes.
pub const QUEUE_LIMIT: usize = 256 << 20;

/// Most sources that one multicast membership may name.
pub const SOURCE_LIMIT: usize = 4096;

/// All sockets of one container, as one dump found them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {
    /// Kernel of the source, major and minor: decides what a value in the image means (see [`Tcp::timestamp`]).
    pub kernel: (u16, u16),
    /// Interfaces of the source: what an [`Endpoint`]'s scope means.
    pub interfaces: Vec<Interface>,
    /// TCP connections.
    pub tcp: Vec<Tcp>,
    /// TCP connections whose connect() is under way.
    pub connecting: Vec<Connecting>,
    /// TCP connections in the accept queues of `listeners`, oldest first: no descriptor holds them.
    pub waiting: Vec<Tcp>,
    /// TCP connections that were closed while their FINs were under way, and that no descriptor holds. Nothing waits in their queues.
    pub orphans: Vec<Tcp>,
    /// TCP connections in TIME_WAIT, as they were before the peer's FIN, which follows at `rcv_nxt`.
    pub time_wait: Vec<Tcp>,
    /// TCP listeners. Under CRIU they come back on their descriptor by themselves.
    pub listeners: Vec<Listener>,
    /// UDP sockets.
    pub udp: Vec<Udp>,
    /// Connections with both ends in the container: indices into `tcp`. Both ends are reconciled (see [`Tcp`]).
    pub pairs: Vec<(u32, u32)>,
    /// TCP connections that are over, and that descriptors hold.
    pub over: Vec<Over>,
    /// TCP connections in the SYN queues of `listeners`.
    pub half_open: Vec<HalfOpen>,
    /// What is not carried, in words.
    pub left: Vec<Left>,
}

/// Who holds a socket: the same at both hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// Pid inside the container's pid namespace.
    pub pid: i32,
    /// File descriptor.
    pub fd: i32,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} fd {}", self.pid, self.fd)
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Index at the source.
    pub index: u32,
    /// Name, the same at both hosts.
    pub name: String,
}

/// One end of a connection. An IPv4-mapped address stays an IPv6 one here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address.
    pub ip: IpAddr,
    /// Port, host order.
    pub port: u16,
    /// IPv6 scope (interface index) of a link-local address, else 0; see [`Sockets::interfaces`].
    pub scope: u32,
}

impl Endpoint {
    /// The same end with an IPv4-mapped address as the IPv4 address that is on the wire.
    pub fn canonical(self) -> Self {
        Self {
            ip: self.ip.to_canonical(),
            ..self
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", self.port),
            IpAddr::V6(ip) if self.scope != 0 => write!(f, "[{ip}%{}]:{}", self.scope, self.port),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}", self.port),
        }
    }
}

/// A socket option that differed from a new socket's: its number in the table of options, and its value as the kernel gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Level as in setsockopt(2).
    pub level: i32,
    /// Option as in setsockopt(2).
    pub name: i32,
    /// Value, native byte order of the source.
    pub value: Vec<u8>,
}

/// A clock of [`Tcp::timestamp`]'s kind so much later. Bit 0 is no part of the time and stays: set, it counts microseconds, else milliseconds.
#[must_use]
pub fn later(timestamp: u32, by: Duration) -> u32 {
    let unit = timestamp & 1;
    let ticks = if unit == 1 {
        by.as_micros()
    } else {
        by.as_millis()
    };
    // It goes round, as the clock does.
    timestamp.wrapping_add(ticks as u32) & !1 | unit
}

/// What every kind of socket has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// Every descriptor that refers to it, in all processes of the container; at least one.
    pub holders: Vec<Holder>,
    /// Inode at the source: names the socket in reports.
    pub inode: u64,
    /// AF_INET6 socket (which may carry IPv4-mapped addresses).
    pub v6: bool,
    /// SO_REUSEADDR, read before TCP_REPAIR clears it.
    pub reuseaddr: i32,
    /// SO_REUSEPORT: CRIU leaves 1.
    pub reuseport: i32,
    /// SO_BINDTODEVICE; empty: none.
    pub device: String,
    /// Buffer sizes as getsockopt gives them (twice what was set).
    pub sndbuf: i32,
    /// See `sndbuf`.
    pub rcvbuf: i32,
    /// SO_BUF_LOCK: bit 0 send, bit 1 receive buffer set by the program.
    pub buf_lock: i32,
    /// Other options.
    pub settings: Vec<Setting>,
    /// TCP_MD5SIG.
    pub keys: Vec<Key>,
}

/// Longest TCP-MD5 key, bytes (TCP_MD5SIG_MAXKEYLEN).
pub const KEY_LIMIT: usize = 80;

/// A TCP-MD5 key (RFC 2385).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Peers that it is for.
    pub ip: IpAddr,
    /// How many bits of `ip` count.
    pub prefix: u8,
    /// The key itself.
    pub key: Vec<u8>,
}

impl fmt::Debug for Key {
    /// Without the key: it is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key for {}/{}", self.ip, self.prefix)
    }
}

/// State of a TCP connection with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcpState {
    /// Connected both ways.
    Established,
    /// The peer has sent its FIN.
    CloseWait,
    /// Shut down for writing; the peer has not acknowledged the FIN.
    FinWait1,
    /// Shut down for writing, and the peer has acknowledged the FIN.
    FinWait2,
    /// Shut down for writing before the peer's FIN came; ours is not acknowledged.
    Closing,
    /// Shut down for writing after the peer's FIN came; ours is not acknowledged.
    LastAck,
}

impl TcpState {
    /// The peer's FIN has come.
    pub fn fin_received(self) -> bool {
        matches!(self, Self::CloseWait | Self::Closing | Self::LastAck)
    }

    /// The program has shut down its side.
    pub fn fin_written(self) -> bool {
        !matches!(self, Self::Established | Self::CloseWait)
    }
}

/// A TCP connection.
///
/// `send` holds the bytes from `snd_una` to `write_seq`; those up to `snd_nxt` had been sent. `recv` holds the bytes that end at
/// `rcv_nxt`. Of a pair whose ends are both in the container, what the other end already has is gone from `send`, and the rest counts as
/// never sent: `snd_nxt == snd_una == the other's rcv_nxt`. No sequence number here counts a FIN: `state` says which were exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// Descriptors, options, buffers.
    pub common: Common,
    /// State.
    pub state: TcpState,
    /// The program has shut down its reading side.
    pub shut_read: bool,
    /// Own end.
    pub local: Endpoint,
    /// The peer.
    pub peer: Endpoint,
    /// First byte not acknowledged.
    pub snd_una: u32,
    /// First byte not sent.
    pub snd_nxt: u32,
    /// First byte not written.
    pub write_seq: u32,
    /// Next byte expected.
    pub rcv_nxt: u32,
    /// Sent and unsent bytes.
    #[serde(with = "queue")]
    pub send: Vec<u8>,
    /// Bytes that the program has not read.
    #[serde(with = "queue")]
    pub recv: Vec<u8>,
    /// mss_clamp: the peer's limit, timestamps not subtracted.
    pub mss: u32,
    /// Largest payload of one segment at the moment of the dump (mss_cache).
    pub snd_mss: u32,
    /// Window scales: what the peer's windows, and what ours, are shifted by; none: not negotiated.
    pub wscale: Option<(u8, u8)>,
    /// SACK was negotiated.
    pub sack: bool,
    /// Timestamps were negotiated.
    pub timestamps: bool,
    /// ECN was negotiated: not carried.
    pub ecn: bool,
    /// TCP_TIMESTAMP: the clock that our stamps come from. From 6.12 on bit 0 says that it ticks in microseconds.
    pub timestamp: u32,
    /// TCP_REPAIR_WINDOW.
    pub window: Window,
    /// The peer's true window in bytes, where it is known better than by `window.snd_wnd` (a gate that drained has rewritten that).
    pub peer_window: u32,
    /// The peer's newest timestamp that was accepted, where it is known.
    pub ts_recent: Option<u32>,
    /// TCP_CONGESTION; empty: not known, the target's own.
    pub congestion: String,
    /// Congestion window in segments.
    pub cwnd: u32,
    /// Slow start threshold in segments.
    pub ssthresh: u32,
    /// Smoothed round trip in microseconds.
    pub rtt: u32,
    /// TCP_WINDOW_CLAMP.
    pub window_clamp: u32,
}

/// The five fields of struct tcp_repair_window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Sequence number of the segment that last changed snd_wnd.
    pub snd_wl1: u32,
    /// The peer's window, bytes.
    pub snd_wnd: u32,
    /// Largest window the peer has ever offered.
    pub max_window: u32,
    /// Our window, bytes from `rcv_wup`.
    pub rcv_wnd: u32,
    /// rcv_nxt when it was offered.
    pub rcv_wup: u32,
}

impl Tcp {
    /// An established one of which nothing else is known yet.
    pub fn between(common: Common, local: Endpoint, peer: Endpoint) -> Self {
        Self {
            common,
            state: TcpState::Established,
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
            timestamp: 0,
            window: Window::default(),
            peer_window: 0,
            ts_recent: None,
            congestion: String::new(),
            cwnd: 0,
            ssthresh: 0,
            rtt: 0,
            window_clamp: 0,
        }
    }

    /// The same without its queues.
    pub fn head(&self) -> Self {
        Self {
            common: self.common.clone(),
            state: self.state,
            shut_read: self.shut_read,
            local: self.local,
            peer: self.peer,
            snd_una: self.snd_una,
            snd_nxt: self.snd_nxt,
            write_seq: self.write_seq,
            rcv_nxt: self.rcv_nxt,
            send: Vec::new(),
            recv: Vec::new(),
            mss: self.mss,
            snd_mss: self.snd_mss,
            wscale: self.wscale,
            sack: self.sack,
            timestamps: self.timestamps,
            ecn: self.ecn,
            timestamp: self.timestamp,
            window: self.window,
            peer_window: self.peer_window,
            ts_recent: self.ts_recent,
            congestion: self.congestion.clone(),
            cwnd: self.cwnd,
            ssthresh: self.ssthresh,
            rtt: self.rtt,
            window_clamp: self.window_clamp,
        }
    }

    /// Bytes that were sent and not acknowledged.
    pub fn in_flight(&self) -> u32 {
        self.snd_nxt.wrapping_sub(self.snd_una)
    }
}

/// A TCP connection whose connect() is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connecting {
    /// Descriptors, options, buffers.
    pub common: Common,
    /// Own end.
    pub local: Endpoint,
    /// Where to.
    pub peer: Endpoint,
    /// Sequence number of its SYN.
    pub isn: u32,
    /// As [`Tcp::timestamp`].
    pub timestamp: u32,
    /// How long before the dump its last SYN was sent, in ms.
    pub sent_ms: u32,
    /// TCP_CONGESTION.
    pub congestion: String,
}

impl fmt::Display for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp {} -> {} (connecting)", self.local, self.peer)
    }
}

/// A TCP connection that is over, in CLOSE: its program has not read everything, or not closed it yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Over {
    /// Descriptors, options, buffers.
    pub common: Common,
    /// Own end, as getsockname(2) gives it.
    pub local: Endpoint,
    /// Bytes that the program has not read.
    #[serde(with = "queue")]
    pub recv: Vec<u8>,
    /// It has not been told yet that the connection broke (`sk_err`): behind its bytes is an error and not the end.
    pub failed: bool,
}

impl Over {
    /// What is missing where it cannot be made again.
    pub fn loses(&self) -> String {
        format!("its {} unread bytes and its end are lost", self.recv.len())
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp {} (over)", self.local)
    }
}

/// A TCP connection in a SYN queue (SYN_RECV): our SYN-ACK is out, and its ACK has not come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfOpen {
    /// Own end.
    pub local: Endpoint,
    /// The peer.
    pub peer: Endpoint,
    /// Sequence number of our SYN-ACK.
    pub isn: u32,
    /// Sequence number of the peer's SYN.
    pub peer_isn: u32,
    /// Our window in the SYN-ACK, bytes.
    pub window: u32,
    /// The peer's limit of a segment, bytes.
    pub mss: u16,
    /// As [`Tcp::wscale`].
    pub wscale: Option<(u8, u8)>,
    /// SACK is agreed upon.
    pub sack: bool,
    /// ECN is agreed upon.
    pub ecn: bool,
    /// The peer's timestamp; none: timestamps are not agreed upon.
    pub ts_recent: Option<u32>,
    /// As [`Tcp::timestamp`].
    pub timestamp: u32,
}

impl fmt::Display for HalfOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp {} -> {} (half open)", self.local, self.peer)
    }
}

/// A TCP listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Descriptors, options, buffers.
    pub common: Common,
    /// Where it listens.
    pub local: Endpoint,
    /// Length of its accept queue.
    pub backlog: u32,
    /// Connections that waited in it.
    pub waiting: u32,
}

/// A socket of the namespace that the image does not carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The socket, in words.
    pub socket: String,
    /// Why, and what becomes of it.
    pub why: String,
}

impl fmt::Display for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp {} -> {}", self.local, self.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_goes_on_in_its_own_unit() {
        const STEP: Duration = Duration::from_millis(27);
        for (begin, ticks) in [(u32::MAX - 101, 27), (u32::MAX - 100, 27_000)] {
            let unit = begin & 1;
            assert_eq!(unit == 1, ticks == 27_000);
            let mut clock = begin;
            for steps in 1..100_u32 {
                clock = later(clock, STEP);
                assert_eq!(clock & 1, unit);
                let behind = begin.wrapping_add(steps * ticks).wrapping_sub(clock);
                assert!(behind <= steps, "each step cuts off one at most: {behind}");
            }
        }
    }
}
