//! Many connections at once, the listener beside them, and moves that are called off.
mod sock_lab;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use netmig_core::image::v1::sock::Holder;
use netmig_user::{
    sock::{self, Place},
    sys::sockopt,
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket,
};
use sock_lab::{
    CONTAINER, Lab, Tasks, closed, connected, engine, expect, fill, in_repair, owned, pattern,
    restore,
};

/// Connections in one of five states each, with the number of bytes that the container has written and the peer has read.
fn mixed(lab: &Lab, count: usize) -> Vec<(TcpStream, TcpStream, usize, usize)> {
    let mut all: Vec<_> = (0..count)
        .map(|i| (connected(lab, i % 2 == 1, i % 4 < 2), i))
        .map(|((own, peer), i)| (own, peer, i))
        .collect();
    for (own, peer, i) in &mut all {
        own.write_all(&pattern(0, 500 + *i)).expect("written");
        peer.write_all(&pattern(0, 700 + *i)).expect("written");
    }
    std::thread::sleep(Duration::from_millis(100));
    let all: Vec<_> = all
        .into_iter()
        .map(|(mut own, mut peer, i)| {
            // A third has been read by the peer, and of a third the container has read what came.
            let read = if i % 3 == 0 { 500 + i } else { 0 };
            expect(&mut peer, 0, read);
            if i % 3 == 1 {
                expect(&mut own, 0, 700 + i);
            }
            (own, peer, 500 + i, read)
        })
        .collect();
    lab.close();
    all.into_iter()
        .enumerate()
        .map(|(i, (mut own, peer, mut written, read))| {
            if i % 5 == 0 {
                own.write_all(&pattern(written, 3000)).expect("written");
                written += 3000;
            }
            if i % 50 == 7 {
                written += fill(&mut own, written);
            }
            (own, peer, written, read)
        })
        .collect()
}

#[test]
fn two_hundred_connections() {
    const COUNT: usize = 200;
    let lab = Lab::new();
    let (own, mut rest): (Vec<OwnedFd>, Vec<_>) = mixed(&lab, COUNT)
        .into_iter()
        .map(|(own, peer, w, r)| (owned(own), (peer, w, r)))
        .unzip();
    let tasks = Tasks::holding(own);
    let begun = Instant::now();
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    let dumped = begun.elapsed();
    assert_eq!((image.tcp.len(), kept.len()), (COUNT, COUNT));
    drop((kept, tasks));
    let tasks = engine(&lab, &image);
    let begun = Instant::now();
    let rebuilt = restore(&lab, &tasks, &image);
    let restored = begun.elapsed();
    lab.pass();
    let begun = Instant::now();
    assert_eq!(rebuilt.open().expect("opened").connections, COUNT);
    println!(
        "{COUNT} connections: dump {dumped:?}, restore {restored:?}, open {:?}",
        begun.elapsed()
    );
    std::thread::scope(|s| {
        for (i, (peer, written, read)) in rest.iter_mut().enumerate() {
            let mut own = tasks.stream(i);
            s.spawn(move || {
                own.write_all(&pattern(*written, 1000)).expect("written");
                peer.write_all(&pattern(700 + i, 1000)).expect("written");
                expect(peer, *read, *written + 1000 - *read);
                let from = if i % 3 == 1 { 700 + i } else { 0 };
                expect(&mut own, from, 1700 + i - from);
            });
        }
    });
}

#[test]
fn an_abort_leaves_every_connection_as_it_was() {
    const COUNT: usize = 30;
    let lab = Lab::new();
    let (own, mut rest): (Vec<OwnedFd>, Vec<_>) = mixed(&lab, COUNT)
        .into_iter()
        .map(|(own, peer, w, r)| (owned(own), (peer, w, r)))
        .unzip();
    for fd in &own {
        sockopt::set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).expect("SO_REUSEADDR");
        sockopt::set_int(fd, libc::SOL_SOCKET, sockopt::number::SO_PEEK_OFF, 5)
            .expect("SO_PEEK_OFF");
    }
    let tasks = Tasks::holding(own);
    let (_, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    // As if a dump had died in the middle of one.
    sockopt::set_int(&tasks.socket(3), libc::SOL_TCP, libc::TCP_REPAIR, 1).expect("TCP_REPAIR");
    assert!(in_repair(&tasks.socket(3)));
    assert!(kept.undo().is_empty());
    lab.reopen();
    for i in 0..COUNT {
        let fd = tasks.socket(i);
        assert!(!in_repair(&fd));
        assert_eq!(
            sockopt::int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).expect("SO_REUSEADDR"),
            1
        );
        assert_eq!(
            sockopt::int(&fd, libc::SOL_SOCKET, sockopt::number::SO_PEEK_OFF).expect("SO_PEEK_OFF"),
            5
        );
    }
    std::thread::scope(|s| {
        for (i, (peer, written, read)) in rest.iter_mut().enumerate() {
            let mut own = tasks.stream(i);
            s.spawn(move || {
                own.write_all(&pattern(*written, 1000)).expect("written");
                peer.write_all(&pattern(700 + i, 1000)).expect("written");
                expect(peer, *read, *written + 1000 - *read);
                let from = if i % 3 == 1 { 700 + i } else { 0 };
                expect(&mut own, from, 1700 + i - from);
            });
        }
    });
}

