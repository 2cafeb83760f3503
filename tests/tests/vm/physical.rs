//! A container's physical device: another one takes its place, and goes back as it was.
use std::{
    fs,
    path::PathBuf,
    process::{self, Command},
    sync::mpsc,
    thread,
};

use netmig_lab::{
    Host as _,
    vm::{Card, VmHost},
};

use crate::spec;

const CARDS: [&str; 2] = ["02:00:00:00:0c:00", "02:00:00:00:0c:01"];

/// Runs `story` with a guest that has two cards. What is behind them is a network namespace of the story's own.
fn with_two_cards(story: impl FnOnce(&VmHost)) {
    let (ready, there) = mpsc::channel();
    let (done, end) = mpsc::channel::<()>();
    let segment = thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        for tap in ["card0", "card1"] {
            for words in [
                &["tuntap", "add", tap, "mode", "tap"][..],
                &["link", "set", tap, "up"],
            ] {
                let status = Command::new("ip").args(words).status().expect("ip");
                assert!(status.success(), "ip {words:?}");
            }
        }
        let thread = fs::read_link("/proc/thread-self").expect("this thread");
        ready
            .send(PathBuf::from("/proc").join(thread).join("ns/net"))
            .expect("awaited");
        // The other end is dropped when the story ends.
        end.recv().unwrap_or_default();
    });
    let netns = there.recv().expect("a segment");
    let mut spec = spec("6.12");
    spec.name = format!("cards-{}", process::id());
    spec.netns = Some(netns);
    spec.cards = CARDS
        .iter()
        .enumerate()
        .map(|(i, mac)| Card {
            tap: format!("card{i}"),
            mac: (*mac).to_owned(),
        })
        .collect();
    let guest = VmHost::boot(&spec).unwrap_or_else(|error| panic!("{error}"));
    story(&guest);
    drop(guest);
    drop(done);
    segment.join().expect("the segment ends");
}

#[test]
#[ignore = "boots virtual machines"]
fn a_physical_device_is_taken_and_goes_back() {
    with_two_cards(|guest| {
        let shown = |netns: &str, name: &str| {
            guest
                .sh(&format!("ip {netns} -o link show {name} | tr -s ' ' | cut -d' ' -f1,2,5,15-17; ip {netns} -o -4 addr show dev {name} | tr -s ' ' | cut -d' ' -f4; ip {netns} -o link show {name} | grep -c '[<,]UP[,>]' || true"))
                .unwrap_or_else(|error| panic!("{error}"))
        };
        guest
            .sh("ip netns add src; ip link set eth0 netns src; ip -n src link set eth0 name wan mtu 1400; ip -n src link set wan up
                 ip -n src addr add 192.0.2.10/24 dev wan; ip -n src route add default via 192.0.2.1; ip -n src link add link wan name wan.5 type vlan id 5
                 ip link set eth1 up; netmig-user net dump --netns src --out /run/a.json")
            .expect("a container with a card");
        let restore = |options: &str| {
            guest
                .sh(&format!(
                    "netmig-user net restore /run/a.json --netns dst {options} 2>&1 && echo code 0 || echo code $?"
                ))
                .expect("an answer")
        };
        let unmapped = restore("");
        assert!(
            unmapped.contains("link wan is a physical device, which cannot be made here: --map-link wan=DEVICE names the one of this host")
                && unmapped.ends_with("code 3"),
            "{unmapped}"
        );
        guest
            .sh("ip link add d0 type dummy; ip addr add 192.0.2.66/24 dev eth1")
            .expect("what stands against it");
        for (device, why) in [
            ("nowhere", "there is no device nowhere here"),
            ("d0", "d0 is a dummy device here"),
            ("eth1", "eth1 has this host's own address 192.0.2.66/24"),
        ] {
            let refused = restore(&format!("--map-link wan={device}"));
            assert!(
                refused.contains(why) && refused.ends_with("code 3"),
                "{refused}"
            );
        }
        guest
            .sh("ip addr del 192.0.2.66/24 dev eth1")
            .expect("room");
        let before = shown("", "eth1");
        assert!(before.contains(CARDS[1]), "{before}");

        // What fails halfway is undone: the card is the host's again, as it was.
        guest
            .sh("sed 's/\"address\": \"192.0.2.1\"/\"address\": \"192.0.9.1\"/; s/\"gateway\": \"192.0.2.1\"/\"gateway\": \"192.0.9.1\"/' /run/a.json >/run/bad.json")
            .expect("a route that leads nowhere");
        let failed = guest
            .sh("netmig-user net restore /run/bad.json --netns dst --map-link wan=eth1 2>&1 && echo code 0 || echo code $?; ls /run/netns")
            .expect("an answer");
        assert!(
            failed.contains("adding route") && failed.contains("code 1") && !failed.contains("dst"),
            "{failed}"
        );
        assert_eq!(shown("", "eth1"), before);

        // The first card is out of the way as a source's would be: on another host.
        guest
            .sh("ip -n src link set wan down; ip -n src link set wan address 02:00:00:00:0c:77")
            .expect("out of the way");
        let made = restore("--map-link wan=eth1");
        assert!(made.ends_with("code 0"), "{made}");
        let there = shown("-n dst", "wan");
        assert!(
            there.contains(CARDS[0]) && there.contains("192.0.2.10/24") && there.contains("1400"),
            "{there}"
        );
        guest
            .sh("! ip link show eth1 2>/dev/null")
            .expect("it is there no more");
        let other = guest
            .sh("netmig-user net diff /run/a.json netns:dst | grep -v 'index [0-9]* -> [0-9]*$' || true")
            .expect("compared");
        assert_eq!(other, "");
    });
}
