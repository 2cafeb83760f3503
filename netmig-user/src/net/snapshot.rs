//! The whole network of a namespace as it is now.
use std::path::Path;

use netmig_core::image::v1::{
    conntrack::{Connection, Expectation},
    net::{LinkKind, Network},
};

use super::{
    Error, addr, bridging,
    filter::{self, Filters},
    link, neigh, nexthop, open, qdisc, route, rule, sysctl,
    times::Times,
    traffic,
};
use crate::sys::netns::within;

/// Reads the network of the namespace at `netns`.
///
/// # Errors
/// If the namespace cannot be entered or one of its tables not be read.
pub fn snapshot(netns: &Path) -> Result<Network, Error> {
    snapshot_timed(netns, &mut Times::default())
}

/// As [`snapshot()`]; says how long each part took.
pub(super) fn snapshot_timed(netns: &Path, times: &mut Times) -> Result<Network, Error> {
    within(netns, || here(times))
}

/// As [`snapshot_timed`], and what the namespace tracks.
pub(super) fn tracked(
    netns: &Path,
    times: &mut Times,
) -> Result<(Network, Vec<Connection>, Vec<Expectation>), Error> {
    let network = within(netns, || unfiltered(times))?;
    let (filters, connections, expected) = traffic::of(netns, times)?;
    Ok((Network { filters, ..network }, connections, expected))
}

/// Reads the network of the calling thread's namespace.
pub(super) fn here(times: &mut Times) -> Result<Network, Error> {
    let network = unfiltered(times)?;
    let filters = times.part("filters", filter::dump)?;
    Ok(Network { filters, ..network })
}

/// All but the packet filters.
fn unfiltered(times: &mut Times) -> Result<Network, Error> {
    let mut nl = open()?;
    let seen: Vec<_> = times
        .part("links", || link::dump(&mut nl))?
        .into_iter()
        .filter(|l| !l.is_fallback())
        .collect();
    let names = link::names(&seen);
    let (addresses, mut not_carried) = times.part("addresses", || addr::dump(&mut nl, &names))?;
    let (nexthops, lost) = times.part("routes", || nexthop::dump(&mut nl, &names))?;
    not_carried.extend(lost);
    let (routes, lost) = times.part("routes", || route::dump(&mut nl, &names, &nexthops))?;
    not_carried.extend(lost);
    let (rules, lost) = times.part("rules", || rule::dump(&mut nl))?;
    not_carried.extend(lost);
    let neighbours = times.part("neighbours", || neigh::dump(&mut nl, &names))?;
    let learnt = times.part("neighbours", || neigh::learnt(&mut nl, &names))?;
    let mut links: Vec<_> = seen.iter().map(|l| l.image(&names)).collect();
    times.part("links", || {
        bridging::vlans(&mut nl, &names, &mut links)?;
        link::wireguard::read(&mut links, &seen)
    })?;
    let forwarding = times.part("forwarding", || bridging::dump(&mut nl, &seen, &names))?;
    for strange in links
        .iter()
        .filter(|l| matches!(l.kind, LinkKind::Other(_)))
    {
        not_carried.push(format!(
            "link {} is a {} device",
            strange.name, strange.kind
        ));
    }
    let (shaping, lost) = times.part("shaping", || qdisc::dump(&mut nl, &names))?;
    not_carried.extend(lost);
    let mut sysctls = times.part("sysctls", sysctl::carried)?;
    sysctl::cap(&mut sysctls, &links);
    Ok(Network {
        links,
        addresses,
        nexthops,
        routes,
        rules,
        neighbours,
        forwarding,
        learnt,
        sysctls,
        shaping,
        filters: Filters::default(),
        not_carried,
    })
}
