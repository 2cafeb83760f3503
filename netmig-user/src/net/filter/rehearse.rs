//! Trying beforehand whether filters can be made on this host, and are then what they were.
use netmig_core::image::v1::{filter::Filters, net::Link};

use super::{
    super::{Error, namespace, stand_in},
    converge, dump, settled,
};

/// Loads `filters` in a scratch namespace that has links of these names, and reads them again. What cannot be made or comes back as
/// something else, in words: each names its object.
///
/// # Errors
/// If the scratch namespace cannot be made.
pub fn rehearse(filters: &Filters, links: &[Link]) -> Result<Vec<String>, Error> {
    if filters.is_empty() {
        return Ok(Vec::new());
    }
    namespace::scratch(|| {
        stand_in::make(links)?;
        let strict = Filters {
            partial: false,
            ..filters.clone()
        };
        match converge(&strict) {
            Ok(_) => Ok(differences(&strict, &dump()?)),
            Err(all) => one_by_one(&strict, &all),
        }
    })
}

/// Which of them it is.
fn one_by_one(filters: &Filters, all: &Error) -> Result<Vec<String>, Error> {
    let sets = || Filters {
        ipsets: filters.ipsets.clone(),
        ..Filters::default()
    };
    let mut alone = vec![sets()];
    alone.extend(filters.nft.iter().map(|table| Filters {
        nft: vec![table.clone()],
        ..sets()
    }));
    alone.extend(filters.xtables.iter().map(|table| Filters {
        xtables: vec![table.clone()],
        ..sets()
    }));
    alone.extend(filters.arptables.iter().map(|table| Filters {
        arptables: Some(table.clone()),
        ..Filters::default()
    }));
    let mut found = Vec::new();
    for one in alone {
        if let Err(e) = converge(&one) {
            let object = (one.nft.iter().map(ToString::to_string))
                .chain(one.xtables.iter().map(ToString::to_string))
                .chain(one.arptables.iter().map(ToString::to_string))
                .next()
                .unwrap_or_else(|| "the ipsets".to_owned());
            found.push(format!("{object} cannot be made here: {e}"));
        }
    }
    if found.is_empty() {
        found.push(format!("the packet filters cannot be made here: {all}"));
    }
    found.dedup();
    Ok(found)
}

fn differences(wanted: &Filters, found: &Filters) -> Vec<String> {
    let (wanted, found) = (settled(wanted), settled(found));
    let mut all = found.lost.clone();
    let mut compare = |object: String, wanted: &[String], found: Option<&[String]>| {
        let Some(found) = found else {
            return all.push(format!("{object} is not there after it was loaded here"));
        };
        let at = (0..wanted.len().max(found.len())).find(|i| wanted.get(*i) != found.get(*i));
        if let Some(at) = at {
            let line = |lines: &[String]| {
                let line = lines.get(at).map(|line| line.trim());
                line.map_or("nothing".to_owned(), |line| format!("`{line}`"))
            };
            all.push(format!(
                "{object} comes back as something else when it is loaded here: {} instead of {}; \
                 use the same version of its tool on both hosts, or write the rule in another way",
                line(found),
                line(wanted)
            ));
        }
    };
    for table in &wanted.nft {
        let back = found
            .nft
            .iter()
            .find(|t| t.family == table.family && t.name == table.name);
        compare(
            table.to_string(),
            &table.lines,
            back.map(|t| t.lines.as_slice()),
        );
    }
    for table in &wanted.xtables {
        let back = found
            .xtables
            .iter()
            .find(|t| t.program == table.program && t.name == table.name);
        compare(
            table.to_string(),
            &table.lines,
            back.map(|t| t.lines.as_slice()),
        );
    }
    compare("ipset".to_owned(), &wanted.ipsets, Some(&found.ipsets));
    if let Some(table) = &wanted.arptables
        && found.arptables.as_ref() != Some(table)
    {
        all.push(format!(
            "{table} comes back as something else when it is loaded here; make its rules with nft instead"
        ));
    }
    all
}
