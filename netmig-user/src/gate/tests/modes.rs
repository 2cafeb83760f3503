//! What each mode does with each kind of packet, both ways.
use etherparse::TcpHeader;
use netmig_common::{Direction, Mode, Protocol, Side, Tally, Unhandled};

use super::{
    lab::{FIRST, lab},
    packets::{
        Inbound, Ip, Outbound, Programs, TC_ACT_SHOT, TC_ACT_UNSPEC, extended, extension, raw, run,
        tagged, tcp, udp, with_options,
    },
};
use crate::gate::Gate;

/// Name, packet, what it is counted as.
type Kind = (&'static str, Vec<u8>, Protocol);

fn ethernet(kind: u16, length: usize) -> Vec<u8> {
    let mut packet = vec![2; 12];
    packet.extend(kind.to_be_bytes());
    packet.resize(length, 0);
    packet
}

fn segment() -> TcpHeader {
    let mut header = TcpHeader::new(5000, 80, 1000, 500);
    header.ack = true;
    header
}

fn kinds(d: Direction) -> Vec<Kind> {
    use Protocol::{Icmp, Neighbour, OtherIp, OtherLink, Sctp, Tcp, Udp, Unparsed};
    let tcp4 = tcp(Ip::V4, d, &segment(), b"payload");
    let tcp6 = tcp(Ip::V6, d, &segment(), b"payload");
    let icmp6 = |kind| raw(Ip::V6, d, 58, &[kind, 0, 0, 0, 0, 0, 0, 0]);
    let mut first4 = tcp4.clone();
    first4[20] = 0x20;
    let mut later4 = udp(Ip::V4, d);
    later4[21] = 3;
    let fragment6 = |offset_and_more: u16| {
        let [a, b] = offset_and_more.to_be_bytes();
        (44, vec![0, 0, a, b, 0, 0, 0, 9])
    };
    let mut version = tcp4.clone();
    version[14] = 0x55;
    let mut claims_more = tcp4.clone();
    claims_more[17] += 1;
    let ah = (51, vec![0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
    vec![
        ("tcp4", tcp4.clone(), Tcp),
        ("tcp6", tcp6.clone(), Tcp),
        ("udp4", udp(Ip::V4, d), Udp),
        ("udp6", udp(Ip::V6, d), Udp),
        ("udp-lite", raw(Ip::V4, d, 136, &[0; 8]), Udp),
        ("icmp4", raw(Ip::V4, d, 1, &[8, 0, 0, 0, 0, 0, 0, 0]), Icmp),
        ("echo6", icmp6(128), Icmp),
        ("packet too big", icmp6(2), Icmp),
        ("redirect6", icmp6(137), Icmp),
        ("solicitation (also DAD's)", icmp6(135), Neighbour),
        ("advertisement", icmp6(136), Neighbour),
        ("router solicitation", icmp6(133), Neighbour),
        (
            "MLDv2 report behind hop-by-hop",
            extended(&icmp6(143), &[(0, extension(1))]),
            Neighbour,
        ),
        ("arp", ethernet(0x0806, 42), Neighbour),
        ("sctp4", raw(Ip::V4, d, 132, &[0; 12]), Sctp),
        ("sctp6", raw(Ip::V6, d, 132, &[0; 12]), Sctp),
        (
            "igmp",
            raw(Ip::V4, d, 2, &[0x22, 0, 0, 0, 0, 0, 0, 0]),
            Neighbour,
        ),
        ("gre", raw(Ip::V4, d, 47, &[0; 8]), OtherIp),
        ("esp6", raw(Ip::V6, d, 50, &[0; 8]), OtherIp),
        ("lldp", ethernet(0x88cc, 60), OtherLink),
        ("ipv4 with options", with_options(&tcp4), Tcp),
        ("vlan", tagged(&tcp4, &[0x8100]), Tcp),
        ("qinq", tagged(&tcp6, &[0x88a8, 0x8100]), Tcp),
        (
            "three tags",
            tagged(&udp(Ip::V6, d), &[0x88a8, 0x9100, 0x8100]),
            Udp,
        ),
        (
            "four tags",
            tagged(&tcp4, &[0x88a8, 0x8100, 0x8100, 0x8100]),
            Unparsed,
        ),
        (
            "hop-by-hop, routing, destination",
            extended(
                &tcp6,
                &[(0, extension(1)), (43, extension(3)), (60, extension(2))],
            ),
            Tcp,
        ),
        (
            "authentication header",
            extended(&udp(Ip::V6, d), &[ah]),
            Udp,
        ),
        (
            "nine extension headers",
            extended(&tcp6, &vec![(60, extension(1)); 9]),
            OtherIp,
        ),
        ("first fragment", first4, Tcp),
        ("later fragment", later4, Udp),
        ("first fragment6", extended(&tcp6, &[fragment6(1)]), Tcp),
        (
            "later fragment6",
            extended(&udp(Ip::V6, d), &[(0, extension(1)), fragment6(8 << 3)]),
            Udp,
        ),
        ("atomic fragment6", extended(&tcp6, &[fragment6(0)]), Tcp),
        (
            "cut in a tag",
            tagged(&tcp4, &[0x8100])[..16].to_vec(),
            Unparsed,
        ),
        (
            "cut in the header",
            tagged(&tcp4, &[0x8100])[..34].to_vec(),
            Unparsed,
        ),
        ("version 5", version, Unparsed),
        ("longer than it is", claims_more, Tcp),
        ("padded", [udp(Ip::V4, d), vec![0; 30]].concat(), Udp),
    ]
}

fn tally(gate: &Gate, d: Direction) -> Tally {
    let counters = gate.counters().expect("counters");
    if d == Inbound {
        counters.inbound
    } else {
        counters.outbound
    }
}

/// Runs every kind both ways; `passes` says which may.
fn every_kind(gate: &Gate, programs: &Programs, passes: impl Fn(Protocol) -> bool) {
    for d in [Inbound, Outbound] {
        for (name, packet, protocol) in kinds(d) {
            let before = tally(gate, d);
            let (verdict, out) = programs.run(d, &packet);
            let after = tally(gate, d);
            assert_eq!(out, packet, "{name} {d:?}: changed");
            let mut expected = before;
            if passes(protocol) {
                assert_eq!(verdict, TC_ACT_UNSPEC, "{name} {d:?}");
                expected.packets += 1;
                expected.bytes += packet.len() as u64;
                expected.neighbours = after.neighbours;
                expected.unhandled = after.unhandled;
            } else {
                assert_eq!(verdict, TC_ACT_SHOT, "{name} {d:?}");
                expected.dropped[protocol as usize] += 1;
                expected.dropped_bytes += packet.len() as u64;
            }
            assert_eq!(after, expected, "{name} {d:?}");
        }
    }
}

#[test]
fn pass_and_expired_let_everything_pass() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Pass);
        let programs = Programs::open(&lab.pins("gate"));
        every_kind(&gate, &programs, |_| true);
        gate.set_mode(Mode::Closed, FIRST, Some(std::time::Duration::ZERO))
            .unwrap();
        let (verdict, _) = programs.run(Inbound, &udp(Ip::V4, Inbound));
        assert_eq!(verdict, TC_ACT_UNSPEC);
        assert_eq!(tally(&gate, Inbound).expired, 1);
        every_kind(&gate, &programs, |_| true);
        assert!(
            gate.flows().unwrap().is_empty(),
            "nothing is learnt outside of drain"
        );
    });
}

