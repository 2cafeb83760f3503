//! Links inside the namespace, and what bridges and neighbours among them know.
use netmig_core::image::v1::net::{Link, LinkKind, Network};
use netmig_user::net;

use crate::{
    round_trip::same,
    world::{MOVE, attach, container, made_at_b, ns, on, reach, segment, sh, world},
};

/// What a container that has networks of its own has inside. Kinds that this kernel lacks are left out.
const INSIDE: &str = "
    ip link add inner0 address 02:00:00:00:02:01 type veth peer name inner1 address 02:00:00:00:02:02
    ip link set inner1 mtu 1300
    ip link add br7 address 02:00:00:00:02:07 type bridge ageing_time 4200 stp_state 1 forward_delay 400 priority 4096 mcast_snooping 0
    ip link set inner1 master br7 up; ip link set inner0 up; ip link set br7 up
    ip addr add 10.7.0.1/24 dev br7; ip addr add 10.7.0.2/24 dev inner0
    ip route add 10.70.0.0/16 via 10.7.0.9 dev br7
    ip link add vx0 address 02:00:00:00:02:09 type vxlan id 77 remote 192.0.2.99 dstport 4789 dev eth0 ttl 9 nolearning
    ip link set vx0 master br7 up
    ip link add vx1 type vxlan id 78 local 192.0.2.10 dstport 4790 && ip link set vx1 mtu 1234
    ip link add tags type ifb 2>/dev/null && ip link set tags up
    ip link add link eth0 name eth0.5 type vlan id 5 egress-qos-map 1:2 2>/dev/null && ip link set eth0.5 up && ip addr add 10.5.0.1/24 dev eth0.5
    ip link add link eth0.5 name q type vlan id 6 2>/dev/null || true
    ip tuntap add dev tap7 mode tap user 1000 group 1001 multi_queue vnet_hdr
    ip link set tap7 address 02:00:00:00:02:0b mtu 1400 master br7 up
    ip tuntap add dev tun7 mode tun pi; ip link set tun7 txqueuelen 77 up; ip addr add 10.8.0.1 peer 10.8.0.2/32 dev tun7
    ip -6 addr add 2001:db8:8::1/64 dev tun7 nodad; ip route add 10.80.0.0/16 dev tun7
    ip link add d0 address 02:00:00:00:02:0a type dummy 2>/dev/null && ip link set d0 up
    ip link add red type vrf table 99 2>/dev/null && ip link set red up
    true";

#[test]
fn links_inside_the_namespace() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || sh(INSIDE));
        let image = net::snapshot(&ns("src")).unwrap();
        let inside = |l: &Link| matches!(l.kind, LinkKind::Pair { .. } | LinkKind::Virtual { .. });
        assert!(
            image.links.iter().filter(|l| inside(l)).count() >= 5,
            "{:#?}",
            image.links
        );
        assert_eq!(image.not_carried, [] as [&str; 0]);
        let created = made_at_b(&image);
        same(&image, &net::snapshot(&ns("dst")).unwrap());
        let shown = |name: &str| {
            on(name, || {
                sh("ip -d -o link show master br7 | sed 's/@.*:/:/' | cut -d' ' -f2 | sort")
            })
        };
        assert_eq!(shown("dst"), shown("src"));
        let left = on("b", || net::remove(&created));
        assert!(left.is_empty() && !ns("dst").exists(), "{left:?}");
    });
}

#[test]
fn links_that_lie_on_what_is_not_there_are_refused() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || sh(INSIDE));
        let image = net::snapshot(&ns("src")).unwrap();
        let refused = |change: &dyn Fn(&mut Network)| {
            let mut image = image.clone();
            change(&mut image);
            let made = on("b", || {
                net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
            });
            assert!(!ns("dst").exists());
            made.unwrap_err().to_string()
        };
        let without = refused(&|n| n.links.retain(|l| l.name != "br7"));
        assert!(
            without.contains("link inner1 needs link br7, which the container does not have"),
            "{without}"
        );
        let unknown = refused(&|n| {
            for link in &mut n.links {
                if let LinkKind::Virtual { kind, .. } = &mut link.kind {
                    *kind = "nlmon".to_owned();
                }
            }
        });
        assert!(
            unknown.contains("link br7 is a nlmon device, which cannot be made here"),
            "{unknown}"
        );
        let circle = refused(&|n| {
            for link in &mut n.links {
                let own = link.name.clone();
                if let LinkKind::Virtual { parent, .. } = &mut link.kind {
                    *parent = Some(own);
                }
            }
        });
        assert!(circle.contains("lie on each other in a circle"), "{circle}");
    });
}

