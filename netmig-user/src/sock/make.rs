//! Sockets made anew, where no engine makes them: a program that hands its descriptors over gets them from here.
use std::os::fd::{AsRawFd, OwnedFd};

use netmig_core::image::v1::sock::{Common, Endpoint, Sockets, Tcp};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, bind, connect, listen, socket,
};

use super::{
    common,
    error::{Error, On},
    listen as listener,
    option::{self, When},
    over,
};
use crate::sys::sockopt;

/// A socket and the descriptor numbers under which the image knows it.
pub type Made = (Vec<i32>, OwnedFd);

/// Every socket of the image, in the caller's network namespace: listeners listen, UDP sockets are bound and connected, connections are in
/// CLOSE until [`super::restore_at`] fills them. The gate is closed.
///
/// Listeners come first: a connection is bound in repair beside them, which no port in use can refuse (SK_FORCE_REUSE, inet_csk_get_port).
///
/// # Errors
/// The image is impossible, or a socket cannot be made; those made till then are closed.
pub fn make(image: &Sockets) -> Result<Vec<Made>, Error> {
    image.check()?;
    let here = common::interfaces()?;
    let at = |end| common::rescope(end, &image.interfaces, &here);
    let mut made = Vec::new();
    for l in &image.listeners {
        let name = listener::name(l.local);
        let fd = bound(&l.common, SockType::Stream, Some(at(l.local)), &name)?;
        // The backlog that the kernel counts is what listen(2) was given, bounded by net.core.somaxconn.
        let backlog = i32::try_from(l.backlog)
            .ok()
            .and_then(|n| Backlog::new(n).ok())
            .unwrap_or(Backlog::MAXCONN);
        listen(&fd, backlog).on("listening", &name)?;
        made.push((numbers(&l.common), fd));
    }
    for u in &image.udp {
        let name = u.to_string();
        let local = (u.local.port != 0).then(|| at(u.local));
        let fd = bound(&u.common, SockType::Datagram, local, &name)?;
        if let Some(peer) = u.peer {
            connect(fd.as_raw_fd(), common::address(at(peer)).as_ref()).on("connecting", &name)?;
        }
        made.push((numbers(&u.common), fd));
    }
    for tcp in &image.tcp {
        let fd = new(&tcp.common, SockType::Stream, tcp)?;
        made.push((numbers(&tcp.common), fd));
    }
    for over in &image.over {
        let fd = new(&over.common, SockType::Stream, over)?;
        made.push((numbers(&over.common), fd));
    }
    Ok(made)
}

/// A socket for a connection that no descriptor held, in CLOSE.
pub(super) fn closed(tcp: &Tcp) -> Result<OwnedFd, Error> {
    new(&tcp.common, SockType::Stream, tcp)
}

fn numbers(common: &Common) -> Vec<i32> {
    common.holders.iter().map(|holder| holder.fd).collect()
}

fn new(common: &Common, kind: SockType, name: &impl ToString) -> Result<OwnedFd, Error> {
    let (family, protocol) = (
        if common.v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        },
        match kind {
            SockType::Stream => SockProtocol::Tcp,
            _ => SockProtocol::Udp,
        },
    );
    socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).on("making a socket for", name)
}

/// With what must be set before a bind; [`super::restore_at`] sets the rest, and names what this kernel refuses.
fn bound(
    common: &Common,
    kind: SockType,
    local: Option<Endpoint>,
    name: &str,
) -> Result<OwnedFd, Error> {
    let fd = new(common, kind, &name)?;
    for (option, value, call) in [
        (libc::SO_REUSEADDR, common.reuseaddr, "setting SO_REUSEADDR"),
        (libc::SO_REUSEPORT, common.reuseport, "setting SO_REUSEPORT"),
    ] {
        sockopt::set_int(&fd, libc::SOL_SOCKET, option, value).on(call, &name)?;
    }
    // Sizes that the program has set; the others grow by themselves. getsockopt gives twice what was set (sock_setsockopt).
    for (bit, option, size, call) in [
        (
            1,
            libc::SO_SNDBUFFORCE,
            common.sndbuf,
            "setting SO_SNDBUFFORCE",
        ),
        (
            2,
            libc::SO_RCVBUFFORCE,
            common.rcvbuf,
            "setting SO_RCVBUFFORCE",
        ),
    ] {
        if common.buf_lock & bit != 0 {
            sockopt::set_int(&fd, libc::SOL_SOCKET, option, size / 2).on(call, &name)?;
        }
    }
    if !common.device.is_empty() {
        let device = common.device.as_bytes();
        sockopt::set(&fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device)
            .on("setting SO_BINDTODEVICE", &name)?;
    }
    for refused in option::apply(&fd, &common.settings, When::First, &name) {
        tracing::debug!("{refused}");
    }
    if let Some(local) = local {
        bind(fd.as_raw_fd(), common::address(local).as_ref()).on("binding", &name)?;
    }
    Ok(fd)
}

