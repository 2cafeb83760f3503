//! Established connections with empty queues, read without a system call for each value.
//!
//! One pass of a program (see the object `idle`) gives what TCP_REPAIR would give, and what the getters of the options look at. Of connections
//! that have the same there, the first one's options are read by getsockopt(2), once for all. Every value is the one that system calls
//! would have given; a connection of which words do not say all (a filter, IP options, ...) is left to them.
mod fields;
mod kernel;

use std::{collections::HashMap, os::fd::OwnedFd};

use netmig_core::image::v1::sock::{Common, Holder, Interface, Setting, Tcp, Window};

use self::fields::{Places, Value, WHOLE};
use super::{
    adrift::Clock,
    common,
    diag::{Found, Name},
    error::{Error, On},
    option::Fresh,
    tcp,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Why idle connections are read by system calls on this host; none: they are not. The first call takes long: it belongs before a freeze.
pub(super) fn unreadable() -> Option<String> {
    kernel::readable().err()
}

/// Idle connections of a namespace, by their inodes.
#[derive(Default)]
pub(super) struct Idle {
    connections: HashMap<u64, Values>,
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

impl Idle {
    /// Reads those of the caller's namespace. None, where the kernel does not let them be read.
    pub(super) fn read() -> Self {
        if unreadable().is_some() {
            return Self::default();
        }
        let mut idle = Self::default();
        let read = Clock::now().map_err(Failure::from).and_then(|clock| {
            idle.clock = Some(clock);
            kernel::each(&mut |places, record| idle.add(places, record))
        });
        match read {
            Ok(()) => idle,
            Err(e) => {
                tracing::warn!("reading idle connections in one pass: {e}");
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
        self.connections.insert(record[0], values);
    }

    /// What the image says of a connection; none: it is not idle.
    pub(super) fn dump(
        &mut self,
        fd: &OwnedFd,
        socket: &Found,
        holders: &mut Vec<Holder>,
        interfaces: &[Interface],
        fresh: &mut Fresh,
    ) -> Result<Option<Tcp>, Error> {
        let (Some(values), Some(clock)) = (self.connections.get(&socket.inode), self.clock) else {
            return Ok(None);
        };
        let (Name::Inet(local), Name::Inet(peer)) = (&socket.local, &socket.peer) else {
            return Ok(None);
        };
        let shared = match &mut self.groups[values.group] {
            Some(shared) => shared,
            none => none.insert(Shared {
                settings: fresh
                    .differing(fd, common::sort(socket), socket.v6)
                    .on("reading options", socket)?,
                congestion: tcp::congestion(fd, socket)?,
            }),
        };
        let device = match values.device {
            0 => String::new(),
            index => match interfaces.iter().find(|i| i.index == index) {
                Some(interface) => interface.name.clone(),
                None => return Ok(None),
            },
        };
        let common = Common {
            holders: std::mem::take(holders),
            inode: socket.inode,
            v6: socket.v6,
            reuseaddr: values.reuseaddr,
            reuseport: values.reuseport,
            device,
            sndbuf: values.sndbuf,
            rcvbuf: values.rcvbuf,
            buf_lock: values.buf_lock,
            settings: shared.settings.clone(),
            keys: socket.keys.clone(),
        };
        let seq = values.snd_una;
        Ok(Some(Tcp {
            shut_read: socket.shutdown & 1 != 0,
            snd_una: seq,
            snd_nxt: seq,
            write_seq: seq,
            rcv_nxt: values.rcv_nxt,
            mss: values.mss,
            snd_mss: values.snd_mss,
            wscale: values.wscale,
            sack: values.sack,
            timestamps: values.timestamps,
            ecn: socket.ecn,
            timestamp: clock.stamp(values.tsoffset, values.microseconds),
            window: values.window,
            peer_window: values.window.snd_wnd,
            congestion: shared.congestion.clone(),
            cwnd: values.cwnd,
            ssthresh: values.ssthresh,
            rtt: values.rtt,
            window_clamp: values.window_clamp,
            ..Tcp::between(common, *local, *peer)
        }))
    }
}

#[cfg(test)]
mod tests;
