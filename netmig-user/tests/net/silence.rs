//! No frame of the container leaves the target before its gate opens.
use std::{net::IpAddr, time::Duration};

use netmig_core::image::v1::net::{Mac, Network};
use netmig_user::net::{self, Link, LinkKind, packet::PacketSocket};

use crate::world::{MOVE, attach, container, device, ns, on, segment, settled, sh, world};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x10]);
/// Longer than the kernel's own delays: MLD repeats within a second, duplicate address detection begins within one.
const WHILE: Duration = Duration::from_millis(1500);

/// TC_ACT_SHOT for every packet, as a classic BPF program.
const DROP: &str = "bpf da bytecode '1,6 0 0 2'";

#[test]
fn of_a_veth_behind_its_gate() {
    let gate = |links: &[Link]| {
        let LinkKind::Veth { host_name, .. } = &links[1].kind else {
            panic!("{links:?}")
        };
        sh(&format!(
            "tc qdisc add dev {host_name} clsact; tc filter add dev {host_name} ingress {DROP}; tc filter add dev {host_name} egress {DROP}"
        ));
        assert!(
            !sh(&format!("ip -o link show dev {host_name}")).contains(",UP"),
            "the link is up before its gate stands"
        );
        Ok(())
    };
    let (heard, dropped) = world_of_a_move(gate, "nmabcdef01-2", "b");
    assert_eq!(heard, Vec::<Vec<u8>>::new());
    assert!(
        dropped > 0,
        "the gate had nothing to drop: the test proves nothing"
    );
}

#[test]
fn but_without_a_gate_the_capture_does_hear_it() {
    let (heard, _) = world_of_a_move(|_| Ok(()), "nmabcdef01-2", "b");
    assert!(!heard.is_empty());
}

#[test]
fn of_a_macvlan_behind_its_gate() {
    world(|| {
        segment(&["a", "b"]);
        sh(
            "ip netns add src; ip -n a link add mv0 link br0 address 02:00:00:00:00:10 netns src type macvlan mode bridge; ip -n src link set mv0 name eth0",
        );
        let image = image("src");
        let gate = &mut |links: &[Link]| {
            assert!(matches!(links[1].kind, LinkKind::Macvlan { .. }));
            on("dst", || {
                sh(&format!(
                    "tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress {DROP}"
                ))
            });
            Ok(())
        };
        let capture = PacketSocket::open(device("to-b")).unwrap();
        sh("ip link set to-a down");
        on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, gate)
        })
        .unwrap();
        assert_eq!(frames(&capture, &image), Vec::<Vec<u8>>::new());
        assert!(on("dst", || drops("eth0")) > 0);
    });
}

#[test]
fn of_a_container_that_is_started_where_it_has_left() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", &MAC.to_string());
        let image = image("src");
        let links = on("a", || net::links(&ns("src"))).unwrap();
        let capture = PacketSocket::open(device("to-a")).unwrap();
        for barred in [false, true] {
            if barred {
                // Twice, as after a crash.
                for _ in 0..2 {
                    on("a", || net::stray::bar(MOVE, &links)).unwrap();
                }
            }
            // A port of another making may have the name of the old one.
            on("a", || {
                sh(&format!(
                    "ip netns del src; ip link del v-src 2>/dev/null || true; ip netns add src
                     ip link add v-src type veth peer name eth0 address {MAC} netns src
                     ip link set v-src master br0 up; ip -n src link set eth0 up"
                ))
            });
            let heard = frames(&capture, &image);
            assert_eq!(heard.is_empty(), barred, "{heard:?}");
        }
        // What only passes through the host is let through: the container at b speaks to one at a.
        container("b", "moved", &MAC.to_string());
        container("a", "beside", "02:00:00:00:00:11");
        on("moved", || sh("ip addr add 192.0.2.10/24 dev eth0"));
        on("beside", || sh("ip addr add 192.0.2.11/24 dev eth0"));
        on("a", || sh("ip netns del src"));
        on("moved", || crate::world::reach("192.0.2.11"));
        assert!(on("a", || net::stray::lift(MOVE, &links)).unwrap() > 0);
        assert_eq!(on("a", || net::stray::lift(MOVE, &links)).unwrap(), 0);
        assert_eq!(on("a", || sh("nft list tables")), "");
    });
}

