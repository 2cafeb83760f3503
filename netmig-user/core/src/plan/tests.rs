use super::*;
use crate::{
    container::{Container, MountFate, Recipe},
    image::v1::net::{Address, Prefix},
    service::Service,
    socket::{Class, Kind, State},
};

fn facts(hostname: &str) -> HostFacts {
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    HostFacts {
        hostname: hostname.into(),
        arch: "x86_64".into(),
        kernel: "6.18.1".into(),
        criu: Some("4.2.1".into()),
        tools: vec![
            ("podman".into(), "5.4.2".into()),
            ("crun".into(), "1.21".into()),
        ],
        cpu_flags: words("avx avx2 sse4_2 xsave constant_tsc"),
        cgroup: 2,
        lsm: words("capability landlock"),
        free_bytes: 10 << 30,
        run_free_bytes: 2 << 30,
        memory_available_bytes: 4 << 30,
    }
}

fn question() -> Question {
    let recipe = Recipe::Bundle {
        config: "{}".into(),
        bundle: "/b".into(),
        rootfs: "/b/r".into(),
    };
    let mount = Mount {
        destination: "/data".into(),
        source: None,
        kind: "volume".into(),
        volume: Some("data".into()),
        fate: MountFate::Copy,
        file: false,
    };
    let container = Container {
        manager: Manager::Crun,
        id: "redis".into(),
        name: "redis".into(),
        init_pid: 7,
        netns: None,
        cgroup: None,
        mounts: vec![mount],
        upper: None,
        resurrectors: vec![Resurrector::RestartPolicy("always".into())],
        recipe,
    };
    let attach = vec![Attach {
        link: "eth0".into(),
        parent: "br0".into(),
    }];
    Question {
        container,
        network: Default::default(),
        attach,
        facts: facts("a"),
        memory_bytes: 100 << 20,
        file_bytes: 5 << 20,
        image_bytes: 30 << 20,
        behind: None,
    }
}

fn row(fate: Fate) -> Row {
    Row {
        kind: Kind::Tcp,
        state: State::Established,
        local: "192.0.2.10:6379".into(),
        peer: "192.0.2.20:40000".into(),
        inode: 1,
        owners: Vec::new(),
        rqueue: 0,
        wqueue: 0,
        options: Vec::new(),
        class: Class::TcpEstablished,
        fate,
    }
}

