//! How the source goes through a move.
//!
//! ```text
//!  plan      Inspect -> Send(Ask) -> Decide -> Persist(Begun)
//!  attach    Attach -> Disarm -> Persist(Disarmed)      beside it: Send(Prepare) .. Ready
//!  precopy   Precopy(n) -> Send(Round(n)), n times -> Send(Freezing) -> Freeze (the engine starts, tasks run)
//!  drain     EngineStarting -> Drain -> EngineGoOn
//!  freeze    EngineFrozen -> Close -> EngineGoOn
//!  dump      EngineDumped -> DumpSockets -> Send(Sockets)
//!  transfer  SendRest -> Send(Dumped)
//!  grant     Prepared -> Grant (compare-and-set) -> Persist(Granted) -> Send(Grant)
//!  open      Released -> Persist(Released)
//!  clean     Clean -> (Opened) -> Send(Finish) -> Persist(Closed) -> Finish(Moved)
//! ```
//!
//! # Before the grant: presumed abort
//! As long as `Persist(Granted)` has not been handed out, anything that goes wrong ends in `Undo` at once, and `Kept` is written *after* it.
//! A journal without `Granted` means "kept" by itself: whoever recovers from it undoes, `Undo` may run twice, and the target can release only
//! on a word that was never written. So the record decides nothing, and a slow or full disk must not prolong the pause of a container that
//! is about to run on. `Abort` goes out with `Undo`, not after it, and nothing waits for its arrival: a target that never hears it gives up by
//! its own patience, which it may do at any time before it has read a grant.
//!
//! # From `Persist(Granted)` on
//! The record may be on disk from the moment it is handed out, and a life that finds it there grants again. So from there the order is the
//! reverse: `Kept` is durable *before* `Undo`, and only three things lead there:
//! - the target's certificate, `Failed` or `PeerWord(FailedBeforeRelease)`. It is durable at the target until `Finish`, so if our own disk
//!   refuses `Kept` we undo all the same: a later life asks and hears it again;
//! - the operator's `Reclaim`, who knows that the target is fenced;
//! - the disk refused `Granted`. The word was never sent, but may be on disk: `Abort` goes out, and the target's certificate or a durable
//!   `Kept` ends the wait, whichever comes first.
//!
//! Nothing else does: not a lost link, not a dead engine, not `Cancel`, not a target that says `Unknown`.
mod peer;
mod steps;
mod trouble;

use super::{Action, Event, Options, Outcome, Phase, Record, Timer};
use crate::{
    id::Epoch,
    proto::{Answer, Question, ToTarget, Word},
};
use std::collections::VecDeque;

