//! What can go wrong in a pair.
use super::{
    pair::{Any, Due, Pair},
    source_world, target_world,
};
use crate::{
    machine::{source, target},
    proto::Word,
};

/// What can go wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    CrashSource,
    CrashTarget,
    BreakLink,
    /// The link is down for longer than either side waits.
    LongBreak,
    Cancel,
    GiveUp,
    /// The next action of this side that can fail does.
    FailSource,
    FailTarget,
    /// The next record of this side is refused by the disk (and is there all the same, or not).
    RefuseSource,
    RefuseTarget,
    KillSourceEngine,
    KillTargetEngine,
    /// The source's agent did not renew the lease in time.
    ExpireLease,
    /// A hook of either engine presents its moment once more.
    PresentAgain,
}

pub const FAULTS: [Fault; 14] = [
    Fault::CrashSource,
    Fault::CrashTarget,
    Fault::BreakLink,
    Fault::LongBreak,
    Fault::Cancel,
    Fault::GiveUp,
    Fault::FailSource,
    Fault::FailTarget,
    Fault::RefuseSource,
    Fault::RefuseTarget,
    Fault::KillSourceEngine,
    Fault::KillTargetEngine,
    Fault::ExpireLease,
    Fault::PresentAgain,
];

impl Pair {
    fn break_link(&mut self, ms: u64) {
        let connection = self.connection;
        self.connection += 1;
        self.dial_not_before = self.now + ms;
        let (soon, late) = (self.now + self.rng.below(30), self.now + self.rng.below(30));
        self.later(soon, Any::Source(Due::LinkDown { connection }));
        self.later(late, Any::Target(Due::LinkDown { connection }));
    }

    pub(super) fn inject(&mut self, fault: Fault) {
        self.note(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::CrashSource if self.source.alive => {
                self.source.crash();
                let (noticed, boots) = (
                    self.now + self.rng.below(30),
                    self.now + 10 + self.rng.below(400),
                );
                self.later(
                    noticed,
                    Any::Target(Due::LinkDown {
                        connection: self.connection,
                    }),
                );
                self.later(boots, Any::Source(Due::Boot));
                self.connection += 1;
            }
            Fault::CrashTarget if self.target.alive => {
                self.target.crash();
                let (noticed, boots) = (
                    self.now + self.rng.below(30),
                    self.now + 10 + self.rng.below(400),
                );
                self.later(
                    noticed,
                    Any::Source(Due::LinkDown {
                        connection: self.connection,
                    }),
                );
                self.later(boots, Any::Target(Due::Boot));
                self.connection += 1;
            }
            Fault::CrashSource | Fault::CrashTarget => {}
            Fault::BreakLink => {
                let ms = self.rng.below(500);
                self.break_link(ms);
            }
            Fault::LongBreak => self.break_link(300_000),
            Fault::Cancel => {
                self.source_feed(source::Event::Cancel("cancelled by the operator".into()))
            }
            Fault::GiveUp => self.target_feed(target::Event::GiveUp),
            Fault::FailSource => self.source.fail_next = true,
            Fault::FailTarget => self.target.fail_next = true,
            Fault::RefuseSource => self.source.refuse_next = true,
            Fault::RefuseTarget => self.target.refuse_next = true,
            Fault::KillSourceEngine if self.source.party.world.has_engine => {
                self.source.party.world.end_engine();
                self.source_feed(source::Event::EngineGone("killed".into()));
            }
            Fault::KillTargetEngine => {
                let released = target::word(&self.target.party.world.journal) == Word::Released;
                if self.target.party.world.kill_engine() {
                    self.died_released |= released;
                    self.target_feed(target::Event::EngineGone("killed".into()));
                }
            }
            Fault::ExpireLease if self.source.party.world.gate == source_world::Gate::Closed => {
                self.source.party.world.gate = source_world::Gate::Expired;
            }
            Fault::KillSourceEngine | Fault::ExpireLease => {}
            Fault::PresentAgain => {
                if let Some(event) = self.source.party.world.present() {
                    self.source_feed(event);
                }
                let waits = matches!(
                    self.target.party.world.engine,
                    target_world::Engine::Waiting(_)
                );
                if let Some(event) = self.target.party.world.present().filter(|_| waits) {
                    self.target_feed(event);
                }
            }
        }
    }
}
