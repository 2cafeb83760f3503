//! The gate at real links.
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use netmig_common::{Mode, Protocol, Side};
use netmig_core::id::{Epoch, MoveId};

use super::lab::{Capture, FIRST, Lab, MOVE, host_side, lab, point, reaches, run};
use crate::gate::{Error, Gate, Orientation, Point, attachment::Via, clear};

const OTHER_MOVE: MoveId = MoveId([7; 16]);

/// Programs and filters at a device of the test's namespace.
fn attached(device: &str) -> String {
    let tcx = |at| {
        let (_, programs) = SchedClassifier::query_tcx(device, at).expect("the links");
        programs
            .iter()
            .map(|p| format!("tcx {}\n", p.name_as_str().unwrap_or("?")))
            .collect::<String>()
    };
    let filters = |side| {
        run(&format!(
            "tc filter show dev {device} {side} 2>/dev/null || true"
        ))
    };
    [
        tcx(TcAttachType::Ingress),
        tcx(TcAttachType::Egress),
        filters("ingress"),
        filters("egress"),
    ]
    .concat()
}

fn attach(lab: &Lab, mode: Mode, points: &[Point], via: Via) -> Gate {
    Gate::attach_via(
        MOVE,
        Side::Source,
        mode,
        FIRST,
        points,
        &lab.pins("gate"),
        via,
    )
    .expect("the gate")
}

fn opens_and_closes(via: Via) {
    lab(|lab| {
        lab.bridge(&["moving", "other"]);
        let gate = attach(lab, Mode::Pass, &[host_side("h-moving")], via);
        assert!(reaches(None, "192.0.2.10") && reaches(None, "2001:db8::10"));
        let passed = gate.counters().unwrap();
        assert!(
            passed.inbound.packets >= 2 && passed.outbound.packets >= 2,
            "{passed:?}"
        );
        assert_eq!(
            (
                passed.inbound.dropped_packets(),
                passed.outbound.dropped_packets()
            ),
            (0, 0)
        );

        gate.set_mode(Mode::Closed, FIRST, None).unwrap();
        assert!(!reaches(None, "192.0.2.10") && !reaches(Some("moving"), "192.0.2.1"));
        assert!(!reaches(None, "2001:db8::10"));
        assert!(
            reaches(None, "192.0.2.11") && reaches(Some("other"), "2001:db8::1"),
            "another container is not concerned"
        );
        let closed = gate.counters().unwrap();
        assert!(
            closed.inbound.dropped[0] > 0 && closed.outbound.dropped[0] > 0,
            "{closed:?}"
        );

        gate.set_mode(Mode::Pass, FIRST, None).unwrap();
        assert!(reaches(None, "192.0.2.10") && reaches(Some("moving"), "192.0.2.11"));
        assert!(attached("h-moving").contains("netmig_inbound"));
        gate.detach().unwrap();
        assert_eq!(attached("h-moving"), "");
        assert!(!run("tc qdisc show dev h-moving").contains("clsact"));
        assert!(!lab.pins("gate").exists());
        assert!(reaches(None, "192.0.2.10"));
    });
}

#[test]
fn tcx_opens_and_closes_one_container_and_detach_leaves_nothing() {
    opens_and_closes(Via::Best);
}

#[test]
fn clsact_opens_and_closes_one_container_and_detach_leaves_nothing() {
    opens_and_closes(Via::Clsact);
}

/// What the operator had at the device stays.
#[test]
fn a_clsact_qdisc_and_filter_of_somebody_else_survive() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        run("tc qdisc add dev h-moving clsact");
        run("tc filter add dev h-moving ingress prio 5 protocol ip u32 match u32 0 0 flowid 1:1");
        let before = attached("h-moving");
        assert!(before.contains("u32"));
        let gate = attach(lab, Mode::Closed, &[host_side("h-moving")], Via::Clsact);
        assert!(
            !reaches(None, "192.0.2.10"),
            "the gate comes before a filter that ends the walk"
        );
        gate.detach().unwrap();
        assert_eq!(attached("h-moving"), before);

        // One that came while the gate stood holds the qdisc.
        run("tc qdisc del dev h-moving clsact");
        let gate = attach(lab, Mode::Pass, &[host_side("h-moving")], Via::Clsact);
        run("tc filter add dev h-moving egress prio 5 protocol ip u32 match u32 0 0 flowid 1:1");
        gate.detach().unwrap();
        assert!(attached("h-moving").contains("u32") && !attached("h-moving").contains("netmig"));
    });
}