#[test]
fn closed_at_the_source_leaves_neighbours_alone_until_the_grant() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Closed);
        let programs = Programs::open(&lab.pins("gate"));
        every_kind(&gate, &programs, |p| p == Protocol::Neighbour);
        let neighbours = kinds(Inbound)
            .iter()
            .filter(|k| k.2 == Protocol::Neighbour)
            .count() as u64;
        assert_eq!(tally(&gate, Inbound).neighbours, neighbours);
        assert_eq!(tally(&gate, Outbound).neighbours, neighbours);
        gate.grant(FIRST).unwrap();
        every_kind(&gate, &programs, |_| false);
    });
}

#[test]
fn closed_at_the_target_lets_nothing_pass() {
    lab(|lab| {
        let gate = lab.gate(Side::Target, Mode::Closed);
        every_kind(&gate, &Programs::open(&lab.pins("gate")), |_| false);
    });
}

/// A word that no version wrote: closed, whatever the rest says.
#[test]
fn an_unknown_mode_lets_nothing_pass() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Pass);
        let programs = Programs::open(&lab.pins("gate"));
        gate.word.store_raw(9);
        every_kind(&gate, &programs, |_| false);
        assert!(matches!(gate.mode(), Err(crate::gate::Error::Word(9))));
    });
}