/// The source's machine.
#[derive(Clone, Debug)]
pub struct Machine {
    options: Options,
    epoch: Epoch,
    state: State,
    actions: VecDeque<Action>,
    /// The control connection stands.
    link: bool,
    /// An attempt at the control connection has come to an end, good or bad.
    dialled: bool,
    /// The target's Hello was heard in this life.
    met: bool,
    /// The target has been spoken to, so it is told how the move ends.
    asked: bool,
    /// The target holds nothing of this move any more.
    target_clear: bool,
    /// The target has said how its opening went.
    opened: bool,
    /// `Granted` is, or may be, on disk.
    grant_written: bool,
    /// What moves, once inspected, and what the source itself objects.
    question: Option<(Box<Question>, Vec<String>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    New,
    Inspecting,
    Asking,
    Deciding(Box<Answer>),
    /// `Begun` is being written.
    Beginning,
    Attaching {
        here: Attaching,
        target_ready: bool,
    },
    Precopying(u32),
    /// The engine's dump was started; the tasks run.
    Starting,
    Draining,
    Freezing,
    Closing,
    /// The engine writes.
    Dumping,
    Reading,
    Sending,
    /// All is sent; the target rebuilds.
    Rebuilding,
    /// Compare-and-set.
    Swapping,
    /// `Granted` is being written. From here on: see the module's text.
    Recording,
    Granted,
    /// `Kept` is being written, nothing undone yet.
    TakingBack {
        why: String,
        certified: bool,
    },
    Undoing {
        why: String,
        recorded: bool,
    },
    /// Undone; `Kept` is being written.
    Keeping(String),
    /// Kept; the target's word that it is clear is awaited for a while.
    Parting(String),
    /// `Released` is being written.
    Hearing,
    Cleaning,
    /// Clean; the target's `Opened` is awaited for a while.
    Settling,
    /// `Closed` is being written.
    Ending(Outcome),
    Finished(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attaching {
    Gate,
    Disarm,
    Record,
    Ready,
}

/// What a journal says in a Hello.
pub fn word(records: &[Record]) -> Word {
    let mut word = Word::Unknown;
    for record in records {
        word = match record {
            Record::Begun(_) | Record::Disarmed if word != Word::Unknown => word,
            Record::Begun(_) | Record::Disarmed => Word::Undecided,
            Record::Granted => Word::Granted,
            Record::Released => Word::Released,
            Record::Kept(_) => Word::Kept,
            Record::Closed if word == Word::Released => Word::Moved,
            Record::Closed => word,
        };
    }
    word
}

impl Machine {
    /// A move that begins with [`Event::Start`].
    pub fn new(options: Options, epoch: Epoch) -> Self {
        Self {
            options,
            epoch,
            state: State::New,
            actions: VecDeque::new(),
            link: false,
            dialled: false,
            met: false,
            asked: false,
            target_clear: false,
            opened: false,
            grant_written: false,
            question: None,
        }
    }

    /// Takes a move up again from its journal. The hooks of an engine that lives still present themselves again.
    pub fn recover(options: Options, epoch: Epoch, records: &[Record]) -> Self {
        let mut machine = Self::new(options, epoch);
        machine.asked = true;
        machine.grant_written = records.contains(&Record::Granted);
        let kept = records.iter().rev().find_map(|r| {
            if let Record::Kept(why) = r {
                Some(why.clone())
            } else {
                None
            }
        });
        let standing = word(records);
        if records.last() == Some(&Record::Closed) {
            machine.finish(if standing == Word::Moved {
                Outcome::Moved
            } else {
                Outcome::Kept(kept.unwrap_or_default())
            });
            return machine;
        }
        if standing == Word::Unknown {
            machine.finish(Outcome::Kept(
                "the agent was restarted before anything was begun".to_owned(),
            ));
            return machine;
        }
        machine.push(Action::Persist(Record::Begun(epoch)));
        match standing {
            Word::Granted => machine.wait_for_release(),
            Word::Released | Word::Moved => machine.clean(),
            Word::Kept => machine.undo(kept.unwrap_or_default(), true),
            _ => machine.undo(
                "the source's agent was restarted before the grant".to_owned(),
                false,
            ),
        }
        machine
    }

    /// The next action, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The word for this side's Hello.
    pub fn word(&self) -> Word {
        match &self.state {
            State::New
            | State::Inspecting
            | State::Asking
            | State::Deciding(_)
            | State::Beginning => Word::Unknown,
            State::Granted | State::TakingBack { .. } | State::Hearing => Word::Granted,
            State::Cleaning => Word::Released,
            State::Settling | State::Ending(Outcome::Moved) | State::Finished(Outcome::Moved) => {
                Word::Moved
            }
            State::Undoing { .. }
            | State::Keeping(_)
            | State::Parting(_)
            | State::Ending(_)
            | State::Finished(_) => Word::Kept,
            _ => Word::Undecided,
        }
    }

    /// True from the moment at which a cancellation comes too late.
    pub fn is_granted(&self) -> bool {
        use State::*;
        matches!(
            self.state,
            Recording
                | Granted
                | TakingBack { .. }
                | Hearing
                | Cleaning
                | Settling
                | Ending(Outcome::Moved)
                | Finished(Outcome::Moved)
        )
    }

    /// What the move waits for and nobody knows how long, in words for the operator.
    pub fn waiting(&self) -> Option<&'static str> {
        match &self.state {
            State::Granted if self.link => {
                Some("the target may release the container, and has not said yet that it did")
            }
            State::Granted => Some(
                "the target may have released the container, and cannot be reached: the source's copy stays stopped until it is heard",
            ),
            State::TakingBack { .. } => Some("the container stays here, once that is on disk"),
            State::Hearing => Some(
                "the container lives at the target; the source's copy goes, once that is on disk",
            ),
            _ => None,
        }
    }

    /// The outcome, once the move has ended.
    pub fn outcome(&self) -> Option<&Outcome> {
        if let State::Finished(outcome) = &self.state {
            Some(outcome)
        } else {
            None
        }
    }

    /// What the world says. Events that do not fit the state (late, doubled, out of order) change nothing.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Start if self.state == State::New => {
                self.phase(Phase::Plan);
                if !self.link {
                    self.set(Timer::Link, self.link_limit_ms());
                }
                self.step(Action::Inspect, State::Inspecting);
            }
            Event::Start | Event::Left(_) => {}
            Event::Done(done) => self.done(done),
            Event::Failed(why) => self.failed(why),
            Event::NotPersisted(record, why) => self.not_persisted(&record, why),
            Event::Persisted(record) => self.persisted(&record),
            Event::Message(message) => self.message(message),
            Event::PeerWord(word) => self.peer_word(word),
            Event::LinkUp => {
                self.link = true;
                self.dialled = true;
                if self.may_undo() {
                    self.clear(Timer::Link);
                }
            }
            Event::LinkDown => {
                // Told again at each attempt that fails: the limit runs from the first.
                let was = std::mem::replace(&mut self.link, false);
                let first = !std::mem::replace(&mut self.dialled, true);
                if (was || first) && self.may_undo() {
                    self.set(Timer::Link, self.link_limit_ms());
                }
            }
            Event::EngineStarting => self.engine_starting(),
            Event::EngineFrozen => self.engine_frozen(),
            Event::EngineDumped if self.state == State::Dumping => {
                self.step(Action::DumpSockets, State::Reading)
            }
            Event::EngineDumped => {}
            Event::EngineGone(why) if self.engine_is_used() => {
                self.give_up(format!("the engine ended: {why}"))
            }
            Event::EngineGone(_) => {}
            Event::Timeout(timer) => self.timeout(timer),
            Event::Cancel(why) if self.may_undo() => self.give_up(why),
            Event::Cancel(_) => {}
            Event::Reclaim if self.state == State::Granted => self.take_back(
                "taken back by the operator, who says that the target is fenced".to_owned(),
                false,
            ),
            Event::Reclaim => {}
        }
    }
}

/// Small words.
impl Machine {
    fn step(&mut self, action: Action, state: State) {
        self.push(action);
        self.state = state;
    }

    fn finish(&mut self, outcome: Outcome) {
        self.push(Action::Finish(outcome.clone()));
        self.state = State::Finished(outcome);
    }

    fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn send(&mut self, message: ToTarget) {
        self.push(Action::Send(message));
    }

    fn phase(&mut self, phase: Phase) {
        self.push(Action::Phase(phase));
    }

    fn set(&mut self, timer: Timer, ms: u64) {
        self.push(Action::SetTimer(timer, ms));
    }

    fn clear(&mut self, timer: Timer) {
        self.push(Action::ClearTimer(timer));
    }
}
