//! The container's sockets: enumeration, dump and restore.
//!
//! [`rows`] lists every socket of a namespace and what would become of it. [`dump`] reads them while the tasks are stopped and the
//! gate is closed, through duplicates of their descriptors (pidfd_getfd) and TCP_REPAIR; nothing is left in repair.
//! [`restore`] rebuilds the connections in the descriptors that the engine has made at the target, behind the closed gate, and
//! [`Rebuilt::open`] starts them once the gate passes: no timer is waited for.
mod accept;
mod adrift;
mod at;
mod btf;
mod buffer;
mod calm;
mod common;
mod connecting;
mod cores;
mod diag;
mod error;
mod finder;
mod flows;
mod groups;
mod holders;
mod inject;
mod iter;
mod kept;
mod listen;
mod live;
mod make;
mod md5;
mod nexthop;
pub mod option;
mod over;
mod packet;
mod pair;
mod procnet;
mod rebuilt;
mod repair;
mod room;
mod rows;
mod starting;
mod strayed;
mod survey;
mod tcp;
mod udp;
mod warm;

use std::{collections::HashSet, os::fd::OwnedFd, path::Path, thread, time::Instant};

use netmig_core::{
    image::v1::sock::{Holder, Interface, Left, Sockets, Tcp},
    socket::{Class, Engine, Fate, Kind, Row, State},
};

use self::survey::Survey;
pub use self::{
    accept::supported as accept_queues_move,
    at::{HostConnection, connections_at},
    calm::{Calmed, allow_retries, calm, retries, rouse, timers},
    error::Error,
    flows::{Flow, flows},
    holders::Place,
    kept::Kept,
    live::{Live, Look, Need, Widened, live, received, resend, tell_windows, widen},
    make::{Made, make, portable},
    rebuilt::{Opened, Rebuilt, Spent},
    room::{Room, Rooms},
    starting::Coming,
    strayed::leave_repair,
};
use crate::sys::netns::within;

/// Every socket of the namespace, of every family that this kernel has, with its owners among `pids`, its queues, its options and its
/// fate under `engine`. Nothing is changed; the tasks may run.
///
/// # Errors
/// If the namespace, a process or sock_diag cannot be read.
pub fn rows_under(netns: &Path, pids: &[i32], engine: Engine) -> Result<Vec<Row>, Error> {
    within(netns, || rows::rows(pids, engine))
}

/// [`rows_under`] CRIU.
///
/// # Errors
/// As there.
pub fn rows(netns: &Path, pids: &[i32]) -> Result<Vec<Row>, Error> {
    rows_under(netns, pids, Engine::Criu)
}

/// Reads every connection, listener and UDP socket that `pids` hold in the namespace. The tasks are stopped and the gate is closed
/// (`lo` too). When it returns, also with an error, no socket is in repair.
///
/// # Errors
/// If a socket cannot be read, or if the two ends of an inner connection cannot be reconciled.
pub fn dump(netns: &Path, pids: &[i32]) -> Result<(Sockets, Kept), Error> {
    let mut kept = Kept::default();
    dump_under(netns, pids, Engine::Criu, &mut kept).map(|image| (image, kept))
}

/// [`dump`] under any engine. Under `Handoff` one process holds what was handed over; what is neither TCP nor UDP is no matter of the image. What it takes out
/// of queues is in `kept` also after an error: [`Kept::put_back`].
///
/// # Errors
/// As there; and if something was handed over that the image cannot hold.
pub fn dump_under(
    netns: &Path,
    pids: &[i32],
    engine: Engine,
    kept: &mut Kept,
) -> Result<Sockets, Error> {
    kept.lived_in(netns);
    within(netns, || dump_here(pids, engine, Survey::read, kept))
}

