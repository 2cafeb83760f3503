//! How the target goes through a move.
//!
//! ```text
//!  plan      Ask -> Answer -> Send(Answer)
//!  attach    Prepare -> Persist(Begun) -> Prepare -> Send(Ready)
//!  receive   Round; Freezing -> Warm; Sockets -> Store; Dumped -> AwaitFiles
//!  rebuild   Complete -> Rebuild -> EngineRebuilt -> RebuildSockets -> Persist(Prepared) -> Send(Prepared)
//!  grant     Grant -> Persist(Granted) -> EngineRelease
//!  open      EngineReady -> Persist(Released) -> Send(Released), Open -> Opened -> EngineResume -> EngineRunning -> Send(Opened)
//!  end       Finish -> Persist(Closed) -> Finish(true)
//! ```
//!
//! # Before the release
//! Whatever goes wrong ends the same way, granted or not: `Discard`, then `Persist(Failed)`, then `Send(Failed)`. The certificate comes last,
//! for it says that nothing of the container can run here any more. A later life that finds no certificate discards again.
//! A target that has told nobody that it is prepared needs no certificate (no grant can exist) and closes its record at once; else the record
//! stays until the source has heard it.
//!
//! A restarted agent goes on only from `Granted`, and only if the engine still stands in its hook: then `EngineReady` (or `EngineRebuilt`)
//! comes again. A merely prepared move is given up: the source gives it up as well, or it has granted and takes the container back on the
//! certificate.
//!
//! # The release
//! `Released` counts from the moment when the machine hears `Persisted(Released)` while the engine lives: from then on it is said (message,
//! Hello, open gate) and nothing leads back. Until then it has been said to nobody. So if the engine dies, the source takes back or the
//! operator gives up while the record is being written, the machine waits for the end of that write and then fails: `Failed` lands behind
//! `Released`, and in a journal the later word holds. A crash in between leaves one of the two as the last word, and in the former life
//! neither was said. This is sound only if [`Machine::word`] is what a Hello carries, not a look into the file.
//!
//! After the release an engine that dies, or whose end nobody sees, is a container that died here: a warning in `Opened`, never a way back.
mod peer;
mod steps;
mod trouble;

use super::{Action, Event, Options, Record, Timer};
use crate::{
    id::Epoch,
    proto::{Question, ToSource, Word},
};
use std::collections::VecDeque;

/// Attempts to open the gate before the container is resumed behind a closed one, with a warning.
const OPEN_ATTEMPTS: u32 = 3;

/// The target's machine.
#[derive(Clone, Debug)]
pub struct Machine {
    options: Options,
    epoch: Epoch,
    state: State,
    actions: VecDeque<Action>,
    link: bool,
    met: bool,
    /// `Prepared` may have been said: the source may have granted.
    prepared: bool,
    /// The grant has been read, durably.
    granted: bool,
    /// The source keeps the container and asks for no certificate.
    source_keeps: bool,
    /// The engine stands at its last moment.
    ready: bool,
    /// The engine ended, by running or by dying.
    engine_done: bool,
    /// The source has said `Finish`.
    finish_heard: bool,
    attempts: u32,
    opened: Opened,
}

/// What `Opened` will say.
#[derive(Clone, Debug, Default)]
struct Opened {
    open_us: u64,
    announce_us: u64,
    warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    New,
    /// `Begun` is being written.
    Beginning(Box<Question>),
    Preparing,
    Receiving,
    AwaitingFiles,
    /// The engine rebuilds.
    Rebuilding,
    RebuildingSockets,
    /// `Prepared` is being written.
    Recording(u64),
    Prepared,
    /// `Granted` is being written.
    Accepting,
    /// Granted; the engine goes to its last moment.
    Releasing,
    /// `Released` is being written; the reason why it must not be said, if there is one by now.
    Deciding(Option<String>),
    Opening,
    Resuming,
    /// The end is known here; the source's `Finish` is awaited.
    Live,
    Discarding(String),
    /// `Failed` is being written.
    Failing {
        why: String,
        left: Vec<String>,
    },
    Failed {
        why: String,
        left: Vec<String>,
    },
    /// `Closed` is being written.
    Ending(bool),
    Finished(bool),
}

/// What a journal says in a Hello, as long as no machine lives for it.
pub fn word(records: &[Record]) -> Word {
    let mut word = Word::Unknown;
    for record in records {
        word = match record {
            Record::Begun(_) | Record::Prepared if word == Word::Unknown => Word::Undecided,
            Record::Begun(_) | Record::Prepared | Record::Closed => word,
            Record::Granted => Word::Granted,
            Record::Released => Word::Released,
            Record::Failed(_) => Word::FailedBeforeRelease,
        };
    }
    word
}

impl Machine {
    /// A move that begins with a message of the source.
    pub fn new(options: Options, epoch: Epoch) -> Self {
        Self {
            options,
            epoch,
            state: State::New,
            actions: VecDeque::new(),
            link: false,
            met: false,
            prepared: false,
            granted: false,
            source_keeps: false,
            ready: false,
            engine_done: false,
            finish_heard: false,
            attempts: 0,
            opened: Opened::default(),
        }
    }

