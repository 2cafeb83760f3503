//! Lease and grant, against the program and against others.
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use netmig_common::{Mode, Side};
use netmig_core::id::Epoch;

use super::{
    lab::{FIRST, Lab, MOVE, forget_neighbours, host_side, lab, reaches},
    packets::{Inbound, Ip, Programs, udp},
};
use crate::gate::{Error, Gate};

const LEASE: Duration = Duration::from_millis(300);

fn standing(lab: &Lab) -> Gate {
    lab.bridge(&["moving"]);
    Gate::attach(
        MOVE,
        Side::Source,
        Mode::Pass,
        FIRST,
        &[host_side("h-moving")],
        &lab.pins("gate"),
    )
    .unwrap()
}

#[test]
fn a_gate_whose_lease_ran_out_opens_by_itself_and_cannot_be_granted() {
    lab(|lab| {
        let gate = standing(lab);
        gate.set_mode(Mode::Closed, FIRST, Some(LEASE)).unwrap();
        let closed = Instant::now();
        assert!(!reaches(None, "192.0.2.10") || closed.elapsed() >= LEASE);
        sleep(LEASE.saturating_sub(closed.elapsed()));
        assert!(reaches(None, "192.0.2.10"));
        assert_eq!(gate.mode().unwrap().mode, Mode::Expired);
        let counters = gate.counters().unwrap();
        assert_eq!(
            counters.inbound.expired + counters.outbound.expired,
            1,
            "latched once, by the program: {counters:?}"
        );
        assert!(matches!(gate.grant(FIRST), Err(Error::Expired)));
        assert!(matches!(
            gate.lease().renew(FIRST, LEASE),
            Err(Error::Expired)
        ));
        assert!(matches!(
            gate.set_mode(Mode::Closed, FIRST, Some(LEASE)),
            Err(Error::Expired)
        ));
        assert!(reaches(None, "192.0.2.10"));
        // Undone: the next try begins with `pass`.
        gate.set_mode(Mode::Pass, FIRST, None).unwrap();
        gate.set_mode(Mode::Closed, FIRST, Some(LEASE)).unwrap();
        gate.grant(FIRST).unwrap();
        gate.detach().unwrap();
    });
}

/// An agent that was stopped across its deadline; no packet came meanwhile that could have latched it.
#[test]
fn the_grant_is_refused_past_the_deadline_also_if_no_packet_came() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Pass);
        gate.set_mode(Mode::Closed, FIRST, Some(Duration::from_millis(20)))
            .unwrap();
        sleep(Duration::from_millis(30));
        assert_eq!(gate.mode().unwrap().mode, Mode::Expired);
        assert!(matches!(gate.grant(FIRST), Err(Error::Expired)));
        assert_eq!(gate.mode().unwrap().mode, Mode::Expired, "latched");
    });
}

#[test]
fn a_lease_that_is_renewed_holds() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Pass);
        gate.set_mode(Mode::Closed, FIRST, Some(LEASE)).unwrap();
        let begin = Instant::now();
        while begin.elapsed() < 3 * LEASE {
            sleep(LEASE / 6);
            gate.lease().renew(FIRST, LEASE).unwrap();
        }
        assert_eq!(gate.mode().unwrap().mode, Mode::Closed);
        gate.grant(FIRST).unwrap();
    });
}

#[test]
fn once_granted_nothing_but_the_targets_word_opens() {
    lab(|lab| {
        let gate = standing(lab);
        assert!(matches!(
            gate.grant(FIRST),
            Err(Error::NotClosed { mode: Mode::Pass })
        ));
        gate.set_mode(Mode::Closed, FIRST, Some(LEASE)).unwrap();
        gate.grant(FIRST).unwrap();
        gate.grant(FIRST).unwrap();
        gate.lease().renew(FIRST, LEASE).unwrap();
        for mode in [Mode::Pass, Mode::Drain, Mode::Closed] {
            assert!(matches!(
                gate.set_mode(mode, FIRST, None),
                Err(Error::Granted)
            ));
        }
        sleep(2 * LEASE);
        assert!(!reaches(None, "192.0.2.10"), "no lease ends a grant");
        assert_eq!(gate.mode().unwrap().mode, Mode::Granted);
        gate.reclaim(FIRST).unwrap();
        assert_eq!(gate.mode().unwrap().mode, Mode::Closed);
        gate.set_mode(Mode::Pass, FIRST, None).unwrap();
        forget_neighbours();
        assert!(reaches(None, "192.0.2.10"));
        gate.detach().unwrap();
    });
}

