//! A map in shared memory with the programs.
use std::{io, num::NonZeroUsize, os::fd::AsFd as _, ptr::NonNull, slice, sync::atomic::AtomicU64};

use aya::maps::MapData;
use nix::{
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    unistd::{SysconfVar, sysconf},
};

use super::Error;

/// An array map of u64 that has `BPF_F_MMAPABLE` and fits into a page.
pub(super) struct Shared {
    page: NonNull<AtomicU64>,
    length: NonZeroUsize,
    elements: usize,
}

// SAFETY: the page is shared memory that is accessed by atomic operations only, and stays mapped until drop.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly this range, and nothing borrows from it any more.
        if let Err(error) = unsafe { munmap(self.page.cast(), self.length.get()) } {
            tracing::warn!(%error, "unmapping a map");
        }
    }
}

impl Shared {
    pub(super) fn map(map: &MapData, elements: usize) -> Result<Self, Error> {
        let page = sysconf(SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .and_then(|n| usize::try_from(n).ok());
        let length = page
            .and_then(NonZeroUsize::new)
            .filter(|length| elements <= length.get() / size_of::<u64>())
            .ok_or_else(|| Error::Mmap(io::Error::last_os_error()))?;
        // SAFETY: a new mapping of a descriptor; the kernel checks that the map can be mapped and is as long as that.
        let page = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .map_err(|e| Error::Mmap(e.into()))?;
        Ok(Self {
            page: page.cast(),
            length,
            elements,
        })
    }

    /// The elements; an array map lays them out without gaps.
    pub(super) fn counts(&self) -> &[AtomicU64] {
        // SAFETY: mapped until drop, page-aligned, as long as `elements` (checked), and only ever accessed atomically.
        unsafe { slice::from_raw_parts(self.page.as_ptr(), self.elements) }
    }
}
