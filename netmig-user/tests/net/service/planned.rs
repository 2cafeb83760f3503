//! What a plan says of service addresses.
use std::net::IpAddr;

use netmig_core::service::{Behind, Service};
use netmig_user::net;

use super::{SERVICE, against, at_b, behind, behind_a, connect, look, only};
use crate::world::{container, ns, on, sh, world};

#[test]
fn without_a_service_address_a_container_behind_its_host_stays() {
    world(|| {
        behind_a();
        let stream = connect();
        let found = look(&[]);
        assert_eq!(found.behind.unwrap().services, []);
        only(
            &found.refusals,
            &[
                "link eth0 is on bridge nat0",
                "gateway (198.51.100.1)",
                "192.0.2.50: 1",
                "--service-address",
            ],
        );
        drop(stream);
        sh("ip -n a link set up0 nomaster; ip -n a link set up0 master nat0");
        only(
            &look(&[SERVICE]).refusals,
            &["no link of the container is on a bridge behind this host"],
        );
        let refusals = on("a", || net::topology(&ns("src"))).unwrap().refusals;
        only(&refusals, &["reaches other networks through 198.51.100.1"]);
    });
}

#[test]
fn a_service_address_and_what_it_needs_at_the_target() {
    world(|| {
        behind_a();
        let wanted = behind();
        assert!(wanted.hides("eth0") && wanted.addresses() == [SERVICE.parse::<IpAddr>().unwrap()]);
        assert_eq!(wanted.services[0].address.link, "br0");
        assert_eq!(wanted.subnets[0].gateways[0].to_string(), "198.51.100.1/24");
        assert_eq!(wanted.rules.len(), 2, "{:#?}", wanted.rules);
        assert_eq!(against(), [] as [&str; 0]);
        let found = at_b(&wanted);
        assert_eq!(
            (found.objections, found.warnings, found.shared),
            (vec![], vec![], vec![])
        );

        // What b lacks is said, each with what to do.
        on("b", || sh("nft flush chain ip nat pre"));
        only(
            &at_b(&wanted).warnings,
            &[
                "`ip daddr 192.0.2.50 tcp dport 80 counter packets 0 bytes 0 dnat to 198.51.100.10:8080`",
                "add it",
            ],
        );
        on("b", || {
            sh(
                "nft 'table ip f { chain c { type filter hook forward priority 0; policy drop; }; }'",
            )
        });
        assert!(at_b(&wanted).warnings[1].contains("drops what it forwards"));
        on("b", || sh("echo 0 >/proc/sys/net/ipv4/ip_forward"));
        only(
            &at_b(&wanted).objections,
            &["does not forward IPv4", "net.ipv4.ip_forward to 1"],
        );
        on("b", || {
            sh("echo 1 >/proc/sys/net/ipv4/ip_forward; ip addr del 198.51.100.1/24 dev nat0")
        });
        only(
            &at_b(&wanted).objections,
            &["198.51.100.1/24", "ip addr add 198.51.100.1/24 dev nat0"],
        );
        on("b", || sh("ip addr add 198.51.100.1/25 dev nat0"));
        only(
            &at_b(&wanted).objections,
            &["it has to be 198.51.100.1/24 on nat0"],
        );
        on("b", || {
            sh("ip addr del 198.51.100.1/25 dev nat0; ip addr add 198.51.100.1/24 dev nat0")
        });

        // Another container of b has the address.
        container("b", "thief", "02:00:00:00:00:66");
        sh("ip -n b link set v-thief master nat0; ip -n thief addr add 198.51.100.10/24 dev eth0");
        only(
            &at_b(&wanted).objections,
            &[
                "198.51.100.10 of the container is in use on nat0",
                "02:00:00:00:00:66",
            ],
        );
        sh("ip -n b link del v-thief; ip netns del thief");

        // Both hosts have it.
        sh(&format!("ip -n b addr add {SERVICE}/32 dev lo"));
        let found = at_b(&wanted);
        assert_eq!(
            (found.objections, found.shared),
            (vec![], wanted.addresses())
        );
        assert_eq!(wanted.moving(&wanted.addresses()), []);
        sh(&format!(
            "ip -n b addr del {SERVICE}/32 dev lo; ip -n b addr add {SERVICE}/24 dev br0"
        ));
        only(
            &at_b(&wanted).objections,
            &["the source answers for it on the same segment"],
        );
    });
}

