//! Version 1 of what crosses the wire and lies in journals, byte for byte.
//!
//! A difference here is a difference to hosts and journals that are out there: it needs a new version, not a new file. Only to add samples,
//! `NETMIG_BLESS=1 cargo test -p netmig-core --test golden_v1` writes the files anew.
use bytes::{Bytes, BytesMut};
use netmig_core::{
    frame::{
        Chunk, Codec, FileBegin, FileEnd, FileGot, Frame, Held, HeldPacket, HoldBegin, HoldDone,
        HoldMark, HoldPoint,
    },
    id::{Epoch, Life, MoveId},
    image::v1::sock,
    journal,
    machine::{source, target},
    proto::{Answer, Channel, Hello, HostFacts, Numbered, ToSource, ToTarget, Word},
};
use std::{env, fs, path::PathBuf};
use tokio_util::codec::{Decoder, Encoder};

fn hello(channel: Channel, peer: Option<Life>) -> Frame {
    Frame::Hello(Box::new(Hello {
        protocol: 1,
        version: "0.1.0".into(),
        mv: MoveId(*b"0123456789abcdef"),
        life: Life {
            epoch: Epoch(2),
            nonce: 0x1122_3344_5566_7788,
        },
        peer,
        channel,
        last_seen: 300,
        word: Word::Granted,
    }))
}

fn to_target(seq: u64, body: Option<ToTarget>) -> Frame {
    Frame::ToTarget(Box::new(Numbered { seq, ack: 7, body }))
}

fn to_source(seq: u64, body: Option<ToSource>) -> Frame {
    Frame::ToSource(Box::new(Numbered { seq, ack: 9, body }))
}

fn frames() -> Vec<Frame> {
    let answer = Answer {
        facts: HostFacts {
            hostname: "b".into(),
            arch: "x86_64".into(),
            kernel: "6.18.1".into(),
            criu: Some("4.2.1".into()),
            tools: vec![("podman".into(), "5.4.2".into())],
            cpu_flags: vec!["avx".into(), "sse4_2".into()],
            cgroup: 2,
            lsm: vec!["landlock".into()],
            free_bytes: 1 << 40,
            run_free_bytes: 1 << 33,
            memory_available_bytes: 1 << 34,
        },
        objections: vec!["there is no bridge br0".into()],
        warnings: vec!["rsync is not there".into()],
        lacks_image: true,
        shared: vec!["192.0.2.50".parse().unwrap()],
    };
    let why = || "cancelled by the operator".to_owned();
    vec![
        hello(Channel::Control, None),
        hello(
            Channel::Bulk,
            Some(Life {
                epoch: Epoch(1),
                nonce: 5,
            }),
        ),
        hello(
            Channel::Rsync {
                args: vec!["--server".into(), ".".into()],
            },
            None,
        ),
        to_target(1, Some(ToTarget::Round(2))),
        to_target(
            2,
            Some(ToTarget::Dumped {
                files: 12,
                bytes: 1 << 33,
            }),
        ),
        to_target(3, Some(ToTarget::Grant(Epoch(2)))),
        to_target(4, Some(ToTarget::Abort { why: why() })),
        to_target(5, Some(ToTarget::Finish)),
        to_target(0, None),
        to_source(1, Some(ToSource::Answer(Box::new(answer)))),
        to_source(2, Some(ToSource::Ready)),
        to_source(3, Some(ToSource::Prepared { rebuild_us: 75_000 })),
        to_source(4, Some(ToSource::Released)),
        to_source(
            5,
            Some(ToSource::Opened {
                open_us: 1_800,
                announce_us: 3,
                warnings: vec!["no health check".into()],
            }),
        ),
        to_source(
            6,
            Some(ToSource::Failed {
                why: why(),
                left: vec!["/run/crun/c".into()],
            }),
        ),
        to_source(0, None),
        Frame::FileBegin(FileBegin {
            file: 1,
            path: "criu/pages-1.img".parse().unwrap(),
            mode: 0o600,
            offset: 0,
        }),
        Frame::Chunk(Chunk {
            file: 1,
            offset: 4096,
            data: Bytes::from_static(b"page"),
        }),
        Frame::FileEnd(FileEnd {
            file: 1,
            length: 4100,
            crc: 0xdead_beef,
        }),
        Frame::FileGot(FileGot {
            path: "criu/pages-1.img".parse().unwrap(),
            length: 4100,
        }),
        hello(Channel::Hold, None),
        hello(Channel::Image, None),
        hello(Channel::Measure, None),
        Frame::HoldBegin(HoldBegin {
            limit: 64 << 20,
            barrier_us: 20_000,
        }),
        Frame::Held(Held {
            packets: vec![
                HeldPacket {
                    link: 1,
                    data: Bytes::from_static(b"header....and an Ethernet frame"),
                },
                HeldPacket {
                    link: 2,
                    data: Bytes::from_static(b"and one on another link"),
                },
            ],
        }),
        Frame::HoldMark(HoldMark {
            point: HoldPoint::Announced,
            packets: 300,
        }),
        Frame::HoldMark(HoldMark {
            point: HoldPoint::Ended,
            packets: 301,
        }),
        Frame::HoldDone(HoldDone {
            received: 301,
            direct: 5,
            replayed: 306,
            dropped: [0, 1, 2, 3],
            late: true,
        }),
    ]
}

