//! Links of a scratch namespace in the place of those that the container will have.
use std::os::fd::AsRawFd;

use netmig_core::image::v1::net::{Link, LinkKind, Mac};

use super::{Doing, Error, link, namespace, open};

/// Makes a link for each of `links` that is not there by itself. Filters may name links, and some only links that are there. Pairs are what
/// every kernel that netmig works on can make.
pub fn make(links: &[Link]) -> Result<(), Error> {
    let mut nl = open()?;
    let own = namespace::own()?;
    for (i, wanted) in links
        .iter()
        .filter(|l| l.kind != LinkKind::Loopback)
        .enumerate()
    {
        let end = link::HostEnd {
            name: &format!("nmstand-in{i}"),
            mac: Mac([2, 0, 0, 0, 1, i as u8]),
            netns: own.as_raw_fd(),
        };
        let plain = Link {
            mac: None,
            mtu: 1500,
            txqueuelen: 1000,
            ..wanted.clone()
        };
        link::add_veth(&mut nl, &plain, 0, &end)
            .doing(|| format!("making a stand-in for link {}", wanted.name))?;
    }
    Ok(())
}
