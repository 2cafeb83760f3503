//! What of a filter changes by itself: counters, quotas used, lifetimes. Without them two dumps of one ruleset are equal.
use netmig_core::image::v1::filter::Filters;

/// The same filters with everything that counts set to nothing.
pub fn settled(filters: &Filters) -> Filters {
    let mut filters = filters.clone();
    for table in &mut filters.nft {
        for line in &mut table.lines {
            *line = nft(line);
        }
    }
    for table in &mut filters.xtables {
        for line in &mut table.lines {
            *line = xtables(line);
        }
    }
    for line in &mut filters.ipsets {
        *line = ipset(line);
    }
    filters.arptables = filters.arptables.as_ref().map(super::arptables::settled);
    filters
}

/// `packets 5 bytes 700`, `expires 3m2s20ms`, `used 12 kbytes`.
fn nft(line: &str) -> String {
    // What stands in quotes is an operator's text.
    let mut parts: Vec<String> = Vec::new();
    for (i, part) in line.split('"').enumerate() {
        parts.push(if i % 2 == 0 {
            bare(part)
        } else {
            part.to_owned()
        });
    }
    parts.join("\"")
}

fn bare(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let mut kept: Vec<&str> = Vec::with_capacity(words.len());
    let mut at = 0;
    let number = |at: usize| {
        words
            .get(at)
            .is_some_and(|w| w.starts_with(|c: char| c.is_ascii_digit()))
    };
    while at < words.len() {
        // The sign that ends an element stands right behind its last word.
        let comma = |last: usize| {
            if words[last].ends_with(',') { "," } else { "" }
        };
        match words[at] {
            "packets"
                if number(at + 1) && words.get(at + 2) == Some(&"bytes") && number(at + 3) =>
            {
                kept.extend(["packets", "0", "bytes"]);
                kept.push(if comma(at + 3).is_empty() { "0" } else { "0," });
                at += 4;
            }
            "expires" if number(at + 1) => {
                // A lifetime that ran out entirely is not written; a comma goes to the word before.
                if !comma(at + 1).is_empty() {
                    kept.push(",");
                }
                at += 2;
            }
            "used" if number(at + 1) => at += 3,
            word => {
                kept.push(word);
                at += 1;
            }
        }
    }
    kept.join(" ")
}

/// `[5:700] -A INPUT ...`, `:INPUT ACCEPT [5:700]`.
fn xtables(line: &str) -> String {
    if let Some((_, rule)) = line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        return format!("[0:0] {rule}");
    }
    match line.rsplit_once(" [") {
        Some((chain, _)) if line.starts_with(':') => format!("{chain} [0:0]"),
        _ => line.to_owned(),
    }
}

/// `add NAME ENTRY timeout 30 packets 5 bytes 700`; `create NAME ... timeout 60` stays.
fn ipset(line: &str) -> String {
    if !line.starts_with("add ") {
        return line.to_owned();
    }
    let words: Vec<&str> = line.split(' ').collect();
    let mut kept: Vec<&str> = Vec::with_capacity(words.len());
    for word in words {
        let counts = matches!(kept.last(), Some(&("timeout" | "packets" | "bytes")));
        kept.push(if counts { "0" } else { word });
    }
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_taken_out_and_nothing_else() {
        let cases = [
            (
                "ip saddr @s counter packets 77 bytes 8888 accept comment \"packets 1 bytes 2\"",
                "ip saddr @s counter packets 0 bytes 0 accept comment \"packets 1 bytes 2\"",
            ),
            (
                "elements = { 10.0.0.1 timeout 50s expires 39s964ms, 10.0.0.9 expires 59m59s964ms }",
                "elements = { 10.0.0.1 timeout 50s , 10.0.0.9 }",
            ),
            (
                "elements = { 1.2.3.4 counter packets 5 bytes 7, 1.2.3.5 counter packets 0 bytes 0 }",
                "elements = { 1.2.3.4 counter packets 0 bytes 0, 1.2.3.5 counter packets 0 bytes 0 }",
            ),
            ("over 25 mbytes used 3 kbytes", "over 25 mbytes"),
            (
                "meta length 64-128 limit rate 10/second burst 5 packets",
                "meta length 64-128 limit rate 10/second burst 5 packets",
            ),
        ];
        for (line, wanted) in cases {
            assert_eq!(nft(line), wanted);
            assert_eq!(nft(wanted), wanted, "twice is once");
        }
    }

    #[test]
    fn of_iptables_and_ipset_too() {
        assert_eq!(
            xtables("[5:70] -A INPUT -j ACCEPT"),
            "[0:0] -A INPUT -j ACCEPT"
        );
        assert_eq!(xtables(":INPUT DROP [5:70]"), ":INPUT DROP [0:0]");
        assert_eq!(xtables("*filter"), "*filter");
        assert_eq!(
            ipset("add s 10.0.0.1 timeout 30 packets 5 bytes 7 comment \"a b\""),
            "add s 10.0.0.1 timeout 0 packets 0 bytes 0 comment \"a b\""
        );
        assert_eq!(
            ipset("create s hash:ip timeout 60"),
            "create s hash:ip timeout 60"
        );
    }
}
