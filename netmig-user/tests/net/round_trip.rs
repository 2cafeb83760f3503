//! What a snapshot says of a container is what a snapshot says of its copy.
use netmig_core::{
    image::v1::net::{Link, LinkKind, Network, Sysctl},
    proto::Attach,
};
use netmig_user::net;

use crate::world::{MOVE, attach, container, made_at_b, ns, on, segment, settled, sh, world};

/// Everything of the image that this kernel has.
pub const FIXTURE: &str = "
    ip link set lo alias loop
    ip addr add 203.0.113.77/32 dev lo
    ip link set eth0 mtu 1400 txqueuelen 555 alias 'front end' multicast on allmulticast on group 7
    ip link property add dev eth0 altname enp-front altname a-very-long-alternative-name-of-eth0
    ip addr add 192.0.2.10/24 brd 192.0.2.255 dev eth0
    ip addr add 192.0.2.11/24 dev eth0 label eth0:svc
    ip addr add 198.51.100.10/25 brd + dev eth0 noprefixroute
    ip addr add 198.51.100.200/32 dev eth0 scope link valid_lft 5000 preferred_lft 4000
    ip addr add 203.0.113.1 peer 203.0.113.2/32 dev eth0 metric 42
    ip -6 addr add 2001:db8::10/64 dev eth0 nodad
    ip -6 addr add 2001:db8::11/64 dev eth0 nodad preferred_lft 0
    ip -6 addr add 2001:db8:1::10/128 dev eth0 nodad valid_lft 3000 preferred_lft 2000 noprefixroute
    ip -6 addr add 2001:db8:2::1 peer 2001:db8:2::2/127 dev eth0 nodad
    ip route add default via 192.0.2.1 dev eth0 proto static metric 100 src 192.0.2.11
    ip route add 198.51.100.128/25 dev eth0 scope link mtu lock 1300 advmss 1200 initcwnd 20 congctl reno
    ip route add 203.0.113.64/26 table 100 nexthop via 192.0.2.2 dev eth0 weight 3 nexthop via 192.0.2.3 dev eth0
    ip route add default via 10.0.0.1 dev eth0 onlink table 200 proto 99
    ip route add blackhole 203.0.113.128/26 metric 5
    ip route add unreachable 203.0.113.192/26 table 100
    ip route add local 203.0.113.240/28 dev lo table local
    ip route add 198.51.100.0/26 via inet6 2001:db8::1 dev eth0
    ip route del 203.0.113.2 dev eth0
    ip -6 route add default via 2001:db8::1 dev eth0 metric 50 pref high
    ip -6 route add 2001:db8:9::/48 via fe80::1 dev eth0 expires 900
    ip -6 route add 2001:db8:a::/48 nexthop via 2001:db8::2 dev eth0 nexthop via 2001:db8::3 dev eth0 weight 2
    ip -6 route add prohibit 2001:db8:b::/48
    ip -6 route add 2001:db8:c::/48 from 2001:db8::/64 dev eth0 table 100
    ip nexthop add id 11 via 192.0.2.4 dev eth0 proto 99
    ip nexthop add id 12 via 192.0.2.5 dev eth0
    ip nexthop add id 13 via 10.9.0.1 dev eth0 onlink
    ip nexthop add id 14 blackhole
    ip nexthop add id 15 dev eth0
    ip nexthop add id 5 group 11,3/12
    ip nexthop add id 6 group 12/13 type resilient buckets 32 idle_timer 60 unbalanced_timer 300
    ip -6 nexthop add id 16 via fe80::9 dev eth0
    ip -6 nexthop add id 17 via 2001:db8::5 dev eth0
    ip nexthop add id 7 group 16/17
    ip route add 198.18.0.0/16 nhid 5 metric 7
    ip route add 198.19.0.0/16 nhid 6 table 100
    ip route add 198.19.1.0/24 nhid 11
    ip route add 198.19.2.0/24 nhid 14
    ip route add 198.19.3.0/24 nhid 15
    ip -6 route add 2001:db8:d::/48 nhid 7
    ip -6 route add 2001:db8:e::/48 nhid 17 metric 3
    ip rule add priority 50 from 192.0.2.11 lookup 100
    ip rule add priority 50 from 192.0.2.11 lookup 200
    ip rule add priority 60 not fwmark 0x10/0xff iif eth0 table 200 suppress_prefixlength 0 protocol 4
    ip rule add priority 70 uidrange 100-200 ipproto tcp sport 1000-2000 dport 443 goto 90
    ip rule add priority 90 oif eth0 nop
    ip rule add priority 95 dsfield 0x10 sport 77 table 100
    ip -6 rule add priority 96 dport 443 table 100
    ip rule del priority 32767
    ip -6 rule add priority 10 to 2001:db8:9::/48 blackhole
    ip neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
    ip -6 neigh add 2001:db8::77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent router
    ip neigh add proxy 192.0.2.99 dev eth0
    echo 1 > /proc/sys/net/ipv4/ip_forward
    echo 2 > /proc/sys/net/ipv4/conf/default/rp_filter
    echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_ignore
    echo 1 > /proc/sys/net/ipv4/conf/lo/arp_filter
    echo '4096 16384 999999' > /proc/sys/net/ipv4/tcp_wmem
    echo 12345 > /proc/sys/net/ipv4/neigh/eth0/base_reachable_time_ms
    echo 2 > /proc/sys/net/ipv6/conf/eth0/accept_ra
    echo 0 > /proc/sys/net/ipv6/conf/all/accept_redirects
    echo 2 > /proc/sys/net/ipv6/conf/eth0/accept_dad
    echo '1024 2048' > /proc/sys/net/ipv4/ip_local_port_range";

