//! Sockets that an agent has left in TCP_REPAIR when it was killed: their program would get errors for everything that it does with them.
use std::{
    collections::HashSet,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{SockaddrStorage, getsockname};

use super::{
    error::{Error, On},
    holders::Held,
    repair,
};
use crate::sys::sockopt;

/// Takes every socket of `pids` out of repair, and says how many were in it. The tasks are stopped. SO_REUSEADDR, which repair takes away, is
/// what a listener at the same port has: an accepted connection has inherited it. Goes on after an error and reports them all.
pub fn leave_repair(pids: &[i32]) -> (usize, Vec<Error>) {
    let held = match Held::by(pids) {
        Ok(held) => held,
        Err(e) => return (0, vec![e]),
    };
    let (mut strayed, mut ports, mut failed) = (Vec::new(), HashSet::new(), Vec::new());
    for (inode, owners) in held.iter() {
        let looked = held.duplicate(owners).and_then(|fd| {
            look(&fd)
                .on("looking for TCP_REPAIR", &format!("socket {inode}"))?
                .map_or(Ok(None), |found| Ok(Some((fd, found))))
        });
        match looked {
            Ok(Some((fd, Found::InRepair(port)))) => strayed.push((fd, port, inode)),
            Ok(Some((_, Found::Shares(port)))) => {
                ports.insert(port);
            }
            Ok(None) => {}
            // Closed meanwhile, its number taken by something else: these tasks run.
            Err(e) if is_gone(&e) => {}
            Err(e) => failed.push(e),
        }
    }
    let found = strayed.len();
    for (fd, port, inode) in strayed {
        let reuseaddr = ports.contains(&port).into();
        failed.extend(repair::leave(&fd, reuseaddr, &format!("socket {inode}")).err());
    }
    (found, failed)
}

fn is_gone(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    let errno = source
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::raw_os_error);
    matches!(errno, Some(libc::EBADF | libc::ENOTSOCK))
}

enum Found {
    /// With this port.
    InRepair(u16),
    /// A listener with SO_REUSEADDR at this port.
    Shares(u16),
}

fn look(fd: &OwnedFd) -> std::io::Result<Option<Found>> {
    let int = |level, name| sockopt::int(fd, level, name);
    if int(libc::SOL_SOCKET, libc::SO_PROTOCOL)? != libc::IPPROTO_TCP
        || !matches!(
            int(libc::SOL_SOCKET, libc::SO_DOMAIN)?,
            libc::AF_INET | libc::AF_INET6
        )
    {
        return Ok(None);
    }
    let port = port(fd)?;
    if int(libc::SOL_TCP, libc::TCP_REPAIR)? != 0 {
        return Ok(Some(Found::InRepair(port)));
    }
    let shares = int(libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0
        && int(libc::SOL_SOCKET, libc::SO_REUSEADDR)? != 0;
    Ok(shares.then_some(Found::Shares(port)))
}

fn port(fd: &OwnedFd) -> std::io::Result<u16> {
    let own: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let v4 = own.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    let own = v4.or_else(|| own.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())));
    Ok(own.map_or(0, |own| own.port()))
}
