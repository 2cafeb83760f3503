//! What one pass over all connections says of them, without a system call for each value.
//!
//! A program (see the object `survey`) gives what every socket has, what TCP_REPAIR would give, and what the getters of the options look at. Of
//! connections that have the same there, the first one's options are read by getsockopt(2), once for all. An established connection with empty
//! queues is read by that alone; TCP_REPAIR is for those with bytes. Every value is the one that system calls would have given; a connection of
//! which words do not say all (a filter, IP options, ...) is left to them.
mod fields;
mod kernel;

use std::{collections::HashMap, os::fd::OwnedFd};

use netmig_core::{
    image::v1::sock::{Common, Interface, Setting, Tcp, Window},
    socket::State,
};

use self::fields::{Places, Value, WHOLE};
use super::{
    adrift::Clock,
    common,
    diag::{Found, Name},
    error::{Error, On},
    holders::Held,
    iter::Failure,
    option::Fresh,
    tcp,
};

/// Why every value is read by a system call on this host; none: it is not. The first call takes long: it belongs before a freeze.
pub(super) fn unreadable() -> Option<String> {
    kernel::readable().err()
}

/// Connections of a namespace.
#[derive(Default)]
pub(super) struct Survey {
    /// By their inodes, sorted: there may be many.
    connections: Vec<(u64, Values)>,
    /// Which group has these values.
    known: HashMap<Box<[u64]>, usize>,
    /// What the options of a group are, once one of it was asked.
    groups: Vec<Option<Shared>>,
    clock: Option<Clock>,
}

/// What a group of connections has in common.
struct Shared {
    settings: Vec<Setting>,
    congestion: String,
}

/// What a record says.
#[derive(Clone, Copy, Debug)]
struct Values {
    group: usize,
    /// Established, with empty queues.
    idle: bool,
    reuseaddr: i32,
    reuseport: i32,
    device: u32,
    sndbuf: i32,
    rcvbuf: i32,
    buf_lock: i32,
    snd_una: u32,
    rcv_nxt: u32,
    window: Window,
    window_clamp: u32,
    mss: u32,
    snd_mss: u32,
    wscale: Option<(u8, u8)>,
    sack: bool,
    timestamps: bool,
    tsoffset: u32,
    microseconds: bool,
    cwnd: u32,
    ssthresh: u32,
    rtt: u32,
}

impl Survey {
    /// Reads those of the caller's namespace. None, where the kernel does not let them be read.
    pub(super) fn read() -> Self {
        if unreadable().is_some() {
            return Self::default();
        }
        let mut survey = Self::default();
        let read = Clock::now().map_err(Failure::from).and_then(|clock| {
            survey.clock = Some(clock);
            kernel::each(&mut |places, record| survey.add(places, record))
        });
        match read {
            Ok(()) => {
                survey.connections.sort_unstable_by_key(|(inode, _)| *inode);
                survey
            }
            Err(e) => {
                tracing::warn!("reading connections in one pass: {e}");
                Self::default()
            }
        }
    }

    fn add(&mut self, places: &Places, record: &[u64]) {
        let long = |value| places.long(record, value);
        let word = |value| long(value) as u32;
        let int = |value| long(value) as i32;
        if WHOLE.iter().any(|&value| long(value) != 0) {
            return;
        }
        let v6 = int(Value::Family) == libc::AF_INET6;
        let same: Box<[u64]> = [u64::from(v6), long(Value::Congestion)]
            .into_iter()
            .chain(places.options_of(record, v6))
            .collect();
        let groups = &mut self.groups;
        let group = *self.known.entry(same).or_insert_with(|| {
            groups.push(None);
            groups.len() - 1
        });
        let scales = (word(Value::SndWscale) as u8, word(Value::RcvWscale) as u8);
        let values = Values {
            group,
            idle: State::from_kernel(word(Value::State) as u8) == State::Established
                && word(Value::SndUna) == word(Value::WriteSeq)
                && word(Value::CopiedSeq) == word(Value::RcvNxt),
            reuseaddr: int(Value::Reuse),
            reuseport: int(Value::Reuseport),
            device: word(Value::Device),
            sndbuf: int(Value::SndBuf),
            rcvbuf: int(Value::RcvBuf),
            // SOCK_BUF_LOCK_MASK
            buf_lock: int(Value::Userlocks) & 3,
            snd_una: word(Value::SndUna),
            rcv_nxt: word(Value::RcvNxt),
            window: Window {
                snd_wl1: word(Value::SndWl1),
                snd_wnd: word(Value::SndWnd),
                max_window: word(Value::MaxWindow),
                rcv_wnd: word(Value::RcvWnd),
                rcv_wup: word(Value::RcvWup),
            },
            window_clamp: word(Value::WindowClamp),
            mss: word(Value::MssClamp),
            snd_mss: word(Value::MssCache),
            wscale: (long(Value::WscaleOk) != 0).then_some(scales),
            sack: long(Value::SackOk) != 0,
            timestamps: long(Value::TstampOk) != 0,
            tsoffset: word(Value::Tsoffset),
            microseconds: long(Value::Usec) != 0,
            cwnd: word(Value::SndCwnd),
            ssthresh: word(Value::SndSsthresh),
            rtt: word(Value::Srtt) / 8,
        };
        self.connections.push((record[0], values));
    }