/// A connection in some state, with everything that a field can hold.
fn connection(port: u16, state: sock::TcpState, fds: &[i32]) -> sock::Tcp {
    sock::Tcp {
        common: common(fds),
        state,
        shut_read: true,
        local: end("192.0.2.10", port),
        peer: end("192.0.2.1", 50_000),
        snd_una: u32::MAX,
        snd_nxt: 2,
        write_seq: 4,
        rcv_nxt: 0x8000_0001,
        send: b"abcde".to_vec(),
        recv: b"unread".to_vec(),
        mss: 1460,
        snd_mss: 1448,
        wscale: Some((7, 9)),
        sack: true,
        timestamps: true,
        ecn: true,
        timestamp: 0x1234_5679,
        window: sock::Window {
            snd_wl1: 1,
            snd_wnd: 2,
            max_window: 3,
            rcv_wnd: 4,
            rcv_wup: 5,
        },
        peer_window: 65_535,
        ts_recent: Some(77),
        congestion: "cubic".into(),
        cwnd: 10,
        ssthresh: 0x7fff_ffff,
        rtt: 20_000,
        window_clamp: 1 << 20,
    }
}

fn common(fds: &[i32]) -> sock::Common {
    sock::Common {
        holders: fds.iter().map(|&fd| sock::Holder { pid: 1, fd }).collect(),
        inode: 1 << 40,
        v6: false,
        reuseaddr: 1,
        reuseport: 0,
        device: "eth0".into(),
        sndbuf: 87_040,
        rcvbuf: 131_072,
        buf_lock: 2,
        settings: vec![sock::Setting {
            level: 6,
            name: 1,
            value: vec![1, 0, 0, 0],
        }],
        keys: vec![sock::Key {
            ip: "192.0.2.0".parse().unwrap(),
            prefix: 24,
            key: b"secret".to_vec(),
        }],
    }
}

fn end(ip: &str, port: u16) -> sock::Endpoint {
    sock::Endpoint {
        ip: ip.parse().unwrap(),
        port,
        scope: u32::from(ip.starts_with("fe80")) * 2,
    }
}

