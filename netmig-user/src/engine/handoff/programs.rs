//! The programs of this host that have a connection to the agent: who they are, and how another process of netmig takes the connection up.
//!
//! The agent accepts the connections, takes the first message and keeps them, without reading, until the program hangs up. What there is to
//! know lies in a file for each; the engine's helper ([`super::save`], [`super::load`]) duplicates the descriptor out of the agent
//! (pidfd_getfd) and talks. So a move's engine needs nothing of the agent while it goes on, and survives it.
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use netmig_core::id::MoveId;
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::{Mode, umask},
    },
    unistd::{Pid, geteuid},
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    channel::{Channel, Deadline},
    message::{Introduction, Say, Told, is_name},
};
use crate::{
    engine::job::{Process, write_whole},
    sys::pidfd::PidFd,
};

/// Where the agent listens for programs.
pub const SOCKET: &str = "/run/netmig/handoff.sock";
/// The variable in which a program that netmig starts finds [`SOCKET`].
pub const VARIABLE: &str = "NETMIG_HANDOFF_SOCKET";
/// One file a program.
const DIR: &str = "/run/netmig/handoff";
/// How long a program may take for its first message, and to take a word.
const WORD: Duration = Duration::from_secs(10);
/// How often the end of a move is asked for.
const ASK: Duration = Duration::from_millis(200);
/// How long a program has for its own end.
const LEAVE: Duration = Duration::from_secs(5);

/// What a program waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It works, and can be moved away.
    Running,
    /// It was started to take over a state.
    Waiting,
}

/// A program with a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What it said.
    pub who: Introduction,
    /// What it waits for.
    pub role: Role,
    /// The program.
    process: Process,
    /// Who has its connection.
    agent: Process,
    /// As which descriptor.
    fd: RawFd,
}

/// What has become of the move that a program has saved itself for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on here.
    Kept,
    /// It lives elsewhere.
    Moved,
}

/// Tells what became of a move; none while that is open.
pub type Judge = dyn Fn(MoveId) -> Option<Verdict> + Send + Sync;

impl Program {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Whether the process is there.
    #[must_use]
    pub fn lives(&self) -> bool {
        self.process.lives()
    }

    /// Its connection, out of the agent.
    ///
    /// # Errors
    /// The agent or the connection is gone.
    pub fn channel(&self) -> io::Result<Channel> {
        let stream = UnixStream::from(PidFd::open(self.agent.pid)?.fd(self.fd)?);
        let channel = Channel::new(stream);
        // The number may be another connection's by now.
        if channel.peer()?.0 != self.process.pid {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(channel)
    }

    /// The move is off: tells it so, and ends the connection. What it may still say to this move must not be heard by the next one; it
    /// registers anew.
    ///
    /// # Errors
    /// It does not take it.
    pub fn resume(&self) -> Result<(), super::channel::Error> {
        let channel = self.channel()?;
        let told = channel.send(&Told::Resume, Deadline::within(WORD));
        channel.close()?;
        told
    }

    /// It lives elsewhere: tells it to leave, and ends it if it does not. What could not be done as it should, in words.
    pub fn dismiss(&self) -> Option<String> {
        if !self.lives() {
            return None;
        }
        let leave = |channel: Channel| channel.send(&Told::Leave, Deadline::within(WORD));
        let told = self.channel().map_err(Into::into).and_then(leave);
        let end = std::time::Instant::now() + LEAVE;
        while self.lives() {
            if std::time::Instant::now() < end && told.is_ok() {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            let why = told.map_or_else(|e| e.to_string(), |()| format!("within {LEAVE:?}"));
            return Some(match kill(Pid::from_raw(self.pid()), Signal::SIGKILL) {
                Ok(()) | Err(nix::Error::ESRCH) => format!(
                    "program {} (process {}) has not left by itself ({why}) and was killed",
                    self.who.name,
                    self.pid()
                ),
                Err(e) => format!("killing process {}: {e}", self.pid()),
            });
        }
        None
    }

    /// What was loaded runs: it is known as one that can be moved away.
    ///
    /// # Errors
    /// The file system's.
    pub fn promote(mut self) -> io::Result<()> {
        self.role = Role::Running;
        self.write().map_err(io::Error::other)?;
        remove(&file(&self.who.name, Role::Waiting))
    }

    fn write(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        write_whole(
            &file(&self.who.name, self.role),
            &serde_json::to_vec_pretty(self)?,
        )?;
        Ok(())
    }

    /// Removes what is known of this connection.
    fn forget(&self) {
        for role in [Role::Running, Role::Waiting] {
            let path = file(&self.who.name, role);
            let mine = read(&path).is_some_and(|p| p.agent == self.agent && p.fd == self.fd);
            if mine && let Err(e) = remove(&path) {
                warn!("{}: {e}", path.display());
            }
        }
    }
}

/// The program of this name, if it and the agent that holds its connection live.
#[must_use]
pub fn find(name: &str, role: Role) -> Option<Program> {
    if !is_name(name) {
        return None;
    }
    read(&file(name, role)).filter(|program| program.lives() && program.agent.lives())
}

/// All programs that can be moved.
#[must_use]
pub fn all() -> Vec<Program> {
    let Ok(dir) = fs::read_dir(DIR) else {
        return Vec::new();
    };
    let names = dir.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        find(name.strip_suffix(".running.json")?, Role::Running)
    });
    let mut all: Vec<_> = names.collect();
    all.sort_by(|a, b| a.who.name.cmp(&b.who.name));
    all
}

