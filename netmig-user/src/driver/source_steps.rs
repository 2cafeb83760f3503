//! What the source's driver does for each action: blocking work on the container, the gate, the sockets and the runtime.
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use netmig_common::{FlowKey, Mode, Side};
use netmig_core::{
    container::{Container, SourcePolicy},
    id::{Life, MoveId},
    image::v1::net::Network,
    machine::source::{Done, Event},
    proto::{Channel, Hello, PROTOCOL, ToTarget, Word},
    socket::Row,
};
use tokio::{
    net::UnixStream,
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tracing::warn;

use super::{bulk, feed::Feed, look, points, source::Facts};
use crate::{
    agent::{
        local::{MoveSpec, Told},
        paths,
    },
    engine::{
        cgroup,
        criu::{
            self, Kit,
            hook::{self, HookCall, HookReply},
        },
        job::{Job, Status},
        task,
    },
    files::{self, Pass},
    gate::{self, FlowScales, Gate},
    net,
    runtime::{self, Disarmed, Mounts},
    sock,
    wire::{
        dial::{Destination, Dialer},
        pipe::Pipe,
    },
};

/// Longest time that the runtime may take to end after it was told how.
const ENDING: Duration = Duration::from_secs(60);
/// Between two looks at growing images.
const GLANCE: Duration = Duration::from_millis(1);
/// A peer that has sent no payload for so long has stopped.
const SILENCE: Duration = Duration::from_millis(2);

/// The source's work on one move.
pub struct Steps {
    id: MoveId,
    spec: MoveSpec,
    life: Life,
    feed: Feed,
    dialer: Dialer,
    handle: Handle,
    /// Set once the move is undone or over: nothing new may begin.
    over: AtomicBool,
    /// Held while a step runs; an undo waits for it.
    running: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    container: Option<Container>,
    netns: Option<PathBuf>,
    network: Option<Network>,
    links: Vec<net::Link>,
    rows: Vec<Row>,
    expected: Vec<String>,
    file_bytes: u64,
    dropped: u64,
    reopened: Option<Instant>,
    gate: Option<Gate>,
    disarmed: Option<Disarmed>,
    kit: Option<Kit>,
    frozen: bool,
    kept: Option<sock::Kept>,
    moment: Option<oneshot::Sender<HookReply>>,
    dumped: Option<oneshot::Sender<HookReply>>,
    images: Option<bulk::Sender>,
    streaming: Option<Streaming>,
    renewing: Option<Arc<AtomicBool>>,
    copying: Option<thread::JoinHandle<Result<()>>>,
}

/// The thread that sends growing images.
struct Streaming {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<bulk::Sender>>,
}

impl Steps {
    /// Nothing has been done yet.
    pub fn new(id: MoveId, spec: MoveSpec, to: Destination, life: Life, feed: Feed) -> Self {
        let dialer = Dialer {
            to,
            remote_command: spec.remote_command.clone(),
            env: spec.env.clone(),
        };
        Self {
            id,
            spec,
            life,
            feed,
            dialer,
            handle: Handle::current(),
            over: AtomicBool::new(false),
            running: Mutex::default(),
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
        }
        state.disarmed.clone_from(&facts.disarmed);
        state.kit = Kit::open(&paths::run(self.id)).ok();
    }

    /// How the target is reached.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// How to re-arm, once disarmed.
    pub fn disarmed(&self) -> Option<Disarmed> {
        self.state().disarmed.clone()
    }

    /// The sockets as the plan found them.
    pub fn rows(&self) -> Vec<Row> {
        self.state().rows.clone()
    }

    /// What will be different afterwards, as the plan found it.
    pub fn expected(&self) -> Vec<String> {
        self.state().expected.clone()
    }

    /// Bytes of files that rsync sent.
    pub fn file_bytes(&self) -> u64 {
        self.state().file_bytes
    }

    /// Packets that the closed gate dropped here.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self) -> Result<Container> {
        self.state()
            .container
            .clone()
            .context("the container has not been looked at")
    }

    fn netns(&self) -> Result<PathBuf> {
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
        )?;
        if !self.spec.dry_run {
            self.claim(&found.question.container)?;
        }
        let mut state = self.state();
        state.netns = look::netns_of(&found.question.container);
        state.network = Some(found.question.network.clone());
        state.container = Some(found.question.container.clone());
        state.rows = found.rows;
        state.expected = found.warnings;
        drop(state);
        Ok(Done::Inspected(Box::new(found.question), found.objections))
    }

    /// This container is this move's and no other's.
    fn claim(&self, container: &Container) -> Result<()> {
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

    /// The gate, in mode `pass`, at every link and `lo`.
    pub fn attach(&self) -> Result<Done> {
        let netns = self.netns()?;
        let links = net::links(&netns)?;
        let points = points::of(&links, &netns);
        self.state().links = links;
        if let Some(parent) = paths::pins(self.id).parent() {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("making {}", parent.display()))?;
        }
        let gate = Gate::attach(
            self.id,
            Side::Source,
            Mode::Pass,
            self.life.epoch,
            &points,
            &paths::pins(self.id),
        )?;
        self.state().gate = Some(gate);
        let container = self.container()?;
        let exe = paths::program().context("finding this program")?;
        let kit = Kit::prepare(
            &paths::run(self.id),
            hook::Side::Source,
            &container,
            &exe,
            None,
        )?;
        self.state().kit = Some(kit);
        criu::warm().context("asking CRIU whether it can run here")?;
        Ok(Done::Attached)
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

    /// Copies the files while everything runs.
    pub fn precopy(&self, round: u32) -> Result<Done> {
        self.copy_files(false)?;
        self.open_bulk()?;
        Ok(Done::Round(round))
    }

    /// The connection for images, opened while there is time.
    fn open_bulk(&self) -> Result<()> {
        let kit = self
            .state()
            .kit
            .clone()
            .context("the engine has not been made ready")?;
        let (frames, mut queue) = mpsc::channel(64);
        let connection = self.dialer.dial_bulk()?;
        let hello = self.hello(Channel::Bulk);
        self.handle.spawn(async move {
            let (mut pipe, carrier) = Pipe::of_connection(connection);
            let sent = async {
                pipe.send(netmig_core::frame::Frame::Hello(Box::new(hello)))
                    .await?;
                while let Some(frame) = queue.recv().await {
                    pipe.send(frame).await?;
                }
                // The other end closes when it has read everything.
                pipe.finish().await
            };
            if let Err(e) = sent.await {
                warn!(
                    "connection for images: {e}; ssh says: {}",
                    carrier.complaints()
                );
            }
        });
        self.state().images = Some(bulk::Sender::new(&kit.images, frames));
        Ok(())
    }

    fn hello(&self, channel: Channel) -> Hello {
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

    /// Copies every tree that travels.
    fn copy_files(&self, frozen: bool) -> Result<()> {
        let container = self.container()?;
        let exe = paths::program().context("finding this program")?;
        let transport = format!("{} rsh {}", exe.display(), self.id);
        let mut mapped = if frozen {
            files::mapped(&container, &task::tasks(container.init_pid)?)?
        } else {
            BTreeMap::new()
        };
        for place in files::sources(&container) {
            if self.over.load(Ordering::SeqCst) {
                bail!("the move is being given up");
            }
            self.copy(
                &place,
                if frozen { Pass::Final } else { Pass::Precopy },
                &transport,
            )?;
            if let Some(paths) = mapped.remove(&place.tree) {
                self.copy(&place, Pass::Mapped(paths), &transport)?;
            }
        }
        Ok(())
    }

    fn copy(&self, place: &files::Place, pass: Pass, transport: &str) -> Result<()> {
        let mut command = files::copy_command(place, &pass, transport).std();
        let mut rsync = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting rsync")?;
        // Its output is a few lines of statistics: it fits into the pipes.
        while rsync.try_wait().context("waiting for rsync")?.is_none() {
            if self.over.load(Ordering::SeqCst) {
                rsync.kill().context("ending rsync")?;
            }
            thread::sleep(GLANCE);
        }
        let done = rsync
            .wait_with_output()
            .context("reading what rsync says")?;
        if !done
            .status
            .code()
            .is_some_and(|code| files::acceptable(&pass, code))
        {
            bail!(
                "rsync of {} ({}) ended with {}: {}",
                place.tree.name(),
                place.path.display(),
                done.status,
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        self.state().file_bytes += sent(&String::from_utf8_lossy(&done.stdout));
        Ok(())
    }

    /// Joins an rsync of ours to one at the target, on a connection of its own.
    pub fn join_rsync(&self, stream: UnixStream, args: Vec<String>) {
        let hello = self.hello(Channel::Rsync { args });
        let connection = match self.dialer.dial() {
            Ok(connection) => connection,
            // rsync sees its connection closed and says so.
            Err(e) => return warn!("{e}"),
        };
        self.handle.spawn(async move {
            let (mut pipe, carrier) = Pipe::of_connection(connection);
            let joined = async {
                pipe.send(netmig_core::frame::Frame::Hello(Box::new(hello)))
                    .await
                    .map_err(std::io::Error::other)?;
                pipe.join(stream).await
            };
            if let Err(e) = joined.await {
                warn!(
                    "rsync's connection: {e}; ssh says: {}",
                    carrier.complaints()
                );
            }
        });
    }

    /// Lets data in flight settle, for flows that carry bulk.
    pub fn drain(&self) -> Result<Done> {
        let netns = self.netns()?;
        let bulk: Vec<_> = sock::flows(&netns)?
            .into_iter()
            .filter(|flow| flow.sends_bulk || flow.receives_bulk)
            .collect();
        if bulk.is_empty() {
            return Ok(Done::Drained);
        }
        let mut keys = Vec::new();
        let state = self.state();
        let gate = state.gate.as_ref().context("no gate stands")?;
        for flow in &bulk {
            let (key, scales) = hint(flow);
            gate.hint(&key, &scales)?;
            keys.push(key);
        }
        // What carries requests is left alone: every drained millisecond would be pause.
        gate.drain_all(false, false)?;
        gate.set_mode(
            Mode::Drain,
            self.life.epoch,
            Some(self.lease() + Duration::from_millis(self.spec.drain_limit_ms)),
        )?;
        drop(state);
        let limit = Duration::from_millis(self.spec.drain_limit_ms);
        let until = Instant::now() + limit;
        while Instant::now() < until && !self.over.load(Ordering::SeqCst) {
            thread::sleep(GLANCE);
            let state = self.state();
            let progress = state
                .gate
                .as_ref()
                .context("no gate stands")?
                .progress(SILENCE)?;
            drop(state);
            if !keys.iter().any(|key| progress.busy.contains(key)) {
                return Ok(Done::Drained);
            }
        }
        self.feed.tell(Told::Note(format!(
            "data was still in flight after {} ms of drain",
            self.spec.drain_limit_ms
        )));
        Ok(Done::Drained)
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(self.spec.lease_ms)
    }

    /// Runs the engine's dump to its end. Why it ended, if it was not told to.
    pub fn freeze(&self) -> Result<Option<String>> {
        let container = self.container()?;
        let kit = self
            .state()
            .kit
            .clone()
            .context("the engine has not been made ready")?;
        let exe = paths::program().context("finding this program")?;
        let job = Job::start(&exe, &self.job_dir(), &kit.checkpoint_command(&container)?)?;
        self.stream_images();
        let status = job.wait(Duration::MAX);
        if self.over.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let mut why = vec![format!(
            "the runtime's checkpoint ended with {status:?}: {}",
            job.stderr()
        )];
        why.extend(kit.why(5));
        Ok(Some(why.join("\n")))
    }

    /// Waits for the end of an engine that an earlier agent started; why it ended, if it was not told to.
    pub fn adopted(&self) -> Option<String> {
        let status = Job::adopt(&self.job_dir())?.wait(Duration::MAX);
        (!self.over.load(Ordering::SeqCst))
            .then(|| format!("the runtime's checkpoint ended with {status:?}"))
    }

    fn job_dir(&self) -> PathBuf {
        paths::run(self.id).join("checkpoint")
    }

    /// Sends memory pages while the engine writes them.
    fn stream_images(&self) {
        let mut state = self.state();
        let Some(mut images) = state.images.take() else {
            return;
        };
        let feed = self.feed.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if images.grown()? {
                    feed.tell(Told::Bytes {
                        sent: images.bytes(),
                        total: None,
                    });
                } else {
                    thread::sleep(GLANCE);
                }
            }
            Ok(images)
        });
        state.streaming = Some(Streaming { stop, thread });
    }

    /// Mode `closed`, with a lease that is renewed as long as this agent lives.
    pub fn close(self: &Arc<Self>) -> Result<Done> {
        let mut state = self.state();
        let gate = state.gate.as_ref().context("no gate stands")?;
        gate.set_mode(Mode::Closed, self.life.epoch, Some(self.lease()))?;
        let stop = Arc::new(AtomicBool::new(false));
        state.renewing = Some(stop.clone());
        // The tasks are stopped: the last difference of the files goes over while the engine writes its images.
        let steps = self.clone();
        state.copying = Some(thread::spawn(move || steps.copy_files(true)));
        drop(state);
        let steps = self.clone();
        thread::spawn(move || {
            let pause = steps.lease() / 4;
            while !stop.load(Ordering::SeqCst) {
                thread::sleep(pause.min(Duration::from_millis(500)));
                let state = steps.state();
                let renewed = match &state.gate {
                    // A grant stops the renewal under the same lock.
                    Some(gate) if !stop.load(Ordering::SeqCst) => {
                        gate.renew(steps.life.epoch, steps.lease())
                    }
                    _ => return,
                };
                if let Err(e) = renewed {
                    return warn!(mv = %steps.id, "the gate's lease is not renewed: {e}");
                }
            }
        });
        Ok(Done::Closed)
    }

    /// Freezes the container's cgroup and reads its sockets; none is left in repair.
    pub fn dump_sockets(&self) -> Result<Done> {
        let container = self.container()?;
        let netns = self.netns()?;
        if let Some(cgroup) = &container.cgroup {
            self.state().frozen = true;
            // CRIU holds the tasks: they count as frozen only when it lets them go, so nothing is waited for.
            cgroup::freeze_now(cgroup)?;
        }
        if let Some(gate) = &self.state().gate {
            gate.settle()?;
        }
        let pids = task::tasks(container.init_pid)?;
        let (sockets, kept) = sock::dump(&netns, &pids)?;
        self.state().kept = Some(kept);
        Ok(Done::Dumped(Box::new(ToTarget::Sockets(Box::new(sockets)))))
    }

    /// What is not yet sent of images and files.
    pub fn send_rest(&self) -> Result<Done> {
        let container = self.container()?;
        let kit = self
            .state()
            .kit
            .clone()
            .context("the engine has not been made ready")?;
        kit.collect_extras(&container)?;
        let streaming = self
            .state()
            .streaming
            .take()
            .context("no images are being sent")?;
        streaming.stop.store(true, Ordering::SeqCst);
        let mut images = streaming
            .thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that sends images panicked"))??;
        let (files, bytes) = images.rest()?;
        drop(images);
        let copying = self
            .state()
            .copying
            .take()
            .context("no files are being copied")?;
        copying
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that copies files panicked"))??;
        Ok(Done::Sent { files, bytes })
    }

    /// Compare-and-set in the gate.
    pub fn grant(&self) -> Result<Done> {
        let mut state = self.state();
        if let Some(stop) = state.renewing.take() {
            stop.store(true, Ordering::SeqCst);
        }
        state
            .gate
            .as_ref()
            .context("no gate stands")?
            .grant(self.life.epoch)?;
        Ok(Done::Granted)
    }

    /// A moment of the engine. What it means to the machine; none if it was answered here.
    pub fn hook(&self, call: &HookCall, reply: oneshot::Sender<HookReply>) -> Option<Event> {
        let event = match call.action {
            hook::Action::PreDump => Event::EngineStarting,
            hook::Action::NetworkLock => Event::EngineFrozen,
            hook::Action::PostDump => Event::EngineDumped,
            _ => {
                answer(reply, 0);
                return None;
            }
        };
        if self.over.load(Ordering::SeqCst) {
            answer(reply, 1);
            return None;
        }
        let mut state = self.state();
        if call.action == hook::Action::PostDump {
            state.dumped = Some(reply);
        } else {
            state.moment = Some(reply);
        }
        Some(event)
    }

    /// Lets the engine go on from `pre-dump` or `network-lock`.
    pub fn engine_go_on(&self) {
        if let Some(reply) = self.state().moment.take() {
            answer(reply, 0);
        }
    }

    /// Takes the container back: gate `pass`, sockets as they were, the dump cancelled, re-armed, thawed last. What is left, in words.
    pub fn undo(&self) -> Vec<String> {
        self.over.store(true, Ordering::SeqCst);
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::new();
        let container = self.state().container.clone();
        self.stop_streams();
        if let Some(copying) = self.state().copying.take()
            && copying.join().is_err()
        {
            left.push("the thread that copies files panicked".to_owned());
        }
        let gate = self.take_gate();
        let kept = self.state().kept.take();
        if let Some(kept) = kept {
            left.extend(kept.undo().iter().map(ToString::to_string));
        }
        if let Some(gate) = &gate
            && let Err(e) = gate
                .reclaim(self.life.epoch)
                .and_then(|_| gate.set_mode(Mode::Pass, self.life.epoch, None))
        {
            left.push(format!("opening the gate: {e}"));
        }
        self.state().reopened = Some(Instant::now());
        // Of another move of the same container nothing may be touched.
        let begun = Job::adopt(&self.job_dir()).is_some();
        self.end_engine(1, &mut left);
        if let Some(container) = &container {
            let runtime = runtime::of(container.manager);
            if begun {
                left.extend(
                    runtime
                        .after_abort(container)
                        .iter()
                        .map(ToString::to_string),
                );
            }
            if let Some(disarmed) = self.state().disarmed.take() {
                left.extend(runtime.rearm(&disarmed).iter().map(ToString::to_string));
            }
            if let Some(cgroup) = &container.cgroup
                && begun
                && cgroup::frozen(cgroup).unwrap_or(false)
                && let Err(e) = cgroup::thaw(cgroup)
            {
                left.push(e.to_string());
            }
        }
        self.detach(gate, &mut left);
        left
    }

    /// The container lives at the target: its processes here end behind the closed gate, its record is kept or removed, its network goes.
    pub fn clean(&self) -> Vec<String> {
        self.over.store(true, Ordering::SeqCst);
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::new();
        self.stop_streams();
        let gate = self.take_gate();
        // Orphans would hold the connections' addresses until their retries are over, and a move back could not bind them.
        let kept = self.state().kept.take();
        left.extend(
            kept.into_iter()
                .flat_map(sock::Kept::silence)
                .map(|e| e.to_string()),
        );
        self.end_engine(0, &mut left);
        let Some(container) = self.state().container.clone() else {
            return left;
        };
        if let Some(cgroup) = &container.cgroup
            && cgroup.exists()
            && let Err(e) = cgroup::kill(cgroup)
        {
            left.push(e.to_string());
        }
        let policy = if self.spec.remove_source {
            SourcePolicy::Remove
        } else {
            SourcePolicy::Keep
        };
        match runtime::of(container.manager).after_release(&container, policy, &self.spec.to) {
            Ok(after) => {
                if let Some(name) = &after.kept_as {
                    self.feed
                        .tell(Told::Note(format!("the source's record is kept as {name}")));
                }
                left.extend(after.warnings);
            }
            Err(e) => left.push(e.to_string()),
        }
        if let Some(netns) = container.netns.as_ref().filter(|path| path.exists()) {
            let (links, network, ours) = {
                let state = self.state();
                (
                    state.links.clone(),
                    state.network.clone().unwrap_or_default(),
                    netns.starts_with("/run/netns"),
                )
            };
            left.extend(
                net::depart(netns, &links, &network, ours)
                    .iter()
                    .map(ToString::to_string),
            );
        }
        self.detach(gate, &mut left);
        left
    }

    /// Nothing of the move is needed any more on this host but its record.
    pub fn forget(&self) -> Vec<String> {
        let mut left = Vec::new();
        if let Some(container) = &self.state().container {
            let claim = paths::claims().join(&container.id);
            if fs::read_to_string(&claim).is_ok_and(|mv| mv == self.id.to_string())
                && let Err(e) = fs::remove_file(&claim)
            {
                left.push(format!("removing {}: {e}", claim.display()));
            }
        }
        match std::fs::remove_dir_all(paths::run(self.id)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                left.push(format!("removing {}: {e}", paths::run(self.id).display()))
            }
            _ => {}
        }
        left
    }

    fn stop_streams(&self) {
        let mut state = self.state();
        state.images = None;
        if let Some(stop) = state.renewing.take() {
            stop.store(true, Ordering::SeqCst);
        }
        if let Some(streaming) = state.streaming.take() {
            streaming.stop.store(true, Ordering::SeqCst);
        }
    }

    /// The gate of this agent's life, or the one that an earlier agent left pinned.
    fn take_gate(&self) -> Option<Gate> {
        let gate = self.state().gate.take();
        gate.or_else(|| Gate::reopen(self.id, &paths::pins(self.id)).ok())
    }

    /// Tells the engine's hook how to end, and waits for the runtime. A hook that has lost its agent comes again and is answered by [`Self::hook`].
    fn end_engine(&self, code: u8, left: &mut Vec<String>) {
        let mut state = self.state();
        // `over` is set: a hook that comes from now on is told by its own call.
        for reply in [state.moment.take(), state.dumped.take()]
            .into_iter()
            .flatten()
        {
            answer(reply, code);
        }
        drop(state);
        let Some(job) = Job::adopt(&self.job_dir()) else {
            return;
        };
        match job.wait(ENDING) {
            Status::Running => {
                left.push(format!("the runtime's checkpoint has not ended {ENDING:?} after it was told to; it is killed"));
                if let Err(e) = job.kill() {
                    left.push(e.to_string());
                }
            }
            Status::Exited(0) if code == 0 => {}
            status if code == 0 => left.push(format!(
                "the runtime's checkpoint ended with {status:?}: {}",
                job.stderr()
            )),
            _ => {}
        }
    }

    fn detach(&self, gate: Option<Gate>, left: &mut Vec<String>) {
        let errors = match gate {
            Some(gate) => {
                match gate.counters() {
                    Ok(counters) => self.state().dropped = dropped(&counters),
                    Err(e) => left.push(e.to_string()),
                }
                gate.detach().err().unwrap_or_default()
            }
            None => gate::clear(&paths::pins(self.id)),
        };
        left.extend(errors.iter().map(ToString::to_string));
    }
}

