//! Packets that no socket sends: for the container's own stack, as if they had come from the network, and one for the peer.
//!
//! A raw socket with its own IP header sends them. To the container's own address the route is local: they go over `lo`, keep
//! that route (no reverse path check: ip_rcv_finish_core, ip6_rcv_finish), and count as arrived at the address's own device
//! (inet_iif, inet6_iif). So it works with any kind of link, and nothing outside takes part.
use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
};

use netmig_core::image::v1::{
    conntrack::Translated,
    sock::{Datagram, Endpoint, HalfOpen, Tcp, TcpState},
};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage,
    sendmsg, socket,
};

use super::{
    live::Live,
    md5,
    packet::{
        ACK, FIN, HIGHEST, Hops, PROTO_TCP, RST, SIGNATURE, Segment, checksum, packet, syn_ack,
    },
};
use crate::sys::sockopt;

const PSH: u8 = 0x08;
const PROTO_UDP: u8 = 17;
const PROTO_UDPLITE: u8 = 136;

/// The raw sockets, one a family, made when they are first needed.
#[derive(Debug, Default)]
pub(super) struct Injector {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
    translated: Vec<Translated>,
}

impl Injector {
    /// What comes from the network comes to the addresses that it knows: the namespace's own filter then translates it, as every packet
    /// of the connection. Sent to the socket's addresses it would be a connection that the filter has never seen.
    pub(super) fn translating(translated: &[Translated]) -> Self {
        Self {
            translated: translated.to_vec(),
            ..Self::default()
        }
    }

    /// Source and destination as the network has them.
    fn outside(&self, from: Endpoint, to: Endpoint) -> (Endpoint, Endpoint) {
        let is = |at: SocketAddr, end: Endpoint| at.ip() == end.ip && at.port() == end.port;
        let as_known = |at: SocketAddr, end: Endpoint| Endpoint {
            ip: at.ip(),
            port: at.port(),
            ..end
        };
        let known = self
            .translated
            .iter()
            .find(|t| is(t.socket.0, to) && is(t.socket.1, from));
        known.map_or((from, to), |t| {
            (as_known(t.network.1, from), as_known(t.network.0, to))
        })
    }

    /// Tells our own stack the peer's window: an ACK of what it has acknowledged already. Without a timestamp, unless the peer's newest
    /// one is known: a later one would make PAWS drop what is still to come.
    pub(super) fn window(&mut self, tcp: &Tcp) -> io::Result<()> {
        self.own(tcp, tcp.rcv_nxt, tcp.snd_una, peer_window(tcp), ACK)
    }

    /// Delivers the ACK that ends a handshake, as if nothing had come after it.
    pub(super) fn accept(&mut self, tcp: &Tcp) -> io::Result<()> {
        let first = tcp.rcv_nxt.wrapping_sub(tcp.recv.len() as u32);
        self.own(tcp, first, tcp.snd_una, peer_window(tcp), ACK)
    }

    /// Delivers what has come and was not read, in segments as the peer might have sent them.
    pub(super) fn unread(&mut self, tcp: &Tcp) -> io::Result<()> {
        let mut seq = tcp.rcv_nxt.wrapping_sub(tcp.recv.len() as u32);
        for payload in tcp.recv.chunks(tcp.snd_mss.clamp(500, 1400) as usize) {
            self.own_with(tcp, seq, tcp.snd_una, peer_window(tcp), ACK | PSH, payload)?;
            seq = seq.wrapping_add(payload.len() as u32);
        }
        Ok(())
    }

    /// Delivers the FIN that the peer had sent.
    pub(super) fn fin(&mut self, tcp: &Tcp) -> io::Result<()> {
        self.own(tcp, tcp.rcv_nxt, tcp.snd_una, peer_window(tcp), ACK | FIN)
    }

    /// Delivers a RST of the peer's.
    pub(super) fn reset(&mut self, tcp: &Tcp) -> io::Result<()> {
        self.own(tcp, tcp.rcv_nxt, tcp.snd_una, 0, RST | ACK)
    }