/// `survey`: reads what needs no system calls for every connection.
fn dump_here(
    pids: &[i32],
    engine: Engine,
    survey: fn() -> Survey,
    kept: &mut Kept,
) -> Result<Sockets, Error> {
    let (held, mut survey) = thread::scope(|scope| {
        let held = scope.spawn(|| holders::Held::by(pids));
        let survey = survey();
        match held.join() {
            Ok(held) => Ok::<_, Error>((held?, survey)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    // Nothing runs beside: what the list says of timers counts from here on.
    let listed = Instant::now();
    let found = diag::all()?;
    let mut image = Sockets {
        kernel: common::kernel()?,
        interfaces: common::interfaces()?,
        ..Sockets::default()
    };
    let mut fresh = option::Fresh::default();
    let mut groups = groups::Groups::default();
    image
        .tcp
        .reserve_exact(found.iter().filter(|f| f.kind == Kind::Tcp).count());
    let waiting = take_waiting(&found, &held, &mut image, kept, &mut fresh)?;
    kept.adrift(adrift::dump(
        found.iter().filter(|f| f.kind == Kind::Tcp && f.inode == 0),
        &mut image,
    )?);
    let waited_for = accept::under_way(&found)?;
    survey.settle(&found, &held, &mut fresh)?;
    // A part at a time, for the sake of the memory.
    let mut surveyed = Vec::new().into_iter();
    for (i, socket) in found.iter().enumerate() {
        if i % PART == 0 {
            let part = &found[i..found.len().min(i + PART)];
            surveyed = self::surveyed(part, &held, &survey, &image.interfaces).into_iter();
        }
        let surveyed = surveyed.next().transpose()?.flatten();
        if waiting.contains(&socket.ends()) {
            continue;
        }
        let Some(owned) = held.get(socket.inode) else {
            let row = rows::row(socket, &held, engine)?;
            if !matches!(row.class, Class::Kernel | Class::Foreign)
                && row.fate != Fate::Moves
                && rows::concerns(&row, engine)
            {
                image.left.push(left(&row));
            }
            continue;
        };
        let class = rows::classify(socket, &held);
        match class {
            Class::TcpEstablished | Class::TcpCloseWait | Class::TcpShut => {
                let (fd, tcp) = match surveyed {
                    Some(surveyed) => surveyed,
                    None => {
                        let fd = held.duplicate(owned)?;
                        let common = common::dump(&fd, socket, held.inside(owned), &mut fresh)?;
                        let tcp = tcp::dump(&fd, common, socket)?;
                        (fd, tcp)
                    }
                };
                kept.keep(fd, &tcp.common, socket);
                image.tcp.push(tcp);
            }
            Class::TcpSynSent if engine == Engine::Criu => {
                let fd = held.duplicate(owned)?;
                let common = common::dump(&fd, socket, held.inside(owned), &mut fresh)?;
                match connecting::dump(&fd, common, socket, listed)? {
                    Some(connecting) => {
                        kept.keep_connecting(fd, &connecting.common, socket);
                        image.connecting.push(connecting);
                    }
                    None => image.left.push(Left {
                        socket: socket.to_string(),
                        why: "its SYN carries data (TCP_FASTOPEN_CONNECT): its connect() fails"
                            .to_owned(),
                    }),
                }
            }
            Class::TcpOver => {
                let fd = held.duplicate(owned)?;
                let over = over::dump(&fd, socket.inode, &held, &mut fresh)?;
                image.over.push(over);
            }
            Class::TcpListen => {
                let fd = held.duplicate(owned)?;
                let common = common::dump(&fd, socket, held.inside(owned), &mut fresh)?;
                image.listeners.push(listen::dump(&fd, common, socket)?);
            }
            Class::Udp | Class::UdpQueued | Class::UdpLite => {
                let fd = held.duplicate(owned)?;
                let common = common::dump(&fd, socket, held.inside(owned), &mut fresh)?;
                image
                    .udp
                    .push(udp::dump(fd, common, socket, &mut groups, kept)?);
            }
            _ => {
                let row = rows::row(socket, &held, engine)?;
                if row.fate != Fate::Moves && rows::concerns(&row, engine) {
                    handed(&row, engine)?;
                    image.left.push(left(&row));
                }
            }
        }
    }
    let mut unlisted = rows::unlisted(&found, &held, engine)?;
    unlisted.retain(|row| rows::concerns(row, engine));
    for row in &unlisted {
        if row.class == Class::TcpOver {
            let fd = held.duplicate(&row.owners)?;
            image
                .over
                .push(over::dump(&fd, row.inode, &held, &mut fresh)?);
            continue;
        }
        handed(row, engine)?;
        image
            .left
            .extend((row.fate != Fate::Moves).then(|| left(row)));
    }
    unlisted.extend(rows::waited_for(&waited_for, engine));
    image.half_open.extend(waited_for);
    answerable(&mut image);
    image.pairs = pair::reconcile(&mut image.tcp, &mut |i, tcp| tcp::refresh(kept.fd(i), tcp))?;
    image.check()?;
    kept.saw(found, unlisted, held, engine);
    Ok(image)
}

/// Connections that are read at once.
const PART: usize = 512;

/// The connections that the survey knows, in the order of `found`, read on all processors.
fn surveyed(
    found: &[diag::Found],
    held: &holders::Held,
    survey: &Survey,
    interfaces: &[Interface],
) -> Vec<Result<Option<(OwnedFd, Tcp)>, Error>> {
    let one = |socket: &diag::Found| match rows::classify(socket, held) {
        Class::TcpEstablished | Class::TcpCloseWait | Class::TcpShut => {
            survey.dump(socket, held, interfaces)
        }
        _ => Ok(None),
    };
    cores::parts(found, |part| part.iter().map(one).collect::<Vec<_>>())
        .into_iter()
        .flatten()
        .collect()
}

/// Reads the connections that wait in accept queues; says which those are.
fn take_waiting(
    found: &[diag::Found],
    held: &holders::Held,
    image: &mut Sockets,
    kept: &mut Kept,
    fresh: &mut option::Fresh,
) -> Result<HashSet<diag::Ends>, Error> {
    let mut ends = HashSet::new();
    let listeners = found.iter().filter(|f| {
        f.rqueue > 0
            && f.state == State::Listen
            && held.get(f.inode).is_some()
            && rows::classify(f, held) == Class::TcpListen
    });
    for listener in listeners {
        if !accept::supported() {
            break;
        }
        let at = held.duplicate(held.get(listener.inode).unwrap_or_default())?;
        for fd in accept::take(&at, listener.rqueue, listener)? {
            // One that was reset before it was accepted has nobody to be told of it.
            let Some(socket) = accept::listed(&fd, found) else {
                continue;
            };
            let common = common::dump(&fd, socket, Vec::new(), fresh)?;
            let tcp = tcp::dump(&fd, common, socket)?;
            ends.insert(socket.ends());
            kept.accepted(fd, tcp.clone());
            image.waiting.push(tcp);
        }
        kept.listens(at);
    }
    Ok(ends)
}

/// Leaves handshakes out that nobody can answer at the target: their listener is not in the image, or signs what it sends.
fn answerable(image: &mut Sockets) {
    let (listeners, left) = (&image.listeners, &mut image.left);
    image.half_open.retain(|half| {
        let mut own = listeners.iter().filter(|l| l.local.port == half.local.port);
        let answered = own.clone().count() > 0 && own.all(|l| l.common.keys.is_empty());
        if !answered {
            left.push(Left {
                socket: half.to_string(),
                why: "its listener does not move, or has a TCP-MD5 key; the peer repeats its SYN"
                    .to_owned(),
            });
        }
        answered
    });
}

/// What was handed over and is not in the image would be missing at the target.
fn handed(row: &Row, engine: Engine) -> Result<(), Error> {
    match engine {
        Engine::Criu => Ok(()),
        Engine::Handoff => Err(Error::NotPortable {
            socket: row.to_string(),
            why: row.fate.to_string(),
        }),
    }
}

fn left(row: &Row) -> Left {
    Left {
        socket: format!("{} {} {} {}", row.kind, row.state, row.local, row.peer),
        why: row.fate.to_string(),
    }
}

/// Why every value of a connection is read by a system call on this host, some hundred for each; none: one pass reads them all. The first call
/// takes long: it belongs before a freeze, and [`rows`] makes it.
pub fn slow_dump() -> Option<String> {
    survey::unreadable()
}

/// Loads what a [`restore`] may need into the kernel: some 0.1 s that do not belong into a blackout.
///
/// # Errors
/// If the kernel refuses a program; a restore then tries again, and names what it loses.
pub fn prepare() -> Result<(), Error> {
    // As many as a process has in most places; a restore makes more room if it needs it.
    holders::make_room(ROOM)?;
    if let Err(e) = warm::loaded() {
        tracing::info!("congestion windows begin anew: {e}");
    }
    accept::prepare()
}

/// Descriptors of connections that a restore finds room for at once.
const ROOM: usize = 12_000;

/// Rebuilds the image's sockets in the descriptors that the engine has restored (closed and shut down) in the stopped tasks `pids`,
/// which are found by their pid inside the container. The gate is closed. Nothing leaves, nothing is left in repair.
///
/// # Errors
/// If the image is impossible, a descriptor is not there, or the kernel refuses a step; what was rebuilt till then is disconnected.
pub fn restore(netns: &Path, pids: &[i32], image: &Sockets) -> Result<Rebuilt, Error> {
    let inside = holders::by_inner_pid(pids)?;
    restore_at(netns, image, &|holder| {
        inside
            .get(&holder.pid)
            .map(|&pid| Place { pid, fd: holder.fd })
    })
}

/// [`restore`] where the caller says which descriptor stands for which holder.
///
/// # Errors
/// As there.
pub fn restore_at(
    netns: &Path,
    image: &Sockets,
    place: &(dyn Fn(&Holder) -> Option<Place> + Sync),
) -> Result<Rebuilt, Error> {
    image.check()?;
    within(netns, || Rebuilt::build(netns, image, place))
}

/// Takes up again what an earlier [`restore`] of the same image has rebuilt, for an agent that was restarted before the opening.
///
/// # Errors
/// If a descriptor is not there, or its connection is another one.
pub fn adopt(netns: &Path, pids: &[i32], image: &Sockets) -> Result<Rebuilt, Error> {
    let inside = holders::by_inner_pid(pids)?;
    adopt_at(netns, image, &|holder| {
        inside
            .get(&holder.pid)
            .map(|&pid| Place { pid, fd: holder.fd })
    })
}

/// [`adopt`] where the caller says which descriptor stands for which holder.
///
/// # Errors
/// As there.
pub fn adopt_at(
    netns: &Path,
    image: &Sockets,
    place: &(dyn Fn(&Holder) -> Option<Place> + Sync),
) -> Result<Rebuilt, Error> {
    image.check()?;
    within(netns, || Rebuilt::adopt(netns, image, place))
}
