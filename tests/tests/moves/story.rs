//! What every story is made of: a lab, containers with a redis in it, clients, and a look at what a move leaves.
use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use netmig_lab::{
    Bind, Cmd, Host, Lab, Options, Output,
    demo::Image,
    lab::link::Line,
    root,
    vm::{Pair, Spec, stories},
};
use serde_json::Value;

use crate::{
    bundle,
    container::{Container, How},
};

pub const PEER_PROGRAM: &str = "/usr/bin/netmig-peer";
/// Clients give up a connection after 30 s, so these are longer.
pub const PATIENCE: Duration = Duration::from_secs(60);
const REPORT: &str = "/tmp/report.json";

/// What the hosts are.
enum Ground {
    Namespaces(Lab),
    Machines(Box<Pair>),
}

/// A lab, which may know the image.
pub struct Story {
    ground: Ground,
    image: Option<Image>,
    /// Whether its hosts are emulated: everything takes longer there.
    pub emulated: bool,
}

impl Story {
    pub fn up(name: &str) -> Self {
        Self::over(name, None)
    }

    /// A lab whose peer is at the end of this line.
    pub fn over(name: &str, line: Option<Line>) -> Self {
        let program = peer_program();
        let image = match env::var_os(stories::IMAGE) {
            Some(archive) => Image::built(archive.into()).expect("an image"),
            None => build_image(&program),
        };
        let options = Options {
            line,
            ..options(program)
        };
        let lab = Lab::temporary(name, &options).expect("a lab");
        std::thread::scope(|scope| {
            for host in [lab.a(), lab.b()] {
                let image = &image;
                scope.spawn(move || image.load(host).expect("the image"));
            }
        });
        Self {
            ground: Ground::Namespaces(lab),
            image: Some(image),
            emulated: env::var_os(stories::EMULATED).is_some(),
        }
    }

    /// A lab without the image, with `binds`.
    pub fn with(name: &str, binds: Vec<Bind>) -> Self {
        let options = Options {
            binds,
            ..Options::default()
        };
        let lab = Lab::temporary(name, &options).expect("a lab");
        Self {
            ground: Ground::Namespaces(lab),
            image: None,
            emulated: env::var_os(stories::EMULATED).is_some(),
        }
    }

    /// The hosts are these machines, and the peer is on this one.
    pub fn between(name: &str, mut machines: [Spec; 2]) -> Self {
        let program = peer_program();
        let image = build_image(&program);
        let mut archive = String::new();
        for spec in &mut machines {
            archive = spec.carry(image.archive()).expect("an archive");
        }
        let name = format!("{name}-{}", std::process::id());
        let pair = Pair::up(&name, &options(program), machines).expect("a pair");
        std::thread::scope(|scope| {
            for host in [pair.a(), pair.b()] {
                let load = ["podman", "load", "--quiet", "--input", &archive];
                scope.spawn(move || host.run(&load).expect("the image"));
            }
        });
        Self {
            ground: Ground::Machines(Box::new(pair)),
            image: Some(image),
            emulated: true,
        }
    }

    /// The host of this name, which there is.
    fn host(&self, name: &str) -> &dyn Host {
        let found = match &self.ground {
            Ground::Namespaces(lab) => lab.host(name).map(|host| host as &dyn Host),
            Ground::Machines(pair) => pair.host(name),
        };
        found.expect("every lab has it")
    }

    pub fn a(&self) -> &dyn Host {
        self.host("a")
    }

    pub fn b(&self) -> &dyn Host {
        self.host("b")
    }

    pub fn peer(&self) -> &dyn Host {
        self.host("peer")
    }

    pub fn image(&self) -> &str {
        self.image.as_ref().expect("a lab with the image").name()
    }

    /// The other of the two hosts.
    pub fn other(&self, host: &dyn Host) -> &dyn Host {
        if host.name() == "a" {
            self.b()
        } else {
            self.a()
        }
    }

    /// Ends the hosts; nothing of them is left.
    pub fn down(self) {
        match self.ground {
            Ground::Namespaces(lab) => lab.down().expect("nothing is left"),
            Ground::Machines(pair) => pair.down().expect("nothing is left"),
        }
    }

    /// How long something may take that is to come by itself.
    fn soon(&self) -> Duration {
        Duration::from_secs(if self.emulated { 120 } else { 20 })
    }

