//! The lab itself: it comes up, its hosts are real enough, two do not meet, and nothing is left of it.
mod line;
mod traces;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use netmig_lab::{Bind, Cmd, Error, Host as _, Image, Input, Lab, Options, lab};
use traces::Traces;

/// What is on the machine is looked at before and after: one test at a time.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    MACHINE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn up(story: &str) -> Lab {
    Lab::temporary(story, &Options::default()).expect("a lab")
}

#[test]
fn hosts_reach_each_other_by_ipv4_and_ipv6() {
    let _alone = alone();
    let lab = up("reach");
    let addresses = [
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.100",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8::100",
    ];
    for host in lab.hosts() {
        for address in addresses {
            host.run(&["ping", "-n", "-c1", "-W2", address])
                .expect("an echo");
        }
    }
}

#[test]
fn hosts_have_names_processes_and_devices_of_their_own() {
    let _alone = alone();
    let lab = up("own");
    for host in lab.hosts() {
        assert_eq!(host.run(&["hostname"]).expect("hostname"), host.name());
        assert_eq!(
            host.run(&["cat", "/proc/1/comm"]).expect("PID 1"),
            "netmig-lab-help"
        );
        host.sh("echo x >/run/mine; echo x >/etc/mine; test -c /dev/null; test -c /dev/pts/ptmx; mountpoint -q /sys/fs/bpf")
            .expect("a root of its own");
    }
    let ids = lab
        .hosts()
        .iter()
        .map(|host| host.sh("cat /etc/machine-id").expect("machine-id"));
    assert_eq!(ids.collect::<BTreeSet<_>>().len(), 3);
    assert!(
        !lab.state().root.join("etc/mine").exists(),
        "the test root is never written"
    );
}

#[test]
fn orphans_are_reaped() {
    let _alone = alone();
    let lab = up("reap");
    lab.a()
        .sh("(sh -c 'sleep 0.05' &) ; true")
        .expect("an orphan");
    lab.a()
        .wait_for(
            "! grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; ! pgrep -x sleep",
            Duration::from_secs(5),
        )
        .expect("no zombie is left");
}

#[test]
fn ssh_works_between_a_and_b_without_questions() {
    let _alone = alone();
    let lab = up("ssh");
    assert_eq!(lab.a().run(&["ssh", "b", "hostname"]).expect("ssh b"), "b");
    assert_eq!(lab.b().run(&["ssh", "a", "hostname"]).expect("ssh a"), "a");
    assert_eq!(
        lab.a()
            .run(&["ssh", "192.0.2.2", "hostname"])
            .expect("ssh by address"),
        "b"
    );
    lab.a()
        .sh("echo moved >/tmp/file; rsync /tmp/file b:/tmp/")
        .expect("rsync over ssh");
    assert_eq!(lab.b().read("/tmp/file").expect("the file"), b"moved\n");
}

#[test]
fn commands_have_input_output_status_signals_and_limits() {
    let _alone = alone();
    let lab = up("commands");
    let a = lab.a();
    let big = vec![b'x'; 3 << 20];
    let copied = a
        .exec(&Cmd::new(["cat"]).stdin(Input::Bytes(big.clone())))
        .expect("cat");
    assert_eq!(copied.stdout, big);
    let failed = a
        .exec(&Cmd::sh("echo out; echo err >&2; exit 7"))
        .expect("a shell");
    assert_eq!(
        (failed.status.code(), failed.text(), failed.errors()),
        (Some(7), "out\n".into(), "err\n".into())
    );
    assert!(matches!(
        a.run(&["no-such-program"]),
        Err(Error::Spawn { .. })
    ));
    assert!(
        matches!(a.sh("echo why >&2; exit 3"), Err(Error::Command { stderr, .. }) if stderr == "why")
    );

    let began = Instant::now();
    let slow = Cmd::sh("sleep 60").limit(Duration::from_millis(200));
    assert!(matches!(a.exec(&slow), Err(Error::Timeout { .. })));
    assert!(began.elapsed() < Duration::from_secs(10));

    let mut sleeper = a.spawn(&Cmd::new(["sleep", "1000"])).expect("sleep");
    assert_eq!(
        sleeper
            .wait_for(Duration::from_millis(50))
            .expect("the host answers"),
        None
    );
    sleeper.signal(libc::SIGTERM).expect("the host answers");
    let ended = sleeper.wait().expect("its end").signal();
    assert_eq!(ended, Some(libc::SIGTERM));

    drop(
        a.spawn(&Cmd::sh("sleep 1001 & sleep 1002"))
            .expect("two sleepers"),
    );
    a.wait_for("! pgrep -f 'sleep 100[12]'", Duration::from_secs(5))
        .expect("both are killed when the handle goes");
    drop(
        a.spawn(&Cmd::new(["sleep", "1003"]).detached())
            .expect("a detached sleeper"),
    );
    a.wait_for("pgrep -f 'sleep 1003'", Duration::from_secs(5))
        .expect("it goes on");
}

