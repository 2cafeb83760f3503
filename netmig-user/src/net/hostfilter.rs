//! What a target's own packet filter would do to connections that it has not seen begin.
//!
//! Bridged frames pass the filters of IP only where br_netfilter hands them over (`net.bridge.bridge-nf-call-*tables`, which container
//! engines set), those of bridges always, and those at a device (netdev) where they come in or go out there. `rp_filter` of the host does not
//! look at them: they are not routed (br_nf_pre_routing_finish()). A rule that does the same (`fib saddr . iif oif missing`, rpfilter) does.
use std::collections::BTreeSet;

use netmig_core::image::v1::filter::{Filters, Table, XProgram, XTable};

use super::{Error, filter, link::Seen, sysctl};

/// Hands bridged frames of a family to the filters of IP.
const CALLS: [&str; 2] = [
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
];
const FORWARDS: &str = "drops what it forwards";
const TCP_LOOSE: &str = "netfilter/nf_conntrack_tcp_loose";
/// Tables with which netmig itself keeps frames back.
const OURS: &str = "netmig-";

/// Where the container's frames pass on this host.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// Whether one of its links is on a bridge.
    pub bridge: bool,
    /// The bridges, their ports, the parent devices.
    pub devices: BTreeSet<String>,
}

impl Passed {
    /// Adds a parent of a link of the container; `host` are this host's links.
    pub fn add(&mut self, parent: &Seen, host: &[Seen]) {
        self.bridge |= parent.kind.as_deref() == Some("bridge");
        let ports = host.iter().filter(|l| l.master == Some(parent.index));
        self.devices
            .extend(ports.chain([parent]).map(|l| l.name.clone()));
    }
}

/// What of this host's filters and settings may drop the container's packets, in words, each with what to do.
///
/// # Errors
/// If the filters or settings cannot be read.
pub fn concerns(passed: &Passed) -> Result<Vec<String>, Error> {
    if passed.devices.is_empty() {
        return Ok(Vec::new());
    }
    let mut on = Vec::new();
    for path in CALLS {
        if passed.bridge && sysctl::read(path)?.is_some_and(|value| value != "0") {
            on.push(path);
        }
    }
    let called = (!on.is_empty()).then(|| {
        format!(
            "this host's packet filter sees bridged frames (net/{} is 1)",
            on.join(", net/")
        )
    });
    let mut found = Vec::new();
    if let Some(called) = &called
        && sysctl::read(TCP_LOOSE)?.is_some_and(|value| value == "0")
    {
        found.push(format!(
            "{called}, and takes connections that it has not seen begin for invalid (net/{TCP_LOOSE} is 0): those that the source host \
             tracks come along, others may be dropped; set net/{TCP_LOOSE} to 1"
        ));
    }
    let filters = filter::dump()?;
    if let Some(called) = called {
        found.extend(drops(&filters, is_of_ip).into_iter().map(|what| {
            format!("{called}, and {what}: the container's packets may be dropped; accept what comes and goes on its bridge before that")
        }));
    }
    if passed.bridge {
        found.extend(drops(&filters, is_of_bridges).into_iter().map(|what| {
            format!("this host's filter of bridged frames: {what}: the container's may be dropped; accept what comes and goes for it before that")
        }));
    }
    found.extend(at_devices(&filters, &passed.devices).into_iter().map(|what| {
        format!("{what}: it carries the container's frames, which may be dropped; accept what comes and goes for it before that")
    }));
    Ok(found)
}

fn is_of_ip(family: &str) -> bool {
    matches!(family, "ip" | "ip6" | "inet")
}

fn is_of_bridges(family: &str) -> bool {
    family == "bridge"
}

/// Policies of `filters` that drop what is forwarded: what a container behind this host sends and gets, in words with what to do.
pub fn forwarded(filters: &Filters) -> Vec<String> {
    let policies = drops(filters, is_of_ip)
        .into_iter()
        .filter(|what| what.contains(FORWARDS));
    policies
        .map(|what| format!("{what}: the container's packets pass only where a rule before that accepts them; accept what comes and goes on its bridge"))
        .collect()
}

/// Rules that drop what is invalid or comes from where no route leads, and policies that drop what is forwarded, of these families.
fn drops(filters: &Filters, of: fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for table in filters
        .nft
        .iter()
        .filter(|t| of(&t.family) && !t.name.starts_with(OURS))
    {
        for (chain, line) in rules(table) {
            let why = if line == chain.head {
                (line.contains(" hook forward ") && line.contains("policy drop"))
                    .then_some(FORWARDS)
            } else if !line.contains("drop") {
                None
            } else if line.contains("ct state") && line.contains("invalid") {
                Some("drops what is invalid")
            } else {
                (line.contains("fib saddr") && line.contains("oif"))
                    .then_some("drops what comes from where no route leads")
            };
            found.extend(why.map(|why| format!("{table} {why} (`{line}`)")));
        }
    }
    let family = |table: &&XTable| match table.program {
        XProgram::EbtablesNft => of("bridge"),
        XProgram::ArptablesNft => false,
        _ => of("ip"),
    };
    for table in filters.xtables.iter().filter(family) {
        for line in &table.lines {
            let drop = line.ends_with("-j DROP");
            let why = if line.starts_with(":FORWARD DROP") {
                FORWARDS
            } else if drop && line.contains("INVALID") {
                "drops what is invalid"
            } else if drop && line.contains("-m rpfilter") {
                "drops what comes from where no route leads"
            } else {
                continue;
            };
            found.push(format!("{table} {why} (`{line}`)"));
        }
    }
    let unread = filters
        .lost
        .iter()
        .filter(|what| of("bridge") && what.starts_with("ebtables-legacy"));
    found.extend(unread.cloned());
    found
}

