//! What the target's driver does for each action: blocking work on the container's record, its network, its gate, processes and sockets.
use std::{
    path::{Path, PathBuf},
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
    id::{Epoch, MoveId},
    image::v1::{
        conntrack::{Connection, Translated},
        sock::{Holder, Sockets},
    },
    machine::target::Event,
    proto::Question,
    socket,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tracing::warn;

use super::{super::bulk::Arrived, Facts, Input, Made, hold::Hold, keeper::Before};
use crate::{
    agent::{pace::Pace, paths},
    engine::{
        self, Engine,
        criu::hook::HookReply,
        handoff::programs::{self, Role},
        job::Job,
        task,
    },
    gate::Gate,
    net::{self, service::address},
    runtime::CreatedContainer,
    sock,
    wire::pipe::Pipe,
};

/// Announcements go on until packets arrive, at most so long.
pub(super) const ANNOUNCING: Duration = Duration::from_secs(3);

/// Between two looks whether the move is over, where something else is waited for.
pub(super) const WATCH: Duration = Duration::from_millis(20);

/// The target's work on one move.
pub struct Steps {
    pub(super) id: MoveId,
    pub(super) epoch: Epoch,
    pub(super) tx: mpsc::UnboundedSender<Input>,
    pub(super) handle: Handle,
    pub(super) over: AtomicBool,
    /// Held while a step runs; a discard waits for it.
    pub(super) running: Mutex<()>,
    pub(super) arrived: Arc<Arrived>,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) question: Option<Question>,
    /// The answer was that the container's image is not here.
    pub(super) lacks_image: bool,
    /// The connection on which it comes.
    pub(super) image: Option<Pipe>,
    pub(super) made: Made,
    pub(super) kit: Option<Arc<dyn Engine>>,
    /// Under `handoff`: the program is loading its state.
    pub(super) loading: bool,
    pub(super) gate: Option<Gate>,
    pub(super) hold: Option<Arc<Hold>>,
    pub(super) links: Vec<net::Link>,
    pub(super) netns: Option<PathBuf>,
    pub(super) sockets: Option<Sockets>,
    pub(super) restoring: bool,
    pub(super) begun: Option<Instant>,
    pub(super) rebuilt: Option<sock::Rebuilt>,
    pub(super) granted: Option<Instant>,
    pub(super) moment: Option<oneshot::Sender<HookReply>>,
    /// The engine's restore, started before there were images.
    pub(super) warm: Option<Job>,
    pub(super) pace: Option<Pace>,
    /// All images are here.
    pub(super) complete: bool,
    /// The runtime that waits for them.
    pub(super) reader: Option<oneshot::Sender<HookReply>>,
    /// Why they could not be made fit.
    pub(super) unstaged: Option<String>,
    pub(super) warnings: Vec<String>,
    /// The thread that makes what the network remembers, beside the engine's restore.
    pub(super) remembering: Option<thread::JoinHandle<Result<Vec<String>>>>,
    /// Connections that this host has been told to track.
    pub(super) tracked: Vec<Connection>,
    /// Connections that the container's own packet filter translates.
    pub(super) translated: Vec<Translated>,
}

impl State {
    pub(super) fn kit_and_record(&self) -> Result<(Arc<dyn Engine>, CreatedContainer)> {
        let kit = self.kit.clone();
        let record = self.made.container.clone();
        Ok((
            kit.context("the engine has not been made ready")?,
            record.context("the container's record has not been made")?,
        ))
    }
}

