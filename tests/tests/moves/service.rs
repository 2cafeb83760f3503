//! A container behind its host: peers know it by an address of the host, which moves with it, there and back.
use std::{net::SocketAddr, thread, time::Duration};

use netmig_lab::{
    Host,
    peers::{Kind, Outcome},
    workload::{Client, Running},
};

use crate::{
    beside::Spoken,
    bundle,
    catcher::Catcher,
    container::{Container, How},
    story::{PATIENCE, PEER_PROGRAM, Story},
};

const AROUND: Duration = Duration::from_millis(400);
/// Two that move, and one that both hosts have: the peer's route decides.
const SERVICES: [&str; 3] = ["192.0.2.50", "2001:db8::50", SHARED];
const SHARED: &str = "203.0.113.60";

/// A subnet behind the host, which translates for it: bulk to the container, and what the container begins to the service address.
const GATEWAY: &str = r#"
    ip link add nat0 type bridge; ip link set nat0 up
    ip addr add 198.51.100.1/24 dev nat0; ip addr add fd00:51::1/64 dev nat0 nodad
    ip addr add 203.0.113.60/32 dev lo
    echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
    nft -f - <<'END'
table ip nat {
    chain pre { type nat hook prerouting priority dstnat; ip daddr { 192.0.2.50, 203.0.113.60 } tcp dport 80 dnat to 198.51.100.10:5202; ip daddr { 192.0.2.50, 203.0.113.60 } udp dport 53 dnat to 198.51.100.10:7777; }
    chain post { type nat hook postrouting priority srcnat; ip saddr 198.51.100.0/24 oifname "br0" snat to 192.0.2.50; }
}
table ip6 nat {
    chain pre { type nat hook prerouting priority dstnat; ip6 daddr 2001:db8::50 tcp dport 80 dnat to [fd00:51::10]:5202; ip6 daddr 2001:db8::50 udp dport 53 dnat to [fd00:51::10]:7777; }
    chain post { type nat hook postrouting priority srcnat; ip6 saddr fd00:51::/64 oifname "br0" snat to 2001:db8::50; }
}
END"#;

/// The container's link on that subnet.
const NETWORK: &str = r#"
    ip netns add web; ip link add web-nat type veth peer name eth0 netns web; ip link set web-nat master nat0 up
    ip -n web link set lo up; ip -n web link set eth0 up
    ip -n web addr add 198.51.100.10/24 dev eth0; ip -n web addr add fd00:51::10/64 dev eth0 nodad
    ip -n web route add default via 198.51.100.1; ip -n web route add default via fd00:51::1"#;

/// What would tell the peer that its connection is gone.
const REFUSALS: &str = r#"
    nft 'table inet refusals { counter resets { }; counter unreachable4 { }; counter unreachable6 { };
        chain c { type filter hook prerouting priority -300;
        iifname "lo" return; tcp flags & rst == rst counter name resets; icmp type destination-unreachable counter name unreachable4; icmpv6 type destination-unreachable counter name unreachable6; }; }'"#;

/// A server of streams, an echo of datagrams, and a client of the redis that the peer has.
const COMMAND: [&str; 12] = [
    "/bin/netmig-peer",
    "init",
    "/bin/netmig-peer",
    "bulk-server",
    "--and",
    "/bin/netmig-peer",
    "udp-echo",
    "--and",
    "/bin/netmig-peer",
    "loopback",
    "--to",
    "192.0.2.100:6379",
];

struct Stage {
    story: Story,
    container: Container,
}

impl Stage {
    fn up() -> Self {
        let story = Story::up("service");
        // Its number is the service address's, which is what its host is seen with.
        let container = Container {
            number: 50,
            ..Container::new(How::Runc)
        };
        for host in [story.a(), story.b()] {
            host.sh(GATEWAY).expect("a gateway");
        }
        for service in moving() {
            // Deprecated: the kernel must not take it for what the host itself begins.
            let how = if service.contains(':') {
                "/128 dev br0 nodad preferred_lft 0"
            } else {
                "/24 brd + dev br0"
            };
            story
                .a()
                .sh(&format!("ip addr add {service}{how}"))
                .expect("a service address");
        }
        let redis = "redis-server --bind 192.0.2.100 --protected-mode no --save '' --daemonize yes >/dev/null";
        story.peer().sh(redis).expect("a redis");
        story.a().sh(NETWORK).expect("a link");
        bundle::run(story.a(), &container, story.image(), &COMMAND);
        let listens = "ip netns exec web ss -Htln '( sport = :5202 )' | grep -q .";
        story.a().wait_for(listens, PATIENCE).expect("a server");
        story.peer().sh(REFUSALS).expect("counters");
        let stage = Self { story, container };
        stage.lead_to(stage.story.a());
        stage
    }

