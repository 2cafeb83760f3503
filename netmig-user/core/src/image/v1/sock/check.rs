//! What an image must be before anything is made of it.
use std::collections::HashSet;

use super::{
    Common, Endpoint, HalfOpen, KEY_LIMIT, Listener, Membership, QUEUE_LIMIT, SOURCE_LIMIT,
    Sockets, Tcp, TcpState,
};

/// What is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image's {socket} is impossible: {what}")]
pub struct Impossible {
    /// Which socket.
    pub socket: String,
    /// What is wrong with it.
    pub what: &'static str,
}

impl Sockets {
    /// Checks what a restore relies on: queues fit their sequence numbers and [`QUEUE_LIMIT`], every socket has a holder, no holder and
    /// no tuple occurs twice, pairs name connections that face each other.
    ///
    /// # Errors
    /// The first socket that breaks a rule.
    pub fn check(&self) -> Result<(), Impossible> {
        let mut holders = HashSet::new();
        let mut held = |name: String, common: &Common| {
            let long = common.keys.iter().any(|key| {
                let bits = if key.ip.is_ipv4() { 32 } else { 128 };
                key.key.len() > KEY_LIMIT || key.prefix > bits
            });
            if long {
                return Err(Impossible {
                    socket: name,
                    what: "a key is longer than keys are, or its prefix than its address",
                });
            }
            let fresh = common.holders.iter().all(|h| holders.insert(*h));
            match (common.holders.is_empty(), fresh) {
                (true, _) => Err(Impossible {
                    socket: name,
                    what: "no descriptor holds it",
                }),
                (_, false) => Err(Impossible {
                    socket: name,
                    what: "its descriptor holds another socket too",
                }),
                _ => Ok(()),
            }
        };
        let mut tuples = HashSet::new();
        let mut unique = |local: Endpoint, peer: Endpoint| {
            let new = tuples.insert((local.canonical(), peer.canonical()));
            new.then_some(()).ok_or("there are two of it")
        };
        for tcp in &self.tcp {
            held(tcp.to_string(), &tcp.common)?;
            let checked = tcp.check().and_then(|()| unique(tcp.local, tcp.peer));
            checked.map_err(|what| Impossible {
                socket: tcp.to_string(),
                what,
            })?;
        }
        for connecting in &self.connecting {
            held(connecting.to_string(), &connecting.common)?;
            let (local, peer) = (connecting.local, connecting.peer);
            let wrong = |what| Impossible {
                socket: connecting.to_string(),
                what,
            };
            if local.port == 0 || peer.port == 0 {
                return Err(wrong("a port is 0"));
            }
            if local.ip.is_ipv4() != peer.ip.is_ipv4() || local.ip.is_ipv4() == connecting.common.v6
            {
                return Err(wrong("its addresses are of different families"));
            }
            if connecting.congestion.len() > 15 || connecting.common.device.len() > 15 {
                return Err(wrong("a name exceeds 15 bytes"));
            }
            unique(local, peer).map_err(wrong)?;
        }
        for tcp in &self.waiting {
            let wrong = |what| Impossible {
                socket: tcp.to_string(),
                what,
            };
            tcp.check().map_err(wrong)?;
            if !tcp.common.holders.is_empty() {
                return Err(wrong(
                    "it waits in an accept queue, and a descriptor holds it",
                ));
            }
            if !tcp.send.is_empty() || tcp.state.fin_written() {
                return Err(wrong(
                    "it waits in an accept queue, and has something to send",
                ));
            }
            unique(tcp.local, tcp.peer).map_err(wrong)?;
            if !self
                .listeners
                .iter()
                .any(|l| l.local.port == tcp.local.port)
            {
                return Err(wrong(
                    "it waits in an accept queue, and nobody listens there",
                ));
            }
        }
        for (tcp, ended) in self
            .orphans
            .iter()
            .map(|tcp| (tcp, false))
            .chain(self.time_wait.iter().map(|tcp| (tcp, true)))
        {
            let wrong = |what| Impossible {
                socket: tcp.to_string(),
                what,
            };
            tcp.check().map_err(wrong)?;
            if !tcp.common.holders.is_empty() {
                return Err(wrong(
                    "its program has closed it, and a descriptor holds it",
                ));
            }
            if !tcp.recv.is_empty() {
                return Err(wrong(
                    "its program has closed it, and it has bytes that nobody would read",
                ));
            }
            if !tcp.send.is_empty() && tcp.state == TcpState::FinWait2 {
                return Err(wrong(
                    "its FIN is acknowledged, and it has bytes to send before that",
                ));
            }
            let fits = if ended {
                tcp.state == TcpState::FinWait2
            } else {
                tcp.state.fin_written()
            };
            if !fits {
                return Err(wrong("its program has closed it, and it has sent no FIN"));
            }
            unique(tcp.local, tcp.peer).map_err(wrong)?;
        }
        for over in &self.over {
            held(over.to_string(), &over.common)?;
            let wrong = |what| Impossible {
                socket: over.to_string(),
                what,
            };
            if over.recv.len() > QUEUE_LIMIT {
                return Err(wrong("a queue exceeds the limit"));
            }
            if over.local.port == 0 || over.local.ip.is_unspecified() {
                return Err(wrong("it was connected, and has no address"));
            }
            if over.local.ip.is_ipv4() == over.common.v6 || over.common.device.len() > 15 {
                return Err(wrong(
                    "its address is of another family, or a name exceeds 15 bytes",
                ));
            }
        }
        for half in &self.half_open {
            let wrong = |what| Impossible {
                socket: half.to_string(),
                what,
            };
            half.check().map_err(wrong)?;
            unique(half.local, half.peer).map_err(wrong)?;
            let listens = |l: &Listener| l.local.port == half.local.port;
            if !self.listeners.iter().any(listens) {
                return Err(wrong("it is in a SYN queue, and nobody listens there"));
            }
        }
        for listener in &self.listeners {
            held(format!("listener {}", listener.local), &listener.common)?;
        }
        for udp in &self.udp {
            held(format!("udp {}", udp.local), &udp.common)?;
            if udp
                .queue
                .iter()
                .any(|d| d.data.len() > usize::from(u16::MAX))
            {
                return Err(Impossible {
                    socket: format!("udp {}", udp.local),
                    what: "a datagram exceeds 64 KiB",
                });
            }
            let sound = |m: &Membership| {
                m.group.is_multicast()
                    && m.sources.len() <= SOURCE_LIMIT
                    && m.sources
                        .iter()
                        .all(|s| s.is_ipv4() == m.group.is_ipv4() && !s.is_multicast())
            };
            if !udp.groups.iter().all(sound) {
                return Err(Impossible {
                    socket: format!("udp {}", udp.local),
                    what: "a multicast group is none, or has sources that are none",
                });
            }
        }
        let mut paired = HashSet::new();
        for &(a, b) in &self.pairs {
            let socket = format!("pair ({a}, {b})");
            let ends = self.tcp.get(a as usize).zip(self.tcp.get(b as usize));
            let Some((x, y)) = ends else {
                return Err(Impossible {
                    socket,
                    what: "it names a connection that is not there",
                });
            };
            if !paired.insert(a) || !paired.insert(b) {
                return Err(Impossible {
                    socket,
                    what: "an end belongs to two pairs",
                });
            }
            if x.local.canonical() != y.peer.canonical()
                || x.peer.canonical() != y.local.canonical()
            {
                return Err(Impossible {
                    socket,
                    what: "its ends do not face each other",
                });
            }
            if x.snd_una != y.rcv_nxt
                || y.snd_una != x.rcv_nxt
                || x.in_flight() != 0
                || y.in_flight() != 0
            {
                return Err(Impossible {
                    socket,
                    what: "its ends are not reconciled",
                });
            }
        }
        Ok(())
    }
}

