//! Kinds of links and of filters that not every kernel has, taken down and made again in a guest that has them.
use netmig_lab::{Host as _, vm::VmHost};

use crate::boot;

/// Two hosts' bridges, and a container on the first.
const HOST: &str = "
    ip netns add src; ip link add br0 type bridge mcast_snooping 0; ip link set br0 up
    ip link add v-src type veth peer name eth0 netns src; ip link set v-src master br0 up
    ip -n src link set lo up; ip -n src link set eth0 up
    ip -n src addr add 192.0.2.10/24 dev eth0; ip -n src addr add 2001:db8::10/64 dev eth0 nodad
    ip netns exec src sh -ec \"$INSIDE\"
    netmig-user net dump --netns src --out /run/a.json
    ip -n src link del eth0";

/// Taken down and made anew, it is the same: but for the indices, since a new namespace has devices of the tunnels' modules by now.
const AGAIN: &str = "
    netmig-user net restore /run/a.json --netns dst --attach eth0=br0 2>&1 | grep -v 'has another one' || true
    netmig-user net diff /run/a.json netns:dst | grep -v -E '^links [^ ]*: index [0-9]* -> [0-9]*$' || true";

const LINKS: &str = "
    for mode in 0 1 2 3 4 5 6; do ip link add bond$mode type bond mode $mode; done
    for n in 1 2 3 4; do ip link add s$n type veth peer name t$n; ip link set t$n up; done
    ip link add backup type bond mode active-backup miimon 100 updelay 200 downdelay 300 primary s1 num_grat_arp 3
    ip link set s1 master backup; ip link set s2 master backup; ip link set backup up; ip addr add 10.10.0.1/24 dev backup
    ip link add aggr address 02:00:00:00:0b:11 type bond mode 802.3ad lacp_rate fast xmit_hash_policy layer3+4 ad_select bandwidth min_links 1
    ip link set s3 master aggr; ip link set s4 master aggr; ip link set aggr up; ip addr add 10.11.0.1/24 dev aggr
    ip link set dev s3 type bond_slave queue_id 3
    ip link add watch type bond mode active-backup arp_interval 500 arp_ip_target 192.0.2.1,192.0.2.2 arp_validate active
    ip link add gre1 type gre local 192.0.2.10 remote 192.0.2.20 ttl 64 key 5 dev eth0
    ip link add gre2 type gretap local 192.0.2.10 remote 192.0.2.21 ikey 1 okey 2 csum
    ip link add gre3 type gre external
    ip link add ipip1 type ipip local 192.0.2.10 remote 192.0.2.22 ttl 9
    ip link add sit1 type sit local 192.0.2.10 remote 192.0.2.23 ttl 9
    ip link add ip6t type ip6tnl local 2001:db8::10 remote 2001:db8::20 mode any encaplimit 5
    ip link add ip6g type ip6gre local 2001:db8::10 remote 2001:db8::21
    ip link add ip6gt type ip6gretap local 2001:db8::10 remote 2001:db8::22
    ip link add ers type erspan local 192.0.2.10 remote 192.0.2.24 seq key 7 erspan_ver 1 erspan 12
    ip link add gnv type geneve id 77 remote 192.0.2.25 ttl 4 dstport 6082
    ip link add gnv6 type geneve id 78 remote 2001:db8::25 udp6zerocsumtx
    ip link add wg0 type wireguard; ip link set wg0 mtu 1390; ip addr add 10.99.0.1/24 dev wg0
    ip link add d0 type dummy; ip link add red type vrf table 99; ip link set d0 master red
    ip link add link eth0 name eth0.5 type vlan id 5
    ip link add br7 type bridge vlan_filtering 1 mcast_snooping 0; ip link add p1 type veth peer name q1; ip link set p1 master br7
    bridge vlan add dev p1 vid 7 pvid untagged; bridge vlan add dev p1 vid 8; bridge vlan del dev p1 vid 1; bridge vlan add dev br7 vid 7 self
    bridge link set dev p1 isolated on learning off
    for link in br7 p1 q1 gre1 gre2 ipip1 sit1 ip6t ip6g gnv wg0 eth0.5 d0; do ip link set $link up; done
    bridge fdb add 02:00:00:00:07:01 dev p1 master static vlan 7
    ip route add 10.98.0.0/16 dev wg0; ip route add 10.97.0.0/16 dev gre1";