    /// The peer's packets for the address that both hosts have go to this one.
    fn lead_to(&self, host: &dyn Host) {
        let by = if host.name() == "a" {
            "192.0.2.1"
        } else {
            "192.0.2.2"
        };
        let route = format!("ip route replace {SHARED} via {by}");
        self.story.peer().sh(&route).expect("a route");
    }

    /// A move from one host to the other.
    fn moves(&self, from: &dyn Host) {
        let story = &self.story;
        let spoken = Spoken::of(story, &self.container);
        let ended = story.migrate(from, &self.container, &by(&SERVICES));
        let log = story.logs();
        assert!(
            ended.outcome() == "moved" && ended.code() == Some(0),
            "{}\n{log}",
            ended.said()
        );
        println!("{}", ended.said());
        let to = story.other(from);
        // Later than the move: until now the source has got what is for the container, and nobody has said that it is not there.
        self.lead_to(to);
        thread::sleep(AROUND);
        spoken.in_turn(from.name() == "b");
        let report = ended.report.expect("a report");
        let services = report["plan"]["services"].as_array().expect("services");
        let moved: Vec<_> = services.iter().map(|s| s["moves"].as_bool()).collect();
        assert_eq!(moved, [Some(true), Some(true), Some(false)]);
        assert!(
            self.container.runs_on(to) && !self.container.runs_on(from),
            "{log}"
        );
        self.all_is_at(to);
        let tables = from
            .sh("nft list tables | grep netmig | grep -v netmig-gone || true")
            .expect("tables");
        assert_eq!(tables, "", "left on the source");
        self.nobody_was_refused();
    }

    /// The addresses and the connections are this host's, and the other one has nothing of them.
    fn all_is_at(&self, host: &dyn Host) {
        let other = self.story.other(host);
        for service in moving() {
            let of = |host: &dyn Host| {
                host.sh(&format!(
                    "ip -o addr show to {service} | awk '{{print $2, $4}}'"
                ))
                .expect("addresses")
            };
            let netmask = if service.contains(':') { 128 } else { 24 };
            let here = of(host);
            let log = || self.story.logs();
            assert_eq!(
                here.trim(),
                format!("br0 {service}/{netmask}"),
                "on {}:\n{}",
                host.name(),
                log()
            );
            assert_eq!(of(other).trim(), "", "on {}:\n{}", other.name(), log());
        }
        let tracked = "(conntrack -L; conntrack -L -f ipv6) 2>/dev/null | grep -e 192.0.2.50 -e 2001:db8::50 -e 198.51.100.10 -e fd00:51::10 || true";
        let of = |host: &dyn Host| host.sh(tracked).expect("tracked");
        assert!(
            of(host).lines().count() > SERVICES.len(),
            "on {}",
            host.name()
        );
        assert_eq!(of(other), "", "still tracked on {}", other.name());
    }

    /// A move that fails in the target's restore: everything is as it was.
    fn stays(&self, at: &dyn Host) {
        let mut catcher = Catcher::set(self.story.other(at), "post-restore", "criu");
        let ended = self.story.migrate(at, &self.container, &by(&SERVICES));
        catcher.caught();
        let log = self.story.logs();
        assert_eq!(ended.outcome(), "kept", "{}\n{log}", ended.said());
        assert!(self.container.runs_on(at), "{log}");
        self.all_is_at(at);
        for host in [self.story.a(), self.story.b()] {
            let tables = host.sh("nft list tables | grep netmig || true");
            assert_eq!(tables.expect("tables"), "", "left on {}", host.name());
        }
        self.nobody_was_refused();
    }

    fn nobody_was_refused(&self) {
        let counted = self.story.peer().sh("nft list counters").expect("counters");
        assert_eq!(counted.matches("packets 0 bytes 0").count(), 3, "{counted}");
    }

