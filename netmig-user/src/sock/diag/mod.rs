//! Every socket of the caller's network namespace, by NETLINK_SOCK_DIAG; /proc/net where the kernel has no diag module for a kind.
mod inet;

use std::{fmt, io};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use netmig_core::{
    image::v1::sock::{Endpoint, Key},
    socket::{Kind, State},
};

pub(super) use self::inet::{destroy, tcp, tcp_infos, udp_memory};
use self::inet::{inet, inet_request};
use super::{error::Error, procnet};

/// A socket as the kernel lists it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub kind: Kind,
    pub state: State,
    /// AF_INET6 (for inet kinds).
    pub v6: bool,
    pub local: Name,
    pub peer: Name,
    pub inode: u64,
    pub rqueue: u32,
    pub wqueue: u32,
    /// Upper-layer protocol of a TCP socket (`tls`, `mptcp`).
    pub ulp: String,
    /// sk_shutdown: bit 0 reading, bit 1 writing.
    pub shutdown: u8,
    /// TCP_MD5SIG.
    pub keys: Vec<Key>,
    /// Inode of the other end of a unix socket.
    pub unix_peer: Option<u64>,
    /// The kernel's own.
    pub kernel: bool,
    /// Of TCP: ECN was negotiated.
    pub ecn: bool,
    /// Of TCP: until its timer expires, ms.
    pub expires_ms: u32,
}

/// One end of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// It has none.
    None,
    /// Address and port.
    Inet(Endpoint),
    /// Anything else.
    Text(String),
}

impl Name {
    /// Address and port, if it has them.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        match self {
            Self::Inet(e) => Some(*e),
            _ => None,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Inet(e) => write!(f, "{e}"),
            Self::Text(t) => f.write_str(t),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.local)?;
        if self.peer != Name::None {
            write!(f, " -> {}", self.peer)
        } else {
            Ok(())
        }
    }
}

/// Kind and both ends: names a connection.
pub(super) type Ends = (Kind, Option<Endpoint>, Option<Endpoint>);

impl Found {
    pub(super) fn ends(&self) -> Ends {
        (self.kind, self.local.endpoint(), self.peer.endpoint())
    }

    /// Its two ends as they are on the wire.
    pub(super) fn on_the_wire(&self) -> Option<(Endpoint, Endpoint)> {
        let (local, peer) = (self.local.endpoint()?, self.peer.endpoint()?);
        Some((local.canonical(), peer.canonical()))
    }

