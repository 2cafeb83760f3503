//! The agent's main loop: one listener, one task a connection, one task a move.
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use netmig_core::{
    frame::Frame,
    id::MoveId,
    proto::{Hello, PROTOCOL},
};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};
use tracing::{info, warn};

use super::{
    kept,
    local::{self, Decision, Greeting, Known, MoveSpec, Say, Told},
    pace, paths,
};
use crate::{
    driver::{
        feed::Feed,
        source::{
            self,
            service::{forget_gone, waits},
        },
        target,
    },
    engine::{
        criu::hook::{HookReply, NetavarkReply},
        handoff::programs::{Desk, SOCKET, Verdict},
    },
    sys,
    wire::pipe::Pipe,
};

/// An agent without a move, without a program that can be moved and without a connection for so long ends; the next one who needs it starts another.
const IDLE: Duration = Duration::from_secs(30);

/// A move on this host, as the agent's connections reach it.
#[derive(Clone)]
pub enum Handle {
    /// The container starts here.
    Source(mpsc::UnboundedSender<source::Input>, Feed),
    /// The container comes here.
    Target(mpsc::UnboundedSender<target::Input>, Feed),
}

/// All moves of this host that are not closed.
#[derive(Clone, Default)]
pub struct Moves(Arc<Mutex<HashMap<MoveId, Handle>>>);

impl Moves {
    fn find(&self, mv: MoveId) -> Option<Handle> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&mv)
            .cloned()
    }

    fn add(&self, mv: MoveId, handle: Handle) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(mv, handle);
    }

    /// The move is over. With the last one goes the memory that it needed, which may be a container's queues.
    async fn end(&self, mv: MoveId) {
        let last = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.remove(&mv);
            all.is_empty()
        };
        if last && let Err(e) = tokio::task::spawn_blocking(sys::memory::give_back).await {
            warn!("giving memory back: {e}");
        }
    }

    fn all(&self) -> Vec<(MoveId, Handle)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(id, h)| (*id, h.clone()))
            .collect()
    }
}

/// Runs the agent until it has been idle for long enough.
///
/// # Errors
/// The lock or the socket cannot be had. Another agent holding the lock is no error: this one ends.
pub async fn run() -> Result<()> {
    fs::create_dir_all(paths::run_moves()).context("making /run/netmig/moves")?;
    fs::create_dir_all(paths::state_moves()).context("making /var/lib/netmig/moves")?;
    let Some(_lock) = lock()? else { return Ok(()) };
    own_cgroup(Path::new(pace::CGROUP));
    let moves = Moves::default();
    take_up(&moves);
    tokio::spawn(forget_gone());
    let programs = Desk::open(Arc::new(verdict))
        .with_context(|| format!("listening for programs at {SOCKET}"))?;
    let listener = listen()?;
    info!(version = env!("CARGO_PKG_VERSION"), "agent listens");
    loop {
        match tokio::time::timeout(IDLE, listener.accept()).await {
            Ok(Ok((stream, _))) => {
                let moves = moves.clone();
                tokio::spawn(async move {
                    if let Err(e) = serve(stream, &moves).await {
                        warn!("connection: {e:#}");
                    }
                });
            }
            Ok(Err(e)) => {
                warn!("accepting a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(_) if moves.all().is_empty() && programs.is_empty() && !waits() => break,
            Err(_) => {}
        }
    }
    info!("agent is idle and ends");
    fs::remove_file(SOCKET).context("removing the socket for programs")?;
    fs::remove_file(paths::socket()).context("removing the agent's socket")
}

fn lock() -> Result<Option<Flock<File>>> {
    let path = paths::lock();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => bail!("locking {}: {e}", path.display()),
    }
}

fn listen() -> Result<UnixListener> {
    let path = paths::socket();
    // We hold the lock: a socket that is there was left by an agent that died.
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).context(format!("removing {}", path.display()));
        }
        _ => {}
    }
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let bound = UnixListener::bind(&path);
    nix::sys::stat::umask(old);
    bound.with_context(|| format!("listening at {}", path.display()))
}

