//! `netmig-user net dump|restore|diff` on namespaces, by itself.
use std::{
    fs,
    process::{Command, Output},
};

use netmig_user::net::document::{Document, SCHEMA};

use crate::{
    filters::FILTERS,
    round_trip::FIXTURE,
    world::{container, ns, on, segment, sh, world},
};

/// Runs `netmig-user net` in the namespace of the calling thread.
fn net(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netmig-user"))
        .arg("net")
        .args(args)
        .output()
        .unwrap()
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn dump_restore_dump_diff() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || sh(FIXTURE));
        on("src", || sh(FILTERS));
        let run = |host: &str, args: &[&str]| on(host, || told(&net(args)));
        let done = (Some(0), String::new());
        assert_eq!(
            run("a", &["dump", "--netns", "src", "--out", "/run/one"]),
            done
        );
        assert_eq!(
            run("b", &["restore", "/run/one", "--netns", "dst", "--check"]),
            done
        );
        assert!(!ns("dst").exists(), "a check makes nothing");
        assert_eq!(run("b", &["restore", "/run/one", "--netns", "dst"]), done);
        assert_eq!(
            run(
                "b",
                &["dump", "--netns", "/run/netns/dst", "--out", "/run/two"]
            ),
            done
        );
        assert_eq!(run("a", &["diff", "/run/one", "/run/two"]), done);
        assert_eq!(run("a", &["diff", "netns:src", "netns:dst"]), done);
        let parsed =
            |file: &str| Document::parse(&fs::read_to_string(file).unwrap(), file).unwrap();
        assert_eq!(parsed("/run/one").attach, parsed("/run/two").attach);

        on("src", || {
            sh(
                "conntrack -I -p udp -s 192.0.2.9 -d 192.0.2.10 --sport 7 --dport 80 -t 600 -g 192.0.2.10:8080 2>/dev/null",
            )
        });
        let with = [
            "dump",
            "--connections",
            "--netns",
            "src",
            "--out",
            "/run/three",
        ];
        assert_eq!(run("a", &with), done);
        sh("ip netns del dst");
        assert_eq!(run("b", &["restore", "/run/three", "--netns", "dst"]), done);
        let tracked = on("dst", || {
            sh("conntrack -L -p udp --orig-port-dst 80 2>/dev/null")
        });
        assert!(
            tracked.contains("src=192.0.2.10 dst=192.0.2.9 sport=8080"),
            "{tracked}"
        );

        on("dst", || {
            sh(
                "ip addr del 198.51.100.10/25 dev eth0; nft add rule inet f deep counter; echo 0 > /proc/sys/net/ipv4/ip_forward",
            )
        });
        let (code, text) = run("a", &["diff", "/run/one", "netns:dst"]);
        assert_eq!(code, Some(1));
        for line in [
            "addresses 198.51.100.10/25 of eth0: only in the first",
            "nft inet f:\n  + counter packets 0 bytes 0",
            "sysctls net/ipv4/ip_forward: only in the first",
        ] {
            assert!(text.contains(line), "no `{line}` in {text}");
        }
        let (code, text) = run("a", &["diff", "--json", "/run/one", "netns:dst"]);
        let text: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (code, &text["schema"]),
            (Some(1), &"netmig.net-diff/1".into())
        );
    });
}

#[test]
fn a_restored_network_is_announced_and_each_part_timed() {
    world(|| {
        segment(&["a", "b", "peer"]);
        container("a", "src", "02:00:00:00:00:10");
        sh(
            "ip -n src addr add 192.0.2.10/24 dev eth0; ip -n peer addr add 192.0.2.99/24 dev br0
            ip -n peer neigh add 192.0.2.10 lladdr 02:00:00:00:00:66 dev br0 nud stale",
        );
        let run = |host: &str, line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(on(host, || told(&net(&words))), (Some(0), String::new()));
        };
        run(
            "a",
            "dump --netns src --connections --out /run/one --times /run/read",
        );
        sh("ip netns del src");
        run(
            "b",
            "restore /run/one --netns dst --announce --times /run/made",
        );
        let neighbour = sh("ip -n peer neigh show 192.0.2.10");
        assert!(neighbour.contains("02:00:00:00:00:10"), "{neighbour}");
        let parts = |file: &str| -> Vec<String> {
            let times: serde_json::Value =
                serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
            assert_eq!(times["schema"], "netmig.net-times/1");
            let parts = times["parts"].as_array().unwrap();
            let named = |part: &serde_json::Value| {
                assert!(part["ms"].as_f64().unwrap() > 0.0, "{part}");
                part["what"].as_str().unwrap().to_owned()
            };
            parts.iter().map(named).collect()
        };
        let (read, made) = (parts("/run/read"), parts("/run/made"));
        for part in ["links", "addresses", "routes", "filters", "connections"] {
            assert!(
                read.iter().any(|p| p == part) && made.iter().any(|p| p == part),
                "{part}: {read:?}, {made:?}"
            );
        }
        assert_eq!(made.last().map(String::as_str), Some("announcement"));
    });
}