const FILTERS: &str = "
    ip link add d0 type dummy; ip link set d0 up
    tc qdisc add dev eth0 clsact
    tc filter add dev eth0 ingress prio 1 protocol ip flower ip_proto tcp dst_port 80 action gact ok
    tc filter add dev eth0 ingress prio 2 protocol all matchall action skbedit mark 5 action mirred egress mirror dev d0
    tc filter add dev eth0 egress prio 3 protocol ip flower skip_hw src_ip 10.0.0.0/8 action vlan push id 7 action csum ip
    tc filter add dev eth0 egress prio 4 protocol 802.1q flower vlan_id 5 action vlan pop pipe action gact drop random determ pass 5
    tc qdisc add dev d0 root handle 1: prio
    tc filter add dev d0 parent 1: prio 4 protocol ip handle 6 fw classid 1:2
    tc filter add dev d0 parent 1: prio 6 protocol ip basic match 'cmp(u8 at 0 layer 2 mask 0xff gt 5)' classid 1:1
    tc filter add dev d0 parent 1: prio 7 protocol ip flower ip_proto udp dst_port 53 action pedit ex munge ip ttl set 9 pipe action nat ingress 10.0.0.0/24 10.0.1.1
    tc filter add dev d0 parent 1: prio 8 protocol ip chain 5 matchall action skbedit priority 1:2
    nft 'add table inet fast; add flowtable inet fast f { hook ingress priority 0; devices = { eth0, d0 }; counter; }
         add chain inet fast way { type filter hook forward priority 0; policy accept; }; add rule inet fast way ip protocol { tcp, udp } flow add @f
         add rule inet fast way fib daddr type local queue flags bypass to 5'";

/// The settings of a WireGuard device, in the order in which the kernel shows them: its own tool is not in the guest, and a document does as
/// well.
const KEYS: &str = r#"
import json, struct
def attr(kind, value):
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
NESTED = 0x8000
def peer(key, preshared):
    allowed = attr(3, bytes([16])) + attr(1, struct.pack("H", 2)) + attr(2, bytes([10, key, 0, 0]))
    endpoint = struct.pack("H", 2) + struct.pack(">H", 51820 + key) + bytes([192, 0, 2, key]) + bytes(8)
    return attr(NESTED, attr(1, bytes([key] * 32)) + attr(2, bytes([preshared] * 32)) + attr(5, struct.pack("H", 25))
                + attr(10, struct.pack("I", 1)) + attr(4, endpoint) + attr(9 | NESTED, attr(NESTED, allowed)))
private = bytes([8] + [77] * 30 + [77])
settings = [(3, private), (6, struct.pack("H", 51820)), (7, struct.pack("I", 99)), (8, peer(20, 66) + peer(21, 0))]
document = json.load(open("/run/a.json"))
for link in document["network"]["links"]:
    if link["name"] == "wg0":
        link["kind"]["virtual"]["settings"] = [{"number": n, "value": list(v)} for n, v in settings]
json.dump(document, open("/run/a.json", "w"))
"#;

