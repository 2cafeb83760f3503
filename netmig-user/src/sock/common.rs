//! What every inet socket has: descriptors, device, reuse flags, buffers, options.
use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use netmig_core::image::v1::sock::{Common, Endpoint, Holder, Interface};
use nix::sys::socket::{SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage, getsockname};

use super::{
    diag::Found,
    error::{Error, On},
    option::{Fresh, Sort},
};
use crate::sys::sockopt::{self, number};
use netmig_core::socket::{Kind, State};

/// Reads it. The socket is not in repair.
pub(super) fn dump(
    fd: &OwnedFd,
    socket: &Found,
    holders: Vec<Holder>,
    fresh: &mut Fresh,
) -> Result<Common, Error> {
    let int = |name: i32, call| sockopt::int(fd, libc::SOL_SOCKET, name).on(call, socket);
    let device = sockopt::bytes(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, 16)
        .on("reading SO_BINDTODEVICE", socket)?;
    Ok(Common {
        holders,
        inode: socket.inode,
        v6: socket.v6,
        reuseaddr: int(libc::SO_REUSEADDR, "reading SO_REUSEADDR")?,
        reuseport: int(libc::SO_REUSEPORT, "reading SO_REUSEPORT")?,
        device: String::from_utf8_lossy(&device)
            .trim_end_matches('\0')
            .to_owned(),
        sndbuf: int(libc::SO_SNDBUF, "reading SO_SNDBUF")?,
        rcvbuf: int(libc::SO_RCVBUF, "reading SO_RCVBUF")?,
        // 5.14 has it; an older kernel does not tell which buffers grow by themselves: then both do.
        buf_lock: int(number::SO_BUF_LOCK, "reading SO_BUF_LOCK").unwrap_or(0),
        settings: fresh
            .differing(fd, sort(socket), socket.v6)
            .on("reading options", socket)?,
        keys: socket.keys.clone(),
    })
}

/// Which column of the option table a socket belongs to.
pub(super) fn sort(socket: &Found) -> Sort {
    match (socket.kind, socket.state) {
        (Kind::Tcp, State::Listen) => Sort::Listen,
        (Kind::Tcp, _) => Sort::Tcp,
        (Kind::UdpLite, _) => Sort::UdpLite,
        _ => Sort::Udp,
    }
}

/// The kernel's version, major and minor.
pub(super) fn kernel() -> io::Result<(u16, u16)> {
    let uname = nix::sys::utsname::uname()?;
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(io::Error::other(format!(
            "the kernel calls itself {release:?}"
        ))),
    }
}

/// The interfaces of the caller's namespace.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let all = nix::net::if_::if_nameindex()?;
    Ok(all
        .iter()
        .map(|i| Interface {
            index: i.index(),
            name: i.name().to_string_lossy().into_owned(),
        })
        .collect())
}

/// The same end with the index that the interface of its scope has here; what is unknown stays as it is.
pub(super) fn rescope(end: Endpoint, there: &[Interface], here: &[Interface]) -> Endpoint {
    let name = there.iter().find(|i| i.index == end.scope).map(|i| &i.name);
    let scope = here
        .iter()
        .find(|i| Some(&i.name) == name)
        .map_or(end.scope, |i| i.index);
    Endpoint { scope, ..end }
}

/// An address as bind(2), connect(2) and sendto(2) take it.
pub(super) fn address(end: Endpoint) -> Box<dyn SockaddrLike> {
    match end.ip {
        std::net::IpAddr::V4(ip) => {
            Box::new(SockaddrIn::from(std::net::SocketAddrV4::new(ip, end.port)))
        }
        std::net::IpAddr::V6(ip) => Box::new(SockaddrIn6::from(std::net::SocketAddrV6::new(
            ip, end.port, 0, end.scope,
        ))),
    }
}

pub(super) fn endpoint(address: &SockaddrStorage) -> Option<Endpoint> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(Endpoint {
            ip: IpAddr::V4(v4.ip()),
            port: v4.port(),
            scope: 0,
        });
    }
    address.as_sockaddr_in6().map(|v6| Endpoint {
        ip: IpAddr::V6(v6.ip()),
        port: v6.port(),
        scope: v6.scope_id(),
    })
}

/// A socket's own end (getsockname(2)); port 0: it has none.
pub(super) fn own_end(fd: &OwnedFd) -> io::Result<Endpoint> {
    let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    endpoint(&name).ok_or_else(|| io::Error::other("an inet socket without an address"))
}