/// Where the output of a program goes that netmig has started.
#[must_use]
pub fn log(name: &str) -> PathBuf {
    Path::new(DIR).join(format!("{name}.log"))
}

/// The agent's end of all connections.
#[derive(Clone, Default)]
pub struct Desk(Arc<AtomicUsize>);

impl Desk {
    /// Listens, and serves every program on a thread of its own. `judge` tells a program that comes back what became of its move.
    ///
    /// # Errors
    /// The socket or the directory cannot be made.
    pub fn open(judge: Arc<Judge>) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(DIR)?;
        // What an agent that died has left: its connections are gone, and the programs come again.
        for entry in fs::read_dir(DIR)?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "json") {
                remove(&entry.path())?;
            }
        }
        remove(Path::new(SOCKET))?;
        let old = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(SOCKET);
        umask(old);
        let listener = bound?;
        let desk = Self::default();
        let (served, writing) = (desk.clone(), Arc::new(Mutex::new(())));
        thread::spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => {
                        let (desk, judge, writing) =
                            (served.clone(), judge.clone(), writing.clone());
                        thread::spawn(move || desk.serve(stream, &*judge, &writing));
                    }
                    Err(e) => {
                        warn!("accepting a program: {e}");
                        thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        });
        Ok(desk)
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }

    fn serve(&self, stream: UnixStream, judge: &Judge, writing: &Mutex<()>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let channel = Channel::new(stream);
        if let Err(why) = attend(&channel, judge, writing) {
            warn!("a program: {why}");
            // It may be gone.
            let told = channel.send(&Told::Error { why }, Deadline::within(WORD));
            if let Err(e) = told {
                warn!("a program does not hear so: {e}");
            }
        }
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One program, to its end.
fn attend(channel: &Channel, judge: &Judge, writing: &Mutex<()>) -> Result<(), String> {
    let (pid, uid) = channel.peer().map_err(|e| format!("who it is: {e}"))?;
    if uid != geteuid().as_raw() {
        return Err(format!(
            "process {pid} belongs to user {uid}: only programs of user {} may hand themselves over",
            geteuid()
        ));
    }
    let said: Say = channel
        .receive(Deadline::within(WORD))
        .map_err(|e| e.to_string())?;
    let (who, role, mv) = match said {
        Say::Register { who, mv } => (who, Role::Running, mv),
        Say::Load { who } => (who, Role::Waiting, None),
        other => return Err(format!("{other:?} came where register or load is due")),
    };
    if !is_name(&who.name) {
        return Err(format!(
            "{:?} is no name: 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit",
            who.name
        ));
    }
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    let (Some(process), Some(agent)) = (Process::of(pid), Process::of(me)) else {
        return Err(format!("process {pid} is gone"));
    };
    let program = Program {
        who,
        role,
        process,
        agent,
        fd: channel.as_raw(),
    };
    let verdict = match mv {
        Some(mv) => match wait(
            channel,
            judge,
            mv.parse().map_err(|_| format!("{mv:?} is no move's id"))?,
        )? {
            Some(verdict) => Some(verdict),
            None => return Ok(()),
        },
        None => None,
    };
    let send = |told: &Told| {
        channel
            .send(told, Deadline::within(WORD))
            .map_err(|e| e.to_string())
    };
    if verdict == Some(Verdict::Moved) {
        return send(&Told::Leave);
    }
    {
        let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = find(&program.who.name, role) {
            return Err(format!(
                "process {} has the name {} already",
                other.pid(),
                program.who.name
            ));
        }
        program
            .write()
            .map_err(|e| format!("noting program {}: {e}", program.who.name))?;
    }
    info!(name = %program.who.name, pid, ?role, "a program is here");
    let heard = send(&Told::Registered).and_then(|()| match verdict {
        Some(_) => send(&Told::Resume),
        None => Ok(()),
    });
    let gone = heard.and_then(|()| {
        channel
            .hung_up(None)
            .map_err(|e| format!("waiting for its end: {e}"))
    });
    program.forget();
    info!(name = %program.who.name, pid, "a program has gone");
    gone.map(drop)
}

/// Waits for the end of the move; none if the program goes before.
fn wait(channel: &Channel, judge: &Judge, mv: MoveId) -> Result<Option<Verdict>, String> {
    loop {
        if let Some(verdict) = judge(mv) {
            return Ok(Some(verdict));
        }
        if channel
            .hung_up(Some(ASK))
            .map_err(|e| format!("waiting for move {mv}: {e}"))?
        {
            return Ok(None);
        }
    }
}

fn file(name: &str, role: Role) -> PathBuf {
    let role = match role {
        Role::Running => "running",
        Role::Waiting => "waiting",
    };
    Path::new(DIR).join(format!("{name}.{role}.json"))
}

fn read(path: &Path) -> Option<Program> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Channel {
    fn as_raw(&self) -> RawFd {
        use std::os::fd::AsFd;
        self.as_fd().as_raw_fd()
    }
}
