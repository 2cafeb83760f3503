//! What the target's driver does for each action: blocking work on the container's record, its network, its gate, processes and sockets.
use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use netmig_common::{Mode, Side};
use netmig_core::{
    container::{Container, Recipe},
    id::{Epoch, MoveId},
    image::v1::{net::Network, sock::Sockets},
    machine::target::Event,
    proto::{Answer, Attach, Question, ToTarget},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tracing::warn;

use super::{
    bulk::{Arrived, Receiver},
    points,
    target::{Facts, Input, Made},
};
use crate::{
    agent::paths,
    engine::{
        cgroup,
        criu::{
            self, Kit,
            hook::{self, HookCall, HookReply, NetavarkCall, NetavarkReply},
        },
        job::{Job, Status},
        task,
    },
    files,
    gate::{self, Gate},
    host, net,
    runtime::{self, podman},
    sock,
    wire::pipe::Pipe,
};

/// Longest wait for images that the source says it has sent.
const IMAGES: Duration = Duration::from_secs(120);
/// Longest time that the runtime may take to end after it was told how.
const ENDING: Duration = Duration::from_secs(60);
/// Longest time to wait for an answer to an ARP or ND probe.
const PROBE: Duration = Duration::from_millis(300);
/// How often the probe is sent before the container counts as unseen.
const PROBES: u32 = 5;
/// Announcements go on until packets arrive, at most so long.
const ANNOUNCING: Duration = Duration::from_secs(3);

/// The target's work on one move.
pub struct Steps {
    id: MoveId,
    epoch: Epoch,
    tx: mpsc::UnboundedSender<Input>,
    handle: Handle,
    over: AtomicBool,
    /// Held while a step runs; a discard waits for it.
    running: Mutex<()>,
    arrived: Arc<Arrived>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    question: Option<Question>,
    made: Made,
    kit: Option<Kit>,
    gate: Option<Gate>,
    links: Vec<net::Link>,
    netns: Option<PathBuf>,
    sockets: Option<Sockets>,
    restoring: bool,
    begun: Option<Instant>,
    rebuilt: Option<sock::Rebuilt>,
    granted: Option<Instant>,
    moment: Option<oneshot::Sender<HookReply>>,
    warnings: Vec<String>,
}

impl Steps {
    /// Nothing has been done in this life of the agent; `facts` says what an earlier one did.
    pub fn new(facts: &Facts, epoch: Epoch, tx: mpsc::UnboundedSender<Input>) -> Self {
        let state = State {
            question: facts.question.clone(),
            made: facts.made.clone(),
            kit: Kit::open(&paths::run(facts.id)).ok(),
            restoring: facts.made.engine,
            sockets: std::fs::read(paths::run(facts.id).join("sockets"))
                .ok()
                .and_then(|bytes| postcard::from_bytes(&bytes).ok()),
            ..State::default()
        };
        Self {
            id: facts.id,
            epoch,
            tx,
            handle: Handle::current(),
            over: AtomicBool::new(false),
            running: Mutex::default(),
            arrived: Arc::default(),
            state: Mutex::new(state),
        }
    }

    /// One step at a time, and none once the move is over.
    pub fn run(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) -> Result<Event>) -> Result<Event> {
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
        Ok(self
            .state()
            .question
            .as_ref()
            .context("no container has been announced")?
            .container
            .clone())
    }

    /// The source's grant was read.
    pub fn granted(&self, at: Instant) {
        self.state().granted.get_or_insert(at);
    }

    /// For the report at the source.
    pub fn warn(&self, text: String) {
        self.state().warnings.push(text);
    }

    /// Remembers what was made before anything else happens.
    fn remember(&self) {
        let made = self.state().made.clone();
        if self.tx.send(Input::Made(Box::new(made))).is_err() {
            warn!(mv = %self.id, "a step goes on after its move");
        }
    }

    /// What stands against this container here. Changes nothing.
    pub fn answer(&self, question: &Question) -> Result<Answer> {
        let container = &question.container;
        let facts = host::facts(&paths::state_moves());
        let (mut objections, mut warnings) = match runtime::of(container.manager).accepts(container)
        {
            Ok(found) => found,
            Err(e) => (vec![e.to_string()], Vec::new()),
        };
        let found = net::objections(
            &self.planned_netns(container),
            &question.network,
            &question.attach,
            self.id,
        )?;
        objections.extend(found.objections);
        warnings.extend(found.warnings);
        for attach in &question.attach {
            match probe(attach, &question.network) {
                Ok(answers) => {
                    let foreign = answers.iter().filter(|answer| !answer.own);
                    objections.extend(foreign.map(|answer| {
                        format!("{} is in use by {} on {}: the container's address must be its own; find that host and take the address off it", answer.address, answer.mac, attach.parent)
                    }));
                    if !net::probe::segment(&answers, &attach.link, &question.network).same() {
                        objections.push(format!(
                            "the container does not answer on {}: {} of this host and the source's are not on the same segment; connect them, or move to a host where they are",
                            attach.parent, attach.parent
                        ));
                    }
                }
                // The missing bridge stands among the objections already.
                Err(e) if objections.is_empty() => objections.push(e.to_string()),
                Err(_) => {}
            }
        }
        Ok(Answer {
            facts,
            objections,
            warnings,
        })
    }

    /// Where the container's namespace will be. podman makes its own under netavark; then any free name serves for a look.
    fn planned_netns(&self, container: &Container) -> PathBuf {
        match (&container.netns, &container.recipe) {
            (Some(path), Recipe::Bundle { .. }) => path.clone(),
            (Some(path), Recipe::Podman { networks, .. }) if networks.is_empty() => path.clone(),
            _ => self.own_netns(),
        }
    }

    /// A namespace made before podman makes its own, which it then takes the place of.
    fn own_netns(&self) -> PathBuf {
        Path::new("/run/netns").join(format!("netmig-{}", self.id))
    }

    /// The container's record and, where the runtime does not make one, its namespace with links behind a closed gate.
    pub fn prepare(&self, question: Question) -> Result<()> {
        let container = question.container.clone();
        self.state().question = Some(question.clone());
        let exe = paths::program().context("finding this program")?;
        let kit = Kit::prepare(
            &paths::run(self.id),
            hook::Side::Target,
            &container,
            &exe,
            None,
        )?;
        self.state().kit = Some(kit.clone());
        criu::warm().context("asking CRIU whether it can run here")?;
        let created = runtime::of(container.manager).create(&container, &kit)?;
        let netns = created.netns.clone().unwrap_or_else(|| self.own_netns());
        self.state().made.container = Some(created);
        self.remember();
        self.build_network(&netns, &question)
    }

    /// Links, addresses and routes in the namespace at `netns`; no link is up before the gate stands there, closed.
    fn build_network(&self, netns: &Path, question: &Question) -> Result<()> {
        let intent = net::intent(netns, &question.network, self.id)?;
        let mut state = self.state();
        state.made.network = Some(intent);
        state.made.gate = true;
        state.netns = Some(netns.to_owned());
        drop(state);
        self.remember();
        let pins = paths::pins(self.id);
        if let Some(parent) = pins.parent() {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("making {}", parent.display()))?;
        }
        let mut standing = None;
        let created = net::create(
            netns,
            &question.network,
            &question.attach,
            self.id,
            &mut |links| {
                // `lo` needs no gate here: nothing runs in the namespace before the sockets are rebuilt.
                let outer: Vec<_> = links
                    .iter()
                    .filter(|link| link.kind != net::LinkKind::Loopback)
                    .cloned()
                    .collect();
                let points = points::of(&outer, netns);
                let gate = Gate::attach(
                    self.id,
                    Side::Target,
                    Mode::Closed,
                    self.epoch,
                    &points,
                    &pins,
                )
                .map_err(|e| e.to_string())?;
                standing = Some((gate, outer));
                Ok(())
            },
        )?;
        let mut state = self.state();
        state.made.network = Some(created);
        if let Some((gate, links)) = standing {
            (state.gate, state.links) = (Some(gate), links);
        }
        drop(state);
        self.remember();
        Ok(())
    }

    /// podman calls netavark: the network stands already, and takes the place of podman's empty namespace.
    pub fn netavark(&self, call: &NetavarkCall) -> NetavarkReply {
        match self.try_netavark(call) {
            Ok(reply) => reply,
            Err(e) => NetavarkReply::Fail(format!("{e:#}")),
        }
    }

    fn try_netavark(&self, call: &NetavarkCall) -> Result<NetavarkReply> {
        if call.command != "setup" {
            return Ok(NetavarkReply::Answer(Vec::new()));
        }
        let status = podman::netavark::status(&call.stdin)?;
        if self.state().restoring {
            let podmans = call.netns.as_ref().context("podman names no namespace")?;
            podman::netavark::put_in_place(&self.own_netns(), podmans)?;
        }
        Ok(NetavarkReply::Answer(status))
    }

    /// Writes the images that arrive on this connection.
    pub fn receive(&self, mut pipe: Pipe) {
        let (id, arrived) = (self.id, self.arrived.clone());
        let images = self.state().kit.as_ref().map(|kit| kit.images.clone());
        self.handle.spawn(async move {
            let took = async {
                let mut receiver =
                    Receiver::new(&images.context("images came before the move was prepared")?)?;
                while let Some(frame) = pipe.receive().await? {
                    tokio::task::block_in_place(|| receiver.take(frame, &arrived))?;
                }
                anyhow::Ok(())
            };
            match took.await {
                Ok(()) => arrived.broken("the source closed it".to_owned()),
                Err(e) => {
                    warn!(mv = %id, "images: {e:#}");
                    arrived.broken(format!("{e:#}"));
                }
            }
        });
    }

    /// Runs the server that the source's rsync asks for, on a tree of this move and nothing else.
    pub fn rsync(&self, args: Vec<String>, pipe: Pipe) {
        let created = self.state().made.container.clone();
        let id = self.id;
        self.handle.spawn(async move {
            let served = async {
                let created =
                    created.context("rsync came before the container's record was made")?;
                let command = files::server_command(&args, &created)?;
                pipe.serve(&mut command.std().into())
                    .await
                    .context("rsync at the target")
            };
            if let Err(e) = served.await {
                warn!(mv = %id, "{e:#}");
            }
        });
    }

    /// Keeps a part of the image for the rebuild.
    pub fn store(&self, message: ToTarget) -> Result<()> {
        match message {
            ToTarget::Sockets(sockets) => {
                // For an agent that takes the move up after this one.
                let path = paths::run(self.id).join("sockets");
                let bytes = postcard::to_stdvec(&sockets).context("encoding the sockets")?;
                let mut file = std::fs::OpenOptions::new()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(0o600)
                    .open(&path)
                    .with_context(|| format!("making {}", path.display()))?;
                file.write_all(&bytes)
                    .with_context(|| format!("writing {}", path.display()))?;
                self.state().sockets = Some(*sockets);
            }
            other => bail!("{other:?} is nothing to keep"),
        }
        Ok(())
    }

    /// Waits until all images are here.
    pub fn await_files(&self, files: u64, bytes: u64) -> Result<()> {
        self.arrived.wait(files, bytes, IMAGES)
    }

    /// Runs the engine's restore to its end; why it failed, if it did.
    pub fn rebuild(&self) -> Result<Option<String>> {
        let container = self.container()?;
        let (kit, created) = {
            let mut state = self.state();
            state.begun = Some(Instant::now());
            state.restoring = true;
            state.made.engine = true;
            let kit = state
                .kit
                .clone()
                .context("the engine has not been made ready")?;
            (
                kit,
                state
                    .made
                    .container
                    .clone()
                    .context("the container's record has not been made")?,
            )
        };
        self.remember();
        kit.stage_restore(&created)?;
        let exe = paths::program().context("finding this program")?;
        let job = Job::start(
            &exe,
            &self.job_dir(),
            &kit.restore_command(&container, &created)?,
        )?;
        let status = job.wait(Duration::MAX);
        if status == Status::Exited(0) || self.over.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let mut why = vec![format!(
            "the runtime's restore ended with {status:?}: {}",
            job.stderr()
        )];
        why.extend(kit.why(5));
        Ok(Some(why.join("\n")))
    }

    /// How an engine that an earlier agent started ended; none if it was told to end.
    pub fn adopted(&self) -> Option<Event> {
        let status =
            Job::adopt(&self.job_dir()).map_or(Status::Lost, |job| job.wait(Duration::MAX));
        match status {
            _ if self.over.load(Ordering::SeqCst) => None,
            Status::Exited(0) => Some(Event::EngineRunning),
            status => Some(Event::EngineGone(format!(
                "the runtime's restore ended with {status:?}"
            ))),
        }
    }

    fn job_dir(&self) -> PathBuf {
        paths::run(self.id).join("restore")
    }

    /// A moment of the engine. What it means to the machine; none if it was answered here.
    pub fn hook(&self, call: &HookCall, reply: oneshot::Sender<HookReply>) -> Option<Event> {
        if self.over.load(Ordering::SeqCst) {
            answer(reply, 1);
            return None;
        }
        let mut state = self.state();
        match call.action {
            hook::Action::PostRestore => {
                state.made.init_pid = call.init_pid;
                state.moment = Some(reply);
                drop(state);
                self.remember();
                Some(Event::EngineRebuilt)
            }
            hook::Action::PreResume => {
                state.moment = Some(reply);
                Some(Event::EngineReady)
            }
            _ => {
                answer(reply, 0);
                None
            }
        }
    }

    /// Rebuilds the sockets in the stopped tasks, behind the closed gate. Microseconds since the engine's restore began.
    pub fn rebuild_sockets(&self) -> Result<u64> {
        let (init_pid, sockets, begun) = {
            let state = self.state();
            let sockets = state
                .sockets
                .clone()
                .context("the source has sent no sockets")?;
            (
                state
                    .made
                    .init_pid
                    .context("the engine has named no first task")?,
                sockets,
                state.begun,
            )
        };
        let netns = Path::new("/proc").join(init_pid.to_string()).join("ns/net");
        let rebuilt = sock::restore(&netns, &task::tasks(init_pid)?, &sockets)?;
        rebuilt.open_inner()?;
        let mut state = self.state();
        state
            .warnings
            .extend(rebuilt.refused().iter().map(ToString::to_string));
        state.warnings.extend(
            sockets
                .left
                .iter()
                .map(|left| format!("{}: {}", left.socket, left.why)),
        );
        state.rebuilt = Some(rebuilt);
        Ok(begun.map_or(0, |begun| begun.elapsed().as_micros() as u64))
    }

    /// Lets the engine go on to its last moment.
    pub fn engine_release(&self) {
        self.go_on();
    }

    /// Lets the engine resume the tasks.
    pub fn engine_resume(&self) {
        self.go_on();
    }

    fn go_on(&self) {
        if let Some(reply) = self.state().moment.take() {
            answer(reply, 0);
        }
    }

    /// Gate `pass`; first announcement; windows reopened. Further rounds go on beside.
    pub fn open(self: &Arc<Self>) -> Result<Event> {
        let mut guard = self.state();
        let state = &mut *guard;
        let gate = match &mut state.gate {
            Some(gate) => gate,
            none => none.insert(Gate::reopen(self.id, &paths::pins(self.id))?),
        };
        gate.set_mode(Mode::Pass, self.epoch, None)?;
        let init_pid = state
            .made
            .init_pid
            .context("the engine has named no first task")?;
        let netns = Path::new("/proc").join(init_pid.to_string()).join("ns/net");
        let question = state
            .question
            .clone()
            .context("no container has been announced")?;
        let links = if state.links.is_empty() {
            net::links(&netns)?
        } else {
            state.links.clone()
        };
        let forgotten = net::forget_unresolved(&netns);
        let first = net::announce(
            &netns,
            &links,
            &question.network,
            Duration::ZERO,
            &mut || true,
        );
        let mut warnings = std::mem::take(&mut state.warnings);
        if let Err(e) = forgotten {
            warnings.push(e.to_string());
        }
        let announced = match first {
            Ok(announced) => announced.rounds,
            Err(e) => {
                warnings.push(format!("announcing: {e}"));
                0
            }
        };
        let rebuilt = match state.rebuilt.take() {
            Some(rebuilt) => Some(rebuilt),
            // An earlier agent rebuilt them.
            None => match &state.sockets {
                Some(sockets) => Some(sock::adopt(&netns, &task::tasks(init_pid)?, sockets)?),
                None => None,
            },
        };
        if let Some(rebuilt) = rebuilt
            && let Err(e) = rebuilt.open()
        {
            warnings.push(format!("opening the connections: {e}"));
        }
        let open_us = state
            .granted
            .map_or(0, |granted| granted.elapsed().as_micros() as u64);
        let before = gate.counters().map(|c| c.inbound.packets).unwrap_or(0);
        drop(guard);
        let steps = self.clone();
        thread::spawn(move || {
            let heard = || steps.heard(before);
            if let Err(e) = net::announce(&netns, &links, &question.network, ANNOUNCING, &mut {
                heard
            }) {
                warn!(mv = %steps.id, "announcing: {e}");
            }
        });
        Ok(Event::Opened {
            open_us,
            announced,
            warnings,
        })
    }

    /// Whether the gate has passed inbound packets since the opening.
    fn heard(&self, before: u64) -> bool {
        let state = self.state();
        state
            .gate
            .as_ref()
            .is_none_or(|gate| gate.counters().is_ok_and(|c| c.inbound.packets > before))
    }

    /// Removes all that was made, the engine's processes first. What could not be removed, in words.
    pub fn discard(&self) -> Vec<String> {
        self.over.store(true, Ordering::SeqCst);
        self.arrived.broken("the move is being given up".to_owned());
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::new();
        // First of all, behind the closed gate: at `pre-resume` CRIU does not look at the hook's answer and would let the tasks run.
        let init_pid = self.state().made.init_pid;
        if let Some(pid) = init_pid {
            left.extend(kill_tasks(pid));
        }
        if let Some(reply) = self.state().moment.take() {
            answer(reply, 1);
        }
        if let Some(job) = Job::adopt(&self.job_dir())
            && job.wait(ENDING) == Status::Running
        {
            left.push(format!(
                "the runtime's restore has not ended {ENDING:?} after it was told to; it is killed"
            ));
            if let Err(e) = job.kill() {
                left.push(e.to_string());
            }
        }
        let made = self.state().made.clone();
        if let (Some(created), Some(question)) = (&made.container, &self.state().question) {
            left.extend(
                runtime::of(question.container.manager)
                    .discard(created)
                    .iter()
                    .map(ToString::to_string),
            );
        }
        if let Some(network) = &made.network {
            left.extend(net::remove(network).iter().map(ToString::to_string));
        }
        left.extend(self.detach());
        left.extend(self.remove_run());
        left
    }

    /// The move is over; what is not needed any more goes. What could not be removed, in words.
    pub fn forget(&self, here: bool) -> Vec<String> {
        let mut left = Vec::new();
        if here {
            let made = self.state().made.container.clone();
            if let (Some(created), Some(question)) = (&made, &self.state().question) {
                left.extend(
                    runtime::of(question.container.manager)
                        .settle(created)
                        .iter()
                        .map(ToString::to_string),
                );
            }
            left.extend(self.detach());
        }
        // Also where nothing was made, because the source refused: a discard has not run then.
        left.extend(self.remove_run());
        left
    }

    fn detach(&self) -> Vec<String> {
        let gate = self.state().gate.take();
        let errors = match gate {
            Some(gate) => gate.detach().err().unwrap_or_default(),
            None => gate::clear(&paths::pins(self.id)),
        };
        errors.iter().map(ToString::to_string).collect()
    }

    fn remove_run(&self) -> Vec<String> {
        let dir = paths::run(self.id);
        let mut left = unmount_below(&dir);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                left.push(format!("removing {}: {e}", dir.display()));
            }
            _ => {}
        }
        left
    }
}

