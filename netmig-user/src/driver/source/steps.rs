//! What the source's driver does for each action: blocking work on the container, the gate, the sockets and the runtime.
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use netmig_core::{
    container::Container,
    id::{Life, MoveId},
    image::v1::{
        conntrack::{Connection, Remembered},
        net::Network,
    },
    machine::source::Done,
    plan::Rate,
    proto::{Channel, Hello, PROTOCOL, ToTarget, Word},
    report::Packets,
    service::Behind,
    socket::{self, Row},
};
use tokio::{runtime::Handle, sync::oneshot};
use tracing::warn;

use super::{
    super::{bulk, feed::Feed, hold, look},
    Facts,
    engine::Streaming,
    hold::Hold,
};
use crate::{
    agent::{
        local::{MoveSpec, Told},
        pace::Pace,
        paths,
    },
    engine::{
        self, Engine, cgroup,
        criu::hook::{self, HookReply},
        task,
    },
    files::{Moment, Tree},
    gate::Gate,
    net,
    runtime::{self, Disarmed, Mounts},
    sock,
    wire::{destination::Destination, dial::Dialer},
};

/// Between two looks at growing images.
pub(super) const GLANCE: Duration = Duration::from_millis(1);

/// How long the dump waits at most for the first look at the sockets.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// The source's work on one move.
pub struct Steps {
    pub(super) id: MoveId,
    pub(super) spec: MoveSpec,
    pub(super) life: Life,
    pub(super) feed: Feed,
    pub(super) dialer: Dialer,
    pub(super) handle: Handle,
    /// Set once the move is undone or over: nothing new may begin.
    pub(super) over: AtomicBool,
    /// The closed gate lets nothing of the container's stack pass any more, and no program runs that has seen otherwise.
    pub(super) quiet: AtomicBool,
    /// The sockets are about to be looked at for the first time since the closing, and what has come is acknowledged.
    pub(super) looking: AtomicBool,
    /// Held while a step runs; an undo waits for it.
    pub(super) running: Mutex<()>,
    /// Held while sockets are in repair.
    pub(super) reading: Mutex<()>,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) container: Option<Container>,
    pub(super) netns: Option<PathBuf>,
    pub(super) network: Option<Network>,
    pub(super) links: Vec<net::Link>,
    pub(super) rows: Vec<Row>,
    pub(super) expected: Vec<String>,
    pub(super) file_bytes: u64,
    /// Bytes of the container's image, for a target that lacks it.
    pub(super) image_total: u64,
    /// Trees that were copied whole, and when that began.
    pub(super) copied: BTreeMap<Tree, Moment>,
    pub(super) dropped: u64,
    /// Packets that the gate's program has answered.
    pub(super) answered: u64,
    pub(super) reopened: Option<Instant>,
    pub(super) gate: Option<Gate>,
    pub(super) hold: Option<Arc<Hold>>,
    pub(super) disarmed: Option<Disarmed>,
    pub(super) kit: Option<Arc<dyn Engine>>,
    /// Under `handoff`: the helper, which holds what was handed over.
    pub(super) helper: Option<i32>,
    pub(super) kept: Option<sock::Kept>,
    /// Timers of connections that are off.
    pub(super) calmed: Vec<sock::Calmed>,
    pub(super) moment: Option<(hook::Action, oneshot::Sender<HookReply>)>,
    pub(super) dumped: Option<oneshot::Sender<HookReply>>,
    pub(super) pace: Option<Pace>,
    pub(super) memory_bytes: u64,
    /// The link, if it was measured.
    pub(super) rate: Option<Rate>,
    /// New bytes of memory in the last round.
    pub(super) round: Option<u64>,
    /// Bytes that are probably to be sent after the freeze.
    pub(super) left_bytes: u64,
    pub(super) image_bytes: u64,
    pub(super) images: Option<bulk::Sender>,
    pub(super) streaming: Option<Streaming>,
    pub(super) renewing: Option<Arc<AtomicBool>>,
    pub(super) copying: Option<thread::JoinHandle<Result<()>>>,
    /// The thread that reads what the network remembers.
    pub(super) remembering: Option<thread::JoinHandle<Result<Remembered>>>,
    pub(super) remembered: Option<Box<Remembered>>,
    /// Connections of the container that this host tracks.
    pub(super) tracked: Vec<Connection>,
    /// What of this host goes along, because peers know the container by it.
    pub(super) behind: Option<Behind>,
    /// It may have been told to say nothing by them.
    pub(super) silent: bool,
    /// What speaks against taking a service address off this host.
    pub(super) against: Vec<net::service::Against>,
    /// Service addresses that the target has by itself.
    pub(super) shared: Vec<IpAddr>,
}

