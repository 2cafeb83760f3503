//! The target's driver: performs the target machine's actions.
mod ending;
mod engine;
mod hold;
mod image;
mod images;
mod keeper;
mod prepare;
mod remembered;
mod steps;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use netmig_core::{
    id::{Epoch, Life, MoveId},
    link::joins,
    machine::target::{self, Action, Event, Machine, Options, Record, Timer},
    proto::{Channel, Hello, Question, ToSource, ToTarget, Word},
    service::Service,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use self::steps::Steps;
use super::{
    feed::Feed,
    journal::{self, Journal},
    life, tell,
    timers::Timers,
};
use crate::{
    agent::{
        local::{Decision, Told},
        paths,
    },
    engine::criu::hook::{HookCall, HookReply, NetavarkCall, NetavarkReply},
    wire::{
        link::{Link, LinkEvent},
        measure,
        pipe::Pipe,
    },
};

/// What comes to a target move from outside of its machine.
pub enum Input {
    /// A step's end.
    Event(Event),
    /// A hook of the target's CRIU, or a runtime's shim.
    Hook(HookCall, oneshot::Sender<HookReply>),
    /// podman calls netavark.
    Netavark(NetavarkCall, oneshot::Sender<NetavarkReply>),
    /// A connection of the source's agent.
    Pipe(Hello, Pipe),
    /// The control link's news.
    Link(LinkEvent<ToTarget>),
    /// The operator decides.
    Decide(Decision),
    /// What was made has changed: to be remembered.
    Made(Box<Made>),
    /// A line for the report.
    Warning(String),
}

/// What this move has made on this host: all that a discard must find again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Made {
    /// The container's record.
    pub container: Option<crate::runtime::CreatedContainer>,
    /// The image that the container is made from, by id, if it was not here before.
    pub image: Option<String>,
    /// Its network.
    pub network: Option<crate::net::Created>,
    /// True once the gate may be pinned.
    pub gate: bool,
    /// True once the engine's restore may run.
    pub engine: bool,
    /// Service addresses of the source's host that this host takes when it opens.
    #[serde(default)]
    pub services: Vec<Service>,
    /// First task of the restored container, once the engine has named it.
    pub init_pid: Option<i32>,
}

/// What must outlive the agent besides the machine's records.
#[derive(Clone, Serialize, Deserialize)]
pub struct Facts {
    /// The move.
    pub id: MoveId,
    /// What comes.
    pub question: Option<Question>,
    /// What stands here because of it.
    pub made: Made,
}

/// A move about to run.
pub struct Start {
    facts: Facts,
    life: Life,
    machine: Machine,
    journal: Journal,
}

/// What a Hello for a move that is not under way here leads to.
pub enum Accept {
    /// A new move.
    Begin(Box<Start>),
    /// The move is over: this is the last word of it.
    Answer(Word, Life),
}

/// Takes a Hello of a source whose move is not under way here.
///
/// # Errors
/// The journal is damaged, or its directory cannot be made.
pub fn accept(hello: &Hello) -> Result<Accept> {
    let id = hello.mv;
    let dir = paths::state(id);
    if dir.join("journal").exists() {
        let records: Vec<Record> = journal::records(&dir)?;
        return Ok(Accept::Answer(
            target::word(&records),
            life(begun(&records))?,
        ));
    }
    if hello.channel != Channel::Control {
        bail!(
            "a {} connection came before move {id} was opened here",
            hello.channel
        );
    }
    if !matches!(hello.word, Word::Unknown | Word::Undecided) {
        // It was granted or ended without a record here: nothing may begin, and nothing ever began.
        return Ok(Accept::Answer(Word::Unknown, life(Epoch(1))?));
    }
    paths::make_private(&paths::run(id))
        .with_context(|| format!("making {}", paths::run(id).display()))?;
    let (journal, _) = Journal::open::<Record>(&dir)?;
    fs::write(dir.join("target"), "").with_context(|| format!("marking {}", dir.display()))?;
    let life = life(Epoch(1))?;
    let facts = Facts {
        id,
        question: None,
        made: Made::default(),
    };
    journal.write_facts(&facts)?;
    Ok(Accept::Begin(Box::new(Start {
        facts,
        life,
        machine: Machine::new(Options::default(), life.epoch),
        journal,
    })))
}

/// A move from its journal; none if it is over.
///
/// # Errors
/// The journal is unreadable or damaged.
pub fn recover(id: MoveId) -> Result<Option<Start>> {
    let dir = paths::state(id);
    let (journal, records) = Journal::open::<Record>(&dir)?;
    // Without a record nothing was begun: the source only asked.
    if matches!(records.last(), None | Some(Record::Closed)) {
        return Ok(None);
    }
    let facts: Facts = journal::facts(&dir)?;
    let life = life(Epoch(begun(&records).0 + 1))?;
    let machine = Machine::recover(Options::default(), life.epoch, &records);
    Ok(Some(Start {
        facts,
        life,
        machine,
        journal,
    }))
}

