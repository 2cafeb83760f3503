//! A source, a target and a peer on one machine, each a network namespace at a bridge; and processes that hold sockets.
//!
//! Taking a host's port out of the bridge is its gate: frames are dropped, and the host's link stays up.
#![expect(dead_code, reason = "each test file uses a part of it")]
use std::{
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use netmig_core::image::v1::sock::{Holder, Sockets, Tcp};
use netmig_user::{
    sock::{self, Place, Rebuilt},
    sys::{netns::within, pidfd::PidFd, sockopt},
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{Signal, kill},
    socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socket},
};

/// The container's addresses, at both hosts.
pub const CONTAINER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
];
/// The peer's addresses.
pub const PEER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// A network namespace that lives as long as the process in it.
pub struct Namespace(Child);

impl Namespace {
    pub fn new() -> Self {
        let child = Command::new("unshare")
            .args(["-n", "sleep", "600"])
            .spawn()
            .expect("unshare runs");
        let ns = Self(child);
        let own = fs::read_link("/proc/self/ns/net").expect("own namespace");
        while fs::read_link(ns.path()).is_ok_and(|n| n == own) {
            thread::sleep(Duration::from_millis(1));
        }
        ns
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }

    /// Runs commands of ip(8) in it.
    pub fn ip(&self, batch: &str) {
        let net = format!("--net={}", self.path().display());
        let mut ip = Command::new("nsenter")
            .args([&net, "ip", "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nsenter runs");
        ip.stdin
            .take()
            .expect("a pipe")
            .write_all(batch.as_bytes())
            .expect("ip reads");
        assert!(ip.wait().expect("ip ends").success(), "ip: {batch}");
    }

    /// Runs a shell command in it.
    pub fn sh(&self, command: &str) {
        let net = format!("--net={}", self.path().display());
        assert!(
            Command::new("nsenter")
                .args([&net, "sh", "-c", command])
                .status()
                .expect("nsenter runs")
                .success(),
            "{command}"
        );
    }

    /// Runs a closure on a thread in it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        within(&self.path(), || Ok::<T, std::io::Error>(f())).expect("the namespace can be entered")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0
            .kill()
            .expect("the process of the namespace can be killed");
        self.0.wait().expect("it can be waited for");
    }
}

/// Bridge, source, target, peer.
pub struct Lab {
    pub world: Namespace,
    pub source: Namespace,
    pub target: Namespace,
    pub peer: Namespace,
}

impl Lab {
    pub fn new() -> Self {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("room for descriptors");
        let lab = Self {
            world: Namespace::new(),
            source: Namespace::new(),
            target: Namespace::new(),
            peer: Namespace::new(),
        };
        let port = |name: &str, ns: &Namespace, mac: &str| {
            format!(
                "link add {name} type veth peer name eth0 address {mac} netns {}\nlink set {name} up\n",
                ns.0.id()
            )
        };
        lab.world.ip(&format!(
            "link add br0 type bridge\nlink set br0 up\n{}{}{}link set vp master br0\nlink set vs master br0\n",
            port("vs", &lab.source, "02:00:00:00:00:10"),
            port("vt", &lab.target, "02:00:00:00:00:10"),
            port("vp", &lab.peer, "02:00:00:00:00:01"),
        ));
        for ns in [&lab.source, &lab.target] {
            ns.ip("link set lo up\nlink set eth0 up\naddr add 192.0.2.10/24 dev eth0\naddr add 2001:db8::10/64 dev eth0 nodad\n");
        }
        lab.peer.ip("link set lo up\nlink set eth0 up\naddr add 192.0.2.1/24 dev eth0\naddr add 2001:db8::1/64 dev eth0 nodad\n");
        // A bridge port takes a moment to forward.
        thread::sleep(Duration::from_millis(50));
        lab
    }

    /// Closes the source's gate.
    pub fn close(&self) {
        self.world.ip("link set vs nomaster\n");
    }

    /// What is sent to the container goes nowhere; what it sends still arrives.
    pub fn deafen(&self) {
        self.misdirect("02:00:00:00:00:10");
    }

    /// What the container sends goes nowhere; what is sent to it still arrives.
    pub fn mute(&self) {
        self.misdirect("02:00:00:00:00:01");
    }

    /// Takes back [`Self::deafen`] and [`Self::mute`].
    pub fn heal(&self) {
        self.world.ip("link del vx\n");
    }

    fn misdirect(&self, mac: &str) {
        self.world.ip("link add vx type veth peer name vy\nlink set vx up\nlink set vy up\nlink set vx master br0\n");
        self.world.sh(&format!(
            "bridge fdb replace {mac} dev vx master static sticky"
        ));
    }

    /// Opens it again.
    pub fn reopen(&self) {
        self.world.ip("link set vs master br0\n");
    }

    /// Opens the target's.
    pub fn pass(&self) {
        self.world.ip("link set vt master br0\n");
    }
}

/// A stopped process that holds sockets at descriptors 2000, 2001, ...
pub struct Tasks(Child);

pub const FIRST_FD: i32 = 2000;

