//! A job under its supervisor. The supervisor is this test's own binary once more, so it has a main function of its own (`harness = false`).
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use netmig_user::engine::job::{Command, Job, Output, SUPERVISE, Status, supervise_main};

const LONG: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let args: Vec<String> = env::args().collect();
    if args.get(1).is_some_and(|arg| arg == SUPERVISE) {
        return supervise_main(Path::new(&args[2]));
    }
    // The filter that `cargo test` passes on; a listing has nothing to list.
    let filter = args[1..]
        .iter()
        .find(|arg| !arg.starts_with('-'))
        .cloned()
        .unwrap_or_default();
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    type Test = fn(&Path);
    let tests: [(&str, Test); 5] = [
        ("ends_with_its_own_status", ends_with_its_own_status),
        (
            "outlives_its_starter_and_is_adopted",
            outlives_its_starter_and_is_adopted,
        ),
        ("kill_takes_the_whole_group", kill_takes_the_whole_group),
        ("missing_program_is_a_status", missing_program_is_a_status),
        ("lost_with_its_supervisor", lost_with_its_supervisor),
    ];
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        let dir = tempfile::tempdir().unwrap();
        test(dir.path());
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

fn start(dir: &Path, script: &str) -> Job {
    Job::start(
        &env::current_exe().unwrap(),
        dir,
        &Command::new(["sh", "-c", script]),
    )
    .unwrap()
}

fn pid_of(job: &Job) -> i32 {
    let begin = Instant::now();
    loop {
        if let Some(pid) = job.pid() {
            return pid;
        }
        assert!(begin.elapsed() < LONG, "the command never started");
        thread::sleep(Duration::from_millis(5));
    }
}

fn ends_with_its_own_status(dir: &Path) {
    let command = Command {
        argv: ["sh", "-c", "pwd; echo $WHAT >&2; exit 7"]
            .map(String::from)
            .to_vec(),
        env: vec![("WHAT".into(), "complaint".into())],
        cwd: Some("/".into()),
        output: Output::Files,
    };
    let job = Job::start(&env::current_exe().unwrap(), &dir.join("a"), &command).unwrap();
    assert_eq!(job.wait(LONG), Status::Exited(7));
    assert_eq!(job.stderr(), "complaint");
    assert_eq!(fs::read_to_string(dir.join("a/stdout")).unwrap(), "/\n");
    let killed = start(&dir.join("b"), "kill -TERM $$");
    assert_eq!(killed.wait(LONG), Status::Signaled(15));
}

fn outlives_its_starter_and_is_adopted(dir: &Path) {
    let go: PathBuf = dir.join("go");
    let job = start(
        &dir.join("job"),
        &format!(
            "while ! [ -e {} ]; do sleep 0.01; done; exit 3",
            go.display()
        ),
    );
    let pid = pid_of(&job);
    // Neither the command nor its supervisor is a child of this process, and both are in another session.
    let session = |pid: &str| -> i32 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat[stat.rfind(')').unwrap() + 1..]
            .split_whitespace()
            .nth(3)
            .unwrap()
            .parse()
            .unwrap()
    };
    assert_ne!(session(&pid.to_string()), session("self"));
    drop(job);
    let adopted = Job::adopt(&dir.join("job")).unwrap();
    assert_eq!(adopted.wait(Duration::from_millis(50)), Status::Running);
    assert_eq!(adopted.pid(), Some(pid));
    fs::write(go, "").unwrap();
    assert_eq!(adopted.wait(LONG), Status::Exited(3));
    assert_eq!(Job::adopt(&dir.join("none")), None);
}

fn kill_takes_the_whole_group(dir: &Path) {
    let child = dir.join("child");
    let job = start(
        &dir.join("job"),
        &format!("sleep 1000 & echo $! > {}; wait", child.display()),
    );
    let begin = Instant::now();
    let child = loop {
        match fs::read_to_string(&child) {
            Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
            _ => assert!(begin.elapsed() < LONG, "the command never started"),
        }
        thread::sleep(Duration::from_millis(5));
    };
    job.kill().unwrap();
    assert_eq!(job.wait(LONG), Status::Signaled(9));
    let begin = Instant::now();
    while fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    {
        assert!(begin.elapsed() < LONG, "the grandchild lives");
        thread::sleep(Duration::from_millis(5));
    }
    job.kill().unwrap();
}

fn missing_program_is_a_status(dir: &Path) {
    let job = Job::start(
        &env::current_exe().unwrap(),
        &dir.join("job"),
        &Command::new(["/no/such/program"]),
    )
    .unwrap();
    assert_eq!(job.wait(LONG), Status::Exited(127));
    assert!(
        job.stderr().starts_with("/no/such/program: "),
        "{}",
        job.stderr()
    );
}

fn lost_with_its_supervisor(dir: &Path) {
    let job = start(&dir.join("job"), "exec sleep 1000");
    let pid = pid_of(&job);
    let supervisor: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("job/supervisor")).unwrap()).unwrap();
    let supervisor = i32::try_from(supervisor["pid"].as_i64().unwrap()).unwrap();
    let kill = |pid| {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap()
    };
    kill(supervisor);
    assert_eq!(job.wait(LONG), Status::Lost);
    kill(pid);
}
