//! The keeper over packets built with etherparse.
use etherparse::{
    Ipv4Header, PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice,
};
use proptest::prelude::*;
use std::time::Duration;

use netmig_common::{Direction::Inbound, FlowKey, Mode, Protocol, Side};

use super::{
    lab::{Capture, FIRST, host_side, lab, reaches},
    packets::{self, Ip, Outbound, Programs, TC_ACT_SHOT, TC_ACT_UNSPEC, read},
};
use crate::gate::{
    Gate,
    hold::Packet,
    keeper::{BEYOND, Keeper, Known, Took},
};

const SEQ: u32 = u32::MAX - 2000;
const SENT: u32 = 77_000;
const STAMP: u32 = 9000;
const ROOM: u32 = 50_000;

fn known() -> Known {
    Known {
        snd_una: SENT - 100,
        snd_nxt: SENT,
        rcv_nxt: SEQ,
        edge: SEQ.wrapping_add(ROOM),
        max_window: 60_000,
        stamp: Some(STAMP),
        rcv_wscale: 7,
        rcv_mss: 1448,
        received: 0,
    }
}

fn key(ip: Ip) -> FlowKey {
    packets::key(ip, 80, 5000)
}

fn keeper(known: Known) -> Keeper {
    Keeper::new([Ip::V4, Ip::V6].map(|ip| (key(ip), known)))
}

/// A segment of the peer, `at` bytes after what the container expects.
struct Sent {
    ip: Ip,
    header: TcpHeader,
    payload: usize,
}

fn sent(at: i32, payload: usize) -> Sent {
    let mut header = TcpHeader::new(5000, 80, SEQ.wrapping_add_signed(at), 500);
    header.ack = true;
    header.acknowledgment_number = SENT;
    stamped(&mut header, 400);
    Sent {
        ip: Ip::V4,
        header,
        payload,
    }
}

fn stamped(header: &mut TcpHeader, tsval: u32) {
    let options = [
        TcpOptionElement::Noop,
        TcpOptionElement::Noop,
        TcpOptionElement::Timestamp(tsval, 8999),
    ];
    header.set_options(&options).expect("room");
}

impl Sent {
    fn with(mut self, change: impl FnOnce(&mut TcpHeader)) -> Self {
        change(&mut self.header);
        self
    }

    fn frame(&self) -> Vec<u8> {
        let payload: Vec<u8> = (0..self.payload).map(|n| n as u8).collect();
        packets::tcp(self.ip, Inbound, &self.header, &payload)
    }

    fn packet(&self) -> Packet {
        held(&self.frame(), 0)
    }
}