#[test]
fn a_container_with_everything() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || sh(FIXTURE));
        let image = net::snapshot(&ns("src")).unwrap();
        assert!(
            image.routes.len() > 20
                && image.nexthops.len() == 10
                && image.rules.len() > 8
                && image.sysctls.iter().filter(|s| !s.inherited).count() > 10,
            "{image:#?}"
        );
        made_at_b(&image);
        same(&image, &net::snapshot(&ns("dst")).unwrap());
    });
}

#[test]
fn temporary_addresses_are_named_and_stay_the_same_ones() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            sh("echo 2 >/proc/sys/net/ipv6/conf/eth0/use_tempaddr
                ip -6 addr add 2001:db8:5::10/64 dev eth0 mngtmpaddr nodad valid_lft 5000 preferred_lft 4000
                for n in $(seq 100); do ip -6 addr show temporary | grep -q . && break; sleep 0.02; done")
        });
        settled("src");
        let image = net::snapshot(&ns("src")).unwrap();
        let temporary = sh("ip -n src -6 -o addr show temporary | awk '{print $4}'");
        let of_prefix = |image: &Network| {
            let mut all: Vec<_> = image
                .addresses_of("eth0")
                .map(|a| a.local.to_string())
                .collect();
            all.retain(|a| a.starts_with("2001:db8:5:"));
            all.sort();
            all
        };
        let address = temporary.trim().trim_end_matches("/64");
        assert_eq!(
            image.not_carried,
            [format!(
                "address {address} of link eth0 is temporary (RFC 8981): it keeps its lifetimes and loses its renewal"
            )]
        );
        assert_eq!(of_prefix(&image).len(), 2, "{image:#?}");
        made_at_b(&image);
        let copy = net::snapshot(&ns("dst")).unwrap();
        assert_eq!(of_prefix(&copy), of_prefix(&image));
    });
}

#[test]
fn a_sysctl_that_the_target_lacks_is_named_before_anything_is_made() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        let mut image = net::snapshot(&ns("src")).unwrap();
        let mut add = |path: &str, inherited| {
            image.sysctls.push(Sysctl {
                path: path.into(),
                value: "7".into(),
                inherited,
            });
        };
        add("ipv4/tcp_of_another_kernel", false);
        add("ipv4/conf/all/of_another_kernel", true);
        let named = [
            "sysctl net/ipv4/tcp_of_another_kernel cannot be \"7\" on this host: it, or what it names, does not exist",
            "sysctls that the source's kernel has and this one lacks, each at its default there: net/ipv4/conf/all/of_another_kernel",
        ];
        let check = on("b", || net::objections(&ns("dst"), &image, &attach(), MOVE)).unwrap();
        assert!(check.objections.is_empty());
        assert_eq!(check.warnings, named);
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        assert_eq!(created.warnings, named, "once");
    });
}

