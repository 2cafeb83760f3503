//! The command line: one file a subcommand.
pub mod agent;
pub mod args;
pub mod called;
pub mod check;
pub mod follow;
pub mod gate;
pub mod handoff;
pub mod inspect;
pub mod migrate;
pub mod net;
pub mod recover;

use std::process::ExitCode;

use anyhow::{Context, Result};
pub use called::called;
use tracing_subscriber::EnvFilter;

use crate::agent::guard;

/// Runs the subcommand.
///
/// # Errors
/// The subcommand's, for the operator to read.
pub fn run(args: args::Cli) -> Result<ExitCode> {
    let filter = EnvFilter::try_from_env("NETMIG_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,netlink_packet_route=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let mut builder = match args.command {
        // It waits and does nothing else.
        args::Command::Guard(_) => tokio::runtime::Builder::new_current_thread(),
        args::Command::Agent(_) => {
            crate::sys::memory::share_arenas();
            tokio::runtime::Builder::new_multi_thread()
        }
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let done = runtime.block_on(async {
        match args.command {
            args::Command::Migrate(args) => migrate::run(args).await,
            args::Command::Plan(args) => migrate::plan(args).await,
            args::Command::Inspect(args) => inspect::run(&args).map(|()| ExitCode::SUCCESS),
            args::Command::Check(args) => check::run(&args),
            args::Command::Gate(args) => gate::run(&args).map(|()| ExitCode::SUCCESS),
            args::Command::Handoff(args) => handoff::run(&args).await,
            args::Command::Recover(args) => recover::run(args).await,
            args::Command::Net(args) => net::run(&args),
            args::Command::Agent(args) => agent::run(args).await.map(|()| ExitCode::SUCCESS),
            args::Command::Guard(args) => {
                guard::run(args.mv).await;
                Ok(ExitCode::SUCCESS)
            }
            args::Command::Rsh(args) => agent::rsh(args).await.map(|()| ExitCode::SUCCESS),
            args::Command::Supervise(_) | args::Command::HandoffEngine(_) => {
                unreachable!("taken before a runtime was started")
            }
        }
    });
    // A read of standard input cannot be cancelled: do not wait for it.
    runtime.shutdown_background();
    done
}
