//! What inspect says of every kind of socket.
mod sock_lab;

use std::{
    collections::BTreeMap,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::Command,
    time::Duration,
};

use netmig_core::{
    image::v1::sock::Holder,
    socket::{Class, Engine, Fate, Kind, Row, State},
};
use netmig_user::{
    sock::{self, Place},
    sys::sockopt,
};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockProtocol, SockType, shutdown, socket,
};
use sock_lab::{CONTAINER, FIRST_FD, Lab, Tasks, connected, owned};

/// One of each, at descriptors in this order.
fn zoo(lab: &Lab, peers: &mut Vec<OwnedFd>) -> Vec<(Class, OwnedFd)> {
    let new = |family, kind, protocol: Option<SockProtocol>| {
        lab.source
            .run(|| socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).expect("a socket"))
    };
    let mut zoo = Vec::new();
    let mut pair = |class, prepare: &dyn Fn(&TcpStream, &TcpStream)| {
        let (own, peer) = connected(lab, false, true);
        prepare(&own, &peer);
        peers.push(owned(peer));
        zoo.push((class, owned(own)));
    };
    pair(Class::TcpEstablished, &|_, _| {});
    pair(Class::TcpCloseWait, &|_, peer| {
        peer.shutdown(std::net::Shutdown::Write).expect("shut down")
    });
    pair(Class::TcpShut, &|own, _| {
        own.shutdown(std::net::Shutdown::Write).expect("shut down")
    });
    pair(Class::TcpElsewhere, &|_, _| {});
    let listener = lab
        .source
        .run(|| TcpListener::bind(SocketAddr::new(CONTAINER[0], 7100)).expect("a listener"));
    let waiting = lab
        .peer
        .run(|| TcpStream::connect(SocketAddr::new(CONTAINER[0], 7100)).expect("a connection"));
    peers.push(owned(waiting));
    zoo.push((Class::TcpListen, owned(listener)));
    zoo.push((
        Class::TcpClosed,
        new(AddressFamily::Inet, SockType::Stream, None),
    ));
    let udp = |port| {
        lab.source
            .run(|| UdpSocket::bind(SocketAddr::new(CONTAINER[0], port)).expect("a socket"))
    };
    zoo.push((Class::Udp, owned(udp(7200))));
    let queued = udp(7201);
    lab.peer.run(|| {
        UdpSocket::bind("0.0.0.0:0")
            .expect("a socket")
            .send_to(b"unread", (CONTAINER[0], 7201))
            .expect("sent")
    });
    zoo.push((Class::UdpQueued, owned(queued)));
    let corked = udp(7202);
    sockopt::set_int(&corked, libc::SOL_UDP, libc::UDP_CORK, 1).expect("UDP_CORK");
    corked.connect("192.0.2.1:9").expect("connected");
    corked.send(b"not yet").expect("corked");
    zoo.push((Class::UdpCorked, owned(corked)));
    let (one, two) = lab.source.run(|| UnixStream::pair().expect("a pair"));
    zoo.push((Class::Unix, owned(one)));
    zoo.push((Class::Unix, owned(two)));
    let (inside, outside) = lab.source.run(|| UnixStream::pair().expect("a pair"));
    zoo.push((Class::UnixOutside, owned(inside)));
    peers.push(owned(outside));
    zoo.push((
        Class::Raw,
        new(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp)),
    ));
    zoo.push((
        Class::Packet,
        new(AddressFamily::Packet, SockType::Raw, None),
    ));
    zoo.push((
        Class::Netlink,
        new(
            AddressFamily::Netlink,
            SockType::Raw,
            Some(SockProtocol::NetlinkRoute),
        ),
    ));
    zoo.push((
        Class::OtherNetns,
        owned(
            lab.peer
                .run(|| UdpSocket::bind("0.0.0.0:0").expect("a socket")),
        ),
    ));
    zoo
}

