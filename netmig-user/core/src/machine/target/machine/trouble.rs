//! What goes wrong.
use super::{Machine, OPEN_ATTEMPTS, State};
use crate::{
    machine::target::{Action, Record, Timer},
    proto::ToSource,
};

impl Machine {
    pub(super) fn engine_gone(&mut self, why: String) {
        match &self.state {
            State::Rebuilding
            | State::RebuildingSockets
            | State::Recording(_)
            | State::Prepared
            | State::Accepting
            | State::Releasing
            | State::Deciding(_) => {
                self.fail_if_possible(format!("the engine ended: {why}"));
            }
            State::Opening if !self.engine_done => {
                self.engine_done = true;
                self.died(why);
            }
            State::Resuming => {
                self.died(why);
                self.live();
            }
            _ => {}
        }
    }

    pub(super) fn died(&mut self, why: String) {
        self.opened.warnings.push(format!(
            "the container died at the target after its release: {why}"
        ));
    }

    pub(super) fn failed(&mut self, why: String) {
        match &self.state {
            State::New => self.decline(why),
            State::Opening => {
                self.attempts += 1;
                if self.attempts < OPEN_ATTEMPTS {
                    self.push(Action::Open);
                } else {
                    self.opened.warnings.push(format!(
                        "the gate could not be opened, the container runs behind it: {why}"
                    ));
                    self.resume();
                }
            }
            State::Resuming => self.engine_gone(why),
            State::Deciding(_) => self.not_persisted(&Record::Released, why),
            State::Failing { why: own, .. } => {
                let record = Record::Failed(own.clone());
                self.not_persisted(&record, why);
            }
            State::Ending(_) => self.not_persisted(&Record::Closed, why),
            _ => self.fail_if_possible(why),
        }
    }

    pub(super) fn not_persisted(&mut self, record: &Record, why: String) {
        match (record, &mut self.state) {
            (Record::Released, State::Deciding(Some(own))) => {
                let own = std::mem::take(own);
                self.fail(own);
            }
            (Record::Released, State::Deciding(None))
            | (Record::Failed(_), State::Failing { .. }) => {
                self.set(Timer::Retry, self.options.retry_ms)
            }
            (Record::Closed, State::Ending(here)) => {
                let here = *here;
                self.finish(here);
            }
            _ => self.fail_if_possible(format!("the journal could not be written: {why}")),
        }
    }

    pub(super) fn timeout(&mut self, timer: Timer) {
        match (timer, &self.state) {
            (
                Timer::Patience,
                State::Rebuilding
                | State::RebuildingSockets
                | State::Recording(_)
                | State::Prepared
                | State::Accepting
                | State::Releasing,
            ) => {
                let limit = self.options.patience_ms;
                self.fail(format!(
                    "not released within {limit} ms of the engine's start"
                ));
            }
            (Timer::Patience, State::Resuming) => {
                let limit = self.options.patience_ms;
                let what =
                    format!("the runtime has not said within {limit} ms that the container runs");
                self.opened.warnings.push(what);
                self.live();
            }
            (Timer::Link, State::New) if !self.link => self.finish(false),
            (Timer::Link, _) if !self.link && self.waits_for_link() => {
                let limit = self.options.link_limit_ms;
                self.fail(format!("the source could not be reached for {limit} ms"));
            }
            (Timer::Retry, State::Deciding(None)) => self.push(Action::Persist(Record::Released)),
            (Timer::Retry, State::Deciding(Some(why))) => {
                let why = why.clone();
                self.fail(why);
            }
            (Timer::Retry, State::Failing { why, .. }) => {
                let record = Record::Failed(why.clone());
                self.push(Action::Persist(record));
            }
            _ => {}
        }
    }

    /// Nothing was made here, and nothing need be remembered.
    pub(super) fn decline(&mut self, why: String) {
        self.send(ToSource::Failed {
            why,
            left: Vec::new(),
        });
        self.finish(false);
    }

    /// Nothing is here any more, and the source does not know.
    pub(super) fn say_ended(&mut self) {
        self.send(ToSource::Failed {
            why: "the move has ended at the target".to_owned(),
            left: Vec::new(),
        });
    }

    /// Fails where nothing forbids it: before the release has been said.
    pub(super) fn fail_if_possible(&mut self, why: String) {
        match &mut self.state {
            State::New
            | State::Opening
            | State::Resuming
            | State::Live
            | State::Ending(_)
            | State::Finished(_) => {}
            State::Discarding(_) | State::Failing { .. } | State::Failed { .. } => {}
            State::Deciding(reason) => {
                reason.get_or_insert(why);
            }
            _ => self.fail(why),
        }
    }

    pub(super) fn fail(&mut self, why: String) {
        for timer in [Timer::Patience, Timer::Link, Timer::Retry] {
            self.clear(timer);
        }
        self.step(Action::Discard, State::Discarding(why));
    }

    pub(super) fn before_grant(&self) -> bool {
        self.waits_for_link() || matches!(self.state, State::Recording(_) | State::Prepared)
    }

    pub(super) fn waits_for_link(&self) -> bool {
        use State::*;
        matches!(
            self.state,
            New | Beginning(_)
                | Preparing
                | Receiving
                | AwaitingFiles
                | Rebuilding
                | RebuildingSockets
        )
    }
}
