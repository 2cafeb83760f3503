//! The program that is process 1 in a lab's virtual machine.

use std::process::ExitCode;

use netmig_lab::vm::guest;

fn main() -> ExitCode {
    let ended = match std::env::args().nth(1).as_deref() {
        None => guest::init(),
        Some(guest::AGENT) => guest::agent(),
        Some(other) => Err(std::io::Error::other(format!("no such part: {other}"))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netmig-lab-init: {error}");
            ExitCode::FAILURE
        }
    }
}