/// Whether a descriptor can be handed over: a bound UDP socket, a TCP listener, or a TCP connection.
///
/// # Errors
/// What is in the way, in words; or the kernel's answer.
pub fn portable(fd: &OwnedFd) -> Result<(), String> {
    const CLOSE: u32 = 7;
    const SYN_SENT: u32 = 2;
    let int = |option| {
        sockopt::int(fd, libc::SOL_SOCKET, option).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOTSOCK) => "it is no socket".to_owned(),
            _ => format!("reading what socket it is: {e}"),
        })
    };
    let family = int(libc::SO_DOMAIN)?;
    if family != libc::AF_INET && family != libc::AF_INET6 {
        return Err(format!(
            "it is a socket of family {family}; only TCP and UDP sockets can be handed over"
        ));
    }
    match (int(libc::SO_TYPE)?, int(libc::SO_PROTOCOL)?) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => {
            let info: u32 = sockopt::read(fd, libc::SOL_TCP, libc::TCP_INFO)
                .map_err(|e| format!("reading TCP_INFO: {e}"))?;
            match info & 0xff {
                CLOSE if over::is(fd).unwrap_or(false) => Ok(()),
                CLOSE => Err("it is a TCP socket that is neither connected nor listening: make it anew at the target".to_owned()),
                SYN_SENT => Err("its connect() is under way: connect anew at the target".to_owned()),
                _ => Ok(()),
            }
        }
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => {
            let own = common::own_end(fd).map_err(|e| format!("reading its address: {e}"))?;
            (own.port != 0).then_some(()).ok_or_else(|| {
                "it is a UDP socket that is not bound: make it anew at the target".to_owned()
            })
        }
        (kind, protocol) => Err(format!(
            "it is a socket of type {kind}, protocol {protocol}; only TCP and UDP sockets can be handed over"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn only_what_an_image_can_hold_is_portable() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = listener.local_addr().expect("its address");
        let stream = TcpStream::connect(to).expect("a connection");
        let bound = UdpSocket::bind("[::1]:0").expect("a UDP socket");
        let fds: [OwnedFd; 3] = [listener.into(), stream.into(), bound.into()];
        for fd in &fds {
            assert_eq!(portable(fd), Ok(()));
        }
        let raw = |kind, protocol| {
            socket(AddressFamily::Inet, kind, SockFlag::empty(), protocol).expect("a socket")
        };
        let closed = portable(&raw(SockType::Stream, SockProtocol::Tcp)).expect_err("closed");
        assert!(
            closed.contains("neither connected nor listening"),
            "{closed}"
        );
        let free = portable(&raw(SockType::Datagram, SockProtocol::Udp)).expect_err("not bound");
        assert!(free.contains("not bound"), "{free}");
        let (unix, _) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(portable(&unix.into()).is_err_and(|e| e.contains("family 1")));
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(portable(&file.into()), Err("it is no socket".to_owned()));
    }

    #[test]
    fn what_is_made_stands_where_the_image_says() {
        let holder = |fd| netmig_core::image::v1::sock::Holder { pid: 1, fd };
        let common = |fds: &[i32]| Common {
            holders: fds.iter().map(|&fd| holder(fd)).collect(),
            inode: 1,
            v6: false,
            reuseaddr: 1,
            reuseport: 0,
            device: String::new(),
            sndbuf: 0,
            rcvbuf: 1 << 16,
            buf_lock: 2,
            settings: Vec::new(),
            keys: Vec::new(),
        };
        // A port that was free a moment ago.
        let free = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let local = free.local_addr().expect("its address");
        drop(free);
        let end = Endpoint {
            ip: local.ip(),
            port: local.port(),
            scope: 0,
        };
        let image = Sockets {
            listeners: vec![netmig_core::image::v1::sock::Listener {
                common: common(&[5, 9]),
                local: end,
                backlog: 7,
                waiting: 0,
            }],
            ..Sockets::default()
        };
        let made = make(&image).expect("sockets");
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].0, [5, 9]);
        assert_eq!(
            sockopt::int(&made[0].1, libc::SOL_SOCKET, libc::SO_RCVBUF).ok(),
            Some(1 << 16)
        );
        TcpStream::connect(local).expect("it listens");
    }
}
