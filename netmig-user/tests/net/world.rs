//! A world of network namespaces that lives as long as one test: a segment (a bridge that learns) with hosts on it, each with a bridge
//! `br0` whose uplink is a port of the segment.
use std::{
    io::ErrorKind,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use netmig_core::{id::MoveId, image::v1::net::Network, proto::Attach};
use netmig_user::{
    net::{self, Created},
    sys::netns,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// The move of the tests.
pub const MOVE: MoveId = MoveId([
    0xab, 0xcd, 0xef, 0x01, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
]);

/// Runs a story on a thread in mount and network namespaces of its own, with an empty /run; nothing outlives it.
pub fn world(story: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let told = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
                .expect("these tests need root: they make namespaces");
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
            .unwrap();
            mount(
                Some("tmpfs"),
                "/run",
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
            story();
        });
        told.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Path of a named namespace.
pub fn ns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Runs a shell command in the namespace of the calling thread; it must succeed.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `f` as a program of that host (or container).
pub fn on<T: Send>(name: &str, f: impl FnOnce() -> T + Send) -> T {
    netns::within(&ns(name), || Ok::<_, std::io::Error>(f())).unwrap()
}

/// A segment with the hosts named, each with br0.
pub fn segment(hosts: &[&str]) {
    sh("ip link set lo up; ip link add seg type bridge mcast_snooping 0; ip link set seg up");
    for host in hosts {
        sh(&format!(
            "ip netns add {host}; ip link add to-{host} type veth peer name up0 netns {host}; ip link set to-{host} master seg up
             ip -n {host} link set lo up
             ip -n {host} link add br0 type bridge mcast_snooping 0; ip -n {host} link set br0 up
             ip -n {host} link set up0 master br0 up"
        ));
    }
}

/// A container on a host: a namespace with eth0 on br0, up, without addresses.
pub fn container(host: &str, name: &str, mac: &str) {
    sh(&format!(
        "ip netns add {name}; ip -n {host} link add v-{name} type veth peer name eth0 address {mac} netns {name}
         ip -n {host} link set v-{name} master br0 up; ip -n {name} link set lo up; ip -n {name} link set eth0 up"
    ));
}

/// eth0 on br0.
pub fn attach() -> Vec<Attach> {
    vec![Attach {
        link: "eth0".into(),
        parent: "br0".into(),
    }]
}

/// The copy of a container on host b, in namespace `dst`, of which nothing had to be said.
pub fn made_at_b(image: &Network) -> Created {
    let created = on("b", || {
        net::create(&ns("dst"), image, &attach(), MOVE, &mut |_| Ok(()))
    })
    .unwrap();
    assert_eq!(created.warnings, [] as [&str; 0]);
    created
}

/// Index of a device of the calling thread's namespace.
pub fn device(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// From the namespace of the calling thread, asserts that a station answers at `address`: by refusing a datagram.
pub fn reach(address: &str) {
    let any = if address.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    socket.connect((address, 9)).unwrap();
    socket.send(b"?").unwrap();
    let answer = socket.recv(&mut [0]).unwrap_err();
    assert_eq!(
        answer.kind(),
        ErrorKind::ConnectionRefused,
        "{address} does not answer: {answer}"
    );
}

/// Waits until duplicate address detection has ended in a namespace.
pub fn settled(name: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while sh(&format!("ip -n {name} addr")).contains("tentative") {
        assert!(Instant::now() < until, "{name} detects duplicates for ever");
        thread::sleep(Duration::from_millis(20));
    }
}
