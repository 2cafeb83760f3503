//! Tracked connections come back as they were, and what they translate goes on.
use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use netmig_core::image::v1::conntrack::{Adjustment, Connection, Key};
use netmig_user::net::{
    self,
    conntrack::{Present, dump, expect, expectations, forget, insert, passing, passing_expected},
};

use crate::world::{MOVE, attach, container, ns, on, segment, sh, world};

/// Everything that an entry can have; conntrack makes what no traffic would show.
const ENTRIES: &str = "
    nft 'table inet t { chain c { type filter hook output priority 0; udp dport 9999 ct label set 5; }; }'
    c() { conntrack -I \"$@\" 2>/dev/null; }
    c -p tcp -s 10.0.0.1 -d 10.0.0.2 --sport 1000 --dport 80 --state ESTABLISHED -u ASSURED,SEEN_REPLY -t 400000 -m 7
    c -p tcp -s 10.0.0.1 -d 10.0.0.2 --sport 1002 --dport 80 --state ESTABLISHED -t 300 -n 192.0.2.1:5000
    c -p tcp -s 10.0.0.1 -d 10.0.0.2 --sport 1003 --dport 80 --state ESTABLISHED -t 300 -g 192.0.2.2:8080
    c -p udp -s 10.0.0.1 -d 10.0.0.2 --sport 53 --dport 5353 -t 100 -u SEEN_REPLY -w 9
    c -p icmp -s 10.0.0.1 -d 10.0.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 77 -t 20";

#[test]
fn what_is_remembered_of_the_traffic_comes_along_and_nothing_else() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        sh("ip -n src addr add 192.0.2.10/24 dev eth0");
        on("src", || {
            sh("nft 'table inet t { counter c { packets 1 bytes 2; }; }'")
        });
        let before = net::snapshot(&ns("src")).unwrap();
        on("b", || {
            net::create(&ns("dst"), &before, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        let tracked = |client: &str, server: &str| {
            sh(&format!(
                "conntrack -I -p udp -s {client} -d {server} --sport 7 --dport 80 -t 600 2>/dev/null"
            ))
        };
        on("src", || tracked("192.0.2.77", "192.0.2.10"));
        on("a", || tracked("192.0.2.77", "192.0.2.10"));
        on("a", || tracked("192.0.2.77", "192.0.2.11"));
        let read = || on("a", || net::traffic::read(&ns("src"), &before, &[])).unwrap();
        let quiet = read();
        assert_eq!(quiet.filters, None, "nothing has counted");
        assert_eq!((quiet.connections.len(), quiet.host.len()), (1, 1));

        on("src", || {
            sh("nft 'delete table inet t; table inet t { counter c { packets 9 bytes 99; }; }'")
        });
        let remembered = read();
        let made = on("b", || {
            net::traffic::make(&ns("dst"), &remembered, Present::Keep)
        })
        .unwrap();
        assert_eq!(made, [] as [&str; 0]);
        assert!(on("dst", || sh("nft list counters")).contains("packets 9 bytes 99"));
        let ends = |name: &str| -> Vec<_> {
            on(name, dump)
                .unwrap()
                .iter()
                .map(|c| c.original.destination.to_string())
                .collect()
        };
        assert_eq!(ends("dst"), ["192.0.2.10"]);
        assert_eq!(ends("b"), ["192.0.2.10"]);
    });
}

#[test]
fn expectations_come_along_with_their_connection() {
    world(|| {
        sh("ip netns add src; ip netns add dst");
        on("src", || {
            sh(
                "conntrack -I -p tcp -s 10.0.0.1 -d 10.0.0.2 --sport 4100 --dport 21 --state ESTABLISHED -t 300 2>/dev/null",
            )
        });
        let mut all = on("src", dump).unwrap();
        assert_eq!((all.len(), &all[0].helper), (1, &None), "{all:?}");
        on("src", || forget(&all)).unwrap();
        all[0].helper = Some("ftp".into());
        let made = on("src", || insert(&all, Present::Keep)).unwrap();
        if made.iter().any(|why| why.contains("os error 95")) {
            eprintln!("not tested: this kernel has no conntrack helper for FTP");
            return;
        }
        assert_eq!(made, [] as [&str; 0]);
        let tracked = on("src", dump).unwrap();
        assert_eq!(tracked[0].helper.as_deref(), Some("ftp"));
        assert_eq!(on("src", expectations).unwrap(), []);
        // The helper for FTP has one at a time of each connection.
        on("src", || {
            sh(
                "conntrack -I expect -t 1000 -p tcp --orig-src 10.0.0.1 --orig-dst 10.0.0.2 --orig-port-src 4100 --orig-port-dst 21 \
                --tuple-src 10.0.0.2 --tuple-dst 10.0.0.1 --tuple-port-src 20 --tuple-port-dst 3000 \
                --mask-src 255.255.255.255 --mask-dst 255.255.255.255 --mask-port-src 0 --mask-port-dst 65535 2>/dev/null",
            )
        });
        let found = on("src", expectations).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].master, tracked[0].original);
        let address = |a: &str| a.parse().unwrap();
        let through = |own: &[IpAddr]| {
            on("src", || passing_expected(&[address("10.0.0.1")], own))
                .unwrap()
                .len()
        };
        assert_eq!((through(&[]), through(&[address("10.0.0.2")])), (1, 0));

        // Without its connection there is none.
        let failed = on("dst", || expect(&found)).unwrap();
        assert!(
            matches!(&failed[..], [one] if one.starts_with("an expectation of protocol 6 10.0.0.1 -> 10.0.0.2")
                || one.starts_with("an expectation of protocol 6 10.0.0.1 port 4100 -> 10.0.0.2 port 21: ")),
            "{failed:?}"
        );
        assert_eq!(
            on("dst", || insert(&tracked, Present::Keep)).unwrap(),
            [] as [&str; 0]
        );
        for _ in 0..2 {
            assert_eq!(on("dst", || expect(&found)).unwrap(), [] as [&str; 0]);
        }
        let shown = |name: &str| {
            // Its lifetime stands in front.
            let shown = on(name, || sh("conntrack -L expect 2>/dev/null"));
            shown
                .trim_start_matches(|c: char| c.is_ascii_digit())
                .to_owned()
        };
        assert!(shown("src").contains("helper=ftp"), "{}", shown("src"));
        assert_eq!(shown("dst"), shown("src"));
        // It goes with its connection.
        on("dst", || forget(&tracked)).unwrap();
        assert_eq!(on("dst", expectations).unwrap(), []);
    });
}

