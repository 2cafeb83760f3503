//! The hold and its keeper over real connections: blackouts after which the container stays, or lives at the target.
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command},
    slice,
    thread::{self, JoinHandle},
};

use etherparse::{PacketBuilder, TcpHeader, TcpOptionElement};
use netmig_common::Side;
use netmig_core::image::v1::sock::Sockets;
use nix::sys::{
    resource::{UsageWho, getrusage},
    socket::{AddressFamily, Shutdown, SockFlag, SockType, setsockopt, shutdown, socket, sockopt},
    time::TimeValLike as _,
};
use tempfile::TempDir;

use super::*;
use crate::{
    driver::hold::{Promised, Store},
    gate::{
        hold::Limit,
        keeper::{BEYOND, WIDE},
        tests::lab::{Capture, FIRST, Lab, MOVE, finish_checksums, host_side, lab, run},
    },
    sock::{self, Look, Place},
    sys::netns::within,
};

const CONTAINER: &str = "192.0.2.10:7000";
/// The place of the only link.
const LINK: u16 = 0;

/// A stopped container's process, as far as these tests need one: it holds a socket at descriptor 0 and does nothing. This process would not do, for
/// other tests open and close its descriptors meanwhile.
struct Tasks(Child);

impl Tasks {
    fn holding(socket: impl Into<OwnedFd>) -> Self {
        let mut sleep = Command::new("sleep");
        let child = sleep.arg("600").stdin(socket.into()).spawn();
        Self(child.expect("a process"))
    }

    fn pids(&self) -> Vec<i32> {
        vec![self.0.id().cast_signed()]
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it can be waited for");
    }
}

/// A gate with its hold at the link of namespace `moving`, on a bridge with `peer`.
struct Blackout {
    gate: Gate,
    hold: Arc<Hold>,
    netns: PathBuf,
    directory: TempDir,
    tasks: Tasks,
    container: TcpStream,
    peer: TcpStream,
}

impl Blackout {
    /// With a connection that the peer has made.
    fn ahead(lab: &Lab) -> Self {
        Self::with_segments(lab, 1500)
    }