    /// Starts the container on `host` and waits until its redis answers.
    pub fn start(&self, host: &dyn Host, container: &Container) {
        self.start_with(host, container, &["/bin/redis-server", "/etc/redis.conf"]);
    }

    /// As [`Story::start`], with another first process under podman.
    pub fn start_with(&self, host: &dyn Host, container: &Container, command: &[&str]) {
        match container.how {
            How::Podman(runtime) => {
                let network = format!(
                    "lab:ip={},ip6={},mac={}",
                    container.ipv4(),
                    container.ipv6(),
                    container.mac()
                );
                let mut run = vec![
                    "podman",
                    "--runtime",
                    runtime,
                    "run",
                    "--detach",
                    "--name",
                    container.name,
                    "--network",
                    &network,
                    self.image(),
                ];
                run.extend(command);
                host.run(&run).expect("a container");
            }
            How::Runc | How::Crun => bundle::start(host, container, self.image()),
        }
        self.wait_until_it_answers(container);
    }

    pub fn wait_until_it_answers(&self, container: &Container) {
        for v6 in [false, true] {
            let (version, ip) = if v6 {
                ("-6", container.ipv6())
            } else {
                ("-4", container.ipv4())
            };
            let ask = format!("timeout 1 redis-cli {version} -h {ip} ping | grep -q PONG");
            self.peer()
                .wait_for(&ask, self.soon())
                .expect("redis answers");
        }
    }

    /// `netmig-user migrate` from one host to the other, to its end.
    pub fn migrate(&self, from: &dyn Host, container: &Container, more: &[&str]) -> Ended {
        let command = self.command(from, container);
        self.migrate_by(from, command.args(more.iter().copied()))
    }

    /// `command`, which is a `netmig-user migrate`, with the report that it writes.
    pub fn migrate_by(&self, from: &dyn Host, command: Cmd) -> Ended {
        let command = command.args(["--report", REPORT]);
        from.run(&["rm", "-f", REPORT]).expect("no old report");
        let output = from
            .exec(&command.limit(Duration::from_secs(300)))
            .expect("migrate runs");
        let report = from
            .read(REPORT)
            .ok()
            .map(|text| serde_json::from_slice(&text).expect("a report that is JSON"));
        Ended { output, report }
    }

    /// `netmig-user migrate` of the container to the other host.
    pub fn command(&self, from: &dyn Host, container: &Container) -> Cmd {
        self.command_to(&format!("ssh://{}", self.other(from).name()), container)
    }

    /// `netmig-user migrate` of the container to this destination.
    pub fn command_to(&self, to: &str, container: &Container) -> Cmd {
        let which = format!("--{}", container.tool());
        Cmd::new(["netmig-user", "migrate", &which, container.name, "--to", to])
    }

    /// A move that must succeed.
    pub fn moves(&self, from: &dyn Host, container: &Container) -> Ended {
        self.moved(from, container, self.migrate(from, container, &[]))
    }

    /// `ended` was the move of the container from `from` to the other host, and it lives there.
    pub fn moved(&self, from: &dyn Host, container: &Container, ended: Ended) -> Ended {
        assert!(
            ended.code() == Some(0) && ended.outcome() == "moved",
            "{}\n{}",
            ended.said(),
            self.logs()
        );
        println!("{}", ended.said());
        self.lives_only_on(self.other(from), container);
        ended
    }

    /// The container runs on `host`, and nowhere else is a process or a record of it that runs.
    pub fn lives_only_on(&self, host: &dyn Host, container: &Container) {
        let elsewhere = self.other(host);
        assert_eq!(
            container.state(host).as_deref(),
            Some("running"),
            "on {}\n{}",
            host.name(),
            self.logs()
        );
        assert_eq!(
            self.copies(host, container),
            1,
            "processes on {}\n{}",
            host.name(),
            self.logs()
        );
        assert_eq!(
            self.copies(elsewhere, container),
            0,
            "processes on {}\n{}",
            elsewhere.name(),
            self.logs()
        );
        assert!(
            !container.runs_on(elsewhere),
            "on {}\n{}",
            elsewhere.name(),
            self.logs()
        );
    }