#[test]
fn an_agent_of_an_earlier_life_changes_nothing() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Pass);
        gate.set_mode(Mode::Closed, Epoch(3), None).unwrap();
        for stale in [
            gate.set_mode(Mode::Pass, Epoch(2), None),
            gate.lease().renew(Epoch(2), LEASE),
            gate.grant(Epoch(2)),
            gate.reclaim(Epoch(2)),
        ] {
            assert!(matches!(
                stale,
                Err(Error::Stale {
                    given: 2,
                    current: 3
                })
            ));
        }
        gate.grant(Epoch(4)).unwrap();
        let word = gate.mode().unwrap();
        assert_eq!((word.mode, word.epoch), (Mode::Granted, 4));
        assert!(matches!(
            gate.reclaim(Epoch(0x1_0000)),
            Err(Error::Epoch(0x1_0000))
        ));
    });
}

#[test]
fn a_target_has_neither_lease_nor_grant_and_stays_closed() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        let gate = Gate::attach(
            MOVE,
            Side::Target,
            Mode::Closed,
            FIRST,
            &[host_side("h-moving")],
            &lab.pins("gate"),
        )
        .unwrap();
        assert!(matches!(
            gate.set_mode(Mode::Closed, FIRST, Some(LEASE)),
            Err(Error::AtTarget)
        ));
        assert!(matches!(
            gate.lease().renew(FIRST, LEASE),
            Err(Error::AtTarget)
        ));
        assert!(matches!(gate.grant(FIRST), Err(Error::AtTarget)));
        assert!(!reaches(None, "192.0.2.10"));
        gate.set_mode(Mode::Pass, FIRST, None).unwrap();
        forget_neighbours();
        assert!(reaches(None, "192.0.2.10"));
        gate.detach().unwrap();
    });
}

/// Whoever comes first has it: of a grant and a lease that ends at the same moment exactly one succeeds.
#[test]
fn grant_and_expiry_exclude_each_other() {
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Pass);
        let (mut granted, mut expired) = (0, 0);
        for n in 0..200 {
            gate.set_mode(Mode::Closed, FIRST, Some(Duration::from_millis(2)))
                .unwrap();
            let until = Instant::now() + Duration::from_micros(1000 + 10 * n);
            while Instant::now() < until {}
            match gate.grant(FIRST) {
                Ok(()) => {
                    granted += 1;
                    assert_eq!(gate.mode().unwrap().mode, Mode::Granted);
                }
                Err(Error::Expired) => {
                    expired += 1;
                    assert_eq!(gate.mode().unwrap().mode, Mode::Expired);
                }
                Err(other) => panic!("{other}"),
            }
            gate.reclaim(FIRST).unwrap();
            gate.set_mode(Mode::Pass, FIRST, None).unwrap();
        }
        assert!(
            granted > 0 && expired > 0,
            "{granted} granted, {expired} expired"
        );
    });
}

/// Changes under load: what a packet in flight through a program may do ends with `settle`.
#[test]
fn after_settle_nothing_passes() {
    use std::sync::atomic::{AtomicBool, Ordering};
    /// Ends the other thread also if this one fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    lab(|lab| {
        let gate = lab.gate(Side::Source, Mode::Pass);
        let programs = Programs::open(&lab.pins("gate"));
        let packet = udp(Ip::V4, Inbound);
        let passed = || gate.counters().unwrap().inbound.packets;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    programs.run(Inbound, &packet);
                }
            });
            let _stop = Stop(&stop);
            for _ in 0..10 {
                gate.set_mode(Mode::Pass, FIRST, None).unwrap();
                let before = passed();
                let begin = Instant::now();
                while passed() == before {
                    assert!(begin.elapsed() < Duration::from_secs(10));
                    sleep(Duration::from_millis(1));
                }
                let begin = Instant::now();
                gate.set_mode(Mode::Closed, FIRST, None).unwrap();
                let changed = begin.elapsed();
                Gate::settle().unwrap();
                println!(
                    "changed in {changed:?}, settled after {:?}",
                    begin.elapsed()
                );
                let settled = passed();
                sleep(Duration::from_millis(5));
                assert_eq!(passed(), settled);
            }
        });
    });
}