    /// The same over links that take packets of so many bytes.
    fn with_segments(lab: &Lab, mtu: u32) -> Self {
        lab.bridge(&["moving", "peer"]);
        run(&format!(
            "ip link set h-moving mtu {mtu}; ip link set h-peer mtu {mtu}; ip link set br0 mtu {mtu}
             ip -n moving link set eth0 mtu {mtu}; ip -n peer link set eth0 mtu {mtu}"
        ));
        let point = host_side("h-moving");
        let gate = Gate::attach(
            MOVE,
            Side::Source,
            Mode::Pass,
            FIRST,
            slice::from_ref(&point),
            &lab.pins("gate"),
        )
        .expect("a gate");
        let taps = hold::taps(MOVE, Side::Source, vec![(LINK, point)]).expect("a TAP");
        let hold = Hold::begin(MOVE, &gate, taps, Limit::default()).expect("a hold");
        // As a target says that stores what it is sent.
        hold.shared.kept().stored = Some(0);
        let (container, peer) = connected();
        let held = container.try_clone().expect("a duplicate");
        Self {
            tasks: Tasks::holding(held),
            container,
            peer,
            gate,
            hold: Arc::new(hold),
            netns: "/run/netns/moving".into(),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn owned(&self) -> PathBuf {
        self.directory.path().join("owned")
    }

    /// What the source's steps do from the closing to the dump.
    fn begins(&self, lease: Option<Duration>) -> (Sockets, sock::Kept) {
        let pids = self.tasks.pids();
        self.gate.let_acks_pass(true).expect("told");
        self.gate
            .set_mode(Mode::Closed, FIRST, lease)
            .expect("closed");
        let live = sock::live(&self.netns, &pids, Look::First).expect("read");
        self.hold
            .keep(&self.gate, live, &self.owned())
            .expect("kept");
        thread::sleep(Duration::from_millis(10));
        let live = sock::live(&self.netns, &pids, Look::Again).expect("read");
        self.hold.keep_again(&live, false);
        self.gate.let_acks_pass(false).expect("told");
        Gate::settle().expect("settled");
        self.gate.stands_since(self.hold.still()).expect("told");
        let (image, kept) = sock::dump(&self.netns, &pids).expect("a dump");
        let live: Vec<_> = image.tcp.iter().filter_map(Live::of).collect();
        self.hold.keep_again(&live, true);
        (image, kept)
    }

    /// Whoever reads the packets and knows of the peers is gone.
    fn dies(&self) {
        self.hold.shared.over.store(true, Ordering::SeqCst);
    }

    /// The next agent undoes what there is.
    fn is_taken_up(&self) {
        self.gate.set_mode(Mode::Pass, FIRST, None).expect("opened");
        let stored = Store::read(&self.owned()).expect("what was owned");
        let told = self.gate.told().expect("who was told");
        assert_eq!(told.len(), 1);
        let places = [(LINK, host_side("h-moving"))];
        let left = hold::deliver_stored(
            &self.gate,
            &places,
            stored,
            &told,
            &self.netns,
            self.tasks.pids(),
        );
        let left = left.expect("delivered");
        assert!(left.is_empty(), "{left:?}");
    }

    /// The container stays.
    fn stays(&self) {
        self.gate.open_in_order(FIRST, OPENING).expect("opening");
        let returning = self
            .hold
            .clone()
            .return_here(&self.netns, self.tasks.pids(), FIRST);
        let left = returning.expect("delivered").finish(&self.gate, FIRST);
        assert!(left.is_empty(), "{left:?}");
    }

    /// The container lives in another namespace at the same bridge, with one connection.
    fn moves(&self, image: &Sockets, kept: sock::Kept) -> (TcpStream, Tasks) {
        {
            let mut kept = self.hold.shared.kept();
            kept.stored = Some(kept.queue.len() as u64);
        }
        self.hold.seal().expect("stored");
        self.gate.grant(FIRST).expect("granted");
        let netns = Path::new("/run/netns/target");
        run(
            "mac=$(ip -n moving -br link show eth0 | awk '{print $3}'); ip link set h-moving nomaster; ip netns add target
             ip link add h-target type veth peer name eth0 address $mac netns target; mtu=$(ip -o link show dev br0 | grep -o 'mtu [0-9]*'); ip link set h-target $mtu master br0 up
             ip -n target link set eth0 $mtu; ip -n target link set lo up
             ip -n target addr add 192.0.2.10/24 dev eth0; ip -n target link set eth0 up",
        );
        let made: OwnedFd = within(netns, || {
            let fd = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            // As CRIU leaves it.
            assert!(shutdown(fd.as_raw_fd(), Shutdown::Both).is_err());
            setsockopt(&fd, sockopt::ReusePort, &true)?;
            std::io::Result::Ok(fd)
        })
        .expect("a socket");
        let tasks = Tasks::holding(made.try_clone().expect("a duplicate"));
        let place = Place {
            pid: tasks.pids()[0],
            fd: 0,
        };
        let rebuilt = sock::restore_at(netns, image, &|_| Some(place)).expect("rebuilt");
        let packets: Vec<_> = {
            let kept = self.hold.shared.kept();
            (0..kept.queue.len())
                .filter_map(|n| kept.queue.get(n).cloned())
                .collect()
        };
        let live: Vec<_> = image.tcp.iter().filter_map(Live::of).collect();
        let mut promised = Promised::of(&live, packets.iter().cloned(), netns, tasks.pids());
        let injectors = hold::injectors([(LINK, &host_side("h-target"))]).expect("an injector");
        let mut delivery = Delivery::new(injectors, self.gate.order(), netns);
        rebuilt
            .open_with(
                &|tcp| sock::Coming {
                    promised: promised.has(tcp.local, tcp.peer),
                    acked: promised.acknowledged(tcp.local, tcp.peer),
                },
                &[],
            )
            .expect("opened");
        let mut left = promised.make_room();
        for (link, packet) in packets {
            delivery.give(link, packet, false);
        }
        left.extend(promised.keep(&mut delivery));
        assert!(left.is_empty(), "{left:?}");
        assert!(kept.silence().is_empty());
        (made.into(), tasks)
    }

    /// The end that the program reads, after a blackout.
    fn ends(&self, ends: Ends, (image, kept): (Sockets, sock::Kept)) -> (TcpStream, Option<Tasks>) {
        match ends {
            Ends::Stays => {
                self.stays();
                let reads = self.container.try_clone();
                (reads.expect("a duplicate"), None)
            }
            Ends::Moves => {
                let (reads, tasks) = self.moves(&image, kept);
                (reads, Some(tasks))
            }
        }
    }
}

/// The container's end and the peer's, of a container that takes little of what it does not read.
fn connected() -> (TcpStream, TcpStream) {
    const BUFFER: usize = 64 << 10;
    let listener = within(Path::new("/run/netns/moving"), || {
        TcpListener::bind(CONTAINER)
    })
    .expect("a listener");
    setsockopt(&listener, sockopt::RcvBuf, &BUFFER).expect("a small buffer");
    let peer = within(Path::new("/run/netns/peer"), || {
        TcpStream::connect(CONTAINER)
    })
    .expect("a connection");
    (listener.accept().expect("accepted").0, peer)
}

/// Bytes that tell where they belong in their stream.
fn pattern(from: usize, length: usize) -> Vec<u8> {
    let byte = |n: usize| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
    (from..from + length).map(byte).collect()
}

/// Writes so much of the pattern and ends the stream.
fn writes(mut to: TcpStream, length: usize) -> JoinHandle<()> {
    thread::spawn(move || {
        to.write_all(&pattern(0, length)).expect("written");
        to.shutdown(std::net::Shutdown::Write).expect("ended");
    })
}

fn expect(mut from: TcpStream, length: usize) {
    from.set_read_timeout(Some(Duration::from_secs(10)))
        .expect("set");
    let mut all = Vec::new();
    from.read_to_end(&mut all)
        .unwrap_or_else(|e| panic!("{e} after {} bytes", all.len()));
    assert_eq!(all.len(), length);
    assert!(all == pattern(0, length), "other bytes");
}

/// Bytes of a socket that its peer has acknowledged (`tcpi_bytes_acked`).
fn acknowledged(socket: &TcpStream) -> u64 {
    let mut info = [0u64; 32];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the pointers are to `info` and its length.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(rc, 0);
    info[15]
}

/// A peer that asks for keepalives each second, and gives up after three without an answer.
fn asks_for_keepalives(peer: &TcpStream) {
    setsockopt(peer, sockopt::TcpKeepIdle, &1).expect("set");
    setsockopt(peer, sockopt::TcpKeepInterval, &1).expect("set");
    setsockopt(peer, sockopt::TcpKeepCount, &3).expect("set");
    setsockopt(peer, sockopt::KeepAlive, &true).expect("set");
}

/// Its last request is owned, and then everybody is killed who knows. `finished`: its checksums are made by its own stack.
fn nobody_is_left(finished: bool) {
    const LEASE: Duration = Duration::from_secs(1);
    let request = pattern(0, 300);
    lab(|lab| {
        let stage = Blackout::ahead(lab);
        if finished {
            finish_checksums(Some("peer"), "eth0");
        }
        let (mut container, mut peer) = (&stage.container, &stage.peer);
        asks_for_keepalives(peer);
        drop(stage.begins(Some(LEASE)));
        peer.write_all(&request).expect("written");
        let begun = Instant::now();
        while stage.hold.packets().owned == 0 && begun.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(stage.hold.packets().owned, 1);
        thread::sleep(LEASE.saturating_sub(begun.elapsed()));
        stage.dies();
        thread::sleep(Duration::from_secs(5));
        let counters = stage.gate.counters().expect("counters");
        assert_eq!(counters.inbound.expired + counters.outbound.expired, 1);
        assert!(counters.inbound.answered >= 4, "{counters:?}");
        peer.write_all(&request).expect("it has not given up");
        container
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("set");
        let mut byte = [0];
        assert!(container.read(&mut byte).is_err(), "nothing out of order");

        stage.is_taken_up();
        peer.shutdown(std::net::Shutdown::Write).expect("ended");
        container.write_all(&request).expect("it lives");
        container
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("set");
        let mut all = Vec::new();
        container.read_to_end(&mut all).expect("all of both");
        assert!(all == [&request[..], &request[..]].concat(), "other bytes");
        container
            .shutdown(std::net::Shutdown::Write)
            .expect("ended");
        expect(peer.try_clone().expect("a duplicate"), request.len());
    });
}

#[test]
fn a_peer_waits_when_nobody_is_left() {
    nobody_is_left(false);
}

#[test]
fn a_peer_that_makes_its_checksums_itself_waits_when_nobody_is_left() {
    nobody_is_left(true);
}

#[test]
fn who_was_told_that_there_is_no_room_is_told_of_it_by_the_next_agent() {
    lab(|lab| {
        let stage = Blackout::ahead(lab);
        let (mut container, mut peer) = (&stage.container, &stage.peer);
        asks_for_keepalives(peer);
        drop(stage.begins(Some(Duration::from_secs(10))));
        // Until it has asked.
        thread::sleep(Duration::from_millis(1300));
        let packets = stage.hold.packets();
        assert!(packets.answered > 0 && packets.owned == 0, "{packets:?}");
        stage.dies();
        stage.is_taken_up();
        let begun = Instant::now();
        peer.write_all(b"x").expect("written");
        container.read_exact(&mut [0]).expect("read");
        // Else it would have to probe for it.
        assert!(begun.elapsed() < Duration::from_millis(150));
    });
}

/// What was held comes first, however long the container takes to run: more than its buffer takes, and then more while nobody reads it.
#[test]
fn datagrams_stay_in_order_when_the_container_takes_long_to_run() {
    const HELD: u32 = 400;
    const ALL: u32 = 600;
    const FROZEN: Duration = Duration::from_secs(5);
    lab(|lab| {
        let stage = Blackout::ahead(lab);
        let inside = within(&stage.netns, || UdpSocket::bind("192.0.2.10:9000")).expect("bound");
        let peer = within(Path::new("/run/netns/peer"), || {
            UdpSocket::bind("192.0.2.11:9000")
        })
        .expect("bound");
        setsockopt(&inside, sockopt::RcvBuf, &(32 << 10)).expect("a small buffer");
        peer.connect("192.0.2.10:9000").expect("connected");
        let send = |numbers: std::ops::Range<u32>| {
            for number in numbers {
                peer.send(&number.to_be_bytes()).expect("sent");
                thread::sleep(Duration::from_micros(200));
            }
        };
        stage
            .gate
            .set_mode(Mode::Closed, FIRST, None)
            .expect("closed");
        send(0..HELD);
        stage.gate.open_in_order(FIRST, OPENING).expect("opening");
        let returning = stage
            .hold
            .clone()
            .return_here(&stage.netns, stage.tasks.pids(), FIRST)
            .expect("delivered");
        thread::sleep(FROZEN);
        assert!(FROZEN > OPENING);
        send(HELD..ALL);
        let reading = thread::spawn(move || {
            inside
                .set_read_timeout(Some(Duration::from_secs(3)))
                .expect("set");
            let mut number = [0; 4];
            let mut next = |_| inside.recv(&mut number).map(|_| u32::from_be_bytes(number));
            (0..ALL).map_while(|n| next(n).ok()).collect::<Vec<_>>()
        });
        let left = returning.finish(&stage.gate, FIRST);
        assert!(left.is_empty(), "{left:?}");
        let came = reading.join().expect("read");
        assert_eq!(came, (0..ALL).collect::<Vec<_>>());
    });
}

/// How a blackout ends.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    Stays,
    Moves,
}

/// A peer whose window was full at the closing goes on sending a segment now and then, gives up after three seconds without progress, and does
/// not: for `blackout`, with segments of about so many bytes.
fn full_receive_buffer(mtu: u32, blackout: Duration, ends: Ends) {
    const LENGTH: usize = 4 << 20;
    const IMPATIENCE_MS: u32 = 3000;
    lab(|lab| {
        let stage = Blackout::with_segments(lab, mtu);
        let peer = &stage.peer;
        setsockopt(peer, sockopt::TcpUserTimeout, &IMPATIENCE_MS).expect("set");
        let writing = writes(peer.try_clone().expect("a duplicate"), LENGTH);
        thread::sleep(Duration::from_millis(500));
        let dumped = stage.begins(None);
        let before = acknowledged(peer);
        thread::sleep(blackout);
        let after = acknowledged(peer);
        let trickled = after - before;
        println!(
            "{trickled} bytes of {} segments",
            stage.hold.packets().owned
        );
        // As many as there may be, or for most of the time.
        let most = (u64::from(BEYOND) - u64::from(WIDE)) / u64::from(mtu) - 1;
        let segments = most.min(blackout.as_secs() * 5);
        assert!(trickled >= segments * u64::from(mtu - 60), "{trickled}");
        let (reads, _tasks) = stage.ends(ends, dumped);
        expect(reads, LENGTH);
        writing.join().expect("the peer has not given up");
    });
}

/// Of large segments the few that are trickled within some seconds are as much as small ones of a minute.
const LARGE: u32 = 9000;
const SHORT: Duration = Duration::from_secs(9);
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_full_receive_buffer_and_a_trickle_then_the_container_stays() {
    full_receive_buffer(LARGE, SHORT, Ends::Stays);
}

#[test]
fn a_full_receive_buffer_and_a_trickle_then_a_move() {
    full_receive_buffer(LARGE, SHORT, Ends::Moves);
}

#[test]
#[ignore = "takes a minute; by name"]
fn a_full_receive_buffer_and_60_s_of_trickle_then_the_container_stays() {
    full_receive_buffer(1500, MINUTE, Ends::Stays);
}

#[test]
#[ignore = "takes a minute; by name"]
fn a_full_receive_buffer_and_60_s_of_trickle_then_a_move() {
    full_receive_buffer(1500, MINUTE, Ends::Moves);
}

/// After half of it all that may be owned is.
#[test]
#[ignore = "takes half a minute; by name"]
fn a_full_receive_buffer_and_a_trickle_that_dries_up_then_the_container_stays() {
    full_receive_buffer(LARGE, MINUTE / 2, Ends::Stays);
}

/// Bytes before a segment that is lost again and again, in it, and in those behind it.
const BEFORE: usize = 5000;
const LOST: usize = 1000;
const BEHIND: usize = 9000;

/// A segment is lost just before the closing, and again until the gate is closed: what came behind it lies in the container's socket or in the
/// hold, and its peer has been told so.
fn hole(ends: Ends) {
    lab(|lab| {
        let stage = Blackout::ahead(lab);
        let mut peer = &stage.peer;
        peer.set_nodelay(true).expect("set");
        peer.write_all(&pattern(0, BEFORE)).expect("written");
        thread::sleep(Duration::from_millis(100));
        let live = sock::live(&stage.netns, &stage.tasks.pids(), Look::Again).expect("read")[0];
        run(&format!(
            "nft add table netdev lost; nft add chain netdev lost in '{{ type filter hook ingress device h-peer priority 0; }}'
             nft add rule netdev lost in tcp sequence {} counter drop",
            live.rcv_nxt
        ));
        peer.write_all(&pattern(BEFORE, LOST)).expect("written");
        let mut end = BEFORE + LOST;
        for _ in 0..3 {
            peer.write_all(&pattern(end, BEHIND / 3)).expect("written");
            end += BEHIND / 3;
        }
        thread::sleep(Duration::from_millis(50));
        let dumped = stage.begins(None);
        let ours = dumped.0.tcp.iter().find(|tcp| tcp.peer == live.peer);
        assert_eq!(
            ours.expect("dumped").rcv_nxt,
            live.rcv_nxt,
            "the hole is there"
        );
        let dropped = run("nft list ruleset | grep -o 'packets [0-9]*'");
        assert_ne!(dropped.trim(), "packets 0");
        run("nft delete table netdev lost");
        peer.write_all(&pattern(end, LOST)).expect("written");
        end += LOST;
        peer.shutdown(std::net::Shutdown::Write).expect("ended");
        thread::sleep(Duration::from_secs(2));
        println!("{:?}", stage.hold.packets());
        assert!(
            acknowledged(peer) >= (BEFORE + LOST) as u64,
            "the hole is filled"
        );
        let (reads, _tasks) = stage.ends(ends, dumped);
        expect(reads, end);
    });
}

#[test]
fn a_hole_at_the_moment_of_closing_then_the_container_stays() {
    hole(Ends::Stays);
}

#[test]
fn a_hole_at_the_moment_of_closing_then_a_move() {
    hole(Ends::Moves);
}

/// A keepalive of the peer.
fn keepalive(live: &Live) -> Vec<u8> {
    let mac = |script: &str| {
        let text = run(script);
        let mut mac = [0; 6];
        for (byte, text) in mac.iter_mut().zip(text.trim().split(':')) {
            *byte = u8::from_str_radix(text, 16).expect("a MAC");
        }
        mac
    };
    let at = |name: &str| {
        mac(&format!(
            "ip -n {name} -br link show dev eth0 | awk '{{print $3}}'"
        ))
    };
    let mut header = TcpHeader::new(
        live.peer.port,
        live.local.port,
        live.rcv_nxt.wrapping_sub(1),
        500,
    );
    header.ack = true;
    header.acknowledgment_number = live.snd_nxt;
    let stamps = TcpOptionElement::Timestamp(7, 7);
    let options = [TcpOptionElement::Noop, TcpOptionElement::Noop, stamps];
    header.set_options(&options).expect("room");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(at("peer"), at("moving"))
        .ipv4([192, 0, 2, 11], [192, 0, 2, 10], 64)
        .tcp_header(header)
        .write(&mut frame, b"")
        .expect("a packet");
    frame
}

/// Processor time of this process, user's and system's.
fn processor() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("counted");
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.num_microseconds()).expect("a duration"))
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// Prints what answers cost, by the program and by user space: until the peer has one, and of the processor for a thousand at a thousand a second.
#[test]
#[ignore = "for a quiet machine; by name, with --release"]
fn what_an_answer_costs() {
    const PROBES: u32 = 1000;
    const PAUSE: Duration = Duration::from_millis(1);
    lab(|lab| {
        let stage = Blackout::ahead(lab);
        let live = sock::live(&stage.netns, &stage.tasks.pids(), Look::Again).expect("read")[0];
        drop(stage.begins(None));
        let probe = keepalive(&live);
        let wire = Capture::start("peer", "eth0");
        let answered = || {
            let of = |frame: &Vec<u8>| frame.len() >= 36 && frame[34..36] == 7000u16.to_be_bytes();
            wire.frames().iter().any(of)
        };
        let one = || {
            let begun = Instant::now();
            wire.send(&probe);
            while !answered() {
                assert!(begun.elapsed() < Duration::from_secs(1), "no answer");
            }
            begun.elapsed()
        };
        // From user space, which tells the program.
        one();
        for who in ["the program", "user space"] {
            if who == "user space" {
                let key = hold::key(live.local, live.peer);
                let mut answerer = stage
                    .gate
                    .answerer(&stage.hold.points[0].1)
                    .expect("opened");
                answerer.forgets(&key).expect("forgotten");
            }
            let program = || stage.gate.counters().expect("counters").inbound.answered;
            let before = program();
            let mut took: Vec<_> = (0..PROBES)
                .map(|_| {
                    thread::sleep(PAUSE);
                    one()
                })
                .collect();
            took.sort_unstable();
            let begun = processor();
            for _ in 0..PROBES {
                thread::sleep(PAUSE);
                wire.send(&probe);
            }
            thread::sleep(10 * PAUSE);
            let cost = processor() - begun;
            let by_program = program() - before;
            assert_eq!(
                by_program,
                if who == "the program" {
                    2 * u64::from(PROBES)
                } else {
                    0
                }
            );
            println!(
                "{who}: median {:?}, p99 {:?}; {cost:?} of a processor for {PROBES}",
                took[took.len() / 2],
                took[took.len() * 99 / 100]
            );
        }
    });
}
