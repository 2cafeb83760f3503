//! TCP sockets that no process holds any more: closed with bytes or their FINs under way, and TIME_WAIT.
mod sock_lab;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use netmig_core::{
    image::v1::sock::{Sockets, Tcp, TcpState},
    socket::{Class, Fate, Row, State},
};
use netmig_user::{sock, sys::sockopt};
use sock_lab::{Lab, Namespace, Tasks, connected, engine, expect, fill, pattern, restore};

fn pause() {
    thread::sleep(Duration::from_millis(60));
}

fn of(ns: &Namespace, class: Class) -> Vec<Row> {
    let mut rows = sock::rows(&ns.path(), &[]).expect("rows");
    rows.retain(|row| row.class == class);
    rows
}

/// RSTs that a namespace's stack has sent.
fn resets(ns: &Namespace) -> u64 {
    let snmp = ns.run(|| fs::read_to_string("/proc/thread-self/net/snmp").expect("counters"));
    let mut tcp = snmp.lines().filter(|line| line.starts_with("Tcp:"));
    let names = tcp.next().expect("names").split(' ');
    let at = names.into_iter().position(|n| n == "OutRsts").expect("it");
    let value = tcp.next().and_then(|values| values.split(' ').nth(at));
    value.and_then(|v| v.parse().ok()).expect("a number")
}

/// Waits until something holds.
fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A connection that is gone, and was never reset.
fn has_ended(peer: &TcpStream) {
    const CLOSE: u8 = 7;
    until("the connection ends", || {
        sockopt::read::<[u8; 4]>(peer, libc::SOL_TCP, libc::TCP_INFO).expect("TCP_INFO")[0] == CLOSE
    });
    assert!(peer.take_error().expect("SO_ERROR").is_none());
}

/// One in each state that a closed connection has, over both protocols, behind a closed gate; the peers' ends.
struct Closed {
    /// FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING.
    peers: Vec<[TcpStream; 4]>,
}

impl Closed {
    fn make(lab: &Lab) -> Self {
        let (mut own, mut peers) = (Vec::new(), Vec::new());
        for v6 in [false, true] {
            let all: [_; 4] = std::array::from_fn(|i| connected(lab, v6, i % 2 == 0));
            let mut here = Vec::new();
            peers.push(all.map(|(mut own, mut peer)| {
                own.write_all(b"hello").expect("written");
                peer.read_exact(&mut [0; 5]).expect("read");
                peer.set_read_timeout(Some(Duration::from_secs(1)))
                    .expect("a timeout");
                here.push(own);
                peer
            }));
            own.push(here);
        }
        for (own, peers) in own.iter_mut().zip(&peers) {
            own.swap_remove(1); // the fourth takes its place
            peers[2].shutdown(Shutdown::Write).expect("shut down");
        }
        pause();
        lab.mute();
        for (own, peers) in own.into_iter().zip(&peers) {
            // A test beside may be starting a process, which holds them for a moment: the FINs must leave now.
            for own in own {
                own.shutdown(Shutdown::Write).expect("a FIN");
            }
            peers[3].shutdown(Shutdown::Write).expect("shut down");
        }
        pause();
        lab.close();
        lab.heal();
        Self { peers }
    }

    /// Every peer sees an orderly end, and may end its own side.
    fn end(&mut self) {
        for peers in &mut self.peers {
            for peer in peers.iter_mut() {
                assert_eq!(peer.read(&mut [0; 16]).expect("an orderly end"), 0);
            }
            for peer in &peers[..2] {
                peer.shutdown(Shutdown::Write).expect("shut down");
            }
            peers.iter().for_each(has_ended);
        }
    }
}

fn states(image: &Sockets) -> [usize; 4] {
    [
        TcpState::FinWait1,
        TcpState::FinWait2,
        TcpState::LastAck,
        TcpState::Closing,
    ]
    .map(|state| image.orphans.iter().filter(|t| t.state == state).count())
}

#[test]
fn orphans_go_on_at_the_target() {
    let lab = Lab::new();
    let mut closed = Closed::make(&lab);
    until("they are orphans", || {
        of(&lab.source, Class::TcpOrphan).len() == 8
    });
    let listed = of(&lab.source, Class::TcpOrphan);
    assert!(listed.iter().all(|row| row.fate == Fate::Moves));
    let tasks = Tasks::holding(Vec::new());
    let begun = Instant::now();
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    println!("dump: {:?}", begun.elapsed());
    assert_eq!(states(&image), [2; 4], "{:?}", image.orphans);
    assert!(image.left.is_empty(), "{:?}", image.left);
    let failed = kept.silence();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(of(&lab.source, Class::TcpOrphan).is_empty());
    drop(tasks);

    let tasks = engine(&lab, &image);
    let begun = Instant::now();
    let rebuilt = restore(&lab, &tasks, &image);
    println!("restore: {:?}", begun.elapsed());
    assert!(rebuilt.lost().is_empty(), "{:?}", rebuilt.lost());
    lab.pass();
    rebuilt.open().expect("opened");
    closed.end();
    until("the orphans end", || {
        of(&lab.target, Class::TcpOrphan).is_empty()
    });
    assert_eq!((resets(&lab.target), resets(&lab.peer)), (0, 0));
}

