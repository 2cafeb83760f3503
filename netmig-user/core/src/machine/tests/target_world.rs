//! The target host as far as a move touches it.
use crate::machine::target::{Action, Event, Record};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    None,
    Closed,
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Rebuilt,
    Ready,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    None,
    /// Between its moments.
    Working,
    Waiting(Moment),
    /// It resumed the tasks and ended well.
    Ran,
    Dead,
}

#[derive(Clone, Debug)]
pub struct TargetWorld {
    pub journal: Vec<Record>,
    pub made: bool,
    pub gate: Gate,
    pub engine: Engine,
    /// Counts engines, so that moments of a dead one do not arrive.
    pub engines: u64,
}

impl TargetWorld {
    pub fn new() -> Self {
        Self {
            journal: Vec::new(),
            made: false,
            gate: Gate::None,
            engine: Engine::None,
            engines: 0,
        }
    }

    pub fn live(&self) -> bool {
        self.engine == Engine::Ran
    }

    pub fn is_untouched(&self) -> bool {
        !self.made && self.gate == Gate::None && self.engine == Engine::None
    }

    /// Performs an action; see the source's.
    pub fn apply(&mut self, action: &Action) -> Result<(Option<Event>, Option<Moment>), String> {
        let event = match action {
            Action::Answer(_) => Event::Answered(Box::default()),
            Action::Persist(record) => {
                self.journal.push(record.clone());
                Event::Persisted(record.clone())
            }
            Action::Prepare(_) => {
                self.made = true;
                self.gate = Gate::Closed;
                Event::Created
            }
            Action::Store(_) | Action::Warm => return Ok((None, None)),
            Action::AwaitFiles { .. } => Event::Complete,
            Action::Rebuild => {
                self.engines += 1;
                self.engine = Engine::Working;
                return Ok((None, Some(Moment::Rebuilt)));
            }
            Action::RebuildSockets => Event::SocketsRebuilt(1_000),
            Action::EngineRelease => {
                if self.engine != Engine::Waiting(Moment::Rebuilt) {
                    return Ok((None, None));
                }
                self.engine = Engine::Working;
                return Ok((None, Some(Moment::Ready)));
            }
            Action::Open => {
                assert!(self.made, "opened after it was discarded");
                self.gate = Gate::Open;
                Event::Opened {
                    open_us: 700,
                    announce_us: 3,
                    warnings: Vec::new(),
                }
            }
            Action::EngineResume => {
                if self.engine != Engine::Waiting(Moment::Ready) {
                    return Ok((None, None));
                }
                self.engine = Engine::Ran;
                Event::EngineRunning
            }
            Action::Discard => {
                assert!(self.gate != Gate::Open, "an open gate is discarded");
                assert!(!self.live(), "a live container is discarded");
                *self = Self {
                    journal: std::mem::take(&mut self.journal),
                    engines: self.engines + 1,
                    ..Self::new()
                };
                Event::Discarded(Vec::new())
            }
            Action::Send(_) | Action::SetTimer(..) | Action::ClearTimer(_) | Action::Finish(_) => {
                unreachable!("performed by the pair: {action:?}")
            }
        };
        Ok((Some(event), None))
    }

    pub fn arrive(&mut self, moment: Moment) -> Event {
        self.engine = Engine::Waiting(moment);
        self.present().expect("a hook waits")
    }

    /// What an agent finds of the engine: a hook that comes (again), or its end.
    pub fn present(&self) -> Option<Event> {
        match self.engine {
            Engine::Waiting(Moment::Rebuilt) => Some(Event::EngineRebuilt),
            Engine::Waiting(Moment::Ready) => Some(Event::EngineReady),
            Engine::Ran => Some(Event::EngineRunning),
            Engine::Dead | Engine::None => Some(Event::EngineGone("no engine is there".into())),
            Engine::Working => None,
        }
    }

    pub fn kill_engine(&mut self) -> bool {
        let kills = matches!(self.engine, Engine::Working | Engine::Waiting(_));
        if kills {
            self.engines += 1;
            self.engine = Engine::Dead;
        }
        kills
    }
}
