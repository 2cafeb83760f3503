//! Live connections for a keeper: what their sockets say, room for what was promised to their peers, and windows told anew.
use std::{
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use netmig_core::{
    image::v1::sock::{Endpoint, Tcp, TcpState, later},
    socket::State,
};
use zerocopy::IntoBytes as _;

use super::{
    buffer::Wider,
    common, diag,
    error::{Error, On},
    holders::Held,
    inject::Injector,
    repair::Repair,
    tcp,
};
use crate::sys::{
    netns::within,
    sockopt::{
        self,
        number::{TCP_NO_QUEUE, TCP_RECV_QUEUE, TCP_SEND_QUEUE},
    },
};

/// An established connection with a peer outside, neither signed nor filtered, without a FIN either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// The container's end, IPv4-mapped addresses as IPv4.
    pub local: Endpoint,
    /// The peer's end, likewise.
    pub peer: Endpoint,
    /// First byte not acknowledged.
    pub snd_una: u32,
    /// First byte not sent.
    pub snd_nxt: u32,
    /// Next byte expected.
    pub rcv_nxt: u32,
    /// `rcv_nxt` when a window was last announced.
    pub rcv_wup: u32,
    /// The window of then, in bytes.
    pub rcv_wnd: u32,
    /// Largest window that the peer has ever announced, in bytes.
    pub max_window: u32,
    /// TCP_TIMESTAMP when [`live`] returned: bit 0 is its unit, so a segment may have been stamped a tick later. None without timestamps.
    pub stamp: Option<u32>,
    /// Shift of the windows that it announces; 0 without the option.
    pub rcv_wscale: u8,
    /// Largest payload that it has allowed the peer, timestamps not subtracted (`tcpi_advmss`); 0 if that is not known.
    pub rcv_mss: u32,
    /// Bytes received in all (`tcpi_bytes_received`); 0 if that is not known.
    pub received: u64,
}

/// What a look at them does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Acknowledges also what has come within a second, for that ACK may have died in the gate with the data that it came with; and asks a
    /// peer whose window is full for one segment.
    First,
    /// No more than what is not acknowledged.
    Again,
}

/// What peers have sent within this they may not have seen acknowledged, and would send again after a retransmission timeout, most often.
const RECENT: Duration = Duration::from_secs(1);

impl Live {
    /// Right edge of the window that it has announced.
    #[must_use]
    pub fn edge(&self) -> u32 {
        self.rcv_wup.wrapping_add(self.rcv_wnd)
    }

    /// Whether the peer may send less than a segment.
    fn is_full(&self) -> bool {
        (self.edge().wrapping_sub(self.rcv_nxt) as i32) < self.rcv_mss as i32
    }

    /// A connection of an image; none if a FIN has come or was written.
    pub fn of(tcp: &Tcp) -> Option<Self> {
        (tcp.state == TcpState::Established).then(|| Self {
            local: tcp.local.canonical(),
            peer: tcp.peer.canonical(),
            snd_una: tcp.snd_una,
            snd_nxt: tcp.snd_nxt,
            rcv_nxt: tcp.rcv_nxt,
            rcv_wup: tcp.window.rcv_wup,
            rcv_wnd: tcp.window.rcv_wnd,
            max_window: tcp.window.max_window,
            stamp: tcp.timestamps.then_some(tcp.timestamp),
            rcv_wscale: tcp.wscale.map_or(0, |(_, rcv)| rcv),
            rcv_mss: 0,
            received: 0,
        })
    }
}

/// Reads them through duplicates of the descriptors that `pids` hold. What has come and was not acknowledged is acknowledged at once, for the
/// stack's own ACK may be delayed for longer than it may pass the gate. The tasks are stopped, the gate is closed. No socket is in repair when
/// it returns.
///
/// # Errors
/// If the namespace, a process, sock_diag or a socket cannot be read.
pub fn live(netns: &Path, pids: &[i32], look: Look) -> Result<Vec<Live>, Error> {
    within(netns, || {
        let held = Held::by(pids)?;
        let here = common::kernel().on("reading the kernel's version", &"this host")?;
        let kernels = tcp::Kernels { source: here, here };
        let mut injector = Injector::default();
        let mut all = Vec::new();
        for seen in outer()?.iter().filter(|seen| !seen.signed) {
            // Nobody has accepted it yet.
            let Some(owners) = held.get(seen.inode) else {
                continue;
            };
            let fd = held.duplicate(owners)?;
            let Some((mut live, silent)) = read(&fd, seen.local, seen.peer)? else {
                continue;
            };
            live.stamp = live.stamp.map(|stamp| kernels.clock(stamp));
            let invited = look == Look::First && live.is_full();
            let recent = look == Look::First && silent < RECENT;
            if live.rcv_nxt != live.rcv_wup || recent || invited {
                injector.acknowledge(&live, invited).on(
                    "acknowledging what has come",
                    &format!("tcp {} -> {}", live.local, live.peer),
                )?;
            }
            all.push((live, Instant::now()));
        }
        let now = Instant::now();
        let at_once = all.into_iter().map(|(live, read)| Live {
            stamp: live.stamp.map(|stamp| later(stamp, now - read)),
            ..live
        });
        Ok(at_once.collect())
    })
}

