//! Datagram sockets: what waits in their queues, and which groups they have joined.
mod sock_lab;

use std::{
    io::IoSliceMut,
    net::UdpSocket,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use netmig_core::image::v1::sock::{Holder, Sockets};
use netmig_user::{
    sock::{self, Place, Rebuilt},
    sys::sockopt,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use sock_lab::{Lab, Namespace, Tasks, owned};

const PORT: u16 = 7400;

fn dump(lab: &Lab, tasks: &Tasks) -> Sockets {
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    drop(kept);
    image
}

fn restore(lab: &Lab, tasks: &Tasks, image: &Sockets) -> Rebuilt {
    let pid = tasks.pid();
    sock::restore_at(&lab.target.path(), image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect("rebuilt")
}

/// One message with its control messages.
fn receive(socket: &UdpSocket) -> (Vec<u8>, Vec<ControlMessageOwned>) {
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a timeout");
    let (mut data, mut control) = (vec![0; 1 << 16], vec![0; 1024]);
    let mut slices = [IoSliceMut::new(&mut data)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    )
    .expect("a datagram");
    let (len, cmsgs) = (message.bytes, message.cmsgs().expect("whole").collect());
    (data[..len].to_vec(), cmsgs)
}

#[test]
fn a_queued_datagram_keeps_its_hop_limit_and_type_of_service() {
    let lab = Lab::new();
    let bind = |ns: &Namespace, options: bool| {
        ns.run(|| {
            let socket = UdpSocket::bind(("::", PORT)).expect("a socket");
            for (level, name) in [
                (libc::IPPROTO_IP, libc::IP_RECVTTL),
                (libc::IPPROTO_IP, libc::IP_RECVTOS),
                (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
                (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
            ] {
                if options {
                    sockopt::set_int(&socket, level, name, 1).expect("set");
                }
            }
            owned(socket)
        })
    };
    let at_source = bind(&lab.source, true);
    lab.peer.run(|| {
        let v4 = UdpSocket::bind("192.0.2.1:0").expect("a socket");
        sockopt::set_int(&v4, libc::IPPROTO_IP, libc::IP_TOS, 0x28).expect("IP_TOS");
        sockopt::set_int(&v4, libc::IPPROTO_IP, libc::IP_TTL, 33).expect("IP_TTL");
        v4.send_to(b"four", ("192.0.2.10", PORT)).expect("sent");
        let v6 = UdpSocket::bind("[2001:db8::1]:0").expect("a socket");
        sockopt::set_int(&v6, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0x48).expect("a class");
        sockopt::set_int(&v6, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 44).expect("hops");
        v6.send_to(b"six", ("2001:db8::10", PORT)).expect("sent");
    });
    std::thread::sleep(Duration::from_millis(50));
    lab.close();
    let tasks = Tasks::holding(vec![at_source]);
    let image = dump(&lab, &tasks);
    drop(tasks);
    // The engine knows none of the options.
    let tasks = Tasks::holding(vec![bind(&lab.target, false)]);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    assert_eq!(rebuilt.open().expect("opened").datagrams, 2);
    let socket = UdpSocket::from(tasks.socket(0));
    let (data, control) = receive(&socket);
    assert_eq!(data, b"four");
    assert!(
        control.contains(&ControlMessageOwned::Ipv4Ttl(33))
            && control.contains(&ControlMessageOwned::Ipv4Tos(0x28)),
        "{control:?}"
    );
    let (data, control) = receive(&socket);
    assert_eq!(data, b"six");
    assert!(
        control.contains(&ControlMessageOwned::Ipv6HopLimit(44))
            && control.contains(&ControlMessageOwned::Ipv6TClass(0x48)),
        "{control:?}"
    );
}

#[test]
fn datagrams_that_gro_has_joined_come_apart_again() {
    const SIZE: usize = 1000;
    let lab = Lab::new();
    let bind = |ns: &Namespace| {
        ns.run(|| {
            let socket = UdpSocket::bind(("192.0.2.10", PORT)).expect("a socket");
            sockopt::set_int(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).expect("UDP_GRO");
            owned(socket)
        })
    };
    let at_source = bind(&lab.source);
    let sent: Vec<u8> = (0..3500_u32).map(|i| (i * 7) as u8).collect();
    lab.peer.run(|| {
        let socket = UdpSocket::bind("192.0.2.1:0").expect("a socket");
        sockopt::set_int(
            &socket,
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            i32::try_from(SIZE).expect("small"),
        )
        .expect("UDP_SEGMENT");
        socket.send_to(&sent, ("192.0.2.10", PORT)).expect("sent");
    });
    std::thread::sleep(Duration::from_millis(50));
    lab.close();
    let tasks = Tasks::holding(vec![at_source]);
    // What the program would have seen: one message.
    let (whole, control) = {
        let image = dump(&lab, &tasks);
        let sizes: Vec<usize> = image.udp[0].queue.iter().map(|d| d.data.len()).collect();
        assert_eq!(sizes, [1000, 1000, 1000, 500]);
        drop(image);
        let copy = UdpSocket::from(tasks.socket(0));
        sockopt::set_int(&copy, libc::SOL_SOCKET, sockopt::number::SO_PEEK_OFF, -1)
            .expect("SO_PEEK_OFF");
        let mut data = vec![0; 1 << 16];
        let len = copy.peek(&mut data).expect("it still waits");
        (data[..len].to_vec(), len)
    };
    assert_eq!((whole, control), (sent.clone(), sent.len()));
    let image = dump(&lab, &tasks);
    drop(tasks);
    let tasks = Tasks::holding(vec![bind(&lab.target)]);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    rebuilt.open().expect("opened");
    let socket = UdpSocket::from(tasks.socket(0));
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let (data, _) = receive(&socket);
        assert_eq!(data.len(), SIZE.min(sent.len() - got.len()));
        got.extend(data);
    }
    assert_eq!(got, sent);
}

#[test]
fn udp_lite_moves_with_its_queue_and_coverage() {
    const COVERAGE: i32 = 10;
    let lab = Lab::new();
    let bind = |ns: &Namespace| -> OwnedFd {
        ns.run(|| {
            let fd = sockopt::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)
                .expect("a socket");
            let at: SockaddrStorage =
                std::net::SocketAddrV4::new([192, 0, 2, 10].into(), PORT).into();
            nix::sys::socket::bind(fd.as_raw_fd(), &at).expect("bound");
            fd
        })
    };
    let at_source = bind(&lab.source);
    sockopt::set_int(&at_source, libc::IPPROTO_UDPLITE, COVERAGE, 12).expect("coverage");
    lab.peer.run(|| {
        let fd = sockopt::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)
            .expect("a socket");
        let socket = UdpSocket::from(fd);
        for text in ["one", "two"] {
            socket
                .send_to(text.as_bytes(), ("192.0.2.10", PORT))
                .expect("sent");
        }
    });
    std::thread::sleep(Duration::from_millis(50));
    lab.close();
    let tasks = Tasks::holding(vec![at_source]);
    let image = dump(&lab, &tasks);
    drop(tasks);
    assert!(image.udp[0].lite);
    let tasks = Tasks::holding(vec![bind(&lab.target)]);
    let rebuilt = restore(&lab, &tasks, &image);
    assert!(rebuilt.refused().is_empty(), "{:?}", rebuilt.refused());
    lab.pass();
    assert_eq!(rebuilt.open().expect("opened").datagrams, 2);
    let socket = UdpSocket::from(tasks.socket(0));
    assert_eq!(receive(&socket).0, b"one");
    assert_eq!(receive(&socket).0, b"two");
    assert_eq!(
        sockopt::int(&socket, libc::IPPROTO_UDPLITE, COVERAGE).expect("coverage"),
        12
    );
}

#[test]
fn multicast_groups_are_joined_again() {
    let lab = Lab::new();
    let bind = |ns: &Namespace, join: bool| {
        ns.run(|| {
            let v4 = UdpSocket::bind(("0.0.0.0", PORT)).expect("a socket");
            let v6 = UdpSocket::bind(("::", PORT + 1)).expect("a socket");
            if join {
                v4.join_multicast_v4(&[239, 1, 2, 3].into(), &[192, 0, 2, 10].into())
                    .expect("joined");
                let index = nix::net::if_::if_nametoindex("eth0").expect("eth0");
                v6.join_multicast_v6(&"ff12::42".parse().expect("an address"), index)
                    .expect("joined");
            }
            vec![owned(v4), owned(v6)]
        })
    };
    let tasks = Tasks::holding(bind(&lab.source, true));
    lab.close();
    let image = dump(&lab, &tasks);
    drop(tasks);
    let groups: Vec<usize> = image.udp.iter().map(|u| u.groups.len()).collect();
    assert_eq!(groups, [1, 1]);
    let tasks = Tasks::holding(bind(&lab.target, false));
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    rebuilt.open().expect("opened");
    lab.peer.run(|| {
        let v4 = UdpSocket::bind("192.0.2.1:0").expect("a socket");
        let eth0: std::net::Ipv4Addr = [192, 0, 2, 1].into();
        sockopt::set(&v4, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &eth0.octets())
            .expect("IP_MULTICAST_IF");
        v4.send_to(b"to the group", ("239.1.2.3", PORT))
            .expect("sent");
        let v6 = UdpSocket::bind("[2001:db8::1]:0").expect("a socket");
        let index = nix::net::if_::if_nametoindex("eth0").expect("eth0");
        let index = i32::try_from(index).expect("a small number");
        sockopt::set_int(&v6, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, index)
            .expect("IPV6_MULTICAST_IF");
        v6.send_to(b"to the other", ("ff12::42", PORT + 1))
            .expect("sent");
    });
    for (i, text) in ["to the group", "to the other"].iter().enumerate() {
        let socket = UdpSocket::from(tasks.socket(i));
        assert_eq!(receive(&socket).0, text.as_bytes());
    }
}

/// A socket of the container's whose buffer takes `bytes`.
fn deep(ns: &Namespace, bytes: i32) -> OwnedFd {
    ns.run(|| {
        let socket = UdpSocket::bind(("192.0.2.10", PORT)).expect("a socket");
        sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).expect("a buffer");
        owned(socket)
    })
}

/// So many datagrams wait, each with its number.
fn fill(lab: &Lab, numbers: Range<u32>) {
    lab.peer.run(|| {
        let socket = UdpSocket::bind("192.0.2.1:0").expect("a socket");
        for number in numbers {
            let mut data = vec![0x5a; 100];
            data[..4].copy_from_slice(&number.to_be_bytes());
            socket.send_to(&data, ("192.0.2.10", PORT)).expect("sent");
        }
    });
    std::thread::sleep(Duration::from_millis(50));
}

/// Reads all that waits: it is these, in their order.
fn expect(socket: &UdpSocket, numbers: Range<u32>) {
    let mut data = [0; 200];
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    let read = std::iter::from_fn(|| {
        let len = socket.recv(&mut data).ok()?;
        assert_eq!(len, 100);
        Some(u32::from_be_bytes([data[0], data[1], data[2], data[3]]))
    });
    assert_eq!(read.collect::<Vec<_>>(), numbers.collect::<Vec<_>>());
}

#[test]
fn a_long_queue_finds_room_at_the_target_and_its_way_back() {
    const MANY: u32 = 30_000;
    let lab = Lab::new();
    let tasks = Tasks::holding(vec![deep(&lab.source, 64 << 20)]);
    fill(&lab, 0..MANY);
    lab.close();
    // The move is undone.
    let (image, mut kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!(image.udp[0].queue.len(), MANY as usize);
    let lost = kept.put_back(&lab.source.path()).expect("put back");
    assert_eq!(lost, Vec::<String>::new());
    let image = dump(&lab, &tasks);
    drop(tasks);
    // A container that has narrowed its buffer since; the engine sets what the image says.
    let narrow = deep(&lab.target, 100_000);
    let size = sockopt::int(&narrow, libc::SOL_SOCKET, libc::SO_RCVBUF).expect("SO_RCVBUF");
    let tasks = Tasks::holding(vec![narrow]);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    let opened = rebuilt.open().expect("opened");
    assert_eq!((opened.datagrams, opened.refused), (MANY as usize, 0));
    let socket = UdpSocket::from(tasks.socket(0));
    assert_eq!(
        sockopt::int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF).expect("SO_RCVBUF"),
        size
    );
    expect(&socket, 0..MANY);
}

#[test]
fn a_short_queue_stays_where_it_is() {
    let lab = Lab::new();
    let tasks = Tasks::holding(vec![deep(&lab.source, 4 << 20)]);
    fill(&lab, 0..500);
    lab.close();
    let image = dump(&lab, &tasks);
    assert_eq!(image.udp[0].queue.len(), 500);
    lab.pass();
    expect(&UdpSocket::from(tasks.socket(0)), 0..500);
}

#[test]
fn reading_a_queue_takes_a_time_as_its_length() {
    const SHORT: u32 = 4000;
    let lab = Lab::new();
    let tasks = Tasks::holding(vec![deep(&lab.source, 128 << 20)]);
    // Nobody sends meanwhile: there is nothing to close.
    let best = |many: u32| {
        let once = || {
            let began = Instant::now();
            let (image, mut kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
            let took = began.elapsed();
            assert_eq!(image.udp[0].queue.len(), many as usize);
            drop(image);
            let lost = kept.put_back(&lab.source.path()).expect("put back");
            assert_eq!(lost, Vec::<String>::new());
            took
        };
        once().min(once())
    };
    fill(&lab, 0..SHORT);
    let short = best(SHORT);
    fill(&lab, SHORT..8 * SHORT);
    let long = best(8 * SHORT);
    let ratio = long.as_secs_f64() / short.as_secs_f64();
    println!("{short:?}, eight times as many {long:?}: {ratio:.1}");
    assert!(ratio < 24.0, "{short:?}, {long:?}");
}
