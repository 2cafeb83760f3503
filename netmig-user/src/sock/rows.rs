//! Every socket as a row: class, owners, fate.
use std::{
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
};

use netmig_core::{
    image::v1::sock::HalfOpen,
    socket::{ARRIVALS, Class, ECN, Engine, Fate, Kind, Owner, Row, State, rule_for},
};

use super::{
    accept, adrift, common,
    diag::{self, Found, Name},
    error::Error,
    holders::Held,
    option::{self, Fresh},
    over, survey, udp,
};
use crate::sys::sockopt;

/// All rows of the caller's namespace: what the kernel lists, and what the processes hold besides. Processes that run open, accept and close
/// between the one and the other: what would not survive counts only if a second look finds it as well.
pub(super) fn rows(pids: &[i32], engine: Engine) -> Result<Vec<Row>, Error> {
    let look = || look(&Held::by(pids)?, engine);
    let rows = look()?;
    if rows.iter().all(survives) {
        return Ok(rows);
    }
    let again = look()?;
    let known: HashMap<_, _> = again.iter().map(|row| (identity(row), row)).collect();
    let settled = rows.into_iter().filter_map(|row| {
        if survives(&row) {
            return Some(row);
        }
        let there = *known.get(&identity(&row))?;
        (there.class == row.class || survives(there)).then(|| there.clone())
    });
    Ok(settled.collect())
}

fn survives(row: &Row) -> bool {
    matches!(row.fate, Fate::Moves | Fate::MovesWithout(_))
}

/// What is the same of a socket whenever one looks.
fn identity(row: &Row) -> (Kind, u64, &str, &str) {
    (row.kind, row.inode, &row.local, &row.peer)
}

/// One look at them.
fn look(held: &Held, engine: Engine) -> Result<Vec<Row>, Error> {
    // What the kernel has to be asked once is asked now, and not in a blackout.
    if !adrift::readable() || !accept::supported() {
        tracing::debug!("this kernel does not let all sockets move that no process holds");
    }
    if let Some(why) = survey::unreadable() {
        tracing::debug!("every value of a connection is read by a system call: {why}");
    }
    let found = diag::all()?;
    let mut fresh = Fresh::default();
    let mut rows = Vec::with_capacity(found.len());
    for socket in &found {
        let mut row = row(socket, held, engine)?;
        let inet = matches!(socket.kind, Kind::Tcp | Kind::Udp | Kind::UdpLite);
        if inet
            && let Some(owners) = held.get(socket.inode)
            && let Some(fd) = held.duplicate_while_running(socket.inode, owners)
        {
            row.options = options(&fd, socket, &mut fresh)?;
        }
        rows.push(row);
    }
    rows.extend(unlisted(&found, held, engine)?);
    rows.extend(waited_for(&accept::under_way(&found)?, engine));
    Ok(rows)
}

/// Rows of handshakes that the kernel does not know of: this process waits for their ACKs.
pub(super) fn waited_for(half_open: &[HalfOpen], engine: Engine) -> Vec<Row> {
    let row = |half: &HalfOpen| Row {
        kind: Kind::Tcp,
        state: State::SynRecv,
        local: half.local.to_string(),
        peer: half.peer.to_string(),
        inode: 0,
        owners: Vec::new(),
        rqueue: 0,
        wqueue: 0,
        options: Vec::new(),
        class: Class::TcpSynRecv,
        fate: rule_for(Class::TcpSynRecv, engine).verdict.into(),
    };
    half_open.iter().map(row).collect()
}

/// Rows of sockets that the processes hold and no list has: neither bound nor connected, of a family without sock_diag, or made in
/// another namespace.
pub(super) fn unlisted(found: &[Found], held: &Held, engine: Engine) -> Result<Vec<Row>, Error> {
    let listed: HashSet<u64> = found.iter().map(|f| f.inode).collect();
    let mut rows = Vec::new();
    for (inode, owners) in held.iter().filter(|(inode, _)| !listed.contains(inode)) {
        if let Some(fd) = held.duplicate_while_running(inode, owners) {
            rows.push(by_descriptor(&fd, inode, owners, engine)?);
        }
    }
    Ok(rows)
}

