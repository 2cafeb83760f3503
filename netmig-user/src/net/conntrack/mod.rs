//! Tracked connections (ctnetlink): reading them, making them, forgetting them.
//!
//! Translated addresses are no attribute of an entry but the difference between its two directions. Made anew, it is given its original
//! direction and the translation, and the kernel derives the reply from it (ctnetlink_setup_nat()), as conntrackd does.
use std::{collections::BTreeSet, net::IpAddr};

use netmig_core::image::v1::conntrack::Connection;

use super::{
    Doing, Error,
    attr::Message,
    netlink::{self, Netlink},
    sysctl,
};

mod entry;
mod expected;

pub use expected::expected;

const COUNT: &str = "netfilter/nf_conntrack_count";
const CT_NEW: u16 = 1 << 8;
const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;

/// All connections that the calling thread's namespace tracks, sorted. A kernel without conntrack tracks none.
///
/// # Errors
/// If the table cannot be read.
pub fn dump() -> Result<Vec<Connection>, Error> {
    // The kernel walks the whole host's table for one namespace (ctnetlink_dump_table()), some 10 ms for one of 262144 buckets.
    if sysctl::read(COUNT)?.as_deref() == Some("0") {
        return Ok(Vec::new());
    }
    // struct nfgenmsg: every family.
    let asked = Netlink::netfilter().and_then(|mut nl| nl.dump(CT_GET, &Message::new(&[0; 4])));
    let replies = match asked {
        Err(e) if is_absent(&e) => return Ok(Vec::new()),
        other => other.doing(|| "reading the tracked connections".to_owned())?,
    };
    let mut all: Vec<_> = replies
        .iter()
        .filter_map(|reply| entry::parse(reply).transpose())
        .collect::<Result<_, _>>()
        .doing(|| "reading a tracked connection".to_owned())?;
    all.sort();
    Ok(all)
}

/// Those of the calling thread's namespace with one of `addresses` on either side that neither begin nor end at this host itself.
///
/// # Errors
/// As [`dump`].
pub fn passing(addresses: &[IpAddr], own: &[IpAddr]) -> Result<Vec<Connection>, Error> {
    let mut all = dump()?;
    all.retain(|c| {
        let ends = ends(c);
        addresses.iter().any(|a| ends.contains(a)) && !own.iter().any(|a| ends.contains(a))
    });
    Ok(all)
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

fn ends(connection: &Connection) -> BTreeSet<IpAddr> {
    let Connection {
        original, reply, ..
    } = connection;
    BTreeSet::from([
        original.source,
        original.destination,
        reply.source,
        reply.destination,
    ])
}