#[test]
fn a_gate_inside_the_namespace_and_on_lo() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        for via in [Via::Best, Via::Clsact] {
            let points = [
                point(Some("moving"), "eth0", Orientation::Inside),
                point(Some("moving"), "lo", Orientation::Loopback),
            ];
            let gate = attach(lab, Mode::Pass, &points, via);
            assert!(reaches(None, "192.0.2.10") && reaches(Some("moving"), "192.0.2.1"));
            assert!(reaches(Some("moving"), "127.0.0.1") && reaches(Some("moving"), "192.0.2.10"));
            let inbound = gate.counters().unwrap().inbound;
            gate.set_mode(Mode::Closed, FIRST, None).unwrap();
            assert!(!reaches(None, "192.0.2.10") && !reaches(Some("moving"), "192.0.2.1"));
            assert!(!reaches(Some("moving"), "127.0.0.1") && !reaches(Some("moving"), "::1"));
            assert!(
                !reaches(Some("moving"), "192.0.2.10"),
                "to its own address by lo as well"
            );
            let counters = gate.counters().unwrap();
            assert!(
                counters.loopback.dropped[0] >= 3 && counters.loopback.packets >= 4,
                "{counters:?}"
            );
            assert!(
                counters.inbound.dropped[0] >= 1 && counters.inbound.packets >= inbound.packets,
                "{counters:?}"
            );
            gate.detach().unwrap();
            assert!(reaches(Some("moving"), "127.0.0.1") && reaches(None, "192.0.2.10"));
        }
    });
}

/// The links hold without any process of ours: what a crash of the agent leaves behind.
#[test]
fn what_is_pinned_outlives_the_process_and_is_taken_up_again() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        for via in [Via::Best, Via::Clsact] {
            let gate = attach(lab, Mode::Closed, &[host_side("h-moving")], via);
            drop(gate);
            assert!(!reaches(None, "192.0.2.10"), "{via:?}");

            assert!(matches!(
                Gate::reopen(OTHER_MOVE, &lab.pins("gate")),
                Err(Error::OtherMove { .. })
            ));
            let mut gate = Gate::reopen(MOVE, &lab.pins("gate")).unwrap();
            assert_eq!(
                (gate.mode().unwrap().mode, gate.side()),
                (Mode::Closed, Side::Source)
            );
            assert_eq!(
                gate.points().map(|p| p.name.as_str()).collect::<Vec<_>>(),
                ["h-moving"]
            );
            assert!(gate.counters().unwrap().inbound.dropped_packets() > 0);
            gate.add_via(&point(Some("moving"), "lo", Orientation::Loopback), via)
                .unwrap();
            assert!(!reaches(Some("moving"), "127.0.0.1"));
            gate.set_mode(Mode::Pass, Epoch(2), None).unwrap();
            assert!(reaches(None, "192.0.2.10") && reaches(Some("moving"), "127.0.0.1"));
            gate.detach().unwrap();
            assert_eq!(attached("h-moving"), "");
        }
    });
}

/// Another process of this test, killed while it holds the gate.
#[test]
fn a_killed_process_leaves_the_gate_standing() {
    if let Ok(pins) = std::env::var("NETMIG_TEST_GATE_HOLDER") {
        let _gate = Gate::attach(
            MOVE,
            Side::Source,
            Mode::Closed,
            FIRST,
            &[host_side("h-moving")],
            Path::new(&pins),
        )
        .unwrap();
        println!("standing");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    lab(|lab| {
        lab.bridge(&["moving"]);
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "gate::tests::links::a_killed_process_leaves_the_gate_standing",
                "--nocapture",
            ])
            .env("NETMIG_TEST_GATE_HOLDER", lab.pins("gate"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(holder.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("standing") {
            line.clear();
            assert_ne!(
                std::io::BufRead::read_line(&mut said, &mut line).unwrap(),
                0,
                "the holder ended"
            );
        }
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(!reaches(None, "192.0.2.10"));
        Gate::reopen(MOVE, &lab.pins("gate"))
            .unwrap()
            .detach()
            .unwrap();
        assert!(reaches(None, "192.0.2.10"));
    });
}

#[test]
fn the_gate_of_another_move_is_named() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        for via in [Via::Best, Via::Clsact] {
            let gate = attach(lab, Mode::Pass, &[host_side("h-moving")], via);
            let before = attached("h-moving");
            for second in [Via::Best, Via::Clsact] {
                let refused = Gate::attach_via(
                    OTHER_MOVE,
                    Side::Source,
                    Mode::Closed,
                    FIRST,
                    &[host_side("h-moving")],
                    &lab.pins("second"),
                    second,
                );
                let Err(Error::Occupied { device, by }) = refused else {
                    panic!("{via:?} {second:?}: not refused")
                };
                assert_eq!(device, "h-moving");
                assert!(by.ends_with("netmig/gate"), "{via:?} {second:?}: {by:?}");
                assert!(!lab.pins("second").exists(), "nothing is left");
            }
            assert!(matches!(
                Gate::attach(
                    MOVE,
                    Side::Source,
                    Mode::Pass,
                    FIRST,
                    &[],
                    &lab.pins("gate")
                ),
                Err(Error::Exists { .. })
            ));
            assert_eq!(attached("h-moving"), before);
            gate.detach().unwrap();
        }
    });
}

