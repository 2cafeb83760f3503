//! TCP connections that are over while a descriptor still holds them: both FINs are acknowledged, or a RST or a timer has ended them, and the
//! program has not read all that had come, or not seen the end. They are in CLOSE and in no list, and have neither peer nor sequence numbers
//! (getpeername(2): ENOTCONN); what is left of them is their unread bytes and how they ended.
//!
//! At the target such a socket is connected once more in TCP_REPAIR, to an end that there is not, over `lo`; it is given the bytes, and ended.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, OwnedFd},
};

use netmig_core::{
    image::v1::sock::{Common, Endpoint, Over, Tcp, Window},
    socket::{Kind, State},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    common,
    diag::{self, Found, Name},
    error::{Error, On},
    holders::Held,
    inject::Injector,
    option::{self, Fresh, Refused, When},
    repair::Repair,
    tcp::{self, Kernels},
};
use crate::sys::sockopt::{
    self,
    number::{TCP_NO_QUEUE, TCP_RECV_QUEUE},
};

/// Whether a TCP socket that is in no list has been connected: the end of one can be read (tcp_done shuts it down, and tcp_poll says so); of a
/// new one, or one that connect(2) has given up, nothing can.
pub(super) fn is(fd: &OwnedFd) -> io::Result<bool> {
    let local = common::own_end(fd)?;
    Ok(local.port != 0 && !local.ip.is_unspecified() && ended(fd)?)
}

fn ended(fd: &OwnedFd) -> io::Result<bool> {
    let both = PollFlags::POLLIN | PollFlags::POLLHUP;
    Ok(events(fd, PollFlags::POLLIN)?.contains(both))
}

/// Reads one: nothing of it changes.
pub(super) fn dump(
    fd: &OwnedFd,
    inode: u64,
    held: &Held,
    fresh: &mut Fresh,
) -> Result<Over, Error> {
    let domain = sockopt::int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let mut found = Found::new(Kind::Tcp, State::Close, inode);
    found.v6 = domain == libc::AF_INET6;
    let local = common::own_end(fd)?;
    found.local = Name::Inet(local);
    let holders = held.inside(held.get(inode).unwrap_or_default());
    let common = common::dump(fd, &found, holders, fresh)?;
    let unread = sockopt::queue_len(fd, libc::FIONREAD).on("reading SIOCINQ", &found)?;
    let name = found.to_string();
    let recv = tcp::from_the_beginning(fd, &name, || {
        let repair = Repair::enter(fd, common.reuseaddr, &name)?;
        repair.queue(TCP_RECV_QUEUE)?;
        let recv = repair.peek(unread, "receive")?;
        repair.queue(TCP_NO_QUEUE)?;
        repair.leave()?;
        Ok(recv)
    })?;
    Ok(Over {
        common,
        local,
        recv,
        failed: events(fd, PollFlags::empty())?.contains(PollFlags::POLLERR),
    })
}

/// Makes a closed socket into it. `local`: its end as it is called here.
pub(super) fn restore(
    fd: &OwnedFd,
    over: &Over,
    local: Endpoint,
    kernels: Kernels,
) -> Result<Vec<Refused>, Error> {
    let tcp = connection(over, local);
    let ends = [tcp.local, tcp.peer];
    let mut refused = tcp::rebuild(fd, &tcp, ends, kernels)?;
    refused.extend(tcp::release(fd, &tcp)?);
    refused.extend(option::apply(fd, &over.common.settings, When::Open, &tcp));
    if over.failed {
        // What ends a connection most often, and the only error that a packet can make.
        Injector::default().reset(&tcp).on("resetting it", &tcp)?;
    }
    if !ended(fd).on("asking for its state", &tcp)? {
        let mut found = Found::new(Kind::Tcp, State::Established, over.common.inode);
        found.v6 = over.common.v6;
        (found.local, found.peer) = (Name::Inet(tcp.local), Name::Inet(tcp.peer));
        diag::destroy(&found)?;
    }
    if !over.failed {
        // Its program has been told of none: ECONNABORTED is ours (tcp_abort).
        sockopt::int(fd, libc::SOL_SOCKET, libc::SO_ERROR).on("clearing SO_ERROR", &tcp)?;
    }
    Ok(refused)
}

/// A connection with an end on `lo` that there is not, to be ended as soon as it has the bytes.
fn connection(over: &Over, local: Endpoint) -> Tcp {
    let loopback = match local.ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped())
        }
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let peer = Endpoint {
        ip: loopback,
        port: if local.port == 1 { 2 } else { 1 },
        scope: 0,
    };
    const FIRST: u32 = 1;
    let end = FIRST.wrapping_add(over.recv.len() as u32);
    Tcp {
        snd_una: FIRST,
        snd_nxt: FIRST,
        write_seq: FIRST,
        rcv_nxt: end,
        recv: over.recv.clone(),
        mss: 1460,
        snd_mss: 1460,
        window: Window {
            snd_wl1: end,
            snd_wnd: 0,
            max_window: 1460,
            rcv_wnd: 1 << 15,
            rcv_wup: end,
        },
        window_clamp: 1 << 15,
        ..Tcp::between(
            Common {
                keys: Vec::new(),
                ..over.common.clone()
            },
            local,
            peer,
        )
    }
}

fn events(fd: &OwnedFd, flags: PollFlags) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(fd.as_fd(), flags)];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
}
