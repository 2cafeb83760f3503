//! Random addresses, routes, rules and packet filters survive the round trip.
use std::{cell::Cell, collections::BTreeSet, fs};

use netmig_user::net;
use proptest::{
    collection::{btree_set, vec},
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    round_trip::same,
    world::{MOVE, attach, container, ns, on, segment, sh, world},
};

/// Lines of `ip -batch`. Some may be refused (a duplicate, a gateway that no address reaches): the container is what the rest makes.
fn script() -> impl Strategy<Value = Vec<String>> {
    let v4 = btree_set((0u8..4, 1u8..255, 20u8..=32), 0..6).prop_map(|all: BTreeSet<_>| {
        all.into_iter()
            .map(|(net, host, len)| format!("addr add 198.51.{}.{host}/{len} dev eth0", 100 + net))
            .collect::<Vec<_>>()
    });
    let v6 = btree_set((0u16..4, 1u16..999, 48u8..=128, any::<bool>()), 0..6).prop_map(
        |all: BTreeSet<_>| {
            let line = |(net, host, len, no): (u16, u16, u8, bool)| {
                format!(
                    "-6 addr add 2001:db8:{net}::{host:x}/{len} dev eth0 nodad{}",
                    if no { " noprefixroute" } else { "" }
                )
            };
            all.into_iter().map(line).collect::<Vec<_>>()
        },
    );
    let route4 = (any::<u16>(), 8u8..=32, 1u32..400, 0u32..9, 0u8..5, 1u8..250).prop_map(|(dst, len, table, metric, how, via)| {
        let prefix = u32::from_be_bytes([203, 0, 113, 0]) ^ (u32::from(dst) << 16);
        let prefix = std::net::Ipv4Addr::from_bits(prefix & (u32::MAX << (32 - u32::from(len))));
        let table = if table == 255 { 254 } else { table };
        let way = match how {
            0 => "dev eth0 scope link".to_owned(),
            1 => format!("via 198.51.100.{via} dev eth0 onlink proto {via}"),
            2 => format!("nexthop via 198.51.101.{via} dev eth0 onlink weight 2 nexthop via 198.51.100.1 dev eth0 onlink"),
            3 => format!("via inet6 fe80::{via:x} dev eth0"),
            _ => format!("dev eth0 mtu {} initcwnd 11", 600 + u16::from(via)),
        };
        match how {
            4 if via % 2 == 0 => format!("route add throw {prefix}/{len} table {table} metric {metric}"),
            _ => format!("route add {prefix}/{len} {way} table {table} metric {metric}"),
        }
    });
    let route6 = (
        any::<u16>(),
        33u8..=64,
        1u32..400,
        1u32..9,
        0u8..3,
        1u8..250,
    )
        .prop_map(|(dst, len, table, metric, how, via)| {
            let prefix = u128::from_str_radix("20010db8000000000000000000000000", 16).unwrap()
                | (u128::from(dst) << 80);
            let prefix =
                std::net::Ipv6Addr::from_bits(prefix & (u128::MAX << (128 - u32::from(len))));
            let table = if table == 255 { 254 } else { table };
            let way = match how {
                0 => "dev eth0".to_owned(),
                1 => format!("via fe80::{via:x} dev eth0 proto {via}"),
                _ => format!(
                    "nexthop via fe80::{via:x} dev eth0 weight 3 nexthop via fe80::1:1 dev eth0"
                ),
            };
            format!("-6 route add {prefix}/{len} {way} table {table} metric {metric}")
        });
    let rule = (1u32..9000, 1u32..400, any::<u8>(), any::<bool>(), 0u8..4).prop_map(
        |(priority, table, host, invert, how)| {
            let family = if host % 2 == 0 { "-6 " } else { "" };
            let not = if invert { "not " } else { "" };
            let what = match how {
                0 => format!("fwmark {host}/0xff"),
                1 => "iif eth0".to_owned(),
                2 => format!("ipproto udp dport {}-{}", u16::from(host) + 1, 999),
                _ => format!("uidrange {host}-5000"),
            };
            format!("{family}rule add {not}{what} priority {priority} table {table}")
        },
    );
    (
        v4,
        v6,
        vec(route4, 0..12),
        vec(route6, 0..12),
        vec(rule, 0..8),
    )
        .prop_map(|(a, b, c, d, e)| [a, b, c, d, e].concat())
}