fn held(frame: &[u8], flags: u8) -> Packet {
    let mut bytes = vec![flags, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(frame);
    Packet::from_bytes(bytes).expect("a packet")
}

fn owns(took: Took) -> bool {
    matches!(took, Took::Own(_))
}

fn answers(took: Took) -> bool {
    matches!(took, Took::Answer(_))
}

#[test]
fn payload_in_order_is_owned_and_acknowledged_with_window_0() {
    for ip in [Ip::V4, Ip::V6] {
        let mut keeper = keeper(known());
        let segment = Sent {
            ip,
            ..sent(0, 3001)
        };
        assert_eq!(keeper.take(&segment.packet()), Took::Own(key(ip)));
        let answer = keeper.answer(&key(ip)).expect("an answer");
        assert_eq!(answer[..6], segment.frame()[6..12], "back to the sender");
        assert_eq!(answer[6..12], segment.frame()[..6]);
        let seen = read(&answer);
        let header = &seen.header;
        assert_eq!(header.checksum, seen.checksum);
        assert_eq!((header.source_port, header.destination_port), (80, 5000));
        assert_eq!(header.sequence_number, SENT);
        assert_eq!(
            header.acknowledgment_number,
            SEQ.wrapping_add(3001),
            "across the wrap"
        );
        assert_eq!((header.window_size, header.ack), (0, true));
        assert!(!(header.rst || header.fin || header.syn));
        let stamps = header.options_iterator().find_map(|o| match o {
            Ok(TcpOptionElement::Timestamp(own, theirs)) => Some((own, theirs)),
            _ => None,
        });
        assert_eq!(stamps, Some((STAMP, 400)));
        let [promise] = keeper.promises()[..] else {
            panic!("one promise")
        };
        assert_eq!(
            (promise.key, promise.next, promise.packets),
            (key(ip), SEQ.wrapping_add(3001), 1)
        );
    }
}

#[test]
fn an_ipv4_answer_has_a_right_header() {
    let mut keeper = keeper(known());
    keeper.take(&sent(0, 10).packet());
    let answer = keeper.answer(&key(Ip::V4)).expect("an answer");
    let (header, _) = Ipv4Header::from_slice(&answer[14..]).expect("a header");
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert_eq!(header.source, packets::CONTAINER4);
    assert_eq!(usize::from(header.total_len), answer.len() - 14);
}

#[test]
fn an_answer_keeps_tags_and_needs_no_stamps() {
    let mut keeper = keeper(Known {
        stamp: None,
        ..known()
    });
    let plain = sent(0, 10).with(|h| h.set_options(&[]).expect("none"));
    let frame = packets::tagged(&plain.frame(), &[0x88a8, 0x8100]);
    assert!(owns(keeper.take(&held(&frame, 0))));
    let answer = keeper.answer(&key(Ip::V4)).expect("an answer");
    assert_eq!(answer[12..22], frame[12..22]);
    let sliced = SlicedPacket::from_ethernet(&answer).expect("a packet");
    assert!(matches!(sliced.transport, Some(TransportSlice::Tcp(tcp)) if tcp.options().is_empty()));
}

#[test]
fn probes_and_old_payload_are_answered_and_not_owned() {
    for probe in [sent(-1, 0), sent(-1, 1), sent(-500, 500), sent(-500, 0)] {
        let mut keeper = keeper(known());
        assert!(answers(keeper.take(&probe.packet())), "{:?}", probe.header);
        let answer = keeper.answer(&key(Ip::V4)).expect("an answer");
        assert_eq!(read(&answer).header.acknowledgment_number, SEQ);
        assert!(keeper.promises().is_empty() && keeper.answered().len() == 1);
    }
}

#[test]
fn what_must_not_be_answered_is_not() {
    let others = [
        ("a pure ACK", sent(0, 0)),
        ("a FIN", sent(0, 0).with(|h| h.fin = true)),
        ("a FIN that comes again", sent(-1, 0).with(|h| h.fin = true)),
        ("RST", sent(-5, 0).with(|h| h.rst = true)),
        ("a SYN", sent(0, 5).with(|h| h.syn = true)),
        ("no ACK", sent(0, 5).with(|h| h.ack = false)),
        (
            "an ACK of what was not sent",
            sent(0, 5).with(|h| h.acknowledgment_number = SENT + 1),
        ),
        (
            "an ACK from long ago",
            sent(0, 5).with(|h| h.acknowledgment_number = SENT - 70_000),
        ),
        (
            "no stamp",
            sent(0, 5).with(|h| h.set_options(&[]).expect("none")),
        ),
        ("urgent", sent(0, 5).with(|h| h.urg = true)),
        (
            "another connection",
            sent(0, 5).with(|h| h.source_port = 5001),
        ),
        (
            "MD5",
            sent(0, 5).with(|h| {
                let mut option = [0; 20];
                option[..2].copy_from_slice(&[19, 18]);
                h.set_options_raw(&option).expect("room");
            }),
        ),
    ];
    for (what, segment) in others {
        let mut keeper = keeper(known());
        assert_eq!(keeper.take(&segment.packet()), Took::Nothing, "{what}");
        assert!(keeper.answer(&key(Ip::V4)).is_none(), "{what}");
    }
}

#[test]
fn a_wrong_checksum_is_owned_by_nobody_unless_it_was_verified_or_is_to_be_made() {
    let mut frame = sent(0, 5).frame();
    let last = frame.len() - 1;
    frame[last] ^= 1;
    assert_eq!(keeper(known()).take(&held(&frame, 0)), Took::Nothing);
    for flags in [1, 2] {
        assert!(owns(keeper(known()).take(&held(&frame, flags))), "{flags}");
    }
}

#[test]
fn a_hole_waits_until_the_sockets_were_read_for_certain() {
    let mut keeper = keeper(known());
    let hole = sent(1000, 100);
    assert_eq!(keeper.take(&hole.packet()), Took::Ahead(key(Ip::V4)));
    // What had passed the gate before it closed is in now.
    let now = Known {
        rcv_nxt: SEQ.wrapping_add(400),
        edge: SEQ.wrapping_add(ROOM),
        ..known()
    };
    assert!(keeper.again([(key(Ip::V4), now)], true).is_empty());
    assert!(answers(keeper.take(&sent(1000, 100).packet())));
    let answer = keeper.answer(&key(Ip::V4)).expect("an answer");
    assert_eq!(
        read(&answer).header.acknowledgment_number,
        SEQ.wrapping_add(400)
    );
    assert!(
        owns(keeper.take(&sent(300, 100 + 600).packet())),
        "overlaps"
    );
    assert_eq!(keeper.promises()[0].next, SEQ.wrapping_add(1100));
}

#[test]
fn what_is_behind_a_hole_is_owned_once_that_is_filled() {
    let mut keeper = keeper(known());
    let stamp = |segment: Sent, n| segment.with(|h| stamped(h, n));
    for (at, length) in [(300, 100), (100, 100), (350, 150), (600, 10)] {
        let early = stamp(sent(at, length), 400);
        assert_eq!(keeper.take(&early.packet()), Took::Ahead(key(Ip::V4)));
    }
    let beyond = stamp(sent(ROOM as i32, 1), 400);
    keeper.take(&beyond.packet());
    assert!(owns(keeper.take(&stamp(sent(0, 100), 401).packet())));
    let behind = |packets: Vec<Packet>, at: &[(i32, usize)]| {
        let wanted: Vec<_> = at
            .iter()
            .map(|(at, n)| stamp(sent(*at, *n), 400).packet())
            .collect();
        assert_eq!(packets, wanted);
    };
    behind(keeper.filled(), &[(100, 100)]);
    assert_eq!(keeper.promises()[0].next, SEQ.wrapping_add(200));
    assert!(owns(keeper.take(&stamp(sent(200, 100), 402).packet())));
    behind(keeper.filled(), &[(300, 100), (350, 150)]);
    let [promise] = keeper.promises()[..] else {
        panic!("one promise")
    };
    assert_eq!((promise.next, promise.packets), (SEQ.wrapping_add(500), 5));
    assert!(keeper.filled().is_empty());
}

#[test]
fn what_came_while_the_socket_was_behind_is_owned_when_it_is_read_again() {
    let mut keeper = keeper(known());
    let early = sent(400, 100).packet();
    assert_eq!(keeper.take(&early), Took::Ahead(key(Ip::V4)));
    let now = Known {
        rcv_nxt: SEQ.wrapping_add(400),
        ..known()
    };
    let owned = keeper.again([(key(Ip::V4), now)], false);
    assert_eq!(owned, [(key(Ip::V4), vec![early])]);
    let answer = keeper.answer(&key(Ip::V4)).expect("an answer");
    assert_eq!(
        read(&answer).header.acknowledgment_number,
        SEQ.wrapping_add(500)
    );
}

#[test]
fn a_socket_that_went_back_is_not_spoken_for() {
    let mut keeper = keeper(known());
    let back = Known {
        rcv_nxt: SEQ.wrapping_sub(1),
        ..known()
    };
    assert!(keeper.again([(key(Ip::V4), back)], true).is_empty());
    assert_eq!(keeper.take(&sent(0, 5).packet()), Took::Nothing);
}

#[test]
fn so_much_is_owned_beyond_the_announced_edge_and_no_more() {
    const STEP: usize = 1 << 15;
    let mut keeper = keeper(known());
    let mut end = ROOM as usize;
    assert!(owns(keeper.take(&sent(0, end).packet())), "to the edge");
    for _ in 0..BEYOND as usize / STEP {
        assert!(owns(keeper.take(&sent(end as i32, STEP).packet())));
        end += STEP;
    }
    let beyond = sent(end as i32, 1).with(|h| stamped(h, 401));
    assert!(answers(keeper.take(&beyond.packet())), "a probe");
    let answer = keeper.answer(&key(Ip::V4)).expect("an answer");
    assert_eq!(
        read(&answer).header.acknowledgment_number,
        SEQ.wrapping_add(end as u32)
    );
    let [(_, said)] = &keeper.trickle(true, false)[..] else {
        panic!("one answer")
    };
    assert_eq!(read(said).header.window_size, 0);
}

#[test]
fn a_peer_with_a_full_window_is_asked_for_a_segment() {
    for (room, asked) in [(0, true), (1447, true), (1448, false)] {
        let mut keeper = keeper(Known {
            edge: SEQ.wrapping_add(room),
            ..known()
        });
        assert!(
            keeper.trickle(true, false).is_empty(),
            "nothing has come yet"
        );
        assert!(answers(keeper.take(&sent(-1, 0).packet())));
        let answer = keeper.answer(&key(Ip::V4)).expect("an answer");
        assert_eq!(read(&answer).header.window_size, 0);
        let said = keeper.trickle(true, false);
        assert_eq!(said.len(), usize::from(asked), "{room}");
        for (_, frame) in said {
            assert_eq!(read(&frame).header.window_size, 512, "64 KiB, once");
            let again = keeper.trickle(true, false).remove(0).1;
            assert_eq!(read(&again).header.window_size, 1448 / 128 + 1);
            let late = keeper.trickle(true, true).remove(0).1;
            assert_eq!(read(&late).header.window_size, 512);
        }
        assert!(owns(keeper.take(&sent(0, 1448).packet())));
    }
}

#[test]
fn old_stamps_are_not_owned_and_probes_do_not_move_them() {
    let mut keeper = keeper(known());
    let forged = sent(-1, 0).with(|h| stamped(h, 1 << 30));
    assert!(answers(keeper.take(&forged.packet())));
    assert!(owns(keeper.take(&sent(0, 5).packet())));
    let older = sent(5, 5).with(|h| stamped(h, 399));
    assert_eq!(keeper.take(&older.packet()), Took::Nothing);
    assert!(owns(keeper.take(&sent(5, 5).packet())), "the same stamp");
}

#[test]
fn a_reset_counts_at_the_expected_place_alone() {
    let mut keeper = keeper(known());
    keeper.take(&sent(9, 0).with(|h| h.rst = true).packet());
    assert!(owns(keeper.take(&sent(0, 5).packet())));
    keeper.take(&sent(5, 0).with(|h| h.rst = true).packet());
    assert_eq!(keeper.take(&sent(5, 5).packet()), Took::Nothing);
    assert_eq!(keeper.promises().len(), 1, "what was promised stays so");
}

#[test]
fn who_has_sent_may_send_a_segment_now_and_then() {
    let mut keeper = keeper(known());
    keeper.take(&sent(-1, 0).packet());
    assert!(
        keeper.trickle(true, false).is_empty(),
        "it has sent nothing"
    );
    assert!(owns(keeper.take(&sent(0, 700).packet())));
    let [(_, answer)] = &keeper.trickle(true, false)[..] else {
        panic!("one answer")
    };
    let header = read(answer).header;
    assert_eq!(header.window_size, 1448 / 128 + 1, "a segment, scaled");
    assert_eq!(header.acknowledgment_number, SEQ.wrapping_add(700));
    assert!(owns(keeper.take(&sent(700, 1448).packet())));
    let closed = keeper.answer(&key(Ip::V4)).expect("an answer");
    assert_eq!(read(&closed).header.window_size, 0);
}

#[test]
fn where_no_segment_fits_a_peer_is_told_so_again() {
    let windows = |room: u32, fits: bool| -> Vec<u16> {
        let mut keeper = keeper(Known {
            edge: SEQ.wrapping_add(room).wrapping_sub(BEYOND),
            ..known()
        });
        assert!(owns(keeper.take(&sent(0, 100).packet())));
        let said = keeper.trickle(fits, false);
        let window = |(_, frame): &(_, Vec<u8>)| read(frame).header.window_size;
        said.iter().map(window).collect()
    };
    // Windows are multiples of 128 bytes.
    let segment = 1448 / 128 + 1;
    let least = u32::from(segment) * 128 + 100;
    assert_eq!(windows(least, true), [segment]);
    assert_eq!(windows(least - 1, true), [0]);
    assert_eq!(windows(least, false), [0], "the hold is full");
}

#[test]
fn stamps_go_with_the_containers_clock() {
    const LATER: Duration = Duration::from_millis(300);
    for (stamp, then) in [(STAMP, STAMP + 300), (STAMP | 1, (STAMP | 1) + 300_000)] {
        let mut keeper = keeper(Known {
            stamp: Some(stamp),
            ..known()
        });
        assert!(owns(keeper.take(&sent(0, 700).packet())));
        let stamps = |keeper: &mut Keeper| {
            let answer = keeper.answer(&key(Ip::V4)).expect("an answer");
            let trickle = keeper.trickle(true, false).remove(0).1;
            [answer, trickle].map(|frame| {
                read(&frame)
                    .header
                    .options_iterator()
                    .find_map(|option| match option {
                        Ok(TcpOptionElement::Timestamp(tsval, _)) => Some(tsval),
                        _ => None,
                    })
                    .expect("a stamp")
            })
        };
        assert_eq!(stamps(&mut keeper), [stamp; 2]);
        keeper.passed(LATER);
        assert_eq!(stamps(&mut keeper), [then; 2]);
    }
}

#[test]
fn a_fragment_or_a_datagram_is_nothing() {
    let mut fragment = sent(0, 5).frame();
    fragment[20] = 0x20;
    assert_eq!(keeper(known()).take(&held(&fragment, 2)), Took::Nothing);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(packets::PEER4, packets::CONTAINER4, 64)
        .udp(5000, 80)
        .write(&mut frame, b"datagram")
        .expect("a packet");
    assert_eq!(keeper(known()).take(&held(&frame, 2)), Took::Nothing);
}

/// The gate at the container's link on a bridge with a peer, and a frame from the container to that peer.
fn frame_to(peer_mac: &str) -> Vec<u8> {
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(peer_mac.split(':')) {
        *byte = u8::from_str_radix(text, 16).expect("a MAC");
    }
    let mut header = TcpHeader::new(80, 5000, SENT, 0);
    header.ack = true;
    header.acknowledgment_number = SEQ;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], mac)
        .ipv4([192, 0, 2, 10], [192, 0, 2, 11], 64)
        .tcp_header(header)
        .write(&mut frame, b"")
        .expect("a packet");
    frame
}