/// The first of each chain at one of `devices` that drops.
fn at_devices(filters: &Filters, devices: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for table in filters.nft.iter().filter(|t| !t.name.starts_with(OURS)) {
        let mut last = "";
        for (chain, line) in rules(table) {
            let Some(device) = chain.devices.iter().find(|d| devices.contains(*d)) else {
                continue;
            };
            if chain.name != last && (line.contains("drop") || line.contains("reject")) {
                last = chain.name;
                found.push(format!("{table} drops at {device} (`{line}`)"));
            }
        }
    }
    found
}

/// The chain that a rule is in.
#[derive(Clone, Default)]
struct Chain<'a> {
    name: &'a str,
    /// The line with its type, hook and policy.
    head: &'a str,
    /// The devices that it is at.
    devices: Vec<String>,
}

/// The lines of a table's chains, each with its chain.
fn rules(table: &Table) -> Vec<(Chain<'_>, &str)> {
    let mut all = Vec::new();
    let mut chain = Chain::default();
    for line in table.lines.iter().map(|line| line.trim()) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = Chain {
                name: name.trim_end_matches(" {"),
                ..Chain::default()
            };
        } else if line.starts_with("type ") && line.contains(" hook ") {
            chain.head = line;
            // `device "eth0"`, `devices = { "eth0", "eth1" }`; before a priority and behind the hook there are no other names.
            chain.devices = (line.split('"').skip(1).step_by(2))
                .map(str::to_owned)
                .collect();
            let bare = line.split_once(" devices = { ").map(|(_, rest)| rest);
            if let Some((names, _)) = bare.and_then(|rest| rest.split_once(" }")) {
                chain.devices = (names.split(", "))
                    .map(|name| name.trim_matches('"').to_owned())
                    .collect();
            }
        }
        all.push((chain.clone(), line));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn table(family: &str, text: &str) -> Table {
        Table {
            family: family.into(),
            name: "f".into(),
            lines: lines(text),
        }
    }

    #[test]
    fn what_drops_connections_that_began_elsewhere_is_found() {
        let filters = Filters {
            nft: vec![
                table(
                    "inet",
                    "table inet f {\n chain a {\n  type filter hook forward priority filter; policy drop;\n  ct state vmap { invalid : drop }\n }\n \
                     chain b {\n  type filter hook input priority filter; policy drop;\n  tcp dport 22 accept\n }\n \
                     chain c {\n  type filter hook prerouting priority raw;\n  fib saddr . iif oif 0 drop\n }\n}",
                ),
                table(
                    "bridge",
                    "table bridge f {\n chain a {\n  type filter hook forward priority 0; policy accept;\n  ct state invalid counter packets 0 bytes 0 drop\n }\n}",
                ),
            ],
            xtables: vec![
                XTable {
                    program: XProgram::IptablesNft,
                    name: "filter".into(),
                    lines: lines(
                        "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n[0:0] -A FORWARD -m conntrack --ctstate INVALID -j DROP\n[0:0] -A PREROUTING -m rpfilter --invert -j DROP\nCOMMIT",
                    ),
                },
                XTable {
                    program: XProgram::EbtablesNft,
                    name: "filter".into(),
                    lines: lines("*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT"),
                },
            ],
            lost: vec!["ebtables-legacy table nat is in use".into()],
            ..Filters::default()
        };
        let found = drops(&filters, is_of_ip);
        assert_eq!(found.len(), 6, "{found:#?}");
        assert!(found[0].starts_with("nft table inet f drops what it forwards"));
        assert!(
            found[2].starts_with("nft table inet f drops what comes from where no route leads")
        );
        assert!(found[4].starts_with("iptables-nft table filter drops what is invalid"));
        let found = drops(&filters, is_of_bridges);
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(found[0].starts_with("nft table bridge f drops what is invalid"));
        assert_eq!(
            found[1],
            "ebtables-nft table filter drops what it forwards (`:FORWARD DROP`)"
        );
        let forwarded = forwarded(&filters);
        assert_eq!(forwarded.len(), 2, "{forwarded:#?}");
    }

    #[test]
    fn what_drops_at_a_device_is_found_if_frames_pass_there() {
        let filters = Filters {
            nft: vec![
                table(
                    "netdev",
                    "table netdev f {\n chain a {\n  type filter hook ingress devices = { \"eth1\", \"eth2\" } priority filter; policy drop;\n  ip saddr 1.1.1.1 accept\n }\n \
                     chain b {\n  type filter hook egress device \"eth1\" priority filter; policy accept;\n  ip saddr 1.1.1.1 drop\n  tcp dport 1 drop\n }\n}",
                ),
                table(
                    "inet",
                    "table inet f {\n chain a {\n  type filter hook ingress devices = { eth1, eth3 } priority filter; policy accept;\n  tcp dport 8 reject\n }\n}",
                ),
            ],
            ..Filters::default()
        };
        let at = |devices: &[&str]| {
            at_devices(&filters, &devices.iter().map(|d| (*d).to_owned()).collect())
        };
        assert_eq!(
            at(&["br0", "eth2"]),
            [
                "nft table netdev f drops at eth2 (`type filter hook ingress devices = { \"eth1\", \"eth2\" } priority filter; policy drop;`)"
            ]
        );
        assert_eq!(at(&["eth1"]).len(), 3);
        assert_eq!(
            at(&["eth3"]),
            ["nft table inet f drops at eth3 (`tcp dport 8 reject`)"]
        );
        assert!(at(&["eth4"]).is_empty());
    }
}
