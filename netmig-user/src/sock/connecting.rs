//! TCP connections whose connect() is under way (SYN_SENT).
//!
//! connect(2) is called once more at the target, behind the closed gate, with the same port and sequence number: tcp_v4_connect() and
//! tcp_v6_connect() keep a write_seq that is not 0. A SYN-ACK that was held, or that comes to the target, then ends the handshake of the SYN
//! that the source has sent, if it echoes a timestamp between our first SYN and now (tcp_rcv_synsent_state_process); else it draws a RST.
//! connect() picks an offset of the clock at random, so it is set afterwards: such that the source's last SYN counts as sent just now. When
//! that was is what the retransmission timer tells, within a few ticks; the margin is for those.
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Instant,
};

use netmig_core::image::v1::sock::{Common, Connecting, Endpoint};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{bind, connect},
};

use super::{
    common,
    diag::Found,
    error::{Error, On},
    md5, nexthop,
    option::{self, Refused, When},
    repair::Repair,
    tcp::{Info, Kernels},
};
use crate::sys::sockopt::{
    self,
    number::{TCP_NO_QUEUE, TCP_SEND_QUEUE},
};

const SOL: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::SOL_TCP;
/// Two ticks of the slowest clock (HZ=100), and a rounding at each end.
const MARGIN_MS: u32 = 24;

/// Reads one. `listed`: when `socket` was true. None: it has data for its SYN (TCP_FASTOPEN_CONNECT), which the kernel does not let out.
pub(super) fn dump(
    fd: &OwnedFd,
    common: Common,
    socket: &Found,
    listed: Instant,
) -> Result<Option<Connecting>, Error> {
    const SYN: u32 = 1;
    let (Some(local), Some(peer)) = (socket.local.endpoint(), socket.peer.endpoint()) else {
        return Err(Error::Malformed {
            what: format!("the addresses of {socket}"),
        });
    };
    if socket.wqueue > SYN {
        return Ok(None);
    }
    let name = socket.to_string();
    let repair = Repair::enter(fd, common.reuseaddr, &name)?;
    let info: Info = sockopt::read(fd, TCP, libc::TCP_INFO).on("reading TCP_INFO", &name)?;
    let timestamp =
        sockopt::read(fd, TCP, libc::TCP_TIMESTAMP).on("reading TCP_TIMESTAMP", &name)?;
    let since = u32::try_from(listed.elapsed().as_millis()).unwrap_or(u32::MAX);
    repair.queue(TCP_SEND_QUEUE)?;
    let write_seq = repair.seq()?;
    repair.queue(TCP_NO_QUEUE)?;
    repair.leave()?;
    let congestion =
        sockopt::bytes(fd, TCP, libc::TCP_CONGESTION, 16).on("reading TCP_CONGESTION", &name)?;
    Ok(Some(Connecting {
        common,
        local,
        peer,
        isn: write_seq.wrapping_sub(SYN),
        timestamp,
        sent_ms: (info.rto / 1000)
            .saturating_sub(socket.expires_ms)
            .saturating_add(since),
        congestion: String::from_utf8_lossy(&congestion)
            .trim_end_matches('\0')
            .to_owned(),
    }))
}

/// Goes on connecting, in a closed socket. `ends`: its two ends as they are called here.
pub(super) fn restore(
    fd: &OwnedFd,
    connecting: &Connecting,
    ends: [Endpoint; 2],
    kernels: Kernels,
) -> Result<Vec<Refused>, Error> {
    let name = connecting.to_string();
    let common = &connecting.common;
    sockopt::disconnect(fd).on("disconnecting", &name)?;
    sockopt::set_int(fd, SOL, libc::SO_REUSEPORT, common.reuseport)
        .on("setting SO_REUSEPORT", &name)?;
    if !common.device.is_empty() {
        sockopt::set(fd, SOL, libc::SO_BINDTODEVICE, common.device.as_bytes())
            .on("setting SO_BINDTODEVICE", &name)?;
    }
    let mut refused = option::apply(fd, &common.settings, When::First, &name);
    if let Err(source) = sockopt::set(
        fd,
        TCP,
        libc::TCP_CONGESTION,
        connecting.congestion.as_bytes(),
    ) {
        refused.push(Refused {
            option: format!("TCP_CONGESTION {}", connecting.congestion),
            socket: name.clone(),
            source,
        });
    }
    md5::set(fd, common, &name)?;
    let repair = Repair::enter(fd, common.reuseaddr, &name)?;
    repair.set_seq(TCP_SEND_QUEUE, connecting.isn)?;
    repair.queue(TCP_NO_QUEUE)?;
    bind(fd.as_raw_fd(), common::address(ends[0]).as_ref()).on("binding", &name)?;
    repair.leave()?;
    nexthop::without_asking(ends[1], || start(fd, ends[1])).on("connecting", &name)?;
    let repair = Repair::enter(fd, common.reuseaddr, &name)?;
    let now = stamp(connecting, kernels.clock(connecting.timestamp));
    sockopt::set_u32(fd, TCP, libc::TCP_TIMESTAMP, now).on("setting TCP_TIMESTAMP", &name)?;
    repair.leave()?;
    for when in [When::Connected, When::Open] {
        refused.extend(option::apply(fd, &common.settings, when, &name));
    }
    Ok(refused)
}

/// connect(2) without waiting; the descriptor's mode is its program's, and stays.
fn start(fd: &OwnedFd, peer: Endpoint) -> io::Result<()> {
    let mode = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(mode | OFlag::O_NONBLOCK))?;
    let begun = connect(fd.as_raw_fd(), common::address(peer).as_ref());
    fcntl(fd, FcntlArg::F_SETFL(mode))?;
    match begun {
        // Over lo, which no gate closes here, it may be connected at once.
        Err(Errno::EINPROGRESS) | Ok(()) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// What TCP_TIMESTAMP is set to just after connect(). `now`: the source's clock at the dump, as it is to be set here; bit 0 is no part of the
/// time: it says microseconds, and a clock of milliseconds that got it would have the SYN's age (retransmits_timed_out()) at random.
fn stamp(connecting: &Connecting, now: u32) -> u32 {
    let back = connecting.sent_ms.saturating_add(MARGIN_MS);
    let unit = now & 1;
    let ticks = if unit == 1 { 1000 } else { 1 };
    now.wrapping_sub(back.saturating_mul(ticks)) & !1 | unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_syn_counts_as_sent_just_now() {
        let at: std::net::SocketAddr = "192.0.2.1:80".parse().expect("an address");
        let end = Endpoint {
            ip: at.ip(),
            port: at.port(),
            scope: 0,
        };
        let mut connecting = Connecting {
            common: Common {
                inode: 1,
                ..Common::default()
            },
            local: end,
            peer: end,
            isn: 7,
            timestamp: 0,
            sent_ms: 100,
            congestion: "cubic".into(),
        };
        assert_eq!(stamp(&connecting, 10_000), 10_000 - 100 - MARGIN_MS);
        assert_eq!(stamp(&connecting, 50), 50_u32.wrapping_sub(100 + MARGIN_MS));
        let microseconds = stamp(&connecting, 1_000_001);
        assert_eq!(microseconds, (1_000_001 - (100 + MARGIN_MS) * 1000) | 1);
        for sent_ms in 90..110 {
            connecting.sent_ms = sent_ms;
            assert_eq!(stamp(&connecting, 10_000) & 1, 0, "{sent_ms}");
            assert_eq!(stamp(&connecting, 10_000_001) & 1, 1, "{sent_ms}");
        }
    }
}
