//! Live connections behind a closed gate: read for a keeper, calmed, given room, and woken when the container stays.
mod sock_lab;

use std::{
    collections::HashMap,
    io::Write as _,
    net::TcpStream,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use etherparse::{SlicedPacket, TcpOptionElement, TransportSlice};
use netmig_core::image::v1::sock::Endpoint;
use netmig_user::{
    sock::{self, Live, Look, Need},
    sys::sockopt::{self, number::SO_BUF_LOCK},
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use sock_lab::{Lab, Tasks, connected, expect, in_repair, owned, pattern};

const UNREAD: usize = 300;
const WRITTEN: usize = 700;

/// Connections with bytes unread at the container's end and in flight from it, behind a closed gate.
fn stopped(count: usize) -> (Lab, Tasks, Vec<TcpStream>) {
    let lab = Lab::new();
    let mut all: Vec<_> = (0..count)
        .map(|i| connected(&lab, i % 2 == 1, i % 4 < 2))
        .collect();
    for (_, peer) in &mut all {
        peer.write_all(&pattern(0, UNREAD)).expect("written");
    }
    std::thread::sleep(Duration::from_millis(100));
    lab.close();
    let (own, peers): (Vec<OwnedFd>, Vec<_>) = all
        .into_iter()
        .map(|(mut own, peer)| {
            own.write_all(&pattern(0, WRITTEN)).expect("written");
            (owned(own), peer)
        })
        .unzip();
    (lab, Tasks::holding(own), peers)
}

fn ends(live: &Live) -> (Endpoint, Endpoint) {
    (live.local, live.peer)
}

#[test]
fn what_is_read_is_what_a_dump_says() {
    const COUNT: usize = 66;
    let (lab, tasks, _peers) = stopped(COUNT);
    let pids = [tasks.pid()];
    let begun = Instant::now();
    let live = sock::live(&lab.source.path(), &pids, Look::First).expect("read");
    println!("{COUNT} connections: {:?}", begun.elapsed());
    assert!((0..COUNT).all(|i| !in_repair(&tasks.socket(i))));
    let (image, _kept) = sock::dump(&lab.source.path(), &pids).expect("a dump");
    let dumped: HashMap<_, _> = image
        .tcp
        .iter()
        .filter_map(Live::of)
        .map(|l| (ends(&l), l))
        .collect();
    assert_eq!((live.len(), dumped.len()), (COUNT, COUNT));
    for live in &live {
        let dumped = dumped[&ends(live)];
        assert_eq!(live.received, UNREAD as u64);
        assert_eq!(live.snd_nxt.wrapping_sub(live.snd_una), WRITTEN as u32);
        assert!((1000..2000).contains(&live.rcv_mss), "{live:?}");
        let (then, now) = (live.stamp.expect("a stamp"), dumped.stamp.expect("a stamp"));
        // A tick: neither says the last bit.
        let passed = now.wrapping_sub(then) as i32;
        assert!((-1..10_000).contains(&passed), "the clock goes on");
        let same = Live {
            stamp: dumped.stamp,
            rcv_mss: dumped.rcv_mss,
            received: dumped.received,
            ..*live
        };
        assert_eq!(same, dumped);
    }
    let received = sock::received(&lab.source.path()).expect("counted");
    assert_eq!(received.len(), COUNT);
    assert!(received.iter().all(|(.., bytes)| *bytes == UNREAD as u64));
}

/// tsval of every segment that leaves a namespace from `port`, as far as it has come to the packet socket.
fn stamps(packets: &OwnedFd, port: u16) -> Vec<u32> {
    let mut frame = [0; 2048];
    let mut stamps = Vec::new();
    while let Ok(length) = recv(packets.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
        let sliced = SlicedPacket::from_ethernet(&frame[..length]).expect("a frame");
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            continue;
        };
        if tcp.source_port() == port {
            stamps.extend(tcp.options_iterator().filter_map(|o| match o {
                Ok(TcpOptionElement::Timestamp(tsval, _)) => Some(tsval),
                _ => None,
            }));
        }
    }
    stamps
}

#[test]
fn no_stamp_is_older_than_the_last_one_that_was_sent() {
    let lab = Lab::new();
    let (own, _peer) = connected(&lab, false, false);
    own.set_nodelay(true).expect("TCP_NODELAY");
    let port = own.local_addr().expect("an address").port();
    let tasks = Tasks::holding(vec![owned(own)]);
    let mut own = tasks.stream(0);
    let packets = lab.source.run(|| {
        socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .expect("a packet socket")
    });
    let mut seen = 0;
    for _ in 0..500 {
        own.write_all(b"!").expect("written");
        let sent = stamps(&packets, port);
        let live = sock::live(&lab.source.path(), &[tasks.pid()], Look::Again).expect("read");
        // Bit 0 is the unit.
        let stamp = live[0].stamp.expect("a stamp") | 1;
        // On a busy machine a segment may have to wait for an ACK.
        if let Some(last) = sent.last() {
            seen += 1;
            let later = stamp.wrapping_sub(*last) as i32;
            assert!((0..5000).contains(&later), "{stamp} after {last} was sent");
        }
    }
    assert!(seen > 100, "{seen} segments were seen");
}

/// Only what netmig sends itself has this hop limit.
const NOT_BY_THE_STACK: &str = "nft 'add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o ip ttl != 255 meta l4proto tcp drop; add rule inet t o ip6 hoplimit != 255 meta l4proto tcp drop'";

#[test]
fn what_has_come_is_acknowledged_up_to_the_same_edge() {
    let lab = Lab::new();
    let mut all: Vec<_> = (0..4)
        .map(|i| connected(&lab, i % 2 == 1, i % 4 < 2))
        .collect();
    lab.source.sh(NOT_BY_THE_STACK);
    for (_, peer) in &mut all {
        peer.write_all(&pattern(0, UNREAD)).expect("written");
    }
    let (own, peers): (Vec<OwnedFd>, Vec<_>) = all
        .into_iter()
        .map(|(own, peer)| (owned(own), peer))
        .unzip();
    let tasks = Tasks::holding(own);
    let in_flight = || {
        let bytes = |peer| sockopt::queue_len(peer, libc::TIOCOUTQ).expect("counted");
        peers.iter().map(bytes).collect::<Vec<_>>()
    };
    assert_eq!(in_flight(), [UNREAD; 4], "the stack's ACKs are dropped");
    let live = sock::live(&lab.source.path(), &[tasks.pid()], Look::First).expect("read");
    assert_eq!(live.len(), peers.len());
    let until = Instant::now() + Duration::from_secs(10);
    while in_flight() != [0; 4] {
        assert!(Instant::now() < until, "{:?} not acknowledged", in_flight());
    }
    let sorted = |mut windows: Vec<u32>| {
        windows.sort_unstable();
        windows
    };
    let edges = live.iter().map(|l| {
        let window = l.edge().wrapping_sub(l.rcv_nxt);
        window >> l.rcv_wscale << l.rcv_wscale
    });
    let announced = peers.iter().map(announced).collect();
    assert_eq!(sorted(announced), sorted(edges.collect()));
}

/// The window that a peer knows, in bytes (tcpi_snd_wnd, at 228 of struct tcp_info).
fn announced(peer: &TcpStream) -> u32 {
    let info: [u8; 232] =
        sockopt::read(peer, libc::SOL_TCP, libc::TCP_INFO).expect("TCP_INFO is read");
    u32::from_ne_bytes(*info.last_chunk().expect("four bytes"))
}

#[test]
fn timers_are_off_and_on_again_and_an_image_has_them() {
    let (lab, tasks, _peers) = stopped(3);
    let (source, pids) = (lab.source.path(), [tasks.pid()]);
    let socket = tasks.socket(1);
    sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).expect("set");
    sockopt::set_int(&socket, libc::SOL_TCP, libc::TCP_USER_TIMEOUT, 3000).expect("set");
    let both = || {
        let int = |level, name| sockopt::int(&socket, level, name).expect("read");
        (
            int(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            int(libc::SOL_TCP, libc::TCP_USER_TIMEOUT),
        )
    };
    let (before, _kept) = sock::dump(&source, &pids).expect("a dump");
    let timers = sock::timers(&source, &pids).expect("read");
    assert_eq!(timers.len(), 1);
    sock::calm(&source, &pids, &timers).expect("calm");
    assert_eq!(both(), (0, 0));
    let (mut meanwhile, _kept) = sock::dump(&source, &pids).expect("a dump");
    assert_ne!(
        settings(&meanwhile, &timers[0]),
        settings(&before, &timers[0])
    );
    for tcp in &mut meanwhile.tcp {
        if (tcp.local.canonical(), tcp.peer.canonical()) == (timers[0].local, timers[0].peer) {
            timers[0].put_back(&mut tcp.common);
        }
    }
    assert_eq!(
        settings(&meanwhile, &timers[0]),
        settings(&before, &timers[0])
    );
    sock::rouse(&source, &pids, &timers).expect("rouse");
    assert_eq!(both(), (1, 3000));
}

/// The options of the connection with these timers, in a fixed order.
fn settings(
    image: &netmig_core::image::v1::sock::Sockets,
    of: &sock::Calmed,
) -> Vec<(i32, i32, Vec<u8>)> {
    let tcp = image
        .tcp
        .iter()
        .find(|tcp| (tcp.local.canonical(), tcp.peer.canonical()) == (of.local, of.peer))
        .expect("the connection");
    let mut all: Vec<_> = tcp
        .common
        .settings
        .iter()
        .map(|set| (set.level, set.name, set.value.clone()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_receive_buffer_is_wide_for_a_while() {
    let (lab, tasks, _peers) = stopped(2);
    let (source, pids) = (lab.source.path(), [tasks.pid()]);
    let read = |i: usize| {
        let socket = tasks.socket(i);
        let int = |name| sockopt::int(&socket, libc::SOL_SOCKET, name).expect("read");
        (int(libc::SO_RCVBUF), int(SO_BUF_LOCK))
    };
    let before = [read(0), read(1)];
    let live = sock::live(&source, &pids, Look::First).expect("read");
    let needs: Vec<_> = live.iter().map(|l| need(l, 50 << 20, l.rcv_nxt)).collect();
    let (widened, failed) = sock::widen(&source, &pids, &needs);
    assert!(failed.is_empty(), "{failed:?}");
    for (i, before) in before.iter().enumerate() {
        assert!(read(i).0 - before.0 >= 50 << 20, "whatever rmem_max says");
    }
    assert!(widened.end().is_empty());
    assert_eq!([read(0), read(1)], before);
}

fn need(live: &Live, bytes: u64, edge: u32) -> Need {
    Need {
        local: live.local,
        peer: live.peer,
        bytes,
        edge,
    }
}

/// What a peer sends beyond the edge because it was asked to is taken once the edge has been moved, whatever the program has not read.
#[test]
fn a_full_window_takes_what_its_peer_was_asked_for() {
    const BEYOND: u32 = 20_000;
    let lab = Lab::new();
    let (own, mut peer) = connected(&lab, false, false);
    let tasks = Tasks::holding(vec![owned(own)]);
    let (source, pids) = (lab.source.path(), [tasks.pid()]);
    peer.set_nonblocking(true).expect("set");
    while peer.write(&pattern(0, 1 << 16)).is_ok() {}
    let until = Instant::now() + Duration::from_secs(10);
    while announced(&peer) > 0 {
        assert!(Instant::now() < until, "the window does not close");
    }
    let live = sock::live(&source, &pids, Look::Again).expect("read");
    assert_eq!((live.len(), announced(&peer)), (1, 0), "it is not asked");
    lab.deafen();
    let live = sock::live(&source, &pids, Look::First).expect("read")[0];
    let until = Instant::now() + Duration::from_secs(10);
    while announced(&peer) < live.rcv_mss {
        assert!(Instant::now() < until, "it is not asked");
    }
    let received = || sock::received(&source).expect("counted")[0].2;
    assert_eq!(received(), live.received, "nothing is taken");
    let edge = live.rcv_nxt.wrapping_add(BEYOND);
    let (widened, failed) = sock::widen(&source, &pids, &[need(&live, 1 << 20, edge)]);
    assert!(failed.is_empty(), "{failed:?}");
    lab.heal();
    sock::tell_windows(&source, &[live]).expect("told");
    let until = Instant::now() + Duration::from_secs(10);
    while received() < live.received + u64::from(BEYOND / 2) {
        assert!(
            Instant::now() < until,
            "{} more",
            received() - live.received
        );
    }
    assert!(widened.end().is_empty());
}

#[test]
fn what_was_dropped_is_sent_again_without_a_timer() {
    let (lab, tasks, mut peers) = stopped(2);
    // By now the timers have doubled to a second and more.
    std::thread::sleep(Duration::from_millis(1700));
    lab.reopen();
    let begun = Instant::now();
    let (sent, failed) = sock::resend(&lab.source.path(), &[tasks.pid()]);
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(sent, 2);
    for peer in &mut peers {
        expect(peer, 0, WRITTEN);
    }
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert!((0..2).all(|i| !in_repair(&tasks.socket(i))));
}

#[test]
fn what_a_killed_agent_has_left_in_repair_works_again() {
    let lab = Lab::new();
    let (listener, (accepted, mut peer)) = lab.source.run(|| {
        let listener = std::net::TcpListener::bind("192.0.2.10:0").expect("a listener");
        let at = listener.local_addr().expect("an address");
        let peer = lab
            .peer
            .run(|| TcpStream::connect(at).expect("a connection"));
        let (accepted, _) = listener.accept().expect("accepted");
        (listener, (accepted, peer))
    });
    let (outbound, mut other) = connected(&lab, true, true);
    let (untouched, _third) = connected(&lab, false, false);
    let datagrams = lab
        .source
        .run(|| std::net::UdpSocket::bind("192.0.2.10:0").expect("a socket"));
    let local = std::os::unix::net::UnixStream::pair().expect("a pair").0;
    let tasks = Tasks::holding(vec![
        owned(datagrams),
        owned(accepted),
        owned(listener),
        owned(local),
        owned(outbound),
        owned(untouched),
    ]);
    assert_eq!(sock::leave_repair(&[tasks.pid()]).0, 0);
    let [accepted, outbound] = [1, 4].map(|i| tasks.socket(i));
    for fd in [&accepted, &outbound] {
        sockopt::set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, 1).expect("in repair");
        assert!(
            (&TcpStream::from(fd.try_clone().expect("a duplicate")))
                .write_all(b"x")
                .is_err()
        );
    }
    let (found, failed) = sock::leave_repair(&[tasks.pid()]);
    assert!(found == 2 && failed.is_empty(), "{found} {failed:?}");
    for (fd, peer, shares) in [(accepted, &mut peer, 1), (outbound, &mut other, 0)] {
        assert!(!in_repair(&fd));
        let reuseaddr = sockopt::int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).expect("read");
        assert_eq!(reuseaddr, shares);
        let again = pattern(0, 100);
        TcpStream::from(fd).write_all(&again).expect("written");
        expect(peer, 0, again.len());
    }
}

/// Seconds that a program's connection is given by its own options, and retries of a host that is impatient.
const PATIENCE: i32 = 3;
const RETRIES: u32 = 3;

/// A connection with data in flight that would give up by its keepalive, by its TCP_USER_TIMEOUT, and by its retries, comes through a blackout
/// that the container then stays after.
fn comes_through(blackout: Duration) {
    let lab = Lab::new();
    let source = lab.source.path();
    sock::allow_retries(&source, Some(RETRIES)).expect("set");
    // The real gate leaves neighbours alone.
    lab.source.ip("neigh replace 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent\nneigh replace 2001:db8::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent\n");
    let all: Vec<_> = [false, true]
        .into_iter()
        .flat_map(|v6| [false, true].map(|outbound| connected(&lab, v6, outbound)))
        .collect();
    let (own, mut peers): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    for own in &own {
        for (level, name, value) in [
            (libc::SOL_TCP, libc::TCP_USER_TIMEOUT, 1000 * PATIENCE),
            (libc::SOL_TCP, libc::TCP_KEEPIDLE, 1),
            (libc::SOL_TCP, libc::TCP_KEEPINTVL, 1),
            (libc::SOL_TCP, libc::TCP_KEEPCNT, PATIENCE),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        ] {
            sockopt::set_int(own, level, name, value).expect("set");
        }
    }
    lab.close();
    // One is silent, and has its keepalives alone.
    for mut own in &own[1..] {
        own.write_all(&pattern(0, WRITTEN)).expect("written");
    }
    let tasks = Tasks::holding(own.into_iter().map(owned).collect());
    let pids = [tasks.pid()];
    let timers = sock::timers(&source, &pids).expect("read");
    let retries = sock::retries(&source).expect("read");
    assert_eq!((timers.len(), retries), (4, Some(RETRIES)));
    sock::allow_retries(&source, None).expect("raised");
    sock::calm(&source, &pids, &timers).expect("calmed");

    std::thread::sleep(blackout);
    lab.reopen();
    let (sent, failed) = sock::resend(&source, &pids);
    assert!(sent == 3 && failed.is_empty(), "{sent} {failed:?}");
    sock::rouse(&source, &pids, &timers).expect("roused");
    sock::allow_retries(&source, retries).expect("as before");
    let begun = Instant::now();
    for peer in &mut peers[1..] {
        expect(peer, 0, WRITTEN);
    }
    assert!(begun.elapsed() < Duration::from_millis(500));
    // And go on, each way, with the options that they had.
    std::thread::sleep(Duration::from_millis(1500));
    for (i, peer) in peers.iter_mut().enumerate() {
        let mut own = tasks.stream(i);
        own.write_all(&pattern(WRITTEN, 100)).expect("it lives");
        expect(peer, WRITTEN, 100);
        peer.write_all(&pattern(0, 100)).expect("it lives");
        expect(&mut own, 0, 100);
        let fd = tasks.socket(i);
        let int = |level, name| sockopt::int(&fd, level, name).expect("read");
        let is = [
            int(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            int(libc::SOL_TCP, libc::TCP_USER_TIMEOUT),
        ];
        assert_eq!(is, [1, 1000 * PATIENCE]);
    }
    assert_eq!(sock::retries(&source).expect("read"), Some(RETRIES));
}

#[test]
fn connections_of_the_container_do_not_give_up_in_a_blackout() {
    comes_through(Duration::from_secs(9));
}

/// As above, for as long as the issue of it says.
#[test]
#[ignore = "takes a minute; by name"]
fn connections_of_the_container_do_not_give_up_in_60_s() {
    comes_through(Duration::from_secs(60));
}