    /// Delivers the ACK of our FIN, which the stack has just sent once more.
    pub(super) fn fin_acknowledged(&mut self, tcp: &Tcp) -> io::Result<()> {
        self.own(
            tcp,
            tcp.rcv_nxt,
            tcp.write_seq.wrapping_add(1),
            peer_window(tcp),
            ACK,
        )
    }

    /// Delivers the FIN that the peer had sent after it had acknowledged ours.
    pub(super) fn last_fin(&mut self, tcp: &Tcp) -> io::Result<()> {
        let acknowledged = tcp.write_seq.wrapping_add(1);
        self.own(tcp, tcp.rcv_nxt, acknowledged, peer_window(tcp), ACK | FIN)
    }

    /// Makes our own stack tell the peer its window: an empty segment from before the last window that was announced, which it answers with an
    /// ACK that is right in every field (tcp_send_dupack). One at rcv_nxt - 1, a keepalive (RFC 9293, 3.8.4), would not be old where an ACK is
    /// still delayed (tcp_sequence): not answered, but its window taken. At most one in 500 ms for a socket (tcp_oow_rate_limited).
    pub(super) fn keepalive(&mut self, tcp: &Tcp) -> io::Result<()> {
        // What waits in an accept queue is delivered anew, and may be acknowledged late here.
        let first = tcp.rcv_nxt.wrapping_sub(tcp.recv.len() as u32);
        let told = tcp.window.rcv_wup;
        let oldest = if (told.wrapping_sub(first) as i32) < 0 {
            told
        } else {
            first
        };
        self.own(
            tcp,
            oldest.wrapping_sub(1),
            tcp.snd_una,
            peer_window(tcp),
            ACK,
        )
    }

    /// The same from before the last window that was announced, so that it is old also where an ACK is still delayed.
    pub(super) fn old(&mut self, live: &Live) -> io::Result<()> {
        self.segment(&Segment {
            from: live.peer,
            to: live.local,
            seq: live.rcv_wup.wrapping_sub(1),
            ack: live.snd_una,
            window: 0,
            flags: ACK,
            stamps: None,
            payload: &[],
            key: None,
        })
    }

    /// Acknowledges to the peer what has come, in the stack's place, which would wait for a timer; the window ends where it was announced to,
    /// or is one segment long if the peer is `invited` to send one. Without the peer's stamp: nothing is measured by it.
    pub(super) fn acknowledge(&mut self, live: &Live, invited: bool) -> io::Result<()> {
        let window = if invited {
            let window = (live.rcv_mss >> live.rcv_wscale) + 1;
            u16::try_from(window).unwrap_or(u16::MAX)
        } else {
            up_to(live.edge(), live.rcv_nxt, live.rcv_wscale)
        };
        self.outward(&Segment {
            from: live.local,
            to: live.peer,
            seq: live.snd_nxt,
            ack: live.rcv_nxt,
            window,
            flags: ACK,
            // Not before any that the stack has sent (PAWS): the last bit is not known.
            stamps: live.stamp.map(|stamp| (stamp | 1, 0)),
            payload: &[],
            key: None,
        })
    }

    /// The SYN-ACK of a handshake under way, once more.
    pub(super) fn syn_ack(&mut self, half: &HalfOpen) -> io::Result<()> {
        let (from, to) = (half.local.canonical(), half.peer.canonical());
        self.send(from, to, PROTO_TCP, HIGHEST, &syn_ack(half), true)
    }

    /// Asks the peer for its ACK and window: one byte of old data, seq = snd_una - 1, which it drops and answers. The stack's own probe
    /// has no payload, and a peer that was probed within the last 500 ms does not answer that (tcp_oow_rate_limited); data it always
    /// answers. `stamp`: what the connection would send now.
    pub(super) fn probe(&mut self, tcp: &Tcp, stamp: u32) -> io::Result<()> {
        self.peer(tcp, stamp, tcp.snd_una.wrapping_sub(1), &[0])
    }