#[test]
fn what_a_bridge_inside_was_told() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            sh("ip link add br7 type bridge mcast_snooping 0; ip link set br7 up
                ip link add p1 type veth peer name q1; ip link set p1 master br7 up; ip link set q1 up
                ip link add vx0 type vxlan id 77 remote 192.0.2.99 dstport 4789 dev eth0; ip link set vx0 master br7 up
                bridge link set dev p1 learning off flood off hairpin on isolated on neigh_suppress on cost 77 priority 9
                bridge fdb add 02:00:00:00:07:01 dev p1 master static
                bridge fdb add 02:00:00:00:07:02 dev p1 master local
                bridge fdb add 02:00:00:00:07:03 dev br7 self
                bridge fdb add 02:00:00:00:07:04 dev vx0 self dst 192.0.2.98 port 4444 vni 88 via eth0
                bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.97
                bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.96
                bridge vlan add dev p1 vid 7 pvid untagged 2>/dev/null || true")
        });
        let image = net::snapshot(&ns("src")).unwrap();
        assert_eq!(image.not_carried, [] as [&str; 0]);
        assert_eq!(image.forwarding.len(), 7, "{:#?}", image.forwarding);
        made_at_b(&image);
        same(&image, &net::snapshot(&ns("dst")).unwrap());
        let shown = |name: &str| {
            on(name, || {
                sh(
                    "bridge -d link show dev p1 | sed 's/@[^:]*//'; bridge fdb show | grep -E '^(02:00:00:00:07|00:00)' | sort; bridge vlan show",
                )
            })
        };
        assert!(shown("src").contains("isolated on"), "{}", shown("src"));
        assert_eq!(shown("dst"), shown("src"));
        let mut without = image.clone();
        without.links.retain(|l| l.name != "vx0");
        let against = on("b", || {
            net::objections(&ns("other"), &without, &attach(), MOVE)
        })
        .unwrap();
        assert!(
            against.objections.iter().any(|o| o == "forwarding entry 02:00:00:00:07:04 needs link vx0, which the container does not have"),
            "{against:?}"
        );
    });
}

#[test]
fn neighbours_that_were_learnt_are_a_hint() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        container("a", "peer", "02:00:00:00:00:11");
        on("peer", || {
            sh("ip addr add 192.0.2.11/24 dev eth0; ip addr add 2001:db8::11/64 dev eth0 nodad")
        });
        on("src", || {
            sh(
                "ip addr add 192.0.2.10/24 dev eth0; ip addr add 2001:db8::10/64 dev eth0 nodad
                bash -c 'echo >/dev/udp/192.0.2.99/9'",
            );
            reach("192.0.2.11");
            reach("2001:db8::11");
        });
        let image = net::snapshot(&ns("src")).unwrap();
        let learnt: Vec<_> = image.learnt.iter().map(|n| n.address.to_string()).collect();
        assert!(
            learnt.contains(&"192.0.2.11".to_owned())
                && learnt.contains(&"2001:db8::11".to_owned()),
            "{learnt:?}"
        );
        assert!(
            !learnt.contains(&"192.0.2.99".to_owned()),
            "nobody has answered there: {learnt:?}"
        );
        sh("ip -n a link del v-src");
        made_at_b(&image);
        let known = on("dst", || {
            sh("ip neigh show 192.0.2.11; ip neigh show 2001:db8::11")
        });
        assert_eq!(
            known.matches("lladdr 02:00:00:00:00:11 STALE").count(),
            2,
            "{known}"
        );
        // The first packet asks nobody.
        on("peer", || {
            sh(
                "nft 'table netdev t { chain c { type filter hook ingress device eth0 priority 0; arp operation request counter; icmpv6 type nd-neighbor-solicit ip6 daddr ff02::1:ff00:11 counter; }; }'",
            )
        });
        on("dst", || {
            reach("192.0.2.11");
            reach("2001:db8::11");
        });
        let asked = on("peer", || sh("nft list ruleset"));
        assert_eq!(asked.matches("counter packets 0 ").count(), 2, "{asked}");
        // A hint is no difference.
        assert!(
            net::diff::diff(&image, &net::snapshot(&ns("dst")).unwrap(), false)
                .unwrap()
                .is_empty()
        );
    });
}
