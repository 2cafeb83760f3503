//! The source's look: by which addresses of this host the container's peers know it, and what speaks against taking them off.
use std::{collections::BTreeMap, net::IpAddr};

use netmig_core::{
    id::MoveId,
    image::v1::{
        conntrack::Connection,
        net::{Address, IFF_UP, Network, Route},
    },
    service::{Asked, Behind, Service},
};

use super::{
    super::{
        Error, Topology, addr,
        conntrack::{self, passes},
        filter,
        link::{self, Seen},
        nexthop, open, route,
    },
    fate, rules, silence,
};

/// RTPROT_KERNEL: made with an address, and gone with it.
const KERNEL: u8 = 2;
/// RT_SCOPE_UNIVERSE: an address that others may use.
const UNIVERSE: u8 = 0;

/// What the source finds.
#[derive(Clone, Debug, Default)]
pub struct Here {
    /// For the target; none if no link of the container is behind this host.
    pub behind: Option<Behind>,
    /// What stands against it, with what to do.
    pub refusals: Vec<String>,
    /// What will be different.
    pub warnings: Vec<String>,
    /// What stands against taking an address off this host: of no matter where the target has it by itself.
    pub against: Vec<Against>,
    /// All connections that this host tracks.
    pub tracked: Vec<Connection>,
    /// All addresses of this host.
    pub own: Vec<IpAddr>,
}

/// A reason not to take an address off this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Against {
    /// The address.
    pub address: IpAddr,
    /// The reason, with what to do.
    pub reason: String,
    /// Connections end, and the operator may let them.
    pub resets: bool,
}