    /// Sends what was in flight once more, from the byte on that follows those that are `acked`, as far as there is room for it. The stack does not do so before a
    /// timer: restored segments carry no send time, so RACK never finds them lost.
    pub(super) fn resend(
        &mut self,
        tcp: &Tcp,
        stamp: u32,
        flight: &[u8],
        acked: u32,
    ) -> io::Result<()> {
        let mut seq = tcp.snd_una.wrapping_add(acked);
        let flight = flight.get(acked as usize..).unwrap_or_default();
        // mss_cache leaves no room for a signature: the stack finds that out for each segment (tcp_current_mss).
        let signature = md5::key_for(&tcp.common, tcp.peer.ip).map_or(0, |_| SIGNATURE);
        let most = (tcp.snd_mss as usize).saturating_sub(signature).max(1);
        for payload in flight.chunks(most) {
            match self.peer(tcp, stamp, seq, payload) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => {
                    return Ok(());
                }
                sent => sent?,
            }
            seq = seq.wrapping_add(payload.len() as u32);
        }
        Ok(())
    }

    /// A segment to the peer. `stamp`: what the connection would send now.
    fn peer(&mut self, tcp: &Tcp, stamp: u32, seq: u32, payload: &[u8]) -> io::Result<()> {
        let shift = tcp.wscale.map_or(0, |(_, rcv)| rcv);
        let edge = tcp.window.rcv_wup.wrapping_add(tcp.window.rcv_wnd);
        self.outward(&Segment {
            from: tcp.local.canonical(),
            to: tcp.peer.canonical(),
            seq,
            ack: tcp.rcv_nxt,
            window: up_to(edge, tcp.rcv_nxt, shift),
            flags: ACK,
            stamps: tcp.timestamps.then(|| (stamp, tcp.ts_recent.unwrap_or(0))),
            payload,
            key: md5::key_for(&tcp.common, tcp.peer.ip),
        })
    }

    /// Delivers a datagram to `port`.
    pub(super) fn datagram(
        &mut self,
        datagram: &Datagram,
        port: u16,
        lite: bool,
    ) -> io::Result<()> {
        let (from, to) = (
            datagram.from.canonical(),
            Endpoint {
                ip: datagram.to,
                port,
                scope: datagram.from.scope,
            }
            .canonical(),
        );
        let (from, to) = self.outside(from, to);
        let length = u16::try_from(8 + datagram.data.len()).map_err(io::Error::other)?;
        let mut udp = Vec::with_capacity(usize::from(length));
        for field in [from.port, to.port, length, 0] {
            udp.extend_from_slice(&field.to_be_bytes());
        }
        udp.extend_from_slice(&datagram.data);
        // UDP-Lite has the covered length in that place (RFC 3828): all of it, as UDP.
        let protocol = if lite { PROTO_UDPLITE } else { PROTO_UDP };
        let sum = match checksum(from.ip, to.ip, protocol, &udp) {
            0 => 0xffff, // RFC 768: 0 means that there is none
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        let hops = Hops {
            ttl: datagram.ttl.max(1),
            tos: datagram.tos,
        };
        self.send(from, to, protocol, hops, &udp, false)
    }

    /// A segment from the peer, without payload.
    fn own(&mut self, tcp: &Tcp, seq: u32, ack: u32, window: u16, flags: u8) -> io::Result<()> {
        self.own_with(tcp, seq, ack, window, flags, &[])
    }

    /// A segment from the peer.
    fn own_with(
        &mut self,
        tcp: &Tcp,
        seq: u32,
        ack: u32,
        window: u16,
        flags: u8,
        payload: &[u8],
    ) -> io::Result<()> {
        let (from, to) = self.outside(tcp.peer.canonical(), tcp.local.canonical());
        self.segment(&Segment {
            from,
            to,
            seq,
            ack,
            window,
            flags,
            stamps: tcp
                .ts_recent
                .filter(|_| tcp.timestamps)
                .map(|newest| (newest, 0)),
            payload,
            key: md5::key_for(&tcp.common, tcp.peer.ip),
        })
    }

    fn segment(&mut self, segment: &Segment<'_>) -> io::Result<()> {
        let bytes = segment.bytes();
        self.send(segment.from, segment.to, PROTO_TCP, HIGHEST, &bytes, false)
    }

    fn outward(&mut self, segment: &Segment<'_>) -> io::Result<()> {
        let bytes = segment.bytes();
        self.send(segment.from, segment.to, PROTO_TCP, HIGHEST, &bytes, true)
    }

    /// A packet `outward` goes by the route that its source has: the kernel does not look into the header for it (raw_sendmsg(), rawv6_sendmsg()), and a rule
    /// may lead what comes from one address another way than what comes from none.
    fn send(
        &mut self,
        from: Endpoint,
        to: Endpoint,
        protocol: u8,
        hops: Hops,
        payload: &[u8],
        outward: bool,
    ) -> io::Result<()> {
        let (slot, family) = match to.ip {
            IpAddr::V4(_) => (&mut self.v4, AddressFamily::Inet),
            IpAddr::V6(_) => (&mut self.v6, AddressFamily::Inet6),
        };
        let raw = match slot {
            Some(raw) => raw,
            None => slot.insert(raw_socket(family)?),
        };
        let packet = packet(from.ip, to.ip, protocol, hops, payload)?;
        let to = match to.ip {
            IpAddr::V4(ip) => SocketAddr::from((ip, 0)),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, 0, 0, to.scope).into(),
        };
        let source = Some(from.ip).filter(|_| outward);
        let (v4, v6) = (source.and_then(by_v4), source.and_then(by_v6));
        let source = (v4.as_ref().map(ControlMessage::Ipv4PacketInfo))
            .or(v6.as_ref().map(ControlMessage::Ipv6PacketInfo));
        sendmsg(
            raw.as_raw_fd(),
            &[IoSlice::new(&packet)],
            source.as_slice(),
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrStorage::from(to)),
        )?;
        Ok(())
    }
}

