//! What the target says.
use super::{Attaching, Machine, State};
use crate::{
    machine::source::{Action, Outcome, Phase, Record, Timer},
    proto::{ToSource, ToTarget, Word},
};

impl Machine {
    pub(super) fn message(&mut self, message: ToSource) {
        match message {
            ToSource::Answer(answer) => {
                if self.state == State::Asking {
                    self.step(Action::Decide(answer.clone()), State::Deciding(answer));
                }
            }
            ToSource::Ready => match &mut self.state {
                State::Attaching { here, target_ready } => {
                    *target_ready = true;
                    if *here == Attaching::Ready {
                        self.precopy();
                    }
                }
                _ => self.correct(),
            },
            ToSource::Prepared { .. } => match self.state {
                State::Rebuilding => {
                    self.phase(Phase::Grant);
                    self.step(Action::Grant, State::Swapping);
                }
                _ => self.correct(),
            },
            ToSource::Released => self.released(),
            ToSource::Opened { .. } => {
                self.opened = true;
                if self.state == State::Settling {
                    self.end(Outcome::Moved, true);
                }
            }
            ToSource::Failed { why, .. } => {
                self.target_clear = true;
                self.target_failed(why);
            }
        }
    }

    /// A target that goes on although the container stays here has not heard it.
    pub(super) fn correct(&mut self) {
        let why = match &self.state {
            State::Undoing { why, .. } | State::Keeping(why) | State::Parting(why) => why.clone(),
            State::Ending(Outcome::Kept(why)) | State::Finished(Outcome::Kept(why)) => why.clone(),
            _ => return,
        };
        self.send(ToTarget::Abort { why });
    }

    pub(super) fn is_keeping(&self) -> bool {
        matches!(
            self.state,
            State::Undoing { .. } | State::Keeping(_) | State::Parting(_)
        )
    }

    pub(super) fn released(&mut self) {
        match self.state {
            // Not granted, but stopped here: an operator released the container at the target. It lives there.
            State::Rebuilding
            | State::Swapping
            | State::Recording
            | State::Granted
            | State::TakingBack { .. } => {
                for timer in [Timer::Blackout, Timer::Link, Timer::Ask] {
                    self.clear(timer);
                }
                self.step(Action::Persist(Record::Released), State::Hearing);
            }
            State::Ending(Outcome::Moved) | State::Finished(Outcome::Moved) => {
                self.send(ToTarget::Finish)
            }
            _ => {}
        }
    }

    pub(super) fn target_failed(&mut self, why: String) {
        let why = format!("the target gave up: {why}");
        let may_undo = self.may_undo();
        match &mut self.state {
            State::Asking | State::Deciding(_) => self.refuse(vec![why]),
            State::Granted | State::Recording => self.take_back(why, true),
            State::TakingBack { certified, .. } => *certified = true,
            State::Parting(own) => {
                let own = std::mem::take(own);
                self.part(own);
            }
            State::Ending(Outcome::Kept(_)) | State::Finished(Outcome::Kept(_)) => {
                self.send(ToTarget::Finish)
            }
            _ if may_undo => self.give_up(why),
            _ => {}
        }
    }

    pub(super) fn peer_word(&mut self, word: Word) {
        let first = !std::mem::replace(&mut self.met, true);
        match word {
            Word::Released => return self.released(),
            Word::FailedBeforeRelease => {
                self.target_clear = true;
                return self.target_failed("it says so in its journal".to_owned());
            }
            // It has nothing that it could have to remove.
            Word::Unknown if self.is_keeping() => self.target_clear = true,
            _ => {}
        }
        let lost = !first && self.has_begun() && self.may_undo();
        // What was queued for the target's former life is lost: say again what still holds.
        match &mut self.state {
            State::Asking if !first => {
                if let Some((question, _)) = &self.question {
                    self.actions
                        .push_back(Action::Send(ToTarget::Ask(question.clone())));
                }
            }
            State::Granted if word == Word::Undecided => self.send(ToTarget::Grant(self.epoch)),
            State::Parting(why) if self.target_clear => {
                let why = std::mem::take(why);
                self.part(why);
            }
            _ if lost => {
                self.give_up("the target's agent was restarted before the grant".to_owned())
            }
            _ => self.correct(),
        }
    }
}
