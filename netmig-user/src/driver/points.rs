//! Where the gate of a container goes.
use std::path::Path;

use crate::{
    gate::{Orientation, Point},
    net::{Link, LinkKind},
};

/// The gate's points for links of the namespace at `netns`: the host's end of a veth, the device itself of anything that has no end of
/// its own on the host, and `lo`.
pub fn of(links: &[Link], netns: &Path) -> Vec<Point> {
    links.iter().filter_map(|link| point(link, netns)).collect()
}

fn point(link: &Link, netns: &Path) -> Option<Point> {
    let inside = |orientation| Point {
        netns: Some(netns.to_owned()),
        ifindex: link.ifindex,
        name: link.name.clone(),
        orientation,
    };
    match &link.kind {
        LinkKind::Loopback => Some(inside(Orientation::Loopback)),
        LinkKind::Veth {
            host_ifindex,
            host_name,
            ..
        } => Some(Point {
            netns: None,
            ifindex: *host_ifindex,
            name: host_name.clone(),
            orientation: Orientation::HostSide,
        }),
        LinkKind::Macvlan { .. }
        | LinkKind::Ipvlan { .. }
        | LinkKind::Physical
        | LinkKind::Other(_) => Some(inside(Orientation::Inside)),
        LinkKind::Dummy => None,
    }
}
