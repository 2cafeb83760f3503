//! The processes of the bench, and how they talk: a line at a time.
use std::{
    env,
    io::{BufRead as _, BufReader, Write as _, stdin, stdout},
    path::PathBuf,
    process::{self, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use clap::Subcommand;

use super::{ends, moving, naive};

#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    /// Listens, accepts, holds; writes when it is told to.
    #[command(hide = true)]
    Container {
        netns: PathBuf,
        count: usize,
        queued: usize,
        #[arg(long)]
        v6: bool,
    },
    /// Connects and writes; checks what comes when it is told to.
    #[command(hide = true)]
    Peer {
        netns: PathBuf,
        count: usize,
        queued: usize,
        #[arg(long)]
        v6: bool,
    },
    /// Makes closed sockets, as an engine does at the target.
    #[command(hide = true)]
    Engine {
        netns: PathBuf,
        count: usize,
        #[arg(long)]
        v6: bool,
    },
    /// The source's agent.
    #[command(hide = true)]
    Dump { netns: PathBuf, pid: u32 },
    /// The target's agent.
    #[command(hide = true)]
    Restore {
        netns: PathBuf,
        pid: u32,
        /// Its descriptors less those of the source.
        #[arg(long, allow_negative_numbers = true)]
        shift: i32,
    },
    /// The loop, both ends in one process.
    #[command(hide = true)]
    Naive {
        from: u32,
        #[arg(long)]
        first: i32,
        to: u32,
        #[arg(long, allow_negative_numbers = true)]
        shift: i32,
        count: usize,
    },
}

impl Role {
    pub fn play(self) -> anyhow::Result<()> {
        match self {
            Self::Container {
                netns,
                count,
                queued,
                v6,
            } => ends::container(&netns, count, queued, v6),
            Self::Peer {
                netns,
                count,
                queued,
                v6,
            } => ends::peer(&netns, count, queued, v6),
            Self::Engine { netns, count, v6 } => ends::engine(&netns, count, v6),
            Self::Dump { netns, pid } => moving::dump(&netns, i32::try_from(pid)?),
            Self::Restore { netns, pid, shift } => {
                moving::restore(&netns, i32::try_from(pid)?, shift)
            }
            Self::Naive {
                from,
                first,
                to,
                shift,
                count,
            } => naive::run(
                i32::try_from(from)?,
                first,
                i32::try_from(to)?,
                shift,
                count,
            ),
        }
    }

    fn arguments(&self) -> Vec<String> {
        let path = |p: &PathBuf| p.display().to_string();
        let family = |v6: &bool| if *v6 { "--v6" } else { "" }.to_owned();
        let words = match self {
            Self::Container {
                netns,
                count,
                queued,
                v6,
            } => vec![
                "container".to_owned(),
                path(netns),
                count.to_string(),
                queued.to_string(),
                family(v6),
            ],
            Self::Peer {
                netns,
                count,
                queued,
                v6,
            } => vec![
                "peer".to_owned(),
                path(netns),
                count.to_string(),
                queued.to_string(),
                family(v6),
            ],
            Self::Engine { netns, count, v6 } => vec![
                "engine".to_owned(),
                path(netns),
                count.to_string(),
                family(v6),
            ],
            Self::Dump { netns, pid } => vec!["dump".to_owned(), path(netns), pid.to_string()],
            Self::Restore { netns, pid, shift } => vec![
                "restore".to_owned(),
                path(netns),
                pid.to_string(),
                format!("--shift={shift}"),
            ],
            Self::Naive {
                from,
                first,
                to,
                shift,
                count,
            } => vec![
                "naive".to_owned(),
                from.to_string(),
                to.to_string(),
                count.to_string(),
                format!("--first={first}"),
                format!("--shift={shift}"),
            ],
        };
        words.into_iter().filter(|word| !word.is_empty()).collect()
    }
}

/// A process of the bench; it ends with its input.
pub struct Child {
    child: process::Child,
    input: Option<ChildStdin>,
    output: Option<BufReader<ChildStdout>>,
    role: Role,
}

impl Child {
    pub fn start(role: &Role) -> anyhow::Result<Self> {
        Self::start_with(role, Stdio::piped())
    }

    /// `input`: where its input comes from, if it is not to be spoken to.
    pub fn start_with(role: &Role, input: Stdio) -> anyhow::Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(role.arguments())
            .stdin(input)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {role:?}"))?;
        Ok(Self {
            input: child.stdin.take(),
            output: child.stdout.take().map(BufReader::new),
            child,
            role: role.clone(),
        })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("it is not listened to")?;
        writeln!(input, "{line}").with_context(|| format!("telling {:?}", self.role))?;
        Ok(input.flush()?)
    }

    /// The next line that it says.
    pub fn hear(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let output = self.output.as_mut().context("it does not speak")?;
        output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{:?} ended without a word", self.role);
        Ok(line.trim().to_owned())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.input.take());
        if let Err(e) = self.child.wait() {
            eprintln!("waiting for {:?}: {e}", self.role);
        }
    }
}

/// The other end of [`Child::say`]; none at the end.
pub fn told() -> anyhow::Result<Option<String>> {
    let mut line = String::new();
    stdin().lock().read_line(&mut line)?;
    Ok((!line.is_empty()).then(|| line.trim().to_owned()))
}

/// The other end of [`Child::hear`].
pub fn tell(line: impl std::fmt::Display) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
