//! `netmig-peer` as a program: the container's init, and a client's life from `ready` to its outcome.
use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv6Addr, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use netmig_lab::peers::{Outcome, stop::Stop, udp};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_netmig-peer");

fn start(args: &[&str]) -> Child {
    Command::new(PROGRAM)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

fn children_of(child: &Child) -> usize {
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    std::fs::read_to_string(path).map_or(0, |list| list.split_whitespace().count())
}

#[test]
fn init_ends_all_when_it_is_told_to() {
    let mut init = start(&["init", "sleep", "1000", "--and", "sleep", "1001"]);
    while children_of(&init) < 2 {
        thread::sleep(Duration::from_millis(5));
    }
    kill(pid_of(&init), Signal::SIGTERM).expect("it runs");
    assert!(init.wait().expect("it ends").success());
}

#[test]
fn init_fails_with_the_first_process_that_ends() {
    let init = start(&["init", "sleep", "1000", "--and", "sh", "-c", "exit 7"]);
    let output = init.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("sh -c exit 7") && said.contains("exit status: 7"),
        "{said}"
    );
}

#[test]
fn init_names_a_program_that_is_not_there() {
    let init = start(&["init", "/no/such/program"]);
    let output = init.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/program"));
}

#[test]
fn a_client_works_until_its_input_ends() {
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a port");
    let at = socket.local_addr().expect("bound").to_string();
    thread::spawn(move || udp::echo(&socket, &Stop::after(Duration::from_secs(30))));
    let mut client = start(&["udp", "--name", "u", "--to", &at, "--per-second", "100"]);
    let mut lines = BufReader::new(client.stdout.take().expect("piped"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(client.try_wait().expect("a child"), None, "it goes on");
    drop(client.stdin.take());
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("its outcome");
    let outcome: Outcome = serde_json::from_str(&rest).expect("JSON");
    assert!(
        outcome.clean() && outcome.row.sent >= Some(10),
        "{outcome:?}"
    );
    assert!(client.wait().expect("it ends").success());
}

#[test]
fn a_client_without_a_server_says_so() {
    let free = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a port");
    let at = free.local_addr().expect("bound").to_string();
    let output = start(&["ask", "--to", &at])
        .wait_with_output()
        .expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("refused"));
}
