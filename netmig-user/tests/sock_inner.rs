//! Connections with both ends in the container.
mod sock_lab;

use std::{
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use netmig_user::sock;
use sock_lab::{Lab, Swallow, Tasks, engine, expect, fill, owned, pattern, restore};

/// Both ends of a connection from an address of the source to itself.
fn both_ends(lab: &Lab, at: IpAddr, listen_on: IpAddr) -> (TcpStream, TcpStream) {
    let listener = lab
        .source
        .run(|| TcpListener::bind(SocketAddr::new(listen_on, 0)).expect("a listener"));
    let port = listener.local_addr().expect("an address").port();
    let one = lab
        .source
        .run(|| TcpStream::connect(SocketAddr::new(at, port)).expect("a connection"));
    let (two, _) = listener.accept().expect("a connection");
    (one, two)
}

/// `arrived` bytes each way wait to be read, then `lo` closes for `swallow`, then each end writes `late` bytes and, in the end, as much as
/// it can.
fn moves(at: &str, listen_on: &str, arrived: usize, swallow: Swallow, late: usize, full: bool) {
    let lab = Lab::new();
    let address = |a: &str| a.parse().expect("an address");
    let (mut one, mut two) = both_ends(&lab, address(at), address(listen_on));
    let mut ends = [(&mut one, 0), (&mut two, 0)];
    for (end, written) in &mut ends {
        end.write_all(&pattern(0, arrived)).expect("written");
        *written = arrived;
    }
    std::thread::sleep(Duration::from_millis(100));
    lab.close_lo(swallow);
    for (end, written) in &mut ends {
        end.write_all(&pattern(*written, late)).expect("written");
        *written += late;
        if full {
            *written += fill(end, *written);
        }
    }
    let written = ends.map(|(_, written)| written);
    std::thread::sleep(Duration::from_millis(50));
    if swallow == Swallow::Acks {
        lab.close_lo(Swallow::All);
    }
    lab.close();
    let tasks = Tasks::holding(vec![owned(one), owned(two)]);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!(
        (image.tcp.len(), image.pairs.len(), image.left.as_slice()),
        (2, 1, &[][..])
    );
    for (i, tcp) in image.tcp.iter().enumerate() {
        println!(
            "{at}, {swallow:?} closed: {tcp}: {} wait to be read, {} to be sent",
            tcp.recv.len(),
            tcp.send.len()
        );
        let other = &image.tcp[1 - i];
        assert_eq!(tcp.in_flight(), 0);
        assert_eq!(tcp.snd_una, other.rcv_nxt);
    }
    drop((kept, tasks));

    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    assert!(rebuilt.refused().is_empty(), "{:?}", rebuilt.refused());
    let opening = Instant::now();
    // The outer gate stays closed: this traffic is on `lo`.
    assert_eq!(rebuilt.open_inner().expect("opened").connections, 2);
    let (mut one, mut two) = (tasks.stream(0), tasks.stream(1));
    const MORE: usize = 100_000;
    let first = std::thread::scope(|s| {
        let (one_reads, two_reads) = (
            one.try_clone().expect("a clone"),
            two.try_clone().expect("a clone"),
        );
        let read = |mut end: TcpStream, written: usize| {
            s.spawn(move || {
                expect(&mut end, 0, arrived);
                expect(&mut end, arrived, written + MORE - arrived)
            })
        };
        let readers = [read(two_reads, written[0]), read(one_reads, written[1])];
        s.spawn(|| one.write_all(&pattern(written[0], MORE)).expect("written"));
        s.spawn(|| two.write_all(&pattern(written[1], MORE)).expect("written"));
        readers.map(|reader| reader.join().expect("the stream is whole"))
    });
    println!(
        "  first bytes after {:?}, both streams complete {:?} after the opening",
        first.map(|f| f - opening),
        opening.elapsed()
    );
    for first in first {
        // A restored socket's timers begin at 1 s.
        assert!(
            first - opening < Duration::from_millis(500),
            "a timer was waited for"
        );
    }
    lab.pass();
    assert_eq!(rebuilt.open().expect("opened").connections, 0);
}

#[test]
fn idle_over_loopback() {
    moves("127.0.0.1", "127.0.0.1", 0, Swallow::All, 0, false);
}

#[test]
fn in_flight_both_ways_over_loopback() {
    moves("127.0.0.1", "127.0.0.1", 3000, Swallow::All, 7000, false);
}

#[test]
fn in_flight_and_unsent_both_ways_over_ipv6_loopback() {
    moves("::1", "::1", 3000, Swallow::All, 7000, true);
}

#[test]
fn received_but_not_acknowledged_both_ways() {
    moves("127.0.0.1", "0.0.0.0", 1000, Swallow::Acks, 20_000, false);
}

#[test]
fn over_the_containers_own_address() {
    moves("192.0.2.10", "0.0.0.0", 2000, Swallow::All, 9000, true);
    moves("2001:db8::10", "::", 2000, Swallow::Acks, 9000, false);
}

#[test]
fn between_an_ipv4_and_an_ipv4_mapped_end() {
    moves("127.0.0.1", "::", 500, Swallow::All, 9000, false);
}