#[test]
fn a_macvlan() {
    world(|| {
        segment(&["a", "b"]);
        sh("ip netns add src; ip -n a link add mv0 link br0 address 02:00:00:00:00:20 netns src type macvlan mode bridge
            ip -n src link set lo up; ip -n src link set mv0 name eth0 up; ip -n src addr add 192.0.2.20/24 dev eth0
            ip -n src -6 addr add 2001:db8::20/64 dev eth0 nodad");
        let image = net::snapshot(&ns("src")).unwrap();
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        assert!(
            matches!(&created.links[1].kind, net::LinkKind::Macvlan { parent: Some(p) } if p == "br0"),
            "{:?}",
            created.links
        );
        same(&image, &net::snapshot(&ns("dst")).unwrap());
    });
}

#[test]
fn what_takes_all_that_a_device_receives_is_found() {
    world(|| {
        segment(&["b"]);
        sh(
            "ip netns add other; ip -n b link add mv0 link br0 netns other type macvlan mode bridge",
        );
        let mut image = Network::default();
        let against = |image: &Network, parent: &str| {
            let attach = [Attach {
                link: "eth0".into(),
                parent: parent.into(),
            }];
            on("b", || net::objections(&ns("dst"), image, &attach, MOVE))
                .unwrap()
                .objections
        };
        for (kind, parent, words) in [
            (
                LinkKind::Ipvlan { mode: 0, flags: 0 },
                "br0",
                Some("link eth0 is a ipvlan, and br0 carries a macvlan (mv0) here"),
            ),
            (LinkKind::Macvlan { mode: 4, flags: 0 }, "br0", None),
            (
                LinkKind::Macvlan { mode: 4, flags: 0 },
                "up0",
                Some("link eth0: up0 is a port of another device here"),
            ),
        ] {
            image.links = vec![Link::new("eth0", 2, kind)];
            let found = against(&image, parent);
            assert_eq!(found.len(), usize::from(words.is_some()), "{found:?}");
            assert!(
                found
                    .iter()
                    .zip(words)
                    .all(|(found, words)| found.starts_with(words)),
                "{found:?}"
            );
        }
    });
}

#[test]
fn into_a_namespace_that_is_there() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || sh(FIXTURE));
        sh("ip netns add dst");
        // As on a host with other settings, which a fresh namespace takes over.
        on("dst", || {
            sh("cd /proc/sys/net/ipv4; echo 1 > conf/default/rp_filter; echo 2 > conf/all/arp_announce; echo 1 > conf/lo/arp_notify
                echo '4096 5000 6000' > tcp_rmem; echo 77 > neigh/lo/unres_qlen; echo 3 > ../ipv6/conf/default/dad_transmits")
        });
        let image = net::snapshot(&ns("src")).unwrap();
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        assert!(!created.made_netns);
        same(&image, &net::snapshot(&ns("dst")).unwrap());
    });
}

#[test]
fn the_image_travels() {
    world(|| {
        segment(&["a"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || sh(FIXTURE));
        let image = net::snapshot(&ns("src")).unwrap();
        let packed = postcard::to_stdvec(&image).unwrap();
        assert_eq!(postcard::from_bytes::<Network>(&packed).unwrap(), image);
        let text = serde_json::to_string(&image).unwrap();
        assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), image);
    });
}

/// Compares part by part, so that a failure is readable.
pub fn same(expected: &Network, found: &Network) {
    let plain = |network: &Network| Network {
        filters: net::filter::settled(&network.filters),
        ..network.clone().timeless()
    };
    let (expected, found) = (plain(expected), plain(found));
    assert_eq!(expected.links, found.links);
    assert_eq!(expected.addresses, found.addresses);
    assert_eq!(expected.nexthops, found.nexthops);
    assert_eq!(expected.routes, found.routes);
    assert_eq!(expected.rules, found.rules);
    assert_eq!(expected.neighbours, found.neighbours);
    assert_eq!(expected.forwarding, found.forwarding);
    assert_eq!(expected.sysctls, found.sysctls);
    assert_eq!(expected.shaping, found.shaping);
    assert_eq!(expected.filters, found.filters);
    assert_eq!(expected, found);
}