/// A listener with SO_REUSEADDR, made in the current namespace.
fn listener(port: u16) -> nix::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    sockopt::set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).expect("SO_REUSEADDR");
    use std::os::fd::AsRawFd;
    bind(fd.as_raw_fd(), &SockaddrIn::new(192, 0, 2, 10, port))?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(fd)
}

#[test]
fn a_listener_binds_again_beside_moved_connections() {
    const PORT: u16 = 7000;
    let lab = Lab::new();
    let listening = lab.source.run(|| listener(PORT)).expect("a listener");
    let to = SocketAddr::new(CONTAINER[0], PORT);
    let mut peer = lab
        .peer
        .run(|| TcpStream::connect(to).expect("a connection"));
    let accepting = TcpListener::from(listening.try_clone().expect("a clone"));
    let (own, _) = accepting.accept().expect("a connection");
    drop(accepting);
    lab.close();
    let tasks = Tasks::holding(vec![owned(own), listening]);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!((image.tcp.len(), image.listeners.len()), (1, 1));
    assert_eq!(image.listeners[0].backlog, 64);
    // At the source after an abort, and at the target after the move: the program closes its listener and makes it anew.
    let rebind = |tasks: &Tasks, ns: &sock_lab::Namespace| {
        let fd = tasks.socket(1);
        // The process keeps its copy; a listener that is shut down no longer holds the port as a listener.
        assert_eq!(
            nix::sys::socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(&fd),
                nix::sys::socket::Shutdown::Both
            ),
            Ok(())
        );
        ns.run(|| listener(PORT)).map(drop)
    };
    assert!(kept.undo().is_empty());
    assert_eq!(rebind(&tasks, &lab.source), Ok(()));
    drop((kept, tasks));

    // CRIU restores the listener before the connections.
    let sockets = lab
        .target
        .run(|| vec![closed(false), listener(PORT).expect("a listener")]);
    let tasks = Tasks::holding(sockets);
    let pid = tasks.pid();
    let rebuilt = sock::restore_at(&lab.target.path(), &image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect("rebuilt");
    lab.pass();
    rebuilt.open().expect("opened");
    assert_eq!(rebind(&tasks, &lab.target), Ok(()));
    tasks.stream(0).write_all(b"moved").expect("written");
    let mut got = [0; 5];
    peer.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"moved");
}

#[test]
fn a_restore_that_fails_leaves_nothing_behind() {
    let lab = Lab::new();
    let connections: Vec<_> = (0..3).map(|_| connected(&lab, false, true)).collect();
    lab.close();
    let (own, peers): (Vec<OwnedFd>, Vec<TcpStream>) = connections
        .into_iter()
        .map(|(own, peer)| (owned(own), peer))
        .unzip();
    let tasks = Tasks::holding(own);
    let (mut image, _kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    // The last one is of an address that the target does not have.
    image.tcp[2].local.ip = "192.0.2.77".parse().expect("an address");
    let target = engine(&lab, &image);
    let pid = target.pid();
    let failed = sock::restore_at(&lab.target.path(), &image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect_err("it cannot bind");
    assert!(
        failed.to_string().starts_with("binding on tcp 192.0.2.77:"),
        "{failed}"
    );
    for i in 0..3 {
        assert!(!in_repair(&target.socket(i)));
        assert_eq!(
            target.stream(i).peer_addr().map_err(|e| e.kind()),
            Err(std::io::ErrorKind::NotConnected)
        );
    }
    // A descriptor that is not there, and one that holds something else, are named.
    let nowhere = sock::restore_at(&lab.target.path(), &image, &|_: &Holder| None)
        .expect_err("no descriptor");
    assert!(
        nowhere
            .to_string()
            .contains("has no descriptor at the target"),
        "{nowhere}"
    );
    let pid = tasks.pid();
    let other = sock::restore_at(&lab.target.path(), &image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect_err("another socket");
    assert!(other.to_string().contains("state 1, not closed"), "{other}");
    drop(peers);
}
