//! Room in the receive buffers of UDP sockets: datagrams that come faster than they are read are lost there.
use std::{net::SocketAddr, path::Path};

use netlink_sys::Socket;
use netmig_core::image::v1::sock::Endpoint;

use super::{diag, error::Error};
use crate::sys::netns::within;

/// Looks at the UDP sockets of one namespace, as often as wanted.
pub struct Rooms(Socket);

/// A UDP socket's receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    local: Endpoint,
    peer: Option<Endpoint>,
    v6: bool,
    /// Bytes that it still takes, as `sk_rmem_alloc` counts.
    pub free: u64,
    /// Nothing is in it.
    pub empty: bool,
}

impl Rooms {
    /// Of the namespace at `netns`.
    ///
    /// # Errors
    /// It cannot be entered, or has no sock_diag.
    pub fn open(netns: &Path) -> Result<Self, Error> {
        within(netns, || diag::open("UDP sockets")).map(Self)
    }

    /// As they are now.
    ///
    /// # Errors
    /// sock_diag's.
    pub fn look(&self) -> Result<Vec<Room>, Error> {
        let found = diag::udp_memory(&self.0)?;
        let rooms = found.into_iter().filter_map(|(found, used, capacity)| {
            Some(Room {
                local: found.local.endpoint()?.canonical(),
                peer: found.peer.endpoint().map(Endpoint::canonical),
                v6: found.v6,
                free: u64::from(capacity.saturating_sub(used)),
                empty: used == 0,
            })
        });
        Ok(rooms.collect())
    }
}

impl Room {
    /// How well the socket fits a datagram, as the kernel scores it (`compute_score` in net/ipv4/udp.c); none if it is not for it.
    #[must_use]
    pub fn fits(&self, from: SocketAddr, to: SocketAddr) -> Option<u8> {
        if self.local.port != to.port() {
            return None;
        }
        let mut score = 0;
        if !self.local.ip.is_unspecified() {
            if self.local.ip != to.ip() {
                return None;
            }
            score += 1;
        } else if !self.v6 && to.is_ipv6() {
            return None;
        }
        if let Some(peer) = self.peer {
            if (peer.ip, peer.port) != (from.ip(), from.port()) {
                return None;
            }
            score += 2;
        }
        Some(score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn fitting(from: SocketAddr, to: SocketAddr) -> Vec<(u8, Room)> {
        let rooms = Rooms::open(Path::new("/proc/self/ns/net")).expect("a namespace");
        let rooms = rooms.look().expect("its sockets").into_iter();
        let mut fitting: Vec<_> = rooms
            .filter_map(|room| Some((room.fits(from, to)?, room)))
            .collect();
        fitting.sort_by_key(|(score, _)| *score);
        fitting
    }

    #[test]
    fn a_datagram_takes_room_until_it_is_read() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let (from, to) = (
            sender.local_addr().expect("its address"),
            receiver.local_addr().expect("its address"),
        );
        let room = || match fitting(from, to).as_slice() {
            [(1, room)] => *room,
            other => panic!("one bound socket: {other:?}"),
        };
        let before = room();
        assert!(before.empty && before.free > 0);
        for _ in 0..8 {
            sender.send_to(&[0; 1000], to).expect("sent");
        }
        let after = room();
        assert!(!after.empty && before.free - after.free >= 8 * 1000);
    }

    #[test]
    fn a_connected_socket_fits_better_and_only_its_peer() {
        let receiver = UdpSocket::bind("[::]:0").expect("a socket");
        let port = receiver.local_addr().expect("its address").port();
        let to = SocketAddr::new("127.0.0.1".parse().expect("an address"), port);
        let peer = address("127.0.0.1:9");
        assert_eq!(fitting(peer, to).len(), 1, "both families");
        let room = fitting(peer, to)[0].1;
        let connected = Room {
            peer: Some(Endpoint {
                ip: peer.ip(),
                port: 9,
                scope: 0,
            }),
            ..room
        };
        assert!(connected.fits(peer, to) > room.fits(peer, to));
        assert_eq!(connected.fits(address("127.0.0.1:10"), to), None);
        let four = Room { v6: false, ..room };
        assert_eq!(
            four.fits(
                peer,
                SocketAddr::new("::1".parse().expect("an address"), port)
            ),
            None
        );
    }
}
