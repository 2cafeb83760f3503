//! Socket options and ioctls by number, for those that no crate wraps.
use std::{
    io,
    mem::{size_of, size_of_val},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Numbers that libc does not name on this platform (include/uapi/asm-generic/socket.h, linux/tcp.h).
pub mod number {
    /// Which buffer sizes the program has fixed.
    pub const SO_BUF_LOCK: i32 = 72;
    /// Where MSG_PEEK begins.
    pub const SO_PEEK_OFF: i32 = 42;
    /// Memory and drops of a socket (`sk_get_meminfo`).
    pub const SO_MEMINFO: i32 = 55;
    /// Reads the classic filter; the same number as SO_ATTACH_FILTER.
    pub const SO_GET_FILTER: i32 = 26;
    /// Value of TCP_REPAIR: leave repair without a window probe.
    pub const TCP_REPAIR_OFF_NO_WP: i32 = -1;
    /// Value of TCP_REPAIR_QUEUE.
    pub const TCP_NO_QUEUE: i32 = 0;
    /// Value of TCP_REPAIR_QUEUE.
    pub const TCP_RECV_QUEUE: i32 = 1;
    /// Value of TCP_REPAIR_QUEUE.
    pub const TCP_SEND_QUEUE: i32 = 2;
}

/// A socket of any protocol, closed on exec.
///
/// # Errors
/// That of socket(2).
pub fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes three numbers and touches no memory.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An option as a plain value.
///
/// # Errors
/// That of getsockopt(2); InvalidData if the kernel's value is shorter than `T`.
pub fn read<T: FromBytes + IntoBytes>(fd: &impl AsFd, level: i32, name: i32) -> io::Result<T> {
    let mut value = T::new_zeroed();
    let got = raw_read(fd, level, name, value.as_mut_bytes())?;
    if got < size_of::<T>() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("option {level}/{name} has {got} bytes"),
        ));
    }
    Ok(value)
}

/// An option of at most `limit` bytes.
///
/// # Errors
/// That of getsockopt(2).
pub fn bytes(fd: &impl AsFd, level: i32, name: i32, limit: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0; limit];
    let got = raw_read(fd, level, name, &mut value)?;
    value.truncate(got);
    Ok(value)
}

/// Fills `value` and says how much of it the kernel has filled.
///
/// # Errors
/// That of getsockopt(2).
pub fn raw_read(fd: &impl AsFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` is writable for `len` bytes, and the kernel writes at most that many.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if rc == 0 {
        Ok(len as usize)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The classic BPF program of SO_GET_FILTER; empty if there is none. The kernel counts it in instructions of 8 bytes.
///
/// # Errors
/// That of getsockopt(2): EACCES if an extended program is attached.
pub fn filter(fd: &impl AsFd) -> io::Result<Vec<u8>> {
    let mut insns: libc::socklen_t = 0;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: with a length of 0 the kernel (sk_get_filter) only writes the number of instructions to `insns`.
    let rc = unsafe {
        libc::getsockopt(
            raw,
            libc::SOL_SOCKET,
            number::SO_GET_FILTER,
            std::ptr::null_mut(),
            &raw mut insns,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut program = vec![0_u8; insns as usize * 8];
    if program.is_empty() {
        return Ok(program);
    }
    // SAFETY: `program` has 8 bytes for each of the `insns` instructions, and the kernel refuses (EINVAL) to write more than `insns`.
    let rc = unsafe {
        libc::getsockopt(
            raw,
            libc::SOL_SOCKET,
            number::SO_GET_FILTER,
            program.as_mut_ptr().cast(),
            &raw mut insns,
        )
    };
    if rc == 0 {
        Ok(program)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Attaches a classic BPF program, 8 bytes an instruction.
///
/// # Errors
/// That of setsockopt(2).
pub fn attach_filter(fd: &impl AsFd, program: &[u8]) -> io::Result<()> {
    let insns: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let len = u16::try_from(insns.len()).map_err(io::Error::other)?;
    let fprog = libc::sock_fprog {
        len,
        filter: insns.as_ptr().cast_mut(),
    };
    // SAFETY: `fprog` points to `len` instructions that live until the call is over; the kernel only reads them.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const fprog).cast(),
            size_of_val(&fprog) as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// An `int` option.
///
/// # Errors
/// That of getsockopt(2).
pub fn int(fd: &impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    read(fd, level, name)
}

/// Sets an `int` option.
///
/// # Errors
/// That of setsockopt(2).
pub fn set_int(fd: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set(fd, level, name, value.as_bytes())
}

/// Sets a `u32` option.
///
/// # Errors
/// That of setsockopt(2).
pub fn set_u32(fd: &impl AsFd, level: i32, name: i32, value: u32) -> io::Result<()> {
    set(fd, level, name, value.as_bytes())
}

/// Sets an option from a structure.
///
/// # Errors
/// That of setsockopt(2).
pub fn set_value<T: IntoBytes + Immutable + ?Sized>(
    fd: &impl AsFd,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    set(fd, level, name, value.as_bytes())
}

/// Sets an option.
///
/// # Errors
/// That of setsockopt(2).
pub fn set(fd: &impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` is readable for `len` bytes, and the kernel reads no more.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            len,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// An ioctl that writes one `int`: SIOCINQ, SIOCOUTQ, SIOCOUTQNSD.
///
/// # Errors
/// That of ioctl(2).
pub fn queue_len(fd: &impl AsFd, request: libc::Ioctl) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: these requests write one int to the pointer and nothing else.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut value) };
    if rc == 0 {
        usize::try_from(value).map_err(io::Error::other)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The network namespace that a socket was made in (SIOCGSKNS).
///
/// # Errors
/// That of ioctl(2): EPERM without CAP_NET_ADMIN in it.
pub fn netns_of(fd: &impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: SIOCGSKNS takes no argument and returns a new descriptor.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::SIOCGSKNS as libc::Ioctl) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(rc) })
}

/// connect(AF_UNSPEC): tcp_disconnect(), which also takes back a shutdown.
///
/// # Errors
/// That of connect(2).
pub fn disconnect(fd: &impl AsFd) -> io::Result<()> {
    let unspec = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: `unspec` is a whole sockaddr that lives until the call is over; the kernel only reads it.
    let rc = unsafe {
        libc::connect(
            fd.as_fd().as_raw_fd(),
            &raw const unspec,
            size_of_val(&unspec) as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
