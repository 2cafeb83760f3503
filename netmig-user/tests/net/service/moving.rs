//! How a service address goes from host to host, and what is behind it.
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use netmig_core::{image::v1::net::Prefix, proto::Attach, service::Behind};
use netmig_user::net::{
    self,
    conntrack::{self, Present},
    service::{address, here, there},
};

use super::{
    SERVICE, against, at_b, behind, behind_a, connect, echoed, mac_of, only, resolved, snapshot,
};
use crate::world::{MOVE, ns, on, reach, sh, world};

#[test]
fn the_address_and_its_connections_go_to_the_other_host() {
    world(|| {
        behind_a();
        let mut stream = connect();
        let wanted = behind();
        let network = snapshot();
        on("a", || {
            sh(
                "ip addr del 192.0.2.50/24 dev br0; ip addr add 192.0.2.50/24 brd + dev br0 label br0:web",
            )
        });
        let wanted = Behind {
            services: behind().services,
            ..wanted
        };
        assert_eq!(resolved(), mac_of("a"));
        let tracked = on("a", || here::moving(&wanted, &network)).unwrap();
        assert_eq!(tracked.len(), 1, "{tracked:#?}");

        assert_eq!(
            on("b", || conntrack::insert(&tracked, Present::Replace)).unwrap(),
            [] as [&str; 0]
        );
        assert_eq!(on("a", || address::take(&wanted.services)), [] as [&str; 0]);
        assert_eq!(
            on("a", || address::take(&wanted.services)),
            [] as [&str; 0],
            "said twice"
        );
        assert_eq!(
            on("a", || conntrack::forget(&tracked)).unwrap(),
            [] as [&str; 0]
        );
        for _ in 0..2 {
            assert_eq!(on("b", || address::put(&wanted.services)), [] as [&str; 0]);
        }
        // The container itself: here its link alone goes.
        sh("ip -n a link set v-src netns b; ip -n b link set v-src master nat0 up");
        let told = on("b", || {
            net::announce_own(&address::at_target(&wanted.services))
        });
        assert_eq!(told, [] as [&str; 0]);
        assert_eq!(
            sh(&format!(
                "ip -n peer neigh show {SERVICE} | grep -o 'lladdr [^ ]*'"
            ))
            .trim(),
            mac_of("b")
        );
        sh("ip -n src neigh flush dev eth0");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        echoed(&mut stream).unwrap();
        assert_eq!(sh("ip -n a -o addr show to 192.0.2.50"), "");
        let there = sh("ip -n b -o addr show to 192.0.2.50");
        assert!(
            there.contains("192.0.2.50/24 brd 192.0.2.255") && there.contains("br0:web"),
            "{there}"
        );
        let nothing = on("a", conntrack::dump).unwrap();
        assert!(
            !nothing.iter().any(|c| c.original == tracked[0].original),
            "{nothing:#?}"
        );
    });
}

/// An IPv6 address is on its device before the kernel takes what comes for it.
#[test]
fn what_comes_for_an_address_that_was_just_put_on_is_taken() {
    world(|| {
        behind_a();
        let mut service = behind().services.remove(0);
        service.address.local = Prefix {
            address: "2001:db8::50".parse().unwrap(),
            len: 128,
        };
        (service.address.broadcast, service.address.label) = (None, None);
        let services = [service];
        for _ in 0..20 {
            let (failed, came) = on("b", || {
                let failed = address::put(&services);
                let own = UdpSocket::bind("[2001:db8::50]:7777").unwrap();
                own.set_read_timeout(Some(Duration::from_millis(200)))
                    .unwrap();
                let sent = own.send_to(b"x", "[2001:db8::50]:7777");
                (failed, sent.and_then(|_| own.recv(&mut [0])))
            });
            assert_eq!(failed, [] as [&str; 0]);
            assert!(came.is_ok(), "{came:?}");
            let taken = services.clone().map(|mut service| {
                service.address.link.clone_from(&service.device);
                service
            });
            assert_eq!(on("b", || address::take(&taken)), [] as [&str; 0]);
        }
    });
}

#[test]
fn the_container_s_neighbour_entry_stands_while_nobody_answers() {
    world(|| {
        behind_a();
        let wanted = behind();
        let network = snapshot();
        let entry = || sh("ip -n a neigh show 198.51.100.10 dev nat0 | sed 's/ *$//'");
        on("a", || address::pin(&wanted, &network)).unwrap();
        assert_eq!(
            entry().trim(),
            "198.51.100.10 lladdr 02:00:00:00:00:10 PERMANENT"
        );
        on("a", || address::unpin(&wanted, &network)).unwrap();
        assert_eq!(
            entry().trim(),
            "198.51.100.10 lladdr 02:00:00:00:00:10 STALE"
        );
        connect();
    });
}

