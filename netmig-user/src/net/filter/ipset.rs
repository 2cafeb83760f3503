//! Sets of ipset, as `ipset save` and `restore` write and read them.
use std::collections::BTreeSet;

use super::{super::Error, kernel, tool};

/// All sets of the calling thread's namespace, line by line.
pub fn save() -> Result<Vec<String>, Error> {
    let said = tool::run("reading the ipsets", "ipset", &["save", "-sorted"], None)?;
    Ok(said.out.lines().map(str::to_owned).collect())
}

/// Makes the sets, and empties and fills those that are there already: rules may refer to them.
pub fn restore(lines: &[String]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut input = String::new();
    for line in lines {
        input.push_str(line);
        input.push('\n');
        if let Some(name) = created(line) {
            input.push_str(&format!("flush {name}\n"));
        }
    }
    let args = ["restore", "-exist"];
    tool::run("loading the ipsets", "ipset", &args, Some(&input)).map(|_| ())
}

/// Removes the sets that `wanted` does not make.
pub fn keep(wanted: &[String]) -> Result<(), Error> {
    let wanted: BTreeSet<_> = wanted.iter().filter_map(|line| created(line)).collect();
    for name in kernel::ipsets()?
        .iter()
        .filter(|name| !wanted.contains(name.as_str()))
    {
        let what = format!("removing ipset {name}");
        tool::run(&what, "ipset", &["destroy", name], None)?;
    }
    Ok(())
}

/// The name in `create NAME TYPE ...`.
fn created(line: &str) -> Option<&str> {
    line.strip_prefix("create ")?.split(' ').next()
}
