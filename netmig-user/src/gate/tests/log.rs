//! What the programs say of single packets (feature `aya-log`).
use std::sync::{Arc, Mutex};

use aya::programs::{TestRun as _, TestRunOptions};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use netmig_common::{Mode, Side};

use super::{
    lab::lab,
    packets::{Inbound, Ip, tcp},
};
use crate::gate::object::Program;

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<String>>>);

impl Log for Kept {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format!("{} {}", record.level(), record.args());
        self.0.lock().expect("one writer").push(line);
    }

    fn flush(&self) {}
}

#[test]
fn a_dropped_packet_is_told() {
    let packet = tcp(
        Ip::V4,
        Inbound,
        &etherparse::TcpHeader::new(5000, 80, 1, 1000),
        &[0; 100],
    );
    let kept = Kept::default();
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Closed);
        let id = gate.program_id().expect("a program");
        let mut logger = EbpfLogger::init_from_id_with_logger(id, kept.clone()).expect("a log");
        let program = Program::Inbound.open(&lab.pins("gate")).expect("a program");
        let options = TestRunOptions {
            data_in: Some(&packet),
            ..TestRunOptions::new()
        };
        program.test_run(options).expect("it runs");
        logger.flush();
    });
    let kept = kept.0.lock().expect("one writer");
    let expected = format!("DEBUG dropped: protocol 0, {} bytes", packet.len());
    assert_eq!(*kept, [expected]);
}