#[test]
fn a_tracked_connection_is_made_lenient_and_strict_again() {
    world(|| {
        behind_a();
        let mut stream = connect();
        let (wanted, network) = (behind(), snapshot());
        let tracked = || on("a", || here::moving(&wanted, &network)).unwrap();
        let flags = || tracked()[0].tcp.unwrap().flags;
        let before = tracked();
        const BE_LIBERAL: u8 = 8;
        assert_eq!((flags().0 | flags().1) & BE_LIBERAL, 0);
        for _ in 0..2 {
            let failed = on("a", || conntrack::set_lenient(&before, true)).unwrap();
            assert_eq!(failed, [] as [&str; 0]);
            assert_eq!(flags().0 & flags().1 & BE_LIBERAL, BE_LIBERAL);
        }
        // What was so before stays so.
        let lenient = tracked();
        on("a", || conntrack::set_lenient(&lenient, false)).unwrap();
        assert_eq!(flags().0 & flags().1 & BE_LIBERAL, BE_LIBERAL);
        on("a", || conntrack::set_lenient(&before, false)).unwrap();
        assert_eq!(flags(), before[0].tcp.unwrap().flags);
        echoed(&mut stream).unwrap();
        on("a", || conntrack::forget(&before)).unwrap();
        let failed = on("a", || conntrack::set_lenient(&before, true)).unwrap();
        assert_eq!(failed, [] as [&str; 0], "it is gone");
        assert_eq!(tracked(), []);
    });
}

#[test]
fn what_masquerade_has_put_behind_the_address_goes_along() {
    world(|| {
        behind_a();
        // The first address of the device, which is the one that masquerade takes.
        on("a", || {
            sh("nft flush chain ip nat post; nft add rule ip nat post ip saddr 198.51.100.0/24 oifname br0 masquerade
                echo 1 >/proc/sys/net/ipv4/conf/br0/promote_secondaries
                ip addr del 192.0.2.1/24 dev br0; ip addr add 192.0.2.1/24 dev br0")
        });
        let listener = on("peer", || TcpListener::bind("192.0.2.100:443").unwrap());
        let mut called = on("src", || TcpStream::connect("192.0.2.100:443").unwrap());
        let (mut peer, from) = listener.accept().unwrap();
        assert_eq!(from.ip().to_string(), SERVICE);
        let (wanted, network) = (behind(), snapshot());
        assert_eq!(against(), [] as [&str; 0]);
        let tracked = on("a", || here::moving(&wanted, &network)).unwrap();
        assert_eq!(tracked.len(), 1, "{tracked:#?}");

        let made = on("b", || conntrack::insert(&tracked, Present::Replace)).unwrap();
        assert_eq!(made, [] as [&str; 0]);
        assert_eq!(on("a", || address::take(&wanted.services)), [] as [&str; 0]);
        // The kernel has forgotten it with the address: nothing is left to be forgotten, and that is no error.
        assert_eq!(
            on("a", || conntrack::forget(&tracked)).unwrap(),
            [] as [&str; 0]
        );
        on("b", || address::put(&wanted.services));
        sh(
            "ip -n a link set v-src netns b; ip -n b link set v-src master nat0 up; ip -n src neigh flush dev eth0",
        );
        on("b", || {
            net::announce_own(&address::at_target(&wanted.services))
        });
        for stream in [&mut called, &mut peer] {
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
        }
        called.write_all(b"x").unwrap();
        peer.read_exact(&mut [0]).unwrap();
        peer.write_all(b"y").unwrap();
        called.read_exact(&mut [0]).unwrap();
    });
}

/// The container knew the old host by its MAC, and believes what it knows until it has asked in vain.
#[test]
fn the_container_s_gateway_is_the_new_host() {
    world(|| {
        behind_a();
        for host in ["a", "b"] {
            sh(&format!(
                "ip -n {host} -6 addr add fd00:51::1/64 dev nat0 nodad; ip netns exec {host} sh -c 'echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'"
            ));
        }
        sh(
            "ip -n src -6 addr add fd00:51::10/64 dev eth0 nodad; ip -n src -6 route add default via fd00:51::1",
        );
        let gateways = ["198.51.100.1", "fd00:51::1"];
        let met = || {
            on("src", || gateways.map(reach));
        };
        met();
        let (wanted, mut network) = (behind(), snapshot());
        assert_eq!(wanted.subnets[0].gateways.len(), 2, "{wanted:#?}");
        assert_eq!(at_b(&wanted).objections, [] as [&str; 0]);
        sh("ip -n a link del v-src");
        there::forget_source(&wanted, &mut network);
        let attach = [Attach {
            link: "eth0".into(),
            parent: "nat0".into(),
        }];
        let made = on("b", || {
            net::create(&ns("dst"), &network, &attach, MOVE, &mut |_| Ok(()))
        });
        assert_eq!(made.unwrap().warnings, [] as [&str; 0]);
        on("b", || there::lead_here(&wanted, &ns("dst"))).unwrap();
        on("dst", || gateways.map(reach));
    });
}

#[test]
fn a_gateway_that_the_container_has_for_good_is_found() {
    world(|| {
        behind_a();
        let wanted = behind();
        let bridge = |host: &str| {
            sh(&format!(
                "ip netns exec {host} cat /sys/class/net/nat0/address"
            ))
        };
        sh(&format!(
            "ip -n src neigh replace 198.51.100.1 lladdr {} nud permanent dev eth0",
            bridge("a").trim()
        ));
        only(
            &at_b(&wanted).objections,
            &[
                "198.51.100.1, its gateway by link eth0, permanently at",
                bridge("a").trim(),
            ],
        );
        sh(&format!(
            "ip -n b link set nat0 address {}",
            bridge("a").trim()
        ));
        assert_eq!(at_b(&wanted).objections, [] as [&str; 0]);
    });
}
