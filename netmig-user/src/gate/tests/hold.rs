//! Hold: what came while the gate was closed is delivered when it opens, whole and in order.
use std::{
    net::UdpSocket,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use netmig_common::{Mode, Protocol, Side};

use super::lab::{FIRST, MOVE, host_side, lab, point};
use crate::{
    gate::{
        Error, Gate, Orientation,
        hold::{Injector, Limit, Packet, Queue, Reader},
    },
    sys::netns,
};

const SHORT: Duration = Duration::from_millis(50);

#[test]
fn datagrams_of_a_blackout_come_after_it_all_and_in_order() {
    const DATAGRAMS: u32 = 20_000;
    lab(|lab| {
        lab.bridge(&["moving"]);
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
        let mut reader = Reader::create(None, "nmhold0").unwrap();
        gate.hold(&point, &reader).unwrap();
        let receiver: UdpSocket = netns::within(Path::new("/run/netns/moving"), || {
            UdpSocket::bind("192.0.2.10:9000")
        })
        .unwrap();
        nix::sys::socket::setsockopt(
            &receiver,
            nix::sys::socket::sockopt::RcvBufForce,
            &(64 << 20),
        )
        .unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let sender = UdpSocket::bind("192.0.2.1:0").unwrap();
        sender.connect("192.0.2.10:9000").unwrap();
        let closed = Arc::new(AtomicBool::new(false));
        let sending = {
            let closed = closed.clone();
            thread::spawn(move || {
                let begin = Instant::now();
                for n in 0..DATAGRAMS {
                    // 20 kpps
                    while begin.elapsed() < Duration::from_micros(u64::from(n) * 50) {
                        thread::yield_now();
                    }
                    sender.send(&n.to_be_bytes()).expect("send");
                    if n == DATAGRAMS / 4 {
                        closed.store(true, Ordering::SeqCst);
                    }
                }
            })
        };
        while !closed.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        gate.set_mode(Mode::Closed, FIRST, None).unwrap();
        let mut queue = Queue::new(Limit::default());
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(300) {
            if let Some(packet) = reader.next(SHORT).unwrap() {
                assert!(queue.push(0, packet));
            }
        }
        let held = queue.len();
        // It goes on coming while what is held is put in: the program opens when all is in.
        let injector = Injector::open(&point).unwrap();
        gate.open_in_order(FIRST, Duration::from_secs(5)).unwrap();
        let mut put_in = 0u64;
        let begin = Instant::now();
        while gate.mode().unwrap().mode == Mode::Opening || gate.pending() > 0 {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{} pending",
                gate.pending()
            );
            while let Some((_, packet)) = queue.pop() {
                injector.send(&packet).unwrap();
                gate.done(1);
                put_in += 1;
            }
            while let Some(packet) = reader.next(Duration::ZERO).unwrap() {
                assert!(queue.push(0, packet));
            }
        }
        let unsent = !sending.is_finished();
        sending.join().unwrap();
        let mut datagram = [0; 8];
        let received: Vec<u32> = (0..DATAGRAMS)
            .map_while(|_| {
                receiver
                    .recv(&mut datagram)
                    .ok()
                    .map(|_| u32::from_be_bytes(datagram[..4].try_into().unwrap()))
            })
            .collect();
        let counters = gate.counters().unwrap().inbound;
        println!(
            "held at first {held}, put in {put_in}, received {}",
            received.len()
        );
        assert!(held > 1000, "{held}");
        assert!(
            unsent && put_in < u64::from(DATAGRAMS) * 3 / 4,
            "opened while they still came"
        );
        assert_eq!(counters.held[Protocol::Udp as usize], put_in);
        assert_eq!(counters.dropped_packets(), 0);
        assert_eq!(received, (0..DATAGRAMS).collect::<Vec<_>>());
        assert!(receiver.recv(&mut datagram).is_err(), "nothing twice");
        gate.detach().unwrap();
    });
}