impl Steps {
    /// Nothing has been done in this life of the agent; `facts` says what an earlier one did.
    pub fn new(facts: &Facts, epoch: Epoch, tx: mpsc::UnboundedSender<Input>) -> Self {
        let state = State {
            question: facts.question.clone(),
            made: facts.made.clone(),
            kit: engine::open(&paths::run(facts.id)),
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
        let _running = self.exclusive()?;
        work(self)
    }

    /// The right to begin something.
    pub(super) fn exclusive(&self) -> Result<MutexGuard<'_, ()>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if self.over.load(Ordering::SeqCst) {
            bail!("the move is being given up");
        }
        Ok(running)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn container(&self) -> Result<Container> {
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
    pub(super) fn remember(&self) {
        let made = self.state().made.clone();
        if self.tx.send(Input::Made(Box::new(made))).is_err() {
            warn!(mv = %self.id, "a step goes on after its move");
        }
    }

    /// Rebuilds the sockets in the stopped tasks, behind the closed gate. Microseconds since the engine's restore began.
    pub fn rebuild_sockets(&self) -> Result<u64> {
        self.traffic_remembered()?;
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
        let container = self.container()?;
        let engine = container.manager.engine();
        let netns = netns(&container, init_pid)?;
        let rebuilt = match engine {
            socket::Engine::Criu => sock::restore(&netns, &task::tasks(init_pid)?, &sockets)?,
            socket::Engine::Handoff => sock::restore_at(&netns, &sockets, &held_by(init_pid))?,
        };
        rebuilt.open_inner()?;
        if engine == socket::Engine::Handoff {
            self.load()?;
        }
        let mut state = self.state();
        state
            .warnings
            .extend(rebuilt.refused().iter().map(ToString::to_string));
        state.warnings.extend(rebuilt.lost().iter().cloned());
        state.warnings.extend(
            sockets
                .left
                .iter()
                .map(|left| format!("{}: {}", left.socket, left.why)),
        );
        state.rebuilt = Some(rebuilt);
        Ok(begun.map_or(0, |begun| begun.elapsed().as_micros() as u64))
    }

    /// The gate opens; first announcement; windows reopened; what was held is delivered. Further rounds go on beside.
    pub fn open(self: &Arc<Self>) -> Result<Event> {
        // What the source has come to track after its first look.
        let remembered = self.traffic_remembered();
        let mut guard = self.state();
        let state = &mut *guard;
        let gate = match &mut state.gate {
            Some(gate) => gate,
            none => {
                let gate = Gate::reopen(self.id, &paths::pins(self.id))?;
                #[cfg(feature = "aya-log")]
                gate.tell_log();
                none.insert(gate)
            }
        };
        let mut warnings = std::mem::take(&mut state.warnings);
        // Before anything can come for the container: its peers know it by them.
        warnings.extend(remembered.err().map(|e| format!("{e:#}")));
        warnings.extend(address::put(&state.made.services));
        let services = address::at_target(&state.made.services);
        let hold = state.hold.as_ref();
        let hold = hold.filter(|_| state.made.init_pid.is_some());
        let before = self.before(hold, &state.made, &state.sockets, &state.question);
        let before = before.unwrap_or_else(|e| {
            warnings.push(format!("what peers were promised is not known: {e:#}"));
            Before::default()
        });
        let in_order = self.open_gate(gate, hold, &mut warnings)?;
        let hold = hold.filter(|_| in_order);
        let init_pid = state
            .made
            .init_pid
            .context("the engine has named no first task")?;
        let question = state
            .question
            .clone()
            .context("no container has been announced")?;
        let netns = netns(&question.container, init_pid)?;
        let links = if state.links.is_empty() {
            net::links(&netns)?
        } else {
            state.links.clone()
        };
        let forgotten = net::forget_unresolved(&netns);
        let announcing = Instant::now();
        let first = net::announce(
            &netns,
            &links,
            &question.network,
            &services,
            Duration::ZERO,
            &mut || true,
        );
        let announce_us = announcing.elapsed().as_micros() as u64;
        Self::hold_announced(hold);
        if let Err(e) = forgotten {
            warnings.push(e.to_string());
        }
        if let Err(e) = first {
            warnings.push(format!("announcing: {e}"));
        }
        let rebuilt = match state.rebuilt.take() {
            Some(rebuilt) => Some(rebuilt),
            // An earlier agent rebuilt them.
            None => match &state.sockets {
                Some(sockets) => Some(match question.container.manager.engine() {
                    socket::Engine::Criu => sock::adopt(&netns, &task::tasks(init_pid)?, sockets)?,
                    socket::Engine::Handoff => sock::adopt_at(&netns, sockets, &held_by(init_pid))?,
                }),
                None => None,
            },
        };
        if let Some(rebuilt) = rebuilt {
            match rebuilt.open_with(&|tcp| before.coming(tcp), &state.translated) {
                Ok(opened) if opened.refused > 0 => warnings.push(format!(
                    "{} datagrams of receive queues found no room",
                    opened.refused
                )),
                Ok(_) => {}
                Err(e) => warnings.push(format!("opening the connections: {e}")),
            }
        }
        let promised = match self.deliver_stored(gate, &links, &question.network, before, &netns) {
            Ok((promised, left)) => {
                warnings.extend(left);
                promised
            }
            Err(e) => {
                warnings.push(format!("what peers were promised is not delivered: {e:#}"));
                None
            }
        };
        self.deliver_held(gate, hold, &netns, promised, &mut warnings);
        let open_us = state
            .granted
            .map_or(0, |granted| granted.elapsed().as_micros() as u64);
        let before = gate.counters().map(|c| c.inbound.packets).unwrap_or(0);
        drop(guard);
        let steps = self.clone();
        thread::spawn(move || {
            let heard = || steps.heard(before);
            let network = &question.network;
            let told = net::announce(&netns, &links, network, &services, ANNOUNCING, &mut {
                heard
            });
            if let Err(e) = told {
                warn!(mv = %steps.id, "announcing: {e}");
            }
        });
        Ok(Event::Opened {
            open_us,
            announce_us,
            warnings,
        })
    }

    /// Whether the gate has passed inbound packets since the opening.
    pub(super) fn heard(&self, before: u64) -> bool {
        let state = self.state();
        state
            .gate
            .as_ref()
            .is_none_or(|gate| gate.counters().is_ok_and(|c| c.inbound.packets > before))
    }
}

/// The namespace of the restored container. Under `handoff` no process of the container need be in it.
pub(super) fn netns(container: &Container, init_pid: i32) -> Result<PathBuf> {
    match container.manager.engine() {
        socket::Engine::Criu => Ok(Path::new("/proc").join(init_pid.to_string()).join("ns/net")),
        socket::Engine::Handoff => container
            .netns
            .clone()
            .context("the program comes without a namespace"),
    }
}

/// The processes that hold the restored sockets. Under `handoff` `init_pid` is the helper, which ends when the program goes on.
pub(super) fn holders(container: &Container, init_pid: i32) -> Result<Vec<i32>> {
    Ok(match container.manager.engine() {
        socket::Engine::Criu => task::tasks(init_pid)?,
        socket::Engine::Handoff => [Role::Waiting, Role::Running]
            .into_iter()
            .filter_map(|role| programs::find(&container.name, role))
            .map(|program| program.pid())
            .chain([init_pid])
            .collect(),
    })
}

/// Under `handoff`: the helper holds every socket under the number that it had in the source's.
fn held_by(helper: i32) -> impl Fn(&Holder) -> Option<sock::Place> {
    move |holder| {
        Some(sock::Place {
            pid: helper,
            fd: holder.fd,
        })
    }
}
