//! Duplicates of other processes' descriptors.
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// pidfd_open(2) of a process (not of one of its threads).
    ///
    /// # Errors
    /// ESRCH if there is no such process.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        owned(fd).map(Self)
    }

    /// A duplicate of the process's descriptor `fd`, close-on-exec (pidfd_getfd(2)).
    ///
    /// # Errors
    /// EBADF if the process has no such descriptor, EPERM without PTRACE_MODE_ATTACH_REALCREDS.
    pub fn fd(&self, fd: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), fd, 0) };
        owned(fd)
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us and nothing else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_duplicate_is_the_same_file() {
        let file = tempfile::tempfile().expect("a file");
        let own = i32::try_from(std::process::id()).expect("a pid");
        let copy = PidFd::open(own)
            .and_then(|p| p.fd(file.as_raw_fd()))
            .expect("a duplicate");
        let of =
            |fd: RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).expect("a descriptor");
        assert_eq!(of(copy.as_raw_fd()), of(file.as_raw_fd()));
        assert_eq!(
            PidFd::open(own)
                .and_then(|p| p.fd(1 << 20))
                .map(drop)
                .map_err(|e| e.raw_os_error()),
            Err(Some(libc::EBADF))
        );
    }
}
