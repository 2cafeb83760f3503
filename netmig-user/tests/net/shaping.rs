//! Traffic shaping comes along, or is named.
use netmig_core::image::v1::net::Network;
use netmig_user::net;

use crate::{
    round_trip::same,
    world::{MOVE, attach, container, made_at_b, ns, on, segment, sh, world},
};

/// Kinds that some kernels lack are left out there. A pair for each, in the namespace alone.
const SHAPING: &str = "
    tc qdisc add dev eth0 root handle 1: htb default 30 r2q 20 direct_qlen 77
    tc class add dev eth0 parent 1: classid 1:1 htb rate 100mbit burst 20k
    tc class add dev eth0 parent 1:1 classid 1:30 htb rate 10mbit ceil 90mbit burst 15k cburst 16k overhead 10 mpu 64 linklayer atm
    tc class add dev eth0 parent 1:1 classid 1:2 htb rate 40mbit
    tc class add dev eth0 parent 1:2 classid 1:10 htb rate 30mbit ceil 100mbit prio 1 quantum 3000
    tc qdisc add dev eth0 parent 1:10 handle 10: pfifo limit 50
    tc qdisc add dev eth0 parent 1:30 handle 2: tbf rate 5mbit burst 10k latency 50ms peakrate 8mbit mtu 3000
    tc qdisc add dev eth0 parent 2:1 handle 40: bfifo limit 9000
    tc qdisc add dev lo root tbf rate 6gbit burst 100k latency 10ms
    n=0
    while read -r qdisc; do
        n=$((n + 1))
        ip link add p$n type veth peer name q$n
        tc qdisc add dev p$n root handle $n: $qdisc 2>/dev/null || echo no $qdisc
    done <<END
bfifo limit 12345
cake bandwidth 20mbit diffserv8 nat wash rtt 50ms overhead 18 ack-filter split-gso
codel limit 900 target 6ms interval 110ms ecn
drr
fq limit 9999 flow_limit 90 quantum 3000 maxrate 70mbit nopacing
fq_codel limit 999 flows 512 target 6ms interval 110ms quantum 999 ecn memory_limit 3mb
fq_pie limit 9999 flows 512 target 16ms ecn
hfsc default 2
pfifo limit 12
pie limit 900 target 16ms tupdate 20ms ecn
prio bands 4 priomap 1 2 2 2 1 2 0 0 1 1 1 1 1 1 1 3
sfq perturb 10 quantum 1600 depth 99 divisor 512
END
    tc class add dev p4 parent 4: classid 4:1 drr quantum 2000 2>/dev/null || true
    tc class add dev p8 parent 8: classid 8:1 hfsc sc rate 20mbit ul rate 30mbit 2>/dev/null || true
    tc class add dev p8 parent 8:1 classid 8:2 hfsc ls m1 20mbit d 5ms m2 9mbit 2>/dev/null || true";

/// Without counters and references, what `tc` itself says of it.
const SHOWN: &str = "for dev in eth0 lo p1; do tc qdisc show dev $dev; tc class show dev $dev; done | sed 's/direct_packets_stat [0-9]*//' | sort";

#[test]
fn disciplines_and_classes_come_along() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        let lacking = on("src", || sh(SHAPING));
        // Something passes, so that what is counted is not 0.
        sh(
            "ip -n src addr add 192.0.2.10/24 dev eth0; ip netns exec src bash -c 'for n in 1 2 3; do echo >/dev/udp/127.0.0.1/9; echo >/dev/udp/192.0.2.10/9; echo >/dev/udp/192.0.2.1/9; done'",
        );
        sh("ip netns add dst; tc -n dst qdisc add dev lo root handle 7: pfifo limit 9");
        let image = net::snapshot(&ns("src")).unwrap();
        assert_eq!(image.not_carried, [] as [&str; 0]);
        // On eth0 four, on lo one, and one on each pair.
        let made = 12 - lacking.lines().filter(|l| l.starts_with("no ")).count();
        assert_eq!(
            image.shaping.len(),
            5 + made,
            "{lacking}{:#?}",
            image.shaping
        );
        let check = on("b", || net::objections(&ns("dst"), &image, &attach(), MOVE)).unwrap();
        assert_eq!(check, net::check::Found::default());
        made_at_b(&image);
        same(&image, &net::snapshot(&ns("dst")).unwrap());
        let shown = |name: &str| on(name, || sh(SHOWN));
        assert_eq!(shown("src"), shown("dst"));
        assert!(
            shown("dst")
                .contains("class htb 1:10 parent 1:2 leaf 10: prio 1 rate 30Mbit ceil 100Mbit")
        );
    });
}

