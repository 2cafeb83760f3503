//! A container that is to run always: it lives once all the same, and where it lives its policy is as before.
use std::time::Duration;

use netmig_lab::{Cmd, Host};

use crate::{
    beside::Spoken,
    catcher::Catcher,
    container::{Container, How},
    story::Story,
};

fn policy(host: &dyn Host, name: &str) -> String {
    let format = "{{.HostConfig.RestartPolicy.Name}}";
    let policy = host.run(&["podman", "inspect", "--format", format, name]);
    policy.expect("a record").trim().to_owned()
}

/// The record that is kept at a source.
fn kept(host: &dyn Host) -> String {
    let all = host.run(&["podman", "ps", "--all", "--format", "{{.Names}}"]);
    let all = all.expect("listed");
    let mut kept = all.lines().filter(|n| n.starts_with("web-netmig-moved-"));
    kept.next().expect("a record is kept").to_owned()
}

#[test]
fn a_container_that_restarts_always_lives_once() {
    let story = Story::up("restart-always");
    let container = Container::new(How::Podman("crun"));
    let (a, b) = (story.a(), story.b());
    story.start(a, &container);
    a.run(&["podman", "update", "--restart", "always", "web"])
        .expect("a policy");

    let mut catcher = Catcher::set(b, "post-restore", "criu");
    let ended = story.migrate(a, &container, &[]);
    catcher.caught();
    assert_eq!(ended.outcome(), "kept", "{}", ended.said());
    story.lives_only_on(a, &container);
    assert_eq!(policy(a, "web"), "always", "armed again");

    story.moves(a, &container);
    assert_eq!(policy(b, "web"), "always", "as it was created");
    let kept = kept(a);
    assert_ne!(policy(a, &kept), "always");
    assert!(a.run(&["podman", "start", &kept]).is_err(), "{kept} starts");
    story.lives_only_on(b, &container);
    story.nothing_is_left();
}

/// Starts the container whenever it does not run, as a supervisor does that knows nothing of a move.
const SUPERVISE: &str =
    "while :; do podman start web && echo ok || echo no; sleep 0.05; done >>/tmp/supervisor 2>&1";

#[test]
fn a_container_under_a_supervisor_lives_once() {
    let story = Story::up("supervised");
    let container = Container::new(How::Podman("crun"));
    let (a, b) = (story.a(), story.b());
    story.start(a, &container);
    let mut supervisor = a.spawn(&Cmd::sh(SUPERVISE)).expect("a supervisor");
    a.wait_for("grep -q ok /tmp/supervisor", Duration::from_secs(10))
        .expect("it starts what runs");

    let loaded = story.load(&container);
    let mut catcher = Catcher::set(b, "post-restore", "criu");
    let ended = story.migrate(a, &container, &[]);
    catcher.caught();
    assert_eq!(ended.outcome(), "kept", "{}", ended.said());
    story.lives_only_on(a, &container);
    loaded.end_clean();

    let loaded = story.load(&container);
    let spoken = Spoken::of(&story, &container);
    story.moves(a, &container);
    // The supervisor goes on for some time.
    println!(
        "{}",
        a.sh("sort /tmp/supervisor | uniq -c; : >/tmp/supervisor")
            .expect("emptied")
    );
    std::thread::sleep(Duration::from_secs(2));
    story.lives_only_on(b, &container);
    loaded.end_clean();
    spoken.on_a_then_on_b();
    let said = a.sh("sort /tmp/supervisor | uniq -c").expect("its log");
    println!("{said}");
    assert!(said.contains("no") && !said.contains("ok"), "{said}");
    supervisor.signal(libc::SIGKILL).expect("the host answers");
    supervisor.wait().expect("its end");
    story.nothing_is_left();
}
