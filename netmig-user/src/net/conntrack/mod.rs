//! Tracked connections (ctnetlink): reading them, making them, forgetting them.
//!
//! Translated addresses are no attribute of an entry but the difference between its two directions. Made anew, it is given its original
//! direction and the translation, and the kernel derives the reply from it (ctnetlink_setup_nat()), as conntrackd does.
use std::net::{IpAddr, SocketAddr};

use netmig_core::image::v1::conntrack::{Connection, Tuple};

use super::{
    Doing, Error,
    attr::Message,
    netlink::{self, Netlink},
    sysctl,
};

mod entry;
mod expected;
mod listed;

pub use expected::{expect, expectations, passing_expected};

const COUNT: &str = "netfilter/nf_conntrack_count";
const CT_NEW: u16 = 1 << 8;
const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;

/// All connections that the calling thread's namespace tracks, sorted. A kernel without conntrack tracks none.
///
/// # Errors
/// If the table cannot be read.
pub fn dump() -> Result<Vec<Connection>, Error> {
    let few = match count()? {
        Some(0) => return Ok(Vec::new()),
        Some(count) => listed::few(count)?,
        None => None,
    };
    let mut all = match few {
        Some(few) => few,
        None => whole()?,
    };
    all.sort();
    Ok(all)
}

fn whole() -> Result<Vec<Connection>, Error> {
    // struct nfgenmsg: every family.
    let asked = Netlink::netfilter().and_then(|mut nl| nl.dump(CT_GET, &Message::new(&[0; 4])));
    let replies = match asked {
        Err(e) if is_absent(&e) => return Ok(Vec::new()),
        other => other.doing(|| "reading the tracked connections".to_owned())?,
    };
    replies
        .iter()
        .filter_map(|reply| entry::parse(reply).transpose())
        .collect::<Result<_, _>>()
        .doing(|| "reading a tracked connection".to_owned())
}

/// How many connections the calling thread's namespace tracks, if the kernel has conntrack.
fn count() -> Result<Option<usize>, Error> {
    Ok(sysctl::read(COUNT)?.and_then(|count| count.parse().ok()))
}

/// Those of the calling thread's namespace with one of `addresses` on either side that neither begin nor end at this host itself, whose
/// addresses are `own`. Of these, `services` go along with the container: connections by which its peers know it so are among them.
///
/// # Errors
/// As [`dump`].
pub fn passing(
    addresses: &[IpAddr],
    own: &[IpAddr],
    services: &[IpAddr],
) -> Result<Vec<Connection>, Error> {
    let mut all = dump()?;
    all.retain(|c| passes(c, addresses, own, services));
    Ok(all)
}

/// Whether one of `ends` is one of `addresses`, and none one of `own`.
fn reaches(ends: &[IpAddr], addresses: &[IpAddr], own: &[IpAddr]) -> bool {
    addresses.iter().any(|a| ends.contains(a)) && !own.iter().any(|a| ends.contains(a))
}

/// Whether [`passing`] names it.
pub fn passes(
    connection: &Connection,
    addresses: &[IpAddr],
    own: &[IpAddr],
    services: &[IpAddr],
) -> bool {
    let ends = ends(connection);
    if !addresses.iter().any(|a| ends.contains(a)) {
        return false;
    }
    let by_service = |seen: Seen| services.contains(&seen.outer) && !own.contains(&seen.far);
    !own.iter().any(|a| ends.contains(a)) || seen(connection, addresses).is_some_and(by_service)
}

/// A connection of a container as both sides of its host see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The container's end as its socket has it; none without ports.
    pub local: Option<SocketAddr>,
    /// The peer's end as the container's socket has it.
    pub peer: Option<SocketAddr>,
    /// The container's address as its peer knows it.
    pub outer: IpAddr,
    /// The peer's own address.
    pub far: IpAddr,
}

