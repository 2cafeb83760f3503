//! What a rewrite leaves behind, whatever the packet: the right checksum, and nothing else changed.
use etherparse::{TcpHeader, TcpOptionElement};
use netmig_common::{Mode, Side};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{
    lab::lab,
    packets::{
        Inbound, Ip, Outbound, Programs, extended, extension, key, read, tagged, tcp, with_options,
    },
};
use crate::gate::FlowScales;

#[derive(Clone, Debug)]
struct Case {
    v6: bool,
    ports: (u16, u16),
    seq: u32,
    /// Bytes of the peer in flight.
    in_flight: u16,
    ack: u32,
    window: u16,
    scale: u8,
    behind: u16,
    payload: Vec<u8>,
    options: usize,
    flags: u8,
    wrapping: usize,
    padding: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let numbers = (
        any::<(u16, u16)>(),
        any::<u32>(),
        0..3000u16,
        any::<u32>(),
        any::<u16>(),
        0..=14u8,
        0..3000u16,
    );
    let shape = (
        prop::collection::vec(any::<u8>(), 0..600),
        0..5usize,
        any::<u8>(),
        0..5usize,
        0..9usize,
    );
    (any::<bool>(), numbers, shape).prop_map(
        |(v6, (ports, seq, in_flight, ack, window, scale, behind), shape)| {
            let (payload, options, flags, wrapping, padding) = shape;
            Case {
                v6,
                ports,
                seq,
                in_flight,
                ack,
                window,
                scale,
                behind,
                payload,
                options,
                flags,
                wrapping,
                padding,
            }
        },
    )
}

fn header(case: &Case) -> TcpHeader {
    use TcpOptionElement::{Noop, SelectiveAcknowledgement, Timestamp};
    let mut h = TcpHeader::new(case.ports.0, case.ports.1, case.seq, case.window);
    h.ack = true;
    h.acknowledgment_number = case.ack;
    (h.psh, h.ece, h.cwr, h.ns, h.urg) = (
        case.flags & 1 != 0,
        case.flags & 2 != 0,
        case.flags & 4 != 0,
        case.flags & 8 != 0,
        case.flags & 16 != 0,
    );
    h.urgent_pointer = u16::from(case.flags);
    let options: &[&[TcpOptionElement]] = &[
        &[],
        &[Noop, Noop, Timestamp(case.seq, case.ack)],
        &[Timestamp(case.seq, case.ack)],
        &[
            Noop,
            Noop,
            SelectiveAcknowledgement((case.ack, case.seq), [Some((1, 2)), None, None]),
        ],
        &[
            Noop,
            Timestamp(3, 4),
            Noop,
            SelectiveAcknowledgement((case.ack, case.seq), [None, None, None]),
        ],
    ];
    h.set_options(options[case.options]).expect("options");
    h
}

fn wrapped(case: &Case, packet: &[u8]) -> Vec<u8> {
    let mut packet = match case.wrapping {
        1 => tagged(packet, &[0x8100]),
        2 => tagged(packet, &[0x88a8, 0x8100]),
        3 if case.v6 => extended(packet, &[(0, extension(1)), (60, extension(2))]),
        4 if case.v6 => tagged(
            &extended(packet, &[(44, vec![0, 0, 0, 0, 1, 2, 3, 4])]),
            &[0x8100],
        ),
        3 => with_options(packet),
        _ => packet.to_vec(),
    };
    packet.extend(vec![0; case.padding]);
    packet
}

#[test]
fn a_rewritten_packet_has_the_checksum_of_one_built_from_scratch_and_no_other_change() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Drain);
        let programs = Programs::open(&lab.pins("gate"));
        let mut runner = TestRunner::new(Config {
            cases: 2000,
            failure_persistence: None,
            ..Config::default()
        });
        let result = runner.run(&cases(), |case| {
            let ip = if case.v6 { Ip::V6 } else { Ip::V4 };
            let scales = FlowScales {
                snd: Some(case.scale),
                rcv: Some(case.scale),
                signed: false,
                stop_peer: true,
                stop_container: true,
            };
            let (container, peer) = case.ports;
            let key = key(ip, container, peer);
            gate.hint(&key, &scales).unwrap();
            gate.forget_flow(&key);
            // The container has sent up to `seq` + `behind`, and knows of `in_flight` bytes less than the peer has sent.
            let mut earlier = TcpHeader::new(
                container,
                peer,
                case.seq.wrapping_add(case.behind.into()),
                u16::MAX,
            );
            (earlier.ack, earlier.acknowledgment_number) = (true, case.ack);
            programs.passes(Outbound, &tcp(ip, Outbound, &earlier, &[]));
            let mut other = TcpHeader::new(peer, container, case.ack, u16::MAX);
            (other.ack, other.acknowledgment_number) = (true, case.seq);
            let in_flight = case.in_flight;
            programs.passes(
                Inbound,
                &tcp(ip, Inbound, &other, &vec![0; in_flight.into()]),
            );

            let packet = wrapped(&case, &tcp(ip, Outbound, &header(&case), &case.payload));
            let before = read(&packet);
            let out = programs.passes(Outbound, &packet);
            let after = read(&out);

            prop_assert_eq!(before.header.checksum, before.checksum);
            prop_assert_eq!(after.header.checksum, after.checksum);
            let edge = u32::from(in_flight) >> case.scale;
            prop_assert_eq!(
                u32::from(after.header.window_size),
                edge.min(case.window.into())
            );
            let mut expected = before.header.clone();
            expected.window_size = after.header.window_size;
            expected.checksum = after.header.checksum;
            if case.payload.is_empty() {
                expected.sequence_number = case.seq.wrapping_add(case.behind.into());
            }
            prop_assert_eq!(&after.header, &expected);
            let transport =
                packet.len() - case.padding - case.payload.len() - expected.header_len();
            prop_assert_eq!(&out[..transport], &packet[..transport], "what comes before");
            prop_assert_eq!(
                &out[transport + 20..],
                &packet[transport + 20..],
                "options, payload, padding"
            );
            Ok(())
        });
        if let Err(e) = result {
            panic!("{e}");
        }
    });
}
