use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use netmig_core::{image::v1::sock::Sockets, socket::Engine};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{SockaddrStorage, connect},
};

use super::Survey;
use crate::{
    sock::{
        Kept, dump_here,
        option::{Opt, Sort, TABLE, new_socket},
    },
    sys::sockopt,
};

const TCP: i32 = libc::SOL_TCP;
const SOL: i32 = libc::SOL_SOCKET;

/// Runs a test in a network namespace of its own. One after the other: a dump of this process duplicates descriptors by their numbers, which another
/// test's sockets may have by then.
fn alone(test: impl FnOnce() + Send) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    in_a_namespace(test);
}

/// Runs `f` on a thread in a network namespace of its own, whose `lo` is up.
fn in_a_namespace(f: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let done = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            let up = Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.expect("ip runs").success());
            f();
        });
        if let Err(panic) = done.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Both ends of connections over 127.0.0.1, ::1, and 127.0.0.1 as an IPv6 address.
fn pairs(count: usize) -> Vec<(TcpStream, TcpStream)> {
    let listeners = ["127.0.0.1:0", "[::1]:0", "[::]:0"].map(|at| {
        let listener = TcpListener::bind(at).expect("a listener");
        let mut at = listener.local_addr().expect("its address");
        if at.ip().is_unspecified() {
            at = SocketAddr::new("127.0.0.1".parse().expect("an address"), at.port());
        }
        (listener, at)
    });
    let pair = |i: usize| {
        let (listener, at) = &listeners[i % 3];
        let own = TcpStream::connect(at).expect("a connection");
        (own, listener.accept().expect("a connection").0)
    };
    (0..count).map(pair).collect()
}

fn dumped(survey: fn() -> Survey) -> Sockets {
    let own = i32::try_from(std::process::id()).expect("a pid");
    let mut kept = Kept::default();
    let mut image = dump_here(&[own], Engine::Criu, survey, &mut kept).expect("a dump");
    image.tcp.sort_by_key(|tcp| tcp.common.inode);
    image
}

/// How many connections the pass has seen, and how many of them it has read.
fn in_one_pass() -> (usize, usize) {
    let survey = Survey::read();
    let idle = survey.connections.iter().filter(|(_, values)| values.idle);
    (survey.connections.len(), idle.count())
}

/// Both ways to read give the same image, but for the moment of a clock, and the second one leaves everything as it was.
fn both_ways_agree() {
    let before = dumped(Survey::default);
    let one = dumped(Survey::read);
    let other = dumped(Survey::default);
    assert_eq!(one.tcp.len(), other.tcp.len());
    for ((first, fast), slow) in before.tcp.iter().zip(&one.tcp).zip(&other.tcp) {
        let within = |clock: u32| {
            let (from, to) = (first.timestamp, slow.timestamp);
            clock.wrapping_sub(from) <= to.wrapping_sub(from)
        };
        assert!(within(fast.timestamp), "{first:?} {fast:?} {slow:?}");
        let mut fast = fast.clone();
        fast.timestamp = slow.timestamp;
        assert_eq!(&fast, slow);
    }
    assert_eq!(one.pairs.len(), other.pairs.len());
}