#[test]
fn a_service_address_is_the_source_s_and_on_the_target_s_segment() {
    world(|| {
        behind_a();
        let refused = |asked: &[&str], words: &[&str]| only(&look(asked).refusals, words);
        refused(
            &["192.0.2.51"],
            &[
                "192.0.2.51 is no address of this host",
                "192.0.2.1/24 on br0, 192.0.2.50/24 on br0",
            ],
        );
        refused(
            &["198.51.100.1"],
            &["198.51.100.1 is this host's address on nat0"],
        );
        refused(&[SERVICE, SERVICE], &["names 192.0.2.50 twice"]);

        let wanted = behind();
        let on_device = |name: &str| Behind {
            services: vec![Service {
                device: name.into(),
                ..wanted.services[0].clone()
            }],
            ..wanted.clone()
        };
        only(
            &at_b(&on_device("br7")).objections,
            &["no Ethernet device br7 here"],
        );
        sh(
            "ip -n b link add d0 type veth peer name d1; ip -n b link add br1 type bridge; ip -n b link set br1 up",
        );
        only(&at_b(&on_device("d0")).objections, &["d0, which is down"]);
        only(
            &at_b(&on_device("br1")).objections,
            &["nobody answers for service address 192.0.2.50/24 on br1"],
        );

        // A third host has it.
        sh(&format!(
            "ip -n a addr del {SERVICE}/24 dev br0; ip -n peer addr add {SERVICE}/24 dev br0"
        ));
        let objections = at_b(&wanted).objections;
        only(
            &objections,
            &["192.0.2.50/24 is in use by", "not the source's br0"],
        );
    });
}

#[test]
fn what_hangs_on_the_address_is_found() {
    world(|| {
        behind_a();
        let of = |words: &[&str]| only(&against(), words);
        on("a", || {
            sh("ip route add 203.0.113.0/24 via 192.0.2.100 src 192.0.2.50")
        });
        of(&["route 203.0.113.0/24 via 192.0.2.100", "as its source"]);
        on("a", || {
            sh(
                "echo 1 >/proc/sys/net/ipv4/conf/br0/promote_secondaries; ip route del 203.0.113.0/24; ip addr del 192.0.2.1/24 dev br0; ip route add default via 192.0.2.100",
            )
        });
        of(&[
            "route 0.0.0.0/0 via 192.0.2.100",
            "give br0 another address",
        ]);
        on("a", || {
            sh(
                "ip route del default; ip addr add 192.0.2.1/24 dev br0; echo 0 >/proc/sys/net/ipv4/conf/br0/promote_secondaries; echo 0 >/proc/sys/net/ipv4/conf/all/promote_secondaries",
            )
        });
        of(&["primary one of its subnet", "promote_secondaries to 1"]);
        on("a", || {
            sh("echo 1 >/proc/sys/net/ipv4/conf/br0/promote_secondaries")
        });
        assert_eq!(against(), [] as [&str; 0]);
        on("a", || {
            sh("ip addr change 192.0.2.50/24 dev br0 valid_lft 600 preferred_lft 600")
        });
        of(&["has a lifetime"]);
        on("a", || {
            sh("ip addr del 192.0.2.50/24 dev br0; ip addr add 192.0.2.50/32 dev lo")
        });
        of(&["is on lo, where no neighbour asks for it"]);
        on("a", || {
            sh("ip addr del 192.0.2.50/32 dev lo; ip addr add 192.0.2.50/24 dev br0")
        });

        // Others of the host are known by it as well.
        let stream = connect();
        assert_eq!(against(), [] as [&str; 0]);
        on("a", || {
            sh(
                "conntrack -I -p udp -s 192.0.2.9 -d 192.0.2.50 --sport 9 --dport 53 -t 300 2>/dev/null",
            )
        });
        let found = look(&[SERVICE]).against;
        assert!(found.len() == 1 && found[0].resets, "{found:?}");
        only(
            &[found[0].reason.clone()],
            &[
                "used by others here too: 1 tracked",
                "192.0.2.9 port 9 -> 192.0.2.50 port 53",
            ],
        );
        drop(stream);
    });
}
