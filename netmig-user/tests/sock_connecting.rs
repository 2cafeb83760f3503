//! connect() is under way when the container moves.
mod sock_lab;

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::Duration,
};

use netmig_core::{
    image::v1::sock::{Holder, Sockets},
    socket::{Class, Fate},
};
use netmig_user::{
    sock::{self, Place},
    sys::sockopt,
};
use nix::{
    errno::Errno,
    sys::socket::{SockaddrStorage, connect, getsockname},
};
use sock_lab::{Lab, PEER, Tasks, closed, expect, pattern};

fn connecting(lab: &Lab, v6: bool, to: SocketAddr) -> OwnedFd {
    lab.source.run(|| {
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        let fd = sockopt::socket(
            family,
            libc::SOCK_STREAM | libc::SOCK_NONBLOCK,
            libc::IPPROTO_TCP,
        )
        .expect("a socket");
        let to = SockaddrStorage::from(to);
        assert_eq!(
            connect(fd.as_raw_fd(), &to),
            Err(Errno::EINPROGRESS),
            "under way"
        );
        fd
    })
}

/// What the first look on a host prepares takes part of a second: a plan does that before anything is closed, and no SYN waits for it.
fn planned(lab: &Lab) {
    sock::rows(&lab.source.path(), &[]).expect("rows");
}

fn local(fd: &OwnedFd) -> String {
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).expect("a name");
    name.to_string()
}

fn moved(lab: &Lab, v6: bool, fd: OwnedFd) -> (Tasks, Sockets) {
    let tasks = Tasks::holding(vec![fd]);
    let rows = sock::rows(&lab.source.path(), &[tasks.pid()]).expect("rows");
    let row = rows
        .iter()
        .find(|r| r.class == Class::TcpSynSent)
        .expect("its row");
    assert_eq!(row.fate, Fate::Moves);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!(image.connecting.len(), 1);
    assert!(kept.silence().is_empty());
    drop(tasks);
    let at_target = Tasks::holding(vec![lab.target.run(|| closed(v6))]);
    let pid = at_target.pid();
    let rebuilt = sock::restore_at(&lab.target.path(), &image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect("rebuilt");
    assert!(rebuilt.refused().is_empty(), "{:?}", rebuilt.refused());
    // As the driver does: what waits for a neighbour in vain is not waited for any longer.
    thread::sleep(Duration::from_millis(50));
    netmig_user::net::forget_unresolved(&lab.target.path()).expect("forgotten");
    let known = lab
        .target
        .run(|| std::fs::read_to_string("/proc/thread-self/net/arp"));
    assert_eq!(
        known.expect("read").lines().count(),
        1,
        "no neighbour is made up any more"
    );
    lab.pass();
    rebuilt.open().expect("opened");
    (at_target, image)
}

fn talks(own: &mut TcpStream, peer: &mut TcpStream) {
    own.set_nonblocking(false).expect("blocking");
    own.write_all(&pattern(0, 50_000)).expect("written");
    expect(peer, 0, 50_000);
    peer.write_all(&pattern(3, 50_000)).expect("written");
    expect(own, 3, 50_000);
}

/// Nothing was answered with RST.
const NO_RST: &str =
    "nstat -asz TcpOutRsts | awk '/^Tcp/ && $2 != 0 { print; bad = 1 } END { exit bad }'";

/// The SYN-ACK is on its way when the gate closes. The peer sends it once more, as it is. (The target's SYN timer runs as long as the peer's:
/// on a busy machine it may send its SYN once more before that comes.)
#[test]
fn the_syn_ack_of_the_first_syn_ends_the_handshake_at_the_target() {
    for v6 in [false, true] {
        let lab = Lab::new();
        let listener = lab.peer.run(|| {
            TcpListener::bind(SocketAddr::new(PEER[usize::from(v6)], 0)).expect("a listener")
        });
        // Both ends know each other's link address.
        drop(
            lab.source.run(|| {
                TcpStream::connect(listener.local_addr().expect("one")).expect("connected")
            }),
        );
        drop(listener.accept().expect("accepted"));
        planned(&lab);
        lab.deafen();
        let fd = connecting(&lab, v6, listener.local_addr().expect("an address"));
        let name = local(&fd);
        lab.close();
        lab.heal();
        let (tasks, _) = moved(&lab, v6, fd);
        let (mut peer, from) = listener.accept().expect("the peer takes it");
        assert_eq!(from.to_string(), name, "the same port");
        lab.target.sh(NO_RST);
        let mut own = tasks.stream(0);
        assert!(own.take_error().expect("asked").is_none());
        talks(&mut own, &mut peer);
    }
}

/// The SYN never came to the peer: the target sends it once more, with the same sequence number.
#[test]
fn a_syn_that_was_lost_is_sent_again_by_the_target() {
    let lab = Lab::new();
    let listener = lab
        .peer
        .run(|| TcpListener::bind(SocketAddr::new(PEER[0], 0)).expect("a listener"));
    planned(&lab);
    lab.close();
    let fd = connecting(&lab, false, listener.local_addr().expect("an address"));
    let (tasks, image) = moved(&lab, false, fd);
    let (mut peer, _) = listener.accept().expect("the peer takes it");
    talks(&mut tasks.stream(0), &mut peer);
    let (again, kept) = lab
        .target
        .run(|| sock::dump(&lab.target.path(), &[tasks.pid()]).expect("a dump"));
    drop(kept);
    let sent = again.tcp[0].write_seq.wrapping_sub(image.connecting[0].isn);
    assert_eq!(sent, 50_001, "the SYN counts as one");
}
