//! Tables of ebtables on the kernel's own x_tables: seen, and named. They cannot be read as text without the program, and few have it.
use std::path::Path;

use super::super::{Doing, Error, attr::u32_at};
use crate::sys::sockopt;

const TABLES: [&str; 3] = ["filter", "nat", "broute"];
const GET_INFO: i32 = 128;
const GET_ENTRIES: i32 = 129;
/// sizeof struct ebt_replace (include/uapi/linux/netfilter_bridge/ebtables.h), and where its numbers and the address of the entries are.
const REPLACE: usize = 120;
const ENTRIES: usize = 36;
const SIZE: usize = 40;
const ADDRESS: usize = 112;
/// struct ebt_entries, which begins a chain: distinguisher 0, name, counter_offset, policy.
const POLICY: usize = 40;
const ACCEPT: i32 = -1;

/// Names of the tables of the calling thread's namespace that do anything. Only modules that are there are asked: a question would load them.
pub fn used() -> Result<Vec<&'static str>, Error> {
    let mut found = Vec::new();
    for name in TABLES {
        if !Path::new(&format!("/sys/module/ebtable_{name}")).exists() {
            continue;
        }
        if is_used(name).doing(|| format!("reading the table {name} of ebtables-legacy"))? {
            found.push(name);
        }
    }
    Ok(found)
}

fn is_used(name: &str) -> std::io::Result<bool> {
    let socket = sockopt::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    let mut info = vec![0; REPLACE];
    info[..name.len()].copy_from_slice(name.as_bytes());
    match sockopt::raw_read(&socket, libc::SOL_IP, GET_INFO, &mut info) {
        // The module serves nobody here.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOPROTOOPT)) => {
            return Ok(false);
        }
        other => other?,
    };
    if u32_at(&info, ENTRIES) > 0 {
        return Ok(true);
    }
    // Without rules there are chains alone, one behind the other. They are asked for behind the header, and written to where that says.
    let size = u32_at(&info, SIZE) as usize;
    info.resize(REPLACE + size, 0);
    let address = info[REPLACE..].as_mut_ptr().expose_provenance() as u64;
    info[ADDRESS..REPLACE].copy_from_slice(&address.to_ne_bytes());
    sockopt::raw_read(&socket, libc::SOL_IP, GET_ENTRIES, &mut info)?;
    Ok(has_policy(&info[REPLACE..]))
}

/// sizeof struct ebt_entries.
const CHAIN: usize = 48;

fn has_policy(chains: &[u8]) -> bool {
    chains
        .chunks_exact(CHAIN)
        .any(|chain| chain[POLICY..POLICY + 4] != ACCEPT.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_drops_is_used() {
        let mut chains = vec![0; 3 * CHAIN];
        for chain in chains.chunks_exact_mut(CHAIN) {
            chain[POLICY..POLICY + 4].copy_from_slice(&ACCEPT.to_ne_bytes());
        }
        assert!(!has_policy(&chains));
        // EBT_DROP
        chains[CHAIN + POLICY..CHAIN + POLICY + 4].copy_from_slice(&(-2i32).to_ne_bytes());
        assert!(has_policy(&chains));
    }
}
