//! Every row of the option table: set at the source, the same at the target.
mod sock_lab;

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
};

use netmig_core::image::v1::sock::Holder;
use netmig_user::{
    sock::{
        self, Place,
        option::{Opt, Sort, TABLE, When, new_socket},
    },
    sys::sockopt,
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, bind, connect,
    listen, socket,
};
use sock_lab::{CONTAINER, Lab, PEER, Tasks, engine, restore};

/// A value that no new socket has.
fn sample(opt: &Opt, fresh: &[u8]) -> Vec<u8> {
    let int = |n: i32| n.to_ne_bytes().to_vec();
    match opt.text {
        "SO_LINGER" => [int(1), int(7)].concat(),
        "SO_MARK" => int(77),
        "SO_RCVLOWAT" => int(3),
        "SO_RCVTIMEO" | "SO_SNDTIMEO" => [5_i64.to_ne_bytes(), 250_000_i64.to_ne_bytes()].concat(),
        "SO_TIMESTAMPING" | "SO_TIMESTAMPING_NEW" => [int(1 << 3 | 1 << 4), int(0)].concat(),
        "SO_BUSY_POLL" => int(50),
        "SO_MAX_PACING_RATE" => 12_345_678_u64.to_ne_bytes().to_vec(),
        "SO_TXTIME" => [int(1), int(1)].concat(),
        "SO_RESERVE_MEM" => int(8192),
        "SO_TXREHASH" => int(0),
        "SO_PEEK_OFF" => int(5),
        // Return all of the packet.
        "SO_ATTACH_FILTER" => vec![6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        "SO_PRIORITY" => int(3),
        "IP_LOCAL_PORT_RANGE" => int(50_000 << 16 | 40_000),
        "IP_TOS" => int(0x10),
        "IP_TTL" => int(33),
        "IP_MINTTL" | "IPV6_MINHOPCOUNT" => int(60),
        "IP_OPTIONS" => vec![1, 1, 1, 0],
        "IP_MTU_DISCOVER" | "IPV6_MTU_DISCOVER" => int(3),
        "IP_UNICAST_IF" | "IPV6_UNICAST_IF" => 1_i32.to_be_bytes().to_vec(),
        "IP_MULTICAST_TTL" | "IPV6_MULTICAST_HOPS" => int(3),
        "IP_MULTICAST_IF" => vec![192, 0, 2, 10],
        "IPV6_TCLASS" => int(0x20),
        // IPV6_PREFER_SRC_TMP
        "IPV6_ADDR_PREFERENCES" => int(1),
        "IPV6_UNICAST_HOPS" => int(44),
        // Padding only: next header, length 0, PadN of 4.
        "IPV6_HOPOPTS" | "IPV6_DSTOPTS" => vec![0, 0, 1, 4, 0, 0, 0, 0],
        "TCP_KEEPIDLE" => int(77),
        "TCP_KEEPINTVL" => int(11),
        "TCP_KEEPCNT" | "TCP_SYNCNT" => int(3),
        "TCP_LINGER2" => int(30),
        "TCP_NOTSENT_LOWAT" => int(4096),
        "TCP_TX_DELAY" => int(1000),
        "TCP_RTO_MAX_MS" => int(5000),
        "TCP_RTO_MIN_US" => int(52_000),
        "TCP_DELACK_MAX_US" => int(20_000),
        "TCP_USER_TIMEOUT" => int(5000),
        "TCP_DEFER_ACCEPT" => int(3),
        "TCP_FASTOPEN" => int(16),
        "TCP_FASTOPEN_KEY" => (1..=16).collect(),
        "UDP_ENCAP" => int(2),
        "UDP_SEGMENT" => int(1000),
        "UDPLITE_SEND_CSCOV" | "UDPLITE_RECV_CSCOV" => int(20),
        _ => int(i32::from(fresh == int(0))),
    }
}

/// Options that a kernel may lack, or that need what not every machine has (memory cgroups, IPsec).
const MAY_BE_MISSING: &[&str] = &[
    "SO_RESERVE_MEM",
    "UDP_ENCAP",
    "IP_PASSSEC",
    "SO_RCVPRIORITY",
    "TCP_RTO_MAX_MS",
    "TCP_RTO_MIN_US",
    "TCP_DELACK_MAX_US",
];

/// Makes a socket with one option set; none if this kernel does not know the option.
fn with(
    opt: &Opt,
    new: impl FnOnce() -> OwnedFd,
    finish: impl FnOnce(&OwnedFd),
) -> Option<(OwnedFd, Vec<u8>)> {
    let fd = new();
    let missing = |what: &str| {
        assert!(
            MAY_BE_MISSING.contains(&opt.text),
            "{} cannot be {what}",
            opt.text
        )
    };
    let Some(fresh) = opt.read(&fd) else {
        missing("read");
        return None;
    };
    let value = sample(opt, &fresh);
    let set = |fd: &OwnedFd| match opt.set(fd, &value) {
        Ok(()) => true,
        Err(e) => {
            missing(&format!("set: {e}"));
            false
        }
    };
    if opt.when == When::First && !set(&fd) {
        return None;
    }
    finish(&fd);
    if opt.when != When::First && !set(&fd) {
        return None;
    }
    let now = opt.read(&fd).expect("it could be read before");
    assert_ne!(now, fresh, "{} does not take {value:?}", opt.text);
    Some((fd, now))
}

fn new(v6: bool, kind: SockType) -> OwnedFd {
    let family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket")
}

fn at(v6: bool, port: u16) -> SockaddrStorage {
    SocketAddr::new(CONTAINER[usize::from(v6)], port).into()
}

/// The rows for a sort of socket, over both families.
fn rows(sort: Sort) -> impl Iterator<Item = (&'static Opt, bool)> {
    [false, true].into_iter().flat_map(move |v6| {
        TABLE
            .iter()
            .filter(move |o| o.applies(sort, v6))
            // sock_setsockopt() takes it for TCP, UDP and RDS only.
            .filter(move |o| sort != Sort::UdpLite || o.text != "SO_ZEROCOPY")
            .map(move |o| (o, v6))
    })
}

#[test]
fn of_connections() {
    let lab = Lab::new();
    let servers = PEER.map(|ip| {
        lab.peer
            .run(|| TcpListener::bind(SocketAddr::new(ip, 0)).expect("a listener"))
    });
    let mut peers = Vec::new();
    let mut set = Vec::new();
    let mut sockets = Vec::new();
    for (opt, v6) in rows(Sort::Tcp) {
        let server = &servers[usize::from(v6)];
        let to: SockaddrStorage = server.local_addr().expect("an address").into();
        let made = lab.source.run(|| {
            with(
                opt,
                || new(v6, SockType::Stream),
                |fd| connect(fd.as_raw_fd(), &to).expect("a connection"),
            )
        });
        if let Some((fd, value)) = made {
            peers.push(server.accept().expect("a connection").0);
            sockets.push(fd);
            set.push((opt, v6, value));
        } else {
            println!("{} v6 {v6}: not on this kernel", opt.text);
        }
    }
    lab.close();
    let tasks = Tasks::holding(sockets);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    drop((kept, tasks));
    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    assert!(rebuilt.refused().is_empty(), "{:?}", rebuilt.refused());
    lab.pass();
    rebuilt.open().expect("opened");
    for (i, (opt, v6, value)) in set.iter().enumerate() {
        assert_eq!(
            opt.read(&tasks.socket(i)).as_ref(),
            Some(value),
            "{} v6 {v6}",
            opt.text
        );
    }
    println!("{} options of connections are the same", set.len());
    drop(peers);
}

/// Listeners and UDP sockets: the engine has made and bound them, and knows none of the options.
fn of_bound(sort: Sort) {
    let lab = Lab::new();
    let new = |v6| new_socket(sort, v6).expect("a socket");
    let bound = |v6: bool, i: u16, fd: &OwnedFd| {
        let address = at(v6, 9000 + i);
        bind(fd.as_raw_fd(), &address as &dyn SockaddrLike).expect("bound");
        if sort == Sort::Listen {
            listen(fd, Backlog::new(8).expect("a backlog")).expect("listening");
        }
    };
    let mut set = Vec::new();
    let mut sockets = Vec::new();
    for ((opt, v6), i) in rows(sort).zip(0..) {
        match lab
            .source
            .run(|| with(opt, || new(v6), |fd| bound(v6, i, fd)))
        {
            Some((fd, value)) => {
                sockets.push(fd);
                set.push((opt, v6, i, value));
            }
            None => println!("{} v6 {v6}: not on this kernel", opt.text),
        }
    }
    let tasks = Tasks::holding(sockets);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!(image.listeners.len() + image.udp.len(), set.len());
    drop((kept, tasks));
    let made = lab.target.run(|| {
        let engine = |&(opt, v6, i, _): &(&Opt, bool, u16, Vec<u8>)| {
            let fd = new(v6);
            // What can only be set before bind is the engine's.
            if opt.text == "IPV6_V6ONLY" {
                opt.set(&fd, &1_i32.to_ne_bytes()).expect("set");
            }
            bound(v6, i, &fd);
            fd
        };
        set.iter().map(engine).collect()
    });
    let tasks = Tasks::holding(made);
    let pid = tasks.pid();
    let rebuilt = sock::restore_at(&lab.target.path(), &image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect("rebuilt");
    assert!(rebuilt.refused().is_empty(), "{:?}", rebuilt.refused());
    for (i, (opt, v6, _, value)) in set.iter().enumerate() {
        assert_eq!(
            opt.read(&tasks.socket(i)).as_ref(),
            Some(value),
            "{} v6 {v6}",
            opt.text
        );
    }
    println!("{} options of {sort:?} sockets are the same", set.len());
}

#[test]
fn of_listeners() {
    of_bound(Sort::Listen);
}

#[test]
fn of_udp_sockets() {
    of_bound(Sort::Udp);
}

#[test]
fn of_udp_lite_sockets() {
    of_bound(Sort::UdpLite);
}

#[test]
fn buffers_locks_reuse_congestion_and_device() {
    let lab = Lab::new();
    let server = lab
        .peer
        .run(|| TcpListener::bind(SocketAddr::new(PEER[0], 0)).expect("a listener"));
    let connection = |options: &[(i32, i32, i32)], texts: &[(i32, i32, &str)]| {
        let fd = lab.source.run(|| new(false, SockType::Stream));
        for &(level, name, value) in options {
            sockopt::set_int(&fd, level, name, value).expect("set");
        }
        for (level, name, value) in texts {
            sockopt::set(&fd, *level, *name, value.as_bytes()).expect("set");
        }
        connect(
            fd.as_raw_fd(),
            &SockaddrStorage::from(server.local_addr().expect("an address")),
        )
        .expect("a connection");
        (fd, server.accept().expect("a connection").0)
    };
    let (sol, tcp) = (libc::SOL_SOCKET, libc::SOL_TCP);
    let made: Vec<(OwnedFd, TcpStream)> = vec![
        connection(&[], &[]),
        connection(
            &[(sol, libc::SO_SNDBUF, 30_000)],
            &[(tcp, libc::TCP_CONGESTION, "reno")],
        ),
        connection(
            &[(sol, libc::SO_RCVBUF, 50_000), (sol, libc::SO_REUSEADDR, 1)],
            &[(tcp, libc::TCP_CONGESTION, "cubic")],
        ),
        connection(
            &[
                (sol, libc::SO_REUSEPORT, 1),
                (tcp, libc::TCP_WINDOW_CLAMP, 8000),
            ],
            &[(sol, libc::SO_BINDTODEVICE, "eth0")],
        ),
    ];
    let asked = [
        (sol, libc::SO_SNDBUF),
        (sol, libc::SO_RCVBUF),
        (sol, sockopt::number::SO_BUF_LOCK),
        (sol, libc::SO_REUSEADDR),
        (sol, libc::SO_REUSEPORT),
        (sol, libc::SO_BINDTODEVICE),
        (tcp, libc::TCP_CONGESTION),
        (tcp, libc::TCP_WINDOW_CLAMP),
        (tcp, libc::TCP_MAXSEG),
    ];
    let ask = |fd: &OwnedFd| {
        asked.map(|(level, name)| sockopt::bytes(fd, level, name, 16).expect("read"))
    };
    let before: Vec<_> = made.iter().map(|(fd, _)| ask(fd)).collect();
    lab.close();
    let (own, peers): (Vec<OwnedFd>, Vec<TcpStream>) = made.into_iter().unzip();
    let tasks = Tasks::holding(own);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    for (i, before) in before.iter().enumerate() {
        assert_eq!(&ask(&tasks.socket(i)), before, "a dump changes nothing");
    }
    drop((kept, tasks));
    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    rebuilt.open().expect("opened");
    for (i, before) in before.iter().enumerate() {
        for ((what, now), before) in asked.iter().zip(ask(&tasks.socket(i))).zip(before) {
            assert_eq!(&now, before, "connection {i}, option {what:?}");
        }
    }
    drop(peers);
}