/// For IP_PKTINFO: the source of the route.
fn by_v4(source: IpAddr) -> Option<libc::in_pktinfo> {
    let IpAddr::V4(source) = source else {
        return None;
    };
    Some(libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr {
            s_addr: source.to_bits().to_be(),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    })
}

/// For IPV6_PKTINFO. What is local to a link leads there by itself.
fn by_v6(source: IpAddr) -> Option<libc::in6_pktinfo> {
    let IpAddr::V6(source) = source else {
        return None;
    };
    (!source.is_unicast_link_local()).then(|| libc::in6_pktinfo {
        ipi6_addr: libc::in6_addr {
            s6_addr: source.octets(),
        },
        ipi6_ifindex: 0,
    })
}

/// With room for what waits until the peer's link address is known.
fn raw_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    const ROOM: i32 = 32 << 20;
    let raw = socket(
        family,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )?;
    sockopt::set_int(&raw, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, ROOM)?;
    Ok(raw)
}

/// The peer's window as its header would have it. A FIN needs room for itself: one unit at least if it was acknowledged already.
fn peer_window(tcp: &Tcp) -> u16 {
    let shift = tcp.wscale.map_or(0, |(snd, _)| snd);
    let least = u32::from(tcp.state == TcpState::FinWait2);
    u16::try_from((tcp.peer_window >> shift).max(least)).unwrap_or(u16::MAX)
}

/// Our own window as its header has it: from the next byte to the right edge, 0 if that is behind it already.
fn up_to(edge: u32, next: u32, shift: u8) -> u16 {
    let window = edge.wrapping_sub(next);
    let window = if window <= i32::MAX as u32 { window } else { 0 };
    u16::try_from(window >> shift).unwrap_or(u16::MAX)
}
