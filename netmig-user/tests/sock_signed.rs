//! Connections with TCP-MD5 signatures: every segment without one is dropped.
mod sock_lab;

use std::{
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
    time::Duration,
};

use netmig_core::{
    image::v1::sock::Holder,
    socket::{Class, Fate},
};
use netmig_user::{
    sock::{self, Place},
    sys::sockopt,
};
use nix::sys::socket::{SockaddrStorage, connect};
use sock_lab::{CONTAINER, Lab, PEER, Tasks, engine, expect, fill, owned, pattern, restore};

const TCP_MD5SIG: i32 = 14;

/// struct tcp_md5sig
fn sign(fd: &impl AsFd, peer: IpAddr, key: &[u8]) {
    let mut value = [0_u8; 216];
    let family = match peer {
        IpAddr::V4(ip) => {
            value[4..8].copy_from_slice(&ip.octets());
            libc::AF_INET
        }
        IpAddr::V6(ip) => {
            value[8..24].copy_from_slice(&ip.octets());
            libc::AF_INET6
        }
    };
    value[0] = family as u8;
    value[130] = u8::try_from(key.len()).expect("a short key");
    value[136..136 + key.len()].copy_from_slice(key);
    sockopt::set(fd, libc::SOL_TCP, TCP_MD5SIG, &value).expect("TCP_MD5SIG");
}

/// The container connects, or listens, with a key; the peer has the same.
fn connected(lab: &Lab, v6: bool) -> (OwnedFd, TcpStream) {
    let family = usize::from(v6);
    let listener = lab
        .peer
        .run(|| TcpListener::bind(SocketAddr::new(PEER[family], 0)).expect("a listener"));
    sign(&listener, CONTAINER[family], b"between us");
    let to = SockaddrStorage::from(listener.local_addr().expect("an address"));
    let own = lab.source.run(|| {
        let domain = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        let fd = sockopt::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).expect("a socket");
        sign(&fd, PEER[family], b"between us");
        connect(fd.as_raw_fd(), &to).expect("connected");
        fd
    });
    (own, listener.accept().expect("connected").0)
}

#[test]
fn a_signed_connection_moves_with_what_was_in_flight() {
    for v6 in [false, true] {
        let lab = Lab::new();
        let (own, mut peer) = connected(&lab, v6);
        peer.write_all(&pattern(0, 500)).expect("written");
        thread::sleep(Duration::from_millis(50));
        lab.close();
        let mut own = TcpStream::from(own);
        let sent = fill(&mut own, 0);
        let tasks = Tasks::holding(vec![owned(own)]);
        let rows = sock::rows(&lab.source.path(), &[tasks.pid()]).expect("rows");
        let row = rows
            .iter()
            .find(|r| r.class == Class::TcpEstablished)
            .expect("its row");
        assert_eq!(row.fate, Fate::Moves);
        let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
        assert!(image.tcp[0].in_flight() > 0);
        assert!(!format!("{image:?}").contains(&format!("{:?}", b"between us")));
        assert!(kept.silence().is_empty());
        drop(tasks);
        let tasks = engine(&lab, &image);
        let rebuilt = restore(&lab, &tasks, &image);
        lab.pass();
        rebuilt.open().expect("opened");
        expect(&mut peer, 0, sent);
        let mut own = tasks.stream(0);
        expect(&mut own, 0, 500);
        peer.write_all(&pattern(9, 100_000)).expect("written");
        expect(&mut own, 9, 100_000);
        // It moves on with its keys.
        let (again, _) = sock::dump(&lab.target.path(), &[tasks.pid()]).expect("a dump");
        assert_eq!(again.tcp[0].common.keys, image.tcp[0].common.keys);
    }
}

#[test]
fn a_listener_keeps_its_keys_and_what_waits_there_too() {
    let lab = Lab::new();
    let listen = |ns: &sock_lab::Namespace| {
        ns.run(|| TcpListener::bind((CONTAINER[0], 7900)).expect("a listener"))
    };
    let at_source = listen(&lab.source);
    sign(&at_source, PEER[0], b"for all");
    let dial = || {
        lab.peer.run(|| {
            let fd = sockopt::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP)
                .expect("a socket");
            sign(&fd, CONTAINER[0], b"for all");
            let to = SockaddrStorage::from(SocketAddr::new(CONTAINER[0], 7900));
            connect(fd.as_raw_fd(), &to).expect("connected");
            TcpStream::from(fd)
        })
    };
    let mut first = dial();
    first.write_all(&pattern(0, 3000)).expect("written");
    thread::sleep(Duration::from_millis(50));
    lab.close();
    let tasks = Tasks::holding(vec![owned(at_source)]);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!(image.waiting.len(), 1);
    assert!(kept.silence().is_empty());
    drop(tasks);
    // The engine knows nothing of keys.
    let tasks = Tasks::holding(vec![owned(listen(&lab.target))]);
    let pid = tasks.pid();
    let rebuilt = sock::restore_at(&lab.target.path(), &image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect("rebuilt");
    assert!(rebuilt.lost().is_empty(), "{:?}", rebuilt.lost());
    lab.pass();
    rebuilt.open().expect("opened");
    let listener = TcpListener::from(tasks.socket(0));
    let mut second = dial();
    for (peer, from) in [(&mut first, 3000), (&mut second, 0)] {
        let (mut own, _) = listener.accept().expect("accepted");
        peer.write_all(&pattern(from, 1000)).expect("written");
        expect(&mut own, 0, from + 1000);
        own.write_all(&pattern(1, 2000)).expect("written");
        expect(peer, 1, 2000);
    }
}
