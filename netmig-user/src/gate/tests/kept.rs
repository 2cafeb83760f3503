//! Connections that the programs keep by themselves, by BPF_PROG_TEST_RUN.
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use etherparse::{Ipv4Header, Ipv6Header, TcpHeader, TcpOptionElement};
use netmig_common::{FlowKey, Mode, Side};

use super::{
    lab::{FIRST, Lab, lab, point},
    packets::{self, Inbound, Ip, Programs, TC_ACT_SHOT, TC_ACT_UNSPEC, read},
};
use crate::gate::{Answerer, Gate, Orientation, Point, Standing};

const TC_ACT_REDIRECT: i32 = 7;

const NEXT: u32 = 5;
const SENT: u32 = 77_000;
const STAMP: u32 = 9000;
/// Over before the first packet.
const LEASE: Duration = Duration::from_millis(1);

fn key(ip: Ip) -> FlowKey {
    packets::key(ip, 80, 5000)
}

fn standing(owned: bool) -> Standing {
    Standing {
        seq: SENT,
        ack: NEXT,
        stamp: Some((STAMP, Instant::now())),
        owned,
    }
}

/// A segment of the peer, `at` bytes after what was acknowledged.
fn sent(at: i32) -> TcpHeader {
    let mut header = TcpHeader::new(5000, 80, NEXT.wrapping_add_signed(at), 500);
    header.ack = true;
    header.acknowledgment_number = SENT;
    stamped(&mut header);
    header
}

fn stamped(header: &mut TcpHeader) {
    let stamps = TcpOptionElement::Timestamp(400, 8999);
    let options = [TcpOptionElement::Noop, TcpOptionElement::Noop, stamps];
    header.set_options(&options).expect("room");
}

fn stamps(header: &TcpHeader) -> Option<(u32, u32)> {
    header.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::Timestamp(own, theirs)) => Some((own, theirs)),
        _ => None,
    })
}

/// A gate of a source, its programs, and who tells them.
struct Kept {
    gate: Gate,
    programs: Programs,
    answerer: Answerer,
}

impl Kept {
    /// Programs that are run for a test see `lo` as their device.
    fn closed(lab: &Lab, lease: Option<Duration>) -> Self {
        let gate = lab.gate(Side::Source, Mode::Pass);
        gate.set_mode(Mode::Closed, FIRST, lease).expect("closed");
        let point = Point {
            orientation: Orientation::HostSide,
            ..point(None, "lo", Orientation::HostSide)
        };
        Self {
            programs: Programs::open(&lab.pins("gate")),
            answerer: gate.answerer(&point).expect("an answerer"),
            gate,
        }
    }

    fn expired(lab: &Lab) -> Self {
        let kept = Self::closed(lab, Some(LEASE));
        sleep(2 * LEASE);
        kept
    }

    fn keeps(&mut self, standing: &Standing) {
        for ip in [Ip::V4, Ip::V6] {
            self.answerer.keeps(&key(ip), standing).expect("told");
        }
    }

    fn run(&self, ip: Ip, header: &TcpHeader, payload: &[u8]) -> (i32, Vec<u8>) {
        let packet = packets::tcp(ip, Inbound, header, payload);
        self.programs.run(Inbound, &packet)
    }

    fn verdicts(&self, header: &TcpHeader, payload: &[u8]) -> [i32; 2] {
        [Ip::V4, Ip::V6].map(|ip| self.run(ip, header, payload).0)
    }
}