impl Steps {
    /// Nothing has been done yet.
    pub fn new(id: MoveId, spec: MoveSpec, to: Destination, life: Life, feed: Feed) -> Self {
        let dialer = Dialer {
            to,
            remote_command: spec.remote_command.clone(),
            env: spec.env.clone(),
            credentials: spec.credentials.clone(),
        };
        Self {
            id,
            spec,
            life,
            feed,
            dialer,
            handle: Handle::current(),
            over: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            looking: AtomicBool::new(false),
            running: Mutex::default(),
            reading: Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Takes up what an earlier agent did.
    pub fn restore(&self, facts: &Facts) {
        let mut state = self.state();
        if let Some(question) = &facts.question {
            state.netns = look::netns_of(&question.container);
            state.container = Some(question.container.clone());
            state.network = Some(question.network.clone());
            state.behind.clone_from(&question.behind);
            state.silent = true;
        }
        state.shared.clone_from(&facts.shared);
        // What is left of the container's network is taken away by its links.
        let links = state.netns.as_ref().filter(|path| path.exists());
        match links.map(|path| net::links(path)) {
            Some(Ok(links)) => state.links = links,
            Some(Err(e)) => warn!(mv = %self.id, "{e}"),
            None => {}
        }
        state.disarmed.clone_from(&facts.disarmed);
        state.kit = engine::open(&paths::run(self.id));
        if let Ok(gate) = Gate::reopen(self.id, &paths::pins(self.id)) {
            hold::forget(&gate);
            #[cfg(feature = "aya-log")]
            gate.tell_log();
        }
    }

    /// How the target is reached.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// How to re-arm, once disarmed.
    pub fn disarmed(&self) -> Option<Disarmed> {
        self.state().disarmed.clone()
    }

    /// The processes that hold the container's sockets. Under `handoff` these are the program and, once it has taken them, the helper.
    pub(super) fn holders(&self) -> Result<Vec<i32>> {
        let container = self.container()?;
        Ok(match container.manager.engine() {
            socket::Engine::Criu => task::tasks(container.init_pid)?,
            socket::Engine::Handoff => {
                let helper = self.state().helper;
                helper.into_iter().chain([container.init_pid]).collect()
            }
        })
    }

    /// The sockets as the plan found them.
    pub fn rows(&self) -> Vec<Row> {
        self.state().rows.clone()
    }

    /// What will be different afterwards, as the plan found it.
    pub fn expected(&self) -> Vec<String> {
        self.state().expected.clone()
    }

    /// Bytes that were sent: files by rsync, memory ahead of the images, images.
    pub fn sent_bytes(&self) -> u64 {
        let state = self.state();
        state.file_bytes + state.image_bytes
    }

    /// What became of packets that came or went while the gate was closed.
    pub fn packets(&self) -> Packets {
        let state = self.state();
        let held = state.hold.as_ref().map(|hold| hold.packets());
        let held = held.unwrap_or_default();
        Packets {
            dropped: held.dropped + state.dropped,
            answered: held.answered + state.answered,
            ..held
        }
    }

    /// When the gate passed again, after an undo.
    pub fn reopened(&self) -> Option<Instant> {
        self.state().reopened
    }

    /// One step at a time, and none once the move is over.
    pub fn run(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) -> Result<Done>) -> Result<Done> {
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if self.over.load(Ordering::SeqCst) {
            bail!("the move is being given up");
        }
        work(self)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn container(&self) -> Result<Container> {
        self.state()
            .container
            .clone()
            .context("the container has not been looked at")
    }

    pub(super) fn netns(&self) -> Result<PathBuf> {
        self.state()
            .netns
            .clone()
            .context("the container has no network namespace")
    }

    /// Looks at everything and changes nothing.
    pub fn inspect(&self) -> Result<Done> {
        let mounts = Mounts(self.spec.mounts.clone());
        let found = look::look(
            self.spec.manager,
            &self.spec.name,
            &mounts,
            &self.spec.allow,
            &self.spec.map_links,
            &self.spec.services,
        )?;
        if !self.spec.dry_run {
            self.claim(&found.question.container)?;
        }
        let mut state = self.state();
        state.netns = look::netns_of(&found.question.container);
        state.network = Some(found.question.network.clone());
        state.memory_bytes = found.question.memory_bytes;
        state.image_total = found.question.image_bytes;
        state.container = Some(found.question.container.clone());
        state.rows = found.rows;
        state.expected = found.warnings;
        state.behind.clone_from(&found.question.behind);
        state.against = found.against;
        drop(state);
        Ok(Done::Inspected(Box::new(found.question), found.objections))
    }

    /// This container is this move's and no other's.
    pub(super) fn claim(&self, container: &Container) -> Result<()> {
        let dir = paths::claims();
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join(&container.id);
        let mine = self.id.to_string();
        match OpenOptions::new().create_new(true).write(true).open(&path) {
            Ok(mut file) => file
                .write_all(mine.as_bytes())
                .with_context(|| format!("writing {}", path.display())),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let other = fs::read_to_string(&path).unwrap_or_default();
                match other.parse::<MoveId>() {
                    Ok(other) if other != self.id && paths::run(other).exists() => {
                        bail!(
                            "container {} is being moved already, by move {other}: netmig-user migrate --attach {other} follows it",
                            container.name
                        )
                    }
                    // Its move is over.
                    _ => fs::write(&path, &mine)
                        .with_context(|| format!("writing {}", path.display())),
                }
            }
            Err(e) => Err(e).with_context(|| format!("making {}", path.display())),
        }
    }

    /// Nothing shall start the container again by itself.
    pub fn disarm(&self) -> Result<Done> {
        let container = self.container()?;
        let disarmed = runtime::of(container.manager).disarm(&container)?;
        for text in &disarmed.warnings {
            self.feed.tell(Told::Note(text.clone()));
        }
        self.state().disarmed = Some(disarmed);
        Ok(Done::Disarmed)
    }

    pub(super) fn hello(&self, channel: Channel) -> Hello {
        Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mv: self.id,
            life: self.life,
            peer: None,
            channel,
            last_seen: 0,
            word: Word::Undecided,
        }
    }

