//! Which connections of a container behind its host survive when service addresses move.
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use netmig_core::{
    image::v1::{
        conntrack::{Connection, Tuple},
        net::{Network, Prefix},
    },
    service::Behind,
    socket::{Class, Fate, Kind, Row},
};

use super::super::conntrack::{Seen, seen};

/// Sets the fate of connections whose peers would not find the container at the target: those that know it by another address than its service
/// addresses, and those that are on this host. `tracked` is what the host tracks, `own` are its addresses.
pub fn judge(
    rows: &mut [Row],
    behind: &Behind,
    network: &Network,
    tracked: &[Connection],
    own: &[IpAddr],
) {
    let hidden = hidden(behind, network);
    let addresses: Vec<IpAddr> = network.addresses.iter().map(|a| a.local.address).collect();
    let known = inner(tracked, &addresses);
    let services = behind.addresses();
    for row in rows {
        let Some((protocol, local, peer)) = connection(row) else {
            continue;
        };
        let Some(subnet) = hidden.iter().find(|p| p.address == local.ip()) else {
            continue;
        };
        // Both ends are the container's.
        if addresses.contains(&peer.ip()) || peer.ip().is_loopback() {
            continue;
        }
        let why = match known.get(&(protocol, local, peer)) {
            None if own.contains(&peer.ip()) || subnet.contains(peer.ip()) => {
                Some(format!("its peer {} is on this host, which stays", peer.ip()))
            }
            None => Some(
                "this host does not track it, so it is not known by which address its peer knows it".to_owned(),
            ),
            Some(seen) if own.contains(&seen.far) || seen.far != local.ip() && subnet.contains(seen.far) => {
                Some(format!("its peer {} is on this host, which stays", seen.far))
            }
            Some(seen) if services.contains(&seen.outer) => None,
            Some(seen) if seen.outer == local.ip() => Some(format!(
                "it is routed to {} without being translated, and whoever does that leads to this host",
                local.ip()
            )),
            Some(seen) => Some(format!(
                "its peer knows it by {0}, which stays here; --service-address {0} takes that along",
                seen.outer
            )),
        };
        if let Some(why) = why {
            row.fate = Fate::Reset(why);
        }
    }
}

/// The addresses by which peers know the container, and how many of its connections each has: without those that end on this host.
pub fn outer(
    tracked: &[Connection],
    addresses: &[IpAddr],
    own: &[IpAddr],
) -> BTreeMap<IpAddr, usize> {
    let mut found = BTreeMap::new();
    for seen in tracked.iter().filter_map(|c| seen(c, addresses)) {
        if !own.contains(&seen.far) && !addresses.contains(&seen.outer) {
            *found.entry(seen.outer).or_default() += 1;
        }
    }
    found
}

/// What a peer's packets of this connection have for ends when they come to the host.
pub(super) fn incoming<'a>(connection: &'a Connection, addresses: &[IpAddr]) -> &'a Tuple {
    if addresses.contains(&connection.reply.source) {
        &connection.original
    } else {
        &connection.reply
    }
}

/// The container's addresses on links that no peer is on.
fn hidden(behind: &Behind, network: &Network) -> Vec<Prefix> {
    let of = |link: &str| {
        network
            .addresses_of(link)
            .map(|a| a.local)
            .collect::<Vec<_>>()
    };
    behind.subnets.iter().flat_map(|s| of(&s.link)).collect()
}

/// Protocol, own end and peer of a connection, as its socket has them.
type Ends = (u8, SocketAddr, SocketAddr);

fn inner(tracked: &[Connection], addresses: &[IpAddr]) -> HashMap<Ends, Seen> {
    let each = tracked.iter().filter_map(|connection| {
        let seen = seen(connection, addresses)?;
        Some((
            (connection.original.protocol, seen.local?, seen.peer?),
            seen,
        ))
    });
    each.collect()
}

fn connection(row: &Row) -> Option<Ends> {
    let protocol = match row.kind {
        Kind::Tcp | Kind::Mptcp => libc::IPPROTO_TCP,
        Kind::Udp => libc::IPPROTO_UDP,
        Kind::UdpLite => libc::IPPROTO_UDPLITE,
        _ => return None,
    };
    // Nothing of it is left but a port's protection.
    let over = matches!(
        row.class,
        Class::TcpTimeWait | Class::TcpTimeWaitInside | Class::TcpTimeWaitStuck
    );
    let lives = matches!(row.fate, Fate::Moves | Fate::MovesWithout(_));
    let end = |text: &str| {
        let end: SocketAddr = text.parse().ok()?;
        Some(SocketAddr::new(end.ip().to_canonical(), end.port()))
    };
    (lives && !over).then_some(())?;
    Some((
        u8::try_from(protocol).ok()?,
        end(&row.local)?,
        end(&row.peer)?,
    ))
}

#[cfg(test)]
mod tests {
    use netmig_core::{
        image::v1::{conntrack::Key, net::Address},
        service::{Service, Subnet},
        socket::State,
    };

    use super::*;

    const CONTAINER: &str = "198.51.100.10";
    const SERVICE: &str = "192.0.2.50";

