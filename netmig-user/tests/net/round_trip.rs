//! What a snapshot says of a container is what a snapshot says of its copy.
use netmig_core::image::v1::net::{Link, LinkKind, Network};
use netmig_user::net;

use crate::world::{MOVE, attach, container, ns, on, segment, sh, world};

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

/// Filters of every kind that this kernel has, by all tools.
pub const FILTERS: &str = r#"
    nft -f - <<'END'
table inet f {
    comment "what a container may have"
    set plain { type ipv4_addr; flags timeout; timeout 1h; elements = { 10.0.0.1 timeout 5m expires 4m, 10.0.0.9 } }
    set ranges { type ipv4_addr; flags interval; auto-merge; elements = { 10.1.0.0/16, 10.2.0.1-10.2.0.9 } }
    set counted { type ipv4_addr . inet_service; counter; elements = { 1.2.3.4 . 80 counter packets 5 bytes 7, 1.2.3.5 . 81 comment "hi" } }
    set learnt { type ipv4_addr; size 100; flags dynamic,timeout; timeout 5m; elements = { 1.2.3.4 limit rate 3/minute timeout 5m expires 4m } }
    set mixed { typeof ip saddr . tcp dport; flags interval; comment "net and ports"; elements = { 10.0.0.0/8 . 80-90 } }
    map verdicts { type inet_service : verdict; elements = { 80 : accept, 81 : drop } }
    map counters { type ipv4_addr : counter; elements = { 1.1.1.1 : "web" } }
    counter web { packets 12 bytes 3400 }
    quota monthly { over 25 mbytes used 3 kbytes }
    limit slow { rate 10/second burst 5 packets }
    chain in {
        type filter hook input priority filter; policy drop;
        ct state established,related counter packets 77 bytes 8888 accept
        iif "lo" accept
        iifname "eth*" tcp dport { 22, 80-90 } accept comment "ports; packets 1 bytes 2"
        ip saddr @plain counter name web drop
        tcp dport vmap @verdicts
        tcp dport vmap { 1 : accept, 2 : jump deep }
        limit name "slow" drop
        counter name ip saddr map @counters
        update @learnt { ip saddr limit rate 3/minute }
        icmpv6 type { nd-neighbor-solicit, nd-router-advert } accept
        log prefix "x } " group 3
        reject with tcp reset
        tcp flags & (syn | ack) == syn tcp option maxseg size set 1360
        quota over 5 mbytes used 100 bytes drop
        ct label set 3
        meta skuid 1000 accept
        @th,16,16 0x50 accept
        numgen inc mod 3 vmap { 0 : accept, 1 : drop, 2 : continue }
        meta hour "10:00"-"18:00" drop
    }
    chain deep {
        quota name "monthly" drop
        return
    }
}
table ip n {
    chain pre {
        type nat hook prerouting priority dstnat;
        tcp dport 80 redirect to :8080
        tcp dport 81 dnat to 10.0.0.1:99
    }
    chain post {
        type nat hook postrouting priority srcnat;
        oifname "eth0" masquerade persistent
        ip saddr 10.0.0.0/8 snat to 1.2.3.4-1.2.3.9
    }
}
table netdev d {
    chain ing {
        type filter hook ingress device "eth0" priority 0;
        ip saddr 9.9.9.9 counter packets 3 bytes 4 drop
    }
}
table inet sleeping {
    flags dormant
    chain c {
        type filter hook input priority 5;
    }
}
END
    ipset create bad hash:ip timeout 600 counters comment
    ipset add bad 198.51.100.66 timeout 300 packets 5 bytes 77 comment 'a bad one'
    ipset create nets hash:net,port family inet6
    ipset add nets 2001:db8:6::/48,tcp:80
    ip6tables-nft -A INPUT -p tcp -m comment --comment 'by iptables' -c 4 5 -j ACCEPT
    iptables-nft -t nat -A POSTROUTING -o eth0 -m conntrack --ctstate NEW -j MASQUERADE
    iptables-nft -N mine; iptables-nft -P FORWARD DROP; iptables-nft -A mine -m set --match-set bad src -j LOG --log-prefix 'bad: '
    iptables-nft -A FORWARD -j mine
    iptables-legacy -t mangle -A OUTPUT -p udp -j MARK --set-mark 5 -c 9 10
    ip6tables-legacy -L >/dev/null
"#;

