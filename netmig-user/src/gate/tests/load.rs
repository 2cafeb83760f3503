//! What the verifier makes of the programs.
use std::time::Duration;

use aya::programs::{TestRun as _, TestRunOptions};
use netmig_common::{Mode, Side};

use super::{
    lab::{FIRST, lab},
    packets::{Inbound, Ip, tcp},
};
use crate::gate::object::Program;

/// The kernel gives up at a million; a netmig that is near that does not load on some other version.
const INSTRUCTIONS: u32 = 200_000;

#[test]
fn the_programs_load_and_are_far_from_what_the_verifier_gives_up_at() {
    lab(|lab| {
        let _gate = lab.gate(Side::Source, Mode::Pass);
        for program in Program::ALL {
            let info = program.open(&lab.pins("gate")).unwrap().info().unwrap();
            let verified = info.verified_instruction_count().unwrap();
            println!("{}: {verified} instructions verified", program.name());
            assert!(verified < INSTRUCTIONS, "{}: {verified}", program.name());
        }
    });
}

/// Nothing may be felt of a gate in `pass`; the bound is far above the 20 ns or so that it takes, for slow and busy machines.
#[test]
fn a_packet_in_pass_costs_next_to_nothing() {
    let mut header = etherparse::TcpHeader::new(5000, 80, 1, 1000);
    header.ack = true;
    let packet = tcp(Ip::V6, Inbound, &header, &[0; 1000]);
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Pass);
        let program = Program::Inbound.open(&lab.pins("gate")).unwrap();
        for (mode, bound) in [(Mode::Pass, 300), (Mode::Drain, 3000), (Mode::Closed, 3000)] {
            gate.set_mode(mode, FIRST, None).unwrap();
            let run = || {
                let options = TestRunOptions {
                    data_in: Some(&packet),
                    repeat: 200_000,
                    ..TestRunOptions::new()
                };
                program.test_run(options).unwrap().duration
            };
            let best = (0..5).map(|_| run()).min().unwrap();
            println!("{mode:?}: {best:?} a packet");
            assert!(best < Duration::from_nanos(bound), "{mode:?}: {best:?}");
        }
    });
}