fn taken_down(guest: &VmHost, inside: &str) {
    guest
        .sh(&format!(
            "set -e; INSIDE='set -e; {}'; {HOST}",
            inside.replace('\'', "'\\''")
        ))
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
#[ignore = "boots virtual machines"]
fn links_and_filters_of_every_kind_come_along() {
    let guest = boot("6.12");
    taken_down(&guest, LINKS);
    guest
        .write("/run/keys.py", KEYS.as_bytes(), 0o600)
        .expect("written");
    guest.run(&["python3", "/run/keys.py"]).expect("keys");
    assert_eq!(guest.sh(AGAIN).expect("made again"), "");
    // With its keys, of which nothing is written down unless it is asked for.
    let told = "netmig-user net dump --netns dst --out /run/b.json 2>&1";
    let told = guest.sh(told).expect("dumped");
    assert!(
        told.contains("the keys of WireGuard device wg0 are not in this document"),
        "{told}"
    );
    let keys = "
import json
def settings(file):
    links = json.load(open(file))['network']['links']
    return [[(s['number'], s['value']) for s in l['kind']['virtual']['settings']] for l in links if l['name'] == 'wg0'][0]
a, b, c = settings('/run/a.json'), settings('/run/b.json'), settings('/run/c.json')
print([n for n, _ in b], dict(a)[3] == dict(c)[3], bytes([66] * 32) in bytes(dict(c)[8]), bytes([66] * 32) in bytes(dict(b)[8]))
";
    guest
        .write("/run/compare.py", keys.as_bytes(), 0o600)
        .expect("written");
    let compared = guest
        .sh("netmig-user net dump --netns dst --keys --out /run/c.json; python3 /run/compare.py; ip netns exec dst ss -Huln sport = :51820 | wc -l")
        .expect("compared");
    assert_eq!(
        compared.lines().collect::<Vec<_>>(),
        ["[6, 7, 8] True True False", "2"]
    );
    // One whose packets go through another namespace is not the container's alone.
    let elsewhere = guest
        .sh("ip link add wg9 type wireguard; ip link set wg9 netns dst; ip -n dst link set wg9 up; netmig-user net dump --netns dst --out /run/d.json 2>&1")
        .expect("dumped");
    assert!(
        elsewhere.contains("link wg9 is a wireguard (its socket is in another namespace) device"),
        "{elsewhere}"
    );

    guest
        .sh("ip netns del src; ip netns del dst; ip link del br0")
        .expect("room");
    taken_down(&guest, FILTERS);
    let filters = "python3 -c 'import json; print(sum(len(d[\"filters\"]) for d in json.load(open(\"/run/a.json\"))[\"network\"][\"shaping\"]))'";
    assert_eq!(guest.sh(filters).expect("counted").trim(), "8");
    let flowtable = "grep -c 'devices = {.*eth0\\|flow add @f' /run/a.json";
    assert_eq!(guest.sh(flowtable).expect("counted").trim(), "2");
    assert_eq!(guest.sh(AGAIN).expect("made again"), "");
}

/// Hosts a and b and a peer on one segment; a container's ipvlan lies on a's only device.
const SEGMENT: &str = "
    ip link add seg type bridge mcast_snooping 0; ip link set seg up
    for host in a b peer; do
        ip netns add $host; ip link add to-$host type veth peer name up0 netns $host; ip link set to-$host master seg up
        ip -n $host link set lo up; ip -n $host link set up0 up
    done
    ip -n b link add eth0 type dummy
    ip -n a addr add 192.0.2.1/24 dev up0; ip -n b addr add 192.0.2.2/24 dev up0
    ip -n peer addr add 192.0.2.100/24 dev up0; ip -n peer addr add 2001:db8::100/64 dev up0 nodad
    ip netns add src; ip -n a link add iv0 link up0 netns src type ipvlan mode l2 private
    ip -n src link set lo up; ip -n src link set iv0 name eth0 mtu 1400; ip -n src link set eth0 up
    ip -n src addr add 192.0.2.10/24 dev eth0; ip -n src addr add 2001:db8::10/64 dev eth0 nodad; ip -n src route add default via 192.0.2.100";

/// Where the peer sends what is for the container, after it was answered.
const REACHED: &str = "
    for ip in 192.0.2.10 2001:db8::10; do
        ip netns exec peer python3 -c 'import socket, sys
s = socket.socket(socket.AF_INET6 if \":\" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10); s.connect((sys.argv[1], 9)); s.send(b\"?\")
try: s.recv(1)
except ConnectionRefusedError: pass' $ip
        ip -n peer neigh show $ip | grep -o 'lladdr [^ ]*'
    done";

#[test]
#[ignore = "boots virtual machines"]
fn what_lies_on_a_device_of_the_host_is_made_on_another() {
    let guest = boot("6.12");
    let sh = |command: &str| guest.sh(command).unwrap_or_else(|error| panic!("{error}"));
    sh(&format!("set -e; {SEGMENT}"));
    let mac = |host: &str| {
        let mac = sh(&format!(
            "ip -n {host} -o link show up0 | grep -o 'ether [^ ]*'"
        ));
        mac.trim().replace("ether", "lladdr")
    };
    let seen_at = |host: &str| {
        let reached = sh(&format!("set -e; {REACHED}"));
        assert_eq!(reached.lines().collect::<Vec<_>>(), [mac(host), mac(host)]);
    };
    seen_at("a");
    // With the mounts of the guest, where a namespace that is made stays.
    let on = |host: &str, command: &str| {
        sh(&format!(
            "nsenter --net=/run/netns/{host} netmig-user net {command} 2>&1 && echo code 0 || echo code $?"
        ))
    };
    let dumped = on("a", "dump --netns src --out /run/a.json");
    assert_eq!(dumped.trim(), "code 0");
    let restore = "restore /run/a.json --netns dst --attach eth0=up0";

    // All of a device have one mode, and a macvlan beside them is not possible.
    for (other, words) in [
        (
            "ipvlan mode l3",
            "link eth0 is an ipvlan of mode l2, and other on up0 here is of another one",
        ),
        ("macvlan", "up0 carries a macvlan (other) here"),
    ] {
        sh(&format!(
            "ip netns add third; ip -n b link add other link up0 netns third type {other}"
        ));
        let refused = on("b", restore);
        assert!(
            refused.contains(words) && refused.contains("code 3"),
            "{refused}"
        );
        sh("set -e; ip -n third link del other; ip netns del third");
    }

    // What fails halfway is undone.
    sh("sed 's/192.0.2.100/192.0.9.1/' /run/a.json >/run/bad.json");
    let failed = on("b", &restore.replace("a.json", "bad.json"));
    assert!(
        failed.contains("adding route") && failed.contains("code 1"),
        "{failed}"
    );
    assert!(!sh("ip netns").contains("dst"));

    sh("ip -n src link del eth0");
    let made = on("b", &format!("{restore} --announce"));
    assert!(made.contains("code 0"), "{made}");
    assert_eq!(on("b", "diff /run/a.json netns:dst").trim(), "code 0");
    assert_eq!(
        sh("ip -n dst -d link show eth0 | grep -o 'ipvlan *mode l2 private'").trim(),
        "ipvlan  mode l2 private"
    );
    // Told, and not asked for: the peer has the new place before it sends anything.
    for ip in ["192.0.2.10", "2001:db8::10"] {
        let known = sh(&format!(
            "ip -n peer neigh show {ip} | grep -o 'lladdr [^ ]*'"
        ));
        assert_eq!(known.trim(), mac("b"), "{ip}");
    }
    seen_at("b");

    // The same name and index are in use on the host, in whose namespace this kernel makes it first.
    sh("set -e; ip -n dst link del eth0; ip netns del dst
        ip -n a link add mv0 link up0 netns src type macvlan mode bridge; ip -n src link set mv0 name eth0; ip -n src link set eth0 up");
    assert_eq!(
        on("a", "dump --netns src --out /run/a.json").trim(),
        "code 0"
    );
    sh("ip -n src link del eth0");
    let made = on("b", restore);
    assert_eq!(made.trim(), "code 0");
    assert_eq!(on("b", "diff /run/a.json netns:dst").trim(), "code 0");
}

/// Lets INPUT of the table `filter` drop what it does not accept (struct ebt_replace: three chains without rules): the program is not in
/// the guest.
const EBTABLES: &str = r#"
import ctypes, socket, struct
chain = lambda name, policy: struct.pack("I32sIiI", 0, name, 0, policy, 0)
chains = ctypes.create_string_buffer(chain(b"INPUT", -2) + chain(b"FORWARD", -1) + chain(b"OUTPUT", -1), 3 * 48)
at = ctypes.addressof(chains)
hooks = [0, at, at + 48, at + 96, 0, 0]
table = struct.pack("32sIIIxxxx6QIxxxxQQ", b"filter", 0b1110, 0, 3 * 48, *hooks, 0, 0, at)
socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).setsockopt(0, 128, table + chains.raw)
"#;

#[test]
#[ignore = "boots virtual machines"]
fn ebtables_on_the_kernels_own_tables_is_named() {
    let guest = boot("6.12");
    guest
        .write("/run/policy.py", EBTABLES.as_bytes(), 0o600)
        .expect("written");
    let dumped = |before: &str| {
        guest
            .sh(&format!(
                "{before}; netmig-user net dump --netns src 2>&1 >/dev/null"
            ))
            .unwrap_or_else(|error| panic!("{error}"))
    };
    assert_eq!(
        dumped("ip netns add src; ip -n src link add br7 type bridge"),
        ""
    );
    assert_eq!(dumped("modprobe ebtable_filter"), "", "nobody has used it");
    assert_eq!(
        dumped("ip netns exec src python3 /run/policy.py"),
        "not carried: ebtables-legacy table filter is in use, and is not carried: make its rules with ebtables-nft or nft instead"
    );
}
