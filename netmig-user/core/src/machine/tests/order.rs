//! Each machine alone, fed with what fits and with what does not, in any order. Its rules hold whatever it hears.
use super::{Rng, question};
use crate::{
    id::Epoch,
    image::v1::sock::Sockets,
    machine::{
        source::{self, Done},
        target,
    },
    proto::{ToSource, ToTarget, Word},
};

const WORDS: [Word; 7] = [
    Word::Unknown,
    Word::Undecided,
    Word::Granted,
    Word::Released,
    Word::FailedBeforeRelease,
    Word::Kept,
    Word::Moved,
];

fn pick<T: Clone>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len() as u64) as usize].clone()
}

/// What has been heard and done so far.
#[derive(Default)]
struct SourceRules {
    prepared: bool,
    grant_handed_out: bool,
    grant_durable: bool,
    grant_sent: bool,
    kept_durable: bool,
    certificate: bool,
    reclaim: bool,
    heard_released: bool,
    released_durable: bool,
    undone: bool,
    cleaned: bool,
    finished: bool,
}

impl SourceRules {
    fn hear(&mut self, event: &source::Event) {
        use source::{Event, Record};
        match event {
            Event::Message(ToSource::Prepared { .. }) => self.prepared = true,
            Event::Message(ToSource::Released) | Event::PeerWord(Word::Released) => {
                self.heard_released = true
            }
            Event::Message(ToSource::Failed { .. })
            | Event::PeerWord(Word::FailedBeforeRelease) => self.certificate = true,
            Event::Persisted(Record::Granted) => self.grant_durable = true,
            Event::Persisted(Record::Kept(_)) => self.kept_durable = true,
            Event::Persisted(Record::Released) => self.released_durable = true,
            Event::Reclaim => self.reclaim = true,
            _ => {}
        }
    }

    fn check(&mut self, action: &source::Action) {
        use source::{Action, Record};
        assert!(
            !self.finished || matches!(action, Action::Send(_)),
            "after the end: {action:?}"
        );
        match action {
            Action::Grant => assert!(self.prepared),
            Action::Persist(Record::Granted) => self.grant_handed_out = true,
            Action::Send(ToTarget::Grant(_)) => {
                assert!(self.grant_durable && !self.undone && !self.cleaned);
                self.grant_sent = true;
            }
            Action::Persist(Record::Kept(_)) if self.grant_sent => {
                assert!(self.certificate || self.reclaim)
            }
            Action::Undo => {
                assert!(!self.undone && !self.cleaned);
                assert!(!self.grant_handed_out || self.kept_durable || self.certificate);
                self.undone = true;
            }
            Action::Persist(Record::Released) => assert!(self.heard_released && !self.undone),
            Action::Clean => {
                assert!(self.released_durable && !self.undone && !self.cleaned);
                self.cleaned = true;
            }
            Action::Send(ToTarget::Abort { .. }) => assert!(!self.cleaned),
            Action::Finish(_) => self.finished = true,
            _ => {}
        }
    }
}

fn source_answers(action: &source::Action, moment: &mut usize) -> Vec<source::Event> {
    use source::{Action, Event};
    let done = match action {
        Action::Inspect => Done::Inspected(question(), Vec::new()),
        Action::Decide(_) => Done::Decided(Vec::new()),
        Action::Persist(record) => return vec![Event::Persisted(record.clone())],
        Action::Send(ToTarget::Ask(_)) => {
            return vec![Event::Message(ToSource::Answer(Box::default()))];
        }
        Action::Send(ToTarget::Prepare(_)) => return vec![Event::Message(ToSource::Ready)],
        Action::Send(ToTarget::Dumped { .. }) => {
            return vec![Event::Message(ToSource::Prepared { rebuild_us: 1 })];
        }
        Action::Send(ToTarget::Grant(_)) => {
            return vec![Event::Message(ToSource::Released), opened_message()];
        }
        Action::Attach => Done::Attached,
        Action::Disarm => Done::Disarmed,
        Action::Precopy(n) => Done::Round {
            round: *n,
            more: true,
            ms: 1,
            blackout_ms: 0,
        },
        Action::Drain => Done::Drained,
        Action::Freeze => return vec![Event::EngineStarting],
        Action::EngineGoOn => {
            *moment += 1;
            return vec![if *moment == 1 {
                Event::EngineFrozen
            } else {
                Event::EngineDumped
            }];
        }

        Action::Close => Done::Closed,
        Action::DumpSockets => Done::Dumped(Box::new(ToTarget::Sockets(Box::<Sockets>::default()))),
        Action::SendRest => Done::Sent { files: 1, bytes: 1 },
        Action::Grant => Done::Granted,
        Action::Undo => Done::Undone,
        Action::Clean => Done::Cleaned,
        Action::Send(_)
        | Action::SetTimer(..)
        | Action::ClearTimer(_)
        | Action::Phase(_)
        | Action::Finish(_) => return Vec::new(),
    };
    vec![Event::Done(done)]
}

