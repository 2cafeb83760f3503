//! The clients against servers and links that misbehave: what they count is what was done to them.
mod fake_redis;
mod proxy;

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use fake_redis::FakeRedis;
use proxy::{Harm, Proxy};

use super::{Direction, Outcome, bulk, dataset, idle, redis, stop::Stop, udp};

/// Runs a client until it is warm, does `meanwhile`, lets it run a little longer and stops it.
fn run(
    client: impl FnOnce(&Stop, &mut dyn FnMut() -> io::Result<()>) -> io::Result<Outcome>
    + Send
    + 'static,
    meanwhile: impl FnOnce(),
) -> Outcome {
    let stop = Stop::after(Duration::from_secs(60));
    let (warm, is_warm) = mpsc::channel();
    let running: JoinHandle<io::Result<Outcome>> = thread::spawn({
        let stop = stop.clone();
        move || client(&stop, &mut || warm.send(()).map_err(io::Error::other))
    });
    is_warm
        .recv_timeout(Duration::from_secs(20))
        .expect("the client becomes warm");
    meanwhile();
    thread::sleep(Duration::from_millis(200));
    stop.tell();
    running
        .join()
        .expect("no panic")
        .expect("a client that was warm has an outcome")
}

fn redis_load(to: SocketAddr, connections: usize, meanwhile: impl FnOnce()) -> Outcome {
    run(
        move |stop, ready| {
            redis::load(
                "redis",
                to,
                connections,
                redis::Pace::default(),
                stop,
                ready,
            )
        },
        meanwhile,
    )
}

fn bulk_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).expect("a port");
    let at = listener.local_addr().expect("bound");
    thread::spawn(move || bulk::serve(&listener));
    at
}

fn bulk_stream(to: SocketAddr, direction: Direction, meanwhile: impl FnOnce()) -> Outcome {
    let request = bulk::Request {
        direction,
        seed: 77,
        rate: 20_000_000,
    };
    run(
        move |stop, ready| bulk::stream("bulk", to, &request, stop, ready),
        meanwhile,
    )
}

#[test]
fn redis_undisturbed_is_clean() {
    let server = FakeRedis::start();
    let seen = redis_load(server.at, 8, || thread::sleep(Duration::from_millis(300)));
    assert!(seen.clean(), "{seen:?}");
    assert!(seen.row.operations > Some(8 * 20), "{seen:?}");
    assert_eq!(seen.connects, 8);
    assert!(seen.row.longest_pause_ms < 250.0, "{seen:?}");
}

#[test]
fn redis_values_that_differ_are_corrupt() {
    let server = FakeRedis::start();
    let seen = redis_load(server.at, 4, || {
        server.spoil_next_get();
        thread::sleep(Duration::from_millis(200));
    });
    assert_eq!(
        (seen.row.errors, seen.row.resets, seen.row.corrupt),
        (0, 0, 1),
        "{seen:?}"
    );
}

#[test]
fn redis_values_that_are_gone_are_corrupt() {
    let server = FakeRedis::start();
    let seen = redis_load(server.at, 4, || {
        thread::sleep(Duration::from_millis(200));
        server.lose_all();
        thread::sleep(Duration::from_millis(200));
    });
    assert!(seen.row.corrupt >= 4, "{seen:?}");
    assert_eq!((seen.row.errors, seen.row.resets), (0, 0), "{seen:?}");
}

#[test]
fn redis_pause_is_measured() {
    let server = FakeRedis::start();
    let proxy = Proxy::start(server.at);
    let began = super::clock::now_ns();
    let seen = redis_load(proxy.at, 4, || {
        proxy.harm(Harm::Stall(Duration::from_millis(300)))
    });
    assert!(seen.clean(), "{seen:?}");
    assert!(
        (300.0..450.0).contains(&seen.row.longest_pause_ms),
        "{seen:?}"
    );
    let pause = seen
        .pause_within(began, super::clock::now_ns())
        .expect("the pause is kept");
    assert!(pause.len_ns() >= 300_000_000, "{seen:?}");
    assert_eq!(seen.pause_within(0, began - 1), None);
}

