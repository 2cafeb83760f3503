//! Whether there are filters at all, asked of the kernel itself: a namespace without any needs no tool, and asking costs microseconds.
use std::{fs, io};

use super::super::{
    Doing, Error,
    attr::Message,
    netlink::{self, Netlink, Reply},
};

const NFNL_SUBSYS_IPSET: u16 = 6;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETTABLE: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_OWNER: u32 = 2;
const IPSET_CMD_LIST: u16 = 7;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_FLAGS: u16 = 6;
const IPSET_FLAG_LIST_SETNAME: u32 = 2;
const NLA_F_NET_BYTEORDER: u16 = 0x4000;
/// Older than this no kernel is that netmig works on.
const IPSET_PROTOCOL: u8 = 6;

/// A table of nf_tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Family, as nft names it.
    pub family: &'static str,
    /// Name.
    pub name: String,
    /// It goes with the socket of the program that has made it.
    pub owned: bool,
}

/// All tables of nf_tables in the calling thread's namespace.
pub fn tables() -> Result<Vec<Seen>, Error> {
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE;
    let replies = dump(kind, |header| header).doing(|| "reading the tables of nf_tables".into())?;
    replies
        .iter()
        .filter_map(|reply| table(reply).transpose())
        .collect::<Result<_, _>>()
        .doing(|| "reading a table of nf_tables".into())
}

/// Names of all ipsets in the calling thread's namespace.
pub fn ipsets() -> Result<Vec<String>, Error> {
    let kind = NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_LIST;
    let names_only = |header: Message| {
        header.u8(IPSET_ATTR_PROTOCOL, IPSET_PROTOCOL).be32(
            IPSET_ATTR_FLAGS | NLA_F_NET_BYTEORDER,
            IPSET_FLAG_LIST_SETNAME,
        )
    };
    let replies = dump(kind, names_only).doing(|| "reading the ipsets".into())?;
    let name = |reply: &Reply| -> Result<Option<String>, netlink::Error> {
        let (_, attrs) = reply.split::<4>()?;
        for attr in attrs {
            let attr = attr?;
            if attr.kind == IPSET_ATTR_SETNAME {
                return Ok(Some(attr.text()));
            }
        }
        Ok(None)
    };
    replies
        .iter()
        .filter_map(|reply| name(reply).transpose())
        .collect::<Result<_, _>>()
        .doing(|| "reading an ipset".into())
}

/// Names of the tables that the kernel's own x_tables has in the calling thread's namespace: `ip` or `ip6`. A table is there from the
/// first look of an `iptables-legacy` on.
pub fn legacy(family: &str) -> Result<Vec<String>, Error> {
    let path = format!("/proc/thread-self/net/{family}_tables_names");
    match fs::read_to_string(&path) {
        Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).doing(|| format!("reading {path}")),
    }
}

/// Nothing, where the kernel has no such subsystem (nfnetlink_rcv_msg() answers EINVAL then).
fn dump(kind: u16, more: impl FnOnce(Message) -> Message) -> Result<Vec<Reply>, netlink::Error> {
    let absent = |e: &netlink::Error| {
        matches!(
            e.errno(),
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT)
        )
    };
    let asked = Netlink::netfilter().and_then(|mut nl| {
        // struct nfgenmsg: every family.
        nl.dump(kind, &more(Message::new(&[0; 4])))
    });
    match asked {
        Err(e) if absent(&e) => Ok(Vec::new()),
        other => other,
    }
}

fn table(reply: &Reply) -> Result<Option<Seen>, netlink::Error> {
    let (header, attrs) = reply.split::<4>()?;
    // NFPROTO_*
    let family = match header[0] {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => return Ok(None),
    };
    let (mut name, mut flags) = (String::new(), 0);
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            NFTA_TABLE_NAME => name = attr.text(),
            NFTA_TABLE_FLAGS => flags = attr.be32()?,
            _ => {}
        }
    }
    Ok(Some(Seen {
        family,
        name,
        owned: flags & NFT_TABLE_F_OWNER != 0,
    }))
}