#[test]
fn every_kind_has_its_row_owner_and_fate() {
    let lab = Lab::new();
    let mut peers = Vec::new();
    let zoo = zoo(&lab, &mut peers);
    // An orphan: closed with bytes that cannot be sent; and connections in TIME_WAIT, one of them inside.
    lab.source.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("its address");
        drop(TcpStream::connect(at).expect("connected"));
        drop(listener.accept().expect("accepted"));
    });
    let (own, peer) = connected(&lab, false, false);
    own.shutdown(std::net::Shutdown::Write).expect("shut down");
    drop((peer, own));
    let (mut own, peer) = connected(&lab, false, true);
    std::thread::sleep(Duration::from_millis(100));
    lab.close();
    own.write_all(b"last words").expect("written");
    drop(own);
    peers.push(owned(peer));

    let (classes, mut fds): (Vec<Class>, Vec<OwnedFd>) = zoo.into_iter().unzip();
    // Somebody else holds the fourth one.
    let elsewhere = fds.remove(3);
    let expected: Vec<(Class, i32)> = classes
        .iter()
        .filter(|c| **c != Class::TcpElsewhere)
        .copied()
        .zip(FIRST_FD..)
        .collect();
    let tasks = Tasks::holding(fds);
    let rows = sock::rows(&lab.source.path(), &[tasks.pid()]).expect("rows");
    for (class, fd) in expected {
        let owned: Vec<&Row> = rows
            .iter()
            .filter(|r| r.owners.iter().any(|o| o.fd == fd && o.pid == tasks.pid()))
            .collect();
        assert_eq!(
            owned.iter().map(|r| r.class).collect::<Vec<_>>(),
            [class],
            "descriptor {fd}"
        );
    }
    for class in [
        Class::TcpElsewhere,
        Class::TcpEmbryo,
        Class::TcpOrphan,
        Class::TcpTimeWait,
    ] {
        let found: Vec<&Row> = rows.iter().filter(|r| r.class == class).collect();
        assert_eq!(found.len(), 1, "{class:?}: {found:?}");
        assert!(found[0].owners.is_empty());
        assert_eq!(
            found[0].fate == Fate::Moves,
            class != Class::TcpElsewhere,
            "{class:?}"
        );
    }
    let inside: Vec<&Row> = rows
        .iter()
        .filter(|r| r.class == Class::TcpTimeWaitInside)
        .collect();
    assert!(
        matches!(inside[..], [row] if matches!(row.fate, Fate::Reset(_))),
        "{inside:?}"
    );
    let listener = rows
        .iter()
        .find(|r| r.class == Class::TcpListen)
        .expect("the listener");
    assert_eq!(
        (listener.state, listener.rqueue, listener.local.as_str()),
        (State::Listen, 1, "192.0.2.10:7100")
    );
    let queued = rows
        .iter()
        .find(|r| r.class == Class::UdpQueued)
        .expect("the UDP socket");
    assert!(queued.rqueue >= 6);
    let corked = rows
        .iter()
        .find(|r| r.class == Class::UdpCorked)
        .expect("the corked socket");
    assert!(corked.options.iter().any(|(name, _)| name == "UDP_CORK") || corked.wqueue > 0);

    // Nothing that ss(8) lists is missing.
    let net = format!("--net={}", lab.source.path().display());
    let ss = Command::new("nsenter")
        .args([&net, "ss", "-anHO"])
        .output()
        .expect("ss runs");
    let text = String::from_utf8(ss.stdout).expect("text");
    let mut listed: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let netid = line.split_whitespace().next().expect("a column");
        let kind = match netid {
            "p_raw" | "p_dgr" => "packet",
            u if u.starts_with("u_") => "unix",
            // Its own socket is among them, and gone by now.
            "nl" => continue,
            other => other,
        };
        *listed.entry(kind).or_default() += 1;
    }
    let mut ours: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows.iter().filter(|r| {
        !matches!(r.class, Class::TcpClosed | Class::OtherNetns) && r.kind != Kind::Netlink
    }) {
        *ours.entry(row.kind.to_string()).or_default() += 1;
    }
    let listed: BTreeMap<String, usize> =
        listed.into_iter().map(|(k, n)| (k.to_owned(), n)).collect();
    assert_eq!(ours, listed, "{text}");
    drop((peers, elsewhere));
}