/// The container and where the move stands, for a list.
///
/// # Errors
/// The journal is unreadable.
pub fn describe(id: MoveId) -> Result<(String, String)> {
    let dir = paths::state(id);
    let facts: Facts = journal::facts(&dir)?;
    let records: Vec<Record> = journal::records(&dir)?;
    let state = match records.last() {
        None | Some(Record::Begun(_)) => "under way, nothing prepared",
        Some(Record::Prepared) => "prepared: waits, gate closed, for the source's grant",
        Some(Record::Granted) => "granted: releasing",
        Some(Record::Released) => "released: the container lives here",
        Some(Record::Failed(_)) => "failed before release: nothing lives here",
        Some(Record::Closed) => "closed",
    };
    Ok((
        facts
            .question
            .map_or_else(|| "?".to_owned(), |q| q.container.name),
        state.to_owned(),
    ))
}

fn begun(records: &[Record]) -> Epoch {
    let begun = records.iter().filter_map(|r| {
        if let Record::Begun(epoch) = r {
            Some(*epoch)
        } else {
            None
        }
    });
    begun.max().unwrap_or(Epoch(1))
}

/// How long the last messages may take to reach the source.
const PARTING: Duration = Duration::from_secs(5);

/// Runs the move to its end.
pub async fn run(
    start: Start,
    tx: mpsc::UnboundedSender<Input>,
    mut rx: mpsc::UnboundedReceiver<Input>,
    feed: Feed,
) {
    let mut driver = Driver::new(start, tx, feed);
    driver.adopt();
    loop {
        while let Some(action) = driver.machine.poll_action() {
            if let Action::Finish(here) = action {
                return driver.finish(here).await;
            }
            driver.perform(action);
        }
        let Some(input) = rx.recv().await else { return };
        driver.take(input);
    }
}

struct Driver {
    facts: Facts,
    machine: Machine,
    journal: Journal,
    tx: mpsc::UnboundedSender<Input>,
    feed: Feed,
    timers: Timers<Timer>,
    link: Link<ToSource>,
    steps: Arc<Steps>,
}

impl Driver {
    fn new(start: Start, tx: mpsc::UnboundedSender<Input>, feed: Feed) -> Self {
        let Start {
            facts,
            life,
            machine,
            journal,
        } = start;
        let news = tx.clone();
        let link = Link::waiting(facts.id, life, machine.word(), move |event| {
            tell(&news, Input::Link(event))
        });
        let steps = Arc::new(Steps::new(&facts, life.epoch, tx.clone()));
        Self {
            facts,
            machine,
            journal,
            tx,
            feed,
            timers: Timers::default(),
            link,
            steps,
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.machine.handle(event),
            Input::Hook(call, reply) => {
                if let Some(event) = self.steps.hook(&call, reply) {
                    self.machine.handle(event);
                }
            }
            Input::Netavark(call, reply) => {
                let steps = self.steps.clone();
                tokio::task::spawn_blocking(move || {
                    if reply.send(steps.netavark(&call)).is_err() {
                        warn!("netavark's shim is gone");
                    }
                });
            }
            Input::Pipe(hello, pipe) => self.connected(hello, pipe),
            Input::Link(LinkEvent::Up) => self.machine.handle(Event::LinkUp),
            Input::Link(LinkEvent::Word(word)) => self.machine.handle(Event::PeerWord(word)),
            Input::Link(LinkEvent::Message(message)) => {
                if matches!(message, ToTarget::Grant(_)) {
                    self.steps.granted(Instant::now());
                }
                self.machine.handle(Event::Message(message));
            }
            Input::Link(LinkEvent::Down(why)) => {
                info!(mv = %self.facts.id, "no link to the source: {why}");
                self.machine.handle(Event::LinkDown);
            }
            Input::Decide(Decision::Release) => self.machine.handle(Event::ReleaseFenced),
            Input::Decide(_) => self.machine.handle(Event::GiveUp),
            Input::Made(made) => {
                self.facts.made = *made;
                self.save();
            }
            Input::Warning(text) => {
                self.feed.tell(Told::Note(text.clone()));
                self.steps.warn(text);
            }
        }
    }