#[test]
fn of_a_macvlan_that_is_started_where_it_has_left() {
    world(|| {
        segment(&["a", "b"]);
        let start = || {
            on("a", || {
                sh(&format!(
                    "ip netns add src; ip link add mv0 link br0 address {MAC} netns src type macvlan mode bridge; ip -n src link set mv0 name eth0"
                ))
            })
        };
        start();
        let image = image("src");
        let links = on("a", || net::links(&ns("src"))).unwrap();
        on("a", || net::stray::bar(MOVE, &links)).unwrap();
        let capture = PacketSocket::open(device("to-a")).unwrap();
        on("a", || sh("ip -n src link del eth0; ip netns del src"));
        start();
        on("src", || sh("ip link set eth0 up"));
        assert_eq!(frames(&capture, &image), Vec::<Vec<u8>>::new());
        assert!(on("a", || net::stray::lift(MOVE, &links)).unwrap() > 0);
    });
}

/// Makes the copy on host b and gives what the segment hears of it, and what the stand-in of its gate dropped.
fn world_of_a_move(
    gate: impl Fn(&[Link]) -> Result<(), String> + Send + Sync,
    device_name: &str,
    host: &str,
) -> (Vec<Vec<u8>>, u64) {
    let mut result = (Vec::new(), 0);
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", &MAC.to_string());
        let image = image("src");
        // The original must not be heard: it has another end of the segment, and that is taken away.
        sh("ip link set to-a down");
        let capture = PacketSocket::open(device("to-b")).unwrap();
        on(host, || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |links| {
                gate(links)
            })
        })
        .unwrap();
        result = (frames(&capture, &image), on(host, || drops(device_name)));
    });
    result
}

fn image(name: &str) -> Network {
    on(name, || {
        sh("ip link set lo up; ip link set eth0 up; echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify
            ip addr add 192.0.2.10/24 brd + dev eth0; ip -6 addr add 2001:db8::10/64 dev eth0; ip route add default via 192.0.2.1")
    });
    // Its own duplicate address detection ends, so that the image has what a running container has.
    settled(name);
    let image = net::snapshot(&ns(name)).unwrap();
    assert!(
        image
            .addresses
            .iter()
            .any(|a| a.local.address.to_string().starts_with("fe80")),
        "{:#?}",
        image.addresses
    );
    image
}

/// All frames within [`WHILE`] that have the container's MAC or one of its addresses as source.
fn frames(capture: &PacketSocket, image: &Network) -> Vec<Vec<u8>> {
    let until = std::time::Instant::now() + WHILE;
    let mut found = Vec::new();
    while let Some(left) = until.checked_duration_since(std::time::Instant::now()) {
        let Some(frame) = capture.receive(left).unwrap() else {
            continue;
        };
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        let carries = |needle: &[u8]| frame.windows(needle.len()).any(|w| w == needle);
        let named = image
            .addresses_of("eth0")
            .any(|a| carries(&octets(a.local.address)));
        if named || carries(&MAC.0) {
            found.push(frame);
        }
    }
    found
}

/// Packets that the filters of a device dropped.
fn drops(device: &str) -> u64 {
    let stats = sh(&format!("tc -s qdisc show dev {device}"));
    let after = |text: &str| {
        text.split("dropped ")
            .skip(1)
            .filter_map(|s| s.split(',').next()?.parse::<u64>().ok())
            .sum()
    };
    after(stats.split("qdisc clsact").nth(1).unwrap_or_default())
}