/// Bytes that every established connection with a peer outside has received in all: its own end, its peer's, how many.
///
/// # Errors
/// If the namespace or sock_diag cannot be read.
pub fn received(netns: &Path) -> Result<Vec<(Endpoint, Endpoint, u64)>, Error> {
    let all = within(netns, outer)?;
    let counts = all.iter().map(|seen| {
        let (local, peer) = (seen.local.canonical(), seen.peer.canonical());
        (local, peer, seen.bytes_received)
    });
    Ok(counts.collect())
}

pub(super) fn outer() -> Result<Vec<super::flows::Seen>, Error> {
    let mut all = diag::tcp_infos()?;
    let own: Vec<_> = all
        .iter()
        .map(|seen| (seen.local.canonical().ip, seen.local.port))
        .collect();
    all.retain(|seen| !own.contains(&(seen.peer.canonical().ip, seen.peer.port)));
    Ok(all)
}

/// Sends once more what connections have in flight, from the first byte on: what the closed gate has dropped would be sent again only by
/// a timer, which has doubled all the while. The tasks are stopped, the gate is open. How many connections; goes on after an error and
/// reports them all.
pub fn resend(netns: &Path, pids: &[i32]) -> (usize, Vec<Error>) {
    let (mut sent, mut failed) = (0, Vec::new());
    let done = within(netns, || {
        let held = Held::by(pids)?;
        let mut injector = Injector::default();
        for seen in outer()?.iter().filter(|seen| seen.unacked > 0) {
            let Some(owners) = held.get(seen.inode) else {
                continue;
            };
            let resent = held.duplicate(owners).and_then(|fd| {
                let tcp = tcp::read_known(&fd, seen.inode, seen.local, seen.peer)?;
                let stamp = tcp::stamp(&fd, &tcp)?;
                injector
                    .resend(&tcp, stamp, tcp::split(&tcp).0, 0)
                    .on("sending what was in flight once more", &tcp)
            });
            match resent {
                Ok(()) => sent += 1,
                Err(e) => failed.push(e),
            }
        }
        Ok(())
    });
    failed.extend(done.err());
    (sent, failed)
}

/// Room for what was promised to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The container's end, IPv4-mapped addresses as IPv4.
    pub local: Endpoint,
    /// The peer's end, likewise.
    pub peer: Endpoint,
    /// Of memory.
    pub bytes: u64,
    /// End of what was promised: the window reaches this far at least.
    pub edge: u32,
}

/// Receive buffers that take more than their programs wanted, until [`Widened::end`].
#[derive(Debug, Default)]
pub struct Widened(Vec<Wider<OwnedFd>>);

/// Widens the receive buffers and windows of connections: promised bytes must find room whatever the program has not read. Goes on after an
/// error and reports them all.
pub fn widen(netns: &Path, pids: &[i32], needs: &[Need]) -> (Widened, Vec<Error>) {
    let mut failed = Vec::new();
    let mut widened = Widened::default();
    let done = within(netns, || {
        let held = Held::by(pids)?;
        for seen in outer()? {
            let ends = (seen.local.canonical(), seen.peer.canonical());
            let Some(need) = needs.iter().find(|n| (n.local, n.peer) == ends) else {
                continue;
            };
            let Some(owners) = held.get(seen.inode) else {
                continue;
            };
            let name = format!("tcp {} -> {}", ends.0, ends.1);
            match held
                .duplicate(owners)
                .and_then(|fd| widen_one(fd, name, need))
            {
                Ok(buffer) => widened.0.extend(buffer),
                Err(e) => failed.push(e),
            }
        }
        Ok(())
    });
    failed.extend(done.err());
    (widened, failed)
}

fn widen_one(fd: OwnedFd, name: String, need: &Need) -> Result<Option<Wider<OwnedFd>>, Error> {
    // The kernel counts twice what a program asks for.
    let wider = Wider::than(fd, name, |size| size.saturating_add(2 * need.bytes))?;
    if let Some(wider) = &wider {
        reach(&wider.fd, need.edge, &wider.name)?;
    }
    Ok(wider)
}

impl Widened {
    /// They are as they were; what is in them stays. Goes on after an error and reports them all.
    pub fn end(self) -> Vec<Error> {
        self.0.iter().filter_map(|b| b.back().err()).collect()
    }
}

