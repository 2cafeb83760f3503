//! Connections in a SYN queue.
mod sock_lab;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use netmig_core::{
    image::v1::sock::{Holder, Sockets},
    socket::{Class, Fate, State},
};
use netmig_user::{
    sock::{self, Place, Rebuilt},
    sys::sockopt,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect, socket,
};
use sock_lab::{CONTAINER, Lab, Namespace, Tasks, expect, owned, pattern};

const PORT: u16 = 7600;

fn listener(ns: &Namespace) -> TcpListener {
    ns.run(|| TcpListener::bind(("::", PORT)).expect("a listener"))
}

/// A peer whose handshake is under way.
struct Client {
    stream: TcpStream,
    /// What it has written already.
    sent: usize,
}

/// Has it begin a connection, without waiting.
fn begin(lab: &Lab, v6: bool) -> TcpStream {
    let to = SocketAddr::new(CONTAINER[usize::from(v6)], PORT);
    let fd: OwnedFd = lab.peer.run(|| {
        let family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        let fd = socket(
            family,
            SockType::Stream,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        let begun = match to {
            SocketAddr::V4(to) => connect(fd.as_raw_fd(), &SockaddrIn::from(to)),
            SocketAddr::V6(to) => connect(fd.as_raw_fd(), &SockaddrIn6::from(to)),
        };
        assert_eq!(begun, Err(nix::Error::EINPROGRESS));
        fd
    });
    fd.into()
}

/// What it acknowledges does not leave the peer.
fn hush(lab: &Lab) {
    lab.peer.sh(&format!(
        "nft 'table inet hush {{ chain out {{ type filter hook output priority 0; tcp dport {PORT} tcp flags & (syn | ack) == ack drop; }}; }}'"
    ));
}

fn speak(lab: &Lab) {
    lab.peer.sh("nft delete table inet hush");
}

/// Over both protocols: peers whose ACK was lost, silent and with data behind it, and peers that have not heard of the SYN-ACK.
fn clients(lab: &Lab, listener: &TcpListener) -> Vec<Client> {
    for to in CONTAINER {
        // They know each other.
        let to = SocketAddr::new(to, PORT);
        let mut before = lab
            .peer
            .run(|| TcpStream::connect(to).expect("a connection"));
        drop(accepted(listener));
        assert_eq!(before.read(&mut [0]).expect("its end"), 0);
    }
    thread::sleep(Duration::from_millis(50));
    hush(lab);
    let mut all = Vec::new();
    for (v6, sent) in [(false, 0), (true, 0), (false, 3000), (true, 10)] {
        let mut stream = begin(lab, v6);
        thread::sleep(Duration::from_millis(30));
        stream
            .write_all(&pattern(0, sent))
            .expect("it counts as connected there");
        all.push(Client { stream, sent });
    }
    lab.mute();
    for v6 in [false, true] {
        all.push(Client {
            stream: begin(lab, v6),
            sent: 0,
        });
    }
    thread::sleep(Duration::from_millis(50));
    all
}

fn accepted(listener: &TcpListener) -> TcpStream {
    let begun = Instant::now();
    listener.set_nonblocking(true).expect("non-blocking");
    loop {
        match listener.accept() {
            Ok((own, _)) => {
                own.set_nonblocking(false).expect("blocking");
                return own;
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(
                    begun.elapsed() < Duration::from_secs(8),
                    "no connection comes"
                );
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("accept: {e}"),
        }
    }
}

/// All are accepted and talk to their peers, the listener's side first.
fn served(listener: &TcpListener, clients: &mut [Client]) {
    for _ in 0..clients.len() {
        let mut own = accepted(listener);
        let theirs = own.peer_addr().expect("an address").port();
        let client = clients
            .iter_mut()
            .find(|c| c.stream.local_addr().expect("an address").port() == theirs)
            .expect("one of the peers");
        own.write_all(&pattern(7, 50_000)).expect("written");
        client.stream.set_nonblocking(false).expect("blocking");
        expect(&mut client.stream, 7, 50_000);
        client
            .stream
            .write_all(&pattern(client.sent, 20_000))
            .expect("written");
        expect(&mut own, 0, client.sent + 20_000);
        let agreed = |stream: &TcpStream| {
            let info: [u8; 8] =
                sockopt::read(stream, libc::SOL_TCP, libc::TCP_INFO).expect("TCP_INFO");
            // tcpi_options, tcpi_snd_wscale and tcpi_rcv_wscale.
            (info[5], info[6])
        };
        let (ours, scales) = agreed(&own);
        let (theirs, mirrored) = agreed(&client.stream);
        assert_eq!(
            (ours, scales),
            (theirs, mirrored.rotate_left(4)),
            "agreed upon alike"
        );
    }
}

fn dump(ns: &Namespace, tasks: &Tasks) -> (Sockets, sock::Kept) {
    let (image, kept) = sock::dump(&ns.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!(image.left, []);
    (image, kept)
}

fn restore(ns: &Namespace, listener: &TcpListener, image: &Sockets) -> (Tasks, Rebuilt) {
    let tasks = Tasks::holding(vec![owned(listener.try_clone().expect("a duplicate"))]);
    let pid = tasks.pid();
    let place = |h: &Holder| Some(Place { pid, fd: h.fd });
    let rebuilt = sock::restore_at(&ns.path(), image, &place).expect("rebuilt");
    assert!(rebuilt.lost().is_empty(), "{:?}", rebuilt.lost());
    (tasks, rebuilt)
}

/// The listener's stopped tasks, and peers whose handshakes are under way.
fn under_way(lab: &Lab) -> (Tasks, TcpListener, Vec<Client>) {
    let listener = listener(&lab.source);
    let clients = clients(lab, &listener);
    let tasks = Tasks::holding(vec![owned(listener.try_clone().expect("a duplicate"))]);
    (tasks, listener, clients)
}

/// The container leaves its source.
fn leaves(lab: &Lab, tasks: Tasks) -> Sockets {
    lab.close();
    let (image, kept) = dump(&lab.source, &tasks);
    assert!(kept.silence().is_empty());
    drop(tasks);
    image
}

/// [`under_way`], and the container has left.
fn left(lab: &Lab) -> (Sockets, Vec<Client>) {
    let (tasks, _old, clients) = under_way(lab);
    (leaves(lab, tasks), clients)
}

#[test]
fn a_handshake_ends_at_the_target() {
    assert!(sock::accept_queues_move(), "this kernel is 6.9 or newer");
    let lab = Lab::new();
    let (tasks, old, mut clients) = under_way(&lab);
    let rows = sock::rows(&lab.source.path(), &[tasks.pid()]).expect("rows");
    let fates = rows.iter().filter(|r| r.class == Class::TcpSynRecv);
    let fates: Vec<_> = fates.map(|r| &r.fate).collect();
    assert_eq!(fates, [&Fate::Moves; 6]);
    let image = leaves(&lab, tasks);
    drop(old);
    assert_eq!(image.half_open.len(), 6);

    let new = listener(&lab.target);
    let (_tasks, rebuilt) = restore(&lab.target, &new, &image);
    lab.heal();
    speak(&lab);
    lab.pass();
    rebuilt.open().expect("opened");
    served(&new, &mut clients);
}

#[test]
fn one_that_has_not_ended_when_the_container_moves_on_ends_where_it_is_then() {
    let lab = Lab::new();
    let (image, mut clients) = left(&lab);

    let new = listener(&lab.target);
    let (tasks, rebuilt) = restore(&lab.target, &new, &image);
    lab.pass();
    rebuilt.open().expect("opened");
    thread::sleep(Duration::from_millis(200));
    lab.world.ip("link set vt nomaster\n");
    let (again, kept) = dump(&lab.target, &tasks);
    let isns = |image: &Sockets| {
        let mut isns: Vec<_> = image
            .half_open
            .iter()
            .map(|h| (h.isn, h.peer_isn))
            .collect();
        isns.sort_unstable();
        isns
    };
    assert_eq!(isns(&again), isns(&image));
    assert!(kept.silence().is_empty());
    drop((tasks, new));

    // A namespace that was left is another one; here the kernel gives up what the listener had begun when its timer runs out.
    let begun = Instant::now();
    while sock::rows(&lab.source.path(), &[])
        .expect("rows")
        .iter()
        .any(|row| row.state == State::SynRecv)
    {
        assert!(begun.elapsed() < Duration::from_secs(8), "it goes on");
        thread::sleep(Duration::from_millis(20));
    }
    let back = listener(&lab.source);
    let (_tasks, rebuilt) = restore(&lab.source, &back, &again);
    lab.heal();
    speak(&lab);
    lab.reopen();
    rebuilt.open().expect("opened");
    served(&back, &mut clients);
}

#[test]
fn where_the_move_is_undone_the_kernel_goes_on_with_it() {
    let lab = Lab::new();
    let (tasks, old, mut clients) = under_way(&lab);
    lab.close();
    let (image, kept) = dump(&lab.source, &tasks);
    assert_eq!(image.half_open.len(), 6);
    assert!(kept.undo().is_empty());
    lab.heal();
    speak(&lab);
    lab.reopen();
    served(&old, &mut clients);
}

/// The SYN-ACK is lost once more at the opening, and repeated.
#[test]
fn what_is_lost_is_sent_again_and_a_peer_may_begin_anew() {
    let lab = Lab::new();
    let (image, mut clients) = left(&lab);
    let given_up = clients.remove(4);
    let from = given_up.stream.local_addr().expect("an address");
    drop(given_up);

    let new = listener(&lab.target);
    let (_tasks, rebuilt) = restore(&lab.target, &new, &image);
    lab.pass();
    rebuilt.open().expect("opened");
    thread::sleep(Duration::from_millis(300));
    lab.heal();
    speak(&lab);
    let anew = lab.peer.run(|| {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        sockopt::set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).expect("SO_REUSEADDR");
        let SocketAddr::V4(from) = from else {
            panic!("IPv4")
        };
        bind(fd.as_raw_fd(), &SockaddrIn::from(from)).expect("the same port");
        fd
    });
    let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 10), PORT);
    connect(anew.as_raw_fd(), &SockaddrIn::from(to)).expect("connected");
    clients.push(Client {
        stream: anew.into(),
        sent: 0,
    });
    served(&new, &mut clients);
}