fn came(capture: &Capture, frame: &[u8]) -> bool {
    (0..20).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        capture.frames().iter().any(|seen| seen == frame)
    })
}

#[test]
fn an_answer_leaves_as_the_containers_own_until_the_grant() {
    lab(|lab| {
        lab.bridge(&["moving", "peer"]);
        // Links that have just come up may lose the first question for an address.
        assert!((0..5).any(|_| reaches(Some("peer"), "192.0.2.10")));
        let point = host_side("h-moving");
        let gate = Gate::attach(
            super::lab::MOVE,
            Side::Source,
            Mode::Closed,
            FIRST,
            std::slice::from_ref(&point),
            &lab.pins("gate"),
        )
        .expect("a gate");
        let mac = super::lab::run("ip -n peer -br link show eth0 | awk '{print $3}'");
        let frame = frame_to(mac.trim());
        let capture = Capture::start("peer", "eth0");
        let answerer = gate.answerer(&point).expect("an answerer");
        answerer.send(&frame).expect("sent");
        assert!(came(&capture, &frame));
        let outbound = gate.counters().expect("counters").outbound;
        // Beside neighbour discovery.
        assert_eq!(outbound.answered, 1);
        assert_eq!(outbound.packets - outbound.neighbours, 1);
        gate.grant(FIRST).expect("granted");
        answerer.send(&frame).expect("sent");
        assert!(!came(&capture, &frame));
        let outbound = gate.counters().expect("counters").outbound;
        assert_eq!(outbound.answered, 1);
        assert_eq!(outbound.dropped[Protocol::Tcp as usize], 1);
        super::lab::run("ip link del h-moving");
        let gone = answerer.send(&frame).expect_err("the device is gone");
        assert!(gone.to_string().contains("h-moving"), "{gone}");
    });
}

