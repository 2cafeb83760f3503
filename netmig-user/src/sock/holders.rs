//! Which process holds which socket.
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use netmig_core::{image::v1::sock::Holder, socket::Owner};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl, readlinkat},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        stat::fstat,
    },
};

use super::error::Error;
use crate::sys::pidfd::PidFd;

/// A descriptor as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Pid on the host.
    pub pid: i32,
    /// File descriptor.
    pub fd: i32,
}

/// The sockets that some processes hold, by inode.
#[derive(Debug, Default)]
pub(super) struct Held {
    sockets: BTreeMap<u64, Vec<Owner>>,
    processes: HashMap<i32, (PidFd, i32)>,
}

impl Held {
    /// Walks /proc/PID/fd of every process. A process that has gone holds nothing.
    pub(super) fn by(pids: &[i32]) -> Result<Self, Error> {
        let mut held = Self::default();
        for &pid in pids {
            let reading = |what: String| move |source| Error::Proc { what, source };
            let process = match PidFd::open(pid) {
                Ok(process) => process,
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(e) => return Err(reading(format!("process {pid}"))(e)),
            };
            let dir = format!("/proc/{pid}/fd");
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(reading(dir)(e)),
            };
            // From there on: each path from the root on would be looked up again.
            let place = match File::open(&dir) {
                Ok(place) => place,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(reading(dir)(e)),
            };
            held.processes.insert(pid, (process, inner_pid(pid)?));
            for entry in entries {
                let entry = entry.map_err(reading(dir.clone()))?;
                let Some(fd) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                    continue;
                };
                // A descriptor of a running process may be closed before it is looked at.
                let Ok(link) = readlinkat(&place, entry.file_name().as_os_str()) else {
                    continue;
                };
                if let Some(inode) = link.to_str().and_then(socket_inode) {
                    let owners = held.sockets.entry(inode);
                    // One, for most: there may be many sockets.
                    let owners = owners.or_insert_with(|| Vec::with_capacity(1));
                    owners.push(Owner { pid, fd });
                }
            }
        }
        for owners in held.sockets.values_mut() {
            owners.sort_unstable();
            owners.dedup();
        }
        make_room(held.sockets.len())?;
        Ok(held)
    }

    /// Who holds the socket; none for inode 0.
    pub(super) fn get(&self, inode: u64) -> Option<&[Owner]> {
        self.sockets.get(&inode).map(Vec::as_slice)
    }

    /// Every socket that is held.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[Owner])> {
        self.sockets
            .iter()
            .map(|(&inode, owners)| (inode, owners.as_slice()))
    }

    /// A duplicate, by the first owner that still has it.
    pub(super) fn duplicate(&self, owners: &[Owner]) -> Result<OwnedFd, Error> {
        let mut last = io::Error::from_raw_os_error(libc::EBADF);
        for owner in owners {
            match self
                .processes
                .get(&owner.pid)
                .map(|(process, _)| process.fd(owner.fd))
            {
                Some(Ok(fd)) => return Ok(fd),
                Some(Err(e)) => last = e,
                None => {}
            }
        }
        let what = owners.first().map_or_else(String::new, |o| {
            format!("descriptor {} of process {}", o.fd, o.pid)
        });
        Err(Error::Proc { what, source: last })
    }

    /// A duplicate of the socket `inode`, of processes that may run: none if they have closed it, or its number is another file's by now.
    pub(super) fn duplicate_while_running(&self, inode: u64, owners: &[Owner]) -> Option<OwnedFd> {
        let fd = self.duplicate(owners).ok()?;
        fstat(&fd).is_ok_and(|is| is.st_ino == inode).then_some(fd)
    }

    /// The owners with their pids inside the container.
    pub(super) fn inside(&self, owners: &[Owner]) -> Vec<Holder> {
        let mut holders = Vec::with_capacity(owners.len());
        holders.extend(owners.iter().filter_map(|o| {
            self.processes
                .get(&o.pid)
                .map(|&(_, pid)| Holder { pid, fd: o.fd })
        }));
        holders
    }
}

/// Host pids of processes by their pid in the innermost pid namespace.
pub(super) fn by_inner_pid(pids: &[i32]) -> Result<HashMap<i32, i32>, Error> {
    pids.iter().map(|&pid| Ok((inner_pid(pid)?, pid))).collect()
}

/// Makes room for `more` duplicates: raises the soft limit of descriptors to the hard one if they need it, and lets the table of this process grow at
/// once. By itself it doubles, and each time the kernel waits for all who may still look at the old one (expand_fdtable, synchronize_rcu).
pub(super) fn make_room(more: usize) -> Result<(), Error> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(io::Error::from)?;
    let want = more as u64 + 1024;
    if soft < want && soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(io::Error::from)?;
    }
    let last = want.min(soft.max(hard)).saturating_sub(1);
    let any = File::open("/dev/null")?;
    match fcntl(
        &any,
        FcntlArg::F_DUPFD_CLOEXEC(i32::try_from(last).unwrap_or(i32::MAX)),
    ) {
        // SAFETY: the kernel has just made this descriptor for us and nothing else knows it.
        Ok(fd) => drop(unsafe { OwnedFd::from_raw_fd(fd) }),
        // It is taken, or beyond the limit: then the table has that size, or as much as it may.
        Err(Errno::EMFILE | Errno::EINVAL) => {}
        Err(e) => return Err(io::Error::from(e).into()),
    }
    Ok(())
}

fn inner_pid(pid: i32) -> Result<i32, Error> {
    let what = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&what).map_err(|source| Error::Proc {
        what: what.clone(),
        source,
    })?;
    status
        .lines()
        .find_map(|l| l.strip_prefix("NSpid:"))
        .and_then(|l| l.split_whitespace().next_back())
        .and_then(|n| n.parse().ok())
        .ok_or(Error::Malformed { what })
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::unistd::dup2;

    use super::*;

    #[test]
    fn a_number_that_is_another_file_s_by_now_gives_nothing() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let mut fd = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let inode = fstat(&fd).expect("its inode").st_ino;
        let held = Held::by(&[own]).expect("what this process holds");
        let owners = held.get(inode).expect("it is held");
        assert!(held.duplicate_while_running(inode, owners).is_some());
        let other = File::open("/dev/null").expect("another file");
        dup2(&other, &mut fd).expect("its number");
        assert!(held.duplicate(owners).is_ok());
        assert!(held.duplicate_while_running(inode, owners).is_none());
    }
}
