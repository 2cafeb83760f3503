//! Steps of the good path.
use super::{Attaching, Machine, State};
use crate::{
    machine::source::{Action, Done, Outcome, Phase, Record, Timer},
    proto::{Answer, ToTarget},
};

/// A runtime that waits for its images gives up after minutes (podman: 240 s): it is started early only where they come soon.
const FREEZING_LIMIT_MS: u64 = 10_000;

impl Machine {
    pub(super) fn done(&mut self, done: Done) {
        match (done, &mut self.state) {
            (Done::Inspected(question, objections), State::Inspecting) => {
                self.question = Some((question.clone(), objections));
                self.asked = true;
                self.send(ToTarget::Ask(question));
                self.state = State::Asking;
            }
            (Done::Decided(objections), State::Deciding(answer)) => {
                let mut answer = std::mem::take(answer);
                let own = self.question.iter().flat_map(|(_, own)| own.clone());
                let theirs = std::mem::take(&mut answer.objections);
                // A plan repeats what both sides said by themselves.
                for objection in own.chain(objections).chain(theirs) {
                    if !answer.objections.contains(&objection) {
                        answer.objections.push(objection);
                    }
                }
                self.decided(answer);
            }
            (
                Done::Attached,
                State::Attaching {
                    here: here @ Attaching::Gate,
                    ..
                },
            ) => {
                *here = Attaching::Disarm;
                self.push(Action::Disarm);
            }
            (
                Done::Disarmed,
                State::Attaching {
                    here: here @ Attaching::Disarm,
                    ..
                },
            ) => {
                *here = Attaching::Record;
                self.push(Action::Persist(Record::Disarmed));
            }
            (
                Done::Round {
                    round,
                    more,
                    ms,
                    blackout_ms,
                },
                State::Precopying(now),
            ) if round == *now => {
                self.send(ToTarget::Round(round));
                if more && round < self.options.precopy_rounds {
                    self.step(Action::Precopy(round + 1), State::Precopying(round + 1));
                } else {
                    self.freeze(ms, blackout_ms);
                }
            }
            (Done::Drained, State::Draining) => {
                self.phase(Phase::Freeze);
                self.step(Action::EngineGoOn, State::Freezing);
            }
            (Done::Closed, State::Closing) => {
                self.phase(Phase::Dump);
                self.step(Action::EngineGoOn, State::Dumping);
            }
            (Done::Dumped(sockets), State::Reading) => {
                self.send(*sockets);
                self.phase(Phase::Transfer);
                self.step(Action::SendRest, State::Sending);
            }
            (Done::Sent { files, bytes }, State::Sending) => {
                self.send(ToTarget::Dumped { files, bytes });
                self.phase(Phase::Rebuild);
                self.state = State::Rebuilding;
            }
            (Done::Granted, State::Swapping) => {
                self.grant_written = true;
                self.step(Action::Persist(Record::Granted), State::Recording);
            }
            (Done::Undone, State::Undoing { why, recorded }) => {
                let why = std::mem::take(why);
                if *recorded {
                    self.part(why);
                } else {
                    self.push(Action::Persist(Record::Kept(why.clone())));
                    self.state = State::Keeping(why);
                }
            }
            (Done::Cleaned, State::Cleaning) => self.settle(),
            _ => {}
        }
    }

    pub(super) fn decided(&mut self, answer: Box<Answer>) {
        if self.options.dry_run {
            self.send(ToTarget::Finish);
            self.finish(Outcome::Planned(answer));
        } else if !answer.objections.is_empty() {
            self.refuse(answer.objections);
        } else {
            self.step(Action::Persist(Record::Begun(self.epoch)), State::Beginning);
        }
    }

