//! What netmig is measured against: one thread, one connection after the other, every value by a system call of its own.
//!
//! It knows the descriptors beforehand, carries no option and no image, and leaves repair without a window probe: less than a move needs.
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, ensure};
use netmig_user::sys::{
    pidfd::PidFd,
    sockopt::{
        self,
        number::{TCP_NO_QUEUE, TCP_RECV_QUEUE, TCP_REPAIR_OFF_NO_WP, TCP_SEND_QUEUE},
    },
};
use nix::sys::socket::{
    MsgFlags, SockaddrStorage, bind, connect, getpeername, getsockname, recv, send,
};
use serde::{Deserialize, Serialize};

use super::{
    ends::all_descriptors,
    moving::{now, processor, take_back},
    role::{Child, Role, tell, told},
};

const TCP: i32 = libc::SOL_TCP;
const SOL: i32 = libc::SOL_SOCKET;

/// One move, in us.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Naive {
    dump: f64,
    restore: f64,
    repair_off: f64,
    freeze_to_release: f64,
    /// Processor time.
    processor: f64,
}

/// Starts it as a process, and hears what it says.
pub fn measured(held: (u32, i32), free: (u32, i32), count: usize) -> anyhow::Result<Naive> {
    let mut child = Child::start(&Role::Naive {
        from: held.0,
        first: held.1,
        to: free.0,
        shift: free.1 - held.1,
        count,
    })?;
    let naive = serde_json::from_str(&child.hear()?)?;
    child.say("take back")?;
    ensure!(child.hear()? == "done", "the loop is not done");
    Ok(naive)
}

pub fn run(from: i32, first: i32, to: i32, shift: i32, count: usize) -> anyhow::Result<()> {
    all_descriptors()?;
    let (source, target) = (PidFd::open(from)?, PidFd::open(to)?);
    let (began, spent) = (now()?, processor()?);
    let mut all = Vec::with_capacity(count);
    for fd in (first..).take(count) {
        all.push(Connection::read(&source.fd(fd)?)?);
    }
    let dumped = now()?;
    let mut made = Vec::with_capacity(count);
    for (fd, connection) in (first + shift..).zip(&all) {
        let fd = target.fd(fd)?;
        connection.make(&fd)?;
        made.push(fd);
    }
    let restored = now()?;
    for fd in &made {
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
    }
    let ended = now()?;
    tell(serde_json::to_string(&Naive {
        dump: dumped - began,
        restore: restored - dumped,
        repair_off: ended - restored,
        freeze_to_release: ended - began,
        processor: processor()? - spent,
    })?)?;
    told()?;
    for fd in &made {
        take_back(fd)?;
    }
    tell("done")?;
    told()?;
    Ok(())
}

struct Connection {
    local: SockaddrStorage,
    peer: SockaddrStorage,
    mss: u32,
    timestamp: u32,
    /// Head of struct tcp_info: options at 5, window scales at 6.
    info: [u8; 8],
    window: [u32; 5],
    /// End of the send queue, its bytes, and how many of them were not sent.
    write_seq: u32,
    sent: Vec<u8>,
    unsent: usize,
    rcv_nxt: u32,
    received: Vec<u8>,
}

impl Connection {
    fn read(fd: &OwnedFd) -> anyhow::Result<Self> {
        let raw = fd.as_raw_fd();
        let (local, peer) = (getsockname(raw)?, getpeername(raw)?);
        let info = sockopt::read(fd, TCP, libc::TCP_INFO)?;
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR, 1)?;
        let mss = sockopt::read(fd, TCP, libc::TCP_MAXSEG)?;
        let timestamp = sockopt::read(fd, TCP, libc::TCP_TIMESTAMP)?;
        let window = sockopt::read(fd, TCP, libc::TCP_REPAIR_WINDOW)?;
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)?;
        let write_seq = sockopt::read(fd, TCP, libc::TCP_QUEUE_SEQ)?;
        let queued = sockopt::queue_len(fd, libc::TIOCOUTQ)?;
        let unsent = sockopt::queue_len(fd, libc::SIOCOUTQNSD as libc::Ioctl)?;
        let sent = peek(fd, queued)?;
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)?;
        let rcv_nxt = sockopt::read(fd, TCP, libc::TCP_QUEUE_SEQ)?;
        let unread = sockopt::queue_len(fd, libc::FIONREAD)?;
        let received = peek(fd, unread)?;
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR_QUEUE, TCP_NO_QUEUE)?;
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
        Ok(Self {
            local,
            peer,
            mss,
            timestamp,
            info,
            window,
            write_seq,
            sent,
            unsent,
            rcv_nxt,
            received,
        })
    }

    fn make(&self, fd: &OwnedFd) -> anyhow::Result<()> {
        let raw = fd.as_raw_fd();
        let seq = |queue, seq: u32| {
            sockopt::set_int(fd, TCP, libc::TCP_REPAIR_QUEUE, queue)?;
            sockopt::set_u32(fd, TCP, libc::TCP_QUEUE_SEQ, seq)
        };
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).context("a queue that long");
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR, 1)?;
        sockopt::set_int(fd, SOL, libc::SO_SNDBUFFORCE, 1 << 18)?;
        sockopt::set_int(fd, SOL, libc::SO_RCVBUFFORCE, 1 << 18)?;
        seq(
            TCP_SEND_QUEUE,
            self.write_seq.wrapping_sub(length(&self.sent)?),
        )?;
        seq(
            TCP_RECV_QUEUE,
            self.rcv_nxt.wrapping_sub(length(&self.received)?),
        )?;
        bind(raw, &self.local)?;
        connect(raw, &self.peer)?;
        let (flags, scales) = (self.info[5], u32::from(self.info[6]));
        let mut options = vec![[2, self.mss]];
        if flags & 4 != 0 {
            options.push([3, scales & 15 | (scales >> 4) << 16]);
        }
        if flags & 2 != 0 {
            options.push([4, 0]);
        }
        if flags & 1 != 0 {
            options.push([8, 0]);
        }
        sockopt::set_value(fd, TCP, libc::TCP_REPAIR_OPTIONS, options.as_slice())?;
        sockopt::set_u32(fd, TCP, libc::TCP_TIMESTAMP, self.timestamp)?;
        if !self.received.is_empty() {
            refill(fd, TCP_RECV_QUEUE, &self.received)?;
        }
        let sent = self.sent.len() - self.unsent;
        if sent > 0 {
            refill(fd, TCP_SEND_QUEUE, &self.sent[..sent])?;
        }
        sockopt::set_int(fd, TCP, libc::TCP_REPAIR_QUEUE, TCP_NO_QUEUE)?;
        sockopt::set_value(fd, TCP, libc::TCP_REPAIR_WINDOW, &self.window)?;
        Ok(())
    }
}

fn peek(fd: &OwnedFd, length: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    if length > 0 {
        let got = recv(
            fd.as_raw_fd(),
            &mut bytes,
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        )?;
        ensure!(got == length, "a queue gave {got} of {length} bytes");
    }
    Ok(bytes)
}

fn refill(fd: &OwnedFd, queue: i32, bytes: &[u8]) -> anyhow::Result<()> {
    sockopt::set_int(fd, TCP, libc::TCP_REPAIR_QUEUE, queue)?;
    let took = send(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT)?;
    ensure!(took == bytes.len(), "a queue took {took} bytes");
    Ok(())
}