#[test]
fn the_hold_takes_neither_the_link_layer_nor_what_goes_out_and_ends_with_its_reader() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        let point_ = host_side("h-moving");
        let gate = Gate::attach(
            MOVE,
            Side::Target,
            Mode::Closed,
            FIRST,
            std::slice::from_ref(&point_),
            &lab.pins("gate"),
        )
        .unwrap();
        let mut reader = Reader::create(None, "nmhold0").unwrap();
        assert!(
            matches!(Reader::create(None, "nmhold0"), Err(Error::Device { .. })),
            "one device, one reader"
        );
        gate.hold(&point_, &reader).unwrap();
        super::lab::run("ip neigh replace 192.0.2.10 lladdr 02:00:00:00:00:01 dev br0");
        let sender = UdpSocket::bind("192.0.2.1:0").unwrap();
        sender.send_to(b"held", "192.0.2.10:9").unwrap();
        // Nobody has an entry for this one: it is asked for, and the request floods the bridge.
        sender.send_to(b"asked for", "192.0.2.99:9").unwrap();
        netns::within(Path::new("/run/netns/moving"), || {
            UdpSocket::bind("192.0.2.10:0")?.send_to(b"out", "192.0.2.1:9")
        })
        .unwrap();
        let packet = reader
            .next(Duration::from_secs(2))
            .unwrap()
            .expect("a packet");
        assert_eq!(&packet.frame()[12..14], [8, 0]);
        assert!(packet.frame().ends_with(b"held"));
        assert_eq!(reader.next(Duration::from_millis(300)).unwrap(), None);
        let counters = gate.counters().unwrap();
        assert_eq!(counters.inbound.held_packets(), 1);
        assert!(
            counters.inbound.dropped[Protocol::Neighbour as usize] > 0
                && counters.outbound.held_packets() == 0
        );

        gate.end_hold(&point_).unwrap();
        gate.end_hold(&point_).unwrap();
        drop(reader);
        sender.send_to(b"lost", "192.0.2.10:9").unwrap();
        sleep(SHORT);
        assert!(
            nix::net::if_::if_nametoindex("nmhold0").is_err(),
            "gone with its reader"
        );
        let after = gate.counters().unwrap().inbound;
        assert_eq!(after.held, counters.inbound.held);
        assert_eq!(after.dropped[Protocol::Udp as usize], 1);
        gate.detach().unwrap();
    });
}

#[test]
fn what_is_no_packet_and_where_none_can_be_put_in_is_refused() {
    assert!(matches!(
        Packet::from_bytes(vec![0; 23]),
        Err(Error::BadPacket { length: 23 })
    ));
    assert!(matches!(
        Packet::from_bytes(vec![0; 1 << 17]),
        Err(Error::BadPacket { .. })
    ));
    lab(|_| {
        let lo = point(None, "lo", Orientation::Loopback);
        assert!(matches!(
            Injector::open(&lo),
            Err(Error::NoInjection { .. })
        ));
        assert!(matches!(
            Reader::create(None, "a/b"),
            Err(Error::Device { .. })
        ));
    });
}

#[test]
fn an_opening_ends_with_its_limit_whatever_is_still_held() {
    const LIMIT: Duration = Duration::from_millis(900);
    for side in [Side::Source, Side::Target] {
        lab(|lab| {
            lab.bridge(&["moving"]);
            let point = host_side("h-moving");
            let gate = Gate::attach(
                MOVE,
                side,
                Mode::Closed,
                FIRST,
                std::slice::from_ref(&point),
                &lab.pins("gate"),
            )
            .unwrap();
            let reader = Reader::create(None, "nmhold0").unwrap();
            gate.hold(&point, &reader).unwrap();
            super::lab::run(
                "ip neigh replace 192.0.2.10 lladdr $(ip netns exec moving cat /sys/class/net/eth0/address) dev br0",
            );
            UdpSocket::bind("192.0.2.1:0")
                .unwrap()
                .send_to(b"held", "192.0.2.10:9")
                .unwrap();
            let begin = Instant::now();
            while gate.pending() == 0 && begin.elapsed() < Duration::from_secs(2) {
                thread::yield_now();
            }
            let begin = Instant::now();
            gate.open_in_order(FIRST, LIMIT).unwrap();
            let reached = super::lab::reaches(None, "192.0.2.10");
            let mode = gate.mode().unwrap().mode;
            assert!(begin.elapsed() < LIMIT, "this machine is too busy");
            assert!(!reached, "inbound goes to the hold");
            assert_eq!(mode, Mode::Opening);
            sleep(LIMIT.saturating_sub(begin.elapsed()) + Duration::from_millis(20));
            assert_eq!(gate.mode().unwrap().mode, Mode::Pass);
            assert!(super::lab::reaches(None, "192.0.2.10"));
            assert_eq!(gate.counters().unwrap().inbound.expired, 0);
            gate.detach().unwrap();
        });
    }
}

