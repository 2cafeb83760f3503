//! An echo server that can be moved to another host with its connections, by saving and loading itself.
//!
//! It answers every line with the number of the line in its connection and the line; every datagram with the number of the datagram and its
//! payload. These numbers, and half-read lines, are its state. [`handoff`] speaks the protocol of docs/handoff.md and knows nothing of echoes:
//! it can be taken as it is.
//!
//! ```text
//! ip netns add echo                            # with a link and an address on the segment
//! netmig-user handoff --netns echo -- handoff-echo echo --listen [::]:7000 --udp [::]:7000
//! netmig-user migrate --handoff echo --to ssh://hostb
//! ```
pub mod handoff;
pub mod server;

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Parser;

use handoff::{Introduction, Netmig};
use server::Server;

/// Version of the state.
pub const VERSION: &str = "1";

/// An echo server that netmig can move with its connections
#[derive(Debug, Parser)]
struct Arguments {
    /// Its name, by which `netmig-user migrate --handoff` knows it
    name: String,
    /// Where it listens for connections
    #[arg(long)]
    listen: Vec<SocketAddr>,
    /// Where it answers datagrams
    #[arg(long)]
    udp: Vec<SocketAddr>,
    /// Take over the state of the one that is being moved here
    #[arg(long, conflicts_with_all = ["listen", "udp"])]
    load: bool,
    /// How it is started at a target (default: this program with --load)
    #[arg(long, num_args = 1.., allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs until it is moved away.
#[must_use]
pub fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("handoff-echo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let who = introduction(&arguments)?;
    if !arguments.load {
        let mut server = Server::default();
        for address in arguments.listen {
            let listener =
                TcpListener::bind(address).with_context(|| format!("listening at {address}"))?;
            server.listen(listener)?;
        }
        for address in arguments.udp {
            let socket = UdpSocket::bind(address).with_context(|| format!("binding {address}"))?;
            server.answer(socket)?;
        }
        let netmig = Netmig::register(&who, None);
        return server.run(&who, netmig);
    }
    let (netmig, loading) = Netmig::load(&who)?;
    match Server::load(loading) {
        Ok(server) => {
            // False: the move was given up, or netmig has died before it said so; the source goes on.
            if netmig.ready()? {
                server.run(&who, netmig)?;
            }
            Ok(())
        }
        Err(e) => netmig.refuse(&format!("{e:#}")),
    }
}

fn introduction(arguments: &Arguments) -> Result<Introduction> {
    let mut command = arguments.command.clone();
    if command.is_empty() {
        let program = std::env::current_exe().context("finding this program")?;
        let program = program.to_str().context("a path that is not UTF-8")?;
        command = vec![
            program.to_owned(),
            arguments.name.clone(),
            "--load".to_owned(),
        ];
    }
    Ok(Introduction {
        name: arguments.name.clone(),
        version: VERSION.to_owned(),
        command,
    })
}
