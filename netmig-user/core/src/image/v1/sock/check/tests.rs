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
                data: vec![0; 10].into(),
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
            s.udp[0].queue[0].data = vec![0; 70_000].into()
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
