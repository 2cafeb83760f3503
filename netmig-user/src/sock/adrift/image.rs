//! What the image says of such a socket, from what the kernel's memory says.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netmig_core::{
    image::v1::sock::{Common, Endpoint, HalfOpen, Interface, Tcp, TcpState, Window},
    socket::State,
};
use nix::time::{ClockId, clock_gettime};

use super::{Ends, kernel::Values};
use crate::sock::diag::Found;

/// The kernel's clock for timestamps (tcp_clock_ns).
#[derive(Clone, Copy)]
pub(in crate::sock) struct Clock {
    us: u64,
}

impl Clock {
    pub(in crate::sock) fn now() -> io::Result<Self> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        Ok(Self {
            us: now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1000,
        })
    }

    /// As TCP_TIMESTAMP would give it, as Linux 6.12 does: bit 0 is the unit.
    pub(in crate::sock) fn stamp(self, offset: u32, microseconds: bool) -> u32 {
        if microseconds {
            (self.us as u32).wrapping_add(offset) | 1
        } else {
            ((self.us / 1000) as u32).wrapping_add(offset) & !1
        }
    }
}

pub(super) enum Carried {
    Orphan(Tcp),
    TimeWait(Tcp),
    HalfOpen(HalfOpen),
}

/// The image of one; none: it cannot be carried.
pub(super) fn carried(
    values: &Values<'_>,
    socket: &Found,
    interfaces: &[Interface],
    clock: Clock,
) -> Option<Carried> {
    let (local, peer) = (socket.local.endpoint()?, socket.peer.endpoint()?);
    if values.is_request() {
        return half_open(values, local, peer, clock).map(Carried::HalfOpen);
    }
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
        state: TcpState::FinWait2,
        timestamp: clock.stamp(values.word("tsoffset"), values.is("usec")),
        cwnd: 10,
        window_clamp: values.word("window_clamp"),
        ..Tcp::between(common, local, peer)
    };
    if values.is_time_wait() {
        time_wait(values, tcp)
    } else {
        orphan(values, tcp).map(Carried::Orphan)
    }
}

/// None: it is of another protocol too.
fn half_open(
    values: &Values<'_>,
    local: Endpoint,
    peer: Endpoint,
    clock: Clock,
) -> Option<HalfOpen> {
    if values.is("mptcp") || values.is("ao") {
        return None;
    }
    let scales = (
        values.word("snd_wscale") as u8,
        values.word("rcv_wscale") as u8,
    );
    Some(HalfOpen {
        local,
        peer,
        isn: values.word("isn"),
        peer_isn: values.word("peer_isn"),
        window: values.word("window"),
        mss: values.word("mss") as u16,
        wscale: values.is("wscale_ok").then_some(scales),
        sack: values.is("sack_ok"),
        ecn: values.is("ecn"),
        ts_recent: values.is("tstamp_ok").then(|| values.word("ts_recent")),
        timestamp: clock.stamp(values.word("tsoffset"), values.is("usec")),
    })
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
    if values.is("socket") {
        return None;
    }
    let before_fin = |seq: u32| {
        if seq == values.word("write_seq") {
            write_seq
        } else {
            seq
        }
    };
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
        snd_una: before_fin(values.word("snd_una")),
        snd_nxt: before_fin(values.word("snd_nxt")),
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

/// Of which connection they are, as sock_diag has it.
pub(super) fn ends(values: &Values<'_>) -> Option<Ends> {
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