/// Lines of `bridge -batch` and of `tc -batch`, for the bridge and links of [`INSIDE`]. Some may be refused.
fn inside() -> impl Strategy<Value = (Vec<String>, Vec<String>)> {
    let port = || (1u8..4).prop_map(|n| format!("p{n}"));
    let on = |on: bool| if on { "on" } else { "off" };
    let setting =
        (port(), 0u8..7, any::<bool>(), 1u16..60).prop_map(move |(port, which, value, number)| {
            let what = match which {
                0 => format!("isolated {}", on(value)),
                1 => format!("learning {}", on(value)),
                2 => format!("flood {}", on(value)),
                3 => format!("hairpin {}", on(value)),
                4 => format!("neigh_suppress {}", on(value)),
                5 => format!("cost {number}"),
                _ => format!("priority {number}"),
            };
            format!("link set dev {port} {what}")
        });
    let entry =
        (port(), any::<u8>(), 0u8..4, 1u8..250).prop_map(|(port, mac, how, host)| match how {
            0 => format!("fdb add 02:00:00:00:07:{mac:02x} dev {port} master static"),
            1 => format!("fdb add 02:00:00:00:07:{mac:02x} dev {port} master local"),
            2 => format!(
                "fdb add 02:00:00:00:08:{mac:02x} dev vx0 self dst 192.0.2.{host} vni {}",
                1 + u16::from(host)
            ),
            _ => format!("fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.{host}"),
        });
    let filter = (0u8..4, 1u16..9, any::<u16>(), 0u8..5, port()).prop_map(|(place, priority, number, how, port)| {
        let parent = ["eth0 parent 1:", "eth0 ingress", "eth0 egress", "br7 parent 2:"][usize::from(place)];
        let what = match how {
            0 => format!("match ip dport {number} 0xffff flowid 1:1"),
            1 => format!("match ip src 10.{}.0.0/16 match ip sport {number} 0x00ff flowid 1:2", number >> 8),
            2 => format!("match ip protocol {} 0xff action mirred egress redirect dev {port}", number & 255),
            3 => format!("match u32 {number:#x} 0xffffffff at {} action mirred egress mirror dev {port} action mirred egress mirror dev lo", 4 * (number & 7)),
            _ => format!("match u8 {} 0xff at 8 flowid 2:{:x}", number & 255, number),
        };
        format!("filter add dev {parent} protocol ip prio {priority} u32 {what}")
    });
    (vec(setting, 0..8), vec(entry, 0..8), vec(filter, 0..9))
        .prop_map(|(a, b, c)| ([a, b].concat(), c))
}

/// A bridge with three ports and a VXLAN, and disciplines that take filters.
const INSIDE: &str = "
    ip link add br7 type bridge mcast_snooping 0; ip link set br7 up
    for n in 1 2 3; do ip link add p$n type veth peer name q$n; ip link set p$n master br7 up; ip link set q$n up; done
    ip link add vx0 type vxlan id 77 dstport 4789 dev eth0; ip link set vx0 master br7 up
    tc qdisc add dev eth0 root handle 1: htb default 2; tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit
    tc class add dev eth0 parent 1: classid 1:2 htb rate 20mbit
    tc qdisc add dev eth0 clsact; tc qdisc add dev br7 root handle 2: htb";

