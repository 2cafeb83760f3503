//! What would end the container's own connections while nobody answers them: keepalive, TCP_USER_TIMEOUT, and the number of retries.
use std::{fs, io, os::fd::OwnedFd, path::Path};

use netmig_core::image::v1::sock::{Common, Endpoint, Setting};
use serde::{Deserialize, Serialize};

use super::{
    error::{Error, On},
    holders::Held,
    live::outer,
};
use crate::sys::{netns::within, sockopt};

/// What was switched off at one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calmed {
    /// The container's end, IPv4-mapped addresses as IPv4.
    pub local: Endpoint,
    /// The peer's end, likewise.
    pub peer: Endpoint,
    /// SO_KEEPALIVE.
    pub keepalive: i32,
    /// TCP_USER_TIMEOUT in ms.
    pub user_timeout: i32,
}

impl Calmed {
    /// The connection's options as its program has set them, in an image that was made meanwhile.
    pub fn put_back(&self, common: &mut Common) {
        let was = [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, self.keepalive),
            (libc::SOL_TCP, libc::TCP_USER_TIMEOUT, self.user_timeout),
        ];
        for (level, name, value) in was.into_iter().filter(|(_, _, value)| *value != 0) {
            common
                .settings
                .retain(|set| (set.level, set.name) != (level, name));
            common.settings.push(Setting {
                level,
                name,
                value: value.to_ne_bytes().to_vec(),
            });
        }
    }

    fn is_of(&self, local: Endpoint, peer: Endpoint) -> bool {
        (self.local, self.peer) == (local, peer)
    }
}

/// The connections that have such timers. Nothing is changed.
///
/// # Errors
/// If the namespace, a process, sock_diag or a socket cannot be read.
pub fn timers(netns: &Path, pids: &[i32]) -> Result<Vec<Calmed>, Error> {
    let mut all = Vec::new();
    each(netns, pids, &mut |fd, local, peer, name| {
        let timers = Calmed {
            local,
            peer,
            keepalive: sockopt::int(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE)
                .on("reading SO_KEEPALIVE", name)?,
            user_timeout: sockopt::int(fd, libc::SOL_TCP, libc::TCP_USER_TIMEOUT)
                .on("reading TCP_USER_TIMEOUT", name)?,
        };
        if (timers.keepalive, timers.user_timeout) != (0, 0) {
            all.push(timers);
        }
        Ok(())
    })?;
    Ok(all)
}

/// Switches them off.
///
/// # Errors
/// As [`timers`].
pub fn calm(netns: &Path, pids: &[i32], timers: &[Calmed]) -> Result<(), Error> {
    set(netns, pids, timers, |_| (0, 0))
}

/// They are what they were. A connection that is gone is no error.
///
/// # Errors
/// As [`timers`].
pub fn rouse(netns: &Path, pids: &[i32], timers: &[Calmed]) -> Result<(), Error> {
    set(netns, pids, timers, |t| (t.keepalive, t.user_timeout))
}

fn set(
    netns: &Path,
    pids: &[i32],
    timers: &[Calmed],
    to: impl Fn(&Calmed) -> (i32, i32) + Sync,
) -> Result<(), Error> {
    if timers.is_empty() {
        return Ok(());
    }
    each(netns, pids, &mut |fd, local, peer, name| {
        let Some(known) = timers.iter().find(|t| t.is_of(local, peer)) else {
            return Ok(());
        };
        let (keepalive, user_timeout) = to(known);
        sockopt::set_int(fd, libc::SOL_TCP, libc::TCP_USER_TIMEOUT, user_timeout)
            .on("setting TCP_USER_TIMEOUT", name)?;
        sockopt::set_int(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, keepalive)
            .on("setting SO_KEEPALIVE", name)
    })
}

/// How often a segment or a probe of a window is sent again before a connection ends (`net.ipv4.tcp_retries2`, for IPv6 too). Each counts, though the
/// closed gate drops them all.
const RETRIES: &str = "/proc/sys/net/ipv4/tcp_retries2";
/// The most that it can be: 20 hours and more.
const MOST: u32 = 255;

/// How many retries connections of the namespace have; none if there cannot be more.
///
/// # Errors
/// If the namespace or the setting cannot be read.
pub fn retries(netns: &Path) -> Result<Option<u32>, Error> {
    let text = within(netns, || {
        fs::read_to_string(RETRIES).on("reading", &RETRIES)
    })?;
    let now = text.trim().parse().map_err(io::Error::other);
    let now: u32 = now.on("reading", &RETRIES)?;
    Ok((now < MOST).then_some(now))
}

/// Allows connections of the namespace so many retries, or with none as many as there can be.
///
/// # Errors
/// If the namespace cannot be entered, or the setting not be written.
pub fn allow_retries(netns: &Path, retries: Option<u32>) -> Result<(), Error> {
    let text = retries.unwrap_or(MOST).to_string();
    within(netns, || fs::write(RETRIES, text).on("writing", &RETRIES))
}

type Visit<'a> =
    &'a mut (dyn FnMut(&OwnedFd, Endpoint, Endpoint, &String) -> Result<(), Error> + Send);

/// Every established connection with a peer outside that somebody has accepted.
fn each(netns: &Path, pids: &[i32], visit: Visit<'_>) -> Result<(), Error> {
    within(netns, || {
        let held = Held::by(pids)?;
        for seen in outer()? {
            if let Some(owners) = held.get(seen.inode) {
                let (local, peer) = (seen.local.canonical(), seen.peer.canonical());
                let name = format!("tcp {local} -> {peer}");
                visit(&held.duplicate(owners)?, local, peer, &name)?;
            }
        }
        Ok(())
    })
}
