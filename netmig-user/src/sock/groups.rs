//! Multicast memberships. The kernel lists the groups of an interface (/proc/net/igmp, igmp6) and not those of a socket, but it answers for a
//! socket and a group: MCAST_MSFILTER gives the source filter, or EADDRNOTAVAIL if the socket has not joined (ip_mc_gsfget, ip6_mc_msfget).
//!
//! A membership goes when the last copy of its socket goes. What the closed gate swallows of its reports is sent again by the kernel; at the
//! target it is joined at the opening, so that switches and routers hear of it at once.
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};

use netmig_core::image::v1::sock::{Interface, Membership, SOURCE_LIMIT};

use super::error::{Error, On};
use crate::sys::sockopt;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: u32 = 0;
const MCAST_INCLUDE: u32 = 1;
/// struct sockaddr_storage.
const ADDRESS: usize = 128;
/// Of struct group_filter: interface, padding, group, mode, number of sources.
const HEAD: usize = 8 + ADDRESS + 8;

/// Every group of every interface of the caller's namespace.
#[derive(Debug, Default)]
pub(super) struct Groups(Option<Vec<(u32, IpAddr)>>);

impl Groups {
    /// Those that a socket has joined.
    pub(super) fn of(
        &mut self,
        fd: &OwnedFd,
        v6: bool,
        socket: &impl ToString,
    ) -> Result<Vec<Membership>, Error> {
        let all = match self.0.take() {
            Some(all) => self.0.insert(all),
            None => self.0.insert(joined()?),
        };
        let mut found = Vec::new();
        for &(interface, group) in all.iter().filter(|(_, group)| v6 || group.is_ipv4()) {
            match filter(fd, interface, group) {
                Ok(membership) => found.extend(membership),
                Err(e) => return Err(e).on("reading its multicast groups", socket),
            }
        }
        Ok(found)
    }
}

/// Joins a group with its filter. `interfaces`: as they are called here.
pub(super) fn join(
    fd: &OwnedFd,
    membership: &Membership,
    there: &[Interface],
    here: &[Interface],
) -> io::Result<()> {
    let name = there
        .iter()
        .find(|i| i.index == membership.interface)
        .map(|i| &i.name);
    let interface = here
        .iter()
        .find(|i| Some(&i.name) == name)
        .map_or(membership.interface, |i| i.index);
    let level = level(membership.group);
    let mut request = interface.to_ne_bytes().to_vec();
    request.resize(8, 0);
    request.extend_from_slice(&storage(membership.group));
    match sockopt::set(fd, level, MCAST_JOIN_GROUP, &request) {
        Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => {}
        joined => joined?,
    }
    if membership.exclude && membership.sources.is_empty() {
        return Ok(());
    }
    let mode = if membership.exclude {
        MCAST_EXCLUDE
    } else {
        MCAST_INCLUDE
    };
    request.extend_from_slice(&mode.to_ne_bytes());
    let count = u32::try_from(membership.sources.len()).map_err(io::Error::other)?;
    request.extend_from_slice(&count.to_ne_bytes());
    for &source in &membership.sources {
        request.extend_from_slice(&storage(source));
    }
    sockopt::set(fd, level, MCAST_MSFILTER, &request)
}

/// None: the socket has not joined it.
fn filter(fd: &OwnedFd, interface: u32, group: IpAddr) -> io::Result<Option<Membership>> {
    let mut room = 16;
    loop {
        let mut answer = vec![0; HEAD + room * ADDRESS];
        answer[..4].copy_from_slice(&interface.to_ne_bytes());
        answer[8..8 + ADDRESS].copy_from_slice(&storage(group));
        let number = u32::try_from(room).map_err(io::Error::other)?;
        answer[HEAD - 4..HEAD].copy_from_slice(&number.to_ne_bytes());
        match sockopt::raw_read(fd, level(group), MCAST_MSFILTER, &mut answer) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => return Ok(None),
            Err(e) => return Err(e),
        }
        let word = |at: usize| {
            u32::from_ne_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]])
        };
        let (mode, count) = (word(HEAD - 8), word(HEAD - 4) as usize);
        if count > SOURCE_LIMIT {
            return Err(io::Error::other(format!("a group with {count} sources")));
        }
        if count > room {
            room = count;
            continue;
        }
        let sources: Option<Vec<IpAddr>> = answer[HEAD..]
            .chunks_exact(ADDRESS)
            .take(count)
            .map(address)
            .collect();
        return Ok(Some(Membership {
            interface,
            group,
            exclude: mode == MCAST_EXCLUDE,
            sources: sources
                .ok_or_else(|| io::Error::other("a source of an unknown address family"))?,
        }));
    }
}

