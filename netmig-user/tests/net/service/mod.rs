//! Containers behind their host: what a plan says of service addresses, and how one goes from host to host.
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use netmig_core::{
    image::v1::net::Network,
    service::{Asked, Behind},
};
use netmig_user::net::{
    self,
    service::{Here, There, here, there},
};

use crate::world::{container, ns, on, segment, sh};

mod moving;
mod planned;
mod silent;

const SERVICE: &str = "192.0.2.50";
const LIMIT: Duration = Duration::from_millis(150);

/// Makes of a host on the segment the gateway of a subnet behind it.
const GATEWAY: &str = "
    ip link add nat0 type bridge mcast_snooping 0; ip link set nat0 up; ip addr add 198.51.100.1/24 dev nat0
    echo 1 >/proc/sys/net/ipv4/ip_forward
    nft -f - <<'END'
table ip nat {
    chain pre { type nat hook prerouting priority dstnat; ip daddr 192.0.2.50 tcp dport 80 counter dnat to 198.51.100.10:8080; }
    chain post { type nat hook postrouting priority srcnat; ip saddr 198.51.100.0/24 oifname \"br0\" counter snat to 192.0.2.50; }
}
END";

/// A container behind host a, which has the service address; b is ready for it.
fn behind_a() {
    segment(&["a", "b", "peer"]);
    for (host, number) in [("a", 1), ("b", 2), ("peer", 100)] {
        sh(&format!(
            "ip -n {host} addr add 192.0.2.{number}/24 dev br0"
        ));
    }
    for host in ["a", "b"] {
        on(host, || sh(GATEWAY));
    }
    sh(&format!("ip -n a addr add {SERVICE}/24 dev br0"));
    container("a", "src", "02:00:00:00:00:10");
    sh(
        "ip -n a link set v-src master nat0
        ip -n src addr add 198.51.100.10/24 dev eth0; ip -n src route add default via 198.51.100.1",
    );
}

fn snapshot() -> Network {
    net::snapshot(&ns("src")).unwrap()
}

fn look(asked: &[&str]) -> Here {
    let asked: Vec<Asked> = asked.iter().map(|a| a.parse().unwrap()).collect();
    on("a", || {
        here::look(&asked, &net::topology(&ns("src")).unwrap(), &snapshot()).unwrap()
    })
}

fn behind() -> Behind {
    let found = look(&[SERVICE]);
    assert_eq!(found.refusals, [] as [&str; 0]);
    found.behind.unwrap()
}

fn at_b(behind: &Behind) -> There {
    on("b", || there::look(behind, &snapshot(), LIMIT)).unwrap()
}

fn against() -> Vec<String> {
    let found = look(&[SERVICE]);
    assert_eq!(found.refusals, [] as [&str; 0]);
    found.against.into_iter().map(|a| a.reason).collect()
}

/// One of `texts` has all these words, and no other text is there.
fn only(texts: &[String], words: &[&str]) {
    assert_eq!(texts.len(), 1, "{words:?}: {texts:#?}");
    for word in words {
        assert!(texts[0].contains(word), "{word}: {texts:#?}");
    }
}

/// A connection of the peer by the service address to the container, which echoes.
fn connect() -> TcpStream {
    let listener = on("src", || TcpListener::bind("0.0.0.0:8080").unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            stream.write_all(&byte).unwrap();
        }
    });
    let mut stream = on("peer", || TcpStream::connect((SERVICE, 80)).unwrap());
    stream
        .set_read_timeout(Some(Duration::from_millis(400)))
        .unwrap();
    echoed(&mut stream).unwrap();
    stream
}

fn echoed(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Whether somebody answers a datagram to a port of the service address that nobody has, and how.
fn answer() -> std::io::ErrorKind {
    on("peer", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        socket.connect((SERVICE, 9)).unwrap();
        socket
            .send(b"?")
            .and_then(|_| socket.recv(&mut [0]))
            .unwrap_err()
            .kind()
    })
}

/// The MAC that the peer has for the service address, asked anew.
fn resolved() -> String {
    sh("ip -n peer neigh flush dev br0 2>/dev/null || true");
    answer();
    sh(&format!(
        "ip -n peer neigh show {SERVICE} dev br0 | grep -o 'lladdr [^ ]*' || true"
    ))
    .trim()
    .to_owned()
}

fn mac_of(host: &str) -> String {
    sh(&format!(
        "ip -n {host} -o link show br0 | grep -o 'ether [^ ]*'"
    ))
    .trim()
    .replace("ether", "lladdr")
}