    fn of(&self, socket: &Found) -> Option<Values> {
        let at = self
            .connections
            .binary_search_by_key(&socket.inode, |(inode, _)| *inode);
        Some(self.connections[at.ok()?].1)
    }

    /// Reads what the groups of these connections have in common. One of which that cannot be read is left to system calls.
    pub(super) fn settle(
        &mut self,
        found: &[Found],
        held: &Held,
        fresh: &mut Fresh,
    ) -> Result<(), Error> {
        for socket in found {
            let Some(values) = self.of(socket) else {
                continue;
            };
            let group = &mut self.groups[values.group];
            if let (None, Some(owners)) = (&group, held.get(socket.inode)) {
                let fd = held.duplicate(owners)?;
                *group = Some(Shared {
                    settings: fresh
                        .differing(&fd, common::sort(socket), socket.v6)
                        .on("reading options", socket)?,
                    congestion: tcp::congestion(&fd, socket)?,
                });
            }
        }
        Ok(())
    }

    /// What the image says of a connection, once its group is settled, and a duplicate of it; none: it is to be read by system calls alone.
    pub(super) fn dump(
        &self,
        socket: &Found,
        held: &Held,
        interfaces: &[Interface],
    ) -> Result<Option<(OwnedFd, Tcp)>, Error> {
        let (Some(values), Some(owners), Some(clock)) =
            (self.of(socket), held.get(socket.inode), self.clock)
        else {
            return Ok(None);
        };
        let device = interfaces.iter().find(|i| i.index == values.device);
        let Some(shared) = &self.groups[values.group] else {
            return Ok(None);
        };
        if values.device != 0 && device.is_none() {
            return Ok(None);
        }
        let fd = held.duplicate(owners)?;
        let common = Common {
            holders: held.inside(owners),
            inode: socket.inode,
            v6: socket.v6,
            reuseaddr: values.reuseaddr,
            reuseport: values.reuseport,
            device: device.map_or_else(String::new, |i| i.name.clone()),
            sndbuf: values.sndbuf,
            rcvbuf: values.rcvbuf,
            buf_lock: values.buf_lock,
            settings: shared.settings.clone(),
            keys: socket.keys.clone(),
        };
        // It is listed after the pass: something may have come in between.
        let idle = values.idle
            && socket.state == State::Established
            && (socket.rqueue, socket.wqueue) == (0, 0);
        let tcp = match (&socket.local, &socket.peer) {
            (Name::Inet(local), Name::Inet(peer)) if idle => Tcp {
                shut_read: socket.shutdown & 1 != 0,
                ecn: socket.ecn,
                timestamp: clock.stamp(values.tsoffset, values.microseconds),
                congestion: shared.congestion.clone(),
                ..values.of(Tcp::between(common, *local, *peer))
            },
            _ => tcp::dump(&fd, common, socket)?,
        };
        Ok(Some((fd, tcp)))
    }
}

impl Values {
    /// Of an idle connection.
    fn of(self, tcp: Tcp) -> Tcp {
        Tcp {
            snd_una: self.snd_una,
            snd_nxt: self.snd_una,
            write_seq: self.snd_una,
            rcv_nxt: self.rcv_nxt,
            mss: self.mss,
            snd_mss: self.snd_mss,
            wscale: self.wscale,
            sack: self.sack,
            timestamps: self.timestamps,
            window: self.window,
            peer_window: self.window.snd_wnd,
            cwnd: self.cwnd,
            ssthresh: self.ssthresh,
            rtt: self.rtt,
            window_clamp: self.window_clamp,
            ..tcp
        }
    }
}

#[cfg(test)]
mod tests;
