//! `cargo xtask lab`: a lab to try netmig by hand.
use std::{
    io::{IsTerminal as _, stdin, stdout},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Command, ExitCode, ExitStatus},
    time::Instant,
};

use crate::{
    line::LineArguments,
    setup::{self, Purpose, Tell},
};
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use netmig_lab::{
    Bind, Cmd, Host as _, Lab, NamespaceHost, Options,
    lab::{self, link::Line},
};

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Which lab, if there are several at a time
    #[arg(long, global = true, default_value = "lab")]
    name: String,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring it up; it stays until `down`
    Up {
        /// The netmig-user binary that the hosts see as /usr/bin/netmig-user [default: the one last built, if any]
        #[arg(long)]
        binary: Option<PathBuf>,
        /// Show a file or directory of this machine in each host, read-only
        #[arg(long, value_name = "SOURCE:TARGET", value_parser = parse_bind)]
        bind: Vec<Bind>,
        #[command(flatten)]
        line: LineArguments,
    },
    /// Run a command on a host: a, b or peer
    Exec {
        /// The host
        host: String,
        /// The command and its arguments [default: a shell]
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// What is up
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// End it and remove all of it
    Down,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let name = &arguments.name;
    match &arguments.verb {
        Verb::Up { binary, bind, line } => up(name, binary.as_ref(), bind, line.line()),
        Verb::Exec { host, command } => exec(name, host, command),
        Verb::Status { json } => status(*json),
        Verb::Down => {
            lab::down(name)?;
            println!("lab {name} is down");
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn up(
    name: &str,
    binary: Option<&PathBuf>,
    binds: &[Bind],
    line: Option<Line>,
) -> anyhow::Result<ExitCode> {
    setup::require_root("a lab")?;
    setup::ready(&[Purpose::Lab], Tell::Work)?;
    let began = Instant::now();
    let options = Options {
        binary: binary.cloned().or_else(newest_binary),
        binds: binds.to_vec(),
        keep: true,
        line,
        ..Options::default()
    };
    let lab = Lab::up(name, &options)?;
    for host in &lab.state().hosts {
        println!(
            "{:5} {:12} {:17} pid {}",
            host.name, host.ipv4, host.ipv6, host.pid
        );
    }
    match &options.binary {
        Some(binary) => println!("netmig-user is {}", binary.display()),
        None => println!("netmig-user is not built yet: the hosts have none"),
    }
    if let Some(line) = line {
        println!("peer's line: {line}");
    }
    println!("lab {name} is up after {} ms", began.elapsed().as_millis());
    Ok(ExitCode::SUCCESS)
}

/// The netmig-user beside this program or of the release profile, whichever was built last.
fn newest_binary() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let target = own.parent()?.parent()?;
    ["debug", "release"]
        .iter()
        .map(|profile| target.join(profile).join("netmig-user"))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
}

fn exec(name: &str, host: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let lab = Lab::attach(name)?;
    let Some(host) = lab.host(host) else {
        let names = lab
            .hosts()
            .iter()
            .map(NamespaceHost::name)
            .collect::<Vec<_>>();
        bail!("lab {name} has no host {host}: it has {}", names.join(", "));
    };
    let shell = [String::from("bash")];
    let command = if command.is_empty() { &shell } else { command };
    let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    let interactive = stdin().is_terminal() && stdout().is_terminal();
    let cmd = if interactive {
        // A terminal of the host's own, so that job control and ^C work in it; this one only passes keys on.
        Cmd::new(["script", "-qec", &shell_line(command), "/dev/null"])
    } else {
        Cmd::new(command.iter().cloned())
    };
    let mut process = host.spawn(&cmd.env("TERM", term).inherit())?;
    let status = process.wait();
    if interactive {
        Command::new("stty")
            .arg("sane")
            .status()
            .context("resetting the terminal")?;
    }
    Ok(exit_code(status.context("waiting for the command")?))
}

/// The arguments as one line that a shell takes apart again.
fn shell_line(command: &[String]) -> String {
    let quoted = command
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    quoted.collect::<Vec<_>>().join(" ")
}

/// As a shell has it: 128 and the signal's number for a command that a signal ended.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

fn status(json: bool) -> anyhow::Result<ExitCode> {
    let names = lab::labs()?;
    let up = names
        .iter()
        .filter_map(|name| Lab::attach(name).ok())
        .collect::<Vec<_>>();
    if json {
        let states = up.iter().map(Lab::state).collect::<Vec<_>>();
        println!("{}", serde_json::to_string_pretty(&states)?);
        return Ok(ExitCode::SUCCESS);
    }
    for lab in &up {
        let hosts = lab.state().hosts.iter();
        let hosts = hosts.map(|host| format!("{} {} pid {}", host.name, host.ipv4, host.pid));
        println!("{}: {}", lab.name(), hosts.collect::<Vec<_>>().join(", "));
    }
    for name in names
        .iter()
        .filter(|name| up.iter().all(|lab| lab.name() != *name))
    {
        println!("{name}: dead; `cargo xtask lab down --name {name}` removes what it left");
    }
    if names.is_empty() {
        println!("no lab is up");
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_bind(text: &str) -> Result<Bind, String> {
    let (source, target) = text.split_once(':').ok_or("not SOURCE:TARGET")?;
    Ok(Bind {
        source: source.into(),
        target: target.into(),
        read_only: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        let words = ["echo", "it's", "a b", "$x"].map(String::from);
        let output = Command::new("sh")
            .args(["-c", &shell_line(&words)])
            .output()
            .expect("sh");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's a b $x\n");
    }
}