#[test]
fn closed_lets_the_containers_own_acks_pass_while_it_is_told_to() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Closed);
        let programs = Programs::open(&lab.pins("gate"));
        let mut ack = TcpHeader::new(80, 5000, SENT, 0);
        ack.ack = true;
        let all = |change: &dyn Fn(&mut TcpHeader), payload: &[u8]| {
            let mut header = ack.clone();
            change(&mut header);
            let run = |d, ip| programs.run(d, &packets::tcp(ip, d, &header, payload)).0;
            (
                run(Outbound, Ip::V4),
                run(Outbound, Ip::V6),
                run(Inbound, Ip::V4),
            )
        };
        let passes = (TC_ACT_UNSPEC, TC_ACT_UNSPEC, TC_ACT_SHOT);
        let shut = (TC_ACT_SHOT, TC_ACT_SHOT, TC_ACT_SHOT);
        assert_eq!(all(&|_| {}, b""), shut, "not asked for");
        gate.let_acks_pass(true).expect("set");
        assert_eq!(all(&|_| {}, b""), passes);
        assert_eq!(all(&|_| {}, b"x"), shut);
        assert_eq!(all(&|h| h.fin = true, b""), shut);
        assert_eq!(all(&|h| h.rst = true, b""), shut);
        assert_eq!(all(&|h| h.syn = true, b""), shut);
        assert_eq!(all(&|h| h.ack = false, b""), shut);
        gate.let_acks_pass(false).expect("set");
        assert_eq!(all(&|_| {}, b""), shut);
        gate.let_acks_pass(true).expect("set");
        gate.grant(FIRST).expect("granted");
        assert_eq!(all(&|_| {}, b""), shut);
        assert_eq!(gate.counters().expect("counters").outbound.answered, 0);
    });
    lab(|lab| {
        let gate = lab.gate(Side::Target, Mode::Closed);
        gate.let_acks_pass(true).expect("set");
        let programs = Programs::open(&lab.pins("gate"));
        let mut ack = TcpHeader::new(80, 5000, SENT, 0);
        ack.ack = true;
        let packet = packets::tcp(Ip::V4, Outbound, &ack, b"");
        assert_eq!(programs.run(Outbound, &packet).0, TC_ACT_SHOT);
    });
}

