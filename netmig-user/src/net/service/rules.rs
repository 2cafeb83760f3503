//! What of a host's packet filters translates for a container.
//!
//! Only text is compared: rules that name one of the container's addresses, and those that translate a source at large. What a rule means is
//! known to the kernel alone; a program of eBPF that translates shows in no rule at all.
use std::net::IpAddr;

use netmig_core::image::v1::filter::Filters;

use super::super::filter::settled;

/// Begins of words by which nft and iptables translate a source whatever it is.
const SOURCES: [&str; 4] = ["masquerade", "MASQUERADE", "snat", "SNAT"];

/// The rules that name one of `addresses` or translate sources, as the tools write them but for what counts. Sorted, each once.
pub fn translating(filters: &Filters, addresses: &[IpAddr]) -> Vec<String> {
    let filters = settled(filters);
    let nft = filters.nft.iter().flat_map(|t| &t.lines);
    let xtables = filters.xtables.iter().flat_map(|t| &t.lines);
    let mut found: Vec<_> = nft
        .chain(xtables)
        .map(|line| line.trim())
        .filter(|line| concerns(line, addresses))
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    found
}

fn concerns(line: &str, addresses: &[IpAddr]) -> bool {
    // An address ends where something comes that is no part of one: a port behind a colon is none of an IPv4 address.
    let mut words = line.split([' ', ',', '{', '}', '"', '[', ']']);
    words.any(|word| {
        let address = word.split('/').next().unwrap_or(word);
        let without_port = address
            .rsplit_once(':')
            .map_or(address, |(address, _)| address);
        SOURCES.contains(&word)
            || [address, without_port]
                .iter()
                .any(|text| text.parse::<IpAddr>().is_ok_and(|a| addresses.contains(&a)))
    })
}

/// Which rules of the `source` this host lacks, in words; and that none was found there.
pub fn missing(source: &[String], here: &[String]) -> Vec<String> {
    if source.is_empty() {
        return vec![
            "no rule of nftables or iptables on the source host names the container or translates sources: what translates there is not known, and whether \
             this host does so too; a new connection shows it"
                .to_owned(),
        ];
    }
    let absent = source.iter().filter(|rule| !here.contains(rule));
    absent
        .map(|rule| {
            format!(
                "the source host has the rule `{rule}`, and this host none of these words: new connections may find the container no more, or leave it \
                 untranslated (those that are under way do not need it); add it, or one that does the same"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use netmig_core::image::v1::filter::{Table, XProgram, XTable};

    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn rules_that_name_the_container_or_translate_sources_are_compared() {
        let filters = Filters {
            nft: vec![Table {
                family: "ip".into(),
                name: "nat".into(),
                lines: lines(
                    "table ip nat {\n\tmap services {\n\t\ttype inet_service : ipv4_addr . inet_service\n\
                     \t\telements = { 81 : 198.51.100.10 . 8081, 82 : 198.51.100.11 . 1 }\n\t}\n\tchain pre {\n\
                     \t\ttcp dport 80 counter packets 7 bytes 420 dnat to 198.51.100.10:8080\n\
                     \t\ttcp dport 90 dnat to 198.51.100.101:8080\n\t}\n\tchain post {\n\
                     \t\tip saddr 198.51.100.0/24 counter packets 3 bytes 9 masquerade\n\t\tsnat to 192.0.2.50\n\t}\n}",
                ),
            }],
            xtables: vec![XTable {
                program: XProgram::Ip6tablesLegacy,
                name: "nat".into(),
                lines: lines(
                    "*nat\n:PREROUTING ACCEPT [1:2]\n[5:6] -A PREROUTING -p tcp -j DNAT --to-destination [2001:db8:1::10]:80\n\
                     [5:6] -A PREROUTING -d 2001:db8:1::11 -j ACCEPT\nCOMMIT",
                ),
            }],
            ..Filters::default()
        };
        let addresses = ["198.51.100.10", "2001:db8:1::10"].map(|a| a.parse().unwrap());
        let found = translating(&filters, &addresses);
        assert_eq!(
            found,
            [
                "[0:0] -A PREROUTING -p tcp -j DNAT --to-destination [2001:db8:1::10]:80",
                "elements = { 81 : 198.51.100.10 . 8081, 82 : 198.51.100.11 . 1 }",
                "ip saddr 198.51.100.0/24 counter packets 0 bytes 0 masquerade",
                "snat to 192.0.2.50",
                "tcp dport 80 counter packets 0 bytes 0 dnat to 198.51.100.10:8080",
            ]
        );
        assert_eq!(missing(&found, &found), [] as [&str; 0]);
        let lacks = missing(&found, &found[1..]);
        assert!(
            lacks.len() == 1 && lacks[0].contains("--to-destination [2001:db8:1::10]:80`"),
            "{lacks:?}"
        );
        assert!(missing(&[], &found)[0].contains("is not known"));
    }
}