#[test]
fn what_one_pass_reads_is_what_system_calls_read() {
    assert_eq!(super::unreadable(), None);
    alone(|| {
        let mut all = pairs(12);
        let listener = TcpListener::bind("[::1]:0").expect("a listener");
        let only = new_socket(Sort::Tcp, true).expect("a socket");
        sockopt::set_int(&only, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).expect("IPV6_V6ONLY");
        let at = SockaddrStorage::from(listener.local_addr().expect("its address"));
        connect(only.as_raw_fd(), &at).expect("a connection");
        all.push((only.into(), listener.accept().expect("a connection").0));
        for (i, (one, other)) in all.iter_mut().enumerate() {
            // Sequence numbers, windows, round trips of their own, and ACKs of what was exchanged.
            for n in 0..=i {
                one.write_all(&vec![1; 700 * n]).expect("written");
                other.read_exact(&mut vec![0; 700 * n]).expect("read");
                other.write_all(&[2; 100]).expect("written");
                one.read_exact(&mut [0; 100]).expect("read");
            }
        }
        let set = |i: usize, level, name, value| {
            sockopt::set_int(&all[i].0, level, name, value).expect("an option")
        };
        set(0, SOL, libc::SO_REUSEADDR, 1);
        set(1, SOL, libc::SO_REUSEPORT, 1);
        set(2, SOL, libc::SO_SNDBUF, 100_000);
        set(3, SOL, libc::SO_RCVBUF, 50_000);
        set(4, TCP, libc::TCP_WINDOW_CLAMP, 20_000);
        set(5, TCP, libc::TCP_MAXSEG, 900);
        sockopt::set(&all[6].0, SOL, libc::SO_BINDTODEVICE, b"lo").expect("a device");
        sockopt::set(&all[7].0, TCP, libc::TCP_CONGESTION, b"reno").expect("reno");
        all[8].0.shutdown(std::net::Shutdown::Read).expect("shut");
        // Queues with bytes are none of its business.
        all[9].0.write_all(b"unread").expect("written");
        all[10].1.shutdown(std::net::Shutdown::Write).expect("shut");
        thread::sleep(Duration::from_millis(100));
        // One end has what was not read, one has what was shut down, and its peer waits for it.
        assert_eq!(in_one_pass(), (26, 26 - 3));
        both_ways_agree();
    });
}

/// Another value than it has, which the kernel takes.
fn change(option: &Opt, fd: &OwnedFd) -> bool {
    let Some(was) = option.read(fd) else {
        return false;
    };
    let int = |n: i32| n.to_ne_bytes().to_vec();
    let long = |n: i64| n.to_ne_bytes().to_vec();
    let tried = [
        int(1),
        int(0),
        int(2),
        int(3),
        int(60),
        int(4096),
        int(60_000),
        1_i32.to_be_bytes().to_vec(),
        [int(1), int(7)].concat(),
        [int(1 << 3 | 1 << 4), int(0)].concat(),
        [int(1), int(1)].concat(),
        long(12_345_678),
        [long(5), long(250_000)].concat(),
        int(50_000 << 16 | 40_000),
        vec![6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        vec![1, 1, 1, 0],
        vec![0, 0, 1, 4, 0, 0, 0, 0],
    ];
    tried
        .iter()
        .any(|value| option.set(fd, value).is_ok() && option.read(fd).is_some_and(|now| now != was))
}

#[test]
fn an_option_that_one_connection_has_set_is_no_other_one_s() {
    /// What needs more than a socket (IPsec, memory cgroups), or has to be set before it is bound.
    const UNCHANGED: &[&str] = &["SO_RESERVE_MEM", "IP_PASSSEC", "IPV6_V6ONLY"];
    alone(|| {
        let options: Vec<&Opt> = TABLE
            .iter()
            .filter(|o| o.applies(Sort::Tcp, true))
            .collect();
        let all: Vec<OwnedFd> = pairs(options.len() * 3)
            .into_iter()
            .flat_map(|(one, other)| [one.into(), other.into()])
            .collect();
        let mut changed = Vec::new();
        for (i, option) in options.iter().enumerate() {
            // One of each kind; the accepted ends are as they were.
            for fd in all[i * 6..i * 6 + 6].chunks(2).map(|pair| &pair[0]) {
                if change(option, fd) {
                    changed.push(option.text);
                }
            }
        }
        let never: Vec<_> = options
            .iter()
            .filter(|o| !changed.contains(&o.text) && !UNCHANGED.contains(&o.text))
            .filter(|o| all.iter().any(|fd| o.read(&fd.as_fd()).is_some()))
            .map(|o| o.text)
            .collect();
        assert!(in_one_pass().1 > all.len() * 9 / 10);
        both_ways_agree();
        assert!(never.is_empty(), "{never:?}");
    });
}

#[test]
fn other_namespaces_and_processes_are_left_alone() {
    alone(|| {
        let here = pairs(3);
        assert_eq!(in_one_pass(), (6, 6));
        in_a_namespace(|| assert_eq!(in_one_pass(), (0, 0)));
        drop(here);
    });
}
