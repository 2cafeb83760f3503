//! A container that is to run always: it lives once all the same, and where it lives its policy is as before.
use netmig_lab::Host;

use crate::{
    faults::Catcher,
    story::{Container, How, Story},
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
