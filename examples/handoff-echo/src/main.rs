//! `handoff-echo`: see the library.
use std::process::ExitCode;

fn main() -> ExitCode {
    handoff_echo::main()
}