/// Leaves the cgroup of whoever started this process for `dir`, so that stopping that (a unit, an ssh session) does not stop a move.
pub(super) fn own_cgroup(dir: &Path) {
    let enter = || -> io::Result<()> {
        if !dir
            .parent()
            .is_some_and(|root| root.join("cgroup.procs").exists())
        {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup2 hierarchy at /sys/fs/cgroup",
            ));
        }
        fs::create_dir_all(dir)?;
        fs::write(dir.join("cgroup.procs"), "0")
    };
    if let Err(e) = enter() {
        warn!("staying in the starter's cgroup: {e}");
    }
}

/// Takes up every move whose journal is not closed.
fn take_up(moves: &Moves) {
    let dir = match fs::read_dir(paths::state_moves()) {
        Ok(dir) => dir,
        Err(e) => return warn!("reading {}: {e}", paths::state_moves().display()),
    };
    for entry in dir.flatten() {
        let Some(mv) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<MoveId>().ok())
        else {
            continue;
        };
        if entry.path().join("target").exists() {
            match target::recover(mv) {
                Ok(Some(start)) => spawn_target(moves, mv, start),
                Ok(None) => kept::sweep(mv),
                Err(e) => warn!(%mv, "not taken up: {e:#}"),
            }
        } else {
            match source::recover(mv) {
                Ok(Some(start)) => spawn_source(moves, mv, start),
                Ok(None) => kept::sweep(mv),
                Err(e) => warn!(%mv, "not taken up: {e:#}"),
            }
        }
    }
}

fn spawn_source(moves: &Moves, mv: MoveId, start: source::Start) {
    let (tx, rx) = mpsc::unbounded_channel();
    let feed = Feed::default();
    moves.add(mv, Handle::Source(tx.clone(), feed.clone()));
    let moves = moves.clone();
    tokio::spawn(async move {
        source::run(start, tx, rx, feed).await;
        moves.end(mv).await;
    });
}

fn spawn_target(moves: &Moves, mv: MoveId, start: target::Start) {
    let (tx, rx) = mpsc::unbounded_channel();
    let feed = Feed::default();
    moves.add(mv, Handle::Target(tx.clone(), feed.clone()));
    let moves = moves.clone();
    tokio::spawn(async move {
        target::run(start, tx, rx, feed).await;
        moves.end(mv).await;
    });
}

async fn serve(mut stream: UnixStream, moves: &Moves) -> Result<()> {
    let Some(greeting) = local::read::<Greeting>(&mut stream)
        .await
        .context("reading a greeting")?
    else {
        return Ok(());
    };
    match greeting {
        Greeting::Migrate(spec) | Greeting::Plan(spec) => begin(stream, moves, *spec).await,
        Greeting::Attach(mv) => match moves.find(mv) {
            Some(handle) => follow(stream, handle).await,
            None => ended(stream, mv).await,
        },
        Greeting::List => Ok(local::write(&mut stream, &list(moves)).await?),
        Greeting::Recover(mv, decision) => {
            let answer = recover(moves, mv, decision);
            Ok(local::write(&mut stream, &answer).await?)
        }
        Greeting::Hook(mv, call) => {
            let (tx, rx) = oneshot::channel();
            let told = match moves.find(mv) {
                Some(Handle::Source(to, _)) => to.send(source::Input::Hook(call, tx)).is_ok(),
                Some(Handle::Target(to, _)) => to.send(target::Input::Hook(call, tx)).is_ok(),
                None => false,
            };
            let reply = if told { rx.await.ok() } else { None };
            if reply.is_none()
                && paths::state(mv).join("journal").exists()
                && moves.find(mv).is_none()
                && !over(mv)
            {
                // Its journal may hold a grant that cannot be read: nothing may go on or back. The hook asks again.
                tokio::time::sleep(Duration::from_secs(1)).await;
                bail!("a hook waits for move {mv}, whose journal is not taken up");
            }
            if reply.is_none() {
                warn!(%mv, "a hook came for a move that is not under way here; it is told to undo");
            }
            Ok(local::write(&mut stream, &reply.unwrap_or(HookReply { code: 1 })).await?)
        }
        Greeting::Netavark(mv, call) => {
            let (tx, rx) = oneshot::channel();
            let told = match moves.find(mv) {
                Some(Handle::Target(to, _)) => to.send(target::Input::Netavark(call, tx)).is_ok(),
                _ => false,
            };
            let reply = if told { rx.await.ok() } else { None };
            let gone =
                || NetavarkReply::Fail(format!("netmig has no move {mv} to this host under way"));
            Ok(local::write(&mut stream, &reply.unwrap_or_else(gone)).await?)
        }
        Greeting::Rsync(mv, args) => match moves.find(mv) {
            Some(Handle::Source(to, _)) => to
                .send(source::Input::Rsync(stream, args))
                .map_err(|_| anyhow::anyhow!("move {mv} has just ended")),
            _ => bail!("rsync for move {mv}, which has no source here"),
        },
        Greeting::Wire => wire(stream, moves).await,
    }
}

