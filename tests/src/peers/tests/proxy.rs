//! Links that do harm on demand.
use std::{
    io::{self, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};

/// What a [`Proxy`] does to its connections.
#[derive(Debug, Clone, Copy)]
pub(super) enum Harm {
    /// Nothing passes for this long.
    Stall(Duration),
    /// RST to every client.
    Reset,
    /// One bit of what goes to the server.
    FlipThere,
    /// One bit of what comes back.
    FlipBack,
}

#[derive(Default)]
struct Shared {
    still_until: Mutex<Option<Instant>>,
    flip_there: AtomicBool,
    flip_back: AtomicBool,
    clients: Mutex<Vec<TcpStream>>,
}

/// Joins each of its clients with a server.
pub(super) struct Proxy {
    pub(super) at: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    pub(super) fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).expect("a port");
        let at = listener.local_addr().expect("bound");
        let shared = Arc::<Shared>::default();
        thread::spawn({
            let shared = shared.clone();
            move || {
                for client in listener.incoming().flatten() {
                    join(&client, to, &shared).expect("the server is there");
                }
            }
        });
        Self { at, shared }
    }

    /// Does it, and returns when it is done.
    pub(super) fn harm(&self, harm: Harm) {
        match harm {
            Harm::Stall(time) => {
                *self.shared.still_until.lock().expect("unpoisoned") = Some(Instant::now() + time);
                thread::sleep(time);
            }
            Harm::FlipThere => self.shared.flip_there.store(true, Ordering::SeqCst),
            Harm::FlipBack => self.shared.flip_back.store(true, Ordering::SeqCst),
            Harm::Reset => {
                for client in self.shared.clients.lock().expect("unpoisoned").drain(..) {
                    // connect(AF_UNSPEC) sends RST at once, however many descriptors the socket has.
                    let unspecified = libc::sockaddr {
                        sa_family: 0,
                        sa_data: [0; 14],
                    };
                    // SAFETY: the address lives through the call and its size is given.
                    let rc = unsafe {
                        libc::connect(
                            std::os::fd::AsRawFd::as_raw_fd(&client),
                            &raw const unspecified,
                            16,
                        )
                    };
                    assert_eq!(rc, 0, "{}", io::Error::last_os_error());
                }
            }
        }
    }
}

fn join(client: &TcpStream, to: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(to)?;
    for socket in [client, &server] {
        socket.set_nodelay(true)?;
        // Small buffers: a stall must reach the far end.
        setsockopt(socket, sockopt::RcvBuf, &65_536)?;
        setsockopt(socket, sockopt::SndBuf, &65_536)?;
    }
    shared
        .clients
        .lock()
        .expect("unpoisoned")
        .push(client.try_clone()?);
    let ways = [
        (client.try_clone()?, server.try_clone()?, true),
        (server, client.try_clone()?, false),
    ];
    for (mut from, mut to, there) in ways {
        let shared = shared.clone();
        thread::spawn(move || {
            let flip = if there {
                &shared.flip_there
            } else {
                &shared.flip_back
            };
            let mut buf = [0; 16_384];
            while let Ok(n) = from.read(&mut buf)
                && n > 0
            {
                let until = *shared.still_until.lock().expect("unpoisoned");
                thread::sleep(until.map_or(Duration::ZERO, |u| {
                    u.saturating_duration_since(Instant::now())
                }));
                // The middle of a full buffer is payload, not the head of a frame, whichever way the frames were cut.
                if n > 4000 && flip.load(Ordering::SeqCst) && !near_a_head(&buf[..n]) {
                    flip.store(false, Ordering::SeqCst);
                    buf[n / 2] ^= 1;
                }
                if to.write_all(&buf[..n]).is_err() {
                    break;
                }
            }
            // The other thread reads on: a half-closed connection is one.
            drop(to.shutdown(std::net::Shutdown::Write));
        });
    }
    Ok(())
}

/// Whether a frame's head (the length 32768) may be where the bit would be flipped.
fn near_a_head(bytes: &[u8]) -> bool {
    let middle = bytes.len() / 2;
    bytes[middle - 8..middle + 8]
        .windows(4)
        .any(|w| w == 32_768_u32.to_be_bytes())
}

/// What a [`UdpLink`] did to the echoes that it carried.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) dropped: u64,
    pub(super) doubled: u64,
    pub(super) swapped: u64,
}

/// A link for one client that drops, doubles and swaps some of the datagrams that come back.
pub(super) struct UdpLink {
    pub(super) at: SocketAddr,
    done: Arc<Mutex<Done>>,
    cut: Arc<AtomicBool>,
}

impl UdpLink {
    pub(super) fn start(to: SocketAddr) -> Self {
        let front = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a port");
        let back = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a port");
        back.connect(to).expect("an echo");
        let at = front.local_addr().expect("bound");
        let done = Arc::<Mutex<Done>>::default();
        let cut = Arc::<AtomicBool>::default();
        let link = Self {
            at,
            done: done.clone(),
            cut: cut.clone(),
        };
        thread::spawn(move || carry(&front, &back, &done, &cut));
        link
    }

    /// Carries nothing more.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    pub(super) fn done(&self) -> Done {
        *self.done.lock().expect("unpoisoned")
    }
}

fn carry(
    front: &UdpSocket,
    back: &UdpSocket,
    done: &Mutex<Done>,
    cut: &AtomicBool,
) -> io::Result<()> {
    let mut kept: Option<Vec<u8>> = None;
    let mut buf = [0; 2048];
    for turn in 0_u64.. {
        let (n, client) = front.recv_from(&mut buf)?;
        if cut.load(Ordering::SeqCst) {
            continue;
        }
        back.send(&buf[..n])?;
        let n = back.recv(&mut buf)?;
        let bytes = &buf[..n];
        let mut done = done.lock().expect("unpoisoned");
        match turn % 20 {
            // The first answers make the client warm and carry no number.
            _ if turn < 20 => {
                front.send_to(bytes, client)?;
            }
            3 => done.dropped += 1,
            7 => {
                front.send_to(bytes, client)?;
                front.send_to(bytes, client)?;
                done.doubled += 1;
            }
            11 => kept = Some(bytes.to_vec()),
            _ => {
                front.send_to(bytes, client)?;
                if let Some(late) = kept.take() {
                    front.send_to(&late, client)?;
                    done.swapped += 1;
                }
            }
        }
    }
    Ok(())
}