    /// What the connection that the container has begun tells, and by which ends it comes to the peer.
    fn own_connection(&self) -> (Outcome, String) {
        let peer = self.story.peer();
        let told = peer
            .run(&[PEER_PROGRAM, "ask", "--to", "192.0.2.100:6379"])
            .expect("its word");
        let ends = peer.sh("ss -Htn state established '( sport = :6379 )' | awk '{print $4}' | grep 192.0.2.50").expect("one connection");
        (serde_json::from_str(&told).expect("JSON"), ends)
    }
}

/// Those that only one host has.
fn moving() -> impl Iterator<Item = &'static str> {
    SERVICES.into_iter().filter(|service| *service != SHARED)
}

/// In order is asked for, however busy the machine is.
fn by<'a>(services: &[&'a str]) -> Vec<&'a str> {
    services
        .iter()
        .flat_map(|service| ["--service-address", *service])
        .chain(["--barrier-limit", "2000"])
        .collect()
}

fn client(kind: &str, name: String, service: &str, port: u16, more: &[&str]) -> Client {
    let to = SocketAddr::new(service.parse().expect("an address"), port).to_string();
    let args = [kind, "--name", &name, "--to", &to, "--limit", "900"];
    Client {
        args: args.iter().chain(more).map(ToString::to_string).collect(),
        name,
    }
}

fn stream(direction: &str, service: &str) -> Client {
    let more = ["--direction", direction, "--rate", "3000000"];
    client("bulk", format!("{direction}-{service}"), service, 80, &more)
}

fn datagrams(service: &str) -> Client {
    let more = ["--per-second", "200"];
    client("udp", format!("udp-{service}"), service, 53, &more)
}

/// Of datagrams each, once and in its turn; of a stream, which waits for its reader, much.
fn all_came(outcome: &Outcome) -> bool {
    let row = &outcome.row;
    match row.kind {
        Kind::Udp => {
            let unwanted = (outcome.duplicated, outcome.reordered);
            row.sent > Some(500) && row.received == row.sent && unwanted == (0, 0)
        }
        _ => row.bytes > 1 << 20,
    }
}

#[test]
fn a_container_behind_its_host_keeps_its_connections() {
    let stage = Stage::up();
    let story = &stage.story;
    let clients = [
        stream("inbound", SERVICES[0]),
        stream("outbound", SERVICES[0]),
        stream("inbound", SERVICES[1]),
        stream("outbound", SHARED),
        datagrams(SERVICES[0]),
        datagrams(SERVICES[1]),
    ];
    let running = Running::start(story.peer(), PEER_PROGRAM, &clients).expect("clients");
    running.wait_warm(PATIENCE).expect("warm clients");
    let asked = format!("timeout 5 {PEER_PROGRAM} ask --to 192.0.2.100:6379");
    story
        .peer()
        .wait_for(&asked, PATIENCE)
        .expect("its own connection");
    let (before, ends) = stage.own_connection();

    // Refused, and nothing is changed: by addresses that stay, one of which ssh goes by.
    let ended = story.migrate(
        story.a(),
        &stage.container,
        &by(&["192.0.2.1", "2001:db8::1"]),
    );
    let said = ended.said();
    assert_eq!(ended.code(), Some(3), "{said}");
    for word in [
        "ssh on this host has a connection at service address",
        "its peer knows it by 192.0.2.50, which stays here",
    ] {
        let log = story.logs();
        assert!(said.contains(word), "no `{word}` in: {said}\n{log}");
    }

    stage.stays(story.a());
    stage.moves(story.a());
    stage.moves(story.b());
    let outcomes = running.stop(PATIENCE).expect("outcomes");
    let dirty: Vec<_> = outcomes
        .iter()
        .filter(|o| !o.clean() || o.connects > 1 || !all_came(o))
        .collect();
    assert!(dirty.is_empty(), "{dirty:#?}\n{}", story.logs());
    for outcome in &outcomes {
        println!(
            "{}: {} bytes, longest pause {} ms",
            outcome.row.name, outcome.row.bytes, outcome.row.longest_pause_ms
        );
    }
    let (after, same) = stage.own_connection();
    assert!(
        after.clean() && after.row.operations > before.row.operations,
        "{after:#?} after {before:#?}"
    );
    assert_eq!(same, ends, "it is the same connection");
    story.nothing_is_left();
}
