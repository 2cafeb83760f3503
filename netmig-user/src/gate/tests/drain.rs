//! EDGE and SEQFIX.
use etherparse::{TcpHeader, TcpOptionElement as Option_};
use netmig_common::{Direction, FlowState, Mode, Side, Unhandled};

use super::{
    lab::{FIRST, lab},
    packets::{Inbound, Ip, Outbound, Programs, key, read, tcp},
};
use crate::gate::{FlowScales, Gate};

const CONTAINER: u16 = 5000;
const PEER: u16 = 40000;

/// A segment of the connection; change what is special.
fn header(d: Direction, seq: u32, ack: u32, window: u16) -> TcpHeader {
    let (source, destination) = if d == Inbound {
        (PEER, CONTAINER)
    } else {
        (CONTAINER, PEER)
    };
    let mut header = TcpHeader::new(source, destination, seq, window);
    header.ack = true;
    header.acknowledgment_number = ack;
    header
}

/// A gate that drains, and the connection's packets through it.
struct Draining<'a> {
    gate: &'a Gate,
    programs: Programs,
    ip: Ip,
}

impl Draining<'_> {
    /// Sends a segment: window and sequence number as they come out. The checksum must be right.
    fn sends(&self, d: Direction, header: &TcpHeader, payload: &[u8]) -> (u16, u32) {
        let out = self.programs.passes(d, &tcp(self.ip, d, header, payload));
        let seen = read(&out);
        assert_eq!(seen.header.checksum, seen.checksum);
        (seen.header.window_size, seen.header.sequence_number)
    }

    fn window(&self, d: Direction, header: &TcpHeader, payload: &[u8]) -> u16 {
        self.sends(d, header, payload).0
    }

    fn flow(&self) -> FlowState {
        let wanted = key(self.ip, CONTAINER, PEER);
        let flows = self.gate.flows().unwrap();
        flows
            .into_iter()
            .find(|(key, _)| *key == wanted)
            .expect("the flow")
            .1
    }

    fn unhandled(&self, d: Direction, why: Unhandled) -> u64 {
        let counters = self.gate.counters().unwrap();
        let tally = if d == Inbound {
            counters.inbound
        } else {
            counters.outbound
        };
        tally.unhandled[why as usize]
    }
}

const SCALES: FlowScales = FlowScales {
    snd: Some(7),
    rcv: Some(5),
    signed: false,
    stop_peer: true,
    stop_container: true,
};