    fn tuple(source: &str, from: u16, destination: &str, to: u16) -> Tuple {
        Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 6,
            key: Key::Ports {
                source: from,
                destination: to,
            },
        }
    }

    fn tracked(original: Tuple, reply: Tuple) -> Connection {
        Connection {
            original,
            reply,
            status: 0,
            timeout: 1,
            mark: 0,
            zone: 0,
            labels: Vec::new(),
            helper: None,
            tcp: None,
            adjusted: (None, None),
        }
    }

    fn address(link: &str, ip: &str) -> Address {
        Address::new(
            link,
            Prefix {
                address: ip.parse().unwrap(),
                len: 24,
            },
        )
    }

    fn row(local: &str, peer: &str) -> Row {
        Row {
            kind: Kind::Tcp,
            state: State::Established,
            local: local.into(),
            peer: peer.into(),
            inode: 1,
            owners: Vec::new(),
            rqueue: 0,
            wqueue: 0,
            options: Vec::new(),
            class: Class::TcpEstablished,
            fate: Fate::Moves,
        }
    }

    /// What becomes of a connection with these ends, where the host tracks it so.
    fn fate(local: &str, peer: &str, tracked: &[Connection]) -> Fate {
        let behind = Behind {
            services: vec![Service {
                address: address("br0", SERVICE),
                mac: None,
                device: "br0".into(),
            }],
            subnets: vec![Subnet {
                link: "eth0".into(),
                parent: "nat0".into(),
                gateways: vec![address("nat0", "198.51.100.1").local],
            }],
            rules: Vec::new(),
        };
        let network = Network {
            addresses: vec![address("lo", "127.0.0.1"), address("eth0", CONTAINER)],
            ..Network::default()
        };
        let own = ["127.0.0.1", "192.0.2.1", SERVICE, "198.51.100.1"].map(|a| a.parse().unwrap());
        let mut rows = [row(local, peer)];
        judge(&mut rows, &behind, &network, tracked, &own);
        let [row] = rows;
        row.fate
    }

    fn reset(fate: &Fate, word: &str) {
        assert!(
            matches!(fate, Fate::Reset(why) if why.contains(word)),
            "{word}: {fate:?}"
        );
    }

    #[test]
    fn a_connection_lives_by_the_address_by_which_its_peer_knows_it() {
        let called = |by: &str| {
            let there = tuple("192.0.2.9", 4000, by, 80);
            [tracked(there, tuple(CONTAINER, 8080, "192.0.2.9", 4000))]
        };
        let (local, peer) = ("198.51.100.10:8080", "192.0.2.9:4000");
        assert_eq!(fate(local, peer, &called(SERVICE)), Fate::Moves);
        assert_eq!(
            fate(
                "[::ffff:198.51.100.10]:8080",
                "[::ffff:192.0.2.9]:4000",
                &called(SERVICE)
            ),
            Fate::Moves
        );
        reset(
            &fate(local, peer, &called("192.0.2.1")),
            "--service-address 192.0.2.1 takes",
        );
        reset(
            &fate(local, peer, &called(CONTAINER)),
            "without being translated",
        );
        reset(&fate(local, peer, &[]), "does not track it");

        let calls = |behind: &str, port| {
            let there = tuple(CONTAINER, 4001, "203.0.113.7", 443);
            [tracked(there, tuple("203.0.113.7", 443, behind, port))]
        };
        let (local, peer) = ("198.51.100.10:4001", "203.0.113.7:443");
        assert_eq!(fate(local, peer, &calls(SERVICE, 4001)), Fate::Moves);
        assert_eq!(fate(local, peer, &calls(SERVICE, 61000)), Fate::Moves);
        reset(
            &fate(local, peer, &calls("192.0.2.1", 4001)),
            "192.0.2.1, which stays here",
        );
    }

    #[test]
    fn a_peer_on_the_host_stays_there() {
        let local = "198.51.100.10:8080";
        reset(
            &fate(local, "198.51.100.1:4000", &[]),
            "198.51.100.1 is on this host",
        );
        reset(
            &fate(local, "198.51.100.11:4000", &[]),
            "198.51.100.11 is on this host",
        );
        // A neighbour that goes by the service address, and comes from the gateway.
        let there = tuple("198.51.100.11", 4000, SERVICE, 80);
        let hairpin = [tracked(there, tuple(CONTAINER, 8080, "198.51.100.1", 4000))];
        reset(
            &fate(local, "198.51.100.1:4000", &hairpin),
            "198.51.100.11 is on this host",
        );
        // A peer elsewhere whose address the host translates too.
        let there = tuple("192.0.2.9", 4000, SERVICE, 80);
        let both = [tracked(there, tuple(CONTAINER, 8080, "198.51.100.1", 4000))];
        assert_eq!(fate(local, "198.51.100.1:4000", &both), Fate::Moves);
        assert_eq!(fate("127.0.0.1:1", "127.0.0.1:2", &[]), Fate::Moves);
        assert_eq!(fate(local, "198.51.100.10:4000", &[]), Fate::Moves);
    }

    #[test]
    fn the_addresses_by_which_peers_know_it_are_counted() {
        let by = |outer: &str, from| {
            let there = tuple("192.0.2.9", from, outer, 80);
            tracked(there, tuple(CONTAINER, 8080, "192.0.2.9", from))
        };
        let all = [
            by(SERVICE, 1),
            by(SERVICE, 2),
            by("192.0.2.1", 3),
            by(CONTAINER, 4),
        ];
        let addresses = [CONTAINER.parse().unwrap()];
        let found: Vec<_> = outer(&all, &addresses, &[]).into_iter().collect();
        let expected = [("192.0.2.1", 1), (SERVICE, 2)].map(|(a, n)| (a.parse().unwrap(), n));
        assert_eq!(found, expected);
        assert_eq!(incoming(&all[0], &addresses), &all[0].original);
    }
}
