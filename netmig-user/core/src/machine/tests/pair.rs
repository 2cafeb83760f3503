//! Two agents, their pipe and the clock.
//!
//! Every action takes a random time. It has its effect either when it starts or when it ends, so that a crash in between finds both. A crash
//! drops machine, timers and conversation; the journal, the gate, the container and the engine with its hooks stay.
use super::{
    Rng,
    faults::Fault,
    parties::{Class, Party, Source, Target},
    source_world::SourceWorld,
    target_world::{self, TargetWorld},
};
use crate::{
    id::{Epoch, Life, MoveId},
    link::{Conversation, Met},
    machine::{source, target},
    proto::{Channel, Hello, Numbered, Word},
};
use std::{cmp::Reverse, collections::BinaryHeap};

/// A record is no step that could be stopped.
const UNSWEPT: u64 = u64::MAX;

/// Something that will happen to one side.
pub(super) enum Due<P: Party> {
    Boot,
    Apply {
        life: u64,
        sweeps: u64,
        action: P::Action,
    },
    Event {
        life: u64,
        event: P::Event,
    },
    Timer {
        life: u64,
        timer: P::Timer,
        setting: u64,
    },
    Arrive {
        engine: u64,
        moment: P::Moment,
    },
    Hello {
        connection: u64,
        hello: Box<Hello>,
    },
    Frame {
        connection: u64,
        frame: Numbered<P::In>,
    },
    LinkDown {
        connection: u64,
    },
}

pub(super) enum Any {
    Source(Due<Source>),
    Target(Due<Target>),
    Dial,
}

pub struct Agent<P: Party> {
    pub party: P,
    pub alive: bool,
    life: u64,
    conversation: Option<Conversation<P::Out, P::In>>,
    /// The connection that this side believes in.
    connection: Option<u64>,
    disk_free_at: u64,
    sweeps: u64,
    settings: u64,
    timers: Vec<(P::Timer, u64)>,
    arrives_at: u64,
    pub(super) fail_next: bool,
    pub(super) refuse_next: bool,
    pub finished: bool,
}

pub struct Pair {
    pub rng: Rng,
    pub now: u64,
    pub steps: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    dues: Vec<Option<Any>>,
    pub source: Agent<Source>,
    pub target: Agent<Target>,
    pub(super) connection: u64,
    pub(super) dial_not_before: u64,
    /// Faults still to come: at which step.
    pub faults: Vec<(u64, Fault)>,
    /// The container died at the target after its release.
    pub died_released: bool,
    /// What happened, where it is wanted: a run is repeated from its seed to see it.
    pub trace: Option<Vec<String>>,
}

impl<P: Party> Agent<P> {
    fn new(party: P) -> Self {
        Self {
            party,
            alive: false,
            life: 0,
            conversation: None,
            connection: None,
            disk_free_at: 0,
            sweeps: 0,
            settings: 0,
            timers: Vec::new(),
            arrives_at: 0,
            fail_next: false,
            refuse_next: false,
            finished: false,
        }
    }

    pub(super) fn crash(&mut self) {
        self.alive = false;
        self.life += 1;
        self.conversation = None;
        self.connection = None;
        self.timers.clear();
        self.sweeps += 1;
    }
}

impl Pair {
    pub fn new(seed: u64, source: source::Options, target: target::Options) -> Self {
        let source = Source {
            machine: source::Machine::new(source.clone(), Epoch(1)),
            options: source,
            world: SourceWorld::new(),
        };
        let target = Target {
            machine: target::Machine::new(target.clone(), Epoch(1)),
            options: target,
            world: TargetWorld::new(),
        };
        let mut pair = Self {
            rng: Rng(seed),
            now: 0,
            steps: 0,
            queue: BinaryHeap::new(),
            dues: Vec::new(),
            source: Agent::new(source),
            target: Agent::new(target),
            connection: 0,
            dial_not_before: 0,
            faults: Vec::new(),
            died_released: false,
            trace: None,
        };
        pair.later(0, Any::Target(Due::Boot));
        pair.later(0, Any::Source(Due::Boot));
        pair.later(0, Any::Dial);
        pair
    }

