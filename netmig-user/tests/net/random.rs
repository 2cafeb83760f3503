//! Random addresses, routes and rules survive the round trip.
use std::{collections::BTreeSet, fs};

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

#[test]
fn configurations() {
    world(|| {
        segment(&["a", "b"]);
        let mut runner = TestRunner::new(Config {
            cases: 24,
            max_shrink_iters: 60,
            failure_persistence: None,
            ..Config::default()
        });
        let result = runner.run(&script(), |lines| {
            container("a", "src", "02:00:00:00:00:10");
            fs::write("/run/batch", lines.join("\n") + "\n").unwrap();
            sh("ip -n src -force -batch /run/batch 2>/dev/null || true");
            let image = net::snapshot(&ns("src")).unwrap();
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
    });
}
