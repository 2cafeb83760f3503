//! What a snapshot says of a container is what a snapshot says of its copy.
use netmig_core::image::v1::net::Network;
use netmig_user::net;

use crate::world::{MOVE, attach, container, ns, on, segment, sh, world};

/// Everything of the image that this kernel has.
const FIXTURE: &str = "
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
    ip rule add priority 50 from 192.0.2.11 lookup 100
    ip rule add priority 50 from 192.0.2.11 lookup 200
    ip rule add priority 60 not fwmark 0x10/0xff iif eth0 table 200 suppress_prefixlength 0 protocol 4
    ip rule add priority 70 uidrange 100-200 ipproto tcp sport 1000-2000 dport 443 goto 90
    ip rule add priority 90 oif eth0 nop
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
            image.routes.len() > 15
                && image.rules.len() > 8
                && image.sysctls.iter().filter(|s| !s.inherited).count() > 10,
            "{image:#?}"
        );
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        assert_eq!(created.warnings, [] as [&str; 0]);
        same(&image, &net::snapshot(&ns("dst")).unwrap());
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
    let (expected, found) = (expected.clone().timeless(), found.clone().timeless());
    assert_eq!(expected.links, found.links);
    assert_eq!(expected.addresses, found.addresses);
    assert_eq!(expected.routes, found.routes);
    assert_eq!(expected.rules, found.rules);
    assert_eq!(expected.neighbours, found.neighbours);
    assert_eq!(expected.sysctls, found.sysctls);
    assert_eq!(expected, found);
}
