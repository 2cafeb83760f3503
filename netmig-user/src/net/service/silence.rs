//! The source says nothing by a service address from the grant on, and answers nothing that still comes for it.
//!
//! Tables of nftables that carry the move's id, as in [`super::super::stray`], made while the container runs. From the grant on what leaves is dropped: answers to ARP, neighbour
//! advertisements, and whatever the host itself or what is behind it sends from the address. What comes for the container goes its way, to the
//! closed gate and from there to the target. When that is over, and before the address is taken off and its connections are forgotten, what
//! comes is dropped and counted: without them the host would answer it by a RST, or that it cannot be reached.
use std::net::IpAddr;

use netmig_core::id::MoveId;

use super::super::{
    Doing, Error, attr::Message, filter::tool, namespace, netlink::Netlink, stray::packets,
};

const WHAT: &str = "silencing a service address";

/// The sets of a table.
const V4: &str = "v4";
const V6: &str = "v6";

// include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NEW_ELEMENT: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
const NFPROTO_INET: i32 = 1;
const NFPROTO_ARP: i32 = 3;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;

/// Makes the tables, which drop nothing yet: what is to be dropped is said in a moment then ([`silence`]). Said again, it begins anew.
///
/// # Errors
/// nft is not there, or the kernel lacks a family.
pub fn prepare(tag: MoveId) -> Result<(), Error> {
    let name = name(tag);
    let set = |v4: bool| {
        let (name, kind) = if v4 {
            (V4, "ipv4_addr")
        } else {
            (V6, "ipv6_addr")
        };
        format!("set {name} {{ type {kind}; }}\n")
    };
    // Behind all that translates sources (NF_IP_PRI_NAT_SRC is 100).
    let ip = set(true)
        + &set(false)
        + &format!(
            "chain out {{ type filter hook postrouting priority 350;\nip saddr @{V4} counter drop\nip6 saddr @{V6} counter drop\n}}\n"
        );
    let arp = set(true)
        + &format!(
            "chain out {{ type filter hook output priority -350;\narp saddr ip @{V4} counter drop\n}}\n"
        );
    load(&(table("inet", &name, &ip) + &table("arp", &name, &arp)))
}

/// From here on nothing leaves this host from one of `addresses`. The tables are there ([`prepare`]); what was said before holds too.
///
/// # Errors
/// A table is not there any more.
pub fn silence(tag: MoveId, addresses: &[IpAddr]) -> Result<(), Error> {
    let name = name(tag);
    let mut requests = Vec::new();
    for address in addresses {
        let families: &[i32] = if address.is_ipv4() {
            &[NFPROTO_INET, NFPROTO_ARP]
        } else {
            &[NFPROTO_INET]
        };
        for family in families {
            let body = element(*family, &name, *address);
            requests.push((NEW_ELEMENT, libc::NLM_F_CREATE, body));
        }
    }
    Netlink::netfilter()
        .and_then(|mut nl| nl.batch(NFNL_SUBSYS_NFTABLES, &requests))
        .doing(|| WHAT.to_owned())
}

/// An address into the set of its family, by nf_tables' own messages: nft itself would take some milliseconds, inside the blackout.
fn element(family: i32, table: &str, address: IpAddr) -> Message {
    let set = if address.is_ipv4() { V4 } else { V6 };
    let key = Message::default().ip(NFTA_DATA_VALUE, address);
    let element = Message::default().nested(NFTA_SET_ELEM_KEY, &key);
    // The family fits: it is one of a byte.
    Message::new(&[family as u8, 0, 0, 0])
        .text(NFTA_SET_ELEM_LIST_TABLE, table)
        .text(NFTA_SET_ELEM_LIST_SET, set)
        .nested(
            NFTA_SET_ELEM_LIST_ELEMENTS,
            &Message::default().nested(NFTA_LIST_ELEM, &element),
        )
}

/// From here on nothing that comes to this host for one of `addresses` is answered: it is dropped and counted.
///
/// # Errors
/// As [`prepare`].
pub fn shut(tag: MoveId, addresses: &[IpAddr]) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    load(&late(tag, addresses))
}

/// Ends both: how many packets [`shut`] has dropped. What never began is no error.
///
/// # Errors
/// A table could not be read or deleted.
pub fn lift(tag: MoveId) -> Result<u64, Error> {
    let late = late_name(tag);
    let listed = tool::run(
        WHAT,
        "nft",
        &["--json", "list", "table", "inet", &late],
        None,
    );
    let dropped = match listed {
        Ok(said) => packets(&said.out)?,
        // Nothing could be made without it.
        Err(Error::Missing { .. }) => return Ok(0),
        Err(Error::Tool { said, .. }) if said.contains("No such file") => 0,
        Err(e) => return Err(e),
    };
    let name = name(tag);
    let tables = [("arp", &name), ("inet", &name), ("inet", &late)];
    // Made first, so that it is there.
    let gone = tables
        .map(|(family, table)| format!("table {family} {table}\ndelete table {family} {table}\n"));
    load(&gone.concat())?;
    Ok(dropped)
}

/// Why this host could not do it.
///
/// # Errors
/// If no scratch namespace can be made.
pub fn rehearse(tag: MoveId, addresses: &[IpAddr]) -> Result<Option<Error>, Error> {
    namespace::scratch(|| {
        let tried = prepare(tag)
            .and_then(|()| silence(tag, addresses))
            .and_then(|()| shut(tag, addresses));
        Ok(tried.err())
    })
}

fn load(rules: &str) -> Result<(), Error> {
    tool::run(WHAT, "nft", &["-f", "-"], Some(rules)).map(drop)
}

fn name(tag: MoveId) -> String {
    format!("netmig-{tag}")
}

fn late_name(tag: MoveId) -> String {
    format!("netmig-{tag}-late")
}

/// The table anew, with this in it.
fn table(family: &str, name: &str, chains: &str) -> String {
    format!(
        "table {family} {name}\ndelete table {family} {name}\ntable {family} {name} {{\n{chains}}}\n"
    )
}

/// `{ A, B }` of those of one family; none if there is none.
fn set(addresses: &[IpAddr], v4: bool) -> Option<String> {
    let of: Vec<_> = addresses
        .iter()
        .filter(|a| a.is_ipv4() == v4)
        .map(ToString::to_string)
        .collect();
    (!of.is_empty()).then(|| format!("{{ {} }}", of.join(", ")))
}

fn late(tag: MoveId, addresses: &[IpAddr]) -> String {
    let mut rules = String::new();
    for (v4, ip) in [(true, "ip"), (false, "ip6")] {
        let all = set(addresses, v4);
        rules.extend(all.map(|set| format!("{ip} daddr {set} counter drop\n")));
    }
    // Before connections are looked up (NF_IP_PRI_CONNTRACK is -200), behind the reassembly of fragments (-400).
    let chain = format!("chain late {{ type filter hook prerouting priority -350;\n{rules}}}\n");
    table("inet", &late_name(tag), &chain)
}