#[test]
fn a_restore_that_is_not_opened_leaves_no_orphan() {
    let lab = Lab::new();
    let mut closed = Closed::make(&lab);
    let tasks = Tasks::holding(Vec::new());
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    let there = engine(&lab, &image);
    drop(restore(&lab, &there, &image));
    assert!(of(&lab.target, Class::TcpOrphan).is_empty());
    // At the source they are as they were.
    assert!(kept.undo().is_empty());
    lab.reopen();
    closed.peers.iter_mut().flatten().for_each(|peer| {
        peer.set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a timeout");
    });
    closed.end();
}

/// Closed with bytes to send, by both protocols: of some a part has left, of some it has arrived, and some are as long as a buffer.
struct Unsent {
    /// With the number of bytes that each is still to read, after those that it has read.
    peers: Vec<(TcpStream, usize, usize)>,
}

impl Unsent {
    fn make(lab: &Lab) -> Self {
        let mut all: Vec<_> = (0..8)
            .map(|i| (connected(lab, i % 2 == 1, i % 4 < 2), i / 2))
            .collect();
        let mut read = Vec::new();
        for ((own, peer), kind) in &mut all {
            own.write_all(&pattern(0, 5000)).expect("written");
            expect(peer, 0, 5000);
            if *kind == 3 {
                peer.shutdown(Shutdown::Write).expect("shut down");
            }
            read.push(5000);
        }
        let mut written = read.clone();
        // The third kind's peer reads nothing: its window is full, and the rest never left.
        for (((own, _), kind), written) in all.iter_mut().zip(&mut written) {
            if *kind == 2 {
                *written += fill(own, *written);
            }
        }
        pause();
        lab.close();
        for (i, (((own, _), kind), written)) in all.iter_mut().zip(&mut written).enumerate() {
            match kind {
                // Small segments: of one all leave, of the other ten.
                0 => {
                    own.set_nodelay(true).expect("TCP_NODELAY");
                    for _ in 0..[8, 300][i % 2] {
                        own.write_all(&pattern(*written, 10)).expect("written");
                        *written += 10;
                    }
                }
                // More than a congestion window, so a part does not leave.
                1 | 3 => *written += fill(own, *written),
                _ => {}
            }
        }
        let peers = all.into_iter().map(|((own, peer), _)| {
            drop(own);
            peer
        });
        let streams = peers.zip(read).zip(written);
        Self {
            peers: streams.map(|((peer, r), w)| (peer, r, w)).collect(),
        }
    }

    /// Every peer reads all, then an orderly end.
    fn end(&mut self) {
        for (peer, read, written) in &mut self.peers {
            let begun = Instant::now();
            expect(peer, *read, *written - *read);
            assert_eq!(peer.read(&mut [0; 16]).expect("an orderly end"), 0);
            println!("{} bytes: {:?}", *written - *read, begun.elapsed());
        }
        for (peer, ..) in &self.peers {
            // Those that had not ended their side before do it now.
            let _ended: std::io::Result<()> = peer.shutdown(Shutdown::Write);
            has_ended(peer);
        }
    }
}

#[test]
fn what_they_had_to_send_arrives() {
    let lab = Lab::new();
    let mut unsent = Unsent::make(&lab);
    let orphans = || of(&lab.source, Class::TcpOrphan);
    // A test beside may be starting a process, which holds them for a moment.
    until("they are orphans", || orphans().len() == 8);
    assert!(orphans().iter().all(|row| row.fate == Fate::Moves));
    let tasks = Tasks::holding(Vec::new());
    let begun = Instant::now();
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    let bytes: usize = image.orphans.iter().map(|tcp| tcp.send.len()).sum();
    println!("dump of {bytes} bytes: {:?}", begun.elapsed());
    assert_eq!(states(&image), [6, 0, 2, 0], "{:?}", image.orphans);
    assert!(image.left.is_empty(), "{:?}", image.left);
    let some = |holds: fn(&Tcp) -> bool| image.orphans.iter().any(holds);
    assert!(some(
        |tcp| tcp.snd_nxt == tcp.write_seq && tcp.in_flight() > 0
    ));
    assert!(some(
        |tcp| tcp.snd_nxt != tcp.write_seq && tcp.in_flight() > 0
    ));
    assert!(some(
        |tcp| tcp.in_flight() == tcp.peer_window && tcp.send.len() > 30_000
    ));
    assert!(kept.silence().is_empty());
    drop(tasks);

    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    assert!(rebuilt.lost().is_empty(), "{:?}", rebuilt.lost());
    lab.pass();
    rebuilt.open().expect("opened");
    unsent.end();
    until("the orphans end", || {
        of(&lab.target, Class::TcpOrphan).is_empty()
    });
    assert_eq!((resets(&lab.target), resets(&lab.peer)), (0, 0));
}