    /// Runs until both sides have ended, or nothing but waiting is left.
    pub fn run(&mut self) {
        while !self.is_over() {
            self.step();
            assert!(self.steps < 20_000, "the move does not end");
        }
    }

    pub fn is_over(&self) -> bool {
        let ended = |alive: bool, finished: bool| alive && finished;
        self.faults.is_empty()
            && ended(self.source.alive, self.source.finished)
            && (ended(self.target.alive, self.target.finished) || self.target_knows_nothing())
    }

    /// The source has nothing more to say, and the target's agent was restarted before its first record: it holds nothing, not even a move.
    fn target_knows_nothing(&self) -> bool {
        let said = self
            .source
            .conversation
            .as_ref()
            .is_some_and(Conversation::is_flushed);
        said && self.target.alive
            && self.target.party.world.journal.is_empty()
            && self.target.party.world.is_untouched()
    }

    pub fn step(&mut self) {
        self.steps += 1;
        while let Some(at) = self.faults.iter().position(|(step, _)| *step <= self.steps) {
            let (_, fault) = self.faults.swap_remove(at);
            self.inject(fault);
            self.check();
        }
        let Some(Reverse((at, _, slot))) = self.queue.pop() else {
            // Faults that were to come after the end.
            assert!(
                !self.faults.is_empty(),
                "nothing is due, and the move has not ended"
            );
            return;
        };
        self.now = at;
        match self.dues[slot].take().expect("each is taken once") {
            Any::Source(due) => self.source_due(due),
            Any::Target(due) => self.target_due(due),
            Any::Dial => self.dial(),
        }
        self.check();
    }

    pub(super) fn later(&mut self, at: u64, any: Any) {
        self.dues.push(Some(any));
        self.queue.push(Reverse((
            at.max(self.now),
            self.dues.len() as u64,
            self.dues.len() - 1,
        )));
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} {}", self.now, what()));
        }
    }

    /// Never two copies, at no moment.
    fn check(&self) {
        let (source, target) = (&self.source.party.world, &self.target.party.world);
        assert!(!(source.live() && target.live()), "two live copies");
        assert!(
            !(source.live() && target.gate == target_world::Gate::Open),
            "the source runs while the target's gate is open"
        );
        let released = target::word(&target.journal) == Word::Released;
        assert!(
            source.exists || released,
            "the source is gone and the target never released"
        );
        assert!(
            !target.live() || released,
            "the target runs without its record"
        );
        if source.live() && source::word(&source.journal) == Word::Granted {
            assert_eq!(
                target::word(&target.journal),
                Word::FailedBeforeRelease,
                "the source runs after its grant, without a certificate"
            );
        }
    }
}