    pub(super) fn persisted(&mut self, record: &Record) {
        match (record, &mut self.state) {
            (Record::Begun(_), State::Beginning) => {
                self.phase(Phase::Attach);
                self.push(Action::Attach);
                if let Some((question, _)) = &self.question {
                    self.actions
                        .push_back(Action::Send(ToTarget::Prepare(question.clone())));
                }
                self.state = State::Attaching {
                    here: Attaching::Gate,
                    target_ready: false,
                };
            }
            (
                Record::Disarmed,
                State::Attaching {
                    here: here @ Attaching::Record,
                    target_ready,
                },
            ) => {
                *here = Attaching::Ready;
                if *target_ready {
                    self.precopy();
                }
            }
            (Record::Granted, State::Recording) => {
                self.send(ToTarget::Grant(self.epoch));
                self.phase(Phase::Open);
                self.wait_for_release();
            }
            (Record::Kept(_), State::TakingBack { why, .. }) => {
                let why = std::mem::take(why);
                self.undo(why, true);
            }
            (Record::Kept(_), State::Keeping(why)) => {
                let why = std::mem::take(why);
                self.part(why);
            }
            (Record::Released, State::Hearing) => self.clean(),
            (Record::Closed, State::Ending(outcome)) => {
                let outcome = outcome.clone();
                self.finish(outcome);
            }
            _ => {}
        }
    }

    pub(super) fn precopy(&mut self) {
        self.phase(Phase::Precopy);
        self.step(Action::Precopy(1), State::Precopying(1));
    }

    /// The last round took `round_ms`; `blackout_ms` are predicted.
    fn freeze(&mut self, round_ms: u64, blackout_ms: u64) {
        if let Some(limit) = self.options.max_blackout_ms
            && blackout_ms > limit
        {
            return self.give_up(format!(
                "a blackout of about {blackout_ms} ms is predicted after the last round of copying, --max-blackout allows {limit} ms: \
                 allow more, or move when the container writes less to its memory"
            ));
        }
        if round_ms <= FREEZING_LIMIT_MS {
            self.send(ToTarget::Freezing);
        }
        self.step(Action::Freeze, State::Starting);
    }

    pub(super) fn engine_starting(&mut self) {
        match self.state {
            State::Starting if self.options.drain_limit_ms > 0 => {
                self.phase(Phase::Drain);
                self.step(Action::Drain, State::Draining);
            }
            State::Starting => {
                self.phase(Phase::Freeze);
                self.step(Action::EngineGoOn, State::Freezing);
            }
            // The hook came again because the answer was lost.
            State::Freezing => self.push(Action::EngineGoOn),
            _ => {}
        }
    }

    pub(super) fn engine_frozen(&mut self) {
        match self.state {
            State::Starting | State::Freezing => {
                if let Some(limit) = self.options.max_blackout_ms {
                    self.set(Timer::Blackout, limit);
                }
                if self.state == State::Starting {
                    self.phase(Phase::Freeze);
                }
                self.step(Action::Close, State::Closing);
            }
            State::Dumping => self.push(Action::EngineGoOn),
            _ => {}
        }
    }

    /// Granted, durably: nothing but the target's word (or the operator) ends this.
    pub(super) fn wait_for_release(&mut self) {
        self.clear(Timer::Blackout);
        self.clear(Timer::Link);
        self.set(Timer::Ask, self.options.ask_ms);
        self.state = State::Granted;
    }

    pub(super) fn clean(&mut self) {
        self.clear(Timer::Ask);
        self.phase(Phase::Clean);
        self.step(Action::Clean, State::Cleaning);
    }

    pub(super) fn settle(&mut self) {
        if self.opened {
            self.end(Outcome::Moved, true);
        } else {
            self.set(Timer::Ask, self.options.parting_ms);
            self.state = State::Settling;
        }
    }

    pub(super) fn end(&mut self, outcome: Outcome, tell: bool) {
        self.clear(Timer::Ask);
        if tell {
            self.send(ToTarget::Finish);
        }
        self.step(Action::Persist(Record::Closed), State::Ending(outcome));
    }
}
