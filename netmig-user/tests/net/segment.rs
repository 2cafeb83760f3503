//! What the segment learns of a container that moved, and what a target learns from the segment before.
use std::{net::IpAddr, time::Duration};

use netmig_core::image::v1::net::{Mac, Network};
use netmig_user::net::{self, frame::claim, packet::PacketSocket};

use crate::world::{MOVE, attach, container, device, ns, on, reach, segment, settled, sh, world};

const MAC: &str = "02:00:00:00:00:10";
const LIMIT: Duration = Duration::from_millis(600);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A container on a, seen by the segment's bridge at that port; a peer on the segment.
fn before_the_move() -> Network {
    segment(&["a", "b", "peer"]);
    container("a", "src", MAC);
    sh("ip -n src addr add 192.0.2.10/24 dev eth0; ip -n src -6 addr add 2001:db8::10/64 dev eth0 nodad
        ip -n peer addr add 192.0.2.99/24 dev br0");
    on("peer", || reach("192.0.2.10"));
    assert_eq!(port(), "to-a");
    net::snapshot(&ns("src")).unwrap()
}

/// The port at which the segment's bridge has the container.
fn port() -> String {
    let rows = sh(&format!("bridge fdb show br seg | grep {MAC}"));
    rows.split_whitespace()
        .skip_while(|w| *w != "dev")
        .nth(1)
        .unwrap()
        .to_owned()
}

#[test]
fn an_announcement_is_heard_and_moves_the_port() {
    world(|| {
        let image = before_the_move();
        let links = on("a", || net::links(&ns("src"))).unwrap();
        assert_eq!(
            on("a", || net::depart(&ns("src"), &links, &image, false)).len(),
            0
        );
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        let peer = on("peer", || PacketSocket::open(device("br0")).unwrap());
        let mut looks = 0;
        let heard = &mut || {
            looks += 1;
            looks > 30
        };
        let announced = on("b", || {
            net::announce(&ns("dst"), &created.links, &image, &[], LIMIT, heard)
        })
        .unwrap();
        assert!(
            announced.heard && announced.rounds >= 2 && announced.failed.is_empty(),
            "{announced:?}"
        );
        assert_eq!(port(), "to-b");
        let mut claims = Vec::new();
        let mut kinds = [false; 4];
        while let Some(frame) = peer.receive(Duration::from_millis(100)).unwrap() {
            kinds[0] |= frame[12..14] == [8, 6] && frame[20..22] == [0, 1]; // ARP request
            kinds[1] |= frame[12..14] == [8, 6] && frame[20..22] == [0, 2]; // ARP reply
            kinds[2] |= frame[12..14] == [0x80, 0x35]; // RARP
            kinds[3] |= frame[12..14] == [0x86, 0xdd] && frame[54] == 136 && frame[58] & 0x20 != 0; // NA, override
            claims.extend(claim(&frame));
        }
        assert_eq!(kinds, [true; 4]);
        for address in ["192.0.2.10", "2001:db8::10"] {
            assert!(
                claims
                    .iter()
                    .any(|c| c.address == ip(address) && c.mac.to_string() == MAC),
                "{address}: {claims:?}"
            );
        }
        // The peer's entry is corrected without its asking.
        assert!(on("peer", || sh("ip neigh show 192.0.2.10 dev br0")).contains(MAC));
        on("peer", || reach("192.0.2.10"));
    });
}

/// The address is that of a bridge inside, which sends through the link that hangs on the host.
#[test]
fn the_address_of_a_bridge_inside_is_announced() {
    world(|| {
        segment(&["a", "peer"]);
        container("a", "src", MAC);
        sh("ip -n src link add br7 address 02:00:00:00:07:07 type bridge mcast_snooping 0; ip -n src link set eth0 master br7
            ip -n src link add alone type veth peer name other; ip -n src link set alone up; ip -n src link set other up
            ip -n src link set br7 up; ip -n src addr add 192.0.2.10/24 dev br7; ip -n src addr add 10.0.0.1/24 dev alone");
        let image = net::snapshot(&ns("src")).unwrap();
        let links = on("a", || net::links(&ns("src"))).unwrap();
        let peer = on("peer", || PacketSocket::open(device("br0")).unwrap());
        let announced = on("a", || {
            net::announce(&ns("src"), &links, &image, &[], Duration::ZERO, &mut || {
                false
            })
        })
        .unwrap();
        assert_eq!(announced.failed, [] as [&str; 0]);
        let mut claims = Vec::new();
        while let Some(frame) = peer.receive(Duration::from_millis(100)).unwrap() {
            claims.extend(claim(&frame));
        }
        let of = |address: &str| {
            claims
                .iter()
                .filter(|c| c.address == ip(address))
                .collect::<Vec<_>>()
        };
        assert!(
            !of("192.0.2.10").is_empty()
                && of("192.0.2.10")
                    .iter()
                    .all(|c| c.mac.to_string() == "02:00:00:00:07:07"),
            "{claims:?}"
        );
        assert!(
            of("10.0.0.1").is_empty(),
            "that one reaches nobody outside: {claims:?}"
        );
    });
}

#[test]
fn a_link_that_is_down_is_named_and_the_others_are_announced() {
    world(|| {
        let image = before_the_move();
        let links = on("a", || net::links(&ns("src"))).unwrap();
        sh("ip -n src link set eth0 down");
        let announced = on("a", || {
            net::announce(&ns("src"), &links, &image, &[], LIMIT, &mut || false)
        })
        .unwrap();
        assert!(
            announced.failed[0].starts_with("announcing on link eth0: "),
            "{announced:?}"
        );
    });
}

#[test]
fn announcing_ends_at_the_limit_when_nobody_is_heard() {
    world(|| {
        let image = before_the_move();
        let links = on("a", || net::links(&ns("src"))).unwrap();
        let begin = std::time::Instant::now();
        let announced = on("a", || {
            net::announce(
                &ns("src"),
                &links,
                &image,
                &[],
                Duration::from_millis(100),
                &mut || false,
            )
        })
        .unwrap();
        assert!(!announced.heard && announced.rounds >= 3, "{announced:?}");
        assert!(begin.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn the_target_sees_the_container_itself_and_a_thief() {
    world(|| {
        let image = before_the_move();
        settled("src");
        let own = Mac([2, 0, 0, 0, 0, 0x10]);
        let answers = on("b", || net::clashes("br0", "eth0", &image, LIMIT)).unwrap();
        let from = |address: &str| {
            answers
                .iter()
                .filter(|c| c.address == ip(address))
                .map(|c| (c.mac, c.own))
                .collect::<Vec<_>>()
        };
        assert_eq!(from("192.0.2.10"), [(own, true)]);
        assert_eq!(from("2001:db8::10"), [(own, true)]);
        let there = on("b", || net::same_segment("br0", "eth0", &image, LIMIT)).unwrap();
        assert!(there.same() && there.unseen.is_empty(), "{there:?}");

        container("b", "thief", "02:00:00:00:00:66");
        sh(
            "ip -n thief addr add 192.0.2.10/24 dev eth0; ip -n thief -6 addr add 2001:db8::10/64 dev eth0 nodad",
        );
        let answers = on("b", || net::clashes("br0", "eth0", &image, LIMIT)).unwrap();
        for address in ["192.0.2.10", "2001:db8::10"] {
            let thieves: Vec<_> = answers
                .iter()
                .filter(|c| c.address == ip(address) && !c.own)
                .collect();
            assert_eq!(thieves.len(), 1, "{answers:?}");
            assert_eq!(thieves[0].mac.to_string(), "02:00:00:00:00:66");
        }
    });
}

#[test]
fn a_host_that_has_the_address_itself_is_a_clash() {
    world(|| {
        let image = before_the_move();
        sh("ip -n b addr add 192.0.2.10/24 dev br0");
        let answers = on("b", || net::clashes("br0", "eth0", &image, LIMIT)).unwrap();
        assert!(
            answers
                .iter()
                .any(|c| c.address == ip("192.0.2.10") && !c.own),
            "{answers:?}"
        );
    });
}

#[test]
fn another_segment_is_noticed() {
    world(|| {
        let image = before_the_move();
        sh("ip link set to-b down");
        let there = on("b", || {
            net::same_segment("br0", "eth0", &image, Duration::from_millis(200))
        })
        .unwrap();
        assert!(!there.same());
        assert!(there.unseen.contains(&ip("192.0.2.10")), "{there:?}");
        let error = on("b", || net::same_segment("br7", "eth0", &image, LIMIT)).unwrap_err();
        assert!(error.to_string().contains("no br7"), "{error}");
    });
}

#[test]
fn a_switch_that_listens_to_reports_learns_the_groups() {
    world(|| {
        let image = before_the_move();
        settled("src");
        let image = Network {
            addresses: net::snapshot(&ns("src")).unwrap().addresses,
            ..image
        };
        let member = || {
            sh("bridge mdb show")
                .lines()
                .any(|l| l.contains("to-b") && l.contains("ff02::1:ff00:10"))
        };
        let member4 = || {
            sh("bridge mdb show")
                .lines()
                .any(|l| l.contains("to-b") && l.contains("239.1.2.3"))
        };
        // The kernel's own reports die at the gate, and nobody asks again.
        let gate = &mut |links: &[net::Link]| {
            let end = links[1].host_name().unwrap();
            sh(&format!(
                "tc qdisc add dev {end} clsact; tc filter add dev {end} ingress bpf da bytecode '1,6 0 0 2'"
            ));
            Ok(())
        };
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, gate)
        })
        .unwrap();
        let socket = on("dst", || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket
                .join_multicast_v4(
                    &"239.1.2.3".parse().unwrap(),
                    &"192.0.2.10".parse().unwrap(),
                )
                .unwrap();
            socket
        });
        std::thread::sleep(Duration::from_millis(1200));
        sh("ip link set seg type bridge mcast_snooping 1 mcast_mld_version 2 mcast_igmp_version 3");
        assert!(!member() && !member4());
        on("b", || {
            sh(&format!(
                "tc qdisc del dev {} clsact",
                created.links[1].host_name().unwrap()
            ))
        });
        on("b", || {
            net::announce(
                &ns("dst"),
                &created.links,
                &image,
                &[],
                Duration::from_millis(10),
                &mut || false,
            )
        })
        .unwrap();
        assert!(member() && member4(), "{}", sh("bridge mdb show"));
        drop(socket);
    });
}
