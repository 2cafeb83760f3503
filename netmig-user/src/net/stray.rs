//! Frames of a container that lives elsewhere by now, at the host that it has left.
//!
//! Somebody may start what is left of it there before its record is secured. That fails, but podman makes its network first, and the kernel greets the
//! segment with the container's MAC: switches and neighbours would send to the wrong host. Until the record names no network any more, such frames are
//! dropped and counted, by tables of nftables that carry the move's id. Frames of the container that only pass through this host's bridge are left alone:
//! they come in by a port that was there before.
use netmig_core::{id::MoveId, image::v1::net::Mac};
use serde_json::Value;

use super::{Error, Link, LinkKind, filter::tool, link, open};

const WHAT: &str = "dropping frames of the container that has left";

/// From here on no frame of the container leaves by this host's bridge or parent device, unless it came in there. Said again, it begins anew.
///
/// # Errors
/// nft is not there, or the kernel lacks a family.
pub fn bar(tag: MoveId, links: &[Link]) -> Result<(), Error> {
    let rules = rules(tag, links)?;
    if rules.is_empty() {
        return Ok(());
    }
    tool::run(WHAT, "nft", &["-f", "-"], Some(&rules)).map(drop)
}

/// Ends what [`bar`] began: how many frames it dropped.
///
/// # Errors
/// A table could not be read or deleted.
pub fn lift(tag: MoveId, links: &[Link]) -> Result<u64, Error> {
    let table = table(tag);
    let mut dropped = 0;
    for family in families(links) {
        let listed = tool::run(
            WHAT,
            "nft",
            &["--json", "list", "table", family, &table],
            None,
        );
        let said = match listed {
            Ok(said) => said,
            // It could not be made.
            Err(Error::Missing { .. }) => continue,
            Err(Error::Tool { said, .. }) if said.contains("No such file") => continue,
            Err(e) => return Err(e),
        };
        dropped += packets(&said.out)?;
        tool::run(WHAT, "nft", &["delete", "table", family, &table], None)?;
    }
    Ok(dropped)
}

fn table(tag: MoveId) -> String {
    format!("netmig-{tag}")
}

/// A link's place on this host, if frames with its MAC can be told from others there.
enum Place<'a> {
    /// On a bridge, by this end.
    Bridge { host_end: &'a str },
    /// On this device.
    Parent(&'a str),
}

fn place(link: &Link) -> Option<(Place<'_>, Mac)> {
    let place = match &link.kind {
        LinkKind::Veth {
            parent: Some(_),
            host_name: host_end,
            ..
        } => Place::Bridge { host_end },
        LinkKind::Macvlan {
            parent: Some(parent),
        } => Place::Parent(parent),
        _ => return None,
    };
    Some((place, link.mac?))
}

fn families(links: &[Link]) -> Vec<&'static str> {
    let mut families: Vec<_> = links
        .iter()
        .filter_map(place)
        .map(|(place, _)| match place {
            Place::Bridge { .. } => "bridge",
            Place::Parent(_) => "netdev",
        })
        .collect();
    families.sort_unstable();
    families.dedup();
    families
}

fn rules(tag: MoveId, links: &[Link]) -> Result<String, Error> {
    let table = table(tag);
    let mut rules = String::new();
    for family in families(links) {
        rules.push_str(&format!(
            "table {family} {table}\ndelete table {family} {table}\ntable {family} {table} {{\n"
        ));
        let of_family = links
            .iter()
            .filter_map(place)
            .filter(|(place, _)| matches!(place, Place::Bridge { .. }) == (family == "bridge"));
        for (number, (place, mac)) in of_family.enumerate() {
            let (hook, matches) = match place {
                Place::Bridge { host_end } => {
                    ("prerouting priority -300".to_owned(), others(host_end)?)
                }
                Place::Parent(parent) => (
                    format!("egress device \"{parent}\" priority 0"),
                    String::new(),
                ),
            };
            rules.push_str(&format!(
                "chain stray{number} {{ type filter hook {hook}; {matches} ether saddr {mac} counter drop; }}\n"
            ));
        }
        rules.push_str("}\n");
    }
    Ok(rules)
}

/// Frames by none of the devices that this host has now, `host_end` aside: a device made later may have its name. To name the bridge would need a module
/// (NFT_BRIDGE_META) that not every kernel has.
fn others(host_end: &str) -> Result<String, Error> {
    let host = link::dump(&mut open()?)?;
    let names: Vec<_> = host
        .iter()
        .filter(|seen| seen.name != host_end)
        .map(|seen| format!("\"{}\"", seen.name))
        .collect();
    Ok(format!("iifname != {{ {} }}", names.join(", ")))
}

/// What the counters of a table in nft's JSON have counted together.
pub(super) fn packets(listed: &str) -> Result<u64, Error> {
    let document: Value = serde_json::from_str(listed).map_err(|e| Error::Tool {
        what: WHAT.to_owned(),
        said: format!("nft: {e}"),
    })?;
    let all = document["nftables"].as_array().into_iter().flatten();
    Ok(all
        .flat_map(|object| object["rule"]["expr"].as_array().into_iter().flatten())
        .filter_map(|expression| expression["counter"]["packets"].as_u64())
        .sum())
}
