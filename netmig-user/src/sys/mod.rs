//! The seam to the kernel: every system call that has no safe wrapper elsewhere.
pub mod memory;
pub mod netns;
pub mod pidfd;
pub mod sockopt;