/// Unmounts what stands below `dir`: a CRIU that was killed leaves its view of the control groups there. What could not be done, in words.
fn unmount_below(dir: &std::path::Path) -> Vec<String> {
    let mounts = match std::fs::read_to_string("/proc/self/mounts") {
        Ok(mounts) => mounts,
        Err(e) => return vec![format!("reading /proc/self/mounts: {e}")],
    };
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below = points.filter(|point| std::path::Path::new(point).starts_with(dir));
    // The last mounted first: it may stand on an earlier one.
    let mut below: Vec<_> = below.collect();
    below.reverse();
    below
        .into_iter()
        .filter_map(|point| {
            let gone = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            Some(format!("unmounting {point}: {}", gone.err()?))
        })
        .collect()
}

/// Kills every task of the container whose first task is `init_pid`, by its cgroup. What could not be done, in words.
fn kill_tasks(init_pid: i32) -> Option<String> {
    // It is gone already.
    let cgroup = cgroup::of(init_pid).ok()?;
    cgroup::kill(&cgroup).err().map(|e| e.to_string())
}

/// Who answers for the container's addresses on the parent here. A busy source may be slow to answer: it is asked again.
fn probe(attach: &Attach, network: &Network) -> Result<Vec<net::Clash>, net::Error> {
    let mut answers = Vec::new();
    for _ in 0..PROBES {
        answers = net::clashes(&attach.parent, &attach.link, network, PROBE)?;
        if net::probe::segment(&answers, &attach.link, network).same() {
            break;
        }
    }
    Ok(answers)
}

fn answer(reply: oneshot::Sender<HookReply>, code: u8) {
    if reply.send(HookReply { code }).is_err() {
        warn!("a hook left before it was answered");
    }
}