#[test]
fn what_is_not_carried_is_named_in_the_image() {
    let lab = Lab::new();
    let mut peers = Vec::new();
    let zoo = zoo(&lab, &mut peers);
    std::thread::sleep(Duration::from_millis(50));
    lab.close();
    let (_, fds): (Vec<Class>, Vec<OwnedFd>) = zoo.into_iter().unzip();
    let tasks = Tasks::holding(fds);
    let rows = sock::rows(&lab.source.path(), &[tasks.pid()]).expect("rows");
    let (image, _kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    let carried = image.tcp.len() + image.waiting.len() + image.listeners.len() + image.udp.len();
    let by_others = rows
        .iter()
        .filter(|r| {
            matches!(
                r.class,
                Class::Unix | Class::TcpClosed | Class::Kernel | Class::Foreign
            )
        })
        .count();
    assert_eq!(
        carried + image.left.len() + by_others,
        rows.len(),
        "{:#?}",
        image.left
    );
    drop(peers);
}

#[test]
fn options_that_differ_are_listed() {
    let lab = Lab::new();
    let (own, _peer) = connected(&lab, true, true);
    own.set_nodelay(true).expect("TCP_NODELAY");
    let tasks = Tasks::holding(vec![owned(own)]);
    let rows = sock::rows(&lab.source.path(), &[tasks.pid()]).expect("rows");
    let row = rows
        .iter()
        .find(|r| r.class == Class::TcpEstablished)
        .expect("the connection");
    assert_eq!(row.options, [("TCP_NODELAY".to_owned(), "1".to_owned())]);
    assert_eq!(row.fate, Fate::Moves);
}

#[test]
fn ecn_is_missed_only_where_it_was_negotiated() {
    let lab = Lab::new();
    for ns in [&lab.source, &lab.peer] {
        ns.sh("sysctl -qw net.ipv4.tcp_ecn=1");
    }
    let (own, _peer) = connected(&lab, false, true);
    let tasks = Tasks::holding(vec![owned(own)]);
    let rows = sock::rows(&lab.source.path(), &[tasks.pid()]).expect("rows");
    let row = rows
        .iter()
        .find(|r| r.class == Class::TcpEstablished)
        .expect("the connection");
    assert_eq!(row.fate, Fate::MovesWithout(vec!["ECN".to_owned()]));
}

#[test]
fn a_udp_queue_moves_with_its_senders() {
    let lab = Lab::new();
    let senders = lab
        .peer
        .run(|| [(); 2].map(|()| UdpSocket::bind("[::]:0").expect("a socket")));
    let bind = |ns: &sock_lab::Namespace| {
        ns.run(|| {
            let bound = UdpSocket::bind("[::]:7300").expect("a socket");
            let connected = UdpSocket::bind("192.0.2.10:7301").expect("a socket");
            let port = senders[0].local_addr().expect("an address").port();
            connected.connect(("192.0.2.1", port)).expect("connected");
            vec![owned(bound), owned(connected)]
        })
    };
    let sockets = bind(&lab.source);
    let send = |i: usize, to: &str, data: &[u8]| {
        assert_eq!(senders[i].send_to(data, to).expect("sent"), data.len())
    };
    send(0, "[2001:db8::10]:7300", b"one over IPv6");
    send(1, "[::ffff:192.0.2.10]:7300", b"two over IPv4");
    send(1, "[2001:db8::10]:7300", b"");
    send(0, "[2001:db8::10]:7300", &[7; 20_000]);
    send(0, "[::ffff:192.0.2.10]:7301", b"to the connected one");
    send(1, "[::ffff:192.0.2.10]:7301", b"not for it");
    std::thread::sleep(Duration::from_millis(50));
    lab.close();
    let tasks = Tasks::holding(sockets);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    // The source's socket still has everything, and nothing of its options has changed.
    let mut data = [0; 70_000];
    let still = UdpSocket::from(tasks.socket(1));
    assert_eq!(still.recv(&mut data).expect("received"), 20);
    assert_eq!(
        sockopt::int(&still, libc::IPPROTO_IP, libc::IP_PKTINFO).expect("IP_PKTINFO"),
        0
    );
    assert_eq!(
        sockopt::int(&still, libc::SOL_SOCKET, sockopt::number::SO_PEEK_OFF).expect("SO_PEEK_OFF"),
        -1
    );
    let queued = |port| {
        image
            .udp
            .iter()
            .find(|u| u.local.port == port)
            .map(|u| (u.queue.len(), u.lost))
    };
    assert_eq!((queued(7300), queued(7301)), (Some((4, 0)), Some((1, 0))));
    drop((kept, tasks, still));

    let tasks = Tasks::holding(bind(&lab.target));
    let pid = tasks.pid();
    let rebuilt = sock::restore_at(&lab.target.path(), &image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect("rebuilt");
    lab.pass();
    assert_eq!(rebuilt.open().expect("opened").datagrams, 5);
    let ports = [0, 1].map(|i: usize| senders[i].local_addr().expect("an address").port());
    let (bound, connected) = (
        UdpSocket::from(tasks.socket(0)),
        UdpSocket::from(tasks.socket(1)),
    );
    for socket in [&bound, &connected] {
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .expect("a timeout");
    }
    let mut receive = |socket: &UdpSocket| {
        let (len, from) = socket.recv_from(&mut data).expect("received");
        (
            data[..len].to_vec(),
            from.ip().to_canonical().to_string(),
            from.port(),
        )
    };
    assert_eq!(
        receive(&bound),
        (
            b"one over IPv6".to_vec(),
            "2001:db8::1".to_owned(),
            ports[0]
        )
    );
    assert_eq!(
        receive(&bound),
        (b"two over IPv4".to_vec(), "192.0.2.1".to_owned(), ports[1])
    );
    assert_eq!(
        receive(&bound),
        (Vec::new(), "2001:db8::1".to_owned(), ports[1])
    );
    assert_eq!(
        receive(&bound),
        (vec![7; 20_000], "2001:db8::1".to_owned(), ports[0])
    );
    assert_eq!(
        receive(&connected),
        (
            b"to the connected one".to_vec(),
            "192.0.2.1".to_owned(),
            ports[0]
        )
    );
    assert_eq!(shutdown(connected.as_raw_fd(), Shutdown::Both), Ok(()));
}

/// A program that hands itself over has given what moves to a helper; what it keeps to itself is as the plan found it.
#[test]
fn under_handoff_the_report_has_the_sockets_of_the_freeze() {
    let lab = Lab::new();
    let (own, _peer) = connected(&lab, false, true);
    let listener = lab
        .source
        .run(|| TcpListener::bind(SocketAddr::new(CONTAINER[0], 7101)).expect("a listener"));
    let copies = vec![
        owned(own.try_clone().expect("a duplicate")),
        owned(listener.try_clone().expect("a duplicate")),
        owned(lab.source.run(|| UnixStream::pair().expect("a pair").0)),
    ];
    let program = Tasks::holding(copies);
    let ended = lab
        .peer
        .run(|| TcpStream::connect(SocketAddr::new(CONTAINER[0], 7101)));
    let ended = ended.expect("a connection");
    let engine = Engine::Handoff;
    let before = sock::rows_under(&lab.source.path(), &[program.pid()], engine).expect("rows");
    let of = |rows: &[Row], class| rows.iter().filter(|row| row.class == class).count();
    assert_eq!(of(&before, Class::TcpEmbryo), 1);

    // By the freeze one is accepted and closed, and two have come.
    drop(listener.accept().expect("it waits"));
    drop(ended);
    let _more = [(); 2].map(|()| {
        lab.peer
            .run(|| TcpStream::connect(SocketAddr::new(CONTAINER[0], 7101)).expect("a connection"))
    });
    let helper = Tasks::holding(vec![owned(own), owned(listener)]);
    lab.close();
    let mut kept = sock::Kept::default();
    sock::dump_under(&lab.source.path(), &[helper.pid()], engine, &mut kept).expect("a dump");
    let rows = kept.rows(&before).expect("rows");
    assert_eq!(of(&rows, Class::TcpEmbryo), 2);
    for class in [Class::TcpEstablished, Class::TcpListen] {
        let owners = |rows: &[Row]| {
            let row = rows.iter().find(|row| row.class == class).expect("a row");
            row.owners.clone()
        };
        assert_eq!(owners(&rows), owners(&before), "{class}: its program's");
    }
    assert_eq!(of(&rows, Class::TcpElsewhere), 0);
    let unix = |rows: &[Row]| rows.iter().filter(|row| row.kind == Kind::Unix).count();
    assert_eq!(unix(&rows), unix(&before));
    assert!(kept.undo().is_empty());
}