/// Whether the journal of a move says that it is closed.
fn over(mv: MoveId) -> bool {
    use crate::driver::journal;
    use netmig_core::machine::{source, target};
    let dir = paths::state(mv);
    if dir.join("target").exists() {
        journal::records::<target::Record>(&dir)
            .is_ok_and(|records| matches!(records.last(), None | Some(target::Record::Closed)))
    } else {
        journal::records::<source::Record>(&dir)
            .is_ok_and(|records| matches!(records.last(), None | Some(source::Record::Closed)))
    }
}

/// What became of the move that a program has saved itself for, by the source's journal.
fn verdict(mv: MoveId) -> Option<Verdict> {
    use crate::driver::journal;
    use netmig_core::machine::source::Record;
    let dir = paths::state(mv);
    // Without a journal nothing was begun on this host.
    if !dir.join("journal").exists() {
        return Some(Verdict::Kept);
    }
    let records = match journal::records::<Record>(&dir) {
        Ok(records) => records,
        Err(e) => {
            warn!(%mv, "a program waits for its end: {e:#}");
            return None;
        }
    };
    if records.is_empty() {
        return Some(Verdict::Kept);
    }
    records.iter().rev().find_map(|record| match record {
        Record::Released => Some(Verdict::Moved),
        Record::Kept(_) => Some(Verdict::Kept),
        _ => None,
    })
}

async fn begin(mut stream: UnixStream, moves: &Moves, spec: MoveSpec) -> Result<()> {
    let start = match source::begin(spec) {
        Ok(start) => start,
        Err(e) => return Ok(local::write(&mut stream, &Told::Error(format!("{e:#}"))).await?),
    };
    let mv = start.id();
    spawn_source(moves, mv, start);
    local::write(&mut stream, &Told::Begun(mv)).await?;
    match moves.find(mv) {
        Some(handle) => follow(stream, handle).await,
        None => ended(stream, mv).await,
    }
}

/// Tells a client everything until the move ends or the client leaves; a client that leaves changes nothing.
async fn follow(stream: UnixStream, handle: Handle) -> Result<()> {
    let (mut from, mut to) = stream.into_split();
    let feed = match &handle {
        Handle::Source(_, feed) | Handle::Target(_, feed) => feed,
    };
    let mut news = feed.follow();
    let mut listening = true;
    loop {
        tokio::select! {
            told = news.recv() => {
                let Some(told) = told else { return Ok(()) };
                let last = matches!(told, Told::Ended(_) | Told::Error(_));
                local::write(&mut to, &told).await?;
                if last {
                    return Ok(());
                }
            }
            said = local::read::<Say>(&mut from), if listening => match said? {
                Some(Say::Cancel) => if let Handle::Source(tx, _) = &handle
                    && tx.send(source::Input::Cancel("the operator gave it up".to_owned())).is_err() {
                        listening = false;
                    },
                None => listening = false,
            },
        }
    }
}

