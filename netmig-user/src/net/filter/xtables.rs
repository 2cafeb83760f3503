//! Tables of iptables, on nf_tables and on the kernel's own x_tables, and of arptables and ebtables on nf_tables, as their programs write
//! and read them.
use netmig_core::image::v1::filter::{Table, XProgram, XTable};

use super::{super::Error, tool};

const TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
const CHAINS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
const OF_BRIDGES: [&str; 3] = ["filter", "nat", "broute"];
const CHAINS_OF_BRIDGES: [&str; 6] = [
    "PREROUTING",
    "INPUT",
    "FORWARD",
    "OUTPUT",
    "POSTROUTING",
    "BROUTING",
];

/// The program whose table this may be: iptables gives its tables names of five, its base chains capital ones, and makes nothing else in
/// them.
pub fn of(table: &Table) -> Option<XProgram> {
    let (program, tables, chains): (_, &[&str], &[&str]) = match table.family.as_str() {
        "ip" => (XProgram::IptablesNft, &TABLES, &CHAINS),
        "ip6" => (XProgram::Ip6tablesNft, &TABLES, &CHAINS),
        "arp" => (XProgram::ArptablesNft, &["filter"], &["INPUT", "OUTPUT"]),
        "bridge" => (XProgram::EbtablesNft, &OF_BRIDGES, &CHAINS_OF_BRIDGES),
        _ => return None,
    };
    let mut base = 0;
    let mut current = "";
    for line in &table.lines[1..] {
        let line = line.trim_start();
        match line.split_once(' ') {
            Some(("chain", rest)) => current = rest.trim_end_matches(" {"),
            Some((
                "set" | "map" | "counter" | "quota" | "limit" | "flowtable" | "ct" | "flags",
                rest,
            )) if rest.ends_with('{') || line.starts_with("flags") => {
                return None;
            }
            Some(("type", rest)) if rest.contains(" hook ") => {
                base += 1;
                if !chains.contains(&current) {
                    return None;
                }
            }
            _ => {}
        }
    }
    (base > 0 && tables.contains(&table.name.as_str())).then_some(program)
}

/// Reads one table of the calling thread's namespace; none if it is not one that this program can write.
pub fn save(program: XProgram, name: &str) -> Result<Option<XTable>, Error> {
    // arptables has one table only, and no option to choose it.
    let args = ["-c", "-t", name];
    let count = if program == XProgram::ArptablesNft {
        1
    } else {
        3
    };
    let said = tool::run(
        &format!("reading {program} table {name}"),
        &format!("{program}-save"),
        &args[..count],
        None,
    )?;
    Ok(parse(program, name, &said.out))
}