#[test]
fn files_of_the_machine_are_seen_copied_and_brought_back() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "here").expect("a file");
    let options = Options {
        binds: vec![Bind {
            source: directory.path().to_owned(),
            target: "/machine".into(),
            read_only: true,
        }],
        ..Options::default()
    };
    let lab = Lab::temporary("files", &options).expect("a lab");
    assert_eq!(lab.peer().read("/machine/file").expect("bound"), b"here");
    assert!(
        lab.peer().sh("echo x >/machine/file").is_err(),
        "bound read-only"
    );
    lab.b().push(&file, "/new/place/file").expect("pushed");
    let back = directory.path().join("back");
    lab.b().pull("/new/place/file", &back).expect("pulled");
    assert_eq!(fs::read(back).expect("the copy"), b"here");
}

#[test]
fn podman_runs_a_container_on_the_segment() {
    let _alone = alone();
    let lab = up("podman");
    let image = Image::new("localhost/story:1")
        .program("sleep")
        .program("sh")
        .file("/etc/story", "it's told")
        .command(&["sleep", "1000"]);
    let mut digests = BTreeSet::new();
    for host in [lab.a(), lab.b()] {
        image.import(host).expect("an image");
        let layers = [
            "podman",
            "image",
            "inspect",
            "--format",
            "{{.RootFS.Layers}}",
            &image.name,
        ];
        digests.insert(host.run(&layers).expect("its layers"));
    }
    assert_eq!(
        digests.len(),
        1,
        "both hosts have the same image: {digests:?}"
    );
    for runtime in ["crun", "runc"] {
        // The same MAC for both, else the neighbours would look for the first one's until they doubt their cache.
        let run = "podman --runtime $0 run -d --name c --network lab --mac-address 02:00:00:00:01:10 \
                   --ip 192.0.2.10 --ip6 2001:db8::10 localhost/story:1";
        lab.a()
            .run(&["sh", "-euc", run, runtime])
            .expect("a container");
        assert_eq!(
            lab.a()
                .run(&[
                    "podman",
                    "exec",
                    "c",
                    "sh",
                    "-c",
                    "read x </etc/story; echo $x"
                ])
                .expect("exec"),
            "it's told"
        );
        for address in ["192.0.2.10", "2001:db8::10"] {
            let echo = format!("ping -n -c1 -W1 {address}");
            lab.peer()
                .wait_for(&echo, Duration::from_secs(5))
                .expect("the peer reaches the container");
            lab.b()
                .wait_for(&echo, Duration::from_secs(5))
                .expect("the other host reaches the container");
        }
        lab.a()
            .run(&["podman", "rm", "-f", "-t0", "c"])
            .expect("removed");
    }
}

#[test]
fn two_labs_do_not_meet() {
    let _alone = alone();
    let (one, other) = (up("one"), up("other"));
    // The same addresses: each finds its own.
    one.b().write("/tmp/which", b"one", 0o644).expect("written");
    other
        .b()
        .write("/tmp/which", b"other", 0o644)
        .expect("written");
    let ask = ["ssh", "b", "cat", "/tmp/which"];
    assert_eq!(one.a().run(&ask).expect("ssh in one"), "one");
    assert_eq!(other.a().run(&ask).expect("ssh in other"), "other");
    one.b()
        .run(&["ip", "addr", "add", "192.0.2.77/24", "dev", "br0"])
        .expect("an address");
    assert!(
        one.peer()
            .run(&["ping", "-n", "-c1", "-W1", "192.0.2.77"])
            .is_ok()
    );
    assert!(
        other
            .peer()
            .run(&["ping", "-n", "-c1", "-W1", "192.0.2.77"])
            .is_err()
    );
    one.down().expect("one goes down");
    assert_eq!(
        other.a().run(&ask).expect("the other is as before"),
        "other"
    );
}

