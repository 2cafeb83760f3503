//! The memory of tasks that run, for copying it ahead of the engine.
//!
//! What is read is a guess: pages change while they are read, mappings come and go. The engine's images decide; a page that was read in vain
//! costs its transfer and nothing else.
use std::{
    fs::{self, File},
    io::{self, IoSliceMut},
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};

/// Bytes of a page.
const PAGE: u64 = netmig_core::frame::PAGE as u64;
/// Pages whose entries are looked at together.
const WINDOW: u64 = 32 << 10;
/// Most bytes that are read together.
const READ: usize = 1 << 20;
/// A larger mapping is left to the engine: reading its page table would take longer than it spares.
const HUGE: u64 = 64 << 30;

/// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;

/// A mapping that an engine may have to carry.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    /// Only pages of its own count; the others are a file's.
    private: bool,
}

/// Gives the pages of `pid` that are in memory and belong to no file to `take`, in runs of whole pages, until `stop`. A process that ends
/// meanwhile has no more pages.
///
/// # Errors
/// Those of `take`; /proc cannot be read although the process lives.
pub fn pages<E: From<io::Error>>(
    pid: i32,
    stop: &AtomicBool,
    take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let found = (|| {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        Ok((maps, File::open(format!("/proc/{pid}/pagemap"))?))
    })();
    let (maps, pagemap) = match found {
        Ok(found) => found,
        Err(e) if gone(&e) => return Ok(()),
        Err(e) => return Err(E::from(e)),
    };
    let mut buffer = vec![0; READ];
    for mapping in maps.lines().filter_map(mapping) {
        let mut start = mapping.start;
        while start < mapping.end && !stop.load(Ordering::SeqCst) {
            let end = mapping.end.min(start + WINDOW * PAGE);
            let present = match present(&pagemap, start, end, mapping.private) {
                Ok(present) => present,
                Err(e) if gone(&e) => return Ok(()),
                Err(e) => return Err(E::from(e)),
            };
            for (from, to) in present {
                read(pid, from, to, &mut buffer, take)?;
            }
            start = end;
        }
    }
    Ok(())
}

fn gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// A line of /proc/PID/maps; none for what is no memory of the task's own: files that are shared, devices, the kernel's pages.
fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let inode = words.nth(2)?;
    let name = words.next().unwrap_or_default();
    let (start, end) = (
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    );
    let private = permissions.ends_with('p');
    // Shared memory without a name in a file system: /dev/zero, /memfd:NAME, /SYSV....
    let anonymous = inode == "0"
        || ["/dev/zero", "/memfd:", "/SYSV"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
    let kernels = ["[vvar", "[vdso", "[vsyscall"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    let wanted = (private || anonymous) && !kernels && end.saturating_sub(start) <= HUGE;
    wanted.then_some(Mapping {
        start,
        end,
        private,
    })
}

/// Runs of addresses between `start` and `end` whose pages are in memory.
fn present(pagemap: &File, start: u64, end: u64, private: bool) -> io::Result<Vec<(u64, u64)>> {
    let mut entries = vec![0; ((end - start) / PAGE) as usize * size_of::<u64>()];
    pagemap.read_exact_at(&mut entries, start / PAGE * size_of::<u64>() as u64)?;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (at, entry) in (start..)
        .step_by(PAGE as usize)
        .zip(entries.chunks_exact(8))
    {
        let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
        if entry & PRESENT == 0 || (private && entry & OF_FILE != 0) {
            continue;
        }
        match runs.last_mut() {
            Some((_, to)) if *to == at => *to += PAGE,
            _ => runs.push((at, at + PAGE)),
        }
    }
    Ok(runs)
}

fn read<E: From<io::Error>>(
    pid: i32,
    mut from: u64,
    to: u64,
    buffer: &mut [u8],
    take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    while from < to {
        let len = buffer.len().min((to - from) as usize);
        let remote = RemoteIoVec {
            base: from as usize,
            len,
        };
        let read = process_vm_readv(
            Pid::from_raw(pid),
            &mut [IoSliceMut::new(&mut buffer[..len])],
            &[remote],
        );
        match read {
            // What follows is there no more: the rest of this run is given up.
            Ok(n) if n < len => return take(&buffer[..n - n % PAGE as usize]),
            Ok(n) => {
                take(&buffer[..n])?;
                from += n as u64;
            }
            Err(Errno::EFAULT | Errno::ESRCH | Errno::EIO | Errno::ENOMEM) => return Ok(()),
            Err(e) => return Err(E::from(e.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_this_process_wrote() {
        let mut marked = vec![0u8; 64 << 10];
        let marker = b"a page of this very test";
        let begin = marked.as_ptr().align_offset(PAGE as usize);
        for page in marked[begin..].chunks_exact_mut(PAGE as usize) {
            page[..marker.len()].copy_from_slice(marker);
        }
        let wanted = (marked.len() - begin) / PAGE as usize;
        let (mut found, mut whole) = (0, true);
        let me = i32::try_from(std::process::id()).unwrap();
        pages::<io::Error>(me, &AtomicBool::new(false), &mut |run| {
            whole &= run.len() % PAGE as usize == 0;
            found += run
                .chunks(PAGE as usize)
                .filter(|page| page.starts_with(marker))
                .count();
            Ok(())
        })
        .unwrap();
        assert!(whole && found >= wanted, "{found} of {wanted}");
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        pages::<io::Error>(i32::MAX, &AtomicBool::new(false), &mut |_| panic!("a page")).unwrap();
    }

    #[test]
    fn stops_when_it_is_told_to() {
        let me = i32::try_from(std::process::id()).unwrap();
        pages::<io::Error>(me, &AtomicBool::new(true), &mut |_| panic!("a page")).unwrap();
    }

    #[test]
    fn mappings_by_kind() {
        let kind = |line| mapping(line).map(|m| m.private);
        for (line, expected) in [
            ("7f00-8000 rw-p 00000000 00:00 0 ", Some(true)),
            ("1000-2000 rw-p 00000000 00:00 0   [heap]", Some(true)),
            ("1000-2000 rw-p 00001000 fe:00 42  /usr/bin/x", Some(true)),
            ("1000-2000 rw-s 00001000 fe:00 42  /srv/data", None),
            (
                "1000-2000 rw-s 00000000 00:01 9   /dev/zero (deleted)",
                Some(false),
            ),
            (
                "1000-2000 rw-s 00000000 00:01 9   /memfd:x (deleted)",
                Some(false),
            ),
            ("1000-2000 r--p 00000000 00:00 0   [vvar]", None),
            ("1000-2000 r-xp 00000000 00:00 0   [vdso]", None),
            ("0-ffffffffff000 ---p 00000000 00:00 0 ", None),
            ("nonsense", None),
        ] {
            assert_eq!(kind(line), expected, "{line}");
        }
    }
}
