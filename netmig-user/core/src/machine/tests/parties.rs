//! The two sides of a pair behind one trait: a machine and its world.
use super::{
    source_world::{self, SourceWorld},
    target_world::{self, TargetWorld},
};
use crate::{
    id::Epoch,
    machine::{source, target},
    proto::{ToSource, ToTarget, Word},
};
use std::fmt::Debug;

/// What the pair does with an action.
pub enum Class<P: Party> {
    Send(P::Out),
    SetTimer(P::Timer, u64),
    ClearTimer(P::Timer),
    Finish,
    Note,
    Persist {
        refused: P::Event,
    },
    /// Stops the step under way; cannot fail.
    Sweep,
    /// Can fail.
    Step,
    /// An answer to a hook: cannot fail.
    Answer,
}

/// What the driver reports of an action, and which moment the engine reaches by it.
pub type Effect<P> = (Option<<P as Party>::Event>, Option<<P as Party>::Moment>);

/// One side: its machine and its world.
pub trait Party: Sized {
    type Event: Clone + Debug;
    type Action: Clone + Debug;
    type Timer: Copy + PartialEq + Debug;
    type Moment: Copy + Debug;
    type Out: Clone + Debug;
    type In: Clone + Debug;

    /// Starts the machine from the journal; false if there is nothing to do any more.
    fn boot(&mut self) -> (bool, Epoch);
    fn handle(&mut self, event: Self::Event);
    fn poll(&mut self) -> Option<Self::Action>;
    fn word(&self) -> Word;
    fn classify(action: &Self::Action) -> Class<Self>;
    fn apply(&mut self, action: &Self::Action) -> Result<Effect<Self>, String>;
    fn engine(&self) -> u64;
    fn arrive(&mut self, moment: Self::Moment) -> Self::Event;
    /// What the agent learns of the engine when it starts, or when a hook comes again.
    fn present(&self) -> Option<Self::Event>;
    fn failed(why: String) -> Self::Event;
    fn message(message: Self::In) -> Self::Event;
    fn peer_word(word: Word) -> Self::Event;
    fn link(up: bool) -> Self::Event;
    fn timeout(timer: Self::Timer) -> Self::Event;
}

pub struct Source {
    pub options: source::Options,
    pub machine: source::Machine,
    pub world: SourceWorld,
}

pub struct Target {
    pub options: target::Options,
    pub machine: target::Machine,
    pub world: TargetWorld,
}

impl Party for Source {
    type Event = source::Event;
    type Action = source::Action;
    type Timer = source::Timer;
    type Moment = source_world::Moment;
    type Out = ToTarget;
    type In = ToSource;

    fn boot(&mut self) -> (bool, Epoch) {
        let journal = &self.world.journal;
        let lives = journal
            .iter()
            .filter_map(|r| {
                if let source::Record::Begun(e) = r {
                    Some(e.0)
                } else {
                    None
                }
            })
            .max();
        let epoch = Epoch(lives.map_or(1, |lives| lives + 1));
        if journal.is_empty() {
            self.machine = source::Machine::new(self.options.clone(), epoch);
            self.machine.handle(source::Event::Start);
        } else {
            self.machine = source::Machine::recover(self.options.clone(), epoch, journal);
        }
        (true, epoch)
    }

    fn handle(&mut self, event: source::Event) {
        self.machine.handle(event);
    }

    fn poll(&mut self) -> Option<source::Action> {
        self.machine.poll_action()
    }

    fn word(&self) -> Word {
        self.machine.word()
    }

