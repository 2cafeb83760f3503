//! Packet filters come along as they are, or are named before anything is made.
use netmig_core::image::v1::net::Network;
use netmig_user::net;

use crate::{
    round_trip::same,
    world::{MOVE, attach, container, made_at_b, ns, on, segment, sh, world},
};

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
table ip tracking {
    ct helper ftp-standard { type "ftp" protocol tcp; }
    ct timeout quick { protocol tcp; l3proto ip; policy = { established : 100, close : 4 }; }
    ct expectation backwards { protocol tcp; dport 5555; timeout 12m; size 12; l3proto ip; }
    synproxy guard { mss 1460; wscale 7; timestamp sack-perm; }
    set many { type ipv4_addr; flags dynamic; }
    chain raw {
        type filter hook prerouting priority raw;
        iifname "lo" notrack
        iifname "eth0" ct zone set 9
    }
    chain in {
        type filter hook prerouting priority 0;
        tcp dport 21 ct helper set "ftp-standard"
        tcp dport 22 ct timeout set "quick"
        tcp dport 23 ct expectation set "backwards"
        tcp dport 24 add @many { ip saddr ct count over 3 } drop
        socket transparent 1 accept
    }
    chain syn {
        type filter hook input priority 0;
        tcp dport 25 ct state invalid,untracked synproxy name "guard"
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
    arptables-nft -N mine; arptables-nft -A INPUT -j mine -c 5 60; arptables-nft -A mine -s 10.0.0.1 -j DROP; arptables-nft -P OUTPUT DROP
    arptables-nft -A OUTPUT -j mangle --mangle-ip-s 10.0.0.9 -c 3 4
    ebtables-nft -A FORWARD -p ARP --arp-ip-src 10.0.0.2 -j DROP -c 7 8; ebtables-nft -N mine -P DROP; ebtables-nft -P INPUT DROP
    ebtables-nft -A mine -p IPv4 --ip-proto tcp --ip-dport 80 -j mark --mark-set 5; ebtables-nft -A INPUT -j mine
    ebtables-nft -t nat -A PREROUTING -d 02:00:00:00:00:01 -j redirect
    ebtables-nft -t nat -A POSTROUTING -j snat --to-source 02:00:00:00:00:09
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
        assert_eq!(count(filters.ipsets.len()), [5, 7, 4], "{filters:#?}");
        assert_eq!(
            on("b", || net::filter::rehearse(filters, &image.links)).unwrap(),
            [] as [&str; 0]
        );
        made_at_b(&image);
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
        for rule in ["[5:60] -A INPUT -j mine", "[7:8] -A FORWARD -p ARP"] {
            let mut there = copy.filters.xtables.iter().flat_map(|t| &t.lines);
            assert!(there.any(|l| l.starts_with(rule)), "{rule}: {copy:#?}");
        }

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

/// Those of bridges and of a device see frames whatever br_netfilter does.
#[test]
fn a_target_that_drops_at_its_bridge_or_a_port_is_named() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        let image = net::snapshot(&ns("src")).unwrap();
        let warnings = || {
            on("b", || net::objections(&ns("dst"), &image, &attach(), MOVE))
                .unwrap()
                .warnings
        };
        on("b", || {
            sh("for f in /proc/sys/net/bridge/bridge-nf-call-*; do echo 0 > $f; done
                ip link add other type veth peer name another
                nft 'table netdev far { chain c { type filter hook ingress device other priority 0; policy drop; }; }'
                nft 'table bridge quiet { chain c { type filter hook forward priority 0; policy accept; }; }'")
        });
        assert_eq!(warnings(), [] as [&str; 0]);
        on("b", || {
            sh("nft 'table netdev d { chain c { type filter hook ingress device up0 priority 0; ip daddr 192.0.2.10 drop; }; }'
                nft 'table bridge b { chain c { type filter hook forward priority 0; policy drop; }; }'")
        });
        let warnings = warnings();
        assert_eq!(warnings.len(), 2, "{warnings:#?}");
        assert!(warnings[0].starts_with(
            "this host's filter of bridged frames: nft table bridge b drops what it forwards"
        ));
        assert!(
            warnings[1]
                .starts_with("nft table netdev d drops at up0 (`ip daddr 192.0.2.10 drop`): ")
        );
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

/// The kernel's own table of ARP: everybody has it, few have the program.
#[test]
fn arptables_on_the_kernels_own_table() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            sh("arptables-legacy -N mine; arptables-legacy -P OUTPUT DROP
                arptables-legacy -A INPUT -s 192.0.2.66 -j DROP; arptables-legacy -A INPUT -j mine
                arptables-legacy -A mine -i eth0 --opcode Request -j RETURN
                arptables-legacy -A OUTPUT -j mangle --mangle-ip-s 10.0.0.9
                ip addr add 192.0.2.10/24 dev eth0; bash -c 'echo >/dev/udp/192.0.2.11/9'")
        });
        let image = net::snapshot(&ns("src")).unwrap();
        assert!(
            image.filters.arptables.is_some() && image.filters.lost.is_empty(),
            "{:#?}",
            image.filters
        );
        made_at_b(&image);
        same(&image, &net::snapshot(&ns("dst")).unwrap());
        let shown = |name: &str| on(name, || sh("arptables-legacy -L -n -v"));
        assert!(
            shown("src").contains("mangle-ip-s 10.0.0.9 , pcnt=1 "),
            "{}",
            shown("src")
        );
        assert_eq!(shown("dst"), shown("src"), "counters too");
        // A target that is not used yet has none of it, and what was there goes.
        on("dst", || net::filter::converge(&Default::default())).unwrap();
        assert!(on("dst", net::filter::dump).unwrap().is_empty());
        assert!(!shown("dst").contains("mine"));
        let mut other = image.filters.clone();
        let table = other.arptables.as_mut().unwrap();
        // The name of the first rule's target.
        table.entries[194..201].copy_from_slice(b"nowhere");
        let against = on("b", || net::filter::rehearse(&other, &image.links)).unwrap();
        assert!(
            matches!(&against[..], [one] if one.starts_with("arptables-legacy table filter cannot be made here: loading the arptables-legacy table filter: ")),
            "{against:?}"
        );
    });
}