/// Whether the image has to say something of it.
pub(super) fn concerns(row: &Row, engine: Engine) -> bool {
    engine == Engine::Criu || matches!(row.kind, Kind::Tcp | Kind::Udp | Kind::Mptcp)
}

/// One row, without options.
pub(super) fn row(socket: &Found, held: &Held, engine: Engine) -> Result<Row, Error> {
    let class = classify(socket, held);
    let fate = match rule_for(class, engine).verdict.into() {
        Fate::MovesWithout(what) => without(what, socket),
        fate => fate,
    };
    Ok(Row {
        kind: socket.kind,
        state: socket.state,
        local: socket.local.to_string(),
        peer: socket.peer.to_string(),
        inode: socket.inode,
        owners: held.get(socket.inode).unwrap_or_default().to_vec(),
        rqueue: socket.rqueue,
        wqueue: socket.wqueue,
        options: Vec::new(),
        class,
        fate,
    })
}

/// What a class moves without is no loss to a socket that does not have it.
fn without(mut what: Vec<String>, socket: &Found) -> Fate {
    what.retain(|what| match what.as_str() {
        ECN => socket.ecn,
        ARRIVALS => socket.rqueue > 0,
        _ => true,
    });
    if what.is_empty() {
        Fate::Moves
    } else {
        Fate::MovesWithout(what)
    }
}

/// What the rules look at.
pub(super) fn classify(socket: &Found, held: &Held) -> Class {
    let owned = held.get(socket.inode).is_some();
    match socket.kind {
        Kind::Tcp => tcp(socket, owned),
        _ if socket.kernel => Class::Kernel,
        _ if !owned => Class::Foreign,
        Kind::Mptcp => Class::Mptcp,
        Kind::Udp if socket.wqueue > 0 && corked(socket, held) => Class::UdpCorked,
        Kind::Udp if socket.rqueue > 0 => Class::UdpQueued,
        Kind::Udp => Class::Udp,
        Kind::UdpLite => Class::UdpLite,
        Kind::Ping => Class::Ping,
        Kind::Raw => Class::Raw,
        Kind::Sctp => Class::Sctp,
        Kind::Unix => match socket.unix_peer {
            // A peer that is not accepted yet has no inode.
            Some(peer) if peer != 0 && held.get(peer).is_none() => Class::UnixOutside,
            _ => Class::Unix,
        },
        Kind::Packet => Class::Packet,
        Kind::Netlink => Class::Netlink,
        Kind::Vsock => Class::Vsock,
        Kind::Xdp => Class::Xdp,
        Kind::Smc => Class::Smc,
        Kind::Family(_) => Class::Other,
    }
}

/// The list shows what is on its way out, too.
fn corked(socket: &Found, held: &Held) -> bool {
    let owners = held.get(socket.inode).unwrap_or_default();
    held.duplicate_while_running(socket.inode, owners)
        .is_some_and(|fd| udp::corked(&fd).unwrap_or(true))
}

fn tcp(socket: &Found, owned: bool) -> Class {
    match socket.state {
        State::TimeWait => adrift::classify(socket),
        _ if socket.ulp == "mptcp" => Class::MptcpPath,
        // close() leaves no socket in these two states: one without an inode has not been accepted yet.
        State::Established | State::CloseWait if socket.inode == 0 => {
            if accept::supported() {
                Class::TcpEmbryo
            } else {
                Class::TcpEmbryoStuck
            }
        }
        _ if socket.inode == 0 => adrift::classify(socket),
        // TCP_FASTOPEN: it was accepted before its handshake has ended.
        State::SynRecv => Class::TcpSynRecvStuck,
        _ if !owned => Class::TcpElsewhere,
        _ if !socket.ulp.is_empty() => Class::TcpUlp,
        State::Established => Class::TcpEstablished,
        State::CloseWait => Class::TcpCloseWait,
        State::FinWait1 | State::FinWait2 | State::Closing | State::LastAck => Class::TcpShut,
        State::SynSent => Class::TcpSynSent,
        State::Listen => Class::TcpListen,
        // It keeps the port that it was bound to, and so is listed (6.8); connect(2) forgets a peer that it gives up.
        State::Close if socket.peer != Name::None => Class::TcpOver,
        State::Close => Class::TcpClosed,
    }
}