#[test]
fn a_name_is_taken_while_its_lab_is_up() {
    let _alone = alone();
    let lab = up("taken");
    let name = lab.name().to_owned();
    assert!(matches!(
        Lab::up(&name, &Options::default()),
        Err(Error::Exists(_))
    ));
    let again = Lab::attach(&name).expect("attached");
    assert_eq!(again.b().run(&["hostname"]).expect("hostname"), "b");
    drop(again);
    assert_eq!(lab.a().run(&["hostname"]).expect("still up"), "a");
    lab.down().expect("down");
    assert!(matches!(Lab::attach(&name), Err(Error::Missing(_))));
    assert!(matches!(lab::down(&name), Err(Error::Missing(_))));
}

#[test]
fn down_leaves_nothing() {
    let _alone = alone();
    let lab = up("nothing");
    let mark = lab.name().to_owned();
    let traces = Traces::of(&lab);
    Image::new("localhost/story:1")
        .program("sleep")
        .command(&["sleep", "1000"])
        .import(lab.a())
        .expect("an image");
    // Busy as CRIU and podman leave it: namespaces kept by mounts, groups of their own in both kinds of cgroup hierarchy.
    let busy = format!(
        "podman run -d --network lab localhost/story:1
         ip netns add {mark}; mount -t tmpfs x /mnt; sleep 1004 &
         mkdir -p /tmp/v1 /sys/fs/cgroup/{mark}/deep
         if mount -t cgroup -o freezer x /tmp/v1; then mkdir /tmp/v1/{mark}; fi"
    );
    lab.a().sh(&busy).expect("a busy host");
    assert!(!traces.left().is_empty(), "a lab that is up can be seen");
    lab.down().expect("down");
    traces.none_left();
}

#[test]
fn what_a_killed_keeper_leaves_is_found_and_removed() {
    let _alone = alone();
    let lab = up("killed");
    let name = lab.name().to_owned();
    let traces = Traces::of(&lab);
    kill(lab.state().keeper.pid);
    wait_until(|| !Path::new(&format!("/proc/{}", lab.a().pid())).exists());
    assert!(
        lab.a().run(&["true"]).is_err(),
        "its hosts have ended with it"
    );
    assert!(lab::labs().expect("labs").contains(&name));
    assert!(matches!(Lab::attach(&name), Err(Error::Missing(_))));
    drop(lab);
    traces.none_left();
}

#[test]
fn a_dead_lab_does_not_keep_its_name() {
    let _alone = alone();
    let lab = up("again");
    let name = lab.name().to_owned();
    kill(lab.state().keeper.pid);
    wait_until(|| !Path::new(&format!("/proc/{}", lab.b().pid())).exists());
    let again = Lab::up(&name, &Options::default()).expect("the name is free");
    assert_eq!(
        again.a().run(&["ssh", "b", "hostname"]).expect("ssh b"),
        "b"
    );
    drop(lab);
    again.down().expect("down");
}

#[test]
fn a_lab_ends_with_the_process_that_made_it() {
    let _alone = alone();
    let mut maker = Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "makes_a_lab_and_waits_to_be_killed",
            "--ignored",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process that makes a lab");
    let lines = BufReader::new(maker.stdout.take().expect("its output")).lines();
    let name = lines
        .map(|line| line.expect("a line"))
        .find_map(|line| Some(line.split_once("lab is ")?.1.to_owned()))
        .expect("the lab's name");
    let traces = Traces::of(&Lab::attach(&name).expect("it is up"));
    maker.kill().expect("killed");
    maker.wait().expect("its end");
    wait_until(|| !lab::labs().expect("labs").contains(&name));
    traces.none_left();
}

#[test]
#[ignore = "the other half of a_lab_ends_with_the_process_that_made_it"]
fn makes_a_lab_and_waits_to_be_killed() {
    let lab = up("tied");
    println!("lab is {}", lab.name());
    std::thread::sleep(Duration::from_secs(60));
}

fn kill(pid: i32) {
    // SAFETY: kill takes two integers; the process is this test's own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}
