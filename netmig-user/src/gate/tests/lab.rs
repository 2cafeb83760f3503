//! A place for one test: mount and network namespace, /run and a bpffs of its own; it is gone with the thread.
use std::{
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use netmig_common::{Mode, Side};
use netmig_core::id::{Epoch, MoveId};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    gate::{Gate, Orientation, Point},
    sys::netns,
};

/// The bpffs of the test.
pub(crate) struct Lab {
    bpffs: PathBuf,
}

/// Runs `f` in a new place.
pub(crate) fn lab<T: Send>(f: impl FnOnce(&Lab) -> T + Send) -> T {
    let directory = tempfile::tempdir().expect("a directory for the bpffs");
    let result = thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_FS)
                    .expect("namespaces of its own: the gate's tests need root");
                let none: Option<&str> = None;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                    .expect("private mounts");
                mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)
                    .expect("a /run of its own");
                mount(
                    Some("bpf"),
                    directory.path(),
                    Some("bpf"),
                    MsFlags::empty(),
                    none,
                )
                .expect("a bpffs");
                f(&Lab {
                    bpffs: directory.path().to_owned(),
                })
            })
            .join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(crate) const MOVE: MoveId = MoveId([0xa1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
pub(crate) const FIRST: Epoch = Epoch(1);

impl Lab {
    pub(crate) fn pins(&self, name: &str) -> PathBuf {
        self.bpffs.join("netmig").join(name)
    }

    /// A gate that stands nowhere: its programs are run by BPF_PROG_TEST_RUN.
    pub(crate) fn gate(&self, side: Side, mode: Mode) -> Gate {
        Gate::attach(MOVE, side, mode, FIRST, &[], &self.pins("gate")).expect("a gate")
    }

    /// Bridge `br0` in the namespace of the test (192.0.2.1, 2001:db8::1), and the namespaces of `containers` on it, each with `eth0`
    /// at the other end of veth `h-NAME`: 192.0.2.(10 + n), 2001:db8::(10 + n).
    pub(crate) fn bridge(&self, containers: &[&str]) {
        run("ip link set lo up; ip link add br0 type bridge; ip addr add 192.0.2.1/24 dev br0");
        run("ip addr add 2001:db8::1/64 dev br0 nodad; ip link set br0 up");
        for (n, name) in containers.iter().enumerate() {
            let n = n + 10;
            run(&format!(
                "ip netns add {name}; ip link add h-{name} type veth peer name eth0 netns {name}
                 ip link set h-{name} master br0 up
                 ip -n {name} link set lo up; ip -n {name} addr add 192.0.2.{n}/24 dev eth0
                 ip -n {name} addr add 2001:db8::{n}/64 dev eth0 nodad; ip -n {name} link set eth0 up"
            ));
        }
    }
}

/// A shell script in the namespaces of the calling thread; every line must succeed.
pub(crate) fn run(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", script])
        .output()
        .expect("sh");
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a host answers: it refuses a connection to a port where nobody listens, so packets go both ways.
pub(crate) fn reaches(from: Option<&str>, to: &str) -> bool {
    let address = SocketAddr::new(to.parse().expect("an address"), 9);
    let connect = || match TcpStream::connect_timeout(&address, Duration::from_millis(400)) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable
            ) =>
        {
            Ok(false)
        }
        other => panic!("connecting to {address}: {other:?}"),
    };
    let reached: io::Result<bool> = match from {
        Some(name) => netns::within(&Path::new("/run/netns").join(name), connect),
        None => connect(),
    };
    reached.expect("the namespace")
}

/// Lets the bridge's host ask anew, as an announcement would: nobody answered while the gate was shut for ARP too.
pub(crate) fn forget_neighbours() {
    run("ip neigh flush dev br0");
}

/// Whoever sends through the device finishes checksums itself, so that the receiver checks them (a veth pair otherwise does neither).
pub(crate) fn finish_checksums(container: Option<&str>, device: &str) {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let set = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // include/uapi/linux/ethtool.h: struct ethtool_value
        let mut value = [ETHTOOL_STXCSUM, 0];
        // SAFETY: all zeroes is a value of this struct of integers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the request names the device and points to `value`; both live through the call.
        match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    match container {
        Some(name) => netns::within(&Path::new("/run/netns").join(name), set),
        None => set(),
    }
    .expect("checksum offload off");
}

/// The point at a device in the test's namespace.
pub(crate) fn host_side(name: &str) -> Point {
    point(None, name, Orientation::HostSide)
}

pub(crate) fn point(container: Option<&str>, name: &str, orientation: Orientation) -> Point {
    let inside = container.map_or_else(String::new, |c| format!("-n {c}"));
    let index = run(&format!(
        "ip {inside} -o link show dev {name} | cut -d: -f1"
    ));
    Point {
        netns: container.map(|c| Path::new("/run/netns").join(c)),
        ifindex: index.trim().parse().expect("an index"),
        name: name.to_owned(),
        orientation,
    }
}

/// Everything that passes a device, from now on.
pub(crate) struct Capture(OwnedFd);

impl Capture {
    pub(crate) fn start(container: &str, device: &str) -> Self {
        let open = || {
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            let fd = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Packet,
                nix::sys::socket::SockType::Raw,
                nix::sys::socket::SockFlag::SOCK_NONBLOCK,
                nix::sys::socket::SockProtocol::EthAll,
            )?;
            // SAFETY: all zeroes is a value of this struct of integers.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = nix::net::if_::if_nametoindex(device)?.cast_signed();
            let length = size_of_val(&address) as libc::socklen_t;
            // SAFETY: the address is a `sockaddr_ll` of this length.
            match unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } {
                0 => Ok(fd),
                _ => Err(io::Error::last_os_error()),
            }
        };
        let opened = netns::within(&Path::new("/run/netns").join(container), open);
        Self(opened.expect("a packet socket"))
    }

    /// Sends a frame at the device.
    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = nix::unistd::write(&self.0, frame).expect("sent");
        assert_eq!(sent, frame.len());
    }

    /// The frames that passed since the start or the last call.
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 70_000];
        while let Ok(n) = nix::unistd::read(&self.0, &mut buffer) {
            frames.push(buffer[..n].to_vec());
        }
        frames
    }
}
