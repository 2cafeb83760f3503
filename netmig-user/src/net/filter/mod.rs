//! Packet filters: what a namespace has of them, making them so, and trying beforehand whether that can be done.
//!
//! Text goes from the tool of one host to that of the other. Whether anything is lost on the way is not believed but tried, in a namespace
//! made for it ([`rehearse()`]): at the source, where a tool may write what it cannot read, and at the target, where tools are older or
//! modules missing.
mod arptables;
mod counted;
mod ebtables;
mod ipset;
mod kernel;
mod nft;
mod rehearse;
pub(super) mod tool;
mod xtables;

use std::collections::BTreeSet;

pub use netmig_core::image::v1::filter::Filters;
use netmig_core::image::v1::filter::{XProgram, XTable};

pub use counted::settled;
pub(super) use kernel::tables;
pub use rehearse::rehearse;

use super::Error;

/// All filters of the calling thread's namespace. What cannot be carried is in [`Filters::lost`], a missing tool too.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn dump() -> Result<Filters, Error> {
    let mut found = Filters::default();
    if !kernel::ipsets()?.is_empty() {
        match ipset::save() {
            Ok(lines) => found.ipsets = lines,
            Err(e) => found.lost.push(e.to_string()),
        }
    }
    let tables = kernel::tables()?;
    if !tables.is_empty() {
        let owned: BTreeSet<_> = tables.iter().filter(|t| t.owned).collect();
        for table in &owned {
            found.lost.push(format!(
                "nft table {} {} is owned by a running program (flags owner) and goes with its socket, which cannot be moved: \
                 end that program, or have it make its table without an owner",
                table.family, table.name
            ));
        }
        let owned =
            |family: &str, name: &str| owned.iter().any(|t| t.family == family && t.name == name);
        if tables.iter().any(|t| !t.owned)
            && let Err(e) = dump_nft(&mut found, &owned)
        {
            let names: Vec<_> = tables
                .iter()
                .map(|t| format!("{} {}", t.family, t.name))
                .collect();
            found
                .lost
                .push(format!("{e}; its tables: {}", names.join(", ")));
        }
    }
    for (family, program) in LEGACY {
        for name in kernel::legacy(family)? {
            match xtables::save(program, &name) {
                Ok(table) => found.xtables.extend(table.filter(|t| !xtables::is_idle(t))),
                Err(e) => found.lost.push(e.to_string()),
            }
        }
    }
    found.arptables = arptables::dump()?;
    for name in ebtables::used()? {
        found.lost.push(format!(
            "ebtables-legacy table {name} is in use, and is not carried: make its rules with ebtables-nft or nft instead"
        ));
    }
    found
        .xtables
        .sort_by(|a, b| (a.program, &a.name).cmp(&(b.program, &b.name)));
    Ok(found)
}

/// Makes the filters of the calling thread's namespace those of `wanted`: counters, quotas and lifetimes as they were. Gives warnings.
///
/// # Errors
/// The tool that failed. If [`Filters::partial`], that is a warning.
pub fn converge(wanted: &Filters) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    let mut forgive = |step: Result<(), Error>| match step {
        Err(e) if wanted.partial => {
            warnings.push(format!("{e}; the container goes on without it"));
            Ok(())
        }
        other => other,
    };
    forgive(ipset::restore(&wanted.ipsets))?;
    if !wanted.nft.is_empty() || !kernel::tables()?.is_empty() {
        match nft::replace(wanted.nft.iter()) {
            Err(Error::Tool { .. }) if wanted.partial => {
                forgive(nft::replace([].into_iter()))?;
                for table in &wanted.nft {
                    forgive(nft::add(table))?;
                }
            }
            other => forgive(other)?,
        }
    }
    for program in XProgram::ALL {
        let ours: Vec<_> = wanted
            .xtables
            .iter()
            .filter(|t| t.program == program)
            .collect();
        match xtables::restore(program, ours.iter().copied()) {
            Err(Error::Tool { .. }) if wanted.partial => {
                for table in ours {
                    forgive(xtables::restore(program, [table].into_iter()))?;
                }
            }
            other => forgive(other)?,
        }
    }
    forgive(clear_legacy(&wanted.xtables))?;
    forgive(arptables::converge(wanted.arptables.as_ref()))?;
    forgive(ipset::keep(&wanted.ipsets))?;
    Ok(warnings)
}

/// What /proc calls the kernel's own x_tables, and whose they are.
const LEGACY: [(&str, XProgram); 2] = [
    ("ip", XProgram::IptablesLegacy),
    ("ip6", XProgram::Ip6tablesLegacy),
];

fn dump_nft(found: &mut Filters, owned: &dyn Fn(&str, &str) -> bool) -> Result<(), Error> {
    let listed = nft::list()?;
    for table in listed.tables {
        if owned(&table.family, &table.name) {
            continue;
        }
        let of_iptables = listed
            .of_iptables
            .iter()
            .any(|(family, name)| *family == table.family && *name == table.name);
        let saved = match xtables::of(&table) {
            Some(program) => match xtables::save(program, &table.name) {
                // Without the program, rules that nft can write as well are carried by nft.
                Err(Error::Missing { .. }) if !of_iptables => Ok(None),
                other => other,
            },
            None => Ok(None),
        };
        match saved {
            Ok(Some(saved)) => found.xtables.push(saved),
            Ok(None) if of_iptables => found.lost.push(format!(
                "{table} has rules of iptables-nft (or arptables-nft, ebtables-nft) and others that it cannot write: \
                 put either kind into a table of its own"
            )),
            Ok(None) => found.nft.push(table),
            Err(e) => found.lost.push(e.to_string()),
        }
    }
    Ok(())
}

/// Brings tables that the image does not have back to what they were before anybody used them.
fn clear_legacy(wanted: &[XTable]) -> Result<(), Error> {
    for (family, program) in LEGACY {
        for name in kernel::legacy(family)? {
            if wanted
                .iter()
                .any(|t| t.program == program && t.name == name)
            {
                continue;
            }
            if let Some(empty) = xtables::pristine(program, &name) {
                match xtables::restore(program, [&empty].into_iter()) {
                    // Who has put something into it has the program.
                    Err(Error::Missing { .. }) => {}
                    other => other?,
                }
            }
        }
    }
    Ok(())
}