/// The window reaches to `edge` at least.
fn reach(fd: &OwnedFd, edge: u32, name: &str) -> Result<(), Error> {
    let reuseaddr =
        sockopt::int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).on("reading SO_REUSEADDR", &name)?;
    let repair = Repair::enter(fd, reuseaddr, &name)?;
    // struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    let mut window: [u32; 5] = sockopt::read(fd, libc::SOL_TCP, libc::TCP_REPAIR_WINDOW)
        .on("reading TCP_REPAIR_WINDOW", &name)?;
    let [.., rcv_wnd, rcv_wup] = window;
    let needed = edge.wrapping_sub(rcv_wup);
    if needed <= i32::MAX as u32 && needed > rcv_wnd {
        window[3] = needed;
        sockopt::set(
            fd,
            libc::SOL_TCP,
            libc::TCP_REPAIR_WINDOW,
            window.as_bytes(),
        )
        .on("setting TCP_REPAIR_WINDOW", &name)?;
    }
    repair.leave()
}

/// Makes the stack tell peers its windows, by an empty segment from before the last announcement, which it answers with an ACK that is
/// right in every field (tcp_send_dupack); at most one in 500 ms for a socket (tcp_oow_rate_limited). Goes on after an error and
/// reports the first.
///
/// # Errors
/// If the namespace cannot be entered or a packet cannot be sent.
pub fn tell_windows(netns: &Path, connections: &[Live]) -> Result<(), Error> {
    within(netns, || {
        let mut injector = Injector::default();
        let mut failed = None;
        for live in connections {
            let told = injector.old(live).on(
                "making it tell its window",
                &format!("tcp {} -> {}", live.local, live.peer),
            );
            failed = failed.or(told.err());
        }
        failed.map_or(Ok(()), Err)
    })
}

/// What a keeper has to know of a connection, and for how long no data has come; none if it is not (or not only) established, or filters what
/// comes.
fn read(fd: &OwnedFd, local: Endpoint, peer: Endpoint) -> Result<Option<(Live, Duration)>, Error> {
    let name = format!("tcp {local} -> {peer}");
    // struct tcp_info: last_data_recv (in ms) at 52, advmss at 84, bytes_received at 128.
    let info: [u8; 136] =
        sockopt::read(fd, libc::SOL_TCP, libc::TCP_INFO).on("reading TCP_INFO", &name)?;
    let (options, scales) = (info[5], info[6]);
    // A filter might drop what is given to it later.
    let filtered = !sockopt::filter(fd).is_ok_and(|filter| filter.is_empty());
    if State::from_kernel(info[0]) != State::Established || filtered {
        return Ok(None);
    }
    let reuseaddr =
        sockopt::int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).on("reading SO_REUSEADDR", &name)?;
    let repair = Repair::enter(fd, reuseaddr, &name)?;
    let read = || {
        let [_, _, max_window, rcv_wnd, rcv_wup]: [u32; 5] =
            sockopt::read(fd, libc::SOL_TCP, libc::TCP_REPAIR_WINDOW)
                .on("reading TCP_REPAIR_WINDOW", &name)?;
        let stamp: u32 = sockopt::read(fd, libc::SOL_TCP, libc::TCP_TIMESTAMP)
            .on("reading TCP_TIMESTAMP", &name)?;
        repair.queue(TCP_SEND_QUEUE)?;
        let write_seq = repair.seq()?;
        let queued = sockopt::queue_len(fd, libc::TIOCOUTQ).on("reading SIOCOUTQ", &name)?;
        let unsent = sockopt::queue_len(fd, libc::SIOCOUTQNSD as libc::Ioctl)
            .on("reading SIOCOUTQNSD", &name)?;
        repair.queue(TCP_RECV_QUEUE)?;
        let rcv_nxt = repair.seq()?;
        repair.queue(TCP_NO_QUEUE)?;
        let number =
            |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
        let mut received = [0; 8];
        received.copy_from_slice(&info[128..]);
        let live = Live {
            local: local.canonical(),
            peer: peer.canonical(),
            snd_una: write_seq.wrapping_sub(queued as u32),
            snd_nxt: write_seq.wrapping_sub(unsent as u32),
            rcv_nxt,
            rcv_wup,
            rcv_wnd,
            max_window,
            // Bit 0 is not the clock's (6.12), and a peer does not hear what is older than the last it has heard (tcp_paws_check): with
            // the bit it is at most one tick early.
            stamp: (options & 1 != 0).then_some(stamp),
            rcv_wscale: if options & 4 != 0 { scales >> 4 } else { 0 },
            rcv_mss: number(84),
            received: u64::from_ne_bytes(received),
        };
        Ok((live, Duration::from_millis(u64::from(number(52)))))
    };
    let live = read();
    repair.leave()?;
    live.map(Some)
}