#[test]
fn packet_filters() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || sh(FILTERS));
        let image = net::snapshot(&ns("src")).unwrap();
        let filters = &image.filters;
        let count = |n: usize| [filters.nft.len(), filters.xtables.len(), n];
        assert_eq!(filters.lost, [] as [&str; 0]);
        assert_eq!(count(filters.ipsets.len()), [4, 4, 4], "{filters:#?}");
        assert_eq!(
            on("b", || net::filter::rehearse(filters, &image.links)).unwrap(),
            [] as [&str; 0]
        );
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        assert_eq!(created.warnings, [] as [&str; 0]);
        let copy = net::snapshot(&ns("dst")).unwrap();
        same(&image, &copy);
        for counted in [
            "counter packets 77 bytes 8888 accept",
            "used 3 kbytes",
            "packets 5 bytes 7,",
        ] {
            let there = copy.filters.nft.iter().flat_map(|t| &t.lines);
            assert!(
                there.clone().any(|l| l.contains(counted)),
                "{counted}: {copy:#?}"
            );
        }
        assert!(
            copy.filters
                .xtables
                .iter()
                .flat_map(|t| &t.lines)
                .any(|l| l.starts_with("[9:10] -A OUTPUT -p udp"))
        );

        // Another ruleset takes its place, whatever was there.
        let mut other = image.filters.clone();
        other.nft.truncate(1);
        other.xtables.clear();
        other.ipsets.truncate(2);
        on("dst", || net::filter::converge(&other)).unwrap();
        let now = on("dst", net::filter::dump).unwrap();
        assert_eq!(net::filter::settled(&now), net::filter::settled(&other));
        on("dst", || net::filter::converge(&Default::default())).unwrap();
        assert!(on("dst", net::filter::dump).unwrap().is_empty());
    });
}

#[test]
fn a_ruleset_that_cannot_be_made_is_named_before_anything_is() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            sh(
                "nft 'table inet good { }; table inet bad { chain c { counter packets 1 bytes 1; }; }'",
            )
        });
        let mut image = net::snapshot(&ns("src")).unwrap();
        let counter = image.filters.nft[1]
            .lines
            .iter_mut()
            .find(|l| l.contains("counter"))
            .unwrap();
        *counter = "jump nowhere".to_owned();
        let make = |image: &Network| {
            on("b", || {
                net::create(&ns("dst"), image, &attach(), MOVE, &mut |_| Ok(()))
            })
        };
        let refused = make(&image).unwrap_err().to_string();
        assert!(
            refused.contains("nft table inet bad cannot be made here")
                && !refused.contains("inet good"),
            "{refused}"
        );
        assert!(!ns("dst").exists());

        image.filters.partial = true;
        let created = make(&image).unwrap();
        assert!(
            created
                .warnings
                .iter()
                .any(|w| w.contains("nft table inet bad")),
            "{:?}",
            created.warnings
        );
        let made = net::snapshot(&ns("dst")).unwrap();
        assert_eq!(made.filters.nft, image.filters.nft[..1]);
    });
}

#[test]
fn a_target_whose_own_filter_would_drop_what_comes_is_named() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        let image = net::snapshot(&ns("src")).unwrap();
        let warnings = || {
            on("b", || net::objections(&ns("dst"), &image, &attach(), MOVE))
                .unwrap()
                .warnings
        };
        let call = |value: u8| {
            on("b", || {
                sh(&format!(
                    "for f in /proc/sys/net/bridge/bridge-nf-call-*; do echo {value} > $f; done"
                ))
            })
        };
        on("b", || {
            sh(
                "iptables-nft -P FORWARD DROP; echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose",
            )
        });
        call(0);
        assert_eq!(warnings(), [] as [&str; 0]);
        call(1);
        let warnings = warnings();
        for words in [
            "nf_conntrack_tcp_loose is 0",
            "iptables-nft table filter drops what it forwards",
        ] {
            assert!(
                warnings.iter().any(|w| w.contains(words)),
                "no `{words}` in {warnings:#?}"
            );
        }
    });
}

#[test]
fn what_cannot_be_carried_is_named() {
    world(|| {
        segment(&["a"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            // nft in interactive mode holds its socket, and with it the table.
            sh(
                "mkfifo /run/in; (nft -i </run/in >/run/said 2>&1 &) ; exec 9>/run/in
                echo 'add table inet mine { flags owner; }' >&9; echo 'add chain inet mine c' >&9
                until nft list tables | grep -q mine; do sleep 0.01; done
                sleep 30 9>&9 >/run/null 2>&1 & echo $! >/run/pid",
            )
        });
        let filters = on("src", net::filter::dump).unwrap();
        sh("kill $(cat /run/pid)");
        assert!(filters.nft.is_empty());
        assert!(
            matches!(&filters.lost[..], [one] if one.starts_with("nft table inet mine is owned")),
            "{filters:#?}"
        );
    });
}

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
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        assert_eq!(created.warnings, [] as [&str; 0]);
        same(&image, &net::snapshot(&ns("dst")).unwrap());
    });
}

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
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        assert_eq!(created.warnings, [] as [&str; 0]);
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
    assert_eq!(expected.sysctls, found.sysctls);
    assert_eq!(expected.shaping, found.shaping);
    assert_eq!(expected.filters, found.filters);
    assert_eq!(expected, found);
}
