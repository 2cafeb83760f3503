//! Moves under other kernels: inside a virtual machine, where the lab's hosts are namespaces as they are here, and between two
//! machines whose kernels differ.
//!
//! Each test boots emulated machines, so they only run when asked for: `cargo xtask test --only vm`.
use std::{
    env,
    io::{BufRead as _, BufReader, PipeReader},
    path::Path,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use netmig_lab::{
    Host as _,
    vm::{Spec, VmHost},
};

use crate::{
    container::{Container, How},
    pairs::there_and_back,
    story::Story,
};

/// What a guest runs of this program.
const INSIDE: &str = "machines::inside_a_guest";
/// How long that may take on a machine that has other work as well.
const PATIENCE: Duration = Duration::from_secs(900);

/// The lab's programs, the guest's init among them.
fn programs() -> &'static Path {
    let init = Path::new(env!("CARGO_BIN_EXE_netmig-lab-init"));
    init.parent().expect("a directory of programs")
}

fn spec(name: &str, kernel: &str) -> Spec {
    Spec::new(name, kernel, programs()).expect("a kernel, which set-up fetches")
}

/// The whole lab in one guest: both hosts and the peer share its kernel.
fn moves_inside(kernel: &str) {
    let began = Instant::now();
    let mut spec = spec("guest", kernel);
    spec.processors = 2;
    let this = env::current_exe().expect("this program");
    let story = spec.add_stories(&this, programs()).expect("its stories");
    let guest = VmHost::boot(&spec).unwrap_or_else(|error| panic!("{kernel}: {error}"));
    let story = story.args(["--ignored", "--exact", "--nocapture", INSIDE]);
    let release = &guest.vm().started().hello.release;
    println!("{release}: up after {:.0} s", began.elapsed().as_secs_f32());
    let mut process = guest.spawn(&story).expect("the story begins");
    let telling = [process.stdout.take(), process.stderr.take()].map(tell);
    let status = process
        .wait_for(PATIENCE)
        .unwrap_or_else(|e| panic!("the guest is gone: {e}\n{}", guest.vm().console()));
    drop(process);
    let said: String = telling.map(|told| told.join().expect("its lines")).concat();
    println!("{release}: {:.0} s", began.elapsed().as_secs_f32());
    assert!(
        status.is_some_and(|status| status.success()) && said.contains("1 passed"),
        "{release}: {status:?}\n{}",
        guest.vm().console()
    );
}

/// Passes on what a guest's story says, as it says it, and collects it. Indented, for these lines are not this program's own.
fn tell(output: Option<PipeReader>) -> JoinHandle<String> {
    let output = BufReader::new(output.expect("its output"));
    thread::spawn(move || {
        let mut said = String::new();
        for line in output.lines().map_while(Result::ok) {
            println!("  | {line}");
            said.push_str(&line);
            said.push('\n');
        }
        said
    })
}

#[test]
#[ignore = "what the tests here run in a guest"]
fn inside_a_guest() {
    let story = Story::up("guest");
    there_and_back(&story, &Container::new(How::Podman("crun")));
}

#[test]
#[ignore = "boots virtual machines"]
fn there_and_back_under_6_1() {
    moves_inside("6.1");
}

#[test]
#[ignore = "boots virtual machines"]
fn there_and_back_under_6_12() {
    moves_inside("6.12");
}

#[test]
#[ignore = "boots virtual machines"]
fn there_and_back_under_the_newest() {
    moves_inside("newest");
}

#[test]
#[ignore = "boots virtual machines"]
fn from_6_12_to_the_newest_and_back() {
    let began = Instant::now();
    let machines = [spec("a", "6.12"), spec("b", "newest")];
    let story = Story::between("machines", machines);
    let about = |what: &str| {
        [story.a(), story.b()].map(|host| {
            host.run(&["cat", &format!("/proc/sys/kernel/{what}")])
                .unwrap_or_else(|error| panic!("{what}: {error}"))
        })
    };
    let [a, b] = about("osrelease");
    assert_ne!(a, b, "two kernels");
    let [id_a, id_b] = about("random/boot_id");
    assert_ne!(id_a, id_b, "two machines");
    println!(
        "{a} and {b} up after {:.0} s",
        began.elapsed().as_secs_f32()
    );
    there_and_back(&story, &Container::new(How::Podman("crun")));
    println!("all after {:.0} s", began.elapsed().as_secs_f32());
    story.down();
}
