//! `netmig-peer`: the demo's servers in the container, and their clients in the host `peer`.
//!
//! A client prints `ready` when it is warm, works until its standard input ends or its time is over, and then prints its outcome as one
//! line of JSON.
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use netmig_lab::{
    gauge,
    peers::{
        Direction, Outcome, bulk, dataset, idle, init, iperf3, redis,
        stop::{Stop, say_ready},
        udp, waiting,
    },
    soak,
};

#[derive(Parser)]
#[command(about)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run commands, separated by `--and`, as the first process of a container.
    Init {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        commands: Vec<String>,
    },
    /// Echo datagrams.
    UdpEcho {
        #[arg(long, default_value_t = 7777)]
        port: u16,
    },
    /// Leave connections waiting until told, wait for a connection, hear a multicast group.
    Waiting {
        #[arg(long)]
        connect: SocketAddr,
        #[arg(long)]
        at: Ipv4Addr,
    },
    /// Send and receive verified streams.
    BulkServer {
        #[arg(long, default_value_t = bulk::PORT)]
        port: u16,
    },
    /// Verified SET/GET to redis from inside the container; its state is kept in redis.
    Loopback {
        #[arg(long, default_value = "127.0.0.1:6379")]
        to: SocketAddr,
    },
    /// Verified SET/GET on many connections.
    Redis {
        #[command(flatten)]
        client: Client,
        #[arg(long, default_value_t = 50)]
        connections: usize,
        /// Milliseconds between a connection's operations.
        #[arg(long, default_value_t = 0)]
        every: u64,
        /// Seconds that a reply may take.
        #[arg(long, default_value_t = redis::PATIENCE.as_secs())]
        patience: u64,
    },
    /// Connections that stay silent until the end.
    Idle {
        #[command(flatten)]
        client: Client,
        #[arg(long, default_value_t = 10)]
        connections: usize,
    },
    /// One verified stream.
    Bulk {
        #[command(flatten)]
        client: Client,
        /// Which way, as the container sees it.
        #[arg(long)]
        direction: Way,
        /// Bytes a second; 0: as fast as it goes.
        #[arg(long, default_value_t = 0)]
        rate: u64,
    },
    /// One stream of iperf3 to its server.
    Iperf3 {
        #[command(flatten)]
        client: Client,
        /// Bytes a second; 0: as fast as it goes.
        #[arg(long, default_value_t = 0)]
        rate: u64,
    },
    /// Datagrams to an echo.
    Udp {
        #[command(flatten)]
        client: Client,
        #[arg(long, default_value_t = 1000)]
        per_second: u32,
    },
    /// Write the data set into redis.
    Populate {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        bytes: u64,
    },
    /// Read the data set back and print its state as JSON.
    State {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        bytes: u64,
    },
    /// The container of the soak: a program that hands itself over.
    SoakServer {
        /// How it is started at a target.
        #[arg(long)]
        command: String,
        /// Decides what its ends do.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Take over the state of the one that is being moved here.
        #[arg(long)]
        load: bool,
    },
    /// Connections to it in all states; a line of standard input asks how they are.
    SoakClient {
        /// Where it listens; taken in turn.
        #[arg(long, required = true)]
        to: Vec<SocketAddr>,
        #[arg(long, default_value_t = 300)]
        connections: usize,
        /// Decides what its ends do.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// The container of the gauge: a program that hands itself over, or is moved as it is.
    GaugeServer {
        /// How it is started at a target.
        #[arg(long)]
        command: Option<String>,
        /// Take over the state of the one that is being moved here.
        #[arg(long, requires = "command")]
        load: bool,
    },
    /// Its peer; a line of standard input asks what was felt of a move.
    GaugeClient(gauge::client::Task),
    /// Print the value of a key.
    Ask {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long, default_value = redis::LOOPBACK_STATUS)]
        key: String,
    },
}

#[derive(Args)]
struct Client {
    /// The row's name.
    #[arg(long)]
    name: String,
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// Seconds after which the client ends in any case.
    #[arg(long, default_value_t = 600)]
    limit: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    Inbound,
    Outbound,
}

fn main() -> ExitCode {
    match run(Cli::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("netmig-peer: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> anyhow::Result<()> {
    match what {
        What::Init { commands } => {
            let commands: Vec<Vec<String>> = commands
                .split(|word| word == "--and")
                .map(<[String]>::to_vec)
                .collect();
            init::run(&commands)?;
        }
        What::UdpEcho { port } => {
            let socket =
                udp::bind_echo(port).with_context(|| format!("binding UDP port {port}"))?;
            udp::echo(&socket, &Stop::never())?;
        }
        What::Waiting { connect, at } => waiting::serve(connect, at)?,
        What::BulkServer { port } => {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .with_context(|| format!("listening on port {port}"))?;
            bulk::serve(&listener)?;
        }
        What::Loopback { to } => redis::loopback(to, &Stop::never())?,
        What::Redis {
            client,
            connections,
            every,
            patience,
        } => {
            let pace = redis::Pace {
                every: Duration::from_millis(every),
                patience: Duration::from_secs(patience),
            };
            tell(&redis::load(
                &client.name,
                client.to,
                connections,
                pace,
                &client.stop(),
                say_ready,
            )?)?;
        }
        What::Idle {
            client,
            connections,
        } => {
            tell(&idle::hold(
                &client.name,
                client.to,
                connections,
                &client.stop(),
                say_ready,
            )?)?;
        }
        What::Bulk {
            client,
            direction,
            rate,
        } => {
            let direction = match direction {
                Way::Inbound => Direction::Inbound,
                Way::Outbound => Direction::Outbound,
            };
            let request = bulk::Request {
                direction,
                seed: u64::from(std::process::id()),
                rate,
            };
            tell(&bulk::stream(
                &client.name,
                client.to,
                &request,
                &client.stop(),
                say_ready,
            )?)?;
        }
        What::Udp { client, per_second } => {
            tell(&udp::flow(
                &client.name,
                client.to,
                per_second,
                &client.stop(),
                say_ready,
            )?)?;
        }
        What::Iperf3 { client, rate } => {
            tell(&iperf3::stream(
                &client.name,
                client.to,
                rate,
                &client.stop(),
                say_ready,
            )?)?;
        }
        What::Populate { to, bytes } => dataset::populate(to, bytes)?,
        What::State { to, bytes } => {
            println!("{}", serde_json::to_string(&dataset::state(to, bytes)?)?)
        }
        What::SoakServer {
            command,
            seed,
            load,
        } => soak::server::run(vec![command], load, seed)?,
        What::SoakClient {
            to,
            connections,
            seed,
        } => soak::client::run(to, connections, seed)?,
        What::GaugeServer { command, load } => gauge::server::run(match command {
            None => gauge::server::Life::Plain,
            Some(command) if load => gauge::server::Life::Loads(command),
            Some(command) => gauge::server::Life::HandsOver(command),
        })?,
        What::GaugeClient(task) => gauge::client::run(&task)?,
        What::Ask { to, key } => {
            let value =
                redis::ask(to, &key)?.with_context(|| format!("redis at {to} has no key {key}"))?;
            println!("{}", String::from_utf8_lossy(&value));
        }
    }
    Ok(())
}

impl Client {
    fn stop(&self) -> Stop {
        Stop::at_end_of_input(Duration::from_secs(self.limit))
    }
}

fn tell(outcome: &Outcome) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(outcome)?);
    Ok(())
}
