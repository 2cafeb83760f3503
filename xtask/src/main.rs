//! netmig's development commands. Each verb has a file of its own; what a verb needs (packages, toolchain, test root) it sets up.
mod bench;
mod build_cmd;
mod cargo;
mod lab;
mod line;
mod run;
mod setup;
mod soak;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "netmig's development commands",
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring what the other verbs need: packages, the eBPF toolchain, the test root
    Setup(setup::Arguments),
    /// Build netmig-user
    Build(build_cmd::Arguments),
    /// Check and test everything
    Test(test::Arguments),
    /// The lab: hosts a, b and peer on one segment
    Lab(lab::Arguments),
    /// Build, and move the demo's container from a to b and back
    Run(run::RunArgs),
    /// Measure netmig against the usual way and its goals
    Bench(bench::BenchArgs),
    /// Move hundreds of connections in random states to and fro at random moments
    Soak(soak::Arguments),
    /// A command in virtual machines with other kernels
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    netmig_lab::helper_main_if_called();
    let done = match Arguments::parse().verb {
        Verb::Setup(arguments) => setup::main(&arguments),
        Verb::Build(arguments) => build_cmd::main(&arguments),
        Verb::Test(arguments) => test::main(&arguments),
        Verb::Lab(arguments) => lab::main(&arguments),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Bench(arguments) => bench::run(arguments),
        Verb::Soak(arguments) => soak::main(&arguments),
        Verb::Vm(arguments) => vm::main(&arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
