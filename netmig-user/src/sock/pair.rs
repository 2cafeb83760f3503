//! Connections with both ends in the container (over 127.0.0.1, ::1 or its own addresses).
//!
//! What was on its way between the two is gone: the gate is closed on `lo` too. But both ends are known, so nothing has to be guessed:
//! what the one has received is acknowledged for the other, and the rest counts as never sent.
use std::{
    collections::{HashMap, HashSet},
    thread,
    time::Duration,
};

use netmig_core::image::v1::sock::Tcp;

use super::error::Error;

/// Finds the pairs among `tcp` and makes their ends agree. `again` reads a connection anew: an end that was read first may lack what has
/// arrived since.
pub(super) fn reconcile(
    tcp: &mut [Tcp],
    again: &mut dyn FnMut(usize, &mut Tcp) -> Result<(), Error>,
) -> Result<Vec<(u32, u32)>, Error> {
    let pairs = find(tcp);
    for &(a, b) in &pairs {
        let (a, b) = (a as usize, b as usize);
        let mut tries = 0;
        while !agree(&tcp[a], &tcp[b]) {
            tries += 1;
            if tries > 20 {
                return Err(Error::Unreconciled {
                    socket: tcp[a].to_string(),
                });
            }
            // A packet that was under way in a backlog when the gate closed is delivered within a softirq.
            thread::sleep(Duration::from_millis(1));
            again(a, &mut tcp[a])?;
            again(b, &mut tcp[b])?;
        }
        let (a_has, b_has) = (tcp[a].rcv_nxt, tcp[b].rcv_nxt);
        let (a_offers, b_offers) = (edge(&tcp[a]), edge(&tcp[b]));
        settle(&mut tcp[a], b_has, b_offers);
        settle(&mut tcp[b], a_has, a_offers);
    }
    Ok(pairs)
}

fn find(tcp: &[Tcp]) -> Vec<(u32, u32)> {
    let own: HashSet<_> = tcp.iter().map(|t| t.local.canonical().ip).collect();
    let inner = |t: &Tcp| own.contains(&t.peer.canonical().ip);
    let ends: HashMap<_, _> = (0..)
        .zip(tcp)
        .filter(|(_, t)| inner(t))
        .map(|(i, t)| ((t.local.canonical(), t.peer.canonical()), i))
        .collect();
    let facing = |t: &Tcp| {
        ends.get(&(t.peer.canonical(), t.local.canonical()))
            .copied()
    };
    (0..)
        .zip(tcp)
        .filter(|(_, t)| inner(t))
        .filter_map(|(i, t)| facing(t).filter(|&j| i < j).map(|j| (i, j)))
        .collect()
}

/// Each end has received no less than the other knows to be acknowledged, and no more than the other has written.
fn agree(a: &Tcp, b: &Tcp) -> bool {
    let within = |seq: u32, from: u32, to: u32| seq.wrapping_sub(from) <= to.wrapping_sub(from);
    within(a.rcv_nxt, b.snd_una, b.write_seq) && within(b.rcv_nxt, a.snd_una, a.write_seq)
}

/// Right edge of the window that an end has offered.
fn edge(tcp: &Tcp) -> u32 {
    tcp.window.rcv_wup.wrapping_add(tcp.window.rcv_wnd)
}

/// `has`: what the other end has received. `offers`: the right edge of its window.
fn settle(tcp: &mut Tcp, has: u32, offers: u32) {
    tcp.send.drain(..has.wrapping_sub(tcp.snd_una) as usize);
    tcp.snd_una = has;
    tcp.snd_nxt = has;
    let window = offers.wrapping_sub(has);
    tcp.peer_window = if window <= i32::MAX as u32 { window } else { 0 };
}

#[cfg(test)]
mod tests {
    use super::*;
    use netmig_core::image::v1::sock::{Common, Endpoint, Sockets, TcpState, Window};
    use std::net::{IpAddr, Ipv4Addr};

    fn end(port: u16, to: u16, una: u32, send: &[u8], sent: u32, rcv_nxt: u32, fd: i32) -> Tcp {
        let at = |port| Endpoint {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port,
            scope: 0,
        };
        Tcp {
            common: Common {
                holders: vec![netmig_core::image::v1::sock::Holder { pid: 1, fd }],
                inode: u64::from(port),
                ..Common::default()
            },
            state: TcpState::Established,
            shut_read: false,
            local: at(port),
            peer: at(to),
            snd_una: una,
            snd_nxt: una.wrapping_add(sent),
            write_seq: una.wrapping_add(u32::try_from(send.len()).expect("short")),
            rcv_nxt,
            send: send.to_vec(),
            recv: Vec::new(),
            mss: 1460,
            snd_mss: 1448,
            wscale: Some((7, 7)),
            sack: true,
            timestamps: true,
            ecn: false,
            timestamp: 0,
            window: Window {
                snd_wl1: 0,
                snd_wnd: 0,
                max_window: 0,
                rcv_wnd: 1000,
                rcv_wup: rcv_nxt,
            },
            peer_window: 0,
            ts_recent: None,
            congestion: "cubic".into(),
            cwnd: 10,
            ssthresh: 0,
            rtt: 0,
            window_clamp: 0,
        }
    }

    #[test]
    fn what_has_arrived_is_acknowledged_and_the_rest_was_never_sent() {
        // Sequence numbers wrap inside the first one's queue.
        let una = u32::MAX - 3;
        let mut tcp = vec![
            end(1, 2, una, b"0123456789", 8, 500, 3),
            end(2, 1, 498, b"abcdef", 6, una.wrapping_add(5), 4),
        ];
        let pairs = reconcile(&mut tcp, &mut |_, _| panic!("they agree")).expect("reconciled");
        assert_eq!(pairs, [(0, 1)]);
        assert_eq!(
            (tcp[0].send.as_slice(), tcp[0].snd_una, tcp[0].snd_nxt),
            (&b"56789"[..], 1, 1)
        );
        assert_eq!(
            (tcp[1].send.as_slice(), tcp[1].snd_una, tcp[1].snd_nxt),
            (&b"cdef"[..], 500, 500)
        );
        assert_eq!((tcp[0].peer_window, tcp[1].peer_window), (1000, 1000));
        let image = Sockets {
            tcp,
            pairs,
            ..Sockets::default()
        };
        image.check().expect("an image that can be restored");
    }

    #[test]
    fn an_end_that_was_read_too_early_is_read_again() {
        // The second one knows 4 bytes to be acknowledged; the first one was read before they came.
        let mut tcp = vec![
            end(1, 2, 100, b"", 0, 200, 3),
            end(2, 1, 204, b"xy", 0, 100, 4),
        ];
        let mut reads = 0;
        reconcile(&mut tcp, &mut |i, t| {
            reads += 1;
            if i == 0 {
                t.rcv_nxt = 204;
            }
            Ok(())
        })
        .expect("reconciled");
        assert_eq!(reads, 2);
    }

    #[test]
    fn ends_that_never_agree_are_an_error() {
        let mut tcp = vec![
            end(1, 2, 100, b"", 0, 200, 3),
            end(2, 1, 204, b"xy", 0, 100, 4),
        ];
        let failed = reconcile(&mut tcp, &mut |_, _| Ok(()));
        assert!(matches!(failed, Err(Error::Unreconciled { .. })));
    }
}
