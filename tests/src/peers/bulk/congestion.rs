//! Which congestion control a stream uses: one whose window tells of losses, whatever the machine's default is. (BBR shrinks its window
//! every ten seconds to measure.)
use std::{ffi::OsString, io, net::TcpStream};

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::TcpCongestion},
};

/// What most machines have.
const USUAL: &str = "cubic";
/// What every program may choose on every kernel.
const ALWAYS: &str = "reno";

/// Chooses it for `stream` and says which.
///
/// # Errors
/// setsockopt's.
pub(crate) fn choose(stream: &TcpStream) -> io::Result<&'static str> {
    match setsockopt(stream, TcpCongestion, &OsString::from(USUAL)) {
        Ok(()) => Ok(USUAL),
        // Restricted (tcp_allowed_congestion_control), or not there.
        Err(Errno::EPERM | Errno::ENOENT) => {
            setsockopt(stream, TcpCongestion, &OsString::from(ALWAYS))?;
            Ok(ALWAYS)
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::sys::socket::getsockopt;

    use super::*;

    #[test]
    fn a_stream_gets_what_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let name = choose(&stream).expect("one of them can be had");
        let chosen = getsockopt(&stream, TcpCongestion).expect("told");
        assert!(
            chosen.to_string_lossy().starts_with(name),
            "{chosen:?} is not {name}"
        );
    }
}