#[test]
fn a_kept_peer_is_told_that_there_is_no_room_when_the_lease_is_over() {
    lab(|lab| {
        let mut kept = Kept::expired(lab);
        kept.keeps(&standing(true));
        let whats = [
            ("a probe", sent(-1), 0),
            ("a probe with a byte", sent(-1), 1),
            ("what has come before", sent(-300), 300),
            ("what comes next", sent(0), 1448),
            ("what comes later", sent(5000), 2896),
        ];
        for (what, header, length) in whats {
            for ip in [Ip::V4, Ip::V6] {
                let packet = packets::tcp(ip, Inbound, &header, &vec![7; length]);
                let (verdict, out) = kept.programs.run(Inbound, &packet);
                assert_eq!(verdict, TC_ACT_REDIRECT, "{what}");
                assert_eq!((&out[..6], &out[6..12]), (&packet[6..12], &packet[..6]));
                let seen = read(&out);
                assert_eq!(seen.header.checksum, seen.checksum, "{what}");
                let header = seen.header;
                assert_eq!((header.source_port, header.destination_port), (80, 5000));
                let numbers = (header.sequence_number, header.acknowledgment_number);
                assert_eq!(numbers, (SENT, NEXT), "{what}");
                assert_eq!((header.window_size, header.ack), (0, true));
                assert!(!(header.rst || header.fin || header.syn || header.psh));
                let (own, theirs) = stamps(&header).expect("stamps");
                assert!((STAMP..STAMP + 5000).contains(&own) && theirs == 400);
                if ip == Ip::V4 {
                    let (header, rest) = Ipv4Header::from_slice(&out[14..]).expect("a header");
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    assert_eq!(header.source, packets::CONTAINER4);
                    assert_eq!((header.destination, rest.len()), (packets::PEER4, 32));
                } else {
                    let (header, rest) = Ipv6Header::from_slice(&out[14..]).expect("a header");
                    assert_eq!(header.source, packets::CONTAINER6);
                    assert_eq!((header.destination, rest.len()), (packets::PEER6, 32));
                    assert_eq!((header.payload_length, header.hop_limit), (32, 64));
                }
            }
        }
        let inbound = kept.gate.counters().expect("counters").inbound;
        assert_eq!(inbound.answered, 10);
    });
}

#[test]
fn what_ends_a_kept_connection_waits_and_what_acknowledges_passes() {
    lab(|lab| {
        let mut kept = Kept::expired(lab);
        kept.keeps(&standing(true));
        let with = |at, change: fn(&mut TcpHeader)| {
            let mut header = sent(at);
            change(&mut header);
            header
        };
        let passes = [TC_ACT_UNSPEC; 2];
        let drops = [TC_ACT_SHOT; 2];
        assert_eq!(kept.verdicts(&sent(0), b""), passes, "a pure ACK");
        assert_eq!(kept.verdicts(&with(0, |h| h.fin = true), b""), passes);
        assert_eq!(kept.verdicts(&with(0, |h| h.rst = true), b""), drops);
        assert_eq!(kept.verdicts(&with(0, |h| h.syn = true), b""), drops);
        let other = with(0, |h| h.source_port = 5001);
        assert_eq!(kept.verdicts(&other, b"x"), passes, "another connection");
        let packet = packets::tcp(Ip::V4, Inbound, &sent(0), b"x");
        let (verdict, _) = kept.programs.run(Inbound, &packets::with_options(&packet));
        assert_eq!(verdict, TC_ACT_SHOT, "headers that an answer has not");
        kept.answerer.forgets(&key(Ip::V4)).expect("told");
        kept.answerer.forgets(&key(Ip::V4)).expect("no error");
        assert_eq!(
            kept.verdicts(&sent(0), b"x"),
            [TC_ACT_UNSPEC, TC_ACT_REDIRECT]
        );
        kept.keeps(&standing(false));
        assert_eq!(kept.verdicts(&sent(0), b"x"), passes, "nothing is owned");
        kept.keeps(&standing(true));
        kept.gate.set_mode(Mode::Pass, FIRST, None).expect("passes");
        assert_eq!(kept.verdicts(&sent(0), b"x"), passes);
    });
}