    /// Freezes the container's cgroup and reads its sockets; none is left in repair.
    pub fn dump_sockets(&self) -> Result<Done> {
        let container = self.container()?;
        let netns = self.netns()?;
        if let Some(cgroup) = &container.cgroup {
            // CRIU holds the tasks: they count as frozen only when it lets them go, so nothing is waited for.
            cgroup::freeze_now(cgroup)?;
        }
        // An engine that dumps at once would otherwise be quicker than the ACKs of what has come.
        let until = Instant::now() + LOOK_LIMIT;
        while self.looking.load(Ordering::SeqCst) && Instant::now() < until {
            thread::sleep(GLANCE);
        }
        if !self.quiet.load(Ordering::SeqCst) {
            self.fall_quiet()?;
        }
        let engine = container.manager.engine();
        let pids = match engine {
            socket::Engine::Criu => self.holders()?,
            // The program's own descriptors have other numbers than the target knows.
            socket::Engine::Handoff => {
                let helper = self.state().helper;
                vec![helper.context("the helper has not named itself")?]
            }
        };
        let alone = self.reading();
        let mut kept = sock::Kept::default();
        let dumped = sock::dump_under(&netns, &pids, engine, &mut kept);
        // Also after an error: what it took out of queues is put back.
        self.state().kept = Some(kept);
        let mut sockets = dumped?;
        self.as_calmed(&mut sockets);
        if self.spec.cold {
            // Not known: the target leaves them as they begin.
            sockets.tcp.iter_mut().for_each(|tcp| tcp.cwnd = 0);
        }
        drop(alone);
        self.keep_dumped(&sockets);
        self.traffic_read()?;
        Ok(Done::Dumped(Box::new(ToTarget::Sockets(Box::new(sockets)))))
    }
}
