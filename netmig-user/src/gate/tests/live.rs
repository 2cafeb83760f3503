//! Real connections through a drain: what the sockets at both ends say of it.
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use netmig_common::{FlowKey, Mode, Side};

use super::lab::{FIRST, Lab, MOVE, finish_checksums, host_side, lab, run};
use crate::{
    gate::{
        FlowScales, Gate,
        hold::{Injector, Limit, Queue, Reader},
    },
    sys::netns,
};

/// TCP_INFO of a socket.
fn info(socket: RawFd) -> libc::tcp_info {
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the pointers are to `info` and its length.
    let rc = unsafe {
        libc::getsockopt(
            socket,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!(rc, 0, "TCP_INFO");
    info
}

/// A prime number of bytes: a part that is lost or comes twice shows.
const PERIOD: usize = 1_000_003;
const CHUNK: usize = 65_536;

fn pattern() -> Arc<Vec<u8>> {
    let byte = |n: usize| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
    Arc::new((0..PERIOD + CHUNK).map(|n| byte(n % PERIOD)).collect())
}

/// Writes the pattern until told to stop; says how much it wrote.
fn writer(mut to: TcpStream, pattern: Arc<Vec<u8>>, stop: Arc<AtomicBool>) -> JoinHandle<usize> {
    thread::spawn(move || {
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            to.write_all(&pattern[sent % PERIOD..][..CHUNK])
                .expect("write");
            sent += CHUNK;
        }
        to.shutdown(std::net::Shutdown::Write).expect("shutdown");
        sent
    })
}

/// Reads to the end and checks every byte; says how much came.
fn reader(mut from: TcpStream, pattern: Arc<Vec<u8>>) -> JoinHandle<usize> {
    thread::spawn(move || {
        let mut received = 0;
        let mut chunk = vec![0; CHUNK];
        loop {
            let n = from.read(&mut chunk).expect("read");
            if n == 0 {
                return received;
            }
            assert!(
                chunk[..n] == pattern[received % PERIOD..][..n],
                "another byte after {received}"
            );
            received += n;
        }
    })
}

struct Connection {
    container: TcpStream,
    peer: TcpStream,
}

impl Connection {
    fn key(&self) -> FlowKey {
        let (local, remote) = (
            self.container.local_addr().unwrap(),
            self.container.peer_addr().unwrap(),
        );
        let octets = |ip: std::net::IpAddr| match ip {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(ip) => ip.octets(),
        };
        FlowKey {
            container: octets(local.ip()),
            peer: octets(remote.ip()),
            container_port: local.port(),
            peer_port: remote.port(),
        }
    }

    fn ends(&self) -> [RawFd; 2] {
        [self.container.as_raw_fd(), self.peer.as_raw_fd()]
    }
}

/// A namespace `peer` behind a link of 400 Mbit/s each way with a queue that holds all that the connections may have in flight: bulk
/// fills it, and the round trip is what lies in it. What comes from the container has its checksum finished on this link and checked
/// by the peer.
fn slow_peer(lab: &Lab) {
    lab.bridge(&["moving", "peer"]);
    run(
        "ip netns exec peer tc qdisc add dev eth0 root tbf rate 400mbit burst 256k limit 16mb
         tc qdisc add dev h-peer root tbf rate 400mbit burst 256k limit 16mb",
    );
    finish_checksums(None, "h-peer");
    for name in ["moving", "peer"] {
        run(&format!(
            "ip netns exec {name} sysctl -qw net.ipv4.tcp_rmem='4096 131072 524288'"
        ));
    }
}

fn connect(address: &str) -> Connection {
    let inside = |name: &str| Path::new("/run/netns").join(name);
    let listener =
        netns::within(&inside("moving"), || TcpListener::bind(address)).expect("a listener");
    let peer =
        netns::within(&inside("peer"), || TcpStream::connect(address)).expect("a connection");
    Connection {
        container: listener.accept().expect("accept").0,
        peer,
    }
}

#[test]
fn bulk_both_ways_is_quiet_soon_and_nothing_is_lost_or_sent_again() {
    lab(|lab| {
        slow_peer(lab);
        // What the gate rewrites is CHECKSUM_PARTIAL on the way out, and now complete on the way in.
        finish_checksums(Some("peer"), "eth0");
        let gate = Gate::attach(
            MOVE,
            Side::Source,
            Mode::Pass,
            FIRST,
            &[host_side("h-moving")],
            &lab.pins("gate"),
        )
        .unwrap();
        let connections: Vec<_> = ["192.0.2.10:70", "[2001:db8::10]:70"]
            .iter()
            .flat_map(|address| (0..3).map(move |n| connect(&format!("{address}{n}"))))
            .collect();
        let pattern = pattern();
        let stop = Arc::new(AtomicBool::new(false));
        let (mut writers, mut readers) = (Vec::new(), Vec::new());
        for (n, c) in connections.iter().enumerate() {
            let clone = |s: &TcpStream| s.try_clone().unwrap();
            // To the peer, to the container, both ways.
            if n % 3 != 1 {
                writers.push(writer(clone(&c.container), pattern.clone(), stop.clone()));
                readers.push(reader(clone(&c.peer), pattern.clone()));
            }
            if n % 3 != 0 {
                writers.push(writer(clone(&c.peer), pattern.clone(), stop.clone()));
                readers.push(reader(clone(&c.container), pattern.clone()));
            }
        }
        sleep(Duration::from_millis(700));
        for c in &connections {
            let scales = info(c.container.as_raw_fd()).tcpi_snd_rcv_wscale;
            let scales = FlowScales {
                snd: Some(scales & 15),
                rcv: Some(scales >> 4),
                signed: false,
                stop_peer: true,
                stop_container: true,
            };
            gate.hint(&c.key(), &scales).unwrap();
        }
        let all = || connections.iter().flat_map(Connection::ends);
        let before: Vec<_> = all().map(info).collect();
        let round_trip = before.iter().map(|i| i.tcpi_rtt).max().unwrap();
        let in_flight = || {
            connections
                .iter()
                .any(|c| info(c.container.as_raw_fd()).tcpi_unacked != 0)
        };
        let limit = Duration::from_secs(2);
        let drained = gate
            .drain(
                FIRST,
                None,
                limit,
                Duration::from_micros(round_trip.into()),
                &mut || in_flight(),
            )
            .unwrap();
        let after: Vec<_> = all().map(info).collect();
        let counters = gate.counters().unwrap();
        let lost =
            |counts: &[libc::tcp_info]| counts.iter().map(|i| i.tcpi_total_retrans).sum::<u32>();
        for (b, a) in before.iter().zip(&after) {
            println!(
                "cwnd {} -> {}, in flight {} -> {}",
                b.tcpi_snd_cwnd, a.tcpi_snd_cwnd, b.tcpi_unacked, a.tcpi_unacked
            );
        }
        println!(
            "round trip {round_trip} us; quiet after {:?}; rewritten {} + {}, sequences {} + {}; sent again before {}, in the drain {}",
            drained.took,
            counters.inbound.windows,
            counters.outbound.windows,
            counters.inbound.sequences,
            counters.outbound.sequences,
            lost(&before),
            lost(&after) - lost(&before),
        );
        assert!(drained.quiet, "{drained:?}");
        assert!(
            before.iter().filter(|i| i.tcpi_unacked > 20).count() >= 6,
            "there was something to drain"
        );
        assert!(
            after.iter().all(|i| i.tcpi_unacked == 0),
            "in flight, at either end"
        );
        // A machine that is busy elsewhere may hold a stream up for longer than its probe timer (RFC 8985 section 7.2); a drain that
        // loses sends hundreds of segments again.
        assert!(lost(&after) - lost(&before) <= 2, "sent again in the drain");
        // One or the other may just be in a reduction of its own; a drain that loses takes all of them down.
        let cwnd = |counts: &[libc::tcp_info]| counts.iter().map(|i| i.tcpi_snd_cwnd).sum::<u32>();
        assert!(
            cwnd(&after) * 100 >= cwnd(&before) * 95,
            "cwnd {} -> {}",
            cwnd(&before),
            cwnd(&after)
        );
        sleep(Duration::from_millis(100));
        let still = gate.counters().unwrap();
        let moved = still.inbound.bytes + still.outbound.bytes
            - counters.inbound.bytes
            - counters.outbound.bytes;
        assert!(moved < 20_000, "quiet means quiet: {moved} bytes");

        gate.set_mode(Mode::Pass, FIRST, None).unwrap();
        sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        let sent: usize = writers.into_iter().map(|w| w.join().unwrap()).sum();
        let received: usize = readers.into_iter().map(|r| r.join().unwrap()).sum();
        assert_eq!(sent, received);
        gate.detach().unwrap();
    });
}

/// Without a drain: what the peer had in flight at the close is held, super-packets whole and checksums as they came, and put in.
#[test]
fn bulk_through_a_hold_is_an_exact_stream() {
    lab(|lab| {
        slow_peer(lab);
        let point = host_side("h-moving");
        let gate = Gate::attach(
            MOVE,
            Side::Source,
            Mode::Pass,
            FIRST,
            std::slice::from_ref(&point),
            &lab.pins("gate"),
        )
        .unwrap();
        let mut holder = Reader::create(None, "nmhold0").unwrap();
        gate.hold(&point, &holder).unwrap();
        let connections = [connect("192.0.2.10:700"), connect("[2001:db8::10]:700")];
        let (pattern, stop) = (pattern(), Arc::new(AtomicBool::new(false)));
        let (mut writers, mut readers) = (Vec::new(), Vec::new());
        for c in &connections {
            for (from, to) in [(&c.container, &c.peer), (&c.peer, &c.container)] {
                writers.push(writer(
                    from.try_clone().unwrap(),
                    pattern.clone(),
                    stop.clone(),
                ));
                readers.push(reader(to.try_clone().unwrap(), pattern.clone()));
            }
        }
        sleep(Duration::from_millis(300));
        let (mut held, mut longest) = (0, 0);
        for blackout in [30, 100, 400].map(Duration::from_millis) {
            gate.set_mode(Mode::Closed, FIRST, None).unwrap();
            let begin = Instant::now();
            let mut queue = Queue::new(Limit::default());
            while begin.elapsed() < blackout {
                if let Some(packet) = holder.next(Duration::from_millis(5)).unwrap() {
                    longest = longest.max(packet.frame().len());
                    assert!(queue.push(0, packet));
                }
            }
            held += queue.len();
            let injector = Injector::open(&point).unwrap();
            loop {
                while let Some((_, packet)) = queue.pop() {
                    injector.send(&packet).unwrap();
                }
                match holder.next(Duration::ZERO).unwrap() {
                    Some(packet) => assert!(queue.push(0, packet)),
                    None => break,
                }
            }
            gate.set_mode(Mode::Pass, FIRST, None).unwrap();
            let opened = Instant::now();
            let acked = |c: &Connection| info(c.peer.as_raw_fd()).tcpi_last_data_recv;
            while connections.iter().any(|c| acked(c) > 1)
                && opened.elapsed() < Duration::from_secs(5)
            {
                sleep(Duration::from_micros(500));
            }
            println!(
                "blackout {blackout:?}: both peers receive again {:?} after the opening",
                opened.elapsed()
            );
            sleep(Duration::from_millis(300));
        }
        stop.store(true, Ordering::Relaxed);
        let sent: usize = writers.into_iter().map(|w| w.join().unwrap()).sum();
        let received: usize = readers.into_iter().map(|r| r.join().unwrap()).sum();
        println!("{held} packets held, the longest of {longest} bytes; {sent} bytes");
        assert_eq!(sent, received);
        assert!(
            held > 10 && longest > 3000,
            "super-packets are held whole: {held}, {longest}"
        );
        gate.detach().unwrap();
    });
}
