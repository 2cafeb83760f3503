//! The source host as far as a move touches it.
use super::question;
use crate::machine::source::{Action, Done, Event, Record};
use crate::{image::v1::sock::Sockets, proto::ToTarget};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    None,
    Pass,
    Drain,
    Closed,
    Granted,
    /// The lease ran out: it passes.
    Expired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Starting,
    Frozen,
    Dumped,
}

#[derive(Clone, Debug)]
pub struct SourceWorld {
    pub journal: Vec<Record>,
    pub gate: Gate,
    pub disarmed: bool,
    /// The container's processes exist.
    pub exists: bool,
    /// Stopped by the engine.
    pub stopped: bool,
    /// Its cgroup is frozen.
    pub frozen: bool,
    /// The hook that waits for an answer.
    pub hook: Option<Moment>,
    /// Counts engines, so that moments of a dead one do not arrive.
    pub engine: u64,
    pub has_engine: bool,
}

/// What the engine does next by itself.
pub type Next = Option<Moment>;

impl SourceWorld {
    pub fn new() -> Self {
        Self {
            journal: Vec::new(),
            gate: Gate::None,
            disarmed: false,
            exists: true,
            stopped: false,
            frozen: false,
            hook: None,
            engine: 0,
            has_engine: false,
        }
    }

    pub fn live(&self) -> bool {
        self.exists && !self.stopped && !self.frozen
    }

    pub fn is_untouched(&self) -> bool {
        self.live() && self.gate == Gate::None && !self.disarmed && !self.has_engine
    }

    pub fn is_cleaned(&self) -> bool {
        !self.exists && self.gate == Gate::None && !self.has_engine
    }

    /// Performs an action. The event is what the driver reports at its end.
    pub fn apply(&mut self, action: &Action) -> Result<(Option<Event>, Next), String> {
        let done = match action {
            Action::Inspect => Done::Inspected(question(), Vec::new()),
            Action::Decide(_) => Done::Decided(Vec::new()),
            Action::Persist(record) => {
                self.journal.push(record.clone());
                return Ok((Some(Event::Persisted(record.clone())), None));
            }
            Action::Attach => {
                self.gate = Gate::Pass;
                Done::Attached
            }
            Action::Disarm => {
                self.disarmed = true;
                Done::Disarmed
            }
            Action::Precopy(n) => Done::Round {
                round: *n,
                more: true,
                ms: 1,
                blackout_ms: 0,
            },
            Action::Drain => {
                self.gate = Gate::Drain;
                Done::Drained
            }
            Action::Freeze => {
                self.engine += 1;
                self.has_engine = true;
                return Ok((None, Some(Moment::Starting)));
            }
            Action::EngineGoOn => {
                let next = match self.hook.take() {
                    Some(Moment::Starting) => Some(Moment::Frozen),
                    Some(Moment::Frozen) => Some(Moment::Dumped),
                    other => {
                        self.hook = other;
                        None
                    }
                };
                return Ok((None, next));
            }
            Action::Close => {
                self.gate = Gate::Closed;
                Done::Closed
            }
            Action::DumpSockets => {
                self.frozen = true;
                Done::Dumped(Box::new(ToTarget::Sockets(Box::<Sockets>::default())))
            }
            Action::SendRest => Done::Sent {
                files: 3,
                bytes: 4096,
            },
            Action::Grant => {
                if self.gate != Gate::Closed {
                    return Err("the lease has run out".into());
                }
                self.gate = Gate::Granted;
                Done::Granted
            }
            Action::Undo => {
                assert!(self.exists, "undone after the container was removed");
                self.end_engine();
                self.frozen = false;
                self.gate = Gate::None;
                self.disarmed = false;
                Done::Undone
            }
            Action::Clean => {
                assert!(!self.live(), "a live container is cleaned away");
                self.end_engine();
                self.exists = false;
                self.gate = Gate::None;
                Done::Cleaned
            }
            Action::Send(_)
            | Action::SetTimer(..)
            | Action::ClearTimer(_)
            | Action::Phase(_)
            | Action::Finish(_) => {
                unreachable!("performed by the pair: {action:?}")
            }
        };
        Ok((Some(Event::Done(done)), None))
    }

    /// The engine reaches a moment and waits in its hook.
    pub fn arrive(&mut self, moment: Moment) -> Event {
        self.hook = Some(moment);
        self.stopped |= moment != Moment::Starting;
        self.present().expect("a hook waits")
    }

    /// What a hook says when it reaches the agent (again).
    pub fn present(&self) -> Option<Event> {
        self.hook.map(|moment| match moment {
            Moment::Starting => Event::EngineStarting,
            Moment::Frozen => Event::EngineFrozen,
            Moment::Dumped => Event::EngineDumped,
        })
    }

    /// A dead engine lets its tasks run; only the frozen cgroup holds them.
    pub fn end_engine(&mut self) {
        self.engine += 1;
        self.has_engine = false;
        self.hook = None;
        self.stopped = false;
    }
}