    /// A connection of the source: the control connection, or one beside it.
    fn connected(&mut self, hello: Hello, pipe: Pipe) {
        let mv = self.facts.id;
        if hello.channel == Channel::Control {
            self.link.take(hello, pipe);
            return;
        }
        if let Err(refused) = joins(&hello, mv, self.link.peer()) {
            warn!(%mv, "a {} connection is closed: {refused}", hello.channel);
            return;
        }
        match hello.channel {
            Channel::Control => {}
            Channel::Bulk => self.steps.receive(pipe),
            Channel::Hold => self.steps.receive_held(pipe),
            Channel::Image => self.steps.receive_image(pipe),
            Channel::Measure => {
                tokio::spawn(async move {
                    if let Err(e) = measure::reflect(pipe).await {
                        warn!(%mv, "measuring the link: {e}");
                    }
                });
            }
            Channel::Rsync { args } => self.steps.rsync(args, pipe),
        }
    }

    fn save(&mut self) {
        if let Err(e) = self.journal.write_facts(&self.facts) {
            self.machine.handle(Event::Failed(format!(
                "the move's facts cannot be kept: {e}"
            )));
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Answer(question) => {
                self.step(move |steps| Ok(Event::Answered(Box::new(steps.answer(&question)?))))
            }
            Action::Send(message) => self.link.send(message),
            Action::Persist(record) => {
                let event = match self.journal.append(&record) {
                    Ok(()) => Event::Persisted(record),
                    Err(e) => Event::NotPersisted(record, e.to_string()),
                };
                self.machine.handle(event);
                self.link.set_word(self.machine.word());
            }
            Action::Prepare(question) => {
                self.facts.question = Some((*question).clone());
                self.save();
                self.step(move |steps| steps.prepare(*question).map(|()| Event::Created));
            }
            Action::Store(message) => {
                if let Err(e) = self.steps.store(*message) {
                    self.machine.handle(Event::Failed(format!("{e:#}")));
                }
            }
            Action::AwaitFiles { files, bytes } => {
                self.step(move |steps| steps.await_files(files, bytes).map(|()| Event::Complete))
            }
            Action::Warm => {
                let steps = self.steps.clone();
                tokio::task::spawn_blocking(move || {
                    // What is wrong shows again, and is said, at the rebuild.
                    if let Err(e) = steps.warm() {
                        warn!("starting the restore ahead of its images: {e:#}");
                    }
                });
            }
            Action::Rebuild => self.engine(),
            Action::RebuildSockets => {
                self.step(|steps| steps.rebuild_sockets().map(Event::SocketsRebuilt))
            }
            Action::EngineRelease => self.steps.engine_release(),
            Action::Open => self.step(|steps| steps.open()),
            Action::EngineResume => self.steps.engine_resume(),
            Action::Discard => {
                let (steps, tx) = (self.steps.clone(), self.tx.clone());
                tokio::task::spawn_blocking(move || {
                    tell(&tx, Input::Event(Event::Discarded(steps.discard())))
                });
            }
            Action::SetTimer(timer, ms) => {
                let tx = self.tx.clone();
                self.timers.set(timer, ms, move |timer| {
                    tell(&tx, Input::Event(Event::Timeout(timer)))
                });
            }
            Action::ClearTimer(timer) => self.timers.clear(timer),
            Action::Finish(_) => unreachable!("the loop takes the end for itself"),
        }
    }

    fn step(&self, work: impl FnOnce(&Arc<Steps>) -> Result<Event> + Send + 'static) {
        let (steps, tx) = (self.steps.clone(), self.tx.clone());
        tokio::task::spawn_blocking(move || {
            let event = steps
                .run(work)
                .unwrap_or_else(|e| Event::Failed(format!("{e:#}")));
            tell(&tx, Input::Event(event));
        });
    }

    /// An engine that an earlier agent started, or that died with it: nobody else would say how it ended.
    fn adopt(&self) {
        if !self.facts.made.engine {
            return;
        }
        let (steps, tx) = (self.steps.clone(), self.tx.clone());
        tokio::task::spawn_blocking(move || {
            if let Some(event) = steps.adopted() {
                tell(&tx, Input::Event(event));
            }
        });
    }

    /// Starts the engine's restore and waits for its end; its moments come as hooks.
    fn engine(&self) {
        let (steps, tx) = (self.steps.clone(), self.tx.clone());
        tokio::task::spawn_blocking(move || {
            let event = match steps.rebuild() {
                Ok(None) => Event::EngineRunning,
                Ok(Some(why)) => Event::EngineGone(why),
                Err(e) => Event::Failed(format!("{e:#}")),
            };
            tell(&tx, Input::Event(event));
        });
    }

    async fn finish(self, here: bool) {
        if !self.link.flush(PARTING).await {
            warn!(mv = %self.facts.id, "the source has not acknowledged the end within {PARTING:?}; it asks when it comes again");
        }
        let left = self.steps.forget(here);
        for what in left {
            warn!(mv = %self.facts.id, "left: {what}");
        }
        info!(mv = %self.facts.id, here, "move ended");
    }
}