impl Tasks {
    pub fn holding(sockets: Vec<OwnedFd>) -> Self {
        let fds: Vec<i32> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new("sleep");
        command.arg("600");
        // SAFETY: dup2 is async-signal-safe, and the closure allocates nothing; the descriptors stay open until spawn has returned.
        unsafe {
            command.pre_exec(move || {
                for (to, &from) in (FIRST_FD..).zip(&fds) {
                    if libc::dup2(from, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("sleep runs");
        drop(sockets);
        let tasks = Self(child);
        kill(nix::unistd::Pid::from_raw(tasks.pid()), Signal::SIGSTOP).expect("it can be stopped");
        tasks
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }

    /// A duplicate of its i-th socket.
    pub fn socket(&self, i: usize) -> OwnedFd {
        let fd = FIRST_FD + i32::try_from(i).expect("a small number");
        PidFd::open(self.pid())
            .and_then(|p| p.fd(fd))
            .expect("the process has the socket")
    }

    pub fn stream(&self, i: usize) -> std::net::TcpStream {
        self.socket(i).into()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.kill().expect("the process can be killed");
        self.0.wait().expect("it can be waited for");
    }
}

/// A TCP socket as CRIU leaves it with tcp-close: new, shut down both ways, SO_REUSEPORT set. To be called in the target's namespace.
pub fn closed(v6: bool) -> OwnedFd {
    let family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    assert_eq!(
        shutdown(fd.as_raw_fd(), Shutdown::Both),
        Err(nix::Error::ENOTCONN)
    );
    sockopt::set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).expect("SO_REUSEPORT");
    fd
}

/// The engine's part at the target: a stopped process with closed sockets at the same descriptors.
pub fn engine(lab: &Lab, image: &Sockets) -> Tasks {
    let mut all: Vec<(i32, &Tcp)> = image
        .tcp
        .iter()
        .map(|t| (t.common.holders[0].fd, t))
        .collect();
    all.sort_unstable_by_key(|(fd, _)| *fd);
    assert!(
        all.iter().zip(FIRST_FD..).all(|((fd, _), i)| *fd == i),
        "the image has all descriptors"
    );
    Tasks::holding(
        lab.target
            .run(|| all.iter().map(|(_, t)| closed(t.common.v6)).collect()),
    )
}

/// Restores at the target into `tasks`, whatever their pid.
pub fn restore(lab: &Lab, tasks: &Tasks, image: &Sockets) -> Rebuilt {
    let pid = tasks.pid();
    sock::restore_at(&lab.target.path(), image, &|h: &Holder| {
        Some(Place { pid, fd: h.fd })
    })
    .expect("the sockets can be rebuilt")
}

/// A connection: the container's end, the peer's end.
pub fn connected(
    lab: &Lab,
    v6: bool,
    outbound: bool,
) -> (std::net::TcpStream, std::net::TcpStream) {
    let family = usize::from(v6);
    let (client, server, to) = if outbound {
        (&lab.source, &lab.peer, PEER[family])
    } else {
        (&lab.peer, &lab.source, CONTAINER[family])
    };
    let listener =
        server.run(|| std::net::TcpListener::bind(SocketAddr::new(to, 0)).expect("a listener"));
    let at = listener.local_addr().expect("an address");
    let one = client.run(|| std::net::TcpStream::connect(at).expect("a connection"));
    let (two, _) = listener.accept().expect("a connection");
    if outbound { (one, two) } else { (two, one) }
}

/// Bytes that tell where they belong in their stream.
pub fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Reads exactly `len` bytes and holds them against the pattern; says when the first one came.
pub fn expect(stream: &mut std::net::TcpStream, from: usize, len: usize) -> Instant {
    use std::io::Read;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    let mut got = vec![0; len];
    let first = if len > 0 {
        stream
            .read_exact(&mut got[..1])
            .expect("the first byte comes");
        Instant::now()
    } else {
        Instant::now()
    };
    stream
        .read_exact(got.get_mut(1..).unwrap_or_default())
        .expect("all bytes come");
    assert!(
        got == pattern(from, len),
        "the bytes from {from} on are not those that were written"
    );
    first
}

/// Writes until the socket takes no more; says how much it took.
pub fn fill(stream: &mut std::net::TcpStream, from: usize) -> usize {
    stream.set_nonblocking(true).expect("non-blocking");
    let mut done = 0;
    loop {
        match stream.write(&pattern(from + done, 8192)) {
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(e) => panic!("writing: {e}"),
        }
    }
    stream.set_nonblocking(false).expect("blocking");
    done
}

/// The same socket under an owned descriptor.
pub fn owned(stream: impl IntoRawFd) -> OwnedFd {
    // SAFETY: into_raw_fd has just given up its ownership.
    unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) }
}

/// Whether a socket is in repair.
pub fn in_repair(fd: &impl AsFd) -> bool {
    sockopt::int(fd, libc::SOL_TCP, libc::TCP_REPAIR).expect("TCP_REPAIR") != 0
}

/// What a closed `lo` swallows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Swallow {
    /// Every packet.
    All,
    /// ACKs without payload.
    Acks,
}

impl Lab {
    /// Closes the gate of the source's `lo`.
    pub fn close_lo(&self, what: Swallow) {
        let program = match what {
            Swallow::All => "1,6 0 0 4294967295,",
            // Frames shorter than 100 bytes.
            Swallow::Acks => "4,128 0 0 0,53 0 1 100,6 0 0 0,6 0 0 4294967295,",
        };
        self.source.sh(&format!(
            "ip link show sink >/dev/null 2>&1 || {{ ip link add sink type veth peer name drain; ip link set sink up; ip link set drain up; tc qdisc add dev lo clsact; }}
            tc filter del dev lo egress; tc filter add dev lo egress bpf bytecode '{program}' action mirred egress redirect dev sink"
        ));
    }
}