/// This host, read once.
struct Host {
    links: Vec<Seen>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

/// Looks at this host for a container whose links and network these are. `asked` are the service addresses that the operator names.
///
/// # Errors
/// If the host's addresses, routes, tracked connections or packet filters cannot be read.
pub fn look(asked: &[Asked], topology: &Topology, network: &Network) -> Result<Here, Error> {
    let mut found = Here::default();
    if topology.behind.is_empty() {
        if !asked.is_empty() {
            found.refusals.push(
                "no link of the container is on a bridge behind this host, so peers know it by its own addresses: leave out --service-address".to_owned(),
            );
        }
        return Ok(found);
    }
    let mut nl = open()?;
    let links = link::dump(&mut nl)?;
    let names = link::names(&links);
    let (addresses, _) = addr::dump(&mut nl, &names)?;
    let (objects, _) = nexthop::dump(&mut nl, &names)?;
    let (routes, _) = route::dump(&mut nl, &names, &objects)?;
    let host = Host {
        links,
        addresses,
        routes,
    };
    found.own = host.addresses.iter().map(|a| a.local.address).collect();
    found.tracked = conntrack::dump()?;
    let inside = inside(network);
    if asked.is_empty() {
        let outer = fate::outer(&found.tracked, &inside, &found.own);
        found.refusals.extend(topology.behind.iter().map(|subnet| {
            let gateways: Vec<_> = subnet.gateways.iter().map(|g| g.address.to_string()).collect();
            format!(
                "link {} is on bridge {}, which leads nowhere but to this host, the container's gateway ({}): its peers know it by this host's addresses, \
                 which stay here{}; --service-address ADDRESS takes one along, to a target with the same bridge and gateway; or attach the container to a bridge \
                 or macvlan on a segment that both hosts are on",
                subnet.link,
                subnet.parent,
                gateways.join(", "),
                known_by(&outer),
            )
        }));
    }
    let mut behind = Behind {
        services: Vec::new(),
        subnets: topology.behind.clone(),
        rules: Vec::new(),
    };
    for asked in asked {
        match service(asked, &behind, &host) {
            Ok(service) if behind.addresses().contains(&asked.address) => {
                found.refusals.push(format!(
                    "--service-address names {} twice",
                    service.address.local.address
                ));
            }
            Ok(service) => behind.services.push(service),
            Err(refusal) => found.refusals.push(refusal),
        }
    }
    let filters = filter::dump()?;
    for lost in &filters.lost {
        found.warnings.push(format!(
            "which rules of this host translate for the container is not wholly known: {lost}"
        ));
    }
    behind.rules = rules::translating(&filters, &inside);
    for service in &behind.services {
        against(service, &behind, &host, &inside, &mut found);
    }
    let services = behind.addresses();
    if !services.is_empty()
        && let Some(e) = silence::rehearse(MoveId([0; 16]), &services)?
    {
        let against = services.iter().map(|address| Against {
            address: *address,
            reason: format!("this host could not be kept from answering for {address} once the target has it: {e}"),
            resets: false,
        });
        found.against.extend(against);
    }
    if !asked.is_empty() {
        let lost = datagrams(&found, &inside, &services);
        found.warnings.extend(lost);
    }
    found.behind = Some(behind);
    Ok(found)
}

/// The container's own addresses, as the host tracks them.
pub fn inside(network: &Network) -> Vec<IpAddr> {
    let addresses = network.addresses.iter().map(|a| a.local.address);
    addresses.filter(|a| !a.is_loopback()).collect()
}

fn known_by(outer: &BTreeMap<IpAddr, usize>) -> String {
    if outer.is_empty() {
        return String::new();
    }
    let each: Vec<_> = outer.iter().map(|(a, n)| format!("{a}: {n}")).collect();
    format!(" (tracked connections by address: {})", each.join(", "))
}

/// The address as this host has it, or why it cannot be a service address.
fn service(asked: &Asked, behind: &Behind, host: &Host) -> Result<Service, String> {
    let Asked { address, device } = asked;
    let Some(own) = host.addresses.iter().find(|a| a.local.address == *address) else {
        let others: Vec<_> = host
            .addresses
            .iter()
            .filter(|a| a.scope == UNIVERSE && !behind.subnets.iter().any(|s| s.parent == a.link))
            .map(|a| format!("{} on {}", a.local, a.link))
            .collect();
        return Err(format!(
            "--service-address {address} is no address of this host, so nothing that comes for it is translated here: it has {}",
            if others.is_empty() {
                "none that others could use".to_owned()
            } else {
                others.join(", ")
            }
        ));
    };
    if let Some(subnet) = behind.subnets.iter().find(|s| s.parent == own.link) {
        return Err(format!(
            "--service-address {address} is this host's address on {}, behind which the container is: name one by which peers elsewhere know it",
            subnet.parent
        ));
    }
    let seen = host.links.iter().find(|l| l.name == own.link);
    Ok(Service {
        address: own.clone(),
        mac: seen.filter(|l| !l.is_loopback()).and_then(|l| l.mac),
        device: device.clone().unwrap_or_else(|| own.link.clone()),
    })
}

/// What stands against taking it off its device.
fn against(service: &Service, behind: &Behind, host: &Host, inside: &[IpAddr], found: &mut Here) {
    let address = service.address.local.address;
    let own = &service.address;
    let mut say = |reason: String, resets: bool| {
        found.against.push(Against {
            address,
            reason,
            resets,
        });
    };
    let seen = host.links.iter().find(|l| l.name == own.link);
    let asks =
        |l: &Seen| l.flags & libc::IFF_NOARP as u32 == 0 && l.mac.is_some() && !l.is_loopback();
    let dummy = seen.is_some_and(|l| l.kind.as_deref() == Some("dummy"));
    if dummy || !seen.is_some_and(asks) {
        say(
            format!(
                "service address {address} is on {}, where no neighbour asks for it: a router leads to it, and netmig cannot tell that router; give the target \
                 the address too and let the router decide",
                own.link
            ),
            false,
        );
    }
    if seen.is_none_or(|l| l.flags & IFF_UP == 0) {
        say(
            format!(
                "service address {address} is on {}, which is down: nothing comes for it; bring it up (ip link set {} up)",
                own.link, own.link
            ),
            false,
        );
    }
    if own.valid.is_some() {
        say(
            format!(
                "service address {address} on {} has a lifetime, so DHCP or a router gives it to this host, and would give it back: make it a static one",
                own.link
            ),
            false,
        );
    }
    for reason in dependent(service, host) {
        say(reason, false);
    }
    let services = behind.addresses();
    let uses = |c: &&Connection| {
        let ends = [
            c.original.source,
            c.original.destination,
            c.reply.source,
            c.reply.destination,
        ];
        // The host's own are looked at as sockets; nobody is to be reached in a group.
        let own = protocol(c) == libc::IPPROTO_TCP && !c.is_translated();
        let counts = matches!(protocol(c), libc::IPPROTO_TCP | libc::IPPROTO_UDP);
        let group = ends.iter().any(IpAddr::is_multicast);
        let others = !passes(c, inside, &found.own, &services);
        ends.contains(&address) && others && counts && !own && !group
    };
    let others: Vec<_> = found.tracked.iter().filter(uses).collect();
    if let Some(one) = others.first() {
        let reason = format!(
            "service address {address} is used by others here too: {} tracked connections that are not the container's ({one}) end when it leaves",
            others.len()
        );
        found.against.push(Against {
            address,
            reason,
            resets: true,
        });
    }
    found.warnings.push(format!(
        "if service address {address} moves, it is taken off {} until somebody puts it there again: take it out of what configures this host at its next start \
         (and of what keeps addresses there), and put it into the target's",
        own.link
    ));
}

/// What of the host goes with the address.
fn dependent(service: &Service, host: &Host) -> Vec<String> {
    let own = &service.address;
    let address = own.local.address;
    let mut found = Vec::new();
    let by_hand = || host.routes.iter().filter(|r| r.protocol != KERNEL);
    for route in by_hand().filter(|r| r.prefsrc == Some(address)) {
        found.push(format!("route {route} has service address {address} as its source and would go with it: give it another one"));
    }
    let same = |a: &&Address| {
        a.link == own.link && a.local != own.local && own.local.contains(a.local.address)
    };
    let mut others = host.addresses.iter().filter(same);
    let alone = others.clone().next().is_none();
    let through = |r: &&Route| {
        r.next_hops.iter().any(|h| {
            h.link.as_deref() == Some(&own.link) && h.gateway.is_some_and(|g| own.local.contains(g))
        })
    };
    if alone {
        for route in by_hand().filter(through) {
            found.push(format!(
                "route {route} leads through the subnet that {} has by service address {address} alone, and would go with it: give {} another address there",
                own.link, own.link
            ));
        }
    }
    // The first of a subnet is its primary, and takes the others along (inet_del_ifa()).
    let before = host.addresses.iter().position(|a| a == own);
    let first = others.all(|o| before < host.addresses.iter().position(|a| a == o));
    if address.is_ipv4() && !alone && first && !promotes(&own.link) {
        found.push(format!(
            "service address {address} is the primary one of its subnet on {0}, and the others would go with it; set net.ipv4.conf.{0}.promote_secondaries to 1",
            own.link
        ));
    }
    found
}

fn promotes(device: &str) -> bool {
    // IN_DEV_PROMOTE_SECONDARIES: either.
    ["all", device].iter().any(|name| {
        let path = format!("ipv4/conf/{name}/promote_secondaries");
        super::super::sysctl::read(&path).is_ok_and(|value| value.is_some_and(|v| v != "0"))
    })
}

fn protocol(connection: &Connection) -> i32 {
    connection.original.protocol.into()
}

/// Datagrams that came or went by an address which stays: no connected socket says so.
fn datagrams(found: &Here, inside: &[IpAddr], services: &[IpAddr]) -> Option<String> {
    let lost = |c: &&Connection| {
        let seen = conntrack::seen(c, inside);
        protocol(c) != libc::IPPROTO_TCP
            && seen.is_some_and(|seen| {
                !services.contains(&seen.outer) && !inside.contains(&seen.outer)
            })
    };
    let all: Vec<_> = found.tracked.iter().filter(lost).collect();
    all.first().map(|one| {
        format!(
            "{} tracked flows of datagrams go by an address that stays here ({one}): what answers them does not find the container any more",
            all.len()
        )
    })
}

/// The connections of a container that move with its service addresses, read anew in the calling thread's namespace.
///
/// # Errors
/// If addresses or connections cannot be read.
pub fn moving(behind: &Behind, network: &Network) -> Result<Vec<Connection>, Error> {
    conntrack::passing(&inside(network), &addr::own()?, &behind.addresses())
}

/// Its device's index and MAC, if it is an Ethernet device that is up.
pub(super) fn device(
    name: &str,
) -> Result<Option<(Seen, netmig_core::image::v1::net::Mac)>, Error> {
    let seen = link::find(&mut open()?, name)?;
    Ok(seen.and_then(|seen| {
        let mac = seen.mac.filter(|_| !seen.is_loopback())?;
        Some((seen, mac))
    }))
}
