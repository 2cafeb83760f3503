//! netmig-user: arguments only; the work is in the library.
use std::{env, path::Path, process::ExitCode};

use clap::Parser;
use netmig_user::{
    agent::hook,
    cli::{
        self,
        args::{Cli, Command},
    },
    engine,
};
use nix::sys::signal::SigSet;

fn main() -> ExitCode {
    // Whoever starts it may have blocked signals, and a mask is inherited: without SIGCHLD the ends of its ssh are not heard of.
    if let Err(e) = SigSet::empty().thread_set_mask() {
        eprintln!("netmig-user: unblocking signals: {e}");
    }
    // In a move's directory this binary stands under the names of CRIU's action script, the runtimes and netavark.
    let called = env::args_os().next().unwrap_or_default();
    let called = Path::new(&called);
    if let Some(mv) = hook::move_of(called) {
        return cli::called(mv, called);
    }
    let args = Cli::parse();
    if let Command::Supervise(supervise) = &args.command {
        return engine::job::supervise_main(&supervise.dir);
    }
    if let Command::HandoffEngine(helper) = &args.command {
        return cli::handoff::helper(helper);
    }
    match cli::run(args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("netmig-user: {e:#}");
            ExitCode::FAILURE
        }
    }
}
