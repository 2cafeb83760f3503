//! TCP listeners. Under CRIU they come back on their descriptors by themselves; what is recorded serves the plan and the handoff, and
//! the options of which CRIU knows nothing are set again.
use std::os::fd::OwnedFd;

use netmig_core::{
    image::v1::sock::{Common, Endpoint, Listener},
    socket::State,
};

use super::{
    diag::{Found, Name},
    error::{Error, On},
    md5,
    option::{self, Refused, When},
};
use crate::sys::sockopt;

/// Reads one.
pub(super) fn dump(fd: &OwnedFd, common: Common, socket: &Found) -> Result<Listener, Error> {
    debug_assert_eq!(socket.state, State::Listen);
    let Name::Inet(local) = socket.local else {
        return Err(Error::Malformed {
            what: format!("the address of {socket}"),
        });
    };
    // Of a listener tcpi_sacked is the length of its accept queue, tcpi_unacked how many wait in it (tcp_get_info).
    let info: [u32; 8] =
        sockopt::read(fd, libc::SOL_TCP, libc::TCP_INFO).on("reading TCP_INFO", socket)?;
    Ok(Listener {
        common,
        local,
        backlog: info[7],
        waiting: info[6],
    })
}

/// Sets what may differ on a listener that the engine has restored. SO_REUSEPORT goes back to what it was: CRIU leaves 1.
pub(super) fn restore(fd: &OwnedFd, listener: &Listener) -> Result<Vec<Refused>, Error> {
    let name = name(listener.local);
    for (option, value, call) in [
        (
            libc::SO_REUSEADDR,
            listener.common.reuseaddr,
            "setting SO_REUSEADDR",
        ),
        (
            libc::SO_REUSEPORT,
            listener.common.reuseport,
            "setting SO_REUSEPORT",
        ),
    ] {
        if sockopt::int(fd, libc::SOL_SOCKET, option).on(call, &name)? != value {
            sockopt::set_int(fd, libc::SOL_SOCKET, option, value).on(call, &name)?;
        }
    }
    md5::set(fd, &listener.common, &name)?;
    let mut refused = Vec::new();
    for when in [When::First, When::Connected, When::Open] {
        refused.extend(option::apply(fd, &listener.common.settings, when, &name));
    }
    Ok(refused)
}

/// A listener in words.
pub(super) fn name(local: Endpoint) -> String {
    format!("listener {local}")
}
