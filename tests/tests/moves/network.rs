//! A container's whole network: packet filters with what they remember, policy routing, traffic shaping, settings.
use std::{thread, time::Duration};

use netmig_lab::{Cmd, Host, workload::Client};

use crate::{
    container::{Container, How},
    story::Story,
};

/// A firewall that trusts its memory alone: a connection that it does not know may begin with nothing but a SYN, and port 80 leads to redis.
const NETWORK: &str = r#"
    nft -f - <<'END'
table inet firewall {
    set seen { type ipv4_addr; flags dynamic,timeout; timeout 1h; counter; }
    quota budget { over 1000 mbytes }
    chain in {
        type filter hook input priority filter; policy drop;
        ct state invalid counter drop
        ct state new tcp flags & (fin | syn | rst | ack) != syn counter drop comment "not from its beginning"
        update @seen { ip saddr counter }
        quota name budget drop
        ct state established,related counter accept
        meta l4proto { icmp, ipv6-icmp } accept
        iif "lo" accept
        tcp dport 6379 ct mark set 0x2a counter accept
    }
}
table inet nat {
    chain pre {
        type nat hook prerouting priority dstnat;
        tcp dport 80 counter redirect to :6379
    }
}
END
    iptables-nft -A OUTPUT -p tcp -m comment --comment 'what goes out' -j ACCEPT
    iptables-legacy -t mangle -A POSTROUTING -p tcp -j TTL --ttl-set 61
    ip route add blackhole 203.0.113.0/24 table 100
    tc qdisc add dev eth0 root handle 1: htb default 10
    tc class add dev eth0 parent 1: classid 1:10 htb rate 2gbit burst 1mb quantum 60000
    tc qdisc add dev eth0 parent 1:10 handle 10: pfifo limit 900
    tc filter add dev eth0 parent 1: protocol ip prio 3 u32 match ip sport 6379 0xffff flowid 1:10
    arptables-nft -A INPUT -s 203.0.113.9 -j DROP
    echo 20 >/proc/sys/net/ipv4/tcp_fin_timeout"#;

/// IPv4 by one link and IPv6 by the other, each by its own table alone: without the rules nothing leads anywhere.
const TWO_LINKS: &str = r#"
    echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
    ip addr del 2001:db8::10/64 dev eth0; ip addr add 2001:db8::10/64 dev eth1 nodad
    ip rule add priority 50 from 192.0.2.10 lookup 100; ip -6 rule add priority 50 from 2001:db8::10 lookup 101
    ip route add 192.0.2.0/24 dev eth0 table 100; ip -6 route add 2001:db8::/64 dev eth1 table 101
    ip route flush table main; ip -6 route del 2001:db8::/64 dev eth1"#;

fn inside(host: &dyn Host, command: &str) -> String {
    host.sh(&format!(
        "ip netns exec web sh -e <<'SCRIPT'\n{command}\nSCRIPT\n"
    ))
    .unwrap_or_else(|e| panic!("{e}"))
}

fn client(name: &str, to: &str) -> Client {
    let args = [
        "redis",
        "--name",
        name,
        "--to",
        to,
        "--connections",
        "3",
        "--limit",
        "900",
    ];
    Client {
        args: args.map(ToOwned::to_owned).into(),
        name: name.to_owned(),
    }
}

fn dumped(host: &dyn Host, file: &str) {
    host.sh(&format!("netmig-user net dump --netns web --out {file}"))
        .expect("a document");
}

