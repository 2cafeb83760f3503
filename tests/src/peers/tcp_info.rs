//! TCP_INFO of a socket, and its course over a move.
use std::{
    io,
    net::TcpStream,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    clock,
    pauses::{Pause, Pauses},
};

const PERIOD: Duration = Duration::from_millis(10);
/// An hour of samples.
const SAMPLES: usize = 360_000;
/// How long after a stall the congestion window still counts as that of the stall.
const AFTERMATH_NS: u64 = 100_000_000;

/// The fields used of the kernel's `struct tcp_info` (include/uapi/linux/tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// Congestion window, segments.
    pub snd_cwnd: u32,
    /// Segments sent again since the socket was made.
    pub total_retrans: u32,
    /// Bytes acknowledged since the socket was made (0 on kernels that do not tell).
    pub bytes_acked: u64,
}

/// Reads TCP_INFO.
///
/// # Errors
/// getsockopt's.
pub fn read(stream: &TcpStream) -> io::Result<TcpInfo> {
    let mut raw = [0_u8; 256];
    let mut len = libc::socklen_t::try_from(raw.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the call, and the kernel writes at most `len` bytes into `raw`, whose size `len` says.
    let rc = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    Ok(TcpInfo {
        snd_cwnd: word(80),
        total_retrans: word(100),
        bytes_acked: long(120),
    })
}

/// What a sampled connection went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Course {
    /// Segments sent again.
    pub retransmits: u64,
    /// Congestion window when the longest stall began.
    pub cwnd_before: Option<u32>,
    /// Smallest congestion window from there to 100 ms after it.
    pub cwnd_after: Option<u32>,
    /// The longest time in which the other end acknowledged nothing.
    pub stall: Option<Pause>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ns: u64,
    cwnd: u32,
}

#[derive(Debug, Default)]
struct Log {
    samples: Vec<Sample>,
    retransmits: u64,
    last: Option<TcpInfo>,
    acked: Pauses,
}

/// Samples a socket every 10 ms on a thread of its own.
#[derive(Debug)]
pub struct Sampler {
    log: Arc<Mutex<Log>>,
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Sampler {
    /// Starts sampling `stream`.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated.
    pub fn start(stream: &TcpStream) -> io::Result<Self> {
        let stream = stream.try_clone()?;
        let log = Arc::<Mutex<Log>>::default();
        let end = Arc::<AtomicBool>::default();
        let thread = thread::spawn({
            let (log, end) = (log.clone(), end.clone());
            move || {
                while !end.load(Ordering::Relaxed) {
                    if let Ok(info) = read(&stream) {
                        log.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .add(info, clock::now_ns());
                    }
                    thread::sleep(PERIOD);
                }
            }
        });
        Ok(Self { log, end, thread })
    }

    /// Ends the sampling and says what was seen.
    #[must_use]
    pub fn finish(self) -> Course {
        self.end.store(true, Ordering::Relaxed);
        // A panic of the thread was printed; what it had sampled is kept.
        drop(self.thread.join());
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .end(clock::now_ns())
    }
}

impl Log {
    fn add(&mut self, info: TcpInfo, at_ns: u64) {
        // A moved socket is a new one for its kernel: its counters start again.
        let known = self.last.map_or(0, |l| l.total_retrans);
        let fresh = if info.total_retrans >= known {
            info.total_retrans - known
        } else {
            info.total_retrans
        };
        self.retransmits += u64::from(fresh);
        if self.last.is_none_or(|l| l.bytes_acked != info.bytes_acked) {
            self.acked.progress_at(at_ns);
        }
        if self.samples.len() < SAMPLES {
            self.samples.push(Sample {
                at_ns,
                cwnd: info.snd_cwnd,
            });
        }
        self.last = Some(info);
    }

    /// What is unacknowledged until the end has stalled until then.
    fn end(&mut self, now_ns: u64) -> Course {
        self.acked.progress_at(now_ns);
        self.course()
    }

    fn course(&self) -> Course {
        let stall = self.acked.longest().first().copied();
        let (before, after) = stall.map_or((None, None), |s| {
            let before = self.samples.iter().rfind(|x| x.at_ns <= s.began_ns);
            let after = self
                .samples
                .iter()
                .filter(|x| x.at_ns > s.began_ns && x.at_ns <= s.ended_ns + AFTERMATH_NS);
            (before.map(|x| x.cwnd), after.map(|x| x.cwnd).min())
        });
        Course {
            retransmits: self.retransmits,
            cwnd_before: before,
            cwnd_after: after,
            stall,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_socket_that_starts_to_count_again_keeps_its_sum() {
        let mut log = Log::default();
        let mut add = |at, snd_cwnd, total_retrans, bytes_acked| {
            log.add(
                TcpInfo {
                    snd_cwnd,
                    total_retrans,
                    bytes_acked,
                },
                at * MS,
            );
        };
        add(0, 40, 2, 1000);
        add(10, 44, 5, 2000);
        add(400, 1, 0, 10);
        add(410, 12, 3, 20);
        add(520, 60, 3, 30);
        let course = log.course();
        assert_eq!(course.retransmits, 8);
        assert_eq!((course.cwnd_before, course.cwnd_after), (Some(44), Some(1)));
        assert_eq!(course.stall.map(|s| s.len_ns() / MS), Some(390));
    }
}