/// Writes tables of one program, each as a whole.
pub fn restore<'a>(
    program: XProgram,
    tables: impl Iterator<Item = &'a XTable>,
) -> Result<(), Error> {
    let mut input = String::new();
    let mut names = Vec::new();
    for table in tables {
        names.push(table.name.as_str());
        for line in &table.lines {
            match counted_behind(line).filter(|_| !commits(program)) {
                Some(line) => input.push_str(&line),
                None => input.push_str(line),
            }
            input.push('\n');
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let what = format!("loading {program} table {}", names.join(", "));
    // Another program of the host may hold the lock of x_tables for a moment.
    let args: &[&str] = if commits(program) {
        &["-c", "-w", "5"]
    } else {
        &[]
    };
    tool::run(&what, &format!("{program}-restore"), args, Some(&input)).map(|_| ())
}

/// Whether its tables end with `COMMIT`, and its `-restore` takes counters as its `-save` writes them.
fn commits(program: XProgram) -> bool {
    !matches!(program, XProgram::ArptablesNft | XProgram::EbtablesNft)
}

/// `-A INPUT ... -c 5 700` for `[5:700] -A INPUT ...`: the one is read by arptables-nft and ebtables-nft, the other written.
fn counted_behind(line: &str) -> Option<String> {
    let (counters, rule) = line.strip_prefix('[')?.split_once("] ")?;
    let (packets, bytes) = counters.split_once(':')?;
    Some(format!("{} -c {packets} {bytes}", rule.trim_end()))
}

/// A table as it is before anybody has put a rule into it.
pub fn pristine(program: XProgram, name: &str) -> Option<XTable> {
    let chains: &[&str] = match name {
        "filter" | "security" => &["INPUT", "FORWARD", "OUTPUT"],
        "nat" => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        "mangle" => &CHAINS,
        "raw" => &["PREROUTING", "OUTPUT"],
        _ => return None,
    };
    let mut lines = vec![format!("*{name}")];
    lines.extend(chains.iter().map(|chain| format!(":{chain} ACCEPT [0:0]")));
    lines.push("COMMIT".to_owned());
    Some(XTable {
        program,
        name: name.to_owned(),
        lines,
    })
}

/// Whether it lets everything pass without counting it by a rule: nobody notices whether such a table is there.
pub fn is_idle(table: &XTable) -> bool {
    table.lines.iter().all(|line| {
        line.starts_with('*')
            || line == "COMMIT"
            || (line.starts_with(':') && line.split(' ').nth(1) == Some("ACCEPT"))
    })
}

fn parse(program: XProgram, name: &str, out: &str) -> Option<XTable> {
    let lines: Vec<_> = out
        .lines()
        .skip_while(|line| line.strip_prefix('*') != Some(name))
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    // "Table `filter' is incompatible, use 'nft' tool." comes with success and without a table.
    let whole = match lines.last() {
        Some(last) => !commits(program) || last == "COMMIT",
        None => false,
    };
    whole.then(|| XTable {
        program,
        name: name.to_owned(),
        lines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        Table {
            family: "ip".into(),
            name: "filter".into(),
            lines: text.lines().map(str::to_owned).collect(),
        }
    }

    #[test]
    fn what_iptables_makes_is_known_by_its_chains() {
        let chain = "type filter hook input priority filter; policy accept;";
        let of_iptables = format!(
            "table ip filter {{\n\tchain INPUT {{\n\t\t{chain}\n\t}}\n\tchain mine {{\n\t}}\n}}"
        );
        assert_eq!(of(&table(&of_iptables)), Some(XProgram::IptablesNft));
        let lower = of_iptables.replace("INPUT", "input");
        assert_eq!(of(&table(&lower)), None);
        let with_set = of_iptables.replace("chain mine", "set mine");
        assert_eq!(of(&table(&with_set)), None);
        assert_eq!(of(&table("table ip filter {\n}")), None);
        let on_bridges = |family: &str| {
            of(&Table {
                family: family.into(),
                ..table(&of_iptables)
            })
        };
        assert_eq!(on_bridges("bridge"), Some(XProgram::EbtablesNft));
        assert_eq!(on_bridges("arp"), Some(XProgram::ArptablesNft));
        assert_eq!(on_bridges("netdev"), None);
    }

    #[test]
    fn a_table_is_idle_until_it_has_a_rule_or_a_policy() {
        let mut table = pristine(XProgram::IptablesLegacy, "filter").unwrap();
        assert!(is_idle(&table));
        table.lines[2] = ":FORWARD DROP [1:40]".to_owned();
        assert!(!is_idle(&table));
    }

    #[test]
    fn a_table_that_iptables_cannot_write_is_none_of_its_own() {
        let told = "# Table `filter' is incompatible, use 'nft' tool.\n";
        assert_eq!(parse(XProgram::IptablesNft, "filter", told), None);
        assert_eq!(parse(XProgram::EbtablesNft, "filter", told), None);
        let told = "# Generated\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n# Completed\n";
        let table = parse(XProgram::IptablesNft, "filter", told).unwrap();
        assert_eq!(table.lines, ["*filter", ":INPUT ACCEPT [0:0]", "COMMIT"]);
    }

    #[test]
    fn counters_go_to_where_they_are_read() {
        let line = "[5:70] -A INPUT -j redirect ";
        let moved = counted_behind(line).unwrap();
        assert_eq!(moved, "-A INPUT -j redirect -c 5 70");
        assert_eq!(counted_behind(":INPUT ACCEPT"), None);
    }
}