    pub(super) fn new(kind: Kind, state: State, inode: u64) -> Self {
        Self {
            kind,
            state,
            v6: false,
            local: Name::None,
            peer: Name::None,
            inode,
            rqueue: 0,
            wqueue: 0,
            ulp: String::new(),
            shutdown: 0,
            keys: Vec::new(),
            unix_peer: None,
            kernel: false,
            ecn: false,
            expires_ms: 0,
        }
    }
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SHUTDOWN: u8 = 8;
const IPPROTO_MPTCP: u32 = 262;
const AF_SMC: u8 = 43;
const AF_XDP: u8 = 44;

/// Lists them all.
pub(super) fn all() -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for (kind, protocol, what) in [
        (Kind::Tcp, libc::IPPROTO_TCP as u32, "TCP sockets"),
        (Kind::Udp, libc::IPPROTO_UDP as u32, "UDP sockets"),
        (
            Kind::UdpLite,
            libc::IPPROTO_UDPLITE as u32,
            "UDP-Lite sockets",
        ),
        (Kind::Sctp, libc::IPPROTO_SCTP as u32, "SCTP sockets"),
        (Kind::Raw, libc::IPPROTO_RAW as u32, "raw sockets"),
        (Kind::Mptcp, IPPROTO_MPTCP, "MPTCP sockets"),
    ] {
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let listed = dump(&inet_request(family, protocol), what, &mut |body| {
                found.push(inet(kind, body)?);
                Some(())
            })?;
            if !listed && kind == Kind::Raw {
                found.extend(procnet::inet(Kind::Raw, family == libc::AF_INET6 as u8)?);
            }
        }
    }
    for v6 in [false, true] {
        found.extend(procnet::inet(Kind::Ping, v6)?);
    }
    dump(&unix_request(), "unix sockets", &mut |body| {
        found.push(unix(body)?);
        Some(())
    })?;
    if !dump(&packet_request(), "packet sockets", &mut |body| {
        found.push(packet(body)?);
        Some(())
    })? {
        found.extend(procnet::packet()?);
    }
    if !dump(&netlink_request(), "netlink sockets", &mut |body| {
        found.push(netlink(body)?);
        Some(())
    })? {
        found.extend(procnet::netlink()?);
    }
    dump(&vsock_request(), "vsock sockets", &mut |body| {
        found.push(vsock(body)?);
        Some(())
    })?;
    for (family, kind, what) in [
        (AF_XDP, Kind::Xdp, "XDP sockets"),
        (AF_SMC, Kind::Smc, "SMC sockets"),
    ] {
        // Both answers begin as the packet one does; only kind and inode matter, for they are refused in any case.
        dump(
            &[
                family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            what,
            &mut |body| {
                let inode = if family == AF_XDP {
                    u32_at(body, 4)?
                } else {
                    u32_at(body, 4 + 48 + 4)?
                };
                found.push(Found::new(kind, State::Established, u64::from(inode)));
                Some(())
            },
        )?;
    }
    Ok(found)
}

/// Sends one dump request and hands the body of each answer to `each`. False: the kernel has no module for it.
fn dump(
    request: &[u8],
    what: &'static str,
    each: &mut dyn FnMut(&[u8]) -> Option<()>,
) -> Result<bool, Error> {
    ask(&open(what)?, request, what, each)
}

/// A socket for questions about the caller's network namespace, from wherever it is used afterwards.
pub(super) fn open(what: &'static str) -> Result<Socket, Error> {
    Socket::new(NETLINK_SOCK_DIAG).map_err(|source| Error::Diag { what, source })
}

fn ask(
    socket: &Socket,
    request: &[u8],
    what: &'static str,
    each: &mut dyn FnMut(&[u8]) -> Option<()>,
) -> Result<bool, Error> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    say(socket, SOCK_DIAG_BY_FAMILY, flags, request, what, each)
}

