//! What goes wrong.
use super::{Machine, State};
use crate::{
    machine::source::{Action, Outcome, Phase, Record, Timer},
    proto::ToTarget,
};

impl Machine {
    pub(super) fn failed(&mut self, why: String) {
        match &self.state {
            State::Inspecting | State::Asking | State::Deciding(_) => self.refuse(vec![why]),
            State::Recording => self.not_persisted(&Record::Granted, why),
            State::Hearing => self.not_persisted(&Record::Released, why),
            State::Ending(_) => self.not_persisted(&Record::Closed, why),
            State::TakingBack { .. } | State::Keeping(_) => {
                self.not_persisted(&Record::Kept(String::new()), why)
            }
            _ if self.may_undo() => self.give_up(why),
            _ => {}
        }
    }

    pub(super) fn not_persisted(&mut self, record: &Record, why: String) {
        let refused = format!("the journal could not be written: {why}");
        let may_undo = self.may_undo();
        match (record, &mut self.state) {
            (Record::Granted, State::Recording) => {
                self.send(ToTarget::Abort {
                    why: refused.clone(),
                });
                self.take_back(refused, false);
            }
            (
                Record::Kept(_),
                State::TakingBack {
                    why,
                    certified: true,
                },
            ) => {
                let why = std::mem::take(why);
                self.undo(why, false);
            }
            (Record::Kept(_), State::TakingBack { .. }) | (Record::Released, State::Hearing) => {
                self.set(Timer::Ask, self.options.ask_ms)
            }
            // `Granted` may be on disk: the target keeps its certificate until `Finish`, and that must not go out before our own word.
            (Record::Kept(_), State::Keeping(_)) if self.grant_written => {
                self.set(Timer::Ask, self.options.ask_ms);
            }
            // Presumed: a later life undoes once more, which changes nothing.
            (Record::Kept(_), State::Keeping(why)) => {
                let why = std::mem::take(why);
                self.part(why);
            }
            (Record::Closed, State::Ending(outcome)) => {
                let outcome = outcome.clone();
                self.finish(outcome);
            }
            _ if may_undo => self.give_up(refused),
            _ => {}
        }
    }

    /// How long the machine goes on without a link.
    pub(super) fn link_limit_ms(&self) -> u64 {
        match (self.dialled, self.has_begun()) {
            (false, _) => self.options.first_link_limit_ms,
            (true, false) => self.options.planning_link_limit_ms,
            (true, true) => self.options.link_limit_ms,
        }
    }

    pub(super) fn timeout(&mut self, timer: Timer) {
        let unreachable = !self.link && self.may_undo();
        match (timer, &mut self.state) {
            (Timer::Link, _) if unreachable => {
                let why = format!(
                    "the target could not be reached for {} ms",
                    self.link_limit_ms()
                );
                if self.has_begun() {
                    self.give_up(why)
                } else {
                    self.refuse(vec![why])
                }
            }
            (
                Timer::Blackout,
                State::Closing
                | State::Dumping
                | State::Reading
                | State::Sending
                | State::Rebuilding
                | State::Swapping,
            ) => {
                let limit = self.options.max_blackout_ms.unwrap_or_default();
                self.give_up(format!(
                    "the blackout reached its limit of {limit} ms (--max-blackout)"
                ));
            }
            (Timer::Ask, State::Granted) => {
                // A repeated grant is a question: the target answers it with what it has said already.
                if self.link {
                    self.send(ToTarget::Grant(self.epoch));
                }
                self.set(Timer::Ask, self.options.ask_ms);
            }
            (Timer::Ask, State::TakingBack { why, .. } | State::Keeping(why)) => {
                let record = Record::Kept(why.clone());
                self.push(Action::Persist(record));
            }
            (Timer::Ask, State::Hearing) => self.push(Action::Persist(Record::Released)),
            (Timer::Ask, State::Parting(why)) => {
                let outcome = Outcome::Kept(std::mem::take(why));
                self.end(outcome, false);
            }
            (Timer::Ask, State::Settling) => self.end(Outcome::Moved, true),
            _ => {}
        }
    }

    /// Nothing was begun: nothing to undo.
    pub(super) fn refuse(&mut self, reasons: Vec<String>) {
        self.clear(Timer::Link);
        if self.asked {
            self.send(ToTarget::Finish);
        }
        self.finish(Outcome::Refused(reasons));
    }

    pub(super) fn give_up(&mut self, why: String) {
        match self.state {
            State::New | State::Inspecting | State::Asking | State::Deciding(_) => {
                self.clear(Timer::Link);
                if self.asked {
                    self.send(ToTarget::Finish);
                }
                self.finish(Outcome::Kept(why));
            }
            _ => self.undo(why, false),
        }
    }

    pub(super) fn undo(&mut self, why: String, recorded: bool) {
        for timer in [Timer::Link, Timer::Blackout, Timer::Ask] {
            self.clear(timer);
        }
        self.phase(Phase::Clean);
        if !self.target_clear {
            self.send(ToTarget::Abort { why: why.clone() });
        }
        self.step(Action::Undo, State::Undoing { why, recorded });
    }

    pub(super) fn take_back(&mut self, why: String, certified: bool) {
        self.clear(Timer::Ask);
        self.push(Action::Persist(Record::Kept(why.clone())));
        self.state = State::TakingBack { why, certified };
    }

    pub(super) fn part(&mut self, why: String) {
        if self.target_clear {
            self.end(Outcome::Kept(why), true);
        } else {
            self.set(Timer::Ask, self.options.parting_ms);
            self.state = State::Parting(why);
        }
    }

    pub(super) fn may_undo(&self) -> bool {
        use State::*;
        match self.state {
            New
            | Inspecting
            | Asking
            | Deciding(_)
            | Beginning
            | Attaching { .. }
            | Precopying(_)
            | Starting
            | Draining
            | Freezing
            | Closing
            | Dumping
            | Reading
            | Sending
            | Rebuilding
            | Swapping => true,
            Recording
            | Granted
            | TakingBack { .. }
            | Undoing { .. }
            | Keeping(_)
            | Parting(_)
            | Hearing
            | Cleaning
            | Settling
            | Ending(_)
            | Finished(_) => false,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        !matches!(
            self.state,
            State::New | State::Inspecting | State::Asking | State::Deciding(_)
        )
    }

    pub(super) fn engine_is_used(&self) -> bool {
        use State::*;
        matches!(
            self.state,
            Starting
                | Draining
                | Freezing
                | Closing
                | Dumping
                | Reading
                | Sending
                | Rebuilding
                | Swapping
        )
    }
}