#[test]
fn what_they_had_to_send_stays_if_the_move_is_off() {
    let lab = Lab::new();
    let mut unsent = Unsent::make(&lab);
    until("they are orphans", || {
        of(&lab.source, Class::TcpOrphan).len() == 8
    });
    let tasks = Tasks::holding(Vec::new());
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    let there = engine(&lab, &image);
    drop(restore(&lab, &there, &image));
    assert!(kept.undo().is_empty());
    lab.reopen();
    unsent.end();
}

#[test]
fn one_with_both_ends_in_the_container_is_named() {
    let lab = Lab::new();
    let (mut own, other) = lab.source.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let at = listener.local_addr().expect("an address");
        let own = TcpStream::connect(at).expect("a connection");
        (own, listener.accept().expect("a connection").0)
    });
    fill(&mut own, 0);
    drop(own);
    // A test beside may be starting a process, which holds it for a moment.
    let stuck = || of(&lab.source, Class::TcpOrphanStuck);
    until("it is an orphan", || stuck().len() == 1);
    assert!(matches!(stuck()[0].fate, Fate::Reset(_)));
    let tasks = Tasks::holding(Vec::new());
    let (image, _kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert!(image.orphans.is_empty());
    assert!(!image.left.is_empty(), "{:?}", image.left);
    drop(other);
}

#[test]
fn time_wait_answers_at_the_target() {
    let lab = Lab::new();
    let all = [(false, false), (true, false), (false, true), (true, true)]
        .map(|(v6, outbound)| connected(&lab, v6, outbound));
    let peers = all.map(|(own, peer)| {
        drop(own);
        peer
    });
    pause();
    // The ACKs of their FINs are lost: these will come again.
    lab.mute();
    pause();
    drop(peers);
    pause();
    lab.close();
    lab.heal();
    let waiting = of(&lab.source, Class::TcpTimeWait);
    assert_eq!(waiting.len(), 4, "{waiting:?}");
    let last_acks = || {
        let rows = sock::rows(&lab.peer.path(), &[]).expect("rows");
        rows.iter().filter(|r| r.state == State::LastAck).count()
    };
    assert_eq!(last_acks(), 4, "FINs wait for their ACKs");
    let tasks = Tasks::holding(Vec::new());
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!((image.time_wait.len(), image.left.len()), (4, 0));
    assert!(kept.silence().is_empty());
    assert!(of(&lab.source, Class::TcpTimeWait).is_empty());

    let there = engine(&lab, &image);
    // The second time they are there already.
    for _ in 0..2 {
        let rebuilt = restore(&lab, &there, &image);
        assert!(rebuilt.lost().is_empty(), "{:?}", rebuilt.lost());
    }
    let here = of(&lab.target, Class::TcpTimeWait);
    let ends = |rows: &[Row]| {
        let mut ends: Vec<_> = rows
            .iter()
            .map(|r| (r.local.clone(), r.peer.clone()))
            .collect();
        ends.sort();
        ends
    };
    assert_eq!(ends(&here), ends(&waiting));
    lab.pass();
    until("the late FINs are answered", || last_acks() == 0);
    assert_eq!(resets(&lab.target), 0);
    assert_eq!(of(&lab.target, Class::TcpTimeWait).len(), 4);
}

#[test]
fn many_in_time_wait_take_little_of_a_blackout() {
    const COUNT: usize = 1100;
    const LIMIT: usize = 1024;
    let lab = Lab::new();
    for _ in 0..COUNT {
        let (own, peer) = connected(&lab, false, true);
        // Not by closing: a test beside may be starting a process, which holds them for a moment, and then the other end waits.
        own.shutdown(Shutdown::Write).expect("a FIN");
        peer.shutdown(Shutdown::Write).expect("a FIN");
    }
    until("they wait", || {
        of(&lab.source, Class::TcpTimeWait).len() == COUNT
    });
    lab.close();
    let tasks = Tasks::holding(Vec::new());
    let begun = Instant::now();
    let (image, _kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    println!("dump of {COUNT}: {:?}", begun.elapsed());
    assert_eq!((image.time_wait.len(), image.left.len()), (LIMIT, 1));
    let there = engine(&lab, &image);
    let begun = Instant::now();
    let rebuilt = restore(&lab, &there, &image);
    println!("restore of {LIMIT}: {:?}", begun.elapsed());
    assert!(rebuilt.lost().is_empty(), "{:?}", rebuilt.lost());
    assert_eq!(of(&lab.target, Class::TcpTimeWait).len(), LIMIT);
}