fn say(
    socket: &Socket,
    kind: u16,
    flags: u16,
    request: &[u8],
    what: &'static str,
    each: &mut dyn FnMut(&[u8]) -> Option<()>,
) -> Result<bool, Error> {
    let failed = |source| Error::Diag { what, source };
    let malformed = || Error::Malformed {
        what: format!("sock_diag's answer about {what}"),
    };
    let mut message = Vec::with_capacity(16 + request.len());
    message.extend_from_slice(
        &u32::try_from(16 + request.len())
            .map_err(|_| malformed())?
            .to_ne_bytes(),
    );
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(request);
    socket
        .send_to(&message, &SocketAddr::new(0, 0), 0)
        .map_err(failed)?;
    loop {
        let (answer, _) = socket.recv_from_full().map_err(failed)?;
        let mut rest = answer.as_slice();
        while rest.len() >= 16 {
            let len = u32_at(rest, 0).ok_or_else(malformed)? as usize;
            let kind = u16_at(rest, 4).ok_or_else(malformed)?;
            let body = rest.get(16..len).ok_or_else(malformed)?;
            match i32::from(kind) {
                libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                    let errno = body
                        .get(..4)
                        .map_or(0, |b| -i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                    return match errno {
                        0 => Ok(true),
                        // No handler for the family or the protocol (sock_diag.c, inet_diag.c).
                        libc::ENOENT
                        | libc::EINVAL
                        | libc::EOPNOTSUPP
                        | libc::EPROTONOSUPPORT
                        | libc::EAFNOSUPPORT => Ok(false),
                        errno => Err(failed(io::Error::from_raw_os_error(errno))),
                    };
                }
                libc::NLMSG_NOOP => {}
                _ => each(body).ok_or_else(malformed)?,
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn unix_request() -> Vec<u8> {
    const SHOW: u32 = 1 | 4 | 16; // NAME, PEER, RQLEN
    let mut r = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for word in [u32::MAX, 0, SHOW, u32::MAX, u32::MAX] {
        r.extend_from_slice(&word.to_ne_bytes());
    }
    r
}

/// struct unix_diag_msg and its attributes.
fn unix(body: &[u8]) -> Option<Found> {
    let mut found = Found::new(
        Kind::Unix,
        State::from_kernel(*body.get(2)?),
        u64::from(u32_at(body, 4)?),
    );
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            0 => {
                let name = match value {
                    [0, name @ ..] => format!("@{}", String::from_utf8_lossy(name)),
                    path => text(path),
                };
                found.local = Name::Text(name);
            }
            2 => {
                let peer = u64::from(u32_at(value, 0)?);
                found.unix_peer = Some(peer);
                found.peer = Name::Text(format!("inode {peer}"));
            }
            4 => {
                found.rqueue = u32_at(value, 0)?;
                found.wqueue = u32_at(value, 4)?;
            }
            _ => {}
        }
    }
    Some(found)
}

fn packet_request() -> Vec<u8> {
    let mut r = vec![libc::AF_PACKET as u8, 0, 0, 0];
    for word in [0, 1_u32, u32::MAX, u32::MAX] {
        r.extend_from_slice(&word.to_ne_bytes());
    }
    r
}

/// struct packet_diag_msg and its attributes.
fn packet(body: &[u8]) -> Option<Found> {
    let mut found = Found::new(Kind::Packet, State::Close, u64::from(u32_at(body, 4)?));
    let protocol = u16_at(body, 2)?;
    let index = attributes(body.get(16..)?)
        .find(|(k, _)| *k == 0)
        .and_then(|(_, v)| u32_at(v, 0))
        .unwrap_or(0);
    found.local = Name::Text(format!("protocol {protocol:#06x} interface {index}"));
    Some(found)
}

fn netlink_request() -> Vec<u8> {
    const ALL: u8 = 255;
    let mut r = vec![libc::AF_NETLINK as u8, ALL, 0, 0];
    for word in [0, 0, u32::MAX, u32::MAX] {
        r.extend_from_slice(&u32::to_ne_bytes(word));
    }
    r
}

/// struct netlink_diag_msg.
fn netlink(body: &[u8]) -> Option<Found> {
    let (protocol, port) = (*body.get(2)?, u32_at(body, 4)?);
    let mut found = Found::new(
        Kind::Netlink,
        State::from_kernel(*body.get(3)?),
        u64::from(u32_at(body, 16)?),
    );
    found.local = Name::Text(format!("protocol {protocol} port {port}"));
    found.kernel = port == 0;
    Some(found)
}

fn vsock_request() -> Vec<u8> {
    let mut r = vec![libc::AF_VSOCK as u8, 0, 0, 0];
    for word in [u32::MAX, 0, 0, u32::MAX, u32::MAX] {
        r.extend_from_slice(&word.to_ne_bytes());
    }
    r
}

/// struct vsock_diag_msg.
fn vsock(body: &[u8]) -> Option<Found> {
    let mut found = Found::new(
        Kind::Vsock,
        State::from_kernel(*body.get(2)?),
        u64::from(u32_at(body, 20)?),
    );
    found.local = Name::Text(format!("{}:{}", u32_at(body, 4)?, u32_at(body, 8)?));
    found.peer = Name::Text(format!("{}:{}", u32_at(body, 12)?, u32_at(body, 16)?));
    Some(found)
}

/// Walks netlink attributes; stops at the first one that does not fit.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?))
}
