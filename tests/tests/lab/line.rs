//! The line between a host and the switch.
use std::time::{Duration, Instant};

use netmig_lab::{
    Host as _, Lab, Options,
    lab::link::{Counts, Line},
};

fn up(story: &str, line: Line) -> Lab {
    let options = Options {
        line: Some(line),
        ..Options::default()
    };
    Lab::temporary(story, &options).expect("a lab")
}

/// The line's counts, once they have been written down.
fn counts(lab: &Lab, enough: impl Fn(&Counts) -> bool) -> Counts {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let counts = lab.line_counts().expect("counts").unwrap_or_default();
        if enough(&counts) {
            return counts;
        }
        assert!(Instant::now() < end, "{counts:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What ping says: received packets, and the round trip in ms (smallest, average, largest).
fn ping(lab: &Lab, to: &str, packets: u32) -> (u32, Vec<f64>) {
    let count = packets.to_string();
    let said = lab
        .peer()
        .sh(&format!("ping -n -i 0.01 -c {count} -W 2 {to} || true"))
        .expect("ping");
    let received = said
        .split(", ")
        .find_map(|part| part.strip_suffix(" received")?.parse().ok())
        .unwrap_or_else(|| panic!("{said}"));
    let times = said
        .lines()
        .find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = "))
        .map(|times| {
            times
                .split(['/', ' '])
                .take(3)
                .map(|t| t.parse().expect("a time"))
        })
        .map(Iterator::collect)
        .unwrap_or_default();
    (received, times)
}

#[test]
fn a_long_line_takes_its_time_and_loses_nothing() {
    let _alone = super::alone();
    let rtt = Duration::from_millis(20);
    let lab = up(
        "long",
        Line {
            rtt,
            ..Line::default()
        },
    );
    for address in ["192.0.2.1", "2001:db8::2"] {
        let (received, times) = ping(&lab, address, 20);
        assert_eq!(received, 20, "{address}");
        assert!(times[0] >= 20.0, "{address}: {times:?}");
        assert!(times[0] < 25.0, "{address}: {times:?}");
    }
    // What the hosts said of themselves before `peer` was up is refused.
    let before = counts(&lab, |c| c.sent[0] >= 40);
    // Super-packets pass: 8 MB in fewer frames than segments.
    let bytes = 8 << 20;
    lab.a()
        .sh(&format!(
            "(iperf3 -s -1 -p 5209 >/dev/null 2>&1 &) ; until ss -Hltn 'sport = 5209' | grep -q .; do sleep 0.05; done; echo {bytes}"
        ))
        .expect("a server");
    lab.peer()
        .sh(&format!(
            "iperf3 -c 192.0.2.1 -p 5209 -n {bytes} >/dev/null"
        ))
        .expect("a stream");
    let counts = counts(&lab, |c| c.bytes[0] >= bytes);
    assert!(counts.sent[0] < bytes / 1448, "{counts:?}");
    assert_eq!((counts.lost, counts.full), ([0; 2], [0; 2]));
    assert_eq!(counts.refused, before.refused);
    lab.down().expect("down");
}

#[test]
fn a_bad_line_loses_delays_and_doubles_its_share() {
    let _alone = super::alone();
    let share = |text: &str| text.parse().expect("a share");
    let lab = up(
        "bad",
        Line {
            loss: share("20%"),
            duplicate: share("20%"),
            seed: 7,
            ..Line::default()
        },
    );
    let (received, _) = ping(&lab, "192.0.2.1", 200);
    // Each echo crosses the line twice: 64 % come back.
    assert!((90..=165).contains(&received), "{received} of 200");
    let counts = counts(&lab, |c| c.sent[0] >= 200);
    assert!(counts.lost[0] > 0 && counts.lost[1] > 0, "{counts:?}");
    assert!(counts.doubled[0] > 0 && counts.doubled[1] > 0, "{counts:?}");
    assert_eq!((counts.full, counts.late), ([0; 2], [0; 2]));
    lab.down().expect("down");
}

#[test]
fn a_narrow_line_passes_its_rate_and_drops_what_waits_too_long() {
    let _alone = super::alone();
    let lab = up(
        "narrow",
        Line {
            rate: Some("20mbit".parse().expect("a rate")),
            queue: Some(Duration::from_millis(10)),
            ..Line::default()
        },
    );
    // 40 Mbit/s of datagrams for 2 s.
    lab.a()
        .sh("(iperf3 -s -1 -p 5209 >/tmp/server 2>&1 &) ; until ss -Hltn 'sport = 5209' | grep -q .; do sleep 0.05; done")
        .expect("a server");
    let said = lab
        .peer()
        .sh("iperf3 -u -b 40M -l 1400 -t 2 -c 192.0.2.1 -p 5209 --json")
        .expect("a stream");
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let sum = &said["end"]["sum_received"];
    let rate = sum["bits_per_second"].as_f64().expect("a rate");
    assert!((12e6..=20.5e6).contains(&rate), "{sum}");
    let counts = counts(&lab, |c| c.full[0] > 0);
    assert_eq!(counts.lost, [0; 2], "{counts:?}");
    lab.down().expect("down");
}
