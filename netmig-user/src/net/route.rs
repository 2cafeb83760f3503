//! Routes of all tables: dump, and bringing a namespace to the image's, with the next hop objects that they name.
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use netmig_core::image::v1::net::{
    Family, Metric, MetricValue, NextHop, NextHopObject, Prefix, Route, Way,
};

use super::{
    Doing, Error,
    attr::{self, Attr, Attrs, Message, af, u16_at, u32_at, unspecified},
    netlink::{self, Netlink, Reply},
    nexthop,
    uapi::*,
};

/// Ticks of a lifetime in struct rta_cacheinfo: USER_HZ.
const TICKS: u32 = 100;

/// All routes, sorted, and what of them cannot be carried. Routes of the local table that the kernel makes for each address are left out.
/// Those that name a next hop object of `objects` name it; others are spelled out.
pub fn dump(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
    objects: &[NextHopObject],
) -> Result<(Vec<Route>, Vec<String>), Error> {
    let carried = nexthop::ids(objects);
    let mut all = Vec::new();
    let mut lost = Vec::new();
    for wanted in [Family::Inet, Family::Inet6] {
        let mut header = [0; 12];
        header[0] = af(wanted);
        let replies = nl
            .dump(libc::RTM_GETROUTE, &Message::new(&header))
            .doing(|| format!("reading the routes of {wanted:?}"))?;
        for reply in &replies {
            all.extend(
                parse(reply, wanted, names, &carried, &mut lost)
                    .doing(|| "reading a route".to_owned())?,
            );
        }
    }
    for (af, name) in [(RTNL_FAMILY_IPMR, "IPv4"), (RTNL_FAMILY_IP6MR, "IPv6")] {
        let mut header = [0; 12];
        header[0] = af;
        // A kernel without multicast routing has none.
        let count = nl
            .dump(libc::RTM_GETROUTE, &Message::new(&header))
            .map_or(0, |routes| {
                routes
                    .iter()
                    .filter(|r| r.split::<12>().is_ok_and(|(header, _)| header[0] == af))
                    .count()
            });
        if count > 0 {
            lost.push(format!("{count} multicast routes of {name}: not carried, the routing daemon makes them again"));
        }
    }
    all.sort_by_key(key);
    Ok((all, lost))
}