/// None if no end is one of the container's `addresses`.
pub fn seen(connection: &Connection, addresses: &[IpAddr]) -> Option<Seen> {
    let Connection {
        original, reply, ..
    } = connection;
    let ends = |tuple: &Tuple| {
        let (source, destination) = entry::port(tuple);
        let end = |address, port: Option<u16>| port.map(|port| SocketAddr::new(address, port));
        (
            end(tuple.source, source),
            end(tuple.destination, destination),
        )
    };
    // What the container sends has its own ends: answers of one that was called, questions of one that has called.
    let (inner, outer, far) = if addresses.contains(&reply.source) {
        (reply, original.destination, original.source)
    } else if addresses.contains(&original.source) {
        (original, reply.destination, reply.source)
    } else {
        return None;
    };
    let (local, peer) = ends(inner);
    Some(Seen {
        local,
        peer,
        outer,
        far,
    })
}

/// What becomes of an entry that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// It stays as it is: a host that has seen the traffic knows it better.
    Keep,
    /// Another takes its place. In a namespace that was made for the container nobody else knows anything of its connections, and who has
    /// made an entry out of what ctnetlink shows of it has made one that translates nothing (IPS_SRC_NAT and IPS_DST_NAT are not in it).
    Replace,
}

/// Makes the calling thread's namespace track `connections`. What could not be made, in words.
///
/// # Errors
/// If the kernel cannot be asked at all.
pub fn insert(connections: &[Connection], present: Present) -> Result<Vec<String>, Error> {
    let mut failed = Vec::new();
    if connections.is_empty() {
        return Ok(failed);
    }
    let mut nl = Netlink::netfilter().doing(|| "opening a socket for conntrack".to_owned())?;
    for connection in connections {
        match make(&mut nl, connection) {
            Err(e) if e.errno() == Some(libc::EEXIST) && present == Present::Keep => {}
            Err(e) if e.errno() == Some(libc::EEXIST) => {
                if let Err(e) = delete(&mut nl, connection).and_then(|()| make(&mut nl, connection))
                {
                    failed.push(format!(
                        "tracked connection {connection} in place of another: {e}"
                    ));
                }
            }
            Err(e) => failed.push(format!("tracked connection {connection}: {e}")),
            Ok(()) => {}
        }
    }
    Ok(failed)
}

fn make(nl: &mut Netlink, connection: &Connection) -> Result<(), netlink::Error> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    nl.request(CT_NEW, flags, entry::new(connection))
}

/// One that is not there is no error.
fn delete(nl: &mut Netlink, connection: &Connection) -> Result<(), netlink::Error> {
    match nl.request(CT_DELETE, 0, entry::named(connection)) {
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Makes the calling thread's namespace lenient about the windows of those TCP connections of `connections` that are not so by themselves, or strict
/// again. One whose other half goes another way meanwhile has windows that this namespace does not see, and what is outside of a window is not translated.
/// What is not there is no error; what could not be changed, in words.
///
/// # Errors
/// If the kernel cannot be asked at all.
pub fn set_lenient(connections: &[Connection], lenient: bool) -> Result<Vec<String>, Error> {
    let mut failed = Vec::new();
    let mut nl = Netlink::netfilter().doing(|| "opening a socket for conntrack".to_owned())?;
    let strict = |c: &&Connection| c.tcp.is_some() && !entry::is_lenient(c);
    for connection in connections.iter().filter(strict) {
        match nl.request(CT_NEW, 0, entry::leniency(connection, lenient)) {
            Err(e) if e.errno() == Some(libc::ENOENT) => {}
            Err(e) => failed.push(format!("windows of tracked connection {connection}: {e}")),
            Ok(()) => {}
        }
    }
    Ok(failed)
}

/// Makes the calling thread's namespace forget `connections`. What is not there is no error; what could not be removed, in words.
///
/// # Errors
/// If the kernel cannot be asked at all.
pub fn forget(connections: &[Connection]) -> Result<Vec<String>, Error> {
    let mut left = Vec::new();
    if connections.is_empty() {
        return Ok(left);
    }
    let mut nl = Netlink::netfilter().doing(|| "opening a socket for conntrack".to_owned())?;
    for connection in connections {
        if let Err(e) = delete(&mut nl, connection) {
            left.push(format!("tracked connection {connection}: {e}"));
        }
    }
    Ok(left)
}

fn is_absent(e: &netlink::Error) -> bool {
    matches!(
        e.errno(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT)
    )
}

fn ends(connection: &Connection) -> [IpAddr; 4] {
    let Connection {
        original, reply, ..
    } = connection;
    [
        original.source,
        original.destination,
        reply.source,
        reply.destination,
    ]
}