/// A script of nft: a table with sets, maps, named objects and rules that use them.
fn ruleset() -> impl Strategy<Value = String> {
    let address = (1u8..=20, 1u8..=250).prop_map(|(net, host)| format!("10.0.{net}.{host}"));
    let plain = btree_set(address, 0..9).prop_map(|all| {
        let elements: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(i, a)| match i % 3 {
                0 => a.clone(),
                1 => format!("{a} timeout {}s", 60 + i),
                _ => format!("{a} timeout 1h expires {}s comment \"no {i}\"", 600 + i),
            })
            .collect();
        set("set plain", "type ipv4_addr; flags timeout;", &elements)
    });
    let ranges = btree_set((1u8..=40, 0u8..=2), 0..7).prop_map(|all| {
        let mut seen = BTreeSet::new();
        let elements: Vec<_> = all
            .iter()
            .filter(|(net, _)| seen.insert(*net))
            .map(|(net, how)| match how {
                0 => format!("10.{net}.0.0/16"),
                1 => format!("10.{net}.1.5-10.{net}.2.7"),
                _ => format!("10.{net}.0.1"),
            })
            .collect();
        set("set ranges", "type ipv4_addr; flags interval;", &elements)
    });
    let counted = btree_set((1u16..999, 1u32..9999), 0..6).prop_map(|all| {
        let elements: Vec<_> = all
            .iter()
            .map(|(port, n)| {
                format!(
                    "10.9.9.{} . {port} counter packets {n} bytes {}",
                    port % 250,
                    n * 60
                )
            })
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        set(
            "set counted",
            "type ipv4_addr . inet_service; counter;",
            &elements,
        )
    });
    let verdicts = btree_set(1u16..999, 0..6).prop_map(|all| {
        let elements: Vec<_> = all
            .iter()
            .map(|port| {
                format!(
                    "{port} : {}",
                    ["accept", "drop", "goto deep", "jump deep"][usize::from(port % 4)]
                )
            })
            .collect();
        set("map verdicts", "type inet_service : verdict;", &elements)
    });
    let rule = (0usize..16, 1u16..9999, 1u8..250).prop_map(|(kind, n, host)| match kind {
        0 => format!(
            "ip saddr 10.0.0.{host} tcp dport {n} counter packets {n} bytes {} accept",
            u32::from(n) * 40
        ),
        1 => "ip saddr @plain counter drop".to_owned(),
        2 => format!(
            "tcp dport {{ {n}, {}-{} }} accept comment \"n {n}\"",
            n + 10,
            n + 20
        ),
        3 => "tcp dport vmap @verdicts".to_owned(),
        4 => format!("meta mark set {n:#x}"),
        5 => format!("ct mark & 0x{host:02x} == 0x{:02x} return", host & 0x0f),
        6 => format!(
            "limit rate over {host}/second burst {} packets drop",
            u16::from(host) + 5
        ),
        7 => format!("quota over {n} kbytes used {host} bytes drop"),
        8 => format!("ip6 saddr 2001:db8:{n:x}::/48 udp sport != {n} counter"),
        9 => format!("iifname \"eth{host}*\" log prefix \"p{n} {{\" level info"),
        10 => "ip daddr @ranges jump deep".to_owned(),
        11 => format!("meta l4proto {{ tcp, udp }} th dport {n} notrack"),
        12 => "ip daddr . tcp dport @counted accept".to_owned(),
        13 => format!("ct state {{ new, established }} meta skuid {n} accept"),
        14 => format!("icmp type echo-request limit rate {host}/minute accept"),
        _ => format!(
            "meta length {}-{} ip dscp set {}",
            host,
            u16::from(host) + 100,
            host % 64
        ),
    });
    let chains = vec((any::<bool>(), -200i32..200, vec(rule, 0..6)), 1..4);
    (plain, ranges, counted, verdicts, chains, 0u8..4).prop_map(
        |(plain, ranges, counted, verdicts, chains, family)| {
            let chains: Vec<_> = chains
                .iter()
                .enumerate()
                .map(|(i, (accept, priority, rules))| {
                    let hook = ["input", "output", "forward"][i % 3];
                    let policy = if *accept { "accept" } else { "drop" };
                    format!(
                        "chain c{i} {{\ntype filter hook {hook} priority {priority}; policy {policy};\n{}\n}}",
                        rules.join("\n")
                    )
                })
                .collect();
            let flags = if family == 3 { "flags dormant;" } else { "" };
            format!(
                "table inet t {{\n{flags}\n{plain}\n{ranges}\n{counted}\nchain deep {{\n}}\n{verdicts}\n{}\n}}\n",
                chains.join("\n")
            )
        },
    )
}