/// Whether a packet for `address` that comes to this namespace now is delivered to its own sockets (RTN_LOCAL).
pub(super) fn is_local(nl: &mut Netlink, address: IpAddr) -> Result<bool, netlink::Error> {
    let (family, bits) = match address {
        IpAddr::V4(_) => (Family::Inet, 32),
        IpAddr::V6(_) => (Family::Inet6, 128),
    };
    // struct rtmsg: family, length of the destination, ...
    let mut header = [0; 12];
    (header[0], header[1]) = (af(family), bits);
    match nl.get(
        libc::RTM_GETROUTE,
        Message::new(&header).ip(RTA_DST, address),
    ) {
        Ok(Some(reply)) => Ok(reply.split::<12>()?.0[7] == RTN_LOCAL),
        Ok(None) => Ok(false),
        Err(e) if matches!(e.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The order of an image: what follows within one table, destination and metric is in the kernel's order.
fn key(route: &Route) -> (Family, u32, Prefix, u8, u32) {
    (
        route.family,
        route.table,
        route.destination,
        route.tos,
        route.priority.unwrap_or_default(),
    )
}

/// Makes the next hop objects and routes of the namespace those of `objects` and `wanted`. Routes of the kernel that are there already stay;
/// those which it made and the image lacks (the container removed them) go.
pub fn converge(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
    indices: &HashMap<String, u32>,
    objects: &[NextHopObject],
    wanted: &[Route],
) -> Result<(), Error> {
    let (there, _) = nexthop::dump(nl, names)?;
    for object in there.iter().filter(|t| !objects.contains(t)) {
        nexthop::delete(nl, object).doing(|| format!("removing next hop object {object}"))?;
    }
    let (existing, _) = dump(nl, names, objects)?;
    for route in existing
        .iter()
        .filter(|e| !wanted.iter().any(|w| same(e, w)))
    {
        match nl.request(libc::RTM_DELROUTE, 0, message(route, indices)?) {
            Err(e) if e.errno() == Some(libc::ESRCH) => {} // went with another
            other => other.doing(|| format!("removing route {route}"))?,
        }
    }
    let absent = objects.iter().filter(|o| !there.contains(o));
    let routes = wanted
        .iter()
        .filter(|w| !existing.iter().any(|e| same(e, w)));
    let mut missing: Vec<_> = absent
        .map(Missing::Object)
        .chain(routes.map(Missing::Route))
        .collect();
    // A gateway must be reachable by then, and an object be there: those without one first, and round again while that helps.
    missing.sort_by_key(Missing::leans);
    while !missing.is_empty() {
        let before = missing.len();
        let mut failed: Option<Error> = None;
        let mut again = Vec::new();
        for one in missing {
            let (what, added) = match one {
                Missing::Object(object) => (
                    format!("adding next hop object {object}"),
                    nexthop::add(nl, object, indices)?,
                ),
                Missing::Route(route) => {
                    (format!("adding route {route}"), add(nl, route, indices)?)
                }
            };
            if let Err(cause) = added {
                failed.get_or_insert(Error::Netlink { what, cause });
                again.push(one);
            }
        }
        missing = again;
        if let Some(failed) = failed.filter(|_| missing.len() == before) {
            return Err(failed);
        }
    }
    reorder(nl, names, indices, objects, wanted)
}

/// What is to be made.
#[derive(Clone, Copy)]
enum Missing<'a> {
    Object(&'a NextHopObject),
    Route(&'a Route),
}

impl Missing<'_> {
    /// On how much of the rest it leans.
    fn leans(&self) -> u8 {
        match self {
            Self::Object(object) if matches!(object.way, Way::Group { .. }) => 2,
            Self::Object(_) => 1,
            Self::Route(route) if route.nexthop.is_some() => 3,
            Self::Route(route) => u8::from(route.next_hops.iter().any(|h| h.gateway.is_some())),
        }
    }
}

/// But for a lifetime that counts down.
fn same(a: &Route, b: &Route) -> bool {
    let lasting = |r: &Route| Route {
        expires: None,
        ..r.clone()
    };
    // Most differ in that already, and nothing is copied for it.
    key(a) == key(b) && lasting(a) == lasting(b)
}

/// Of several routes to one destination with one metric the first counts, and each link adds its own when it comes up: those that stand
/// in another order than in `wanted` are made anew.
fn reorder(
    nl: &mut Netlink,
    names: &HashMap<u32, String>,
    indices: &HashMap<String, u32>,
    objects: &[NextHopObject],
    wanted: &[Route],
) -> Result<(), Error> {
    let mut sorted: Vec<_> = wanted.iter().collect();
    sorted.sort_by_key(|route| key(route));
    let groups = || {
        sorted
            .chunk_by(|a, b| key(a) == key(b))
            .filter(|group| group.len() > 1)
    };
    if groups().next().is_none() {
        return Ok(());
    }
    let (existing, _) = dump(nl, names, objects)?;
    for group in groups() {
        let now: Vec<_> = existing
            .iter()
            .filter(|e| key(e) == key(group[0]))
            .collect();
        if now.len() == group.len() && now.iter().zip(group).all(|(e, w)| same(e, w)) {
            continue;
        }
        for route in now {
            nl.request(libc::RTM_DELROUTE, 0, message(route, indices)?)
                .doing(|| format!("removing route {route}, to put it into its place"))?;
        }
        for route in group {
            add(nl, route, indices)?.doing(|| format!("adding route {route} in its place"))?;
        }
    }
    Ok(())
}

fn add(
    nl: &mut Netlink,
    route: &Route,
    indices: &HashMap<String, u32>,
) -> Result<Result<(), netlink::Error>, Error> {
    // Several routes may have one destination and metric; NLM_F_EXCL would refuse the second, and NLM_F_APPEND keeps their order.
    let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
    let request = message(route, indices)?;
    Ok(match nl.request(libc::RTM_NEWROUTE, flags, request) {
        // The kernel made it meanwhile (a link got its carrier).
        Err(e) if e.errno() == Some(libc::EEXIST) && route.protocol == RTPROT_KERNEL => Ok(()),
        other => other,
    })
}

fn message(route: &Route, indices: &HashMap<String, u32>) -> Result<Message, Error> {
    let index = |link: &str| {
        indices.get(link).copied().ok_or_else(|| {
            Error::Refused(vec![format!(
                "route {route} leads through link {link}, which is not there"
            )])
        })
    };
    let single = match route.next_hops.as_slice() {
        [hop] => Some(hop),
        _ => None,
    };
    let onlink = if single.is_some_and(|h| h.onlink) {
        RTNH_F_ONLINK
    } else {
        0
    };
    let mut header = [0; 12];
    header[0] = af(route.family);
    header[1] = route.destination.len;
    header[2] = route.source.map_or(0, |s| s.len);
    header[3] = route.tos;
    header[4] = u8::try_from(route.table).unwrap_or_default(); // RT_TABLE_UNSPEC: see RTA_TABLE
    header[5] = route.protocol;
    header[6] = route.scope;
    header[7] = route.kind;
    header[8..].copy_from_slice(&onlink.to_ne_bytes());
    let mut request = Message::new(&header).u32(RTA_TABLE, route.table);
    if route.destination.len > 0 {
        request = request.ip(RTA_DST, route.destination.address);
    }
    if !route.metrics.is_empty() {
        let metrics =
            route
                .metrics
                .iter()
                .fold(Message::default(), |m, metric| match &metric.value {
                    MetricValue::Number(v) => m.u32(metric.kind, *v),
                    MetricValue::Text(v) => m.text(metric.kind, v),
                });
        request = request.nested(RTA_METRICS, &metrics);
    }
    request = request
        .maybe(route.source, |m, source| m.ip(RTA_SRC, source.address))
        .maybe(route.priority, |m, v| m.u32(RTA_PRIORITY, v))
        .maybe(route.prefsrc, |m, ip| m.ip(RTA_PREFSRC, ip))
        .maybe(route.preference, |m, v| m.u8(RTA_PREF, v))
        .maybe(route.expires, |m, v| m.u32(RTA_EXPIRES, v));
    if let Some(id) = route.nexthop {
        request = request.u32(RTA_NH_ID, id);
    } else if let Some(hop) = single {
        let oif = hop.link.as_deref().map(index).transpose()?;
        request = way(
            request.maybe(oif, |m, oif| m.u32(RTA_OIF, oif)),
            route.family,
            hop,
        );
    } else if !route.next_hops.is_empty() {
        let mut hops = Message::default();
        for hop in &route.next_hops {
            let inner = way(Message::default(), route.family, hop);
            let oif = hop
                .link
                .as_deref()
                .map(index)
                .transpose()?
                .unwrap_or_default();
            let mut nexthop = [0; 8];
            // struct rtnexthop; a next hop is some dozens of bytes long.
            nexthop[..2].copy_from_slice(&((8 + inner.as_bytes().len()) as u16).to_ne_bytes());
            nexthop[2] = if hop.onlink { RTNH_F_ONLINK as u8 } else { 0 };
            nexthop[3] = hop.hops;
            nexthop[4..].copy_from_slice(&oif.to_ne_bytes());
            hops = hops.raw(&nexthop).raw(inner.as_bytes());
        }
        request = request.nested(RTA_MULTIPATH, &hops);
    }
    Ok(request)
}

fn way(message: Message, family: Family, hop: &NextHop) -> Message {
    message
        .maybe(hop.gateway, |m, gateway| {
            if gateway.is_ipv4() == (family == Family::Inet) {
                m.ip(RTA_GATEWAY, gateway)
            } else {
                let other = if gateway.is_ipv4() {
                    libc::AF_INET
                } else {
                    libc::AF_INET6
                };
                let octets = match gateway {
                    std::net::IpAddr::V4(a) => a.octets().to_vec(),
                    std::net::IpAddr::V6(a) => a.octets().to_vec(),
                };
                // struct rtvia: an address family, in the host's order, and the address.
                m.bytes(
                    RTA_VIA,
                    &[&(other as u16).to_ne_bytes()[..], &octets].concat(),
                )
            }
        })
        .maybe(hop.realm, |m, realm| m.u32(RTA_FLOW, realm))
}

fn parse(
    reply: &Reply,
    family: Family,
    names: &HashMap<u32, String>,
    carried: &BTreeSet<u32>,
    lost: &mut Vec<String>,
) -> Result<Option<Route>, netlink::Error> {
    let (header, attrs) = reply.split::<12>()?;
    // Asked for a family that it does not have, the kernel dumps all the others (rtnetlink_rcv_msg()).
    if attr::family(header[0]) != Some(family) {
        return Ok(None);
    }
    let flags = u32_at(&header, 8);
    if flags & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let none = unspecified(family);
    let mut route = Route {
        family,
        table: header[4].into(),
        kind: header[7],
        destination: Prefix {
            address: none,
            len: header[1],
        },
        source: (header[2] > 0).then_some(Prefix {
            address: none,
            len: header[2],
        }),
        tos: header[3],
        scope: header[6],
        protocol: header[5],
        priority: None,
        prefsrc: None,
        preference: None,
        expires: None,
        metrics: Vec::new(),
        next_hops: Vec::new(),
        nexthop: None,
    };
    let mut strange = Vec::new();
    let mut single = NextHop {
        link: None,
        gateway: None,
        hops: 0,
        onlink: flags & RTNH_F_ONLINK != 0,
        realm: None,
    };
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            RTA_TABLE => route.table = attr.u32()?,
            RTA_DST => route.destination.address = attr.ip()?,
            RTA_SRC => {
                if let Some(source) = &mut route.source {
                    source.address = attr.ip()?;
                }
            }
            RTA_PRIORITY => route.priority = Some(attr.u32()?),
            RTA_PREFSRC => route.prefsrc = Some(attr.ip()?),
            RTA_PREF => route.preference = Some(attr.u8()?),
            RTA_CACHEINFO if attr.value.len() >= 12 => {
                route.expires = Some(u32_at(attr.value, 8))
                    .filter(|ticks| *ticks > 0)
                    .map(|ticks| ticks.div_ceil(TICKS));
            }
            RTA_METRICS => route.metrics = metrics(attr.nested())?,
            RTA_MULTIPATH => route.next_hops = next_hops(attr.value, names, &mut strange)?,
            RTA_NH_ID => route.nexthop = Some(attr.u32()?),
            RTA_OIF => single.link = names.get(&attr.u32()?).cloned(),
            RTA_PAD | RTA_CACHEINFO => {}
            _ => hop_attr(attr, &mut single, &mut strange)?,
        }
    }
    let made_for_an_address = route.protocol == RTPROT_KERNEL
        && (route.table == RT_TABLE_LOCAL || route.kind != RTN_UNICAST);
    if made_for_an_address {
        return Ok(None);
    }
    if route.next_hops.is_empty() && (single.link.is_some() || single.gateway.is_some()) {
        route.next_hops.push(single);
    }
    match route.nexthop {
        // nexthop_compat_mode: the kernel spells it out besides.
        Some(id) if carried.contains(&id) => route.next_hops.clear(),
        Some(id) => {
            if route.next_hops.is_empty() {
                lost.push(format!(
                    "route {route}: next hop object {id} is not carried"
                ));
                return Ok(None);
            }
            route.nexthop = None;
            strange.push("its next hop object is spelled out".to_owned());
        }
        None => {}
    }
    lost.extend(strange.iter().map(|what| format!("route {route}: {what}")));
    Ok(Some(route))
}

fn hop_attr(
    attr: Attr<'_>,
    hop: &mut NextHop,
    strange: &mut Vec<String>,
) -> Result<(), netlink::Error> {
    match attr.kind {
        RTA_GATEWAY => hop.gateway = Some(attr.ip()?),
        RTA_VIA if attr.value.len() > 2 => {
            hop.gateway = Some(
                Attr {
                    kind: attr.kind,
                    value: &attr.value[2..],
                }
                .ip()?,
            )
        }
        RTA_FLOW => hop.realm = Some(attr.u32()?),
        RTA_ENCAP => strange.push("its encapsulation is not carried".to_owned()),
        RTA_ENCAP_TYPE => {}
        kind => strange.push(format!("attribute {kind} is unknown and not carried")),
    }
    Ok(())
}

fn metrics(attrs: Attrs<'_>) -> Result<Vec<Metric>, netlink::Error> {
    attrs
        .map(|attr| {
            let attr = attr?;
            let value = if attr.kind == RTAX_CC_ALGO {
                MetricValue::Text(attr.text())
            } else {
                MetricValue::Number(attr.u32()?)
            };
            Ok(Metric {
                kind: attr.kind,
                value,
            })
        })
        .collect()
}

/// A row of struct rtnexthop, each with attributes behind it.
fn next_hops(
    mut bytes: &[u8],
    names: &HashMap<u32, String>,
    strange: &mut Vec<String>,
) -> Result<Vec<NextHop>, netlink::Error> {
    let mut hops = Vec::new();
    while let Some(header) = bytes.first_chunk::<8>() {
        let length = usize::from(u16_at(header, 0));
        if length < 8 || length > bytes.len() {
            return Err(netlink::Error::Malformed(format!(
                "a next hop of {length} bytes with {} left",
                bytes.len()
            )));
        }
        let mut hop = NextHop {
            link: names.get(&u32_at(header, 4)).cloned(),
            gateway: None,
            hops: header[3],
            onlink: u32::from(header[2]) & RTNH_F_ONLINK != 0,
            realm: None,
        };
        for attr in Attrs(&bytes[8..length]) {
            hop_attr(attr?, &mut hop, strange)?;
        }
        hops.push(hop);
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(hops)
}
