//! Connections that have gone from an address which both hosts have.
//!
//! Who leads packets to the hosts may need a while to lead those of a moved connection to the target. Until then they come to a host that knows
//! the connection no more and would answer with a RST, so they are dropped for a while, as on a line: their senders send them again.
use std::{net::IpAddr, time::Duration};

use netmig_core::image::v1::conntrack::{Connection, Key, Tuple};
use serde_json::Value;

use super::{
    super::{
        Error,
        filter::{self, tool},
    },
    fate::incoming,
};

const WHAT: &str = "dropping packets of connections that have moved";
/// Begin of the tables' names. What follows is an address of the container: there is one table, however often it goes.
const NAME: &str = "netmig-gone-";

/// For so long what comes is dropped.
pub const WHILE: Duration = Duration::from_secs(60);

/// From here on, for [`WHILE`], what comes by `connections` of the container with the addresses `inside` is dropped.
///
/// # Errors
/// nft is not there, or the kernel lacks the family.
pub fn begin(connections: &[Connection], inside: &[IpAddr]) -> Result<(), Error> {
    let Some(name) = name(inside).filter(|_| !connections.is_empty()) else {
        return Ok(());
    };
    let mut sets = String::new();
    let mut rules = String::new();
    for (v4, ip, kind) in [(true, "ip", "ipv4_addr"), (false, "ip6", "ipv6_addr")] {
        let tuples = connections.iter().map(|c| incoming(c, inside));
        let mut elements: Vec<_> = tuples
            .filter(|t| t.source.is_ipv4() == v4)
            .filter_map(element)
            .collect();
        if elements.is_empty() {
            continue;
        }
        elements.sort();
        elements.dedup();
        sets.push_str(&format!(
            "set moved_{ip} {{ type {kind} . inet_proto . inet_service . {kind} . inet_service; flags timeout; timeout {}s; elements = {{ {} }} }}\n",
            WHILE.as_secs(),
            elements.join(", ")
        ));
        rules.push_str(&format!(
            "{ip} saddr . meta l4proto . th sport . {ip} daddr . th dport @moved_{ip} counter drop\n"
        ));
    }
    // Before connections are looked up (NF_IP_PRI_CONNTRACK is -200), behind the reassembly of fragments (-400).
    load(&format!(
        "table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n{sets}chain in {{ type filter hook prerouting priority -350;\n{rules}}}\n}}\n"
    ))
}

/// The container comes back: what comes for it is welcome. What never began is no error.
///
/// # Errors
/// The table could not be deleted.
pub fn end(inside: &[IpAddr]) -> Result<(), Error> {
    match name(inside).filter(|name| names().is_ok_and(|all| all.contains(name))) {
        Some(name) => delete(&name),
        None => Ok(()),
    }
}

/// Removes the tables whose time is over; how many are left.
///
/// # Errors
/// A table could not be read or deleted.
pub fn sweep() -> Result<usize, Error> {
    let mut left = 0;
    for name in names()? {
        let said = tool::run(
            WHAT,
            "nft",
            &["--json", "list", "table", "inet", &name],
            None,
        )?;
        if elements(&said.out) == 0 {
            delete(&name)?;
        } else {
            left += 1;
        }
    }
    Ok(left)
}

fn names() -> Result<Vec<String>, Error> {
    let tables = filter::tables()?.into_iter();
    let ours = tables.filter(|t| t.family == "inet" && t.name.starts_with(NAME));
    Ok(ours.map(|t| t.name).collect())
}

fn name(inside: &[IpAddr]) -> Option<String> {
    // nft takes no colon in a name.
    let first = inside.iter().min()?.to_string().replace(':', "_");
    Some(format!("{NAME}{first}"))
}

fn delete(name: &str) -> Result<(), Error> {
    load(&format!("delete table inet {name}\n"))
}

fn load(rules: &str) -> Result<(), Error> {
    tool::run(WHAT, "nft", &["-f", "-"], Some(rules)).map(drop)
}

/// How many elements the sets of a table in nft's JSON have.
fn elements(listed: &str) -> usize {
    let document: Value = serde_json::from_str(listed).unwrap_or_default();
    let all = document["nftables"].as_array().into_iter().flatten();
    let of = |object: &Value| object["set"]["elem"].as_array().map_or(0, Vec::len);
    all.map(of).sum()
}

fn element(tuple: &Tuple) -> Option<String> {
    let Key::Ports {
        source,
        destination,
    } = tuple.key
    else {
        return None;
    };
    Some(format!(
        "{} . {} . {source} . {} . {destination}",
        tuple.source, tuple.protocol, tuple.destination
    ))
}