#[test]
fn filters_and_what_they_remember_go_along() {
    let story = Story::up("network");
    let (a, b) = (story.a(), story.b());
    let container = Container::new(How::Runc);
    story.start(a, &container);
    a.sh("ip link add web-two type veth peer name eth1 netns web; ip link set web-two master br0 up; ip -n web link set eth1 up")
        .expect("another link");
    inside(a, TWO_LINKS);
    inside(a, NETWORK);
    dumped(a, "/tmp/before.json");
    let loaded = story.load_with(
        &container,
        &[
            client("direct", "192.0.2.10:6379"),
            client("redirected", "192.0.2.10:80"),
            client("v6", "[2001:db8::10]:6379"),
        ],
    );
    thread::sleep(Duration::from_millis(500));

    let counted = |host: &dyn Host| {
        let rules = inside(host, "nft list chain inet firewall in");
        let line = rules
            .lines()
            .find(|l| l.contains("established"))
            .expect("the rule");
        let mut words = line.split(' ').skip_while(|word| *word != "packets");
        words
            .nth(1)
            .and_then(|n| n.parse::<u64>().ok())
            .expect("a number")
    };
    let before = counted(a);
    assert!(before > 100, "{before}");
    story.moves(a, &container);
    assert!(counted(b) >= before, "{} after {before}", counted(b));
    let now = inside(b, "nft list chain inet firewall in");
    for dropped in [
        "ct state invalid counter packets 0",
        "!= syn counter packets 0",
    ] {
        assert!(now.contains(dropped), "no `{dropped}` in {now}");
    }
    let set = inside(b, "nft list set inet firewall seen");
    assert!(set.contains("192.0.2."), "{set}");
    for port in [80, 6379] {
        let ask = format!("conntrack -L -f ipv4 -p tcp --orig-port-dst {port} 2>/dev/null");
        let tracked = inside(b, &ask);
        let established = tracked.lines().filter(|l| {
            l.contains("ESTABLISHED") && l.contains("sport=6379") && l.contains("mark=42")
        });
        assert_eq!(established.count(), 3, "{tracked}");
    }
    let ways = "ip route get 192.0.2.100 from 192.0.2.10; ip route get 2001:db8::100 from 2001:db8::10; ip route show table main; ip -6 route show 2001:db8::/64";
    let ways = inside(b, ways);
    assert!(
        ways.contains("dev eth0 table 100") && ways.contains("dev eth1 table 101"),
        "{ways}"
    );
    assert_eq!(ways.matches("dev ").count(), 2, "{ways}");

    thread::sleep(Duration::from_millis(500));
    story.moves(b, &container);
    thread::sleep(Duration::from_millis(500));
    loaded.end_clean();
    let log = story.logs();
    assert!(!log.contains("peers are not answered"), "{log}");
    let different = a
        .exec(&Cmd::sh("netmig-user net diff /tmp/before.json netns:web"))
        .expect("diff runs");
    let text = different.text();
    // What the set has learnt since.
    let unexpected: Vec<_> = text
        .lines()
        .filter(|l| {
            !l.contains("elements = {")
                && !l
                    .trim_start_matches([' ', '-', '+'])
                    .starts_with("192.0.2.")
        })
        .filter(|l| *l != "nft inet firewall:")
        .collect();
    assert_eq!(unexpected, [] as [&str; 0], "{text}");
    inside(a, "ip link del eth1");
    story.nothing_is_left();
}

#[test]
fn a_plan_names_what_cannot_be_carried() {
    let story = Story::up("unfit");
    let (a, b) = (story.a(), story.b());
    let container = Container::new(How::Runc);
    story.start(a, &container);
    inside(
        a,
        "nft 'table inet f { chain c { type filter hook input priority 0; counter; }; }'",
    );
    // A pair whose other end is another container's.
    a.sh("ip netns add other; ip link add odd type veth peer name odd netns other; ip link set odd netns web; ip -n web addr add 203.0.113.9/24 dev odd")
        .expect("a link");
    b.run(&["mv", "/usr/sbin/nft", "/usr/sbin/nft-away"])
        .expect("moved");
    let refused = story.migrate(a, &container, &[]);
    let said = refused.said();
    assert_eq!(refused.code(), Some(3), "{said}");
    for words in [
        "this host has no nft; install it",
        "link odd is a veth whose other end is not in this host's own network namespace",
        "--allow links goes on without it",
    ] {
        assert!(said.contains(words), "no `{words}` in {said}");
    }
    assert!(container.runs_on(a));
    let allowed = story.migrate(a, &container, &["--allow", "filters", "--allow", "links"]);
    assert_eq!(allowed.outcome(), "moved", "{}", allowed.said());
    let report = allowed.report.as_ref().expect("a report").to_string();
    for words in [
        "this host has no nft",
        "link odd is left out",
        "address 203.0.113.9/24 is left out: it needs link odd",
    ] {
        assert!(report.contains(words), "no `{words}` in {report}");
    }
    assert!(!inside(b, "ip link").contains("odd"));
    b.run(&["mv", "/usr/sbin/nft-away", "/usr/sbin/nft"])
        .expect("moved");
    assert_eq!(inside(b, "nft list ruleset"), "");
    story.nothing_is_left();
}