impl HalfOpen {
    fn check(&self) -> Result<(), &'static str> {
        if self.wscale.is_some_and(|(snd, rcv)| snd > 14 || rcv > 14) {
            return Err("a window scale exceeds 14");
        }
        if self.local.ip.to_canonical().is_ipv4() != self.peer.ip.to_canonical().is_ipv4() {
            return Err("its addresses are of different families");
        }
        if self.local.port == 0 || self.peer.port == 0 {
            return Err("a port is 0");
        }
        Ok(())
    }
}

impl Tcp {
    fn check(&self) -> Result<(), &'static str> {
        let queued = self.write_seq.wrapping_sub(self.snd_una) as usize;
        if self.send.len() > QUEUE_LIMIT || self.recv.len() > QUEUE_LIMIT {
            return Err("a queue is longer than the limit");
        }
        if queued != self.send.len() {
            return Err("its send queue does not fit its sequence numbers");
        }
        if self.in_flight() as usize > queued {
            return Err("it has sent more than it has written");
        }
        if self.window.rcv_wnd > 1 << 30
            || self.window.snd_wnd > 1 << 30
            || self.peer_window > 1 << 30
        {
            return Err("a window exceeds 1 GiB");
        }
        if self.wscale.is_some_and(|(snd, rcv)| snd > 14 || rcv > 14) {
            return Err("a window scale exceeds 14");
        }
        if self.congestion.len() > 15 || self.common.device.len() > 15 {
            return Err("a name exceeds 15 bytes");
        }
        if self.local.ip.is_ipv4() != self.peer.ip.is_ipv4()
            || self.local.ip.is_ipv4() == self.common.v6
        {
            return Err("its addresses are of different families");
        }
        if self.local.port == 0 || self.peer.port == 0 {
            return Err("a port is 0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Connecting, Datagram, HalfOpen, Holder, Key, Listener, Membership, Over, Udp, Window,
    };
    use super::*;

    fn end(ip: &str, port: u16) -> Endpoint {
        Endpoint {
            ip: ip.parse().expect("an address"),
            port,
            scope: 0,
        }
    }

    fn common(fds: &[i32]) -> Common {
        Common {
            holders: fds.iter().map(|&fd| Holder { pid: 1, fd }).collect(),
            inode: 1,
            ..Common::default()
        }
    }

    fn tcp(fds: &[i32], peer_port: u16) -> Tcp {
        Tcp {
            common: common(fds),
            state: TcpState::Established,
            shut_read: false,
            local: end("192.0.2.10", 80),
            peer: end("192.0.2.1", peer_port),
            snd_una: u32::MAX,
            snd_nxt: 1,
            write_seq: 3,
            rcv_nxt: 9,
            send: b"abcd".to_vec(),
            recv: Vec::new(),
            mss: 1460,
            snd_mss: 1448,
            wscale: Some((7, 7)),
            sack: true,
            timestamps: true,
            ecn: false,
            timestamp: 0,
            window: Window::default(),
            peer_window: 0,
            ts_recent: None,
            congestion: "cubic".into(),
            cwnd: 10,
            ssthresh: 0,
            rtt: 0,
            window_clamp: 0,
        }
    }

    /// A connection, one that waits, three that were closed (one with bytes to send), one under way, a listener, a UDP socket.
    fn sound() -> Sockets {
        let idle = |fds: &[i32], port| Tcp {
            snd_una: 5,
            snd_nxt: 5,
            write_seq: 5,
            send: Vec::new(),
            ..tcp(fds, port)
        };
        let closed = |port| Tcp {
            state: TcpState::FinWait2,
            ..idle(&[], port)
        };
        let unsent = Tcp {
            state: TcpState::FinWait1,
            ..tcp(&[], 1004)
        };
        Sockets {
            tcp: vec![tcp(&[3], 1000)],
            waiting: vec![idle(&[], 1001)],
            orphans: vec![closed(1002), unsent],
            time_wait: vec![closed(1003)],
            connecting: vec![Connecting {
                common: common(&[4]),
                local: end("192.0.2.10", 5000),
                peer: end("192.0.2.1", 443),
                isn: 1,
                timestamp: 0,
                sent_ms: 1,
                congestion: "cubic".into(),
            }],
            over: vec![Over {
                common: common(&[7]),
                local: end("192.0.2.10", 80),
                recv: vec![1, 2],
                failed: false,
            }],
            half_open: vec![HalfOpen {
                local: end("::ffff:192.0.2.10", 80),
                peer: end("::ffff:192.0.2.1", 1005),
                isn: 1,
                peer_isn: 2,
                window: 65_535,
                mss: 1460,
                wscale: Some((7, 7)),
                sack: true,
                ecn: false,
                ts_recent: Some(3),
                timestamp: 4,
            }],
            listeners: vec![Listener {
                common: common(&[5]),
                local: end("0.0.0.0", 80),
                backlog: 5,
                waiting: 1,
            }],
            udp: vec![Udp {
                common: common(&[6]),
                lite: false,
                local: end("0.0.0.0", 53),
                peer: None,
                queue: vec![Datagram {
                    from: end("192.0.2.1", 9),
                    to: end("192.0.2.10", 0).ip,
                    ttl: 64,
                    tos: 0,
                    data: vec![0; 10],
                }],
                lost: 0,
                groups: vec![Membership {
                    interface: 2,
                    group: end("239.0.0.1", 0).ip,
                    exclude: true,
                    sources: Vec::new(),
                }],
            }],
            ..Sockets::default()
        }
    }

    #[test]
    fn what_a_dump_makes_is_sound() {
        assert_eq!(sound().check(), Ok(()));
    }

    #[test]
    fn what_no_dump_makes_is_named() {
        type Spoil = fn(&mut Sockets);
        let cases: [(&str, Spoil); 30] = [
            ("no descriptor holds it", |s| {
                s.tcp[0].common.holders.clear()
            }),
            ("holds another socket too", |s| {
                s.udp[0].common = common(&[3])
            }),
            ("does not fit its sequence numbers", |s| {
                s.tcp[0].send.clear()
            }),
            ("sent more than it has written", |s| s.tcp[0].snd_nxt = 4),
            ("window scale exceeds 14", |s| {
                s.tcp[0].wscale = Some((15, 0))
            }),
            ("window exceeds 1 GiB", |s| {
                s.tcp[0].window.rcv_wnd = u32::MAX
            }),
            ("a port is 0", |s| s.tcp[0].peer.port = 0),
            ("different families", |s| {
                s.tcp[0].peer = end("2001:db8::1", 1)
            }),
            ("there are two of it", |s| s.waiting[0].peer.port = 1000),
            ("and a descriptor holds it", |s| {
                s.waiting[0].common = common(&[9])
            }),
            ("and has something to send", |s| {
                s.waiting[0] = tcp(&[], 1001)
            }),
            ("and nobody listens there", |s| s.listeners.clear()),
            ("closed it, and a descriptor holds it", |s| {
                s.orphans[0].common = common(&[9])
            }),
            ("bytes that nobody would read", |s| {
                s.orphans[0].recv = b"unread".to_vec()
            }),
            ("bytes to send before that", |s| {
                s.orphans[0] = tcp(&[], 1002);
                s.orphans[0].state = TcpState::FinWait2;
            }),
            ("bytes to send before that", |s| {
                s.time_wait[0] = tcp(&[], 1003);
                s.time_wait[0].state = TcpState::FinWait2;
            }),
            ("does not fit its sequence numbers", |s| {
                s.orphans[1].send.push(b'e')
            }),
            ("sent more than it has written", |s| {
                s.orphans[1].snd_nxt = 4
            }),
            ("it has sent no FIN", |s| {
                s.orphans[0].state = TcpState::CloseWait
            }),
            ("it has sent no FIN", |s| {
                s.time_wait[0].state = TcpState::Closing
            }),
            ("there are two of it", |s| s.time_wait[0].peer.port = 1002),
            ("a port is 0", |s| s.connecting[0].local.port = 0),
            ("a port is 0", |s| s.half_open[0].peer.port = 0),
            ("there are two of it", |s| s.half_open[0].peer.port = 1002),
            ("different families", |s| {
                s.half_open[0].peer = end("2001:db8::1", 1)
            }),
            ("in a SYN queue, and nobody listens", |s| {
                s.half_open[0].local.port = 81
            }),
            ("there are two of it", |s| {
                s.connecting[0].local = s.tcp[0].local;
                s.connecting[0].peer = s.tcp[0].peer;
            }),
            ("a datagram exceeds 64 KiB", |s| {
                s.udp[0].queue[0].data = vec![0; 70_000]
            }),
            ("a multicast group is none", |s| {
                s.udp[0].groups[0].group = end("192.0.2.1", 0).ip;
            }),
            ("a key is longer than keys are", |s| {
                s.tcp[0].common.keys = vec![Key {
                    ip: end("192.0.2.1", 0).ip,
                    prefix: 32,
                    key: vec![0; 81],
                }];
            }),
        ];
        for (what, spoil) in cases {
            let mut image = sound();
            spoil(&mut image);
            let said = image.check().expect_err(what).to_string();
            assert!(said.contains(what), "{said}, not {what}");
        }
    }
}
