//! The opening of rebuilt connections: each learns its peer's window, and its peer the true one.
use std::os::fd::{AsRawFd, OwnedFd};

use netmig_core::image::v1::{
    conntrack::Translated,
    sock::{Tcp, TcpState},
};
use nix::sys::socket::{Shutdown, shutdown};

use super::{
    cores,
    error::{Error, On},
    inject::Injector,
    option::{self, Refused, When},
    rebuilt::{Connection, Opened},
    tcp,
};

/// What lies in a hold of a connection's peer, and is delivered right behind the opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coming {
    /// The peer thinks that the container has some of it.
    pub promised: bool,
    /// End of what the peer has acknowledged by it; none if that is not known.
    pub acked: Option<u32>,
}

/// Own data first, then the peer, then the question for lost ACKs: the order that was measured to be the quickest.
pub(super) fn start(
    connections: &[&Connection],
    translated: &[Translated],
    coming: &(dyn Fn(&Tcp) -> Coming + Sync),
) -> Result<Opened, Error> {
    let parts = cores::parts(connections, |part| {
        let mut injector = Injector::translating(translated);
        let (mut probed, mut failed) = (0, None);
        for c in part {
            let starting = Starting {
                fd: &c.fd,
                tcp: &c.tcp,
                flight: &c.flight,
                inner: c.inner,
            };
            match starting.start(&mut injector, coming(&c.tcp)) {
                Ok(asked) => probed += usize::from(asked),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        (probed, failed)
    });
    let mut opened = Opened {
        connections: connections.len(),
        ..Opened::default()
    };
    let mut first = None;
    for (probed, failed) in parts {
        opened.probed += probed;
        first = first.or(failed);
    }
    first.map_or(Ok(opened), Err)
}

/// A connection at its opening.
pub(super) struct Starting<'a> {
    pub(super) fd: &'a OwnedFd,
    pub(super) tcp: &'a Tcp,
    /// Bytes that went in as sent.
    pub(super) flight: &'a [u8],
    /// Both ends are in the container.
    pub(super) inner: bool,
}

impl Starting<'_> {
    /// Starts it; says whether its peer was asked for an ACK.
    pub(super) fn start(&self, injector: &mut Injector, coming: Coming) -> Result<bool, Error> {
        let tcp = self.tcp;
        let acked = self.acked(coming);
        let refused = option::apply(self.fd, &tcp.common.settings, When::Open, tcp);
        // A window far below what the peer has offered before is one that a drain has shrunk, or one that may have opened meanwhile.
        let probe =
            !self.inner && (tcp.in_flight() > acked || tcp.peer_window < tcp.window.max_window / 2);
        // What is sent once more must come before our FIN: both ends may be gone right after that, and would answer with RST.
        let ending = tcp.state.fin_written() && tcp.state != TcpState::FinWait2;
        if probe && ending {
            self.ask(injector, acked)?;
        }
        // Which FIN came first decides between LAST_ACK and CLOSING.
        if matches!(tcp.state, TcpState::CloseWait | TcpState::LastAck) {
            injector.fin(tcp).on("delivering the peer's FIN", tcp)?;
        }
        if tcp.state.fin_written() {
            shutdown(self.fd.as_raw_fd(), Shutdown::Write).on("shutting it down", tcp)?;
        }
        // In LAST_ACK the peer's FIN has told it, and the answer to ours may have ended the connection: what comes then draws a RST.
        if (tcp.peer_window > 0 && tcp.state != TcpState::LastAck && !tcp::knows_window(tcp))
            || tcp.state == TcpState::FinWait2
        {
            injector
                .window(tcp)
                .on("telling it the peer's window", tcp)?;
        }
        match tcp.state {
            TcpState::FinWait2 => injector
                .fin_acknowledged(tcp)
                .on("delivering the ACK of its FIN", tcp)?,
            TcpState::Closing => injector.fin(tcp).on("delivering the peer's FIN", tcp)?,
            _ => {}
        }
        if tcp.shut_read && !tcp.state.fin_received() {
            shutdown(self.fd.as_raw_fd(), Shutdown::Read)
                .on("shutting it down for reading", tcp)?;
        }
        // An inner peer knows already. One that has sent its FIN sends no more; and that connection may be over by now, and would
        // answer with RST.
        if !self.inner && !coming.promised && !tcp.state.fin_received() {
            injector
                .keepalive(tcp)
                .on("making it tell its window", tcp)?;
        }
        if probe && !ending {
            self.ask(injector, acked)?;
        }
        match refused.into_iter().next() {
            Some(Refused { source, .. }) => Err(source).on("setting a timer option", tcp),
            None => Ok(probe),
        }
    }

    /// Bytes in flight of which it is known that the peer has them.
    fn acked(&self, coming: Coming) -> u32 {
        let acked = coming
            .acked
            .map_or(0, |end| end.wrapping_sub(self.tcp.snd_una));
        // Nothing else is believed: the stack will not, either.
        if acked <= self.tcp.in_flight() {
            acked
        } else {
            0
        }
    }

    /// Asks its peer for an ACK, and sends what was in flight once more, but for the first bytes, which are `acked`.
    fn ask(&self, injector: &mut Injector, acked: u32) -> Result<(), Error> {
        let tcp = self.tcp;
        let stamp = tcp::stamp(self.fd, tcp)?;
        injector
            .probe(tcp, stamp)
            .on("asking its peer for an ACK", tcp)?;
        injector
            .resend(tcp, stamp, self.flight, acked)
            .on("sending what was in flight once more", tcp)
    }
}