#[test]
fn redis_reset_is_counted_and_the_client_goes_on() {
    let server = FakeRedis::start();
    let proxy = Proxy::start(server.at);
    let seen = redis_load(proxy.at, 3, || proxy.harm(Harm::Reset));
    assert_eq!(
        (seen.row.errors, seen.row.resets, seen.row.corrupt),
        (0, 3, 0),
        "{seen:?}"
    );
    assert_eq!(seen.connects, 6);
}

#[test]
fn redis_that_says_no_is_an_error() {
    let server = FakeRedis::start();
    let seen = redis_load(server.at, 2, || {
        server.refuse_next();
        thread::sleep(Duration::from_millis(100));
    });
    assert_eq!(
        (seen.row.errors, seen.row.resets, seen.row.corrupt),
        (1, 0, 0),
        "{seen:?}"
    );
}

#[test]
fn bulk_is_checked_at_both_ends() {
    for direction in [Direction::Inbound, Direction::Outbound] {
        let seen = bulk_stream(bulk_server(), direction, || {
            thread::sleep(Duration::from_millis(200))
        });
        assert!(seen.clean(), "{seen:?}");
        assert!(seen.row.bytes > 8 << 20, "{seen:?}");
        assert!(
            seen.row.retransmits.is_some(),
            "the sender says what it sent again: {seen:?}"
        );
    }
}

#[test]
fn bulk_with_a_flipped_byte_is_corrupt() {
    for (direction, harm) in [
        (Direction::Inbound, Harm::FlipThere),
        (Direction::Outbound, Harm::FlipBack),
    ] {
        let proxy = Proxy::start(bulk_server());
        let seen = bulk_stream(proxy.at, direction, || proxy.harm(harm));
        assert_eq!(seen.row.corrupt, 1, "{direction:?}: {seen:?}");
    }
}

#[test]
fn bulk_pause_is_measured_in_both_directions() {
    for direction in [Direction::Inbound, Direction::Outbound] {
        let proxy = Proxy::start(bulk_server());
        // The proxy's own buffers take what arrives until they are full, so the stall is longer than they can hide.
        let seen = bulk_stream(proxy.at, direction, || {
            proxy.harm(Harm::Stall(Duration::from_millis(1500)))
        });
        assert!(seen.clean(), "{seen:?}");
        assert!(
            (300.0..1700.0).contains(&seen.row.longest_pause_ms),
            "{direction:?}: {seen:?}"
        );
    }
}

#[test]
fn bulk_reset_is_counted() {
    for direction in [Direction::Inbound, Direction::Outbound] {
        let proxy = Proxy::start(bulk_server());
        let seen = bulk_stream(proxy.at, direction, || proxy.harm(Harm::Reset));
        assert_eq!(
            (seen.row.errors, seen.row.resets),
            (0, 1),
            "{direction:?}: {seen:?}"
        );
    }
}

#[test]
fn idle_connections_are_asked_at_the_end() {
    let server = FakeRedis::start();
    let proxy = Proxy::start(server.at);
    let at = proxy.at;
    let seen = run(
        move |stop, ready| idle::hold("idle", at, 10, stop, ready),
        || (),
    );
    assert!(seen.clean() && seen.row.operations == Some(10), "{seen:?}");
    let seen = run(
        move |stop, ready| idle::hold("idle", at, 10, stop, ready),
        || proxy.harm(Harm::Reset),
    );
    assert_eq!(
        (seen.row.resets, seen.row.operations),
        (10, Some(0)),
        "{seen:?}"
    );
}

fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a port");
    let at = socket.local_addr().expect("bound");
    thread::spawn(move || udp::echo(&socket, &Stop::after(Duration::from_secs(60))));
    at
}

fn udp_flow(to: SocketAddr) -> Outcome {
    run(
        move |stop, ready| udp::flow("udp", to, 1000, stop, ready),
        || thread::sleep(Duration::from_millis(500)),
    )
}