#[test]
fn entries_of_every_kind() {
    world(|| {
        sh("ip netns add src; ip netns add dst");
        on("src", || sh(ENTRIES));
        let timeless = |name: &str| {
            let mut all = on(name, dump).unwrap();
            for c in &mut all {
                assert!(c.timeout > 0, "{c:?}");
                c.timeout = 0;
            }
            all
        };
        // conntrack gives no label and no adjustment to what it makes, and makes nothing of IPv6.
        let by_tool = on("src", dump).unwrap();
        let v6 = |mut c: Connection| {
            for tuple in [&mut c.original, &mut c.reply] {
                for address in [&mut tuple.source, &mut tuple.destination] {
                    let IpAddr::V4(v4) = *address else { continue };
                    *address = format!("2001:db8::{v4}").parse().unwrap();
                }
            }
            c
        };
        let others: Vec<_> = by_tool
            .iter()
            .filter(|c| c.tcp.is_some())
            .cloned()
            .map(v6)
            .collect();
        assert_eq!(
            on("src", || insert(&others, Present::Keep)).unwrap(),
            [] as [&str; 0]
        );
        let mut one = by_tool.into_iter().find(|c| c.mark == 7).unwrap();
        let other = |key: &mut Key| {
            if let Key::Ports {
                source,
                destination,
            } = key
            {
                (*source, *destination) = (*source ^ 4096, *destination ^ 4096);
            }
        };
        other(&mut one.original.key);
        other(&mut one.reply.key);
        one.labels = vec![1 << 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        one.adjusted = (
            Some(Adjustment {
                position: 99,
                before: 4,
                after: 9,
            }),
            Some(Adjustment {
                position: 98,
                before: u32::MAX,
                after: 1,
            }),
        );
        assert_eq!(
            on("src", || insert(&[one.clone()], Present::Keep)).unwrap(),
            [] as [&str; 0]
        );
        let made = on("src", dump).unwrap();
        let made = made.iter().find(|c| c.original == one.original).unwrap();
        one.timeout = made.timeout;
        assert_eq!(*made, one);
        let found = on("src", dump).unwrap();
        assert_eq!(found.len(), 9, "{found:#?}");
        assert!(
            found
                .iter()
                .any(|c| c.mark == 7 && c.tcp.unwrap().state == 3 && c.timeout > 399_990)
        );
        assert!(found.iter().any(|c| c.zone == 9));
        on("dst", || {
            sh("nft 'table inet t { chain c { ct label set 5; }; }'")
        });
        assert_eq!(
            on("dst", || insert(&found, Present::Keep)).unwrap(),
            [] as [&str; 0]
        );
        assert_eq!(timeless("dst"), timeless("src"));
        // There already: left as they are.
        assert_eq!(
            on("dst", || insert(&found, Present::Keep)).unwrap(),
            [] as [&str; 0]
        );
        assert_eq!(on("dst", || forget(&found)).unwrap(), [] as [&str; 0]);
        assert_eq!(on("dst", || forget(&found)).unwrap(), [] as [&str; 0]);
        assert_eq!(on("dst", dump).unwrap(), []);

        let address = |a: &str| a.parse().unwrap();
        let through = on("src", || passing(&[address("10.0.0.1")], &[], &[])).unwrap();
        assert_eq!(through.len(), 6, "{through:#?}");
        let through = on("src", || {
            passing(&[address("10.0.0.1")], &[address("192.0.2.1")], &[])
        })
        .unwrap();
        assert_eq!(through.len(), 5, "one ends at this host");
    });
}

/// Few are read one by one, many in one dump.
#[test]
fn many_are_read_as_few_are() {
    world(|| {
        sh("ip netns add src; ip netns add dst");
        on("src", || sh(ENTRIES));
        let few = on("src", dump).unwrap();
        let one = few.iter().find(|c| c.mark == 7).unwrap();
        let many: Vec<_> = (0..600)
            .map(|i| {
                let mut other = one.clone();
                for tuple in [&mut other.original, &mut other.reply] {
                    if let Key::Ports {
                        source,
                        destination,
                    } = &mut tuple.key
                    {
                        for port in [source, destination] {
                            *port = if *port == 80 { 80 } else { 20_000 + i };
                        }
                    }
                }
                other
            })
            .collect();
        assert_eq!(
            on("src", || insert(&many, Present::Keep)).unwrap(),
            [] as [&str; 0]
        );
        let timeless = |mut c: Connection| {
            c.timeout = 0;
            // Those that netmig has made are lenient.
            if let Some(tcp) = &mut c.tcp {
                tcp.flags = (0, 0);
            }
            c
        };
        let found: Vec<_> = on("src", dump).unwrap().into_iter().map(timeless).collect();
        assert_eq!(found.len(), few.len() + many.len());
        for wanted in few.into_iter().chain(many).map(timeless) {
            assert!(found.contains(&wanted), "{wanted:?}");
        }
    });
}

/// Window tracking cannot be carried (ctnetlink has no windows), and begun anew with a segment that announces window 0 it calls what
/// follows invalid: neither translated nor let through by a filter that trusts what it knows.
#[test]
fn no_segment_of_a_connection_that_came_along_is_invalid() {
    world(|| {
        sh("ip netns add src; ip netns add dst");
        on("src", || sh(ENTRIES));
        let mut entry = on("src", dump)
            .unwrap()
            .into_iter()
            .find(|c| c.mark == 7)
            .unwrap();
        entry.tcp.as_mut().unwrap().flags = (0x01, 0);
        assert_eq!(
            on("dst", || insert(&[entry.clone()], Present::Keep)).unwrap(),
            [] as [&str; 0]
        );
        const BE_LIBERAL: u8 = 8;
        let found = on("dst", dump).unwrap();
        assert_eq!(found[0].tcp.unwrap().flags, (0x01 | BE_LIBERAL, BE_LIBERAL));
    });
}

/// A container redirects port 80 to its server on 8080. Its namespace is rebuilt with the same filters and entries: the answers of the
/// server to what comes from the old connection must leave as from port 80, by nothing but the entry.
#[test]
fn a_translated_flow_goes_on() {
    world(|| {
        segment(&["a"]);
        container("a", "src", "02:00:00:00:00:10");
        container("a", "peer", "02:00:00:00:00:11");
        on("src", || {
            sh("ip addr add 192.0.2.10/24 dev eth0
                nft 'table ip n { chain pre { type nat hook prerouting priority dstnat; udp dport 80 redirect to :8080; }; }'")
        });
        on("peer", || sh("ip addr add 192.0.2.11/24 dev eth0"));
        let server = on("src", || UdpSocket::bind("192.0.2.10:8080").unwrap());
        let client = on("peer", || UdpSocket::bind("192.0.2.11:4000").unwrap());
        client.connect("192.0.2.10:80").unwrap();
        let wait = Some(Duration::from_millis(500));
        client.set_read_timeout(wait).unwrap();
        server.set_read_timeout(wait).unwrap();
        client.send(b"one").unwrap();
        let (_, from) = server.recv_from(&mut [0; 9]).unwrap();
        server.send_to(b"two", from).unwrap();
        client.recv(&mut [0; 9]).unwrap();

        let tracked = on("src", dump).unwrap();
        assert_eq!(tracked.len(), 1, "{tracked:#?}");
        assert_eq!(on("src", || forget(&tracked)).unwrap(), [] as [&str; 0]);
        server.send_to(b"lost", from).unwrap();
        assert!(
            client.recv(&mut [0; 9]).is_err(),
            "without the entry it comes from port 8080"
        );
        // What that has made of itself goes.
        let strange = on("src", dump).unwrap();
        assert_eq!(on("src", || forget(&strange)).unwrap(), [] as [&str; 0]);
        assert_eq!(
            on("src", || insert(&tracked, Present::Keep)).unwrap(),
            [] as [&str; 0]
        );
        server.send_to(b"three", from).unwrap();
        let mut said = [0; 9];
        let n = client.recv(&mut said).unwrap();
        assert_eq!(&said[..n], b"three");
    });
}