fn opened_message() -> source::Event {
    source::Event::Message(ToSource::Opened {
        open_us: 1,
        announce_us: 1,
        warnings: Vec::new(),
    })
}

fn any_source_event(rng: &mut Rng) -> source::Event {
    use source::{Event, Timer};
    let word = pick(rng, &WORDS);
    let why = || "chance".to_owned();
    let done = [
        Done::Attached,
        Done::Disarmed,
        Done::Round {
            round: 1,
            more: false,
            ms: 1,
            blackout_ms: 0,
        },
        Done::Drained,
        Done::Closed,
        Done::Granted,
        Done::Undone,
        Done::Cleaned,
    ];
    let messages = [
        ToSource::Answer(Box::default()),
        ToSource::Ready,
        ToSource::Prepared { rebuild_us: 1 },
        ToSource::Released,
        ToSource::Failed {
            why: why(),
            left: Vec::new(),
        },
    ];
    let others = [
        Event::Failed(why()),
        Event::PeerWord(word),
        Event::LinkDown,
        Event::LinkUp,
        Event::EngineStarting,
        Event::EngineFrozen,
        Event::EngineDumped,
        Event::EngineGone(why()),
        Event::Timeout(Timer::Link),
        Event::Timeout(Timer::Blackout),
        Event::Timeout(Timer::Ask),
        Event::Cancel(why()),
        Event::Reclaim,
        opened_message(),
    ];
    match rng.below(3) {
        0 => Event::Done(pick(rng, &done)),
        1 => Event::Message(pick(rng, &messages)),
        _ => pick(rng, &others),
    }
}

#[test]
fn the_source_keeps_its_rules_whatever_it_hears() {
    let (mut granted, mut undone, mut cleaned) = (0, 0, 0);
    for seed in 0..4_000 {
        let mut rng = Rng(seed);
        let (noise, shuffle) = [(0, 0), (2, 1), (5, 5), (15, 10)][seed as usize % 4];
        let mut machine = source::Machine::new(
            source::Options {
                max_blackout_ms: Some(1),
                ..Default::default()
            },
            Epoch(1),
        );
        let mut rules = SourceRules::default();
        let mut moment = 0;
        let mut fitting = vec![source::Event::Start];
        for _ in 0..120 {
            let event = if fitting.is_empty() || rng.chance(noise) {
                any_source_event(&mut rng)
            } else {
                // Not always in order, and now and then twice.
                let at = if !rng.chance(shuffle) {
                    0
                } else {
                    rng.below(fitting.len() as u64) as usize
                };
                if rng.chance(shuffle) {
                    fitting[at].clone()
                } else {
                    fitting.remove(at)
                }
            };
            let event = match event {
                source::Event::Persisted(record) if rng.chance(noise) => {
                    source::Event::NotPersisted(record, "chance".into())
                }
                event => event,
            };
            rules.hear(&event);
            machine.handle(event);
            while let Some(action) = machine.poll_action() {
                rules.check(&action);
                fitting.extend(source_answers(&action, &mut moment));
            }
        }
        granted += u32::from(rules.grant_sent);
        undone += u32::from(rules.undone);
        cleaned += u32::from(rules.cleaned);
    }
    assert!(
        granted > 500 && undone > 500 && cleaned > 500,
        "{granted} {undone} {cleaned}"
    );
}

#[derive(Default)]
struct TargetRules {
    begun: bool,
    prepared_durable: bool,
    may_release: bool,
    granted_durable: bool,
    released_durable: bool,
    failed_durable: bool,
    released_said: bool,
    failed_said: bool,
    discarded: bool,
    finished: bool,
}

impl TargetRules {
    fn hear(&mut self, event: &target::Event) {
        use target::{Event, Record};
        match event {
            Event::Persisted(Record::Prepared) => self.prepared_durable = true,
            Event::Persisted(Record::Granted) => self.granted_durable = true,
            Event::Persisted(Record::Released) => self.released_durable = true,
            Event::Persisted(Record::Failed(_)) => self.failed_durable = true,
            Event::Message(ToTarget::Grant(_))
            | Event::PeerWord(Word::Granted)
            | Event::ReleaseFenced => self.may_release = true,
            _ => {}
        }
    }