// The two sides' halves, equal but for their types.
macro_rules! half {
    ($side:ident, $party:ident, $due:ident, $perform:ident, $pump:ident, $feed:ident, $begin:ident, $other:ident, $peer:ident) => {
        impl Pair {
            fn $due(&mut self, due: Due<$party>) {
                match due {
                    Due::Boot => {
                        let (works, epoch) = self.$side.party.boot();
                        self.$side.alive = true;
                        self.$side.finished = !works;
                        let life = Life {
                            epoch,
                            nonce: self.rng.next(),
                        };
                        self.$side.conversation = Some(Conversation::new(MoveId([1; 16]), life));
                        self.note(|| concat!(stringify!($side), " boots").to_owned());
                        self.$perform();
                        if works
                            && epoch.0 > 1
                            && let Some(event) = self.$side.party.present()
                        {
                            self.$feed(event);
                        }
                    }
                    Due::Apply {
                        life,
                        sweeps,
                        action,
                    } => {
                        if life == self.$side.life
                            && (sweeps == self.$side.sweeps || sweeps == UNSWEPT)
                        {
                            if let Some(event) = self.$begin(&action) {
                                self.$feed(event);
                            }
                        }
                    }
                    Due::Event { life, event } => {
                        if life == self.$side.life {
                            self.$feed(event);
                        }
                    }
                    Due::Timer {
                        life,
                        timer,
                        setting,
                    } => {
                        if life == self.$side.life && self.$side.timers.contains(&(timer, setting))
                        {
                            self.$side.timers.retain(|(t, _)| *t != timer);
                            self.$feed($party::timeout(timer));
                        }
                    }
                    Due::Arrive { engine, moment } => {
                        if engine == self.$side.party.engine() {
                            let event = self.$side.party.arrive(moment);
                            if self.$side.alive {
                                self.$feed(event);
                            }
                        }
                    }
                    Due::Hello { connection, hello } => {
                        self.hello(stringify!($side) == "target", connection, &hello)
                    }
                    Due::Frame { connection, frame } => {
                        if self.$side.connection == Some(connection) {
                            let received = self
                                .$side
                                .conversation
                                .as_mut()
                                .expect("connected")
                                .receive(frame);
                            if let Some(message) = received.expect("the pipe keeps order") {
                                self.$feed($party::message(message));
                            }
                            self.$pump();
                        }
                    }
                    Due::LinkDown { connection } => {
                        if self.$side.connection == Some(connection) {
                            self.$side.connection = None;
                            self.$side.conversation.as_mut().expect("connected").down();
                            self.$feed($party::link(false));
                        }
                    }
                }
            }

            pub(super) fn $feed(&mut self, event: <$party as Party>::Event) {
                if self.$side.alive {
                    self.note(|| format!("{} hears {event:?}", stringify!($side)));
                    self.$side.party.handle(event);
                    self.$perform();
                }
            }

            fn $perform(&mut self) {
                while let Some(action) = self.$side.party.poll() {
                    self.note(|| format!("{} does {action:?}", stringify!($side)));
                    let end = self.now + 1 + self.rng.below(40);
                    let life = self.$side.life;
                    match $party::classify(&action) {
                        Class::Send(message) => self
                            .$side
                            .conversation
                            .as_mut()
                            .expect("alive")
                            .send(message),
                        Class::SetTimer(timer, ms) => {
                            self.$side.settings += 1;
                            let setting = self.$side.settings;
                            self.$side.timers.retain(|(t, _)| *t != timer);
                            self.$side.timers.push((timer, setting));
                            self.later(
                                self.now + ms,
                                Any::$party(Due::Timer {
                                    life,
                                    timer,
                                    setting,
                                }),
                            );
                        }
                        Class::ClearTimer(timer) => self.$side.timers.retain(|(t, _)| *t != timer),
                        Class::Finish => self.$side.finished = true,
                        Class::Note => {}
                        Class::Persist { refused } => {
                            // Records reach the disk in their order.
                            let idle = self.$side.disk_free_at <= self.now;
                            self.$side.disk_free_at =
                                self.$side.disk_free_at.max(self.now) + 1 + self.rng.below(40);
                            let end = self.$side.disk_free_at;
                            let refuses = std::mem::take(&mut self.$side.refuse_next);
                            let at_once = idle && self.rng.chance(50);
                            let event = if at_once { self.$begin(&action) } else { None };
                            match event {
                                _ if refuses => self.later(
                                    end,
                                    Any::$party(Due::Event {
                                        life,
                                        event: refused,
                                    }),
                                ),
                                Some(event) => {
                                    self.later(end, Any::$party(Due::Event { life, event }))
                                }
                                None => self.later(
                                    end,
                                    Any::$party(Due::Apply {
                                        life,
                                        sweeps: UNSWEPT,
                                        action,
                                    }),
                                ),
                            }
                        }
                        class => {
                            if matches!(class, Class::Sweep) {
                                self.$side.sweeps += 1;
                            }
                            if matches!(class, Class::Step)
                                && std::mem::take(&mut self.$side.fail_next)
                            {
                                let event = $party::failed(format!("{action:?} failed"));
                                self.later(end, Any::$party(Due::Event { life, event }));
                            } else if self.rng.chance(50) {
                                if let Some(event) = self.$begin(&action) {
                                    self.later(end, Any::$party(Due::Event { life, event }));
                                }
                            } else {
                                let sweeps = self.$side.sweeps;
                                self.later(
                                    end,
                                    Any::$party(Due::Apply {
                                        life,
                                        sweeps,
                                        action,
                                    }),
                                );
                            }
                        }
                    }
                }
                self.$pump();
            }

            /// The action has its effect.
            fn $begin(
                &mut self,
                action: &<$party as Party>::Action,
            ) -> Option<<$party as Party>::Event> {
                let (event, moment) = self
                    .$side
                    .party
                    .apply(action)
                    .unwrap_or_else(|why| (Some($party::failed(why)), None));
                if let Some(moment) = moment {
                    let (engine, at) =
                        (self.$side.party.engine(), self.now + 1 + self.rng.below(60));
                    self.later(at, Any::$party(Due::Arrive { engine, moment }));
                }
                event
            }

            fn $pump(&mut self) {
                let Some(connection) = self.$side.connection else {
                    return;
                };
                while let Some(frame) = self
                    .$side
                    .conversation
                    .as_mut()
                    .expect("connected")
                    .poll_transmit()
                {
                    let at = self
                        .$other
                        .arrives_at
                        .max(self.now + 1 + self.rng.below(20));
                    self.$other.arrives_at = at;
                    self.later(at, Any::$peer(Due::Frame { connection, frame }));
                }
            }
        }
    };
}

