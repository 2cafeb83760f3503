//! The source's driver: performs the source machine's actions.
//!
//! One task a move. It never waits for a step: a step runs on a blocking thread (or a task) and its end comes back as an [`Input`].
#[cfg(test)]
mod alone;
mod ending;
mod engine;
mod files;
mod gate;
mod hold;
mod image;
mod keeper;
mod rate;
mod remembered;
pub mod service;
mod steps;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netmig_core::{
    id::{Epoch, Life, MoveId},
    machine::source::{Action, Done, Event, Machine, Options, Outcome, Record, Timer},
    plan::{self, Plan, Rate},
    proto::{Answer, Question, ToSource, ToTarget, Word},
    report::{self, Report},
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tracing::{info, warn};

use self::steps::Steps;
use super::{
    clock::Clock,
    feed::Feed,
    journal::{self, Journal},
    life, random, tell,
    timers::Timers,
};
use crate::{
    agent::{
        local::{Drain, MoveSpec, Told},
        paths,
    },
    engine::criu::hook::{HookCall, HookReply},
    runtime::Disarmed,
    wire::{
        destination::Destination,
        link::{Link, LinkEvent},
    },
};

/// What comes to a source move from outside of its machine.
pub enum Input {
    /// A step's end.
    Event(Event),
    /// A hook of the source's CRIU.
    Hook(HookCall, oneshot::Sender<HookReply>),
    /// rsync's connection and arguments.
    Rsync(UnixStream, Vec<String>),
    /// The control link's news.
    Link(LinkEvent<ToSource>),
    /// Give it up if possible.
    Cancel(String),
    /// The operator's word that the target is fenced.
    Reclaim,
    /// The link has been measured, if that was possible.
    Measured(Option<Rate>),
    /// A line for the report and the client.
    Warning(String),
}

/// What must outlive the agent besides the machine's records.
#[derive(Clone, Serialize, Deserialize)]
pub struct Facts {
    /// The move.
    pub id: MoveId,
    /// As asked for.
    pub spec: MoveSpec,
    /// The container, once inspected.
    pub question: Option<Question>,
    /// How to re-arm.
    pub disarmed: Option<Disarmed>,
    /// Service addresses that the target has by itself.
    #[serde(default)]
    pub shared: Vec<IpAddr>,
}

/// A move about to run.
pub struct Start {
    facts: Facts,
    to: Destination,
    life: Life,
    machine: Machine,
    journal: Journal,
}

impl Start {
    /// The move's id.
    pub fn id(&self) -> MoveId {
        self.facts.id
    }
}

/// A new move.
///
/// # Errors
/// The destination is unreadable, or its directories cannot be made.
pub fn begin(spec: MoveSpec) -> Result<Start> {
    let to = spec.to.parse()?;
    let id = MoveId(random()?);
    let life = life(Epoch(1))?;
    paths::make_private(&paths::run(id))
        .with_context(|| format!("making {}", paths::run(id).display()))?;
    let (journal, _) = Journal::open::<Record>(&paths::state(id))?;
    let machine = Machine::new(options(&spec), life.epoch);
    let facts = Facts {
        id,
        spec,
        question: None,
        disarmed: None,
        shared: Vec::new(),
    };
    journal.write_facts(&facts)?;
    Ok(Start {
        facts,
        to,
        life,
        machine,
        journal,
    })
}

/// A move from its journal; none if it is over.
///
/// # Errors
/// The journal is unreadable or damaged.
pub fn recover(id: MoveId) -> Result<Option<Start>> {
    let dir = paths::state(id);
    let (journal, records) = Journal::open::<Record>(&dir)?;
    // Without a record nothing was begun: it was a look, or a refusal.
    if matches!(records.last(), None | Some(Record::Closed)) {
        return Ok(None);
    }
    let facts: Facts = journal::facts(&dir)?;
    let last = records
        .iter()
        .filter_map(|r| {
            if let Record::Begun(epoch) = r {
                Some(epoch.0)
            } else {
                None
            }
        })
        .max()
        .unwrap_or(0);
    let life = life(Epoch(last + 1))?;
    let to = facts.spec.to.parse()?;
    let machine = Machine::recover(options(&facts.spec), life.epoch, &records);
    Ok(Some(Start {
        facts,
        to,
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
        None | Some(Record::Begun(_) | Record::Disarmed) => "under way, nothing granted",
        Some(Record::Granted) => "granted: waits for the target's word",
        Some(Record::Released) => "released: clearing up",
        Some(Record::Kept(_)) => "kept: undoing",
        Some(Record::Closed) => "closed",
    };
    Ok((facts.spec.name, state.to_owned()))
}

fn options(spec: &MoveSpec) -> Options {
    Options {
        dry_run: spec.dry_run,
        drain_limit_ms: match spec.drain {
            Drain::Off => 0,
            _ => spec.drain_limit_ms,
        },
        max_blackout_ms: spec.max_blackout_ms,
        lease_ms: spec.lease_ms,
        ..Options::default()
    }
}

/// How long the last messages may take to reach the target before the connection is closed.
const PARTING: Duration = Duration::from_secs(5);

/// Runs the move to its end.
pub async fn run(
    start: Start,
    tx: mpsc::UnboundedSender<Input>,
    mut rx: mpsc::UnboundedReceiver<Input>,
    feed: Feed,
) {
    let mut driver = Driver::new(start, tx, feed);
    driver.machine.handle(Event::Start);
    driver.adopt();
    if driver.machine.word() == Word::Granted {
        // Taken up after the grant: it has nothing to say that would open the link, and waits for the target's word.
        driver.link();
    }
    loop {
        while let Some(action) = driver.machine.poll_action() {
            if let Action::Finish(outcome) = action {
                return driver.finish(outcome).await;
            }
            driver.perform(action);
        }
        // The driver keeps a sender: this ends only with the machine.
        let Some(input) = rx.recv().await else { return };
        driver.take(input);
    }
}

struct Driver {
    facts: Facts,
    machine: Machine,
    journal: Journal,
    life: Life,
    tx: mpsc::UnboundedSender<Input>,
    feed: Feed,
    clock: Clock,
    timers: Timers<Timer>,
    link: Option<Link<ToTarget>>,
    steps: Arc<Steps>,
    seen: Seen,
}

/// What the report will want to know.
#[derive(Default)]
struct Seen {
    warnings: Vec<String>,
    objections: Vec<String>,
    open_us: Option<u64>,
    rebuild_us: Option<u64>,
    lacks_image: bool,
    link: Measured,
    expected: Vec<String>,
    plan: Option<Box<Plan>>,
}

/// The link's measurement, which runs beside the target's look at the plan.
#[derive(Default, PartialEq)]
enum Measured {
    #[default]
    Not,
    /// The answer waits for it.
    Begun(Option<Box<Answer>>),
    Done(Option<Rate>),
}

impl Measured {
    fn rate(&self) -> Option<Rate> {
        match self {
            Self::Done(rate) => *rate,
            Self::Not | Self::Begun(_) => None,
        }
    }
}

impl Driver {
    fn new(start: Start, tx: mpsc::UnboundedSender<Input>, feed: Feed) -> Self {
        let Start {
            facts,
            to,
            life,
            machine,
            journal,
        } = start;
        let steps = Arc::new(Steps::new(
            facts.id,
            facts.spec.clone(),
            to,
            life,
            feed.clone(),
        ));
        steps.restore(&facts);
        if matches!(machine.word(), Word::Granted | Word::Released)
            && let Err(e) = steps.stay_silent()
        {
            warn!(mv = %facts.id, "{e:#}");
        }
        Self {
            facts,
            machine,
            journal,
            life,
            tx,
            feed,
            clock: Clock::start(),
            timers: Timers::default(),
            link: None,
            steps,
            seen: Seen::default(),
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.event(event),
            Input::Hook(call, reply) => self.hook(call, reply),
            Input::Rsync(stream, args) => self.steps.join_rsync(stream, args),
            Input::Link(LinkEvent::Up) => {
                if self.machine.word() == Word::Unknown && self.seen.link == Measured::Not {
                    self.seen.link = Measured::Begun(None);
                    self.measure();
                }
                self.machine.handle(Event::LinkUp);
            }
            Input::Measured(rate) => {
                let before = std::mem::replace(&mut self.seen.link, Measured::Done(rate));
                self.steps.measured(rate);
                if let Measured::Begun(Some(answer)) = before {
                    let event = self.decide(&answer);
                    self.machine.handle(event);
                }
            }
            Input::Link(LinkEvent::Word(word)) => self.machine.handle(Event::PeerWord(word)),
            Input::Link(LinkEvent::Message(message)) => self.message(message),
            Input::Link(LinkEvent::Down(why)) => {
                self.feed.tell(Told::Note(format!(
                    "no link to {}: {why}",
                    self.facts.spec.to
                )));
                self.machine.handle(Event::LinkDown);
            }
            Input::Cancel(why) => self.machine.handle(Event::Cancel(why)),
            Input::Reclaim => self.machine.handle(Event::Reclaim),
            Input::Warning(text) => {
                self.feed.tell(Told::Note(text.clone()));
                self.seen.warnings.push(text);
            }
        }
    }

    /// A step's end: what must outlive the agent is written before the machine goes on.
    fn event(&mut self, event: Event) {
        match &event {
            Event::Done(Done::Inspected(question, objections)) => {
                self.facts.question = Some((**question).clone());
                self.seen.objections.clone_from(objections);
                self.seen.expected = self.steps.expected();
                self.save();
            }
            Event::Done(Done::Disarmed) => {
                self.facts.disarmed = self.steps.disarmed();
                self.save();
            }
            // Before the grant itself: what this host has come to track since the dump.
            Event::Done(Done::Dumped(_) | Done::Granted) => {
                if let Some(remembered) = self.steps.remembered() {
                    self.link().send(remembered);
                }
            }
            Event::Done(Done::Round { .. }) => {
                if let Some(plan) = &mut self.seen.plan {
                    self.steps.predict(&mut plan.prediction);
                }
            }
            Event::Done(Done::Closed) => self.clock.closed = Some(Instant::now()),
            Event::Done(Done::Undone) => self.clock.reopened = self.steps.reopened(),
            Event::Left(left) => self.seen.warnings.extend(left.iter().cloned()),
            _ => {}
        }
        self.machine.handle(event);
    }

    fn save(&mut self) {
        if let Err(e) = self.journal.write_facts(&self.facts) {
            self.machine.handle(Event::Cancel(format!(
                "the move's facts cannot be kept: {e}"
            )));
        }
    }

    fn message(&mut self, message: ToSource) {
        match &message {
            ToSource::Prepared { rebuild_us } => self.seen.rebuild_us = Some(*rebuild_us),
            ToSource::Released => self.clock.released = Some(Instant::now()),
            ToSource::Opened {
                open_us,
                announce_us,
                warnings,
            } => {
                self.seen.open_us = Some(*open_us);
                self.clock.announcing = Duration::from_micros(*announce_us);
                self.seen.warnings.extend(warnings.iter().cloned());
            }
            ToSource::Failed { left, .. } => self
                .seen
                .warnings
                .extend(left.iter().map(|l| format!("left at the target: {l}"))),
            ToSource::Answer(_) | ToSource::Ready => {}
        }
        self.machine.handle(Event::Message(message));
    }

    fn hook(&mut self, call: HookCall, reply: oneshot::Sender<HookReply>) {
        if let Some(event) = self.steps.hook(&call, reply) {
            self.machine.handle(event);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Inspect => self.step(|steps| steps.inspect()),
            Action::Send(message) => {
                if matches!(message, ToTarget::Grant(_)) {
                    self.clock.granted = Some(Instant::now());
                }
                let prepare = matches!(message, ToTarget::Prepare(_));
                self.link().send(message);
                if prepare && self.seen.lacks_image {
                    self.send_image();
                }
            }
            Action::Persist(record) => {
                let event = match self.journal.append(&record) {
                    Ok(()) => Event::Persisted(record),
                    Err(e) => Event::NotPersisted(record, e.to_string()),
                };
                self.machine.handle(event);
                if let Some(link) = &self.link {
                    link.set_word(self.machine.word());
                }
            }
            Action::Decide(answer) => {
                self.seen.lacks_image = answer.lacks_image;
                if let Measured::Begun(waiting) = &mut self.seen.link {
                    *waiting = Some(answer);
                } else {
                    let event = self.decide(&answer);
                    self.machine.handle(event);
                }
            }
            Action::Attach => self.step(|steps| steps.attach()),
            Action::Disarm => self.step(|steps| steps.disarm()),
            Action::Precopy(round) => self.step(move |steps| steps.precopy(round)),
            Action::Drain => self.step(|steps| steps.drain()),
            Action::Freeze => self.engine(),
            Action::Close => self.step(|steps| steps.close()),
            Action::EngineGoOn => self.steps.engine_go_on(),
            Action::DumpSockets => self.step(|steps| steps.dump_sockets()),
            Action::SendRest => self.step(|steps| steps.send_rest()),
            Action::Grant => self.step(|steps| steps.grant()),
            Action::Undo => self.ending(Done::Undone, |steps| steps.undo()),
            Action::Clean => self.ending(Done::Cleaned, |steps| steps.clean()),
            Action::SetTimer(timer, ms) => {
                let tx = self.tx.clone();
                self.timers.set(timer, ms, move |timer| {
                    tell(&tx, Input::Event(Event::Timeout(timer)))
                });
            }
            Action::ClearTimer(timer) => self.timers.clear(timer),
            Action::Phase(phase) => {
                self.clock.phase(phase);
                self.feed.tell(Told::Phase(phase));
            }
            Action::Finish(_) => unreachable!("the loop takes the end for itself"),
        }
    }

    /// Runs a step on a blocking thread.
    fn step(&self, work: impl FnOnce(&Arc<Steps>) -> Result<Done> + Send + 'static) {
        let (steps, tx) = (self.steps.clone(), self.tx.clone());
        tokio::task::spawn_blocking(move || {
            let event = match steps.run(work) {
                Ok(done) => Event::Done(done),
                Err(e) => Event::Failed(format!("{e:#}")),
            };
            tell(&tx, Input::Event(event));
        });
    }

    /// Measures the link. A plan can do without, so nothing fails by it.
    fn measure(&self) {
        let (steps, tx) = (self.steps.clone(), self.tx.clone());
        tokio::spawn(async move {
            let rate = match steps.measure().await {
                Ok(rate) => Some(rate),
                Err(e) => {
                    warn!("the link is not measured: {e:#}");
                    None
                }
            };
            tell(&tx, Input::Measured(rate));
        });
    }

    /// Sends the container's image beside the other steps. Its arrival shows by the target's readiness.
    fn send_image(&self) {
        let (steps, tx) = (self.steps.clone(), self.tx.clone());
        tokio::spawn(async move {
            if let Err(e) = steps.send_image().await {
                tell(&tx, Input::Event(Event::Failed(format!("{e:#}"))));
            }
        });
    }

    /// Runs a step that does not fail but may leave something.
    fn ending(&self, done: Done, work: impl FnOnce(&Steps) -> Vec<String> + Send + 'static) {
        let (steps, tx) = (self.steps.clone(), self.tx.clone());
        tokio::task::spawn_blocking(move || {
            let left = work(&steps);
            if !left.is_empty() {
                tell(&tx, Input::Event(Event::Left(left)));
            }
            tell(&tx, Input::Event(Event::Done(done)));
        });
    }

    /// Starts the engine and watches it; its moments come as hooks.
    fn engine(&self) {
        let (steps, tx) = (self.steps.clone(), self.tx.clone());
        tokio::task::spawn_blocking(move || {
            let event = match steps.freeze() {
                Ok(Some(why)) => Event::EngineGone(why),
                // It ended because it was told to.
                Ok(None) => return,
                Err(e) => Event::Failed(format!("{e:#}")),
            };
            tell(&tx, Input::Event(event));
        });
    }

    /// An engine that an earlier agent started and that has ended meanwhile: nobody else would say so.
    fn adopt(&self) {
        let (steps, tx) = (self.steps.clone(), self.tx.clone());
        tokio::task::spawn_blocking(move || {
            if let Some(why) = steps.adopted() {
                tell(&tx, Input::Event(Event::EngineGone(why)));
            }
        });
    }

    fn link(&mut self) -> &Link<ToTarget> {
        self.link.get_or_insert_with(|| {
            let tx = self.tx.clone();
            let word = self.machine.word();
            Link::dialling(
                self.facts.id,
                self.life,
                word,
                self.steps.dialer().clone(),
                move |news| tell(&tx, Input::Link(news)),
            )
        })
    }

    fn decide(&mut self, answer: &Answer) -> Event {
        let Some(question) = &self.facts.question else {
            return Event::Failed("an answer came before the question".to_owned());
        };
        let (against, ends) = self.steps.against(&answer.shared);
        self.seen.objections.extend(against);
        self.seen.expected.extend(ends);
        let spec = &self.facts.spec;
        let sockets = self.steps.rows();
        let plan = plan::decide(&plan::Given {
            question,
            answer,
            objections: &self.seen.objections,
            warnings: &self.seen.expected,
            sockets: &sockets,
            engine: question.container.manager.engine(),
            allow: &spec.allow,
            rate: self.seen.link.rate(),
            max_blackout_ms: spec.max_blackout_ms,
        });
        let refusals = plan.refusals();
        self.seen.plan = Some(Box::new(plan));
        if !answer.shared.is_empty() {
            self.facts.shared.clone_from(&answer.shared);
            self.save();
        }
        Event::Done(Done::Decided(refusals))
    }

    fn report(&self, outcome: Outcome) -> Report {
        let (outcome, reasons) = match outcome {
            Outcome::Moved => (report::Outcome::Moved, Vec::new()),
            Outcome::Kept(why) => (report::Outcome::Kept, vec![why]),
            Outcome::Refused(why) => (report::Outcome::Refused, why),
            Outcome::Planned(_) => (report::Outcome::Planned, Vec::new()),
        };
        let blackout_ms = match outcome {
            report::Outcome::Moved => self.clock.blackout_ms(self.seen.open_us.unwrap_or(0)),
            _ => self
                .clock
                .closed
                .zip(self.clock.reopened)
                .map(|(from, to)| (to - from).as_secs_f64() * 1e3),
        };
        Report {
            schema: report::SCHEMA.to_owned(),
            mv: self.facts.id.to_string(),
            container: self.facts.spec.name.clone(),
            from: self
                .facts
                .question
                .as_ref()
                .map(|q| q.facts.hostname.clone())
                .unwrap_or_default(),
            to: self.facts.spec.to.clone(),
            outcome,
            reasons,
            total_ms: self.clock.total_ms(),
            phases: report::phases(self.clock.phases()),
            blackout_ms,
            bytes: self.steps.sent_bytes(),
            sockets: self.steps.rows(),
            packets: self.steps.packets(),
            warnings: self.seen.warnings.clone(),
            plan: self.seen.plan.clone(),
        }
    }

    async fn finish(mut self, outcome: Outcome) {
        if let Some(link) = &self.link
            && !link.flush(PARTING).await
        {
            self.seen.warnings.push(format!("the target has not acknowledged the end within {PARTING:?}; it asks when it is reached again"));
        }
        let report = self.report(outcome);
        if let Err(e) = self.journal.write_report(&report) {
            warn!(mv = %self.facts.id, "the report is lost: {e}");
        }
        match serde_json::to_string(&report) {
            Ok(text) => self.feed.tell(Told::Ended(text)),
            Err(e) => self
                .feed
                .tell(Told::Error(format!("writing the report: {e}"))),
        }
        for what in self.steps.forget() {
            warn!(mv = %self.facts.id, "left: {what}");
        }
        info!(mv = %self.facts.id, "move ended");
    }
}