    fn classify(action: &source::Action) -> Class<Self> {
        use source::Action::*;
        match action {
            Send(message) => Class::Send(message.clone()),
            SetTimer(timer, ms) => Class::SetTimer(*timer, *ms),
            ClearTimer(timer) => Class::ClearTimer(*timer),
            Finish(_) => Class::Finish,
            Phase(_) => Class::Note,
            Persist(record) => Class::Persist {
                refused: source::Event::NotPersisted(record.clone(), "no space".into()),
            },
            Undo | Clean => Class::Sweep,
            EngineGoOn => Class::Answer,
            Inspect | Decide(_) | Attach | Disarm | Precopy(_) | Drain | Freeze | Close
            | DumpSockets | SendRest | Grant => Class::Step,
        }
    }

    fn apply(&mut self, action: &source::Action) -> Result<Effect<Self>, String> {
        self.world.apply(action)
    }

    fn engine(&self) -> u64 {
        self.world.engine
    }

    fn arrive(&mut self, moment: source_world::Moment) -> source::Event {
        self.world.arrive(moment)
    }

    fn present(&self) -> Option<source::Event> {
        self.world.present()
    }

    fn failed(why: String) -> source::Event {
        source::Event::Failed(why)
    }

    fn message(message: ToSource) -> source::Event {
        source::Event::Message(message)
    }

    fn peer_word(word: Word) -> source::Event {
        source::Event::PeerWord(word)
    }

    fn link(up: bool) -> source::Event {
        if up {
            source::Event::LinkUp
        } else {
            source::Event::LinkDown
        }
    }

    fn timeout(timer: source::Timer) -> source::Event {
        source::Event::Timeout(timer)
    }
}

impl Party for Target {
    type Event = target::Event;
    type Action = target::Action;
    type Timer = target::Timer;
    type Moment = target_world::Moment;
    type Out = ToSource;
    type In = ToTarget;

    fn boot(&mut self) -> (bool, Epoch) {
        let journal = &self.world.journal;
        let lives = journal
            .iter()
            .filter_map(|r| {
                if let target::Record::Begun(e) = r {
                    Some(e.0)
                } else {
                    None
                }
            })
            .max();
        let epoch = Epoch(lives.map_or(1, |lives| lives + 1));
        self.machine = target::Machine::recover(self.options.clone(), epoch, journal);
        (true, epoch)
    }

    fn handle(&mut self, event: target::Event) {
        self.machine.handle(event);
    }

    fn poll(&mut self) -> Option<target::Action> {
        self.machine.poll_action()
    }

    fn word(&self) -> Word {
        self.machine.word()
    }

    fn classify(action: &target::Action) -> Class<Self> {
        use target::Action::*;
        match action {
            Send(message) => Class::Send(message.clone()),
            SetTimer(timer, ms) => Class::SetTimer(*timer, *ms),
            ClearTimer(timer) => Class::ClearTimer(*timer),
            Finish(_) => Class::Finish,
            Persist(record) => Class::Persist {
                refused: target::Event::NotPersisted(record.clone(), "no space".into()),
            },
            Discard => Class::Sweep,
            Warm | Store(_) | EngineRelease | EngineResume => Class::Answer,
            Answer(_) | Prepare(_) | AwaitFiles { .. } | Rebuild | RebuildSockets | Open => {
                Class::Step
            }
        }
    }

    fn apply(&mut self, action: &target::Action) -> Result<Effect<Self>, String> {
        self.world.apply(action)
    }

    fn engine(&self) -> u64 {
        self.world.engines
    }

    fn arrive(&mut self, moment: target_world::Moment) -> target::Event {
        self.world.arrive(moment)
    }

    fn present(&self) -> Option<target::Event> {
        self.world.present()
    }

    fn failed(why: String) -> target::Event {
        target::Event::Failed(why)
    }

    fn message(message: ToTarget) -> target::Event {
        target::Event::Message(message)
    }

    fn peer_word(word: Word) -> target::Event {
        target::Event::PeerWord(word)
    }

    fn link(up: bool) -> target::Event {
        if up {
            target::Event::LinkUp
        } else {
            target::Event::LinkDown
        }
    }

    fn timeout(timer: target::Timer) -> target::Event {
        target::Event::Timeout(timer)
    }
}
