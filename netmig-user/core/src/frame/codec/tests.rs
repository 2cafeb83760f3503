use super::*;
use crate::{
    frame::{
        FileBegin, FileEnd, HeldPacket, HoldBegin, HoldDone, HoldMark, HoldPoint, PageRefs, PageRun,
    },
    id::{Epoch, Life, MoveId},
    proto::{Channel, Hello, Numbered, ToTarget, Word},
};
use proptest::prelude::*;

fn samples() -> Vec<Frame> {
    let hello = Hello {
        protocol: 1,
        version: "0.1.0".into(),
        mv: MoveId([7; 16]),
        life: Life {
            epoch: Epoch(2),
            nonce: 11,
        },
        peer: Some(Life {
            epoch: Epoch(1),
            nonce: 12,
        }),
        channel: Channel::Control,
        last_seen: 3,
        word: Word::Undecided,
    };
    vec![
        Frame::Hello(Box::new(hello)),
        Frame::ToTarget(Box::new(Numbered {
            seq: 1,
            ack: 0,
            body: Some(ToTarget::Grant(Epoch(2))),
        })),
        Frame::ToSource(Box::new(Numbered {
            seq: 0,
            ack: 9,
            body: None,
        })),
        Frame::FileBegin(FileBegin {
            file: 1,
            path: "pages-1.img".parse().unwrap(),
            mode: 0o600,
            offset: 0,
        }),
        Frame::Chunk(Chunk {
            file: 1,
            offset: 4096,
            data: Bytes::from(vec![0xa5; 5000]),
        }),
        Frame::FileEnd(FileEnd {
            file: 1,
            length: 9096,
            crc: 0xdead_beef,
        }),
        Frame::HoldBegin(HoldBegin {
            limit: u64::MAX,
            barrier_us: u64::MAX,
        }),
        Frame::Held(Held {
            packets: [(0, 24), (7, 70_000), (u16::MAX, 24)]
                .map(|(link, length)| HeldPacket {
                    link,
                    data: Bytes::from(vec![0x5a; length]),
                })
                .to_vec(),
        }),
        Frame::HoldMark(HoldMark {
            point: HoldPoint::Ended,
            packets: u64::MAX,
        }),
        Frame::HoldDone(HoldDone {
            received: u64::MAX,
            direct: u64::MAX,
            replayed: u64::MAX,
            dropped: [u64::MAX; 4],
            late: true,
        }),
        Frame::Pages(Bytes::from(vec![0x5a; 2 * PAGE])),
        Frame::PageRefs(PageRefs {
            file: 1,
            offset: 8192,
            runs: vec![
                PageRun { first: 1, count: 1 },
                PageRun { first: 0, count: 2 },
            ],
        }),
    ]
}

fn encoded(frames: &[Frame]) -> BytesMut {
    let mut bytes = BytesMut::new();
    frames
        .iter()
        .for_each(|frame| Codec::default().encode(frame, &mut bytes).unwrap());
    bytes
}

#[test]
fn frames_come_back_however_the_stream_is_cut() {
    let (frames, bytes) = (samples(), encoded(&samples()));
    for step in [1, 7, 16, 1000, bytes.len()] {
        let (mut codec, mut read, mut back) = (Codec::default(), BytesMut::new(), Vec::new());
        for part in bytes.chunks(step) {
            read.extend_from_slice(part);
            while let Some(frame) = codec.decode(&mut read).unwrap() {
                back.push(frame);
            }
        }
        assert_eq!(back, frames);
        assert!(read.is_empty());
    }
}

#[test]
fn a_hostile_length_allocates_nothing() {
    for kind in Kind::ALL {
        let length = U32::from(kind.limit() as u32 + 1);
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            kind: (kind as u16).into(),
            length,
            crc: 0.into(),
        };
        let mut bytes = BytesMut::from(header.as_bytes());
        let before = bytes.capacity();
        assert!(matches!(
            Codec::default().decode(&mut bytes),
            Err(Error::TooLong { .. })
        ));
        assert_eq!(bytes.capacity(), before);
    }
}

#[test]
fn a_body_that_promises_more_than_it_has_is_refused() {
    // A Failed message whose `left` claims 2^40 entries.
    let mut body = vec![1, 0, 1, 5, 0];
    body.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x20]);
    let mut bytes = BytesMut::new();
    put_parts(Kind::ToSource, &[&body], &mut bytes).unwrap();
    assert!(matches!(
        Codec::default().decode(&mut bytes),
        Err(Error::Body { .. })
    ));
}

