//! Which multicast groups the container's links are members of, so that switches are told where they are now.
//!
//! A switch that listens to membership reports forwards a group only to ports where it has heard one; the question for an IPv6 address
//! goes to a group too. The kernel's own reports died at the closed gate, and it repeats them only when a querier asks, minutes later.
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Doing, Error};

/// The groups of the link of that index, from the namespace of the calling thread. Those of all nodes, which nobody reports, are left out.
pub fn groups(ifindex: u32) -> Result<Vec<IpAddr>, Error> {
    let read = |name: &str| {
        let path = format!("/proc/thread-self/net/{name}");
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()), // no IPv6 in this kernel
            other => other.doing(|| format!("reading {path}")),
        }
    };
    let mut groups = inet(&read("igmp")?, ifindex);
    groups.extend(inet6(&read("igmp6")?, ifindex));
    Ok(groups)
}

/// A line for each link, beginning with its index, and indented lines for its groups, each a number in the host's order (igmp_mc_seq_show()).
fn inet(text: &str, ifindex: u32) -> Vec<IpAddr> {
    let mut current = None;
    let mut groups = Vec::new();
    for line in text.lines() {
        let word = line.split_whitespace().next().unwrap_or_default();
        if !line.starts_with(char::is_whitespace) {
            current = word.parse::<u32>().ok();
        } else if current == Some(ifindex)
            && let Ok(group) = u32::from_str_radix(word, 16)
        {
            groups.push(Ipv4Addr::from(group.to_ne_bytes()));
        }
    }
    groups
        .into_iter()
        .filter(|g| *g != Ipv4Addr::new(224, 0, 0, 1))
        .map(IpAddr::from)
        .collect()
}

/// Index, link, group (igmp6_mc_seq_show()).
fn inet6(text: &str, ifindex: u32) -> Vec<IpAddr> {
    let group = |line: &str| {
        let mut words = line.split_whitespace();
        let ours = words.next()?.parse() == Ok(ifindex);
        let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        ours.then(|| Ipv6Addr::from_bits(group))
    };
    // Node-local groups and all nodes are not reported (RFC 3810, 6).
    let reported =
        |g: &Ipv6Addr| g.octets()[1] & 0xf > 1 && *g != Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    text.lines()
        .filter_map(group)
        .filter(reported)
        .map(IpAddr::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_one_link() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
            1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
            2\teth0      :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let text = if cfg!(target_endian = "little") {
            text.to_owned()
        } else {
            text.replace("FB0000E0", "E00000FB")
        };
        assert_eq!(inet(&text, 2), ["224.0.0.251".parse::<IpAddr>().unwrap()]);
        let text = "2    eth0            ff0200000000000000000001ff000010     1 00000004 0\n\
            2    eth0            ff020000000000000000000000000001     1 0000000C 0\n\
            2    eth0            ff010000000000000000000000000001     1 00000008 0\n\
            3    eth1            ff0200000000000000000001ff000011     1 00000004 0\n";
        assert_eq!(
            inet6(text, 2),
            ["ff02::1:ff00:10".parse::<IpAddr>().unwrap()]
        );
    }
}
