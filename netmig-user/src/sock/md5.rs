//! TCP-MD5 (RFC 2385): keys read by sock_diag and set again, and netmig's own segments of such a connection signed.
use std::{net::IpAddr, os::fd::OwnedFd};

use md5::{Digest, Md5};
use netmig_core::image::v1::sock::{Common, KEY_LIMIT, Key};

use super::error::{Error, On};
use crate::sys::sockopt;

/// From struct tcp_diag_md5sig: family, length of the prefix, length of the key, address, key; native byte order.
pub(super) fn keys(attribute: &[u8]) -> Option<Vec<Key>> {
    const SIZE: usize = 2 + 2 + 16 + KEY_LIMIT;
    attribute
        .chunks_exact(SIZE)
        .map(|entry| {
            let raw: [u8; 16] = entry[4..20].try_into().ok()?;
            let ip = match i32::from(entry[0]) {
                libc::AF_INET => IpAddr::from([raw[0], raw[1], raw[2], raw[3]]),
                libc::AF_INET6 => IpAddr::from(raw),
                _ => return None,
            };
            let len = usize::from(u16::from_ne_bytes([entry[2], entry[3]]));
            Some(Key {
                ip,
                prefix: entry[1],
                key: entry[20..].get(..len)?.to_vec(),
            })
        })
        .collect()
}

/// Sets them on a socket.
pub(super) fn set(fd: &OwnedFd, common: &Common, socket: &impl ToString) -> Result<(), Error> {
    const TCP_MD5SIG_EXT: i32 = 32;
    const PREFIX: u8 = 1;
    for key in &common.keys {
        // struct tcp_md5sig
        let mut value = [0_u8; 128 + 8 + KEY_LIMIT];
        let family = match (key.ip, common.v6) {
            (IpAddr::V4(ip), false) => {
                value[4..8].copy_from_slice(&ip.octets());
                libc::AF_INET
            }
            (IpAddr::V4(ip), true) => {
                value[8..24].copy_from_slice(&ip.to_ipv6_mapped().octets());
                libc::AF_INET6
            }
            (IpAddr::V6(ip), _) => {
                value[8..24].copy_from_slice(&ip.octets());
                libc::AF_INET6
            }
        };
        value[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        (value[128], value[129]) = (PREFIX, key.prefix);
        let len = u16::try_from(key.key.len()).unwrap_or(u16::MAX);
        value[130..132].copy_from_slice(&len.to_ne_bytes());
        value[136..136 + key.key.len()].copy_from_slice(&key.key);
        sockopt::set(fd, libc::SOL_TCP, TCP_MD5SIG_EXT, &value)
            .on("setting TCP_MD5SIG_EXT", socket)?;
    }
    Ok(())
}

/// The key for a peer: the one with the longest prefix.
pub(super) fn key_for(common: &Common, peer: IpAddr) -> Option<&Key> {
    let peer = peer.to_canonical();
    common
        .keys
        .iter()
        .filter(|key| covers(key, peer))
        .max_by_key(|key| key.prefix)
}

fn covers(key: &Key, peer: IpAddr) -> bool {
    let same = |a: &[u8], b: &[u8]| {
        let bits = usize::from(key.prefix).min(a.len() * 8);
        let (whole, rest) = (bits / 8, bits % 8);
        let mask = u8::MAX.checked_shl(8 - rest as u32).unwrap_or(0);
        a[..whole] == b[..whole] && (rest == 0 || (a[whole] ^ b[whole]) & mask == 0)
    };
    match (key.ip.to_canonical(), peer) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(&a.octets(), &b.octets()),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(&a.octets(), &b.octets()),
        _ => false,
    }
}

/// RFC 2385 2.0: pseudo header, header without options and with a checksum of 0, payload, key. `segment`: header with options, and payload.
pub(super) fn digest(
    from: IpAddr,
    to: IpAddr,
    segment: &[u8],
    options: usize,
    key: &Key,
) -> [u8; 16] {
    const TCP: u8 = 6;
    let mut md5 = Md5::new();
    let length = segment.len() as u32;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            md5.update(from.octets());
            md5.update(to.octets());
            md5.update([0, TCP]);
            md5.update((length as u16).to_be_bytes());
        }
        (from, to) => {
            for ip in [from, to] {
                match ip {
                    IpAddr::V4(ip) => md5.update(ip.to_ipv6_mapped().octets()),
                    IpAddr::V6(ip) => md5.update(ip.octets()),
                }
            }
            md5.update(length.to_be_bytes());
            md5.update([0, 0, 0, TCP]);
        }
    }
    md5.update(&segment[..16]);
    md5.update([0, 0]);
    md5.update(&segment[18..20]);
    md5.update(&segment[20 + options..]);
    md5.update(&key.key);
    md5.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ip: &str, prefix: u8) -> Key {
        Key {
            ip: ip.parse().expect("an address"),
            prefix,
            key: b"secret".to_vec(),
        }
    }

    #[test]
    fn a_prefix_covers_what_begins_like_it() {
        let peer = |ip: &str| ip.parse::<IpAddr>().expect("an address").to_canonical();
        assert!(covers(&key("192.0.2.0", 25), peer("192.0.2.127")));
        assert!(!covers(&key("192.0.2.0", 25), peer("192.0.2.128")));
        assert!(covers(&key("0.0.0.0", 0), peer("::ffff:192.0.2.1")));
        assert!(covers(&key("2001:db8::1", 128), peer("2001:db8::1")));
        assert!(!covers(&key("2001:db8::", 64), peer("192.0.2.1")));
    }

    #[test]
    fn keys_of_sock_diag_are_read() {
        let mut entry = vec![libc::AF_INET as u8, 24];
        entry.extend_from_slice(&3_u16.to_ne_bytes());
        entry.extend_from_slice(&[192, 0, 2, 0]);
        entry.resize(20, 0);
        entry.extend_from_slice(b"abc");
        entry.resize(100, 0);
        let read = keys(&entry).expect("keys");
        assert_eq!(
            (read.len(), read[0].prefix, read[0].key.as_slice()),
            (1, 24, &b"abc"[..])
        );
        entry[2..4].copy_from_slice(&200_u16.to_ne_bytes());
        assert_eq!(keys(&entry), None);
    }
}