#[test]
fn bad_input_says_what_where_and_what_to_do() {
    world(|| {
        segment(&["a"]);
        container("a", "src", "02:00:00:00:00:10");
        let run = |args: &[&str]| on("a", || told(&net(args)));
        let expect = |args: &[&str], code: i32, words: &[&str]| {
            let (ended, text) = run(args);
            assert_eq!(ended, Some(code), "{args:?}: {text}");
            for word in words {
                assert!(text.contains(word), "{args:?}: no `{word}` in {text}");
            }
        };
        expect(
            &["dump", "--netns", "nowhere"],
            1,
            &["/run/netns/nowhere", "ip netns"],
        );
        expect(
            &["dump", "--netns", "4000000"],
            1,
            &["/proc/4000000/ns/net"],
        );
        fs::write("/run/old", r#"{"schema": "netmig.net/0", "links": []}"#).unwrap();
        expect(
            &["restore", "/run/old", "--netns", "dst"],
            1,
            &["/run/old", "netmig.net/0", SCHEMA],
        );
        fs::write(
            "/run/broken",
            format!(r#"{{"schema": "{SCHEMA}", "network": {{"links": 5}}}}"#),
        )
        .unwrap();
        expect(
            &["restore", "/run/broken", "--netns", "dst"],
            1,
            &["/run/broken", "line 1"],
        );
        expect(&["diff", "/run/none", "netns:src"], 2, &["/run/none"]);
        run(&["dump", "--netns", "src", "--out", "/run/one"]);
        expect(
            &["restore", "/run/one", "--netns", "/proc/self/ns/net"],
            1,
            &["this host itself uses"],
        );
        let elsewhere = &[
            "restore", "/run/one", "--netns", "dst", "--attach", "eth0=br9",
        ];
        expect(
            elsewhere,
            3,
            &["there is no bridge br9", "ip link add br9 type bridge"],
        );
        // The container's MAC is in use in front of the very bridge that it hangs on.
        expect(
            &["restore", "/run/one", "--netns", "src"],
            3,
            &["has a link eth0 already"],
        );
    });
}

#[test]
fn what_cannot_be_made_is_named_and_the_rest_made_without_it() {
    world(|| {
        segment(&["a", "b"]);
        container("a", "src", "02:00:00:00:00:10");
        on("src", || {
            sh("ip addr add 192.0.2.10/24 dev eth0; ip link add inner0 type veth peer name inner1
                ip link add vx0 type vxlan id 77 remote 192.0.2.99 dstport 4789 dev eth0
                ip link set vx0 up; ip addr add 10.7.0.1/24 dev vx0; ip route add 10.70.0.0/16 via 10.7.0.9 dev vx0
                ip link set inner0 up; ip link set inner1 up; ip addr add 10.8.0.1/24 dev inner0; ip route add 10.80.0.0/16 dev inner0")
        });
        on("a", || {
            net(&["dump", "--netns", "src", "--out", "/run/one"])
        });
        let text = fs::read_to_string("/run/one").unwrap();
        let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let network = &mut document["network"];
        for link in network["links"].as_array_mut().unwrap() {
            if link["name"] == "vx0" {
                link["kind"]["virtual"]["kind"] = "of_another_kernel".into();
            }
        }
        for route in network["routes"].as_array_mut().unwrap() {
            if route["destination"]["address"] == "10.80.0.0" {
                route["next_hops"][0]["link"] = "gone0".into();
            }
        }
        fs::write("/run/odd", document.to_string()).unwrap();
        let restore = |more: &[&str]| {
            let args = [
                "restore", "/run/odd", "--netns", "dst", "--attach", "eth0=br0",
            ];
            on("b", || told(&net(&[&args, more].concat())))
        };
        let (code, said) = restore(&[]);
        assert_eq!(code, Some(3), "{said}");
        for words in [
            "link vx0 is a of_another_kernel device, which cannot be made here",
            "needs link gone0, which the container does not have",
        ] {
            assert!(said.contains(words), "no `{words}` in {said}");
        }
        assert!(!ns("dst").exists());
        for more in [&["--partial", "--check"][..], &["--partial"]] {
            let (code, said) = restore(more);
            assert_eq!(code, Some(0), "{said}");
            for words in [
                "link vx0 is left out: it is a of_another_kernel device",
                "address 10.7.0.1/24 is left out: it needs link vx0",
                "route 10.70.0.0/16 via 10.7.0.9 dev vx0 table 254 is left out: it needs link vx0",
                "route 10.80.0.0/16 dev gone0 table 254 is left out: it needs link gone0",
            ] {
                assert!(said.contains(words), "no `{words}` in {said}");
            }
        }
        let (code, said) = told(&net(&["diff", "/run/one", "netns:dst"]));
        let all_named = |line: &str| {
            ["vx0", "10.7.0", "10.70.0", "10.80.0"]
                .iter()
                .any(|gone| line.contains(gone))
        };
        assert!(code == Some(1) && said.lines().all(all_named), "{said}");
    });
}

#[test]
fn the_example_in_the_documentation_is_a_document() {
    let page = include_str!("../../../docs/network.md");
    let example = page.split("```json\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let document = Document::parse(example, "docs/network.md").unwrap();
    let network = &document.network;
    assert!(
        !network.links.is_empty() && !network.routes.is_empty() && !network.filters.nft.is_empty()
    );
    // What the page does not show is not there: every field is in it.
    let again = serde_json::to_value(&document).unwrap();
    let shown: serde_json::Value = serde_json::from_str(example).unwrap();
    assert_eq!(again, shown);
}