fn drained(scales: Option<FlowScales>, story: impl Fn(&Draining<'_>) + Sync) {
    for ip in [Ip::V4, Ip::V6] {
        lab(|lab| {
            let gate = lab.gate(Side::Source, Mode::Pass);
            gate.drain_all(true, true).unwrap();
            if let Some(scales) = &scales {
                gate.hint(&key(ip, CONTAINER, PEER), scales).unwrap();
            }
            gate.set_mode(Mode::Drain, FIRST, None).unwrap();
            story(&Draining {
                gate: &gate,
                programs: Programs::open(&lab.pins("gate")),
                ip,
            });
        });
    }
}

/// The peer sends in bulk: the container's window covers what the peer is known to have sent, then nothing.
#[test]
fn the_window_covers_what_is_in_flight_and_becomes_zero_by_itself() {
    drained(Some(SCALES), |f| {
        let data = [0; 1000];
        assert_eq!(
            f.window(Inbound, &header(Inbound, 10_000, 1, 400), &data),
            400,
            "before both directions are seen"
        );
        assert_eq!(
            f.window(Inbound, &header(Inbound, 11_000, 1, 400), &data),
            400
        );
        // The container acknowledges the first: 1000 bytes are in flight, 31 units of 32 bytes cover 992 of them.
        assert_eq!(
            f.window(Outbound, &header(Outbound, 1, 11_000, 2000), &[]),
            31
        );
        assert_eq!(
            f.window(Outbound, &header(Outbound, 1, 11_900, 2000), &[]),
            3
        );
        assert_eq!(
            f.window(Outbound, &header(Outbound, 1, 12_000, 2000), &[]),
            0
        );
        assert_eq!(
            f.window(Outbound, &header(Outbound, 1, 12_000, 0), &[]),
            0,
            "a true 0 stays"
        );
        // A later segment that was still on its way reopens just that far.
        f.window(Inbound, &header(Inbound, 12_000, 1, 400), &data);
        assert_eq!(
            f.window(Outbound, &header(Outbound, 1, 12_000, 2000), &[]),
            31
        );
        assert_eq!(
            f.window(Outbound, &header(Outbound, 1, 12_000, 7), &[]),
            7,
            "never above the true one"
        );
        let flow = f.flow();
        assert_eq!(
            (flow.windows[1], flow.acks[1], flow.ends[0]),
            (7, 12_000, 13_000),
            "the true values are kept"
        );
        assert_eq!(flow.rewritten, [1, 4]);
        assert_eq!(f.gate.counters().unwrap().outbound.windows, 4);
    });
}

/// The other way: the peer's window shrinks for the container's stack, by the peer's scale.
#[test]
fn the_peers_window_shrinks_by_the_peers_scale() {
    drained(Some(SCALES), |f| {
        f.window(Inbound, &header(Inbound, 1, 500, 600), &[]);
        assert_eq!(
            f.window(Outbound, &header(Outbound, 500, 1, 2000), &[0; 1280]),
            0,
            "nothing of the peer is in flight"
        );
        assert_eq!(
            f.window(Inbound, &header(Inbound, 1, 500, 600), &[]),
            10,
            "1280 bytes >> 7"
        );
        assert_eq!(f.window(Inbound, &header(Inbound, 1, 1780, 600), &[]), 0);
    });
}

#[test]
fn sequence_numbers_wrap() {
    drained(Some(SCALES), |f| {
        f.window(
            Inbound,
            &header(Inbound, u32::MAX - 499, 1, 400),
            &[0; 1000],
        );
        assert_eq!(f.flow().ends[0], 500);
        f.window(Outbound, &header(Outbound, 1, u32::MAX - 499, 2000), &[]);
        assert_eq!(
            f.window(Outbound, &header(Outbound, 1, u32::MAX - 499, 2000), &[]),
            31
        );
        assert_eq!(f.window(Outbound, &header(Outbound, 1, 500, 2000), &[]), 0);
    });
}

/// A stack whose window has shrunk sends its ACKs from before what it has sent.
#[test]
fn a_pure_ack_from_before_the_end_gets_its_sequence_number_back() {
    drained(Some(SCALES), |f| {
        f.sends(Inbound, &header(Inbound, 1, 1000, 600), &[]);
        f.sends(Outbound, &header(Outbound, 1000, 1, 2000), &[0; 500]);
        f.sends(Outbound, &header(Outbound, 1500, 1, 2000), &[0; 500]);
        assert_eq!(
            f.sends(Outbound, &header(Outbound, 1200, 1, 2000), &[]).1,
            2000
        );
        assert_eq!(
            f.sends(Outbound, &header(Outbound, 2000, 1, 2000), &[]).1,
            2000,
            "right already"
        );
        assert_eq!(
            f.sends(Outbound, &header(Outbound, 999, 1, 2000), &[]).1,
            999,
            "a probe or keepalive: snd_una - 1"
        );
        assert_eq!(
            f.sends(Outbound, &header(Outbound, 1000, 1, 2000), &[0; 500])
                .1,
            1000,
            "data sent again"
        );
        let mut fin = header(Outbound, 1700, 1, 2000);
        fin.fin = true;
        assert_eq!(f.sends(Outbound, &fin, &[]).1, 1700);
        assert_eq!(f.flow().resent, [0, 1]);
        assert_eq!(f.gate.counters().unwrap().outbound.sequences, 1);
    });
}

#[test]
fn syn_and_rst_are_never_rewritten_and_a_syn_starts_anew() {
    drained(Some(SCALES), |f| {
        f.sends(Inbound, &header(Inbound, 1, 1000, 600), &[]);
        f.sends(Outbound, &header(Outbound, 1000, 1, 2000), &[]);
        let mut rst = header(Outbound, 900, 1, 2000);
        rst.rst = true;
        assert_eq!(f.sends(Outbound, &rst, &[]), (2000, 900));
        let mut syn = header(Inbound, 70_000, 0, 64_240);
        (syn.syn, syn.ack) = (true, false);
        assert_eq!(f.sends(Inbound, &syn, &[]), (64_240, 70_000));
        assert_eq!(
            (f.flow().ends[0], f.flow().acked[0]),
            (70_001, 0),
            "its ack field says nothing"
        );
        let mut answer = header(Outbound, 3_000_000_000, 70_001, 65_160);
        answer.syn = true;
        assert_eq!(f.sends(Outbound, &answer, &[]), (65_160, 3_000_000_000));
        assert_eq!(f.flow().ends[1], 3_000_000_001);
    });
}

fn handshake(f: &Draining<'_>, peer: &[Option_], container: &[Option_]) {
    let mut syn = header(Inbound, 100, 0, 64_240);
    (syn.syn, syn.ack) = (true, false);
    syn.set_options(peer).unwrap();
    f.sends(Inbound, &syn, &[]);
    let mut answer = header(Outbound, 900, 101, 65_160);
    answer.syn = true;
    answer.set_options(container).unwrap();
    f.sends(Outbound, &answer, &[]);
    f.sends(Inbound, &header(Inbound, 101, 901, 502), &[]);
    f.sends(Outbound, &header(Outbound, 901, 101, 2000), &[]);
    f.sends(Inbound, &header(Inbound, 101, 901, 502), &[0; 1024]);
}

#[test]
fn scales_are_learnt_from_the_handshake() {
    use Option_::{
        MaximumSegmentSize as Mss, Noop, SelectiveAcknowledgementPermitted as Sack, Timestamp,
        WindowScale,
    };
    drained(None, |f| {
        let peer = [Mss(1460), Sack, Timestamp(7, 0), Noop, WindowScale(7)];
        handshake(f, &peer, &[Mss(1460), Noop, WindowScale(8)]);
        assert_eq!(f.flow().scales, [7, 8]);
        assert_eq!(
            f.window(Outbound, &header(Outbound, 901, 101, 509), &[]),
            4,
            "1024 >> 8"
        );
    });
    drained(None, |f| {
        handshake(f, &[Mss(1460), Noop, WindowScale(7)], &[Mss(1460)]);
        assert_eq!(
            f.window(Outbound, &header(Outbound, 901, 101, 2000), &[]),
            1024,
            "only one offered: no scaling"
        );
    });
    drained(None, |f| {
        handshake(f, &[Noop, WindowScale(15)], &[Noop, WindowScale(14)]);
        assert_eq!(
            f.window(Outbound, &header(Outbound, 901, 101, 509), &[]),
            0,
            "15 is taken as 14"
        );
    });
}

#[test]
fn without_a_known_scale_the_window_stays_and_is_counted() {
    drained(None, |f| {
        f.sends(Inbound, &header(Inbound, 1, 1000, 600), &[0; 100]);
        assert_eq!(
            f.sends(Outbound, &header(Outbound, 1000, 101, 2000), &[]),
            (2000, 1000)
        );
        assert_eq!(f.unhandled(Outbound, Unhandled::Scale), 1);
        assert_eq!(f.unhandled(Inbound, Unhandled::OneWay), 1);
        // The hint may come while it drains.
        f.gate.hint(&key(f.ip, CONTAINER, PEER), &SCALES).unwrap();
        assert_eq!(
            f.window(Outbound, &header(Outbound, 1000, 101, 2000), &[]),
            0
        );
    });
}

#[test]
fn only_the_directions_asked_for_are_drained() {
    drained(
        Some(FlowScales {
            stop_container: false,
            ..SCALES
        }),
        |f| {
            f.sends(Outbound, &header(Outbound, 1000, 1, 2000), &[0; 100]);
            assert_eq!(f.window(Inbound, &header(Inbound, 1, 1100, 600), &[]), 600);
            assert_eq!(f.window(Outbound, &header(Outbound, 1100, 1, 2000), &[]), 0);
        },
    );
    drained(
        Some(FlowScales {
            stop_peer: false,
            ..SCALES
        }),
        |f| {
            f.sends(Outbound, &header(Outbound, 1000, 1, 2000), &[0; 100]);
            assert_eq!(f.window(Inbound, &header(Inbound, 1, 1100, 600), &[]), 0);
            assert_eq!(
                f.window(Outbound, &header(Outbound, 1100, 1, 2000), &[]),
                2000
            );
        },
    );
}

/// kind, length and body of TCP-MD5 and TCP-AO.
#[test]
fn signed_segments_are_never_rewritten() {
    let md5 = [&[1, 1, 19, 18][..], &[0xaa; 16]].concat();
    let ao = [&[29, 16, 1, 1][..], &[0xbb; 12]].concat();
    for option in [&md5, &ao] {
        drained(Some(SCALES), |f| {
            f.sends(Inbound, &header(Inbound, 1, 1000, 600), &[]);
            let mut signed = header(Outbound, 900, 1, 2000);
            signed.set_options_raw(option).unwrap();
            assert_eq!(f.sends(Outbound, &signed, &[]), (2000, 900));
            assert_eq!(f.unhandled(Outbound, Unhandled::Signed), 1);
            assert_eq!(
                f.sends(Inbound, &header(Inbound, 1, 900, 600), &[]).0,
                600,
                "nor any other of the connection"
            );
        });
    }
    drained(
        Some(FlowScales {
            signed: true,
            ..SCALES
        }),
        |f| {
            f.sends(Inbound, &header(Inbound, 1, 1000, 600), &[]);
            assert_eq!(
                f.sends(Outbound, &header(Outbound, 900, 1, 2000), &[]),
                (2000, 900)
            );
            assert_eq!(f.unhandled(Outbound, Unhandled::Signed), 1);
        },
    );
}

/// What the receiver would not take moves nothing.
#[test]
fn a_forged_segment_far_outside_the_window_changes_no_state() {
    drained(Some(SCALES), |f| {
        f.sends(Inbound, &header(Inbound, 1000, 1, 600), &[]);
        f.sends(Outbound, &header(Outbound, 1, 1000, 20), &[]);
        let before = f.flow();
        // The container's window is 20 << 5 = 640 bytes from 1000 on.
        for seq in [2000, 1_000_000, 0x7000_0000, 0x8000_0000] {
            f.sends(Inbound, &header(Inbound, seq, 1, 600), &[0; 100]);
            let after = f.flow();
            assert_eq!(
                (after.ends, after.acks, after.payload_ns),
                (before.ends, before.acks, before.payload_ns),
                "{seq}"
            );
        }
        f.sends(Inbound, &header(Inbound, 1000, 1, 600), &[0; 640]);
        assert_eq!(f.flow().ends[0], 1640, "what fits does");
    });
}

/// A move that was given up, and a gate that drains again much later.
#[test]
fn what_an_earlier_drain_saw_is_no_measure_for_the_next() {
    drained(Some(SCALES), |f| {
        f.sends(Inbound, &header(Inbound, 1000, 1, 600), &[]);
        f.sends(Outbound, &header(Outbound, 1, 1000, 2000), &[]);
        f.gate.set_mode(Mode::Pass, FIRST, None).unwrap();
        f.gate.set_mode(Mode::Drain, FIRST, None).unwrap();
        assert!(f.gate.flows().unwrap().is_empty());
        // 3 GiB later: by the old numbers all of this would lie before what was seen last.
        let later = 3 << 30;
        assert_eq!(
            f.sends(Outbound, &header(Outbound, later, later, 2000), &[]),
            (2000, later)
        );
        assert_eq!(
            f.sends(Inbound, &header(Inbound, later, later, 600), &[0; 100]),
            (0, later)
        );
        assert_eq!(
            (f.flow().ends, f.flow().acks),
            ([later + 100, later], [later, later])
        );
    });
}

#[test]
fn timestamps_are_kept() {
    drained(Some(SCALES), |f| {
        let mut stamped = header(Inbound, 1000, 1, 600);
        stamped
            .set_options(&[
                Option_::Noop,
                Option_::Noop,
                Option_::Timestamp(0x1234_5678, 0x9abc_def0),
            ])
            .unwrap();
        f.sends(Inbound, &stamped, &[]);
        assert_eq!(
            (f.flow().tsvals[0], f.flow().tsecrs[0]),
            (0x1234_5678, 0x9abc_def0)
        );
    });
}

#[test]
fn progress_names_what_is_not_quiet() {
    use std::time::Duration;
    drained(Some(SCALES), |f| {
        let round_trip = Duration::from_millis(30);
        assert_eq!(f.gate.progress(round_trip).unwrap().flows, 0);
        f.sends(Outbound, &header(Outbound, 1000, 1, 2000), &[]);
        f.sends(Inbound, &header(Inbound, 1, 1000, 600), &[0; 100]);
        let busy = |silence| f.gate.progress(silence).unwrap().busy;
        assert_eq!(
            busy(Duration::ZERO),
            [key(f.ip, CONTAINER, PEER)],
            "not acknowledged"
        );
        f.sends(Outbound, &header(Outbound, 1000, 101, 2000), &[]);
        assert_eq!(
            busy(round_trip),
            [key(f.ip, CONTAINER, PEER)],
            "not silent for long enough"
        );
        std::thread::sleep(round_trip);
        assert!(busy(round_trip).is_empty());
    });
}