#[test]
fn loopback_is_open_but_in_closed_and_granted() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Pass);
        let programs = Programs::open(&lab.pins("gate"));
        let packet = tcp(Ip::V4, Inbound, &segment(), b"x");
        for (mode, verdict) in [
            (Mode::Pass, TC_ACT_UNSPEC),
            (Mode::Drain, TC_ACT_UNSPEC),
            (Mode::Closed, TC_ACT_SHOT),
        ] {
            gate.set_mode(mode, FIRST, None).unwrap();
            assert_eq!(
                run(&programs.loopback, &packet),
                (verdict, packet.clone()),
                "{mode:?}"
            );
        }
        gate.grant(FIRST).unwrap();
        assert_eq!(run(&programs.loopback, &packet).0, TC_ACT_SHOT);
        let loopback = gate.counters().unwrap().loopback;
        assert_eq!(
            (loopback.packets, loopback.dropped[Protocol::Tcp as usize]),
            (2, 2)
        );
        assert_eq!(loopback.bytes, 2 * packet.len() as u64);
    });
}

/// Drain passes what it cannot handle, unchanged, and says why.
#[test]
fn drain_lets_everything_pass_and_counts_what_it_leaves_alone() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Drain);
        gate.drain_all(true, true).unwrap();
        let programs = Programs::open(&lab.pins("gate"));
        let expected = |name: &str| match name {
            "first fragment" | "later fragment" | "first fragment6" | "later fragment6" => {
                Some(Unhandled::Fragment)
            }
            "four tags" | "nine extension headers" => Some(Unhandled::TooDeep),
            "cut in a tag" | "cut in the header" | "version 5" | "longer than it is" => {
                Some(Unhandled::Malformed)
            }
            // Only one direction of these connections is ever seen.
            "tcp4"
            | "tcp6"
            | "ipv4 with options"
            | "vlan"
            | "qinq"
            | "hop-by-hop, routing, destination"
            | "atomic fragment6" => Some(Unhandled::OneWay),
            _ => None,
        };
        let d = Inbound;
        for (name, packet, _) in kinds(d) {
            let before = tally(&gate, d).unhandled;
            assert_eq!(programs.passes(d, &packet), packet, "{name}");
            let mut wanted = before;
            if let Some(why) = expected(name) {
                wanted[why as usize] += 1;
            }
            assert_eq!(tally(&gate, d).unhandled, wanted, "{name}");
        }
    });
}

#[test]
fn opening_without_a_hold_is_pass_from_the_first_packet_on() {
    lab(|lab| {
        let gate = lab.gate(Side::Target, Mode::Closed);
        let programs = Programs::open(&lab.pins("gate"));
        gate.open_in_order(FIRST, std::time::Duration::from_secs(60))
            .unwrap();
        every_kind(&gate, &programs, |_| true);
        assert_eq!(gate.mode().unwrap().mode, Mode::Pass);
    });
}
