//! Few connections, read one by one. For a dump of one namespace the kernel walks the table of the whole host under its locks, 10 ms for
//! 262144 buckets (ctnetlink_dump_table()); to list them in /proc it walks it without (ct_get_next()), in a thirtieth of that.
use std::{fs, net::IpAddr};

use netmig_core::image::v1::conntrack::{Connection, Key, Tuple};

use super::{CT_GET, entry};
use crate::net::{Doing, Error, netlink::Netlink};

/// Older kernels begin anew for each page of the list (ct_seq_start()), so a long one takes longer than a dump.
const FEW: usize = 500;
const LIST: &str = "/proc/thread-self/net/nf_conntrack";

/// All of the calling thread's namespace, of which there are `count`. None if that does not come out, or not in this way.
pub(super) fn few(count: usize) -> Result<Option<Vec<Connection>>, Error> {
    // A kernel without CONFIG_NF_CONNTRACK_PROCFS has no list.
    let Some(names) = (count <= FEW)
        .then(|| fs::read_to_string(LIST).ok())
        .flatten()
        .and_then(|list| list.lines().map(parse).collect::<Option<Vec<_>>>())
    else {
        return Ok(None);
    };
    let doing = || "reading the tracked connections".to_owned();
    let mut nl = Netlink::netfilter().doing(doing)?;
    let mut all = Vec::with_capacity(names.len());
    for (original, zone) in &names {
        match nl.get(CT_GET, entry::question(original, *zone)) {
            Ok(Some(reply)) => all.extend(entry::parse(&reply).doing(doing)?),
            Ok(None) => {}
            // It has run out meanwhile.
            Err(e) if e.errno() == Some(libc::ENOENT) => {}
            other => drop(other.doing(doing)?),
        }
    }
    // One that is not of the list, or of a zone in one direction only: a dump shows all.
    Ok((all.len() == count).then_some(all))
}

/// The original direction and the zone of a line as ct_seq_show() writes it.
fn parse(line: &str) -> Option<(Tuple, u16)> {
    let mut words = line.split_whitespace();
    let protocol = words.nth(3)?.parse().ok()?;
    let words: Vec<&str> = words.collect();
    // The original direction stands first.
    let value = |name: &str| {
        words
            .iter()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let address = |name| value(name)?.parse::<IpAddr>().ok();
    let number = |name| value(name)?.parse::<u16>().ok();
    let byte = |name| value(name)?.parse::<u8>().ok();
    let hexadecimal = |name| u16::from_str_radix(value(name)?.trim_start_matches("0x"), 16).ok();
    let key = if let (Some(source), Some(destination)) = (number("sport"), number("dport")) {
        Key::Ports {
            source,
            destination,
        }
    } else if let (Some(id), Some(kind), Some(code)) = (number("id"), byte("type"), byte("code")) {
        Key::Icmp { id, kind, code }
    } else if let (Some(source), Some(destination)) = (hexadecimal("srckey"), hexadecimal("dstkey"))
    {
        Key::Ports {
            source,
            destination,
        }
    } else {
        Key::None
    };
    let tuple = Tuple {
        source: address("src")?,
        destination: address("dst")?,
        protocol,
        key,
    };
    Some((tuple, number("zone").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_its_original_direction_and_its_zone() {
        let tuple = |source: &str, destination: &str, protocol, key| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            key,
        };
        let ports = |source, destination| Key::Ports {
            source,
            destination,
        };
        let cases = [
            (
                "ipv4     2 tcp      6 431996 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1003 dport=80 src=192.0.2.2 dst=10.0.0.1 sport=8080 dport=1003 [ASSURED] mark=7 zone=0 use=2",
                tuple("10.0.0.1", "10.0.0.2", 6, ports(1003, 80)),
                0,
            ),
            (
                "ipv6     10 udp      17 99 src=2001:db8::1 dst=2001:db8::2 sport=53 dport=5353 [UNREPLIED] src=2001:db8::2 dst=2001:db8::1 sport=5353 dport=53 mark=0 zone=9 use=2",
                tuple("2001:db8::1", "2001:db8::2", 17, ports(53, 5353)),
                9,
            ),
            (
                "ipv4     2 icmp     1 19 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=77 src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=77 mark=0 use=2",
                tuple(
                    "10.0.0.1",
                    "10.0.0.2",
                    1,
                    Key::Icmp {
                        id: 77,
                        kind: 8,
                        code: 0,
                    },
                ),
                0,
            ),
            (
                "ipv4     2 gre      47 29 timeout=30, stream_timeout=180 src=10.0.0.1 dst=10.0.0.2 srckey=0x0 dstkey=0x1f src=10.0.0.2 dst=10.0.0.1 srckey=0x1f dstkey=0x0 mark=0 use=2",
                tuple("10.0.0.1", "10.0.0.2", 47, ports(0, 31)),
                0,
            ),
            (
                "ipv4     2 unknown  89 599 src=10.0.0.1 dst=224.0.0.5 [UNREPLIED] src=224.0.0.5 dst=10.0.0.1 mark=0 use=2",
                tuple("10.0.0.1", "224.0.0.5", 89, Key::None),
                0,
            ),
        ];
        for (line, tuple, zone) in cases {
            assert_eq!(parse(line), Some((tuple, zone)), "{line}");
        }
        assert_eq!(parse("ipv4     2 tcp"), None);
    }
}