fn sockets() -> sock::Sockets {
    use sock::TcpState::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck};
    let states = [Established, CloseWait, FinWait1, FinWait2, Closing, LastAck];
    let unheld = |port, state| sock::Tcp {
        send: Vec::new(),
        recv: Vec::new(),
        snd_una: 4,
        snd_nxt: 4,
        ..connection(port, state, &[])
    };
    sock::Sockets {
        kernel: (6, 12),
        interfaces: vec![sock::Interface {
            index: 2,
            name: "eth0".into(),
        }],
        tcp: (0_u16..)
            .zip(states)
            .map(|(i, state)| connection(80 + i, state, &[i32::from(i) * 2, i32::from(i) * 2 + 1]))
            .collect(),
        connecting: vec![sock::Connecting {
            common: common(&[20]),
            local: end("fe80::a", 40_000),
            peer: end("fe80::1", 443),
            isn: 7,
            timestamp: 9,
            sent_ms: 300,
            congestion: "bbr".into(),
        }],
        waiting: vec![unheld(90, CloseWait)],
        orphans: vec![unheld(91, LastAck)],
        time_wait: vec![sock::Tcp {
            wscale: None,
            ts_recent: None,
            ..unheld(92, FinWait2)
        }],
        listeners: vec![sock::Listener {
            common: common(&[21]),
            local: end("::", 90),
            backlog: 511,
            waiting: 1,
        }],
        udp: vec![sock::Udp {
            common: common(&[22]),
            lite: true,
            local: end("0.0.0.0", 53),
            peer: Some(end("192.0.2.1", 53)),
            queue: vec![sock::Datagram {
                from: end("192.0.2.1", 53),
                to: "192.0.2.10".parse().unwrap(),
                ttl: 64,
                tos: 0x10,
                data: b"query".to_vec().into(),
            }],
            lost: 3,
            groups: vec![sock::Membership {
                interface: 2,
                group: "ff15::1".parse().unwrap(),
                exclude: true,
                sources: vec!["2001:db8::5".parse().unwrap()],
            }],
        }],
        pairs: vec![(0, 1)],
        over: vec![sock::Over {
            common: common(&[23]),
            local: end("::ffff:192.0.2.10", 80),
            recv: b"unread".to_vec(),
            failed: true,
        }],
        half_open: vec![sock::HalfOpen {
            local: end("::ffff:192.0.2.10", 90),
            peer: end("::ffff:192.0.2.1", 40_001),
            isn: 11,
            peer_isn: 12,
            window: 65_160,
            mss: 1460,
            wscale: Some((7, 9)),
            sack: true,
            ecn: false,
            ts_recent: Some(13),
            timestamp: 14,
        }],
        left: vec![sock::Left {
            socket: "tcp syn-recv".into(),
            why: "the peer repeats its SYN".into(),
        }],
    }
}

fn source_records() -> Vec<source::Record> {
    use source::Record::*;
    vec![
        Begun(Epoch(1)),
        Disarmed,
        Granted,
        Released,
        Kept("the lease ran out".into()),
        Closed,
    ]
}

fn target_records() -> Vec<target::Record> {
    use target::Record::*;
    vec![
        Begun(Epoch(1)),
        Prepared,
        Granted,
        Released,
        Failed("criu died".into()),
        Closed,
    ]
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for frame in frames {
        Codec::default().encode(frame, &mut bytes).unwrap();
    }
    bytes.to_vec()
}

fn journal_of<T: serde::Serialize>(records: &[T]) -> Vec<u8> {
    let records = records
        .iter()
        .flat_map(|record| journal::encode(record).unwrap());
    journal::HEADER.into_iter().chain(records).collect()
}

/// The checked-in bytes, which must be those given.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if env::var_os("NETMIG_BLESS").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    let known = fs::read(&path).unwrap_or_else(|e| panic!("reading {}: {e}", path.display()));
    assert_eq!(known, bytes, "{name} is no longer what version 1 wrote");
    known
}

#[test]
fn frames_of_version_1() {
    let known = golden("v1.frames", &encoded(&frames()));
    let (mut codec, mut bytes) = (Codec::default(), BytesMut::from(&known[..]));
    let decoded: Vec<_> = std::iter::from_fn(|| codec.decode(&mut bytes).unwrap()).collect();
    assert_eq!(decoded, frames());
}

#[test]
fn sockets_of_version_1() {
    let frame = to_target(6, Some(ToTarget::Sockets(Box::new(sockets()))));
    let known = golden("v1.sockets", &encoded(std::slice::from_ref(&frame)));
    let decoded = Codec::default().decode(&mut BytesMut::from(&known[..]));
    assert_eq!(decoded.unwrap(), Some(frame));
}

#[test]
fn journals_of_version_1() {
    let known = golden("v1.source.journal", &journal_of(&source_records()));
    assert_eq!(
        journal::decode::<source::Record>(&known).unwrap().records,
        source_records()
    );
    let known = golden("v1.target.journal", &journal_of(&target_records()));
    assert_eq!(
        journal::decode::<target::Record>(&known).unwrap().records,
        target_records()
    );
}
