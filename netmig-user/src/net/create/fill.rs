//! What needs the links up: addresses, routes and the rest of the namespace, behind the closed gate.
use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use netmig_core::image::v1::net::{self, LinkKind, Network, Sysctl};

use super::super::{
    Doing, Error, addr, bridging, filter, link, neigh, netlink::Netlink, open, qdisc, route, rule,
    sysctl, times::Times,
};

/// How long a link may take to get its carrier from the other end.
const CARRIER: Duration = Duration::from_millis(500);

/// How long a physical one may take, which has to agree on a speed with its other end first.
const NEGOTIATION: Duration = Duration::from_secs(5);

/// Inside, with the gate in place: links up, and everything that needs them up. Gives warnings.
pub(super) fn fill(
    network: &Network,
    quieted: &[Sysctl],
    times: &mut Times,
) -> Result<Vec<String>, Error> {
    let mut nl = open()?;
    let seen = link::dump(&mut nl)?;
    let (names, indices) = (link::names(&seen), link::indices(&seen));
    for wanted in network.links.iter().filter(|l| l.is_up()) {
        let index = indices.get(&wanted.name).copied().unwrap_or_default();
        link::up(&mut nl, index).doing(|| format!("bringing up link {}", wanted.name))?;
    }
    // A VLAN comes up with the link that it lies on (vlan_device_event()).
    for wanted in network.links.iter().filter(|l| !l.is_up()) {
        let index = indices.get(&wanted.name).copied().unwrap_or_default();
        link::down(&mut nl, index).doing(|| format!("taking down link {}", wanted.name))?;
    }
    times.part("carrier", || await_carrier(&mut nl, network))?;
    times.part("addresses", || {
        addr::converge(&mut nl, &names, &indices, &network.addresses)
    })?;
    times.part("routes", || {
        route::converge(
            &mut nl,
            &names,
            &indices,
            &network.nexthops,
            &network.routes,
        )
    })?;
    times.part("rules", || rule::converge(&mut nl, &network.rules))?;
    times.part("neighbours", || {
        neigh::converge(&mut nl, &names, &indices, &network.neighbours)?;
        neigh::hint(&mut nl, &indices, &network.learnt)
    })?;
    times.part("forwarding", || {
        bridging::add(&mut nl, &seen, &names, &indices, &network.forwarding)
    })?;
    for wanted in &network.links {
        if let (Some(mode), Some(index)) = (wanted.addr_gen_mode, indices.get(&wanted.name)) {
            link::set_addr_gen_mode(&mut nl, *index, mode)
                .doing(|| format!("setting how link {} gets IPv6 addresses", wanted.name))?;
        }
    }
    times.part("addresses", || await_addresses(&mut nl))?;
    let unshaped = times.part("shaping", || {
        qdisc::converge(&mut nl, &names, &indices, &network.shaping)
    });
    let mut warnings: Vec<_> = unshaped.iter().map(qdisc::without).collect();
    warnings.extend(times.part("filters", || filter::converge(&network.filters))?);
    for Sysctl { path, value, .. } in quieted {
        sysctl::write(path, value)?;
    }
    Ok(warnings)
}

/// A work queue reads `accept_dad` some time after an address was added (`addrconf_dad_work`): with the old value back before that, it
/// would look for a duplicate for a second and let nobody bind meanwhile.
fn await_addresses(nl: &mut Netlink) -> Result<(), Error> {
    let until = Instant::now() + CARRIER;
    let links: BTreeSet<_> = link::dump(nl)?
        .iter()
        .filter(|l| l.carrier)
        .map(|l| l.index)
        .collect();
    while addr::any_tentative(nl, &links)? && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// IPv6 begins on a link when its carrier is there, which a work queue tells: addresses given before would be configured twice.
fn await_carrier(nl: &mut Netlink, network: &Network) -> Result<(), Error> {
    let physical = network.links.iter().any(|l| l.kind == LinkKind::Physical);
    let until = Instant::now() + if physical { NEGOTIATION } else { CARRIER };
    let running = libc::IFF_RUNNING as u32;
    loop {
        let seen = link::dump(nl)?;
        let waits = |l: &&net::Link| {
            // Those have one as long as links inside have one, or none at all. One that is there and was not told yet is waited for: told later, when
            // addresses are generated again, a bridge whose MAC has changed would get another one.
            let inside = matches!(l.kind, LinkKind::Pair { .. } | LinkKind::Virtual { .. });
            let untold = |s: &link::Seen| s.flags & running == 0 && (!inside || s.carrier);
            l.is_up() && seen.iter().any(|s| s.name == l.name && untold(s))
        };
        if !network.links.iter().any(|l| waits(&l)) || Instant::now() >= until {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
}
