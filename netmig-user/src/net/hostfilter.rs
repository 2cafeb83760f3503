//! What a target's own packet filter would do to connections that it has not seen begin.
//!
//! Bridged frames pass it only where br_netfilter hands them over (`net.bridge.bridge-nf-call-*tables`, which container engines set).
use netmig_core::image::v1::filter::Filters;

use super::{Error, filter, sysctl};

/// Hands bridged frames of a family to the filters of IP.
const CALLS: [&str; 2] = [
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
];
const TCP_LOOSE: &str = "netfilter/nf_conntrack_tcp_loose";

/// What of this host's filters and settings may drop the container's packets on its bridge, in words, each with what to do.
///
/// # Errors
/// If the filters or settings cannot be read.
pub fn concerns() -> Result<Vec<String>, Error> {
    let mut on = Vec::new();
    for path in CALLS {
        if sysctl::read(path)?.is_some_and(|value| value != "0") {
            on.push(path);
        }
    }
    if on.is_empty() {
        return Ok(Vec::new());
    }
    let called = format!(
        "this host's packet filter sees bridged frames (net/{} is 1)",
        on.join(", net/")
    );
    let mut found = Vec::new();
    if sysctl::read(TCP_LOOSE)?.is_some_and(|value| value == "0") {
        found.push(format!(
            "{called}, and takes connections that it has not seen begin for invalid (net/{TCP_LOOSE} is 0): those that the source host \
             tracks come along, others may be dropped; set net/{TCP_LOOSE} to 1"
        ));
    }
    found.extend(drops(&filter::dump()?).into_iter().map(|what| {
        format!("{called}, and {what}: the container's packets may be dropped; accept what comes and goes on its bridge before that")
    }));
    Ok(found)
}

/// Rules that drop what is invalid, and policies that drop what is forwarded.
fn drops(filters: &Filters) -> Vec<String> {
    let mut found = Vec::new();
    for table in filters
        .nft
        .iter()
        .filter(|t| t.family != "netdev" && t.family != "arp")
    {
        for line in table.lines.iter().map(|line| line.trim()) {
            if line.starts_with("type ") {
                if line.contains(" hook forward ") && line.contains("policy drop") {
                    found.push(format!("{table} drops what it forwards (`{line}`)"));
                }
            } else if line.contains("ct state") && line.contains("invalid") && line.contains("drop")
            {
                found.push(format!("{table} drops what is invalid (`{line}`)"));
            }
        }
    }
    for table in &filters.xtables {
        for line in &table.lines {
            if line.starts_with(":FORWARD DROP") {
                found.push(format!("{table} drops what it forwards (`{line}`)"));
            } else if line.contains("INVALID") && line.ends_with("-j DROP") {
                found.push(format!("{table} drops what is invalid (`{line}`)"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use netmig_core::image::v1::filter::{Table, XProgram, XTable};

    use super::*;

    #[test]
    fn what_drops_connections_that_began_elsewhere_is_found() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let filters = Filters {
            nft: vec![Table {
                family: "inet".into(),
                name: "f".into(),
                lines: lines(
                    "table inet f {\n chain a {\n  type filter hook forward priority filter; policy drop;\n  ct state vmap { invalid : drop }\n }\n \
                     chain b {\n  type filter hook input priority filter; policy drop;\n  tcp dport 22 accept\n }\n}",
                ),
            }],
            xtables: vec![XTable {
                program: XProgram::IptablesNft,
                name: "filter".into(),
                lines: lines(
                    "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n[0:0] -A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT",
                ),
            }],
            ..Filters::default()
        };
        let found = drops(&filters);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].starts_with("nft table inet f drops what it forwards"));
        assert!(found[3].starts_with("iptables-nft table filter drops what is invalid"));
    }
}