    /// Takes a move up again from its journal. The driver then tells what it finds of the engine: the moment at which it stands
    /// (`EngineRebuilt`, `EngineReady`), or `EngineRunning`, or `EngineGone`.
    pub fn recover(options: Options, epoch: Epoch, records: &[Record]) -> Self {
        let mut machine = Self::new(options, epoch);
        let standing = word(records);
        if standing == Word::Unknown {
            return machine;
        }
        if records.last() == Some(&Record::Closed) {
            machine.finish(standing == Word::Released);
            return machine;
        }
        machine.prepared = records.contains(&Record::Prepared);
        machine.granted = records.contains(&Record::Granted);
        machine.push(Action::Persist(Record::Begun(epoch)));
        match standing {
            Word::Granted => {
                machine.set(Timer::Patience, machine.options.patience_ms);
                machine.state = State::Releasing;
            }
            Word::Released => {
                machine.send(ToSource::Released);
                machine.step(Action::Open, State::Opening);
            }
            Word::FailedBeforeRelease => {
                let why = records.iter().rev().find_map(|r| {
                    if let Record::Failed(why) = r {
                        Some(why.clone())
                    } else {
                        None
                    }
                });
                machine.certified(why.unwrap_or_default(), Vec::new());
            }
            _ => machine.fail("the target's agent was restarted before the grant".to_owned()),
        }
        machine
    }

    /// The next action, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The word for this side's Hello.
    pub fn word(&self) -> Word {
        match self.state {
            State::New => Word::Unknown,
            State::Opening
            | State::Resuming
            | State::Live
            | State::Ending(true)
            | State::Finished(true) => Word::Released,
            State::Failed { .. } | State::Ending(false) => Word::FailedBeforeRelease,
            State::Finished(false) if self.prepared => Word::FailedBeforeRelease,
            State::Finished(false) => Word::Unknown,
            _ if self.granted => Word::Granted,
            _ => Word::Undecided,
        }
    }

    /// What the move waits for and nobody knows how long, in words for the operator.
    pub fn waiting(&self) -> Option<&'static str> {
        match self.state {
            State::Prepared if self.link => Some(
                "everything is rebuilt behind a closed gate; the source has not granted the release",
            ),
            State::Prepared => {
                Some("everything is rebuilt behind a closed gate; the source cannot be reached")
            }
            State::Live => {
                Some("the container lives here; the source has not said yet that it is clean")
            }
            State::Failed { .. } => Some(
                "nothing of the container is here; the source has not said yet that it heard so",
            ),
            _ => None,
        }
    }

    /// True once the container lives here irrevocably.
    pub fn is_released(&self) -> bool {
        self.word() == Word::Released
    }

    /// True once the move has ended.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished(_))
    }

    /// What the world says. Events that do not fit the state (late, doubled, out of order) change nothing.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Message(message) => self.message(message),
            Event::PeerWord(word) => self.peer_word(word),
            Event::LinkUp => {
                self.link = true;
                if self.waits_for_link() {
                    self.clear(Timer::Link);
                }
            }
            Event::LinkDown => {
                self.link = false;
                if self.waits_for_link() {
                    self.set(Timer::Link, self.options.link_limit_ms);
                }
            }
            Event::Persisted(record) => self.persisted(&record),
            Event::NotPersisted(record, why) => self.not_persisted(&record, why),
            Event::Answered(answer) => {
                if self.state == State::New {
                    self.send(ToSource::Answer(answer));
                }
            }
            Event::Created => {
                if self.state == State::Preparing {
                    self.send(ToSource::Ready);
                    self.state = State::Receiving;
                }
            }
            Event::Complete => {
                if self.state == State::AwaitingFiles {
                    self.set(Timer::Patience, self.options.patience_ms);
                    self.step(Action::Rebuild, State::Rebuilding);
                }
            }
            Event::EngineRebuilt => match self.state {
                State::Rebuilding => self.step(Action::RebuildSockets, State::RebuildingSockets),
                // The hook came again, because the answer was lost or the agent was restarted.
                State::Releasing if !self.ready => self.push(Action::EngineRelease),
                _ => {}
            },
            Event::SocketsRebuilt(us) => {
                if self.state == State::RebuildingSockets {
                    self.step(Action::Persist(Record::Prepared), State::Recording(us));
                }
            }
            Event::EngineReady => self.engine_ready(),
            Event::Opened {
                open_us,
                announce_us,
                warnings,
            } => {
                if self.state == State::Opening {
                    self.opened.open_us = open_us;
                    self.opened.announce_us = announce_us;
                    self.opened.warnings.extend(warnings);
                    self.resume();
                }
            }
            Event::EngineRunning => self.engine_running(),
            Event::EngineGone(why) => self.engine_gone(why),
            Event::Failed(why) => self.failed(why),
            Event::Discarded(left) => {
                if let State::Discarding(why) = &mut self.state {
                    let why = std::mem::take(why);
                    self.step(
                        Action::Persist(Record::Failed(why.clone())),
                        State::Failing { why, left },
                    );
                }
            }
            Event::Timeout(timer) => self.timeout(timer),
            Event::ReleaseFenced => {
                if self.state == State::Prepared {
                    self.accept();
                }
            }
            Event::GiveUp => match self.state {
                State::New => self.decline("given up by the operator".to_owned()),
                _ => self.fail_if_possible("given up by the operator".to_owned()),
            },
        }
    }
}

/// Small words.
impl Machine {
    fn step(&mut self, action: Action, state: State) {
        self.push(action);
        self.state = state;
    }

    fn finish(&mut self, here: bool) {
        self.push(Action::Finish(here));
        self.state = State::Finished(here);
    }

    fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn send(&mut self, message: ToSource) {
        self.push(Action::Send(message));
    }

    fn set(&mut self, timer: Timer, ms: u64) {
        self.push(Action::SetTimer(timer, ms));
    }

    fn clear(&mut self, timer: Timer) {
        self.push(Action::ClearTimer(timer));
    }
}
