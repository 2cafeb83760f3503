//! Connections that are over while a descriptor still holds them.
mod sock_lab;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
    time::Duration,
};

use netmig_core::{image::v1::sock::Over, socket::Class};
use netmig_user::{sock, sys::sockopt};
use nix::sys::socket::{SockaddrStorage, bind, getpeername, setsockopt, sockopt::Linger};
use sock_lab::{CONTAINER, FIRST_FD, Lab, PEER, Tasks, closed, owned, pattern, restore};

const CLOSE: u8 = 7;

fn pause() {
    thread::sleep(Duration::from_millis(80));
}

fn state(fd: &impl AsFd) -> u8 {
    sockopt::read::<[u8; 4]>(fd, libc::SOL_TCP, libc::TCP_INFO).expect("TCP_INFO")[0]
}

/// A listener of the container's, and a connection to it: the container's end, the peer's.
fn accepted(lab: &Lab, v6: bool) -> (TcpListener, TcpStream, TcpStream) {
    let at = SocketAddr::new(CONTAINER[usize::from(v6)], 0);
    let listener = lab
        .source
        .run(|| TcpListener::bind(at).expect("a listener"));
    let at = listener.local_addr().expect("its address");
    let peer = lab
        .peer
        .run(|| TcpStream::connect(at).expect("a connection"));
    let (own, from) = listener.accept().expect("a connection");
    assert_eq!(from.ip(), PEER[usize::from(v6)]);
    (listener, own, peer)
}

/// How a connection comes to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The container stops first.
    Own,
    /// The peer stops first.
    Peer,
    /// The peer resets it.
    Reset,
}

fn comes_to(end: End, own: &mut TcpStream, mut peer: TcpStream, unread: usize) {
    peer.write_all(&pattern(0, unread)).expect("written");
    match end {
        End::Own => {
            own.shutdown(Shutdown::Write).expect("shut down");
            pause();
            drop(peer);
        }
        End::Peer => {
            peer.shutdown(Shutdown::Write).expect("shut down");
            pause();
            own.shutdown(Shutdown::Write).expect("shut down");
        }
        End::Reset => {
            pause();
            let now = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&peer, Linger, &now).expect("SO_LINGER");
            drop(peer);
        }
    }
    pause();
}

/// What the program gets when it goes on: the bytes, then the end or the error, then the end.
fn reads(mut own: TcpStream, unread: usize, end: End) {
    assert_eq!(state(&own), CLOSE, "{end:?}");
    own.set_nonblocking(true).expect("non-blocking");
    let mut got = vec![0; unread];
    own.read_exact(&mut got).expect("what was not read");
    assert!(got == pattern(0, unread), "{end:?}");
    if end == End::Reset {
        let error = own.read(&mut [0; 8]).expect_err("it was reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(own.read(&mut [0; 8]).expect("the end"), 0, "{end:?}");
    let broken = own.write(b"more").expect_err("nobody listens");
    assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
    assert_eq!(
        getpeername::<SockaddrStorage>(own.as_raw_fd()),
        Err(nix::Error::ENOTCONN)
    );
}

#[test]
fn what_was_not_read_is_there_and_then_the_end() {
    for v6 in [false, true] {
        let lab = Lab::new();
        let cases = [
            (End::Own, 70_000),
            (End::Own, 0),
            (End::Peer, 500),
            (End::Reset, 300),
            (End::Reset, 0),
        ];
        let (mut listeners, mut sockets, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (end, unread) in cases {
            let (listener, mut own, peer) = accepted(&lab, v6);
            comes_to(end, &mut own, peer, unread);
            assert_eq!(state(&own), CLOSE, "{end:?}");
            names.push(own.local_addr().expect("its name"));
            listeners.push(owned(listener));
            sockets.push(owned(own));
        }
        let count = sockets.len();
        // A socket that has never been connected is not one of them.
        sockets.push(lab.source.run(|| closed(v6)));
        sockets.extend(listeners);
        lab.close();
        let tasks = Tasks::holding(sockets);
        let rows = sock::rows(&lab.source.path(), &[tasks.pid()]).expect("rows");
        let over = rows.iter().filter(|row| row.class == Class::TcpOver);
        assert_eq!(over.count(), count, "{rows:?}");
        let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
        assert_eq!(image.over.len(), count);
        // Undone, everything is there.
        assert!(kept.undo().is_empty());
        for (i, (end, unread)) in cases.into_iter().enumerate().filter(|(i, _)| i % 2 == 1) {
            reads(tasks.stream(i), unread, end);
        }
        drop((kept, tasks));

        // As CRIU does it: bound to the name that it found; and, every second one, new.
        let mut order: Vec<_> = image.over.iter().collect();
        order.sort_unstable_by_key(|over| over.common.holders[0].fd);
        assert!(
            order
                .iter()
                .zip(FIRST_FD..)
                .all(|(o, i)| o.common.holders[0].fd == i)
        );
        let made: Vec<OwnedFd> = lab.target.run(|| {
            let make = |(i, name): (usize, &SocketAddr)| {
                let fd = closed(v6);
                if i % 2 == 0 {
                    bind(fd.as_raw_fd(), &SockaddrStorage::from(*name)).expect("bound");
                }
                fd
            };
            names.iter().enumerate().map(make).collect()
        });
        let tasks = Tasks::holding(made);
        let mut over = image.clone();
        over.listeners.clear();
        let rebuilt = restore(&lab, &tasks, &over);
        assert_eq!(rebuilt.lost(), [""; 0]);
        lab.pass();
        rebuilt.open().expect("opened");
        // They could move on.
        let (again, _) = sock::dump(&lab.target.path(), &[tasks.pid()]).expect("a dump");
        let what = |over: &Over| (over.local, over.recv.clone(), over.failed);
        let mut both = [&image, &again].map(|i| i.over.iter().map(what).collect::<Vec<_>>());
        both.iter_mut()
            .for_each(|all| all.sort_by_key(|(local, ..)| local.port));
        assert_eq!(both[0], both[1]);
        for (i, (end, unread)) in cases.into_iter().enumerate() {
            let own = tasks.stream(i);
            assert_eq!(own.local_addr().expect("its name"), names[i], "{end:?}");
            reads(own, unread, end);
        }
    }
}