fn level(group: IpAddr) -> i32 {
    match group {
        IpAddr::V4(_) => libc::IPPROTO_IP,
        IpAddr::V6(_) => libc::IPPROTO_IPV6,
    }
}

/// struct sockaddr_storage without a port.
fn storage(ip: IpAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    let family = match ip {
        IpAddr::V4(ip) => {
            bytes[4..8].copy_from_slice(&ip.octets());
            libc::AF_INET
        }
        IpAddr::V6(ip) => {
            bytes[8..24].copy_from_slice(&ip.octets());
            libc::AF_INET6
        }
    };
    bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    bytes
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?])) {
        libc::AF_INET => {
            let raw: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(raw)))
        }
        libc::AF_INET6 => {
            let raw: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(raw)))
        }
        _ => None,
    }
}

fn joined() -> Result<Vec<(u32, IpAddr)>, Error> {
    let read = |name: &str| {
        let what = format!("/proc/thread-self/net/{name}");
        match fs::read_to_string(&what) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((what, String::new())),
            Err(source) => Err(Error::Proc { what, source }),
            Ok(text) => Ok((what, text)),
        }
    };
    let mut all = Vec::new();
    for (name, parse) in [
        ("igmp", igmp as fn(&str) -> Option<Vec<(u32, IpAddr)>>),
        ("igmp6", igmp6),
    ] {
        let (what, text) = read(name)?;
        all.extend(parse(&text).ok_or(Error::Malformed { what })?);
    }
    Ok(all)
}

/// igmp_mc_seq_show(): a line for an interface, then an indented one for each of its groups, an address as a word of the CPU.
fn igmp(text: &str) -> Option<Vec<(u32, IpAddr)>> {
    let mut interface = 0;
    let mut all = Vec::new();
    for line in text.lines().skip(1) {
        let first = line.split_whitespace().next()?;
        if line.starts_with(char::is_whitespace) {
            let word = u32::from_str_radix(first, 16).ok()?;
            all.push((interface, IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes()))));
        } else {
            interface = first.parse().ok()?;
        }
    }
    Some(all)
}

/// igmp6_mc_seq_show(): interface, its name, the group.
fn igmp6(text: &str) -> Option<Vec<(u32, IpAddr)>> {
    text.lines()
        .map(|line| {
            let mut columns = line.split_whitespace();
            let interface = columns.next()?.parse().ok()?;
            let group = u128::from_str_radix(columns.nth(1)?, 16).ok()?;
            Some((interface, IpAddr::V6(Ipv6Addr::from(group))))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn groups_of_interfaces_are_read() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n7\teth0      :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n";
        let group = |a| IpAddr::V4(Ipv4Addr::new(224, 0, 0, a));
        assert_eq!(igmp(text), Some(vec![(1, group(1)), (7, group(251))]));
        let text = "7    eth0            ff0200000000000000000000000000fb     1 00000004 0\n";
        let mdns = "ff02::fb".parse().expect("an address");
        assert_eq!(igmp6(text), Some(vec![(7, mdns)]));
        assert_eq!(igmp6("x"), None);
    }

    #[test]
    fn a_filter_reads_back_as_it_was_set() {
        let interfaces = nix::net::if_::if_nameindex().expect("interfaces");
        let lo = interfaces
            .iter()
            .find(|i| i.name().to_bytes() == b"lo")
            .expect("lo")
            .index();
        let socket =
            |ip: &str| -> OwnedFd { std::net::UdpSocket::bind((ip, 0)).expect("a socket").into() };
        for (ip, group, sources) in [
            ("127.0.0.1", "239.1.2.3", ["192.0.2.1", "192.0.2.2"]),
            ("::1", "ff02::1234", ["2001:db8::1", "2001:db8::2"]),
        ] {
            let sources: Vec<IpAddr> = sources.map(|s| s.parse().expect("an address")).to_vec();
            for (exclude, sources) in [
                (true, Vec::new()),
                (true, sources.clone()),
                (false, sources),
            ] {
                let set = Membership {
                    interface: lo,
                    group: group.parse().expect("an address"),
                    exclude,
                    sources,
                };
                let fd = socket(ip);
                join(&fd, &set, &[], &[]).expect("joined");
                let read = Groups::default()
                    .of(&fd, set.group.is_ipv6(), &"socket")
                    .expect("read");
                assert_eq!(read, std::slice::from_ref(&set));
                let other = socket(ip);
                let none = Groups::default().of(&other, set.group.is_ipv6(), &"socket");
                assert_eq!(none.expect("read"), []);
            }
        }
    }
}