/// This kernel has classifiers u32 and bpf, and the action mirred: the others are tried in guests (tests/links.rs).
const FILTERS: &str = "
    ip link add other type ifb; ip link set other up
    tc qdisc add dev eth0 root handle 1: htb default 1
    tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit
    tc class add dev eth0 parent 1:1 classid 1:2 htb rate 5mbit
    tc filter add dev eth0 parent 1: protocol ip prio 20 u32 match ip dport 80 0xffff flowid 1:1
    tc filter add dev eth0 parent 1: protocol ip prio 10 u32 match ip sport 81 0xffff match u32 0 0 at 4 flowid 1:2
    tc filter add dev eth0 parent 1: protocol ip prio 10 u32 match ip src 10.0.0.0/8 flowid 1:1
    tc filter add dev eth0 parent 1: prio 5 handle 7: protocol ip u32 divisor 16
    tc filter add dev eth0 parent 1: prio 5 protocol ip u32 ht 7:3: match ip dst 10.1.0.0/16 flowid 1:2
    tc filter add dev eth0 parent 1: prio 5 protocol ip u32 link 7: hashkey mask 0x0000000f at 16 match ip protocol 6 0xff
    tc filter add dev eth0 parent 1:1 protocol ipv6 prio 3 u32 match ip6 dport 443 0xffff flowid 1:2
    tc qdisc add dev eth0 clsact
    tc filter add dev eth0 ingress protocol ip prio 1 u32 match ip dport 81 0xffff action mirred egress redirect dev other
    tc filter add dev eth0 egress protocol all prio 2 u32 match u32 0 0 action mirred egress mirror dev other action mirred egress mirror dev lo
    tc qdisc add dev other handle ffff: ingress
    tc filter add dev other parent ffff: protocol ip prio 9 u32 match u8 9 0xff at 8 flowid 1:1";

#[test]
fn filters_come_along() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || sh(FILTERS));
        let image = net::snapshot(&ns("src")).unwrap();
        assert_eq!(image.not_carried, [] as [&str; 0]);
        let count = |network: &Network| {
            network
                .shaping
                .iter()
                .map(|d| d.filters.len())
                .sum::<usize>()
        };
        assert_eq!(
            (image.shaping.len(), count(&image)),
            (3, 10),
            "{:#?}",
            image.shaping
        );
        let check = on("b", || net::objections(&ns("dst"), &image, &attach(), MOVE)).unwrap();
        assert_eq!((check.objections, check.warnings), (vec![], vec![]));
        made_at_b(&image);
        same(&image, &net::snapshot(&ns("dst")).unwrap());
        // What tc itself says of them, but for the numbers of the tables that the kernel chooses, what was counted and when.
        let shown = |name: &str| {
            on(name, || {
                sh("for at in 'root' 'parent 1:' 'parent 1:1' ingress egress; do tc filter show dev eth0 $at; done; tc filter show dev other ingress
                    tc filter show dev eth0 parent 1: | grep -c 'fh 7:3:800 '")
            })
            .replace("fh 801:", "fh 800:")
            .replace("fh 802:", "fh 800:")
            .replace("key ht 801", "key ht 800")
            .replace("key ht 802", "key ht 800")
        };
        let (before, after) = (shown("src"), shown("dst"));
        let lines = |text: &str| {
            text.lines()
                .map(str::to_owned)
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(lines(&after), lines(&before));
    });
}

