//! Connections in an accept queue.
mod sock_lab;

use std::{
    io::Write,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use netmig_core::{
    image::v1::sock::{Holder, Sockets, TcpState},
    socket::{Class, Fate},
};
use netmig_user::sock::{self, Place, Rebuilt};
use nix::sys::socket::{Backlog, listen};
use sock_lab::{CONTAINER, Lab, Namespace, Tasks, expect, fill, owned, pattern};

const PORT: u16 = 7500;

fn listener(ns: &Namespace) -> TcpListener {
    ns.run(|| TcpListener::bind(("::", PORT)).expect("a listener"))
}

/// What has come to a connection before it was accepted.
struct Client {
    stream: TcpStream,
    sent: usize,
    fin: bool,
    /// Bytes that it sends when it has been accepted.
    more: usize,
}

/// As much as goes.
const FULL: usize = usize::MAX;

/// Silent ones, ones that have sent, and ones that have said that they send no more; over both protocols, in this order.
fn clients(lab: &Lab) -> Vec<Client> {
    let mut all = Vec::new();
    for (v6, sent, fin) in [
        (false, 0, false),
        (true, 0, false),
        (false, 5, false),
        (true, 40_000, false),
        (false, 0, true),
        (true, 3000, true),
        (false, FULL, false),
    ] {
        let to = SocketAddr::new(CONTAINER[usize::from(v6)], PORT);
        let mut stream = lab
            .peer
            .run(|| TcpStream::connect(to).expect("a connection"));
        let (sent, more) = if sent == FULL {
            (fill(&mut stream, 0), 0)
        } else {
            stream.write_all(&pattern(0, sent)).expect("written");
            (sent, if fin { 0 } else { 1000 })
        };
        if fin {
            stream.shutdown(Shutdown::Write).expect("shut down");
        }
        all.push(Client {
            stream,
            sent,
            fin,
            more,
        });
    }
    thread::sleep(Duration::from_millis(100));
    all
}

/// Accepts them all, and talks to each in both directions.
fn served(listener: &TcpListener, clients: &mut [Client]) {
    listener.set_nonblocking(true).expect("non-blocking");
    for client in clients {
        let (mut own, from) = listener.accept().expect("it waits in the queue");
        own.set_nonblocking(false).expect("blocking");
        let theirs = client.stream.local_addr().expect("an address");
        assert_eq!(
            (from.ip().to_canonical(), from.port()),
            (theirs.ip(), theirs.port()),
            "in their order"
        );
        if !client.fin {
            client
                .stream
                .write_all(&pattern(client.sent, client.more))
                .expect("written");
            client.stream.shutdown(Shutdown::Write).expect("shut down");
        }
        let whole = client.sent + client.more;
        expect(&mut own, 0, whole);
        let mut more = [0];
        assert_eq!(
            std::io::Read::read(&mut own, &mut more).expect("its end"),
            0
        );
        own.write_all(&pattern(7, 100_000)).expect("written");
        drop(own);
        expect(&mut client.stream, 7, 100_000);
        assert_eq!(
            std::io::Read::read(&mut client.stream, &mut more).expect("its end"),
            0
        );
    }
    assert!(
        listener
            .accept()
            .is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock),
        "no other one waits"
    );
}

fn dump(lab: &Lab, tasks: &Tasks) -> (Sockets, sock::Kept) {
    sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump")
}

fn restore(lab: &Lab, tasks: &Tasks, image: &Sockets) -> Rebuilt {
    let pid = tasks.pid();
    sock::restore_at(&lab.target.path(), image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect("rebuilt")
}

#[test]
fn what_waits_at_the_source_is_accepted_at_the_target() {
    assert!(sock::accept_queues_move(), "this kernel is 6.9 or newer");
    let lab = Lab::new();
    let tasks = Tasks::holding(vec![owned(listener(&lab.source))]);
    let mut clients = clients(&lab);
    let rows = sock::rows(&lab.source.path(), &[tasks.pid()]).expect("rows");
    let fates: Vec<&Fate> = rows
        .iter()
        .filter(|r| r.class == Class::TcpEmbryo)
        .map(|r| &r.fate)
        .collect();
    assert_eq!(fates, [&Fate::Moves; 7]);
    lab.close();
    let (image, kept) = dump(&lab, &tasks);
    assert_eq!(image.left, []);
    let read: Vec<_> = image.waiting.iter().map(|t| t.recv.len()).collect();
    assert_eq!(read[..6], [0, 0, 5, 40_000, 0, 3000]);
    // More than a new connection's window.
    assert!(read[6] > 1 << 16, "{read:?}");
    let ended = image
        .waiting
        .iter()
        .filter(|t| t.state == TcpState::CloseWait);
    assert_eq!(ended.count(), 2);
    assert!(kept.silence().is_empty());
    drop(tasks);

    let tasks = Tasks::holding(vec![owned(listener(&lab.target))]);
    let rebuilt = restore(&lab, &tasks, &image);
    assert!(rebuilt.lost().is_empty(), "{:?}", rebuilt.lost());
    lab.pass();
    rebuilt.open().expect("opened");
    served(&TcpListener::from(tasks.socket(0)), &mut clients);
}

#[test]
fn a_move_that_is_undone_puts_them_back() {
    let lab = Lab::new();
    let tasks = Tasks::holding(vec![owned(listener(&lab.source))]);
    let mut clients = clients(&lab);
    lab.close();
    let (_image, mut kept) = dump(&lab, &tasks);
    assert!(
        TcpListener::from(tasks.socket(0))
            .set_nonblocking(true)
            .is_ok()
    );
    assert!(
        TcpListener::from(tasks.socket(0)).accept().is_err(),
        "the dump has them"
    );
    assert!(kept.undo().is_empty());
    let lost = kept.put_back(&lab.source.path()).expect("put back");
    assert!(lost.is_empty(), "{lost:?}");
    lab.reopen();
    thread::sleep(Duration::from_millis(50));
    served(&TcpListener::from(tasks.socket(0)), &mut clients);
}

#[test]
fn a_queue_that_is_too_short_loses_what_it_cannot_take_and_says_so() {
    let lab = Lab::new();
    let tasks = Tasks::holding(vec![owned(listener(&lab.source))]);
    let clients = clients(&lab);
    lab.close();
    let (image, kept) = dump(&lab, &tasks);
    drop((kept, tasks));
    let short = listener(&lab.target);
    // The queue takes one more than it is long (sk_acceptq_is_full).
    listen(&short, Backlog::new(1).expect("a backlog")).expect("listening");
    let tasks = Tasks::holding(vec![owned(short)]);
    let rebuilt = restore(&lab, &tasks, &image);
    assert_eq!(rebuilt.lost().len(), 5, "{:?}", rebuilt.lost());
    assert!(
        rebuilt.lost()[0].contains("no room"),
        "{:?}",
        rebuilt.lost()
    );
    drop(clients);
}
