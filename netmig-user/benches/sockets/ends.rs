//! Those who hold sockets: the container, its peers, the engine at the target.
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use netmig_user::{sock::option, sys::netns::within};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::{
    hosts::CONTAINER,
    role::{tell, told},
};

const PORT: u16 = 7000;

/// All descriptors that the limit allows.
pub fn all_descriptors() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// The same socket under the lowest free number from here on: what a process inherits leaves holes among the lower ones.
fn numbered(socket: impl AsFd) -> std::io::Result<OwnedFd> {
    const FIRST: i32 = 1000;
    let fd = fcntl(socket, FcntlArg::F_DUPFD_CLOEXEC(FIRST))?;
    // SAFETY: the kernel has just made this descriptor for us and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(v6: bool) -> anyhow::Result<SocketAddr> {
    let ip: IpAddr = CONTAINER[usize::from(v6)].parse()?;
    Ok(SocketAddr::new(ip, PORT))
}

pub fn container(netns: &Path, count: usize, queued: usize, v6: bool) -> anyhow::Result<()> {
    all_descriptors()?;
    let at = address(v6)?;
    let listener = within(netns, || TcpListener::bind(at))?;
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        streams.push(TcpStream::from(numbered(listener.accept()?.0)?));
    }
    drop(listener);
    let first = streams.first().context("no connection")?.as_raw_fd();
    let contiguous = (first..).zip(&streams).all(|(fd, s)| s.as_raw_fd() == fd);
    ensure!(contiguous, "descriptors with holes");
    for stream in &streams {
        stream.set_nonblocking(true)?;
    }
    tell(first)?;
    told()?;
    let bytes = vec![0x55; queued];
    for stream in &mut streams {
        stream.write_all(&bytes).context("filling a send queue")?;
    }
    tell("written")?;
    told()?;
    Ok(())
}

/// What a connection must carry after the move beyond what was queued.
pub const MOVED: &[u8] = b"moved";

pub fn peer(netns: &Path, count: usize, queued: usize, v6: bool) -> anyhow::Result<()> {
    all_descriptors()?;
    let to = address(v6)?;
    let mut streams = within(netns, || {
        (0..count)
            .map(|_| connect(to))
            .collect::<std::io::Result<Vec<_>>>()
    })?;
    let bytes = vec![0xaa; queued];
    for stream in &mut streams {
        stream.write_all(&bytes)?;
    }
    tell("connected")?;
    if told()?.is_none() {
        return Ok(());
    }
    let mut exact = 0;
    let expected = [vec![0x55; queued], MOVED.to_vec()].concat();
    for stream in &mut streams {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut got = vec![0; expected.len()];
        let read = stream.read_exact(&mut got);
        exact += usize::from(read.is_ok() && got == expected);
    }
    tell(exact)?;
    told()?;
    Ok(())
}

/// Until there is a listener.
fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut tries = 0;
    loop {
        match TcpStream::connect(to) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused && tries < 500 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            connected => return connected,
        }
    }
}

pub fn engine(netns: &Path, count: usize, v6: bool) -> anyhow::Result<()> {
    all_descriptors()?;
    let sockets: Vec<OwnedFd> = within(netns, || {
        (0..count)
            .map(|_| numbered(option::new_socket(option::Sort::Tcp, v6)?))
            .collect::<std::io::Result<Vec<_>>>()
    })?;
    let first = sockets.first().context("no socket")?.as_raw_fd();
    let contiguous = (first..).zip(&sockets).all(|(fd, s)| s.as_raw_fd() == fd);
    ensure!(contiguous, "descriptors with holes");
    tell(first)?;
    told()?;
    Ok(())
}
