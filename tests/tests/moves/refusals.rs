//! What cannot move is refused with a text that says why, and nothing is changed.
use std::time::Duration;

use netmig_lab::Cmd;

use crate::{
    container::{Container, How},
    story::{Ended, Story},
};

/// What of a host a refused move may not change.
const STATE: &str = "podman ps --all --format '{{.ID}} {{.Names}} {{.State}}'; ip -o link | cut -d: -f2; ls /run/netns 2>/dev/null || true; \
    ls -d /sys/fs/bpf/netmig/* /run/netmig/moves/* 2>/dev/null || true; podman volume ls --quiet";

struct Stage {
    story: Story,
}

impl Stage {
    /// A container that is started as told: `podman run` with these options.
    fn with(&self, options: &[&str]) -> Container {
        let container = Container::new(How::Podman("crun"));
        let run = [
            &["podman", "run", "--detach", "--name", "web"],
            options,
            &[self.story.image(), "/bin/redis-server", "/etc/redis.conf"],
        ]
        .concat();
        self.story
            .a()
            .run(&["podman", "rm", "--force", "--ignore", "--time", "0", "web"])
            .expect("room");
        self.story.a().run(&run).expect("a container");
        container
    }

    /// A container that could move.
    fn good(&self) -> Container {
        self.with(&[
            "--network",
            "lab:ip=192.0.2.10,ip6=2001:db8::10,mac=02:00:00:00:01:0a",
        ])
    }

    fn state(&self) -> [String; 2] {
        [self.story.a(), self.story.b()].map(|host| host.sh(STATE).expect("looked"))
    }

    /// A move that is refused or fails before anything: its exit code is one of `codes` and it says each of `words`.
    fn refused(&self, command: Cmd, codes: &[i32], words: &[&str]) {
        let before = self.state();
        let output = self
            .story
            .a()
            .exec(&command.limit(Duration::from_secs(60)))
            .expect("migrate runs");
        let ended = Ended {
            output,
            report: None,
        };
        let said = ended.said();
        assert!(
            ended.code().is_some_and(|code| codes.contains(&code)),
            "{said}"
        );
        for word in words {
            assert!(said.contains(word), "no `{word}` in: {said}");
        }
        self.story.no_move_is_left();
        assert_eq!(self.state(), before, "{said}");
    }

    fn refuses(&self, container: &Container, words: &[&str]) {
        self.refused(self.story.command(self.story.a(), container), &[3], words);
    }
}

#[test]
fn what_cannot_move_is_refused_and_nothing_is_changed() {
    let stage = Stage {
        story: Story::up("refusals"),
    };
    let b = stage.story.b();
    let missing = Container {
        name: "nobody",
        ..Container::new(How::Podman("crun"))
    };
    stage.refused(
        stage.story.command(stage.story.a(), &missing),
        &[1, 3],
        &["nobody"],
    );

    let container = stage.with(&["--network", "host"]);
    stage.refuses(&container, &["host", "network"]);
    let container = stage.with(&["--network", "lab:ip=192.0.2.10", "--publish", "8080:6379"]);
    stage.refuses(&container, &["publish"]);
    let container = stage.with(&[
        "--network",
        "lab:ip=192.0.2.10",
        "--volume",
        "/srv:/data/host",
    ]);
    stage.refuses(&container, &["/data/host", "--mount"]);

    let container = stage.good();
    let to = |to: &str| Cmd::new(["netmig-user", "migrate", "--podman", "web", "--to", to]);
    stage.refused(to("ssh://nowhere.invalid"), &[1, 3], &["nowhere.invalid"]);
    b.run(&["ip", "addr", "add", "192.0.2.10/24", "dev", "br0"])
        .expect("an address");
    stage.refuses(&container, &["192.0.2.10"]);
    b.run(&["ip", "addr", "del", "192.0.2.10/24", "dev", "br0"])
        .expect("no address");

    stage
        .story
        .a()
        .run(&["podman", "stop", "--time", "2", "web"])
        .expect("stopped");
    stage.refused(
        stage.story.command(stage.story.a(), &container),
        &[1, 3],
        &["web"],
    );
}

#[test]
fn a_target_without_the_bridge_is_refused() {
    let stage = Stage {
        story: Story::up("bridge"),
    };
    let container = stage.good();
    // The bridge has another name there; the hosts still reach each other.
    stage.story.b().sh("ip link set br0 down; ip link set br0 name br7; ip link set br7 up; ip addr add 2001:db8::2/64 dev br7 nodad || true").expect("renamed");
    stage.refuses(&container, &["br0"]);
}