#[test]
fn what_is_not_ours_is_named() {
    let mut banner = BytesMut::from(&b"Welcome to host b\n"[..]);
    assert!(matches!(Codec::default().decode(&mut banner), Err(Error::Magic(m)) if &m == b"Welc"));
    let mut newer = encoded(&samples()[..1]);
    newer[4] = 2;
    assert!(matches!(
        Codec::default().decode(&mut newer),
        Err(Error::Version(2))
    ));
    let mut unknown = encoded(&samples()[..1]);
    unknown[6] = 99;
    assert!(matches!(
        Codec::default().decode(&mut unknown),
        Err(Error::Kind(99))
    ));
    let mut longer = BytesMut::new();
    put_parts(Kind::FileEnd, &[&[1, 1, 1, 1]], &mut longer).unwrap();
    assert!(matches!(
        Codec::default().decode(&mut longer),
        Err(Error::Length {
            kind: Kind::FileEnd
        })
    ));
    let mut headless = BytesMut::new();
    put_parts(Kind::Chunk, &[&[1, 2, 3]], &mut headless).unwrap();
    assert!(matches!(
        Codec::default().decode(&mut headless),
        Err(Error::Length { kind: Kind::Chunk })
    ));
}

#[test]
fn a_part_of_a_page_is_refused() {
    let mut bytes = BytesMut::new();
    put_parts(Kind::Pages, &[&[0; PAGE + 1]], &mut bytes).unwrap();
    assert!(matches!(
        Codec::default().decode(&mut bytes),
        Err(Error::Length { kind: Kind::Pages })
    ));
}

#[test]
fn the_longest_list_of_runs_fits() {
    let run = PageRun {
        first: u32::MAX,
        count: u32::MAX,
    };
    let frame = |runs| {
        Frame::PageRefs(PageRefs {
            file: u32::MAX,
            offset: u64::MAX,
            runs: vec![run; runs],
        })
    };
    let mut bytes = encoded(&[frame(RUNS_LIMIT)]);
    assert_eq!(
        Codec::default().decode(&mut bytes).unwrap(),
        Some(frame(RUNS_LIMIT))
    );
}

#[test]
fn too_long_a_chunk_is_not_sent() {
    let frame = Frame::Chunk(Chunk {
        file: 0,
        offset: 0,
        data: Bytes::from(vec![0; CHUNK_LIMIT + 1]),
    });
    let mut bytes = BytesMut::new();
    assert!(matches!(
        Codec::default().encode(&frame, &mut bytes),
        Err(Error::TooLong { .. })
    ));
    assert!(bytes.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// One changed byte anywhere never yields another frame than those that were sent.
    #[test]
    fn a_changed_byte_is_seen(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = encoded(&samples());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (mut codec, mut back) = (Codec::default(), Vec::new());
        let end = loop {
            match codec.decode(&mut bytes) {
                Ok(Some(frame)) => back.push(frame),
                end => break end,
            }
        };
        prop_assert!(back.len() < samples().len() && back[..] == samples()[..back.len()]);
        // Either an error, or a longer length that waits for bytes which never come.
        prop_assert!(end.is_err() || !bytes.is_empty() || codec.pending.is_some());
    }

    #[test]
    fn hostile_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = BytesMut::from(&bytes[..]);
        let mut codec = Codec::default();
        while let Ok(Some(_)) = codec.decode(&mut bytes) {}
    }

    /// The checksum does not stop whoever can compute it.
    #[test]
    fn hostile_bodies_do_not_panic(kind in prop::sample::select(&Kind::ALL[..]), body in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut bytes = BytesMut::new();
        put_parts(kind, &[&body], &mut bytes).unwrap();
        if let Ok(Some(frame)) = Codec::default().decode(&mut bytes) {
            let again = encoded(std::slice::from_ref(&frame));
            prop_assert_eq!(Codec::default().decode(&mut again.clone()).unwrap(), Some(frame));
        }
    }
}

#[test]
fn held_packets_beyond_the_end_of_their_frame_are_refused() {
    let whole = Held {
        packets: vec![
            HeldPacket {
                link: 1,
                data: Bytes::from_static(&[1; 30]),
            };
            2
        ],
    };
    let body = whole.encode();
    assert_eq!(body.len(), 2 * Held::room(&[1; 30]));
    assert_eq!(Held::decode(body.clone().freeze()), Some(whole));
    for cut in 1..body.len() {
        let bytes = Bytes::copy_from_slice(&body[..cut]);
        assert_eq!(Held::decode(bytes).is_some(), cut == 36, "{cut}");
    }
    // A length of 4 GiB takes nothing.
    let mut claims = vec![0, 0];
    claims.extend(u32::MAX.to_le_bytes());
    assert_eq!(Held::decode(Bytes::from(claims)), None);
    assert_eq!(Held::decode(Bytes::new()), Some(Held::default()));
}

#[test]
fn more_held_packets_than_a_frame_takes_are_not_written() {
    let packet = HeldPacket {
        link: 0,
        data: Bytes::from(vec![0; 65_000]),
    };
    let held = Held {
        packets: vec![packet; 17],
    };
    let mut bytes = BytesMut::new();
    assert!(matches!(
        Codec::default().encode(Frame::Held(held), &mut bytes),
        Err(Error::TooLong {
            kind: Kind::Held,
            ..
        })
    ));
    assert!(bytes.is_empty());
}