fn decided(change: impl FnOnce(&mut Question, &mut Answer, &mut Given<'_>)) -> Plan {
    let (mut question, mut answer) = (
        question(),
        Answer {
            facts: facts("b"),
            ..Default::default()
        },
    );
    let (q, a) = (question.clone(), answer.clone());
    let mut given = Given {
        question: &q,
        answer: &a,
        objections: &[],
        warnings: &[],
        sockets: &[],
        engine: Engine::Criu,
        allow: &[],
        rate: None,
        max_blackout_ms: None,
    };
    change(&mut question, &mut answer, &mut given);
    decide(&Given {
        question: &question,
        answer: &answer,
        ..given
    })
}

fn keys(plan: &Plan) -> Vec<&str> {
    plan.objections.iter().map(|o| o.key.as_str()).collect()
}

#[test]
fn an_accept_queue_wants_a_target_that_can_take_it() {
    let waiting = [Row {
        class: Class::TcpEmbryo,
        ..row(Fate::Moves)
    }];
    let with = |kernel: &str, sockets: &[Row], allow: &[String]| {
        let target = HostFacts {
            kernel: kernel.into(),
            ..facts("b")
        };
        decide(&Given {
            question: &question(),
            answer: &Answer {
                facts: target,
                ..Default::default()
            },
            objections: &[],
            warnings: &[],
            sockets,
            engine: Engine::Criu,
            allow,
            rate: None,
            max_blackout_ms: None,
        })
    };
    let about_queues = |plan: &Plan| {
        let found = plan.objections.iter().find(|o| o.key == "reset");
        found.map(|o| o.waived)
    };
    assert_eq!(about_queues(&with("6.9.0", &waiting, &[])), None);
    assert_eq!(
        about_queues(&with("6.1.0-13-amd64", &waiting, &[])),
        Some(false)
    );
    let allowed = ["reset".to_owned()];
    assert_eq!(
        about_queues(&with("6.1.0-13-amd64", &waiting, &allowed)),
        Some(true)
    );
    assert_eq!(about_queues(&with("6.1.0-13-amd64", &[], &[])), None);
}

#[test]
fn equal_hosts_have_no_objection() {
    let plan = decided(|_, _, _| {});
    assert_eq!(plan.refusals(), Vec::<String>::new());
    assert_eq!(plan.warnings, Vec::<String>::new());
    assert_eq!(plan.disarm, [Resurrector::RestartPolicy("always".into())]);
}

#[test]
fn each_difference_is_named() {
    type Change = fn(&mut Question, &mut Answer);
    let cases: [(&str, Change); 17] = [
        ("arch", |_, a| a.facts.arch = "aarch64".into()),
        ("cpu", |q, _| q.facts.cpu_flags.push("avx512f".into())),
        ("cgroup", |_, a| a.facts.cgroup = 1),
        ("cgroup", |q, _| q.facts.cgroup = 1),
        ("lsm", |q, _| q.facts.lsm.push("apparmor".into())),
        ("criu", |_, a| a.facts.criu = None),
        ("criu", |q, _| q.facts.criu = None),
        ("criu", |q, a| {
            (q.facts.criu, a.facts.criu) = (Some("4.1.1".into()), Some("4.2.1".into()))
        }),
        ("criu-images", |q, _| q.facts.criu = Some("4.3".into())),
        ("crun", |_, a| a.facts.tools.clear()),
        ("crun", |q, _| {
            q.facts.tools = vec![("crun".into(), "1.8".into())]
        }),
        ("room", |_, a| a.facts.free_bytes = 5 << 20),
        ("run-room", |_, a| a.facts.run_free_bytes = 105 << 20),
        ("run-room", |q, _| q.facts.run_free_bytes = 105 << 20),
        ("memory", |_, a| a.facts.memory_available_bytes = 199 << 20),
        ("memory", |q, _| q.facts.memory_available_bytes = 99 << 20),
        ("target", |_, a| {
            a.objections.push("there is no bridge br0; make it".into())
        }),
    ];
    for (key, change) in cases {
        let plan = decided(|q, a, _| change(q, a));
        assert_eq!(keys(&plan), [key], "{plan}");
        assert_eq!(plan.refusals().len(), 1);
    }
}

#[test]
fn an_old_criu_is_enough_for_an_old_kernel() {
    let plan = decided(|q, a, _| {
        for facts in [&mut q.facts, &mut a.facts] {
            (facts.criu, facts.kernel) = (Some("4.1.1".into()), "6.12.48+deb13-amd64".into());
        }
    });
    assert_eq!(keys(&plan), Vec::<&str>::new());
}

#[test]
fn what_no_instruction_depends_on_is_no_difference() {
    let plan = decided(|q, a, _| {
        q.facts
            .cpu_flags
            .extend(["ibrs".into(), "hypervisor".into()]);
        a.facts.lsm.push("apparmor".into());
        a.facts.kernel = "7.2.0".into();
    });
    assert_eq!(keys(&plan), Vec::<&str>::new());
    assert_eq!(plan.warnings, Vec::<String>::new());
}

#[test]
fn an_older_kernel_is_a_warning() {
    let plan = decided(|_, a, _| a.facts.kernel = "6.12.48".into());
    assert_eq!(keys(&plan), Vec::<&str>::new());
    assert!(plan.warnings[0].contains("6.12.48"));
}

#[test]
fn only_what_can_be_waived_is() {
    let allow = ["cpu".to_owned(), "arch".to_owned()];
    let plan = decided(|q, _, _| q.facts.cpu_flags.push("avx512f".into()));
    assert!(plan.refusals()[0].ends_with("--allow cpu goes on all the same"));
    let (mut q, mut a) = (
        question(),
        Answer {
            facts: facts("b"),
            ..Default::default()
        },
    );
    q.facts.cpu_flags.push("avx512f".into());
    let decide_with = |q: &Question, a: &Answer| {
        decide(&Given {
            question: q,
            answer: a,
            objections: &[],
            warnings: &[],
            sockets: &[],
            engine: Engine::Criu,
            allow: &allow,
            rate: None,
            max_blackout_ms: None,
        })
    };
    let plan = decide_with(&q, &a);
    assert_eq!(plan.refusals(), Vec::<String>::new());
    assert!(plan.warnings[0].starts_with("waived by --allow cpu"));
    a.facts.arch = "aarch64".into();
    assert_eq!(decide_with(&q, &a).refusals().len(), 1);
}

#[test]
fn an_image_that_the_target_lacks_is_sent_and_needs_room() {
    let podman = |q: &mut Question| {
        q.container.manager = Manager::Podman;
        q.container.recipe = Recipe::Podman {
            args: Vec::new(),
            command: Vec::new(),
            image_id: "0123456789ab".into(),
            image_name: "localhost/redis:7".into(),
            oci_runtime: "crun".into(),
            networks: Vec::new(),
            static_dir: "/s".into(),
            cgroups_path: None,
            shm: None,
            log: None,
        };
    };
    let there = decided(|q, _, _| podman(q));
    assert_eq!((keys(&there), &there.image), (vec![], &None));
    let plan = decided(|q, a, _| {
        podman(q);
        a.lacks_image = true;
    });
    assert_eq!(keys(&plan), Vec::<&str>::new());
    assert!(
        plan.to_string()
            .contains("image localhost/redis:7 is not at the target and will be sent (30.0 MiB)"),
        "{plan}"
    );
    assert_eq!(plan.prediction.running_bytes, 35 << 20);
    // Files and a tenth more would fit without the image.
    let tight = |lacks_image| {
        decided(|q, a, _| {
            podman(q);
            a.facts.free_bytes = 20 << 20;
            a.lacks_image = lacks_image;
        })
    };
    assert_eq!(keys(&tight(false)), Vec::<&str>::new());
    assert_eq!(keys(&tight(true)), ["room"]);
}

#[test]
fn a_handed_over_program_needs_no_criu() {
    let plan = decided(|_, a, given| {
        a.facts.criu = None;
        given.engine = Engine::Handoff;
    });
    assert_eq!(keys(&plan), Vec::<&str>::new());
}

#[test]
fn the_prediction_grows_with_memory_and_shrinks_with_the_link() {
    let most = |memory, bytes_per_s| {
        let plan = decided(|q, _, given| {
            q.memory_bytes = memory;
            given.rate = Some(Rate {
                bytes_per_s,
                rtt_ms: 1.0,
            });
        });
        plan.prediction.blackout_ms
    };
    assert!(most(0, 125e6) < most(100 << 20, 125e6));
    assert!(most(100 << 20, 1250e6) < most(100 << 20, 125e6));
    // 100 MiB over a gigabit link take 839 ms.
    let slow = most(100 << 20, 125e6);
    assert!((1000.0..1300.0).contains(&slow), "{slow}");
    let plan = decided(|_, _, given| given.max_blackout_ms = Some(250));
    assert_eq!(keys(&plan), ["blackout"]);
    // How much is left to send is known after the last round only: what may still be met is no reason to refuse.
    let plan = decided(|_, _, given| {
        given.max_blackout_ms = Some(500);
        given.rate = Some(Rate {
            bytes_per_s: 1e6,
            rtt_ms: 1.0,
        });
    });
    let Prediction {
        least_ms,
        blackout_ms: most_ms,
        ..
    } = plan.prediction;
    assert!(least_ms < 500.0 && most_ms > 100_000.0, "{plan}");
    assert_eq!(keys(&plan), Vec::<&str>::new());
    let left = blackout_ms(100 << 20, 1 << 20, plan.prediction.rate);
    assert!((1_200.0..1_500.0).contains(&left), "{left}");
    let plan = decided(|_, _, given| given.max_blackout_ms = Some(5_000));
    assert_eq!(keys(&plan), Vec::<&str>::new());
}

#[test]
fn a_plan_is_json_and_comes_back() {
    let rows = [
        row(Fate::Moves),
        row(Fate::Reset("its peer is gone".into())),
    ];
    let (q, a) = (
        question(),
        Answer {
            facts: facts("b"),
            ..Default::default()
        },
    );
    let given = Given {
        question: &q,
        answer: &a,
        objections: &["device /dev/fuse is open".to_owned()],
        warnings: &[],
        sockets: &rows,
        engine: Engine::Criu,
        allow: &[],
        rate: Some(Rate {
            bytes_per_s: 125e6,
            rtt_ms: 0.5,
        }),
        max_blackout_ms: None,
    };
    let plan = decide(&given);
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["schema"], SCHEMA);
    let shown = plan.to_string();
    for line in [
        "crun redis from a to b",
        "link eth0 on br0",
        "mount /data: copied",
        "disarmed: restart policy always",
        "sockets: 1 of 2 move whole",
        "reset: its peer is gone",
        "refused: device /dev/fuse is open",
    ] {
        assert!(shown.contains(line), "{line:?} in\n{shown}");
    }
    let schema = schema();
    let described = schema["properties"].as_object().unwrap();
    assert!(
        json.as_object()
            .unwrap()
            .keys()
            .all(|key| described.contains_key(key))
    );
}

#[test]
fn a_plan_says_which_service_addresses_move_and_which_both_hosts_have() {
    let address = |text: &str, len| {
        Address::new(
            "eth1",
            Prefix {
                address: text.parse().unwrap(),
                len,
            },
        )
    };
    let service = |text: &str, len| Service {
        address: address(text, len),
        mac: None,
        device: "eth2".into(),
    };
    let plan = decided(|question, answer, _| {
        question.behind = Some(Behind {
            services: vec![service("192.0.2.50", 24), service("2001:db8::50", 128)],
            ..Behind::default()
        });
        answer.shared = vec!["2001:db8::50".parse().unwrap()];
    });
    let moves: Vec<_> = plan.services.iter().map(|s| s.moves).collect();
    assert_eq!(moves, [true, false]);
    let text = plan.to_string();
    for line in [
        "service address 192.0.2.50/24 moves from eth1 to eth2 there",
        "service address 2001:db8::50/128 is on both hosts (eth1)",
    ] {
        assert!(text.contains(line), "no `{line}` in: {text}");
    }
}