/// The row of a socket of which only a descriptor is known.
fn by_descriptor(fd: &OwnedFd, inode: u64, owners: &[Owner], engine: Engine) -> Result<Row, Error> {
    let int = |name| {
        sockopt::int(fd, libc::SOL_SOCKET, name).map_err(|source| Error::Proc {
            what: format!("socket {inode}"),
            source,
        })
    };
    let (domain, protocol) = (int(libc::SO_DOMAIN)?, int(libc::SO_PROTOCOL)?);
    const MPTCP: i32 = 262;
    let kind = match (domain, protocol) {
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => Kind::Tcp,
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => Kind::Udp,
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDPLITE) => Kind::UdpLite,
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_SCTP) => Kind::Sctp,
        (libc::AF_INET | libc::AF_INET6, MPTCP) => Kind::Mptcp,
        (libc::AF_INET, libc::IPPROTO_ICMP) | (libc::AF_INET6, libc::IPPROTO_ICMPV6)
            if int(libc::SO_TYPE)? == libc::SOCK_DGRAM =>
        {
            Kind::Ping
        }
        (libc::AF_INET | libc::AF_INET6, _) => Kind::Raw,
        (libc::AF_UNIX, _) => Kind::Unix,
        (libc::AF_PACKET, _) => Kind::Packet,
        (libc::AF_NETLINK, _) => Kind::Netlink,
        (libc::AF_VSOCK, _) => Kind::Vsock,
        (libc::AF_XDP, _) => Kind::Xdp,
        (43, _) => Kind::Smc,
        (other, _) => Kind::Family(u16::try_from(other).unwrap_or(0)),
    };
    let class = match kind {
        _ if !here(fd)? => Class::OtherNetns,
        Kind::Tcp if over::is(fd)? => Class::TcpOver,
        Kind::Tcp => Class::TcpClosed,
        Kind::Mptcp => Class::Mptcp,
        Kind::Udp => Class::Udp,
        Kind::UdpLite => Class::UdpLite,
        Kind::Ping => Class::Ping,
        Kind::Raw => Class::Raw,
        Kind::Sctp => Class::Sctp,
        Kind::Unix => Class::Unix,
        Kind::Packet => Class::Packet,
        Kind::Netlink => Class::Netlink,
        Kind::Vsock => Class::Vsock,
        Kind::Xdp => Class::Xdp,
        Kind::Smc => Class::Smc,
        Kind::Family(_) => Class::Other,
    };
    Ok(Row {
        kind,
        state: State::Close,
        local: String::new(),
        peer: String::new(),
        inode,
        owners: owners.to_vec(),
        rqueue: 0,
        wqueue: 0,
        options: Vec::new(),
        class,
        fate: rule_for(class, engine).verdict.into(),
    })
}

/// Whether a socket was made in the caller's network namespace.
fn here(fd: &OwnedFd) -> Result<bool, Error> {
    use nix::sys::stat::{fstat, stat};
    // Refused in a namespace of another user namespace: another one in any case.
    let Ok(theirs) = sockopt::netns_of(fd) else {
        return Ok(false);
    };
    let theirs = fstat(theirs).map_err(std::io::Error::from)?;
    let ours = stat("/proc/thread-self/ns/net").map_err(std::io::Error::from)?;
    Ok(theirs.st_ino == ours.st_ino)
}

fn options(
    fd: &OwnedFd,
    socket: &Found,
    fresh: &mut Fresh,
) -> Result<Vec<(String, String)>, Error> {
    // SO_PRIORITY is always read; it is worth a mention only if it was set.
    let unset = |(name, value): &(String, String)| name == "SO_PRIORITY" && value == "0";
    let settings = fresh.differing(fd, common::sort(socket), socket.v6)?;
    let mut options: Vec<_> = settings
        .iter()
        .map(option::describe)
        .filter(|o| !unset(o))
        .collect();
    for (name, number) in [
        ("SO_REUSEADDR", libc::SO_REUSEADDR),
        ("SO_REUSEPORT", libc::SO_REUSEPORT),
    ] {
        let value = sockopt::int(fd, libc::SOL_SOCKET, number)?;
        if value != 0 {
            options.push((name.to_owned(), value.to_string()));
        }
    }
    Ok(options)
}