fn set(name: &str, head: &str, elements: &[String]) -> String {
    let elements = if elements.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }}", elements.join(", "))
    };
    format!("{name} {{\n{head}\n{elements}\n}}")
}

#[test]
fn packet_filters() {
    world(|| {
        sh("ip netns add src; ip netns add dst");
        let mut runner = TestRunner::new(Config {
            cases: 24,
            max_shrink_iters: 60,
            failure_persistence: None,
            ..Config::default()
        });
        let result = runner.run(&ruleset(), |script| {
            fs::write("/run/script", format!("flush ruleset\n{script}")).unwrap();
            on("src", || sh("nft -f /run/script"));
            let written = on("src", net::filter::dump).unwrap();
            prop_assert_eq!(written.nft.len(), 1, "{:?}", written.lost);
            prop_assert_eq!(
                net::filter::rehearse(&written, &[]).unwrap(),
                [] as [&str; 0]
            );
            on("dst", || net::filter::converge(&written)).unwrap();
            let read = on("dst", net::filter::dump).unwrap();
            prop_assert_eq!(net::filter::settled(&read), net::filter::settled(&written));
            // Counters came along; the lifetimes alone go on counting.
            let lasting = |filters: &net::filter::Filters| {
                let lines = filters.nft[0].lines.clone().into_iter();
                lines
                    .filter(|line| !line.contains("expires"))
                    .filter(|line| !line.starts_with(' '))
                    .collect::<Vec<_>>()
            };
            prop_assert_eq!(lasting(&read), lasting(&written));
            Ok(())
        });
        result.unwrap();
    });
}

#[test]
fn configurations() {
    world(|| {
        segment(&["a", "b"]);
        let mut runner = TestRunner::new(Config {
            cases: 14,
            max_shrink_iters: 60,
            failure_persistence: None,
            ..Config::default()
        });
        let made = Cell::new(0);
        let filters = Cell::new(0);
        let result = runner.run(&(script(), inside()), |(lines, (bridge, tc))| {
            container("a", "src", "02:00:00:00:00:10");
            on("src", || sh(INSIDE));
            fs::write("/run/bridge", bridge.join("\n")).unwrap();
            fs::write("/run/tc", tc.join("\n")).unwrap();
            sh("bridge -n src -force -batch /run/bridge 2>/dev/null || true; tc -n src -force -batch /run/tc 2>/dev/null || true");
            // A batch takes no options in its lines.
            for (file, family) in [("/run/batch4", "-4"), ("/run/batch6", "-6")] {
                let ours = lines
                    .iter()
                    .filter(|l| l.starts_with("-6 ") == (family == "-6"));
                let batch: String = ours
                    .map(|l| format!("{}\n", l.trim_start_matches("-6 ")))
                    .collect();
                fs::write(file, batch).unwrap();
                sh(&format!(
                    "ip {family} -n src -force -batch {file} 2>/dev/null || true"
                ));
            }
            let mut image = net::snapshot(&ns("src")).unwrap();
            // Those of one preference in several places cannot be told from each other.
            prop_assert!(
                image.not_carried.iter().all(|what| what.contains("they lie in several places")),
                "{:?}",
                image.not_carried
            );
            image.not_carried.clear();
            let laid = image.shaping.iter().map(|d| d.filters.len()).sum::<usize>();
            filters.set(filters.get() + laid + image.forwarding.len());
            let sixes = image
                .addresses_of("eth0")
                .filter(|a| a.local.address.is_ipv6());
            // The link-local one is there by itself.
            made.set(made.get() + sixes.count().saturating_sub(1));
            let created = on("b", || {
                net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
            });
            let copy = net::snapshot(&ns("dst"));
            sh("ip netns del src; ip -n a link del v-src 2>/dev/null || true");
            let created = created.map_err(|e| TestCaseError::fail(e.to_string()))?;
            let left = on("b", || net::remove(&created));
            prop_assert!(left.is_empty(), "{left:?}");
            same(&image, &copy.unwrap());
            Ok(())
        });
        result.unwrap();
        assert!(made.get() > 10, "{} addresses of IPv6 in all", made.get());
        assert!(
            filters.get() > 40,
            "{} filters and forwarding entries in all",
            filters.get()
        );
    });
}
