//! Where a container's links hang, and which networks cannot live elsewhere.
use netmig_user::{
    gate::hold::Reader,
    net::{self, LinkKind},
};

use crate::world::{container, device, ns, on, segment, sh, world};

/// What speaks against moving `src` from host a.
fn refusals() -> Vec<String> {
    let found = on("a", || net::topology(&ns("src"))).unwrap();
    let unfit = found
        .unfit
        .iter()
        .map(|(link, what)| format!("link {link} is a {what}"));
    found.refusals.iter().cloned().chain(unfit).collect()
}

fn one(words: &[&str]) {
    let refusals = refusals();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    for word in words {
        assert!(refusals[0].contains(word), "{word}: {refusals:?}");
    }
}

#[test]
fn a_bridged_container_can_move() {
    world(|| {
        segment(&["a"]);
        container("a", "src", "02:00:00:00:00:10");
        container("a", "neighbour", "02:00:00:00:00:11");
        sh("ip -n src addr add 192.0.2.10/24 dev eth0; ip -n src route add default via 192.0.2.1");
        let found = on("a", || net::topology(&ns("src"))).unwrap();
        assert_eq!(found.refusals, [] as [&str; 0]);
        let eth0 = &found.links[1];
        let expected = LinkKind::Veth {
            host_ifindex: on("a", || device("v-src")),
            host_name: "v-src".into(),
            parent: Some("br0".into()),
        };
        assert_eq!((eth0.name.as_str(), &eth0.kind), ("eth0", &expected));
        assert_eq!(found.links[0].kind, LinkKind::Loopback);
        assert_eq!(found.attach(), crate::world::attach());
    });
}

#[test]
fn each_pair_is_told_from_one_with_the_same_indices() {
    world(|| {
        segment(&["a"]);
        for n in 1..5 {
            container("a", &format!("c{n}"), &format!("02:00:00:00:00:1{n}"));
        }
        for n in 1..5 {
            let links = on("a", || net::links(&ns(&format!("c{n}")))).unwrap();
            assert_eq!(links[1].host_name(), Some(format!("v-c{n}").as_str()));
        }
    });
}

#[test]
fn a_routed_subnet_cannot() {
    world(|| {
        segment(&["a"]);
        container("a", "src", "02:00:00:00:00:10");
        sh(
            "ip -n a addr add 192.0.2.1/24 dev br0; ip -n src addr add 192.0.2.10/24 dev eth0; ip -n src route add default via 192.0.2.1",
        );
        one(&[
            "link eth0",
            "192.0.2.1",
            "NAT",
            "let the container's gateway be a router",
        ]);
    });
}

#[test]
fn a_bridge_without_an_uplink_cannot() {
    world(|| {
        segment(&["a"]);
        container("a", "src", "02:00:00:00:00:10");
        container("a", "other", "02:00:00:00:00:11");
        sh("ip -n a link set up0 nomaster; ip -n src addr add 192.0.2.10/24 dev eth0");
        one(&[
            "bridge br0 has no uplink port",
            "ip link set IFACE master br0",
        ]);
    });
}

#[test]
fn a_veth_without_a_bridge_cannot() {
    world(|| {
        segment(&["a"]);
        container("a", "src", "02:00:00:00:00:10");
        sh("ip -n a link set v-src nomaster");
        one(&["link eth0 (v-src on this host)", "enslaved to no bridge"]);
    });
}

#[test]
fn a_pair_that_ends_elsewhere_cannot() {
    world(|| {
        segment(&["a", "b"]);
        container("b", "src", "02:00:00:00:00:10");
        one(&["link eth0", "not in this host's own network namespace"]);
        sh(
            "ip -n src link del eth0; ip -n src link add in0 type veth peer name in1; ip -n src link del in0",
        );
        let held = Reader::create(Some(&ns("src")), "t0").unwrap();
        one(&["link t0 is a tun (a program holds it) device"]);
        drop(held);
        assert_eq!(refusals(), [] as [&str; 0]);
    });
}

#[test]
fn the_host_network_cannot() {
    world(|| {
        segment(&["a"]);
        let found = on("a", || net::topology(&ns("a"))).unwrap();
        assert!(found.refusals[0].contains("host network"), "{found:?}");
        assert_eq!(found.links, []);
    });
}
