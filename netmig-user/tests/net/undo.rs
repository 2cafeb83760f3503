//! What cannot be made leaves nothing; what was made can be removed.
use netmig_core::{
    image::v1::net::{LinkKind, Network, Route},
    proto::Attach,
};
use netmig_user::net::{self, Error};

use crate::world::{MOVE, attach, container, ns, on, reach, segment, sh, world};

fn image() -> Network {
    segment(&["a", "b"]);
    container("a", "src", "02:00:00:00:00:10");
    sh(
        "ip -n src addr add 192.0.2.10/24 dev eth0; ip -n src route add default via 192.0.2.1; ip -n src rule add priority 9 from 192.0.2.10 table 9",
    );
    net::snapshot(&ns("src")).unwrap()
}

/// Everything of host b that could show a trace.
fn trace() -> String {
    on("b", || {
        sh(
            "ip -o link | cut -d' ' -f2; ip -o link show dev br0 | grep -o 'link/ether.*'; ip -o addr show dev br0 | cut -d' ' -f4-7; ip neigh; ls /run/netns",
        )
    })
}

fn create(image: &Network, attach: &[Attach], netns: &str) -> Result<net::Created, Error> {
    on("b", || {
        net::create(&ns(netns), image, attach, MOVE, &mut |_| Ok(()))
    })
}

#[test]
fn a_gate_that_cannot_be_attached() {
    world(|| {
        let image = image();
        let before = trace();
        let error = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |links| {
                assert_eq!(links.len(), 2);
                Err("no such verifier".to_owned())
            })
        })
        .unwrap_err();
        assert!(
            matches!(&error, Error::BeforeUp(why) if why == "no such verifier"),
            "{error}"
        );
        assert_eq!(trace(), before);
    });
}

#[test]
fn a_route_that_cannot_be_made_is_named() {
    world(|| {
        let mut image = image();
        image.addresses.retain(|a| a.link == "lo");
        image.routes.retain(|r| r.destination.len == 0);
        let before = trace();
        let error = create(&image, &attach(), "dst").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("adding route 0.0.0.0/0 via 192.0.2.1 dev eth0"),
            "{error}"
        );
        assert_eq!(trace(), before);
    });
}

#[test]
fn a_namespace_that_was_there_is_brought_back() {
    world(|| {
        let mut image = image();
        sh(
            "ip netns add dst; ip -n dst route add blackhole 203.0.113.0/24; ip -n dst rule add priority 7 table 7
             ip -n dst link set lo up; ip -n dst nexthop add id 5 dev lo; ip -n dst route add 203.0.113.0/25 nhid 5",
        );
        on("dst", || {
            sh(
                "echo 1 > /proc/sys/net/ipv4/tcp_timestamps; echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter",
            )
        });
        image.sysctls.push(netmig_core::image::v1::net::Sysctl {
            path: "ipv4/ip_forward".into(),
            value: "1".into(),
            inherited: false,
        });
        let (before, traces) = (net::snapshot(&ns("dst")).unwrap(), trace());
        let gateway = &mut image
            .routes
            .iter_mut()
            .find(|r| r.destination.len == 0)
            .unwrap()
            .next_hops[0]
            .gateway;
        *gateway = Some("198.51.100.1".parse().unwrap());
        create(&image, &attach(), "dst").unwrap_err();
        assert_eq!(net::snapshot(&ns("dst")).unwrap(), before);
        assert_eq!(trace(), traces);
    });
}

#[test]
fn what_was_made_is_removed_and_removing_again_is_no_error() {
    world(|| {
        let image = image();
        let before = trace();
        let mac = |trace: &str| {
            trace
                .lines()
                .find(|l| l.contains("link/ether"))
                .unwrap()
                .to_owned()
        };
        let created = create(&image, &attach(), "dst").unwrap();
        assert_ne!(trace(), before);
        // The bridge took its MAC from its uplink, and a new port must not change it.
        assert_eq!(mac(&trace()), mac(&before));
        let marked = on("b", || net::marked().unwrap());
        assert_eq!(
            marked
                .iter()
                .map(|m| (m.mv, m.name.as_str()))
                .collect::<Vec<_>>(),
            [(MOVE, "nmabcdef01-2")]
        );
        let again: net::Created =
            postcard::from_bytes(&postcard::to_stdvec(&created).unwrap()).unwrap();
        for _ in 0..2 {
            let left = on("b", || net::remove(&again));
            assert!(left.is_empty(), "{left:?}");
            assert_eq!(trace(), before);
        }
    });
}

