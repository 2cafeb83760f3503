//! Connections move from a source to a target while their peer stays.
mod sock_lab;

use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use netmig_user::{sock, sys::sockopt};
use sock_lab::{Lab, Tasks, connected, engine, expect, fill, in_repair, owned, pattern, restore};

/// A restored socket's timers begin at 1 s.
const NO_TIMER: Duration = Duration::from_millis(500);

/// What happens before the move, after 3000 bytes from the container and 2000 to it were exchanged.
#[derive(Clone, Copy, Debug)]
struct Story {
    v6: bool,
    /// The container connected to the peer, not the peer to it.
    outbound: bool,
    /// Bytes that the container has not read.
    unread: usize,
    /// What becomes of what the container writes last.
    last: Last,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Last {
    /// It writes nothing.
    Nothing,
    /// So many bytes are lost on their way, and what they leave in the queue is not sent.
    Lost(usize),
    /// So many bytes arrive, but no ACK comes back.
    Unacknowledged(usize),
    /// As `Unacknowledged`, of as much of so many bytes as the congestion window lets go; the rest is not sent.
    UnacknowledgedAndMore(usize),
    /// The peer does not read, and its window is full; it reads them only after the opening.
    Full,
    /// As `Full`, but the peer reads while nothing can tell the container so.
    FullThenRead,
}

/// Moves the connection and lets both ends go on. Says how long after the opening the peer had its next byte.
fn moves(story: Story) -> Duration {
    let lab = Lab::new();
    let (mut own, mut peer) = connected(&lab, story.v6, story.outbound);
    own.write_all(&pattern(0, 3000)).expect("written");
    expect(&mut peer, 0, 3000);
    peer.write_all(&pattern(0, 2000)).expect("written");
    expect(&mut own, 0, 2000);
    peer.write_all(&pattern(2000, story.unread))
        .expect("written");
    std::thread::sleep(Duration::from_millis(60));

    let (mut written, mut read) = (3000, 3000);
    match story.last {
        Last::Nothing => lab.close(),
        Last::Lost(bytes) => {
            lab.close();
            own.write_all(&pattern(written, bytes)).expect("written");
            written += bytes;
        }
        Last::Unacknowledged(bytes) => {
            lab.deafen();
            own.write_all(&pattern(written, bytes)).expect("written");
            written += bytes;
            expect(&mut peer, read, bytes);
            read += bytes;
            lab.close();
            lab.heal();
        }
        Last::UnacknowledgedAndMore(bytes) => {
            lab.deafen();
            own.write_all(&pattern(written, bytes)).expect("written");
            written += bytes;
            std::thread::sleep(Duration::from_millis(50));
            lab.close();
            lab.heal();
        }
        Last::Full | Last::FullThenRead => {
            written += fill(&mut own, written);
            std::thread::sleep(Duration::from_millis(100));
            written += fill(&mut own, written);
            std::thread::sleep(Duration::from_millis(300));
            lab.close();
        }
    }
    let tasks = Tasks::holding(vec![owned(own)]);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!(image.tcp.len(), 1);
    let tcp = &image.tcp[0];
    assert_eq!(tcp.recv, pattern(2000, story.unread));
    assert!(!in_repair(&tasks.socket(0)));
    let unsent = tcp.write_seq.wrapping_sub(tcp.snd_nxt) as usize;
    println!(
        "{story:?}: in flight {}, unsent {unsent}, peer's window {}",
        tcp.in_flight(),
        tcp.peer_window
    );
    match story.last {
        Last::Nothing => assert_eq!(tcp.send.len(), 0),
        Last::Lost(n) | Last::Unacknowledged(n) => {
            assert_eq!((tcp.send.len(), tcp.in_flight() > 0), (n, true))
        }
        Last::UnacknowledgedAndMore(n) => {
            assert_eq!((tcp.send.len(), unsent > 0), (n, true));
            expect(&mut peer, read, n - unsent);
            read += n - unsent;
        }
        Last::Full | Last::FullThenRead => assert_eq!((unsent > 0, tcp.in_flight()), (true, 0)),
    }
    if story.last == Last::FullThenRead {
        let arrived = written - read - tcp.send.len();
        expect(&mut peer, read, arrived);
        read += arrived;
    }
    drop((kept, tasks));

    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    assert!(rebuilt.refused().is_empty(), "{:?}", rebuilt.refused());
    assert!(!in_repair(&tasks.socket(0)));
    lab.pass();
    let opening = Instant::now();
    let opened = rebuilt.open().expect("opened");
    assert_eq!(opened.connections, 1);
    let mut own: TcpStream = tasks.stream(0);
    // The program goes on: it reads what waited, and writes more.
    expect(&mut own, 2000, story.unread);
    let more = pattern(written, 50_000);
    let total = written + more.len() - read;
    let first = std::thread::scope(|s| {
        let reader = s.spawn(|| expect(&mut peer, read, total));
        own.write_all(&more).expect("written");
        reader.join().expect("the peer reads")
    });
    let all = opening.elapsed();
    // And the peer's own data arrives.
    let asked = Instant::now();
    peer.write_all(&pattern(2000 + story.unread, 100_000))
        .expect("written");
    let heard = expect(&mut own, 2000 + story.unread, 100_000);
    println!(
        "  first byte at the peer {:?} after the opening, all {all:?}; from the peer {:?}",
        first - opening,
        heard - asked
    );
    assert!(
        heard - asked < NO_TIMER,
        "the peer's data waited for a timer"
    );
    first - opening
}

/// The story for each family, from each side.
fn all_ways(unread: usize, last: Last) {
    for (v6, outbound) in [(false, true), (false, false), (true, true), (true, false)] {
        let first = moves(Story {
            v6,
            outbound,
            unread,
            last,
        });
        assert!(first < NO_TIMER, "{first:?}");
    }
}

#[test]
fn idle_with_unread_bytes() {
    all_ways(5000, Last::Nothing);
}

#[test]
fn unread_up_to_a_closed_window_and_beyond_a_call() {
    all_ways(60_000, Last::Nothing);
}

#[test]
fn in_flight_and_received_but_not_acknowledged() {
    all_ways(100, Last::Unacknowledged(12_000));
}

#[test]
fn in_flight_and_lost() {
    all_ways(100, Last::Lost(5_000));
}

#[test]
fn in_flight_and_lost_with_more_than_a_window_behind_it() {
    all_ways(0, Last::Lost(60_000));
}

#[test]
fn in_flight_and_received_with_more_than_a_window_behind_it() {
    all_ways(0, Last::UnacknowledgedAndMore(60_000));
}

#[test]
fn idle_behind_a_drain_that_has_shrunk_the_windows() {
    let lab = Lab::new();
    let (own, mut peer) = connected(&lab, false, true);
    lab.close();
    let tasks = Tasks::holding(vec![owned(own)]);
    let (mut image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    drop((kept, tasks));
    // What the stack would have read in the peer's last, rewritten ACK.
    image.tcp[0].peer_window = 0;
    image.tcp[0].window.snd_wnd = 0;
    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    assert_eq!(rebuilt.open().expect("opened").probed, 1);
    let asked = Instant::now();
    tasks
        .stream(0)
        .write_all(&pattern(0, 20_000))
        .expect("written");
    expect(&mut peer, 0, 20_000);
    assert!(asked.elapsed() < NO_TIMER, "{:?}", asked.elapsed());
}

#[test]
fn in_flight_and_acknowledged_by_what_is_still_to_be_delivered() {
    let lab = Lab::new();
    let (mut own, mut peer) = connected(&lab, false, true);
    lab.deafen();
    own.write_all(&pattern(0, 12_000)).expect("written");
    expect(&mut peer, 0, 12_000);
    lab.close();
    lab.heal();
    let tasks = Tasks::holding(vec![owned(own)]);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    drop((kept, tasks));
    let (snd_una, snd_nxt) = (image.tcp[0].snd_una, image.tcp[0].snd_nxt);
    assert_ne!(snd_una, snd_nxt);
    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    let asked = |acked: u32| {
        let coming = |_: &_| sock::Coming {
            promised: false,
            acked: Some(acked),
        };
        rebuilt.open_with(&coming, &[]).expect("opened").probed
    };
    assert_eq!(asked(snd_nxt), 0);
    // What follows takes the place of what was held: it acknowledges all.
    let opened = Instant::now();
    peer.write_all(&pattern(0, 64)).expect("written");
    let mut own: TcpStream = tasks.stream(0);
    expect(&mut own, 0, 64);
    own.write_all(&pattern(12_000, 20_000)).expect("written");
    expect(&mut peer, 12_000, 20_000);
    assert!(opened.elapsed() < NO_TIMER, "{:?}", opened.elapsed());
}

#[test]
fn what_a_peer_cannot_have_acknowledged_does_not_count() {
    let lab = Lab::new();
    let (mut own, mut peer) = connected(&lab, false, true);
    lab.close();
    own.write_all(&pattern(0, 5000)).expect("written");
    let tasks = Tasks::holding(vec![owned(own)]);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    drop((kept, tasks));
    let beyond = image.tcp[0].snd_nxt.wrapping_add(1);
    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    let opened = Instant::now();
    let coming = |_: &_| sock::Coming {
        promised: false,
        acked: Some(beyond),
    };
    assert_eq!(rebuilt.open_with(&coming, &[]).expect("opened").probed, 1);
    expect(&mut peer, 0, 5000);
    assert!(opened.elapsed() < NO_TIMER, "{:?}", opened.elapsed());
}

#[test]
fn idle_with_an_ack_that_is_still_delayed() {
    let lab = Lab::new();
    let (own, mut peer) = connected(&lab, false, true);
    peer.write_all(&pattern(0, 64)).expect("written");
    std::thread::sleep(Duration::from_millis(60));
    lab.close();
    let tasks = Tasks::holding(vec![owned(own)]);
    let (mut image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    drop((kept, tasks));
    // As it is in the 40 ms before the stack acknowledges the 64 bytes.
    let window = &mut image.tcp[0].window;
    window.rcv_wup = window.rcv_wup.wrapping_sub(64);
    window.rcv_wnd += 64;
    window.snd_wl1 = window.rcv_wup;
    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    assert_eq!(rebuilt.open().expect("opened").probed, 0);
    let opened = Instant::now();
    let mut own: TcpStream = tasks.stream(0);
    expect(&mut own, 0, 64);
    own.write_all(&pattern(0, 20_000)).expect("written");
    expect(&mut peer, 0, 20_000);
    assert!(opened.elapsed() < NO_TIMER, "{:?}", opened.elapsed());
}

#[test]
fn link_local_addresses_on_an_interface_with_another_index() {
    let lab = Lab::new();
    let scoped =
        |ip: &str| std::net::SocketAddrV6::new(ip.parse().expect("an address"), 7400, 0, 2);
    // Addresses made of the MAC take a moment (DAD).
    std::thread::sleep(Duration::from_millis(2500));
    let listener = lab
        .peer
        .run(|| std::net::TcpListener::bind(scoped("fe80::ff:fe00:1")).expect("a listener"));
    let own = lab
        .source
        .run(|| TcpStream::connect(scoped("fe80::ff:fe00:1")).expect("a connection"));
    let (mut peer, _) = listener.accept().expect("a connection");
    lab.close();
    let tasks = Tasks::holding(vec![owned(own)]);
    let (mut image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!((image.tcp[0].local.scope, image.tcp[0].peer.scope), (2, 2));
    drop((kept, tasks));
    let tcp = &mut image.tcp[0];
    (tcp.local.scope, tcp.peer.scope) = (9, 9);
    for interface in image.interfaces.iter_mut().filter(|i| i.name == "eth0") {
        interface.index = 9;
    }
    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    rebuilt.open().expect("opened");
    tasks
        .stream(0)
        .write_all(&pattern(0, 100))
        .expect("written");
    expect(&mut peer, 0, 100);
}

#[test]
fn unsent_before_a_full_peer() {
    all_ways(0, Last::Full);
}

#[test]
fn unsent_before_a_peer_that_made_room_meanwhile() {
    all_ways(10, Last::FullThenRead);
}

/// Congestion window of a connection, segments (tcpi_snd_cwnd).
fn cwnd(stream: &TcpStream) -> u32 {
    const AT: usize = 80;
    let info: [u8; 104] = sockopt::read(stream, libc::SOL_TCP, libc::TCP_INFO).expect("TCP_INFO");
    let mut window = [0; 4];
    window.copy_from_slice(&info[AT..AT + 4]);
    u32::from_ne_bytes(window)
}

#[test]
fn a_connection_that_was_sending_keeps_half_of_its_congestion_window() {
    let lab = Lab::new();
    let (mut own, mut peer) = connected(&lab, false, false);
    let (mut idle, mut its_peer) = connected(&lab, true, false);
    let mut sent = 0;
    for (own, peer, bytes) in [
        (&mut own, &mut peer, 60_000_000),
        (&mut idle, &mut its_peer, 20_000_000),
    ] {
        std::thread::scope(|scope| {
            scope.spawn(|| expect(peer, 0, bytes));
            for from in (0..bytes).step_by(1_000_000) {
                own.write_all(&pattern(from, 1_000_000)).expect("written");
            }
        });
        sent = sent.max(bytes);
    }
    sent += fill(&mut own, sent);
    std::thread::sleep(Duration::from_millis(60));
    let before = [cwnd(&own), cwnd(&idle)];
    assert!(before.iter().all(|window| *window > 24), "{before:?}");
    lab.close();
    let tasks = Tasks::holding(vec![owned(own), owned(idle)]);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert!(kept.silence().is_empty());
    drop(tasks);
    for cold in [true, false] {
        let mut image = image.clone();
        if cold {
            image.tcp.iter_mut().for_each(|tcp| tcp.cwnd = 0);
        }
        let tasks = engine(&lab, &image);
        let rebuilt = restore(&lab, &tasks, &image);
        let after = [0, 1].map(|i| cwnd(&tasks.stream(i)));
        let kept = if cold { 10 } else { before[0] / 2 };
        assert_eq!(after, [kept, 10], "{before:?}");
        if cold {
            for i in [0, 1] {
                // It goes without a word.
                sockopt::set_int(&tasks.stream(i), libc::SOL_TCP, libc::TCP_REPAIR, 1)
                    .expect("TCP_REPAIR");
            }
            continue;
        }
        lab.pass();
        rebuilt.open().expect("opened");
        expect(&mut peer, 60_000_000, sent - 60_000_000);
    }
}
