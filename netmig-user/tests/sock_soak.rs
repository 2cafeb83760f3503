//! Connections that are in use all the time, moved back and forth.
mod sock_lab;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use netmig_core::{image::v1::sock::Holder, socket::Kind};
use netmig_user::sock::{self, Place};
use sock_lab::{Lab, Namespace, Tasks, closed, connected, owned, pattern};

/// Tells everyone to stop, also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How far one end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Count {
    written: usize,
    read: usize,
}

/// One end at work until it is told to stop: reads and checks what comes, writes `step` bytes at a time; `step` 0 only reads.
fn work(stream: &mut TcpStream, count: &mut Count, step: usize, stop: &AtomicBool) {
    stream.set_nonblocking(true).expect("non-blocking");
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Acquire) {
        let mut idle = true;
        match stream.read(&mut buffer) {
            Ok(0) => panic!("the connection ended after {count:?}"),
            Ok(n) => {
                assert!(
                    buffer[..n] == pattern(count.read, n),
                    "wrong bytes after {}",
                    count.read
                );
                count.read += n;
                idle = false;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => panic!("reading after {count:?}: {e}"),
        }
        if step > 0 {
            match stream.write(&pattern(count.written, step)) {
                Ok(n) => {
                    count.written += n;
                    idle &= n == 0;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => panic!("writing after {count:?}: {e}"),
            }
        }
        if idle || step < 1000 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Bytes that the container, and its peer, writes at a time on the i-th connection: bulk either way, both ways, small steps, nothing.
fn steps(i: usize) -> (usize, usize) {
    [(8192, 0), (0, 8192), (8192, 8192), (100, 100), (0, 0)][i % 5]
}

#[test]
fn streams_stay_exact_over_moves() {
    const CONNECTIONS: usize = 10;
    const MOVES: usize = 8;
    let lab = Lab::new();
    let (own, peers): (Vec<OwnedFd>, Vec<TcpStream>) = (0..CONNECTIONS)
        .map(|i| connected(&lab, i % 2 == 1, i % 3 == 0))
        .map(|(own, peer)| (owned(own), peer))
        .unzip();
    let hosts: [(&Namespace, &str); 2] = [(&lab.source, "vs"), (&lab.target, "vt")];
    let mut own_counts = vec![Count::default(); CONNECTIONS];
    let mut tasks = Tasks::holding(own);
    let (quiet, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut peer_counts = vec![Count::default(); CONNECTIONS];
    thread::scope(|s| {
        let (quieten, finish) = (Stop(&quiet), Stop(&done));
        let workers: Vec<_> = peers
            .into_iter()
            .enumerate()
            .map(|(i, mut peer)| {
                let (quiet, done) = (&quiet, &done);
                s.spawn(move || {
                    let mut count = Count::default();
                    work(&mut peer, &mut count, steps(i).1, quiet);
                    // No more is written; what is under way is read.
                    work(&mut peer, &mut count, 0, done);
                    (count, peer)
                })
            })
            .collect();
        let stint = |tasks: &Tasks, counts: &mut [Count], time: Duration, write: bool| {
            let stop = AtomicBool::new(false);
            thread::scope(|s| {
                for (i, count) in counts.iter_mut().enumerate() {
                    let (mut stream, stop) = (tasks.stream(i), &stop);
                    s.spawn(move || {
                        work(&mut stream, count, if write { steps(i).0 } else { 0 }, stop)
                    });
                }
                let stopping = Stop(&stop);
                thread::sleep(time);
                drop(stopping);
            });
        };
        for turn in 0..MOVES {
            stint(
                &tasks,
                &mut own_counts,
                Duration::from_millis(150 + 37 * turn as u64),
                true,
            );
            let ((here, port), (there, other)) = (hosts[turn % 2], hosts[(turn + 1) % 2]);
            lab.world.ip(&format!("link set {port} nomaster\n"));
            let begun = Instant::now();
            let (image, kept) = sock::dump(&here.path(), &[tasks.pid()]).expect("a dump");
            let flight: u32 = image.tcp.iter().map(|t| t.in_flight()).sum();
            let queued: usize = image.tcp.iter().map(|t| t.recv.len() + t.send.len()).sum();
            let sockets = there.run(|| {
                let mut all: Vec<_> = image
                    .tcp
                    .iter()
                    .map(|t| (t.common.holders[0].fd, t.common.v6))
                    .collect();
                all.sort_unstable();
                all.into_iter().map(|(_, v6)| closed(v6)).collect()
            });
            let restored = Tasks::holding(sockets);
            let pid = restored.pid();
            let rebuilt = sock::restore_at(&there.path(), &image, &|h: &Holder| {
                Some(Place { pid, fd: h.fd })
            })
            .expect("rebuilt");
            // The source's container goes, and leaves nothing in the namespace to which it will come back.
            assert!(kept.silence().is_empty());
            tasks = restored;
            let left = sock::rows(&here.path(), &[]).expect("rows");
            assert!(left.iter().all(|r| r.kind != Kind::Tcp), "{left:?}");
            lab.world.ip(&format!("link set {other} master br0\n"));
            rebuilt.open().expect("opened");
            println!(
                "move {turn}: {queued} bytes in queues, {flight} in flight, {:?}",
                begun.elapsed()
            );
        }
        stint(&tasks, &mut own_counts, Duration::from_millis(300), true);
        drop(quieten);
        stint(&tasks, &mut own_counts, Duration::from_millis(2500), false);
        drop(finish);
        // Their sockets stay open until the container has read all.
        let ended: Vec<_> = workers
            .into_iter()
            .map(|w| w.join().expect("the peer's stream is exact"))
            .collect();
        stint(&tasks, &mut own_counts, Duration::from_millis(500), false);
        peer_counts = ended.into_iter().map(|(count, _)| count).collect();
    });
    let mirrored: Vec<Count> = peer_counts
        .iter()
        .map(|c| Count {
            written: c.read,
            read: c.written,
        })
        .collect();
    assert_eq!(own_counts, mirrored);
    let total: usize = own_counts.iter().map(|c| c.written + c.read).sum();
    println!("{total} bytes on {CONNECTIONS} connections over {MOVES} moves are exact");
    assert!(total > 1_000_000);
}