#[test]
fn udp_undisturbed_comes_back_whole() {
    let seen = udp_flow(udp_echo());
    assert!(seen.clean(), "{seen:?}");
    assert!(seen.row.sent > Some(400), "{seen:?}");
    assert_eq!(seen.row.sent, seen.row.received);
    assert_eq!((seen.duplicated, seen.reordered), (0, 0));
}

#[test]
fn udp_loss_duplicates_and_disorder_are_counted() {
    let link = proxy::UdpLink::start(udp_echo());
    let seen = udp_flow(link.at);
    let done = link.done();
    assert!(seen.clean(), "{seen:?}");
    assert!(
        done.dropped > 10 && done.doubled > 5 && done.swapped > 5,
        "{done:?}"
    );
    let lost = seen.row.sent.zip(seen.row.received).map(|(s, r)| s - r);
    assert!(
        lost.is_some_and(|l| l.abs_diff(done.dropped) <= 1),
        "{seen:?} {done:?}"
    );
    assert_eq!(
        (seen.duplicated, seen.reordered),
        (done.doubled, done.swapped)
    );
}

#[test]
fn the_data_set_reads_back_and_a_change_shows() {
    let server = FakeRedis::start();
    let bytes = 1 << 20;
    dataset::populate(server.at, bytes).expect("written");
    let state = dataset::state(server.at, bytes).expect("read");
    assert_eq!((state.keys, state.bytes), (64, bytes));
    assert!(state.intact(), "{state:?}");
    server.spoil_next_get();
    assert!(!dataset::state(server.at, bytes).expect("read").intact());
    server.lose_all();
    let missing = dataset::state(server.at, bytes).expect_err("nothing is there");
    assert_eq!(missing.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn the_loopback_client_tells_its_state_in_redis() {
    let server = FakeRedis::start();
    let (at, stop) = (server.at, Stop::after(Duration::from_secs(30)));
    let running = thread::spawn({
        let stop = stop.clone();
        move || redis::loopback(at, &stop)
    });
    let told = || redis::ask(at, redis::LOOPBACK_STATUS).expect("redis answers");
    while told().is_none() {
        thread::sleep(Duration::from_millis(20));
    }
    server.spoil_next_get();
    thread::sleep(Duration::from_millis(400));
    stop.tell();
    running.join().expect("no panic").expect("it could connect");
    let outcome: Outcome = serde_json::from_slice(&told().expect("told")).expect("JSON");
    assert_eq!(
        (outcome.row.corrupt, outcome.row.errors, outcome.connects),
        (1, 0, 1),
        "{outcome:?}"
    );
    assert!(outcome.row.operations > Some(100), "{outcome:?}");
}

#[test]
fn a_silence_that_lasts_until_the_end_is_a_pause() {
    let forever = Harm::Stall(Duration::from_millis(1200));
    let server = FakeRedis::start();
    let proxy = std::sync::Arc::new(Proxy::start(server.at));
    let (stop, at) = (Stop::after(Duration::from_millis(700)), proxy.at);
    let stalled = proxy.clone();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        stalled.harm(forever);
    });
    let seen =
        redis::load("redis", at, 2, redis::Pace::default(), &stop, || Ok(())).expect("an outcome");
    assert!(seen.row.longest_pause_ms > 1000.0, "{seen:?}");
    let link = proxy::UdpLink::start(udp_echo());
    let stop = Stop::after(Duration::from_millis(900));
    let seen = udp::flow("udp", link.at, 1000, &stop, || {
        link.cut();
        Ok(())
    });
    let seen = seen.expect("an outcome");
    assert!(
        seen.row.received < Some(5) && seen.row.sent > Some(100),
        "{seen:?}"
    );
    assert!(seen.row.longest_pause_ms > 700.0, "{seen:?}");
    assert_eq!(seen.row.errors, 0, "{seen:?}");
}