#[test]
fn a_program_as_a_filter_is_named() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            sh("tc qdisc add dev eth0 root handle 1: htb default 1
                tc filter add dev eth0 parent 1: protocol ip prio 4 bpf bytecode '1,6 0 0 0,' flowid 1:1
                tc filter add dev eth0 parent 1: protocol ip prio 6 u32 match ip dport 80 0xffff flowid 1:1
                tc filter add dev eth0 parent 1: protocol ip prio 7 u32 match ip dport 81 0xffff police rate 1mbit burst 10k drop flowid 1:1 2>/dev/null || true
                tc qdisc add dev lo root handle 2: red limit 400000 min 30000 max 90000 avpkt 1000 2>/dev/null || true")
        });
        let found = net::snapshot(&ns("src")).unwrap();
        assert_eq!(
            found
                .not_carried
                .iter()
                .filter(|w| !w.contains(" red "))
                .collect::<Vec<_>>(),
            [
                "bpf filter 1 of preference 4 on the queueing discipline htb 1: of link eth0: filters of this kind cannot be read in a form in which \
                 they could be given back: not carried, set it up at the target",
            ]
        );
        assert_eq!(found.shaping[0].filters.len(), 1);
    });
}

/// The kernel shows filters of u32 of one preference wherever one of them lies.
#[test]
fn filters_that_cannot_be_told_from_each_other_are_named() {
    world(|| {
        segment(&["a"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            sh("tc qdisc add dev eth0 clsact
                tc filter add dev eth0 ingress protocol ip prio 5 u32 match ip dport 80 0xffff flowid 1:1
                tc filter add dev eth0 egress protocol ip prio 5 u32 match ip dport 81 0xffff flowid 1:1
                tc filter add dev eth0 egress protocol ip prio 6 u32 match ip dport 82 0xffff flowid 1:1")
        });
        let found = net::snapshot(&ns("src")).unwrap();
        assert!(
            matches!(&found.not_carried[..], [one] if one.starts_with("u32 filters of preference 5 on the queueing discipline clsact ffff: of link eth0: ")),
            "{:?}",
            found.not_carried
        );
        assert_eq!(found.shaping[0].filters.len(), 1);
    });
}

#[test]
fn a_filter_that_the_target_lacks_is_named_before_anything_is_made() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            sh("tc qdisc add dev eth0 root handle 1: htb
                tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit
                tc filter add dev eth0 parent 1: protocol ip prio 6 u32 match ip dport 80 0xffff flowid 1:1")
        });
        let mut image = net::snapshot(&ns("src")).unwrap();
        image.shaping[0].filters[0].kind = "strange".into();
        let check = on("b", || net::objections(&ns("dst"), &image, &attach(), MOVE)).unwrap();
        assert!(check.objections.is_empty(), "{check:?}");
        assert!(
            matches!(&check.warnings[..], [one, ..] if one.starts_with("setting up the strange filter 800 of preference 6 on the queueing discipline htb 1: of link eth0: ")
                && one.ends_with("; the container goes on without it")),
            "{check:?}"
        );
    });
}

#[test]
fn a_kind_that_the_target_lacks_is_named_before_anything_is_made() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            sh("tc qdisc add dev eth0 root handle 1: htb
                tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit
                tc qdisc add dev eth0 parent 1:1 handle 2: tbf rate 5mbit burst 10k latency 50ms
                tc qdisc add dev lo root handle 3: pfifo")
        });
        let mut image = net::snapshot(&ns("src")).unwrap();
        let htb = image.shaping.iter_mut().find(|d| d.kind == "htb").unwrap();
        htb.kind = "strange".into();
        let check = on("b", || net::objections(&ns("dst"), &image, &attach(), MOVE)).unwrap();
        let without = |warnings: &[String]| {
            matches!(warnings, [one] if one.starts_with("setting up the queueing discipline strange 1: of link eth0: ")
                && one.ends_with("; the container goes on without it"))
        };
        assert!(
            check.objections.is_empty() && without(&check.warnings),
            "{check:?}"
        );
        let created = on("b", || {
            net::create(&ns("dst"), &image, &attach(), MOVE, &mut |_| Ok(()))
        })
        .unwrap();
        assert!(without(&created.warnings), "{:?}", created.warnings);
        let found = net::snapshot(&ns("dst")).unwrap().shaping;
        assert!(
            matches!(&found[..], [one] if one.kind == "pfifo"),
            "{found:?}"
        );
    });
}
