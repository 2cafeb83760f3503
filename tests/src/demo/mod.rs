//! The container that the demo and the benches move: several processes under one init, with an address on the hosts' segment.
pub mod by_hand;
mod error;
mod image;
pub mod netmig;
mod stage;

use std::{net::SocketAddr, time::Duration};

pub use error::Error;
pub use image::Image;
pub use stage::{Parts, Stage};

use crate::{Cmd, Host, Output, peers::bulk};

/// The container's name, and that of its host inside.
pub const CONTAINER: &str = "demo";
/// Last part of its addresses on the lab's segment.
pub const NUMBER: u8 = 10;
/// Its address on the lab's segment.
pub const IPV4: &str = "192.0.2.10";
/// See [`IPV4`].
pub const IPV6: &str = "2001:db8::10";
/// Its MAC address.
pub const MAC: &str = "02:00:00:00:00:10";

/// The podman network that every host of a lab has on the segment.
const NETWORK: &str = "lab";
const UDP_PORT: u16 = 7777;

/// The container's redis.
#[must_use]
pub fn redis(v6: bool) -> SocketAddr {
    at(v6, 6379)
}

/// The container's UDP echo.
#[must_use]
pub fn udp_echo(v6: bool) -> SocketAddr {
    at(v6, UDP_PORT)
}

/// The container's end of verified streams.
#[must_use]
pub fn bulk_server(v6: bool) -> SocketAddr {
    at(v6, bulk::PORT)
}

/// The container's iperf3.
#[must_use]
pub fn iperf3(v6: bool) -> SocketAddr {
    at(v6, 5201)
}

/// The processes of the container, each a command line.
#[must_use]
pub fn processes() -> Vec<String> {
    vec![
        "/bin/redis-server /etc/redis.conf".to_owned(),
        "/bin/iperf3 --server".to_owned(),
        format!("/bin/netmig-peer udp-echo --port {UDP_PORT}"),
        format!("/bin/netmig-peer bulk-server --port {}", bulk::PORT),
        "/bin/netmig-peer loopback --to 127.0.0.1:6379".to_owned(),
    ]
}

/// Starts the container on `host`.
///
/// # Errors
/// What podman said.
pub fn start(host: &dyn Host, image: &Image) -> Result<(), Error> {
    start_with(host, image, &[])
}

/// The same with another program in it.
///
/// # Errors
/// What podman said.
pub fn start_with(host: &dyn Host, image: &Image, argv: &[&str]) -> Result<(), Error> {
    let network = format!("{NETWORK}:ip={IPV4},ip6={IPV6},mac={MAC}");
    let run = [
        "podman",
        "run",
        "--detach",
        "--name",
        CONTAINER,
        "--hostname",
        CONTAINER,
        "--network",
        &network,
        image.name(),
    ];
    host.run(&[&run[..], argv].concat())?;
    Ok(())
}

/// Removes the container from `host`, if it is there, whatever its state.
///
/// # Errors
/// What podman said.
pub fn remove(host: &dyn Host) -> Result<(), Error> {
    host.run(&[
        "podman", "rm", "--force", "--ignore", "--time", "0", CONTAINER,
    ])?;
    Ok(())
}

/// Podman's word for the container's state on `host` (`running`, `exited` ...); none if it is not there.
///
/// # Errors
/// The host does not answer.
pub fn state(host: &dyn Host) -> Result<Option<String>, Error> {
    let asked = host.exec(&Cmd::new([
        "podman",
        "inspect",
        "--format",
        "{{.State.Status}}",
        CONTAINER,
    ]))?;
    Ok(asked
        .status
        .success()
        .then(|| asked.text().trim().to_owned()))
}

/// What the container's processes have said on `host`.
///
/// # Errors
/// The host does not answer.
pub fn logs(host: &dyn Host) -> Result<String, Error> {
    let asked: Output =
        host.exec(&Cmd::new(["podman", "logs", CONTAINER]).limit(Duration::from_secs(10)))?;
    Ok(format!("{}{}", asked.text(), asked.errors()))
}

fn at(v6: bool, port: u16) -> SocketAddr {
    let text = if v6 {
        format!("[{IPV6}]:{port}")
    } else {
        format!("{IPV4}:{port}")
    };
    text.parse().expect("the constants are addresses")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_parse_and_differ() {
        assert_eq!(redis(false).to_string(), "192.0.2.10:6379");
        assert_eq!(redis(true).to_string(), "[2001:db8::10]:6379");
        assert_ne!(udp_echo(false).port(), bulk_server(false).port());
    }
}