#[test]
fn the_journalled_intent_finds_what_a_crash_left() {
    world(|| {
        let image = image();
        let before = trace();
        let intent = on("b", || net::intent(&ns("dst"), &image, &attach(), MOVE)).unwrap();
        // The agent dies while the gate is being attached: links made, nothing recorded.
        let died = std::panic::AssertUnwindSafe(|| {
            on("b", || {
                net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| {
                    panic!("killed")
                })
            })
            .map(|_| ())
        });
        std::panic::catch_unwind(died).unwrap_err();
        assert_ne!(trace(), before);
        assert!(on("b", || net::remove(&intent)).is_empty());
        assert_eq!(trace(), before);
    });
}

#[test]
fn what_stands_in_the_way_is_found_before_anything_is_made() {
    world(|| {
        let image = image();
        let refused = |attach: &[Attach], netns: &str, words: &str| {
            let before = trace();
            match create(&image, attach, netns).unwrap_err() {
                Error::Refused(why) => {
                    assert!(why.iter().any(|w| w.contains(words)), "{words}: {why:?}")
                }
                other => panic!("{words}: {other}"),
            }
            assert_eq!(trace(), before);
        };
        let to = |parent: &str| {
            vec![Attach {
                link: "eth0".into(),
                parent: parent.into(),
            }]
        };
        refused(&[], "dst", "not said what it is attached to");
        refused(&to("br9"), "dst", "ip link add br9 type bridge");
        refused(&to("up0"), "dst", "a bridge is needed");
        sh("ip netns add taken; ip -n taken link add eth0 type bridge");
        refused(&attach(), "taken", "has a link eth0 already");
        sh("ip -n b link set br0 mtu 1280");
        refused(&attach(), "dst", "has an MTU of 1500, br0 only 1280 here");
        sh("ip -n b link set br0 mtu 1500; ip -n b link set br0 down");
        refused(&attach(), "dst", "br0 is down here");
        sh("ip -n b link set br0 up; ip -n b link add other address 02:00:00:00:00:10 type bridge");
        refused(
            &attach(),
            "dst",
            "has the MAC 02:00:00:00:00:10, which other has here already",
        );
        sh("ip -n b link del other; ip -n b link add nmabcdef01-2 type bridge");
        refused(
            &attach(),
            "dst",
            "the name nmabcdef01-2 of its end on this host is in use",
        );
        sh("ip -n b link del nmabcdef01-2");
        create(&image, &attach(), "dst").unwrap();
    });
}

#[test]
fn an_image_that_contradicts_itself_is_refused() {
    world(|| {
        let mut image = image();
        let eth0 = image.links[1].clone();
        image.links.push(netmig_core::image::v1::net::Link {
            name: "../../../kernel".into(),
            ..eth0.clone()
        });
        image.links.push(netmig_core::image::v1::net::Link {
            kind: LinkKind::Loopback,
            ..eth0
        });
        image.addresses[0].link = "eth9".into();
        image.routes[0].next_hops[0].link = Some("eth8".into());
        let lost = Route {
            nexthop: Some(77),
            ..image.routes[0].clone()
        };
        image.routes.push(lost);
        let before = trace();
        let error = create(&image, &attach(), "dst").unwrap_err().to_string();
        assert!(
            error.contains("needs link eth9")
                && error.contains("needs link eth8")
                && error.contains("needs next hop object 77"),
            "{error}"
        );
        assert_eq!(trace(), before);
    });
}

#[test]
fn the_source_keeps_nothing_of_a_container_that_left() {
    world(|| {
        let image = image();
        on("a", || {
            sh("ip addr add 192.0.2.7/24 dev br0");
            reach("192.0.2.10");
        });
        let links = on("a", || net::links(&ns("src"))).unwrap();
        assert!(on("a", || sh("ip neigh")).contains("192.0.2.10"));
        let left = on("a", || net::depart(&ns("src"), &links, &image, true));
        assert!(left.is_empty(), "{left:?}");
        let a = on("a", || {
            sh("ip -o link; ip neigh; bridge fdb show br br0; ls /run/netns")
        });
        assert!(
            !a.contains("v-src")
                && !a.contains("192.0.2.10")
                && !a.contains("02:00:00:00:00:10")
                && !a.contains("src"),
            "{a}"
        );
    });
}