    fn check(&mut self, action: &target::Action) {
        use target::{Action, Record};
        assert!(
            !self.finished || matches!(action, Action::Send(_)),
            "after the end: {action:?}"
        );
        match action {
            Action::Persist(Record::Begun(_)) => self.begun = true,
            Action::Send(ToSource::Prepared { .. }) => assert!(self.prepared_durable),
            Action::Persist(Record::Granted) => assert!(self.may_release && self.prepared_durable),
            Action::EngineRelease => assert!(self.granted_durable && !self.discarded),
            Action::Open | Action::EngineResume => {
                assert!(self.released_durable && !self.discarded)
            }
            Action::Send(ToSource::Released) => {
                assert!(self.released_durable && !self.discarded && !self.failed_said);
                self.released_said = true;
            }
            Action::Send(ToSource::Failed { .. }) => {
                assert!(self.failed_durable || !self.begun);
                assert!(!self.released_said);
                self.failed_said = true;
            }
            Action::Discard => {
                assert!(!self.released_said && !self.discarded);
                self.discarded = true;
            }
            Action::Finish(here) => {
                assert_eq!(*here, self.released_said);
                self.finished = true;
            }
            _ => {}
        }
    }
}

fn target_answers(action: &target::Action) -> Vec<target::Event> {
    use target::{Action, Event};
    let event = match action {
        Action::Answer(_) => Event::Answered(Box::default()),
        Action::Send(ToSource::Answer(_)) => Event::Message(ToTarget::Prepare(question())),
        Action::Send(ToSource::Ready) => Event::Message(ToTarget::Dumped { files: 1, bytes: 1 }),
        Action::Send(ToSource::Prepared { .. }) => Event::Message(ToTarget::Grant(Epoch(1))),
        Action::Send(ToSource::Opened { .. } | ToSource::Failed { .. }) => {
            Event::Message(ToTarget::Finish)
        }
        Action::Persist(record) => Event::Persisted(record.clone()),
        Action::Prepare(_) => Event::Created,
        Action::AwaitFiles { .. } => Event::Complete,
        Action::Rebuild => Event::EngineRebuilt,
        Action::RebuildSockets => Event::SocketsRebuilt(1),
        Action::EngineRelease => Event::EngineReady,
        Action::Open => Event::Opened {
            open_us: 1,
            announce_us: 1,
            warnings: Vec::new(),
        },
        Action::EngineResume => Event::EngineRunning,
        Action::Discard => Event::Discarded(Vec::new()),
        Action::Send(_)
        | Action::Warm
        | Action::Store(_)
        | Action::SetTimer(..)
        | Action::ClearTimer(_)
        | Action::Finish(_) => return Vec::new(),
    };
    vec![event]
}

fn any_target_event(rng: &mut Rng) -> target::Event {
    use target::{Event, Timer};
    let word = pick(rng, &WORDS);
    let why = || "chance".to_owned();
    let messages = [
        ToTarget::Ask(question()),
        ToTarget::Prepare(question()),
        ToTarget::Round(1),
        ToTarget::Dumped { files: 1, bytes: 1 },
        ToTarget::Grant(Epoch(1)),
        ToTarget::Abort { why: why() },
        ToTarget::Finish,
    ];
    let others = [
        Event::PeerWord(word),
        Event::LinkDown,
        Event::LinkUp,
        Event::Created,
        Event::Complete,
        Event::EngineRebuilt,
        Event::SocketsRebuilt(2),
        Event::EngineReady,
        Event::EngineRunning,
        Event::EngineGone(why()),
        Event::Failed(why()),
        Event::Timeout(Timer::Patience),
        Event::Timeout(Timer::Link),
        Event::Timeout(Timer::Retry),
        Event::ReleaseFenced,
        Event::GiveUp,
    ];
    if rng.chance(40) {
        Event::Message(pick(rng, &messages))
    } else {
        pick(rng, &others)
    }
}

#[test]
fn the_target_keeps_its_rules_whatever_it_hears() {
    let (mut released, mut failed) = (0, 0);
    for seed in 0..4_000 {
        let mut rng = Rng(seed);
        let (noise, shuffle) = [(0, 0), (2, 1), (5, 5), (15, 10)][seed as usize % 4];
        let mut machine = target::Machine::new(target::Options::default(), Epoch(1));
        let mut rules = TargetRules::default();
        let mut fitting = vec![target::Event::Message(ToTarget::Ask(question()))];
        for _ in 0..120 {
            let event = if fitting.is_empty() || rng.chance(noise) {
                any_target_event(&mut rng)
            } else {
                let at = if !rng.chance(shuffle) {
                    0
                } else {
                    rng.below(fitting.len() as u64) as usize
                };
                if rng.chance(shuffle) {
                    fitting[at].clone()
                } else {
                    fitting.remove(at)
                }
            };
            let event = match event {
                target::Event::Persisted(record) if rng.chance(noise) => {
                    target::Event::NotPersisted(record, "chance".into())
                }
                event => event,
            };
            rules.hear(&event);
            machine.handle(event);
            while let Some(action) = machine.poll_action() {
                rules.check(&action);
                fitting.extend(target_answers(&action));
            }
        }
        released += u32::from(rules.released_said);
        failed += u32::from(rules.failed_said);
    }
    assert!(released > 500 && failed > 500, "{released} {failed}");
}
