//! What is read and made, and the tool for each kind of it.
use std::{fmt, path::Path, process::Command};

/// Data of one kind, and what reads and makes it beside netmig.
pub(super) struct Set {
    /// Name.
    pub name: &'static str,
    /// How much there is.
    pub sizes: &'static [(&'static str, u32)],
    /// The data as the tool reads it.
    pub text: fn() -> String,
    /// Makes what a file with such text says, in the calling thread's namespace.
    pub load: Tool,
    /// Writes what there is.
    pub list: Tool,
    /// netmig's parts for it.
    pub parts: &'static [&'static str],
    /// Whether they are tracked connections.
    pub connections: bool,
}

/// A command line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool(&'static [&'static str]);

impl Tool {
    /// The command, with a file as its last argument.
    pub fn command(self, file: Option<&Path>) -> Command {
        let mut command = Command::new(self.0[0]);
        command.args(&self.0[1..]).args(file);
        command
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

const NFT: Tool = Tool(&["nft", "-f"]);
const CONNTRACK: Tool = Tool(&["conntrack", "--load-file"]);
const IP: Tool = Tool(&["ip", "-batch"]);
/// Both families, all tables.
const SHOW: &str = "ip addr show && ip route show table all && ip -6 route show table all";

const RULES: u32 = 1000;
const ELEMENTS: u32 = 100_000;
const CONNECTIONS: u32 = 10_000;
const ADDRESSES: u32 = 1000;
const ROUTES: u32 = 1000;

/// Each kind by itself, large.
pub(super) const SETS: [Set; 3] = [
    Set {
        name: "filters",
        sizes: &[("rules", RULES), ("set_elements", ELEMENTS)],
        text: || filters(RULES, ELEMENTS),
        load: NFT,
        list: Tool(&["nft", "list", "ruleset"]),
        parts: &["filters"],
        connections: false,
    },
    Set {
        name: "connections",
        sizes: &[("connections", CONNECTIONS)],
        text: || connections(CONNECTIONS),
        load: CONNTRACK,
        list: Tool(&["conntrack", "-L", "-o", "save"]),
        parts: &["connections"],
        connections: true,
    },
    Set {
        name: "addresses and routes",
        sizes: &[("addresses", ADDRESSES), ("routes", ROUTES)],
        text: || addresses(ADDRESSES) + &routes(ROUTES),
        load: IP,
        list: Tool(&["sh", "-c", SHOW]),
        parts: &["addresses", "routes"],
        connections: false,
    },
];

/// How large a small container's network is.
pub(super) const SMALL: [(&str, u32); 4] = [
    ("addresses", 2),
    ("routes", 10),
    ("rules", 50),
    ("connections", 100),
];

/// What it has, and what makes it.
pub(super) fn small() -> [(String, Tool); 3] {
    let [(_, a), (_, r), (_, f), (_, c)] = SMALL;
    [
        (addresses(a) + &routes(r), IP),
        (filters(f, 0), NFT),
        (connections(c), CONNTRACK),
    ]
}

/// A table with `rules` rules, and sets with `elements` elements, a fifth of them of IPv6.
fn filters(rules: u32, elements: u32) -> String {
    let (v6, v4) = (elements / 5, elements - elements / 5);
    let set = |name: &str, kind: &str, mut members: Vec<String>| {
        // An empty list of elements is no syntax of nft's.
        if !members.is_empty() {
            members = vec![format!("elements = {{ {} }}", members.join(", "))];
        }
        format!(
            "\tset {name} {{\n\t\ttype {kind}\n\t\t{}\n\t}}\n",
            members.concat()
        )
    };
    let blocked4 = (0..v4).map(|i| format!("10.{}.{}.{}", i >> 16, i >> 8 & 255, i & 255));
    let blocked6 = (0..v6).map(|i| format!("2001:db8:f::{i:x}"));
    let rule = |i: u32| match i % 4 {
        0 => format!(
            "ip saddr 172.16.{}.0/24 tcp dport {} counter packets {i} bytes {} accept",
            i >> 2 & 255,
            1000 + i,
            i * 60
        ),
        1 => format!(
            "ip6 saddr 2001:db8:{i:x}::/48 udp dport {} accept",
            1000 + i
        ),
        2 => format!("meta mark {i} ct state new counter packets 0 bytes 0 drop"),
        _ => format!(
            "tcp dport {{ {}, {} }} ip daddr @blocked4 reject",
            1000 + i,
            20_000 + i
        ),
    };
    let rules = (0..rules).map(|i| format!("\t\t{}\n", rule(i)));
    format!(
        "table inet bench {{\n{}{}\tchain in {{\n\t\ttype filter hook input priority filter; policy accept;\n{}\t}}\n}}\n",
        set("blocked4", "ipv4_addr", blocked4.collect()),
        set("blocked6", "ipv6_addr", blocked6.collect()),
        rules.collect::<String>(),
    )
}

/// Half of them TCP, half UDP; of each a part is translated.
fn connections(count: u32) -> String {
    let line = |i: u32| {
        let client = format!("198.51.{}.{}", i / 200 % 256, i % 200 + 1);
        let port = 1024 + i / 2 % 60_000;
        // Every tenth comes to another port of another address.
        let (answering, answered) = if i % 10 < 2 {
            ("192.0.2.11", 8080)
        } else {
            ("192.0.2.10", 80)
        };
        let (protocol, state) = if i.is_multiple_of(2) {
            ("tcp", " --state ESTABLISHED")
        } else {
            ("udp", "")
        };
        format!(
            "-A -t 3000 -u SEEN_REPLY,ASSURED -s {client} -d 192.0.2.10 -r {answering} -q {client} -p {protocol} --sport {port} --dport 80 \
             --reply-port-src {answered} --reply-port-dst {port}{state}\n"
        )
    };
    (0..count).map(line).collect()
}

/// On `eth0`, half of them IPv6.
fn addresses(count: u32) -> String {
    let line = |i: u32| {
        let (block, host) = (i / 2 / 200, i / 2 % 200);
        match i % 2 {
            0 => format!(
                "addr add 192.0.{}.{}/20 brd + dev eth0\n",
                2 + block,
                10 + host
            ),
            _ => format!("addr add 2001:db8:1::{:x}/64 dev eth0 nodad\n", 16 + i),
        }
    };
    (0..count).map(line).collect()
}

/// Through `eth0`, half of them IPv6.
fn routes(count: u32) -> String {
    let line = |i: u32| match i % 2 {
        0 => format!(
            "route add 203.{}.{}.0/24 via 192.0.2.1 dev eth0 proto static metric {}\n",
            i >> 8,
            i & 255,
            100 + i % 3
        ),
        _ => format!(
            "route add 2001:db8:1{i:03x}::/48 via 2001:db8:1::1 dev eth0 metric {}\n",
            100 + i % 3
        ),
    };
    (0..count).map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn everything_is_there_once() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(lines(&connections(10_000)).len(), 10_000);
        assert_eq!(lines(&addresses(1000)).len(), 1000);
        assert_eq!(lines(&routes(1000)).len(), 1000);
        let large = filters(1000, 100_000);
        assert_eq!(large.matches("2001:db8:f::").count(), 20_000);
        assert_eq!(large.matches(", 10.").count() + 1, 80_000);
        assert_eq!(
            large.lines().filter(|l| l.starts_with("\t\t")).count(),
            1000 + 4 + 1
        );
        assert!(!filters(50, 0).contains("elements"));
    }
}