/// What the hold is for: a request that came in the blackout is answered when it ends, and not when the peer sends it again.
#[test]
fn a_request_of_the_blackout_is_answered_at_its_end() {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };
    const BLACKOUT: Duration = Duration::from_millis(300);
    lab(|lab| {
        lab.bridge(&["moving"]);
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
        let listener: TcpListener = netns::within(Path::new("/run/netns/moving"), || {
            TcpListener::bind("192.0.2.10:700")
        })
        .unwrap();
        let mut peer = TcpStream::connect("192.0.2.10:700").unwrap();
        let mut container = listener.accept().unwrap().0;
        thread::spawn(move || {
            let mut byte = [0];
            while container
                .read_exact(&mut byte)
                .and_then(|()| container.write_all(&byte))
                .is_ok()
            {}
        });
        let request = |peer: &mut TcpStream| {
            let begin = Instant::now();
            peer.write_all(b"?").unwrap();
            peer.read_exact(&mut [0]).unwrap();
            begin.elapsed()
        };
        request(&mut peer);
        let mut pause = |holds: bool| {
            let mut reader = holds.then(|| {
                let reader = Reader::create(None, "nmhold0").unwrap();
                gate.hold(&point, &reader).unwrap();
                reader
            });
            gate.set_mode(Mode::Closed, FIRST, None).unwrap();
            thread::scope(|scope| {
                let asked = scope.spawn(|| request(&mut peer));
                sleep(BLACKOUT);
                gate.open_in_order(FIRST, Duration::from_secs(1)).unwrap();
                if let Some(reader) = &mut reader {
                    let injector = Injector::open(&point).unwrap();
                    while let Some(packet) = reader.next(Duration::from_millis(1)).unwrap() {
                        injector.send(&packet).unwrap();
                        gate.done(1);
                    }
                }
                asked.join().unwrap()
            })
        };
        let (dropped, held) = (pause(false), pause(true));
        println!(
            "a blackout of {BLACKOUT:?}: answered after {dropped:?} when dropped, {held:?} when held"
        );
        // Generous to a busy machine; what is dropped waits for a retransmission timer of 200 ms and more, which doubles.
        let most = BLACKOUT + Duration::from_millis(180);
        assert!(held > BLACKOUT - Duration::from_millis(50), "{held:?}");
        assert!(held < most && held < dropped, "{held:?} {dropped:?}");
        gate.detach().unwrap();
    });
}

/// Before the tasks are stopped: what nobody may read in time is held, what waits in the kernel by itself passes.
#[test]
fn datagrams_alone_are_held_in_a_drain() {
    lab(|lab| {
        lab.bridge(&["moving"]);
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
        let mut reader = Reader::create(None, "nmhold0").unwrap();
        gate.hold(&point, &reader).unwrap();
        let receiver: UdpSocket = netns::within(Path::new("/run/netns/moving"), || {
            UdpSocket::bind("192.0.2.10:9000")
        })
        .unwrap();
        receiver.set_read_timeout(Some(SHORT)).unwrap();
        let sender = UdpSocket::bind("192.0.2.1:0").unwrap();
        let mut comes = |bytes: &[u8]| {
            sender.send_to(bytes, "192.0.2.10:9000").unwrap();
            let came = receiver.recv(&mut [0; 64]).is_ok();
            (came, reader.next(Duration::ZERO).unwrap().is_some())
        };
        assert_eq!(comes(b"passes"), (true, false));
        gate.hold_datagrams(true).unwrap();
        assert_eq!(comes(b"passes"), (true, false));
        gate.set_mode(Mode::Drain, FIRST, None).unwrap();
        assert_eq!(comes(b"held"), (false, true));
        assert!(super::lab::reaches(None, "192.0.2.10"), "ICMP passes");
        gate.drain_all(false, false).unwrap();
        assert_eq!(comes(b"held still"), (false, true));
        gate.hold_datagrams(false).unwrap();
        assert_eq!(comes(b"passes"), (true, false));
        let counters = gate.counters().unwrap().inbound;
        assert_eq!(counters.held[Protocol::Udp as usize], 2);
        assert_eq!(counters.dropped_packets(), 0);
        gate.detach().unwrap();
    });
}

/// A barrier stands for packets of another host: nothing direct overtakes them.
#[test]
fn an_opening_waits_for_a_barrier() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        let point = host_side("h-moving");
        let gate = Gate::attach(
            MOVE,
            Side::Target,
            Mode::Closed,
            FIRST,
            std::slice::from_ref(&point),
            &lab.pins("gate"),
        )
        .unwrap();
        let reader = Reader::create(None, "nmhold0").unwrap();
        gate.hold(&point, &reader).unwrap();
        let order = gate.order();
        order.barrier();
        gate.open_in_order(FIRST, Duration::from_secs(5)).unwrap();
        assert!(!super::lab::reaches(None, "192.0.2.10"));
        assert!(order.opening().unwrap() && order.pending() > 0);
        order.done(order.pending());
        assert!(super::lab::reaches(None, "192.0.2.10"));
        assert!(!order.opening().unwrap());
        gate.detach().unwrap();
    });
}
