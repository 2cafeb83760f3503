//! Sockets out of /proc/net, for kinds without a diag module.
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netmig_core::{
    image::v1::sock::Endpoint,
    socket::{Kind, State},
};

use super::{
    diag::{Found, Name},
    error::Error,
};

/// /proc/net/raw, raw6, icmp, icmp6: the columns of `struct sock` in raw_sock_seq_show() and ping_v4_format_sock().
pub(super) fn inet(kind: Kind, v6: bool) -> Result<Vec<Found>, Error> {
    let name = match (kind, v6) {
        (Kind::Ping, false) => "icmp",
        (Kind::Ping, true) => "icmp6",
        (_, false) => "raw",
        (_, true) => "raw6",
    };
    lines(name, |columns| {
        let (tx, rx) = columns.get(4)?.split_once(':')?;
        let state = u8::from_str_radix(columns.get(3)?, 16).ok()?;
        let mut found = Found::new(
            kind,
            State::from_kernel(state),
            columns.get(9)?.parse().ok()?,
        );
        found.v6 = v6;
        found.local = Name::Inet(end(columns.get(1)?)?);
        let peer = end(columns.get(2)?)?;
        if peer.port != 0 || !peer.ip.is_unspecified() {
            found.peer = Name::Inet(peer);
        }
        found.wqueue = u32::from_str_radix(tx, 16).ok()?;
        found.rqueue = u32::from_str_radix(rx, 16).ok()?;
        Some(found)
    })
}

/// /proc/net/packet.
pub(super) fn packet() -> Result<Vec<Found>, Error> {
    lines("packet", |columns| {
        let mut found = Found::new(Kind::Packet, State::Close, columns.get(8)?.parse().ok()?);
        found.rqueue = columns.get(6)?.parse().ok()?;
        found.local = Name::Text(format!(
            "protocol 0x{} interface {}",
            columns.get(3)?,
            columns.get(4)?
        ));
        Some(found)
    })
}

/// /proc/net/netlink.
pub(super) fn netlink() -> Result<Vec<Found>, Error> {
    lines("netlink", |columns| {
        let mut found = Found::new(Kind::Netlink, State::Close, columns.get(9)?.parse().ok()?);
        let (protocol, port) = (columns.get(1)?, columns.get(2)?);
        found.rqueue = columns.get(4)?.parse().ok()?;
        found.local = Name::Text(format!("protocol {protocol} port {port}"));
        found.kernel = *port == "0";
        Some(found)
    })
}

/// The lines after the header; a file that this kernel does not have has none. /proc/net would be that of the process: the namespace
/// belongs to the thread.
fn lines(name: &str, each: impl Fn(&[&str]) -> Option<Found>) -> Result<Vec<Found>, Error> {
    let what = format!("/proc/thread-self/net/{name}");
    let text = match fs::read_to_string(&what) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Proc { what, source }),
    };
    text.lines()
        .skip(1)
        .map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            each(&columns).ok_or_else(|| Error::Malformed { what: what.clone() })
        })
        .collect()
}

/// `0100007F:0050`: words of the address as the host's CPU would print them.
fn end(text: &str) -> Option<Endpoint> {
    let (address, port) = text.split_once(':')?;
    let words: Option<Vec<[u8; 4]>> = address
        .as_bytes()
        .chunks(8)
        .map(|c| {
            Some(
                u32::from_str_radix(std::str::from_utf8(c).ok()?, 16)
                    .ok()?
                    .to_ne_bytes(),
            )
        })
        .collect();
    let ip = match words?.as_slice() {
        [w] => IpAddr::V4(Ipv4Addr::from(*w)),
        [a, b, c, d] => {
            let mut raw = [0; 16];
            for (to, from) in raw.chunks_mut(4).zip([a, b, c, d]) {
                to.copy_from_slice(from);
            }
            IpAddr::V6(Ipv6Addr::from(raw))
        }
        _ => return None,
    };
    Some(Endpoint {
        ip,
        port: u16::from_str_radix(port, 16).ok()?,
        scope: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_words_of_the_cpu() {
        let v4 = end("0A0200C0:0050").expect("an address");
        assert_eq!(v4.to_string(), "192.0.2.10:80");
        let v6 = end("B80D0120000000000000000001000000:1F90").expect("an address");
        assert_eq!(v6.to_string(), "[2001:db8::1]:8080");
        assert_eq!(end("0A0200C0"), None);
    }
}
