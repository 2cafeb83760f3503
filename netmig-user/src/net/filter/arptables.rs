//! The table of arptables on the kernel's own x_tables. Its programs write it in a form that loses counters, and read it rule by rule; so
//! the kernel is asked for the whole, and given the whole, as these programs themselves do (include/uapi/linux/netfilter_arp/arp_tables.h).
use std::os::fd::OwnedFd;

use netmig_core::image::v1::filter::ArpTable;

use super::{
    super::{Doing, Error, attr::u32_at},
    kernel,
};
use crate::sys::sockopt;

const SET_REPLACE: i32 = 96;
const SET_ADD_COUNTERS: i32 = 97;
const GET_INFO: i32 = 96;
const GET_ENTRIES: i32 = 97;
const NAME: &[u8] = b"filter";
/// sizeof struct arpt_getinfo.
const INFO: usize = 68;
/// Where entries begin in struct arpt_get_entries and counters in struct xt_counters_info.
const BEHIND_NAME: usize = 40;
/// Where entries begin in struct arpt_replace.
const REPLACE: usize = 80;
/// struct arpt_entry: target_offset, next_offset, counters, sizeof.
const TARGET: usize = 164;
const NEXT: usize = 166;
const COUNTERS: std::ops::Range<usize> = 176..192;
const ENTRY: usize = 192;
/// struct xt_standard_target: the verdict, sizeof.
const VERDICT: usize = 32;
const STANDARD: usize = 40;
/// sizeof struct xt_error_target.
const ERROR: usize = 64;
/// -NF_ACCEPT - 1.
const ACCEPT: i32 = -2;
const HOOKS: usize = 3;

/// The table of the calling thread's namespace; none if nobody has put anything into it.
pub fn dump() -> Result<Option<ArpTable>, Error> {
    if !is_there()? {
        return Ok(None);
    }
    let table = read().doing(|| "reading the table of arptables-legacy".to_owned())?;
    Ok((!is_idle(&table)).then_some(table))
}

/// Makes the table of the calling thread's namespace that of `wanted`, with its counters; without one, as it is before anybody uses it.
pub fn converge(wanted: Option<&ArpTable>) -> Result<(), Error> {
    let idle;
    let wanted = match wanted {
        Some(wanted) => wanted,
        None if dump()?.is_none() => return Ok(()),
        None => {
            idle = pristine();
            &idle
        }
    };
    replace(wanted).doing(|| format!("loading the {wanted}"))
}

/// The same table with its counters at nothing.
pub fn settled(table: &ArpTable) -> ArpTable {
    let mut table = table.clone();
    for at in entries(&table.entries) {
        if let Some(counters) = table
            .entries
            .get_mut(at..)
            .and_then(|e| e.get_mut(COUNTERS))
        {
            counters.fill(0);
        }
    }
    table
}

fn is_there() -> Result<bool, Error> {
    Ok(kernel::legacy("arp")?
        .iter()
        .any(|name| name.as_bytes() == NAME))
}

fn socket() -> std::io::Result<OwnedFd> {
    sockopt::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)
}

fn named(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[..NAME.len()].copy_from_slice(NAME);
    bytes
}

fn read() -> std::io::Result<ArpTable> {
    let socket = socket()?;
    let mut info = named(INFO);
    sockopt::raw_read(&socket, libc::SOL_IP, GET_INFO, &mut info)?;
    let three = |at: usize| [0, 4, 8].map(|more| u32_at(&info, at + more));
    let size = u32_at(&info, 64) as usize;
    let mut got = named(BEHIND_NAME + size);
    got[32..36].copy_from_slice(&info[64..68]);
    sockopt::raw_read(&socket, libc::SOL_IP, GET_ENTRIES, &mut got)?;
    Ok(ArpTable {
        hooks: u32_at(&info, 32),
        begins: three(36),
        policies: three(48),
        count: u32_at(&info, 60),
        entries: got.split_off(BEHIND_NAME),
    })
}