#[test]
fn an_answer_keeps_tags_and_has_stamps_where_the_connection_has() {
    lab(|lab| {
        let mut kept = Kept::expired(lab);
        kept.keeps(&Standing {
            stamp: None,
            ..standing(true)
        });
        let mut header = sent(0);
        header.set_options(&[]).expect("none");
        for ip in [Ip::V4, Ip::V6] {
            let packet = packets::tcp(ip, Inbound, &header, &[7; 100]);
            let packet = packets::tagged(&packet, &[0x88a8, 0x8100]);
            let (verdict, out) = kept.programs.run(Inbound, &packet);
            assert_eq!(verdict, TC_ACT_REDIRECT);
            assert_eq!(out[12..22], packet[12..22]);
            let seen = read(&out);
            assert_eq!(seen.header.checksum, seen.checksum);
            assert_eq!(seen.header.header_len(), 20);
        }
        kept.keeps(&standing(true));
        let unusual = [
            TcpOptionElement::Timestamp(400, 8999),
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
        ];
        header.set_options(&unusual).expect("room");
        let (verdict, out) = kept.run(Ip::V6, &header, b"x");
        assert_eq!(verdict, TC_ACT_REDIRECT);
        let (own, theirs) = stamps(&read(&out).header).expect("stamps");
        assert!(own >= STAMP && theirs == 0, "{own} {theirs}");
    });
}

#[test]
fn while_somebody_renews_the_lease_the_programs_answer_probes_alone() {
    lab(|lab| {
        let mut kept = Kept::closed(lab, Some(Duration::from_secs(10)));
        let held = [TC_ACT_SHOT; 2];
        let answered = [TC_ACT_REDIRECT; 2];
        assert_eq!(kept.verdicts(&sent(-1), b""), held, "nobody has answered");
        for owned in [false, true] {
            kept.keeps(&standing(owned));
            assert_eq!(kept.verdicts(&sent(-1), b""), answered);
            assert_eq!(
                kept.verdicts(&sent(-1), b"x"),
                held,
                "a byte that may be new"
            );
            assert_eq!(kept.verdicts(&sent(0), b"x"), held);
            assert_eq!(kept.verdicts(&sent(0), b""), held, "a pure ACK");
        }
        // As if it had been renewed a little more than a second ago.
        let left = Duration::from_millis(8900);
        kept.gate.lease().renew(FIRST, left).expect("renewed");
        assert_eq!(kept.verdicts(&sent(0), b"x"), answered);
        let mut reset = sent(0);
        reset.rst = true;
        assert_eq!(kept.verdicts(&reset, b""), held);
        kept.keeps(&standing(false));
        assert_eq!(kept.verdicts(&sent(0), b"x"), held, "nothing is owned");
        kept.gate.grant(FIRST).expect("granted");
        assert_eq!(kept.verdicts(&sent(-1), b""), held);
    });
}

#[test]
fn the_containers_clock_stands_for_its_dump_and_goes_on_if_it_stays() {
    const AGO: Duration = Duration::from_millis(700);
    lab(|lab| {
        let mut kept = Kept::closed(lab, Some(Duration::from_millis(400)));
        let now = Instant::now();
        kept.keeps(&Standing {
            stamp: Some((STAMP, now - AGO)),
            ..standing(true)
        });
        let own = |kept: &Kept| {
            let (verdict, out) = kept.run(Ip::V4, &sent(-1), b"");
            assert_eq!(verdict, TC_ACT_REDIRECT);
            stamps(&read(&out).header).expect("stamps").0 - STAMP
        };
        assert!((700..1100).contains(&own(&kept)), "{}", own(&kept));
        let still = now - Duration::from_millis(500);
        kept.gate.stands_since(still).expect("told");
        assert_eq!(own(&kept), 200);
        sleep(Duration::from_millis(450).saturating_sub(now.elapsed()));
        assert_eq!(kept.gate.mode().expect("a mode").mode, Mode::Expired);
        assert!((1100..6000).contains(&own(&kept)), "{}", own(&kept));
    });
}