half!(
    source,
    Source,
    source_due,
    source_perform,
    source_pump,
    source_feed,
    source_begin,
    target,
    Target
);
half!(
    target,
    Target,
    target_due,
    target_perform,
    target_pump,
    target_feed,
    target_begin,
    source,
    Source
);

impl Pair {
    /// The source's agent dials whenever it has no connection, as long as it has something to do.
    fn dial(&mut self) {
        let again = self.now + 5 + self.rng.below(100);
        if !self.source.alive || self.source.connection.is_some() || self.now < self.dial_not_before
        {
            return self.later(again, Any::Dial);
        }
        if self.target.alive {
            self.connection += 1;
            let connection = self.connection;
            let (word, conversation) = (
                self.source.party.word(),
                self.source.conversation.as_ref().expect("alive"),
            );
            let hello = Box::new(conversation.hello("test", Channel::Control, word));
            self.target.arrives_at = self.now + 1 + self.rng.below(20);
            self.later(
                self.target.arrives_at,
                Any::Target(Due::Hello { connection, hello }),
            );
        }
        self.later(again, Any::Dial);
    }

    fn hello(&mut self, at_target: bool, connection: u64, hello: &Hello) {
        // A connection that broke, or was replaced, meanwhile.
        if connection != self.connection || self.now < self.dial_not_before {
            return;
        }
        if at_target {
            if !self.target.alive {
                return;
            }
            let met = self
                .target
                .conversation
                .as_mut()
                .expect("alive")
                .greet(hello)
                .expect("its move, its protocol");
            self.target.connection = Some(connection);
            let (word, conversation) = (
                self.target.party.word(),
                self.target.conversation.as_ref().expect("alive"),
            );
            let answer = Box::new(conversation.hello("test", Channel::Control, word));
            self.source.arrives_at = self.now + 1 + self.rng.below(20);
            self.later(
                self.source.arrives_at,
                Any::Source(Due::Hello {
                    connection,
                    hello: answer,
                }),
            );
            self.target_feed(Target::link(true));
            if met != Met::Again {
                self.target_feed(Target::peer_word(hello.word));
            }
            self.target_pump();
        } else if self.source.alive {
            let met = self
                .source
                .conversation
                .as_mut()
                .expect("alive")
                .greet(hello)
                .expect("its move, its protocol");
            self.source.connection = Some(connection);
            self.source_feed(Source::link(true));
            if met != Met::Again {
                self.source_feed(Source::peer_word(hello.word));
            }
            self.source_pump();
        }
    }
}