/// Of two points the second cannot be had: the first is let go.
#[test]
fn a_device_that_is_gone_or_has_no_ethernet_leaves_nothing_attached() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        let mut gone = host_side("h-moving");
        gone.ifindex = 4_000_000;
        let mut lo = point(None, "lo", Orientation::Loopback);
        lo.orientation = Orientation::HostSide;
        for via in [Via::Best, Via::Clsact] {
            for (bad, says) in [
                (&gone, "device h-moving (index 4000000) is gone"),
                (&lo, "device lo has link type"),
            ] {
                let points = [host_side("h-moving"), bad.clone()];
                let refused = Gate::attach_via(
                    MOVE,
                    Side::Source,
                    Mode::Closed,
                    FIRST,
                    &points,
                    &lab.pins("gate"),
                    via,
                );
                let error = refused.err().expect("refused").to_string();
                assert!(error.starts_with(says), "{error}");
                assert_eq!(attached("h-moving"), "");
                assert!(!lab.pins("gate").exists() && reaches(None, "192.0.2.10"));
            }
        }
    });
}

#[test]
fn devices_and_namespaces_may_be_gone_before_the_gate() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        for via in [Via::Best, Via::Clsact] {
            let gate = attach(
                lab,
                Mode::Closed,
                &[
                    host_side("h-moving"),
                    point(Some("moving"), "lo", Orientation::Loopback),
                ],
                via,
            );
            run("ip netns del moving; ip link del h-moving 2>/dev/null || true");
            gate.detach().unwrap();
            assert!(!lab.pins("gate").exists());
            run("ip link del br0");
            lab.bridge(&["moving"]);
        }
    });
}

/// A process that died between its steps.
#[test]
fn what_is_half_attached_is_cleared() {
    lab(|lab| {
        lab.bridge(&["moving"]);
        drop(attach(
            lab,
            Mode::Closed,
            &[host_side("h-moving")],
            Via::Best,
        ));
        fs::remove_file(lab.pins("gate").join("at_0_netmig_outbound")).unwrap();
        fs::remove_file(lab.pins("gate").join("gate")).unwrap();
        assert!(matches!(
            Gate::reopen(MOVE, &lab.pins("gate")),
            Err(Error::Absent { .. })
        ));
        assert!(clear(&lab.pins("gate")).is_empty());
        // A pin that goes as the last reference leaves the detaching to a work queue.
        let begin = Instant::now();
        while !attached("h-moving").is_empty() && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(attached("h-moving"), "");
        assert!(!lab.pins("gate").exists());
        assert!(clear(&lab.pins("gate")).is_empty(), "again changes nothing");
    });
}

#[test]
fn pins_of_another_layout_and_paths_off_the_bpffs_are_refused_by_name() {
    lab(|lab| {
        drop(lab.gate(Side::Source, Mode::Pass));
        let identity = lab.pins("gate").join("gate");
        fs::remove_file(&identity).unwrap();
        std::os::unix::fs::symlink(format!("netmig-gate/999 {MOVE} source"), &identity).unwrap();
        assert!(matches!(
            Gate::reopen(MOVE, &lab.pins("gate")),
            Err(Error::Layout { found: 999, .. })
        ));
        let off = Path::new("/run/netmig/gate");
        let refused = Gate::attach(MOVE, Side::Source, Mode::Pass, FIRST, &[], off);
        assert!(matches!(refused, Err(Error::NotBpffs { .. })));
        assert!(!off.exists());
    });
}

/// A target that is being built: what its kernel says by itself (duplicate address detection, MLD, router solicitation, ARP) stays inside
/// until the gate opens.
#[test]
fn no_frame_of_the_container_leaves_a_closed_target() {
    lab(|lab| {
        lab.bridge(&["other"]);
        let capture = Capture::start("other", "eth0");
        run(
            "ip netns add moving; ip link add h-moving type veth peer name eth0 netns moving; ip link set h-moving master br0",
        );
        let gate = Gate::attach(
            MOVE,
            Side::Target,
            Mode::Closed,
            FIRST,
            &[host_side("h-moving")],
            &lab.pins("gate"),
        )
        .unwrap();
        run("ip link set h-moving up; ip -n moving link set eth0 address 02:00:00:00:00:77
             ip -n moving link set eth0 up; ip -n moving link set lo up
             ip -n moving addr add 192.0.2.77/24 dev eth0; ip -n moving addr add 2001:db8::77/64 dev eth0");
        // It asks for its peer's address as well.
        assert!(!reaches(Some("moving"), "192.0.2.10") && !reaches(Some("moving"), "2001:db8::10"));
        std::thread::sleep(Duration::from_millis(1500));
        let outbound = gate.counters().unwrap().outbound;
        let own = |frames: &[Vec<u8>]| {
            frames
                .iter()
                .filter(|f| f.windows(6).any(|w| w == [2, 0, 0, 0, 0, 0x77]))
                .count()
        };
        assert!(
            outbound.dropped[Protocol::Neighbour as usize] >= 4,
            "it did try: {outbound:?}"
        );
        assert_eq!(outbound.packets, 0);
        assert_eq!(own(&capture.frames()), 0);

        gate.set_mode(Mode::Pass, FIRST, None).unwrap();
        run("ip -n moving neigh flush dev eth0");
        assert!(reaches(Some("moving"), "192.0.2.10"));
        assert!(own(&capture.frames()) > 0, "the capture does see it");
        gate.detach().unwrap();
    });
}
