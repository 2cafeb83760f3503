//! Steps of the good path.
use super::{Machine, State};
use crate::{
    machine::target::{Action, Record, Timer},
    proto::ToSource,
};

impl Machine {
    pub(super) fn persisted(&mut self, record: &Record) {
        match (record, &mut self.state) {
            (Record::Begun(_), State::Beginning(question)) => {
                let question = question.clone();
                self.step(Action::Prepare(question), State::Preparing);
            }
            (Record::Prepared, State::Recording(rebuild_us)) => {
                let rebuild_us = *rebuild_us;
                self.prepared = true;
                self.clear(Timer::Link);
                self.send(ToSource::Prepared { rebuild_us });
                self.state = State::Prepared;
            }
            (Record::Granted, State::Accepting) => {
                self.granted = true;
                self.state = State::Releasing;
                if self.ready {
                    self.release();
                } else {
                    self.push(Action::EngineRelease);
                }
            }
            (Record::Released, State::Deciding(None)) => {
                self.send(ToSource::Released);
                self.step(Action::Open, State::Opening);
            }
            (Record::Released, State::Deciding(Some(why))) => {
                let why = std::mem::take(why);
                self.fail(why);
            }
            (Record::Failed(_), State::Failing { why, left }) => {
                let (why, left) = (std::mem::take(why), std::mem::take(left));
                self.certified(why, left);
            }
            (Record::Closed, State::Ending(here)) => {
                let here = *here;
                self.finish(here);
            }
            _ => {}
        }
    }

    pub(super) fn accept(&mut self) {
        self.step(Action::Persist(Record::Granted), State::Accepting);
    }

    pub(super) fn engine_ready(&mut self) {
        let again = std::mem::replace(&mut self.ready, true);
        match self.state {
            State::Releasing => self.release(),
            State::Resuming if !self.engine_done => self.push(Action::EngineResume),
            // The hook came again because the answer was lost.
            State::Live if again => self.push(Action::EngineResume),
            _ => {}
        }
    }

    pub(super) fn release(&mut self) {
        self.clear(Timer::Patience);
        self.step(Action::Persist(Record::Released), State::Deciding(None));
    }

    /// The gate is open, or will not open.
    pub(super) fn resume(&mut self) {
        self.state = State::Resuming;
        if self.engine_done {
            return self.live();
        }
        // An earlier life may have resumed it, and its end may come to nobody's ears.
        self.set(Timer::Patience, self.options.patience_ms);
        if self.ready {
            self.push(Action::EngineResume);
        }
    }

    pub(super) fn engine_running(&mut self) {
        match self.state {
            State::Opening => self.engine_done = true,
            State::Resuming => self.live(),
            _ => {}
        }
    }

    pub(super) fn live(&mut self) {
        self.engine_done = true;
        self.clear(Timer::Patience);
        self.state = State::Live;
        self.say_opened();
        if self.finish_heard {
            self.source_is_clean();
        }
    }

    /// `Failed` is durable.
    pub(super) fn certified(&mut self, why: String, left: Vec<String>) {
        self.state = State::Failed { why, left };
        self.say_failed();
    }

    pub(super) fn say_failed(&mut self) {
        if let State::Failed { why, left } = &self.state {
            let message = ToSource::Failed {
                why: why.clone(),
                left: left.clone(),
            };
            self.send(message);
            if self.source_keeps || !self.prepared {
                self.step(Action::Persist(Record::Closed), State::Ending(false));
            }
        }
    }
}