/// A connection as the gate knows it, and what is to be stopped of it.
fn hint(flow: &sock::Flow) -> (FlowKey, FlowScales) {
    let octets = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => FlowKey::mapped(ip.octets()),
        std::net::IpAddr::V6(ip) => ip.octets(),
    };
    let key = FlowKey {
        container: octets(flow.local.ip),
        peer: octets(flow.peer.ip),
        container_port: flow.local.port,
        peer_port: flow.peer.port,
    };
    let scales = FlowScales {
        snd: flow.snd_wscale,
        rcv: flow.rcv_wscale,
        signed: flow.signed,
        stop_peer: flow.receives_bulk,
        stop_container: flow.sends_bulk,
    };
    (key, scales)
}

fn dropped(counters: &netmig_common::Counters) -> u64 {
    [counters.inbound, counters.outbound, counters.loopback]
        .iter()
        .map(netmig_common::Tally::dropped_packets)
        .sum()
}

/// `Total bytes sent` of rsync's --stats.
fn sent(stats: &str) -> u64 {
    stats
        .lines()
        .find_map(|line| line.strip_prefix("Total bytes sent: ")?.trim().parse().ok())
        .unwrap_or(0)
}

fn answer(reply: oneshot::Sender<HookReply>, code: u8) {
    if reply.send(HookReply { code }).is_err() {
        warn!("a hook left before it was answered");
    }
}
