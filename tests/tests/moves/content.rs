//! What a container is made of besides its processes: its image, and all that it has written.
use std::time::Duration;

use netmig_lab::{Cmd, Host};

use crate::{
    catcher::Catcher,
    container::{Container, How},
    going::Going,
    story::Story,
};

/// Writes into each place that a container can write to, and deletes a file of the image, as seen from its first process.
const WRITE: &str = r#"
    cd /proc/$(podman inspect --format '{{.State.Pid}}' web)/root
    echo 'in memory' >dev/shm/note
    mkdir -m 700 dev/shm/room && head -c 300000 /dev/zero | tr '\0' z >dev/shm/room/large
    echo 'in a volume' >data/volume/note
    echo 'in the layer' >srv-note && chmod 640 srv-note && chown 7:8 srv-note && ln srv-note srv-link
    truncate -s 10M sparse && echo end >>sparse
    rm etc/passwd"#;

/// Names, owners, modes and contents of all that; a deleted file is one that is not there.
const READ: &str = r#"
    cd /proc/$(podman inspect --format '{{.State.Pid}}' web)/root
    find dev/shm data/volume srv-note srv-link sparse etc -printf '%p %y %m %U:%G %n\n' | sort
    find dev/shm data/volume srv-note srv-link sparse etc -type f -exec sha256sum {} + | sort -k 2"#;

fn has_image(story: &Story, host: &dyn Host) -> bool {
    host.exec(&Cmd::new(["podman", "image", "exists", story.image()]))
        .expect("podman runs")
        .status
        .success()
}

fn images(host: &dyn Host) -> String {
    host.run(&["podman", "image", "ls", "--all", "--quiet", "--no-trunc"])
        .expect("listed")
}

#[test]
fn an_image_that_the_target_lacks_and_all_that_was_written_go_along() {
    let story = Story::up("content");
    let (a, b) = (story.a(), story.b());
    b.run(&["podman", "image", "rm", story.image()])
        .expect("removed");
    let none = images(b);
    let container = Container::new(How::Podman("crun"));
    let network = "lab:ip=192.0.2.10,ip6=2001:db8::10,mac=02:00:00:00:01:0a";
    a.run(&[
        "podman",
        "--runtime",
        "crun",
        "run",
        "--detach",
        "--name",
        "web",
        "--network",
        network,
        "--volume",
        "stuff:/data/volume",
        story.image(),
        "/bin/redis-server",
        "/etc/redis.conf",
    ])
    .expect("a container");
    story.wait_until_it_answers(&container);
    a.sh(WRITE).expect("written");
    let written = a.sh(READ).expect("read");
    assert!(written.contains("srv-note") && !written.contains("etc/passwd"));

    let plan = a
        .run(&["netmig-user", "plan", "--podman", "web", "--to", "ssh://b"])
        .expect("a plan");
    let said = format!(
        "image {} is not at the target and will be sent (",
        story.image()
    );
    assert!(plan.contains(&said), "no `{said}` in {plan}");
    assert_eq!(images(b), none, "a plan changes nothing");

    // A move that ends after the image has arrived takes it away again.
    let mut catcher = Catcher::set(a, "post-dump", "criu");
    let mut going = Going::start(&story, a, &container, &[]);
    going.until("precopy");
    assert!(has_image(&story, b));
    catcher.caught();
    going.end();
    story.lives_only_on(a, &container);
    story.nothing_is_left();
    assert_eq!(images(b), none);
    assert_eq!(container.state(b), None);
    b.wait_for("! podman volume exists stuff", Duration::from_secs(1))
        .expect("no volume");

    let loaded = story.load(&container);
    story.moves(a, &container);
    assert!(has_image(&story, b));
    assert_eq!(b.sh(READ).expect("read"), written);
    loaded.end_clean();
    story.nothing_is_left();
    b.run(&["podman", "restart", "--time", "5", "web"])
        .expect("restarted");
    story.wait_until_it_answers(&container);
}
