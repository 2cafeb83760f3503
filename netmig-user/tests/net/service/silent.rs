//! What the old host says, and does not say, of a service address that goes.
use std::{io::Read as _, net::IpAddr, time::Duration};

use netmig_user::net::{
    self, conntrack,
    service::{address, gone, here, silence},
};

use super::{SERVICE, answer, behind, behind_a, connect, echoed, mac_of, resolved, snapshot};
use crate::world::{MOVE, on, sh, world};

fn silenced(services: &[IpAddr]) -> Result<(), net::Error> {
    silence::prepare(MOVE)?;
    silence::silence(MOVE, services)
}

#[test]
fn a_silent_host_forwards_and_answers_nothing_until_it_may_again() {
    world(|| {
        behind_a();
        let mut stream = connect();
        let wanted = behind();
        let services = wanted.addresses();
        assert_eq!(
            (resolved(), answer()),
            (mac_of("a"), std::io::ErrorKind::ConnectionRefused)
        );

        on("a", || silence::prepare(MOVE)).unwrap();
        assert_eq!(
            (resolved(), answer()),
            (mac_of("a"), std::io::ErrorKind::ConnectionRefused),
            "only prepared"
        );
        on("a", || silence::silence(MOVE, &services)).unwrap();
        assert_eq!(resolved(), "", "it answers no question for the address");
        sh(&format!(
            "ip -n peer neigh replace {} dev br0 nud permanent",
            mac_of("a").replace("lladdr", &format!("{SERVICE} lladdr"))
        ));
        assert_eq!(answer(), std::io::ErrorKind::WouldBlock);
        // What comes still goes to the container, and its answer does not leave.
        let received = || {
            on("src", || {
                sh(
                    "ss -Htin state established '( sport = :8080 )' | grep -o 'bytes_received:[0-9]*'",
                )
            })
        };
        let before = received();
        assert_eq!(
            echoed(&mut stream).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
        assert_ne!(received(), before);

        // An abort: all is as before, also said twice.
        on("a", || silenced(&services)).unwrap();
        assert_eq!(on("a", || silence::lift(MOVE)).unwrap(), 0);
        assert_eq!(on("a", || silence::lift(MOVE)).unwrap(), 0);
        assert_eq!(answer(), std::io::ErrorKind::ConnectionRefused);
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream.read_exact(&mut [0]).unwrap();
        echoed(&mut stream).unwrap();
        assert_eq!(
            on("a", || sh("nft list tables | grep -c netmig || true")).trim(),
            "0"
        );
    });
}

#[test]
fn late_packets_are_counted_and_draw_no_answer() {
    world(|| {
        behind_a();
        let mut stream = connect();
        let wanted = behind();
        let inside = here::inside(&snapshot());
        let tracked = on("a", || here::moving(&wanted, &snapshot())).unwrap();
        assert_eq!(tracked.len(), 1, "{tracked:#?}");
        let refusals = || {
            on("peer", || {
                sh("nft list counters | grep -o 'packets [0-9]*'")
            })
            .trim()
            .to_owned()
        };
        on("peer", || {
            sh(
                "nft 'table inet t { counter refused { }; chain c { type filter hook prerouting priority -300; \
                tcp flags & rst == rst counter name refused; icmp type destination-unreachable counter name refused; }; }'",
            )
        });
        // Of an address that both hosts have only the moved connections are dropped.
        on("a", || gone::begin(&tracked, &inside)).unwrap();
        on("a", || conntrack::forget(&tracked)).unwrap();
        assert_eq!(
            echoed(&mut stream).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
        assert_eq!(answer(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(
            refusals(),
            "packets 1",
            "the answer to a datagram is the only one"
        );
        assert_eq!(on("a", gone::sweep).unwrap(), 1, "its time is not over");
        on("a", || {
            sh("nft flush set inet netmig-gone-198.51.100.10 moved_ip")
        });
        assert_eq!(on("a", gone::sweep).unwrap(), 0);
        on("a", || gone::begin(&tracked, &inside)).unwrap();
        on("a", || gone::end(&inside)).unwrap();
        on("a", || gone::end(&inside)).unwrap();
        assert_eq!(on("a", gone::sweep).unwrap(), 0);

        // Of one that has left everything is.
        on("a", || silence::shut(MOVE, &wanted.addresses())).unwrap();
        on("a", || address::take(&wanted.services));
        assert_eq!(answer(), std::io::ErrorKind::WouldBlock);
        assert_eq!(refusals(), "packets 1");
        assert!(on("a", || silence::lift(MOVE)).unwrap() > 0);
    });
}