    /// How many redis servers `host` has with the container's IPv4 address in their network namespace.
    pub fn copies(&self, host: &dyn Host, container: &Container) -> usize {
        let count = format!(
            "for pid in $(pgrep -x redis-server); do nsenter -t $pid -n ip -o -4 addr show to {} 2>/dev/null | sort -u; done | wc -l",
            container.ipv4()
        );
        host.sh(&count)
            .expect("counted")
            .trim()
            .parse()
            .expect("a number")
    }

    /// What a move may not leave on `host`, one line each.
    fn left(&self, host: &dyn Host) -> String {
        let links = 1 + host
            .run(&["pgrep", "-cx", "redis-server|handoff-echo"])
            .map_or(0, |n| n.trim().parse::<usize>().unwrap_or(0));
        let look = r#"
            ls -d /sys/fs/bpf/netmig/* 2>/dev/null || true
            ls -d /run/netmig/moves/* 2>/dev/null || true
            grep -o ' /run/netmig/[^ ]* [^ ]*' /proc/self/mounts || true
            find /sys/fs/cgroup -name cgroup.freeze -exec grep -lx 1 {} + 2>/dev/null || true
            pgrep -xlr D,R,S,T,Z 'criu|rsync|ssh' || true
            pgrep -af '[n]etmig-user (supervise|guard)|^/run/netmig/moves|[n]etmig-user rsh' || true
            netmig-user gate status | grep -v '^no gate' || true"#;
        let mut left = host.sh(look).expect("looked");
        let ports = host
            .sh("ls /sys/class/net/br0/brif")
            .expect("ports")
            .lines()
            .count();
        if ports != links {
            writeln!(
                left,
                "\n{ports} ports in br0, expected {links}: {}",
                host.sh("ip -br link").expect("links")
            )
            .expect("a string");
        }
        left.trim().to_owned()
    }

    /// As [`Story::nothing_is_left`], whatever else is on the hosts' bridges.
    pub fn no_move_is_left(&self) {
        for host in [self.a(), self.b()] {
            let end = Instant::now() + self.soon();
            loop {
                let left = host
                    .sh("ls -d /sys/fs/bpf/netmig/* /run/netmig/moves/* 2>/dev/null || true")
                    .expect("looked");
                if left.is_empty() {
                    break;
                }
                // The agent that is asked may be one that is just being killed.
                let known = host
                    .run(&["netmig-user", "recover"])
                    .unwrap_or_else(|e| e.to_string());
                assert!(
                    Instant::now() < end,
                    "left on {}:\n{left}\n{known}\n{}",
                    host.name(),
                    self.logs()
                );
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Nothing of a move is left on either host; its last steps may take a moment.
    pub fn nothing_is_left(&self) {
        for host in [self.a(), self.b()] {
            let end = Instant::now() + self.soon();
            loop {
                let left = self.left(host);
                if left.is_empty() {
                    break;
                }
                assert!(
                    Instant::now() < end,
                    "left on {}:\n{left}\n{}",
                    host.name(),
                    self.logs()
                );
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// What the agents wrote, for a story that goes wrong.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for host in [self.a(), self.b()] {
            let log = host
                .run(&["tail", "-n", "40", "/run/netmig/agent.log"])
                .unwrap_or_default();
            writeln!(text, "agent on {}:\n{log}", host.name()).expect("a string");
        }
        text
    }
}

fn peer_program() -> PathBuf {
    env::var_os(stories::PEER)
        .map_or_else(|| env!("CARGO_BIN_EXE_netmig-peer").into(), PathBuf::from)
}

fn build_image(program: &Path) -> Image {
    Image::build(&root::path(), program, &root::cache().join("demo")).expect("an image")
}

fn options(program: PathBuf) -> Options {
    Options {
        binds: vec![Bind {
            source: program,
            target: PEER_PROGRAM.into(),
            read_only: true,
        }],
        ..Options::default()
    }
}

/// A `migrate` that ended.
#[derive(Debug)]
pub struct Ended {
    pub output: Output,
    pub report: Option<Value>,
}

impl Ended {
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    pub fn outcome(&self) -> &str {
        self.report
            .as_ref()
            .and_then(|r| r["outcome"].as_str())
            .unwrap_or("not told")
    }

    /// Everything that it said.
    pub fn said(&self) -> String {
        format!(
            "{}\n{}{}",
            self.output.status,
            self.output.errors(),
            self.output.text()
        )
    }
}