/// A move that is over: its report is on disk.
async fn ended(mut stream: UnixStream, mv: MoveId) -> Result<()> {
    let path = paths::state(mv).join("report.json");
    let told = match fs::read_to_string(&path) {
        Ok(report) => Told::Ended(report),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Told::Error(format!("this host knows no move {mv}"))
        }
        Err(e) => Told::Error(format!("reading {}: {e}", path.display())),
    };
    Ok(local::write(&mut stream, &told).await?)
}

fn list(moves: &Moves) -> Vec<Known> {
    let mut known: Vec<Known> = moves
        .all()
        .into_iter()
        .map(|(mv, handle)| {
            let (side, state) = match handle {
                Handle::Source(..) => ("source", source::describe(mv)),
                Handle::Target(..) => ("target", target::describe(mv)),
            };
            let (container, state) = state
                .unwrap_or_else(|e| ("?".to_owned(), format!("its record cannot be read: {e:#}")));
            Known {
                id: mv.to_string(),
                side: side.to_owned(),
                container,
                state,
            }
        })
        .collect();
    known.sort_by(|a, b| a.id.cmp(&b.id));
    known
}

fn recover(moves: &Moves, mv: MoveId, decision: Decision) -> Result<String, String> {
    let gone = |_| format!("move {mv} has just ended");
    match (moves.find(mv), decision) {
        (Some(Handle::Source(to, _)), Decision::TakeBack) => {
            to.send(source::Input::Reclaim)
                .map_err(|e| gone(e.to_string()))?;
            Ok(format!(
                "told: move {mv} takes the container back here if it waits for the target's word; `netmig-user recover` shows what came of it"
            ))
        }
        (Some(Handle::Target(to, _)), Decision::Release | Decision::GiveUp) => {
            to.send(target::Input::Decide(decision))
                .map_err(|e| gone(e.to_string()))?;
            Ok(match decision {
                Decision::Release => format!(
                    "told: move {mv} releases the container here if it is prepared; `netmig-user recover` shows what came of it"
                ),
                _ => format!(
                    "told: move {mv} gives up what is prepared here unless it was released; `netmig-user recover` shows what came of it"
                ),
            })
        }
        (Some(Handle::Source(..)), _) => Err(format!(
            "move {mv} has its source here: only --take-back can be decided on this host"
        )),
        (Some(Handle::Target(..)), _) => Err(format!(
            "move {mv} has its target here: only --release or --give-up can be decided on this host"
        )),
        (None, _) => Err(format!(
            "this host has no move {mv} under way; `netmig-user recover` lists them"
        )),
    }
}

/// A connection of another agent: the Hello says which move and what for.
async fn wire(stream: UnixStream, moves: &Moves) -> Result<()> {
    let mut pipe = Pipe::of_stream(stream);
    let hello = pipe.hello().await?;
    let mv = hello.mv;
    if moves.find(mv).is_none() {
        match target::accept(&hello) {
            Ok(target::Accept::Begin(start)) => spawn_target(moves, mv, *start),
            Ok(target::Accept::Answer(word, life)) => {
                let ours = Hello {
                    protocol: PROTOCOL,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    life,
                    peer: Some(hello.life),
                    last_seen: 0,
                    word,
                    ..hello
                };
                return pipe
                    .send(Frame::Hello(Box::new(ours)))
                    .await
                    .context("answering with the last word of a move");
            }
            Err(e) => return Err(e.context(format!("move {mv} cannot begin here"))),
        }
    }
    match moves.find(mv) {
        Some(Handle::Target(to, _)) => to
            .send(target::Input::Pipe(hello, pipe))
            .map_err(|_| anyhow::anyhow!("move {mv} has just ended")),
        Some(Handle::Source(..)) => bail!("the source of move {mv} is this very host"),
        None => bail!("move {mv} has just ended"),
    }
}
