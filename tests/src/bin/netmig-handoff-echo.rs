//! The example `handoff-echo`, built with the stories that move it.
use std::process::ExitCode;

fn main() -> ExitCode {
    handoff_echo::main()
}