fn replace(table: &ArpTable) -> std::io::Result<()> {
    let socket = socket()?;
    let mut info = named(INFO);
    sockopt::raw_read(&socket, libc::SOL_IP, GET_INFO, &mut info)?;
    // The kernel writes the counters of what was there, 16 bytes for each entry.
    let before = u32_at(&info, 60);
    let mut counters = vec![0u8; before as usize * 16];
    let mut request = named(REPLACE);
    let size = u32::try_from(table.entries.len()).map_err(std::io::Error::other)?;
    let numbers = [table.hooks, table.count, size]
        .into_iter()
        .chain(table.begins)
        .chain(table.policies)
        .chain([before]);
    for (at, number) in (32..).step_by(4).zip(numbers) {
        request[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    let address = counters.as_mut_ptr().expose_provenance() as u64;
    request[72..80].copy_from_slice(&address.to_ne_bytes());
    request.extend(&table.entries);
    sockopt::set(&socket, libc::SOL_IP, SET_REPLACE, &request)?;
    drop(counters);
    // Entries begin to count at nothing.
    let mut add = named(BEHIND_NAME);
    add[32..36].copy_from_slice(&table.count.to_ne_bytes());
    for at in entries(&table.entries) {
        add.extend(table.entries[at..].get(COUNTERS).unwrap_or(&[0; 16]));
    }
    sockopt::set(&socket, libc::SOL_IP, SET_ADD_COUNTERS, &add)
}

/// Where each entry begins.
fn entries(bytes: &[u8]) -> Vec<usize> {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Some(next) = bytes.get(at + NEXT..at + NEXT + 2) {
        all.push(at);
        match u16::from_ne_bytes([next[0], next[1]]) {
            // No entry is shorter; the kernel refuses such a table.
            next if usize::from(next) < ENTRY => break,
            next => at += usize::from(next),
        }
    }
    all
}

/// Whether it lets everything pass without a rule.
fn is_idle(table: &ArpTable) -> bool {
    let accepts = |at: &u32| {
        let verdict = *at as usize + ENTRY + VERDICT;
        table
            .entries
            .get(verdict..verdict + 4)
            .is_some_and(|v| *v == ACCEPT.to_ne_bytes())
    };
    table.count as usize == HOOKS + 1 && table.policies.iter().all(accepts)
}

/// As arptable_filter_table_init() makes it.
fn pristine() -> ArpTable {
    let entry = |target: usize| {
        let mut entry = vec![0; ENTRY + target];
        // Both are some hundred bytes.
        entry[TARGET..TARGET + 2].copy_from_slice(&(ENTRY as u16).to_ne_bytes());
        entry[NEXT..NEXT + 2].copy_from_slice(&((ENTRY + target) as u16).to_ne_bytes());
        entry[ENTRY..ENTRY + 2].copy_from_slice(&(target as u16).to_ne_bytes());
        entry
    };
    let mut standard = entry(STANDARD);
    standard[ENTRY + VERDICT..ENTRY + VERDICT + 4].copy_from_slice(&ACCEPT.to_ne_bytes());
    let mut error = entry(ERROR);
    for at in [ENTRY + 2, ENTRY + VERDICT] {
        error[at..at + 5].copy_from_slice(b"ERROR");
    }
    let length = standard.len() as u32;
    let begins = [0, length, 2 * length];
    ArpTable {
        hooks: (1 << HOOKS) - 1,
        begins,
        policies: begins,
        count: HOOKS as u32 + 1,
        entries: [standard.repeat(HOOKS), error].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_idle_until_it_has_a_policy() {
        let mut table = pristine();
        assert!(is_idle(&table));
        assert_eq!(entries(&table.entries), [0, 232, 464, 696]);
        let verdict = table.policies[1] as usize + ENTRY + VERDICT;
        table.entries[verdict..verdict + 4].copy_from_slice(&(-1i32).to_ne_bytes());
        assert!(!is_idle(&table));
        table.entries[COUNTERS].fill(7);
        assert_eq!(settled(&table).entries[COUNTERS], [0; 16]);
    }
}
