//! The object `warm`: congestion windows of rebuilt connections.
//!
//! A connection begins with a window of ten segments, whatever it had before. One that has something to send gets half of what it had: what the kernel leaves a
//! connection that was silent for a retransmission timeout (tcp_cwnd_restart, RFC 2861), so that what leaves at the opening, with no ACK to pace it, does not
//! overflow a queue that the whole window just filled. A round trip later it is the whole. Of the slow start threshold nothing can be set.
use std::{
    io::Read as _,
    os::fd::OwnedFd,
    sync::{Mutex, OnceLock, PoisonError},
};

use aya::{
    include_bytes_aligned,
    maps::{HashMap, MapError},
};
use netmig_core::image::v1::sock::Tcp;

use super::iter::{Failure, Object};
use crate::sys::sockopt;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/warm"));
const PROGRAM: &str = "nm_warm";
const WINDOWS: &str = "WINDOWS";
/// What every connection begins with (TCP_INIT_CWND), segments.
const COLD: u32 = 10;

/// The program in the kernel; the first call loads it, which takes longer than a blackout should.
pub(super) fn loaded() -> &'static Result<Mutex<Object>, Failure> {
    static LOADED: OnceLock<Result<Mutex<Object>, Failure>> = OnceLock::new();
    LOADED.get_or_init(|| Object::load(OBJECT, &[PROGRAM]).map(Mutex::new))
}

/// The window that a connection goes on with; none: the one that every connection begins with.
fn window(tcp: &Tcp) -> Option<u32> {
    Some(tcp.cwnd / 2).filter(|half| *half > COLD && !tcp.send.is_empty())
}

/// Widens the windows of connections of the caller's namespace that are in repair. Those of which that is refused begin anew, and are counted.
pub(super) fn warm(connections: &[(&OwnedFd, &Tcp)]) -> Result<usize, Failure> {
    let mut wanted = Vec::new();
    for (fd, tcp) in connections {
        if let Some(window) = window(tcp) {
            let cookie: u64 = sockopt::read(fd, libc::SOL_SOCKET, libc::SO_COOKIE)?;
            wanted.push((cookie, window));
        }
    }
    if wanted.is_empty() {
        return Ok(0);
    }
    let object = loaded().as_ref().map_err(ToString::to_string)?;
    let mut object = object.lock().unwrap_or_else(PoisonError::into_inner);
    let widened = widen(&mut object, &wanted);
    let mut windows: HashMap<_, u64, u32> = object.map(WINDOWS)?;
    for (cookie, _) in &wanted {
        match windows.remove(cookie) {
            // It was not put there: that has failed.
            Err(MapError::KeyNotFound) | Ok(()) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(wanted.len() - widened?)
}

/// How many were widened.
fn widen(object: &mut Object, wanted: &[(u64, u32)]) -> Result<usize, Failure> {
    let mut windows: HashMap<_, u64, u32> = object.map(WINDOWS)?;
    for (cookie, window) in wanted {
        windows.insert(cookie, window, 0)?;
    }
    let mut cookies = Vec::new();
    object.pass(PROGRAM)?.read_to_end(&mut cookies)?;
    Ok(cookies.len() / size_of::<u64>())
}
