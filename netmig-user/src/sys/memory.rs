//! The allocator.

/// For a process that lives on between moves: threads share two arenas of glibc's. By itself it has eight for each processor, and each keeps what
/// its threads have ever needed at once. To be called before there are threads.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes numbers; no other thread runs yet.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) } == 0 {
        tracing::debug!("this libc does not limit its arenas");
    }
}

/// Gives free memory back to the kernel.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointer and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