proptest! {
    #[test]
    fn what_is_acknowledged_came_in_order_and_fits(segments in proptest::collection::vec((-3000..60_000i32, 0..3000usize), 1..40)) {
        let known = Known { edge: known().edge.wrapping_sub(BEYOND), ..known() };
        let mut keeper = keeper(known);
        prop_assert!(keeper.again([(key(Ip::V4), known)], true).is_empty());
        let mut next = 0i32;
        let mut came = std::collections::HashSet::new();
        for (at, length) in segments {
            let took = keeper.take(&sent(at, length).packet());
            let end = at + length as i32;
            if end <= ROOM as i32 {
                came.extend(at.max(0)..end);
            }
            if owns(took) {
                prop_assert!(at <= next && end > next && end <= ROOM as i32);
                next = end;
                while came.contains(&next) {
                    next += 1;
                }
            }
            if took != Took::Nothing {
                let answer = keeper.answer(&key(Ip::V4)).expect("an answer");
                prop_assert_eq!(read(&answer).header.acknowledgment_number, SEQ.wrapping_add_signed(next));
            }
        }
    }

    #[test]
    fn hostile_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3usize, flags in 0..4u8) {
        let mut frame = vec![0; 12];
        frame.extend([[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00]][kind]);
        frame.extend(&bytes);
        keeper(known()).take(&held(&frame, flags));
    }
}

#[test]
fn what_a_peer_has_acknowledged_is_known_as_far_as_the_stack_will_believe_it() {
    let ack = |number: u32| {
        sent(0, 0)
            .with(|h| h.acknowledgment_number = number)
            .packet()
    };
    let mut keeper = keeper(known());
    let acknowledged = |keeper: &Keeper| keeper.acknowledged(&key(Ip::V4));
    assert_eq!(acknowledged(&keeper), Some(SENT - 100));
    for (number, known) in [
        (SENT - 40, SENT - 40),
        // Older ones come late, others are forged.
        (SENT - 60, SENT - 40),
        (SENT + 1, SENT - 40),
        (SENT, SENT),
    ] {
        keeper.take(&ack(number));
        assert_eq!(acknowledged(&keeper), Some(known));
    }
    assert_eq!(acknowledged(&Keeper::default()), None);
}
