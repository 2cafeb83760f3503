//! Tables of nf_tables, as nft writes and reads them.
use netmig_core::image::v1::filter::Table;

use super::{super::Error, tool};

/// What nft wrote.
pub struct Listed {
    /// All tables.
    pub tables: Vec<Table>,
    /// Family and name of those with rules that only iptables can write.
    pub of_iptables: Vec<(String, String)>,
}

/// Reads all tables of the calling thread's namespace.
pub fn list() -> Result<Listed, Error> {
    let said = tool::run(
        "reading the nftables ruleset",
        "nft",
        &["list", "ruleset"],
        None,
    )?;
    Ok(parse(&said.out, &said.err))
}

/// Replaces the whole ruleset of the calling thread's namespace by `tables`, in one transaction.
pub fn replace<'a>(tables: impl Iterator<Item = &'a Table>) -> Result<(), Error> {
    let mut script = "flush ruleset\n".to_owned();
    for table in tables {
        append(&mut script, table);
    }
    apply("loading the nftables ruleset", &script)
}

/// Adds one table.
pub fn add(table: &Table) -> Result<(), Error> {
    let mut script = String::new();
    append(&mut script, table);
    apply(&format!("loading {table}"), &script)
}

fn append(script: &mut String, table: &Table) {
    for line in &table.lines {
        script.push_str(line);
        script.push('\n');
    }
}

fn apply(what: &str, script: &str) -> Result<(), Error> {
    tool::run(what, "nft", &["-f", "-"], Some(script)).map(|_| ())
}

fn parse(out: &str, err: &str) -> Listed {
    let mut listed = Listed {
        tables: Vec::new(),
        of_iptables: Vec::new(),
    };
    for line in out.lines().chain(err.lines()) {
        let named = line
            .strip_prefix("# Warning: table ")
            .and_then(|rest| rest.split_once(" is managed by iptables-nft"));
        if let Some((family, name)) = named.and_then(|(table, _)| table.split_once(' ')) {
            listed
                .of_iptables
                .push((family.to_owned(), name.to_owned()));
        }
    }
    let mut open: Option<Table> = None;
    for line in out.lines() {
        if let Some((family, name)) = header(line) {
            open = Some(Table {
                family: family.to_owned(),
                name: name.to_owned(),
                lines: Vec::new(),
            });
        }
        let Some(table) = &mut open else { continue };
        table.lines.push(line.to_owned());
        if line == "}" {
            listed.tables.extend(open.take());
        }
    }
    listed
}

/// `table inet NAME {`, behind which a comment may stand.
fn header(line: &str) -> Option<(&str, &str)> {
    let (table, _) = line.strip_prefix("table ")?.rsplit_once(" {")?;
    table.split_once(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_taken_apart_into_tables() {
        let out = "table inet f {\n\tchain in {\n\t\tlog prefix \"}\" drop\n\t}\n}\n# Warning: table ip nat is managed by iptables-nft, do not touch!\n\
            table ip nat { # progname x\n}\n";
        let listed = parse(
            out,
            "# Warning: table ip6 filter is managed by iptables-nft, do not touch!\n",
        );
        let names: Vec<_> = listed.tables.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["nft table inet f", "nft table ip nat"]);
        assert_eq!(listed.tables[0].lines.len(), 5);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            listed.of_iptables,
            [pair("ip", "nat"), pair("ip6", "filter")]
        );
    }
}
