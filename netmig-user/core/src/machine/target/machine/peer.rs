//! What the source says.
use super::{Machine, Opened, State};
use crate::{
    machine::target::{Action, Record},
    proto::{ToSource, ToTarget, Word},
};

impl Machine {
    pub(super) fn message(&mut self, message: ToTarget) {
        if matches!(
            self.state,
            State::Opening | State::Resuming | State::Live | State::Ending(true)
        ) {
            return self.message_after_release(message);
        }
        if let State::Failed { .. } = self.state {
            self.source_keeps |= matches!(message, ToTarget::Abort { .. } | ToTarget::Finish);
            return self.say_failed();
        }
        if let State::Ending(false) | State::Finished(false) = self.state {
            if message != ToTarget::Finish {
                self.say_ended();
            }
            return;
        }
        match message {
            ToTarget::Ask(question) if self.state == State::New => {
                self.push(Action::Answer(question))
            }
            ToTarget::Prepare(question) if self.state == State::New => {
                self.step(
                    Action::Persist(Record::Begun(self.epoch)),
                    State::Beginning(question),
                );
            }
            // A round's end changes nothing here: files and pages are where they belong already.
            ToTarget::Freezing if self.state == State::Receiving => self.push(Action::Warm),
            ToTarget::Sockets(_) | ToTarget::Remembered(_) if self.state == State::Receiving => {
                self.push(Action::Store(Box::new(message)))
            }
            ToTarget::Remembered(_) if self.state == State::Prepared => {
                self.push(Action::Store(Box::new(message)))
            }
            ToTarget::Dumped { files, bytes } if self.state == State::Receiving => {
                self.step(Action::AwaitFiles { files, bytes }, State::AwaitingFiles);
            }
            ToTarget::Grant(_) if self.state == State::Prepared => self.accept(),
            ToTarget::Abort { why } => {
                self.source_keeps = true;
                match self.state {
                    State::New => self.decline(why),
                    _ => self.fail_if_possible(format!("the source keeps the container: {why}")),
                }
            }
            ToTarget::Finish => {
                self.source_keeps = true;
                match self.state {
                    State::New => self.finish(false),
                    _ => self.fail_if_possible("the source has ended the move".to_owned()),
                }
            }
            ToTarget::Ask(_)
            | ToTarget::Prepare(_)
            | ToTarget::Round(_)
            | ToTarget::Freezing
            | ToTarget::Sockets(_)
            | ToTarget::Remembered(_)
            | ToTarget::Dumped { .. }
            | ToTarget::Grant(_) => {}
        }
    }

    pub(super) fn message_after_release(&mut self, message: ToTarget) {
        match message {
            ToTarget::Finish => self.source_is_clean(),
            // A question, or a source that does not know yet.
            ToTarget::Grant(_) | ToTarget::Abort { .. } => self.say_released(),
            _ => {}
        }
    }

    pub(super) fn peer_word(&mut self, word: Word) {
        let first = !std::mem::replace(&mut self.met, true);
        match &self.state {
            State::New | State::Finished(_) | State::Ending(false) => {}
            State::Opening | State::Resuming | State::Live | State::Ending(true) => {
                self.say_released();
                if word == Word::Moved {
                    self.source_is_clean();
                }
            }
            State::Failed { .. } => {
                self.source_keeps |= word == Word::Kept;
                self.say_failed();
            }
            State::Prepared if word == Word::Granted => self.accept(),
            _ if word == Word::Kept => {
                self.source_keeps = true;
                self.fail_if_possible("the source keeps the container".to_owned());
            }
            _ if !first && self.before_grant() => {
                self.fail("the source's agent was restarted before the grant".to_owned())
            }
            _ => {}
        }
    }

    pub(super) fn say_released(&mut self) {
        self.send(ToSource::Released);
        if self.state == State::Live || self.state == State::Ending(true) {
            self.say_opened();
        }
    }

    pub(super) fn say_opened(&mut self) {
        let Opened {
            open_us,
            announce_us,
            warnings,
        } = self.opened.clone();
        self.send(ToSource::Opened {
            open_us,
            announce_us,
            warnings,
        });
    }

    pub(super) fn source_is_clean(&mut self) {
        self.finish_heard = true;
        if self.state == State::Live {
            self.step(Action::Persist(Record::Closed), State::Ending(true));
        }
    }
}
