//! UDP sockets: the engine makes and binds them; netmig sets the options that the engine does not know, and delivers what waited in the
//! receive queue as packets, with the sender's address, hop limit and type of service. UDP-Lite is the same with another number.
mod queue;

use std::{
    io,
    os::fd::OwnedFd,
    thread::sleep,
    time::{Duration, Instant},
};

use netmig_core::{
    image::v1::sock::{Common, Udp},
    socket::Kind,
};

pub(super) use self::queue::{Delivered, deliver};
use super::{
    diag::{Found, Name},
    error::{Error, On},
    groups::Groups,
    kept::Kept,
    option::{self, Refused, When},
};
use crate::sys::sockopt;

/// Reads one. Its receive queue stays as it is, or `kept` has it.
pub(super) fn dump(
    fd: OwnedFd,
    common: Common,
    socket: &Found,
    groups: &mut Groups,
    kept: &mut Kept,
) -> Result<Udp, Error> {
    let Name::Inet(local) = socket.local else {
        return Err(Error::Malformed {
            what: format!("the address of {socket}"),
        });
    };
    let groups = groups.of(&fd, common.v6, socket)?;
    let mut udp = Udp {
        common,
        lite: socket.kind == Kind::UdpLite,
        local,
        peer: socket.peer.endpoint(),
        queue: Vec::new(),
        lost: 0,
        groups,
    };
    if socket.rqueue > 0 {
        let (taken, read) = queue::read(&fd, &mut udp);
        if taken {
            kept.took(fd, udp.clone());
        }
        read.on("reading the receive queue", socket)?;
    }
    Ok(udp)
}

/// How long bytes stay in the send queue (`sk_wmem_alloc`) of a socket that has not sent them: those of a datagram that has gone leave it
/// as soon as the device is done with it. One that waits for a neighbour's address stays as well.
const STAYS: Duration = Duration::from_millis(20);

/// Whether a datagram is under construction (UDP_CORK, MSG_MORE): the kernel does not say so, but its bytes stay where they are.
pub(super) fn corked(fd: &OwnedFd) -> io::Result<bool> {
    let until = Instant::now() + STAYS;
    while sockopt::queue_len(fd, libc::TIOCOUTQ)? > 0 {
        if Instant::now() >= until {
            return Ok(true);
        }
        sleep(Duration::from_millis(1));
    }
    Ok(false)
}

/// Sets what may differ on a socket that the engine has restored.
pub(super) fn restore(fd: &OwnedFd, udp: &Udp) -> Result<Vec<Refused>, Error> {
    let (common, name) = (&udp.common, udp.to_string());
    for (option, value, call) in [
        (libc::SO_REUSEADDR, common.reuseaddr, "setting SO_REUSEADDR"),
        (libc::SO_REUSEPORT, common.reuseport, "setting SO_REUSEPORT"),
    ] {
        if sockopt::int(fd, libc::SOL_SOCKET, option).on(call, &name)? != value {
            sockopt::set_int(fd, libc::SOL_SOCKET, option, value).on(call, &name)?;
        }
    }
    let mut refused = Vec::new();
    for when in [When::First, When::Connected, When::Open] {
        refused.extend(option::apply(fd, &common.settings, when, &name));
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use std::{
        net::UdpSocket,
        os::fd::AsRawFd as _,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use nix::sys::socket::{MsgFlags, send};

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let [one, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let at = other.local_addr().expect("its address");
        one.connect(at).expect("connected");
        (one, other)
    }

    #[test]
    fn only_a_datagram_under_construction_is_corked() {
        let (one, other) = pair();
        let fd = OwnedFd::from(one.try_clone().expect("a duplicate"));
        assert!(!corked(&fd).expect("asked"));
        let over = AtomicBool::new(false);
        // What is on its way is sent, at whatever moment one looks.
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    one.send(&[0; 60_000]).expect("sent");
                }
            });
            let busy = (0..2000).any(|_| corked(&fd).expect("asked"));
            over.store(true, Ordering::Relaxed);
            assert!(!busy);
        });
        drop(other);
        let begun = send(
            fd.as_raw_fd(),
            b"begun",
            MsgFlags::from_bits_retain(libc::MSG_MORE),
        )
        .expect("begun");
        assert_eq!((begun, corked(&fd).expect("asked")), (5, true));
    }
}
