//! The target's.
use crate::{
    id::Epoch,
    machine::{target, tests::question},
    proto::{ToSource, ToTarget, Word},
};

struct Target(target::Machine);

impl Target {
    fn new() -> Self {
        Self(target::Machine::new(target::Options::default(), Epoch(1)))
    }

    fn recovered(records: &[target::Record]) -> Self {
        Self(target::Machine::recover(
            target::Options::default(),
            Epoch(2),
            records,
        ))
    }

    fn hears(&mut self, event: target::Event) -> Vec<target::Action> {
        self.0.handle(event);
        self.does()
    }

    fn does(&mut self) -> Vec<target::Action> {
        use target::Action::{ClearTimer, SetTimer};
        std::iter::from_fn(|| self.0.poll_action())
            .filter(|a| !matches!(a, SetTimer(..) | ClearTimer(_)))
            .collect()
    }

    fn prepared() -> Self {
        use target::{Event, Record};
        let mut target = Self::new();
        for event in [
            Event::LinkUp,
            Event::PeerWord(Word::Undecided),
            Event::Message(ToTarget::Prepare(question())),
            Event::Persisted(Record::Begun(Epoch(1))),
            Event::Created,
            Event::Message(ToTarget::Sockets(Box::default())),
            Event::Message(ToTarget::Dumped { files: 1, bytes: 9 }),
            Event::Complete,
            Event::EngineRebuilt,
            Event::SocketsRebuilt(5),
        ] {
            target.hears(event);
        }
        let said = target.hears(Event::Persisted(Record::Prepared));
        assert_eq!(
            said,
            [target::Action::Send(ToSource::Prepared { rebuild_us: 5 })]
        );
        target
    }

    fn releasing() -> Self {
        let mut target = Self::prepared();
        target.hears(target::Event::Message(ToTarget::Grant(Epoch(1))));
        let released = target.hears(target::Event::Persisted(target::Record::Granted));
        assert_eq!(released, [target::Action::EngineRelease]);
        target
    }

    fn released() -> Self {
        let mut target = Self::releasing();
        assert_eq!(
            target.hears(target::Event::EngineReady),
            [target::Action::Persist(target::Record::Released)]
        );
        target
    }
}

#[test]
fn an_engine_that_dies_while_released_is_written_was_never_released() {
    use target::{Action, Event, Record};
    let mut target = Target::released();
    assert_eq!(target.hears(Event::EngineGone("killed".into())), []);
    assert_eq!(
        target.hears(Event::Persisted(Record::Released)),
        [Action::Discard]
    );
    let failed = target.hears(Event::Discarded(Vec::new()));
    assert!(matches!(
        failed.as_slice(),
        [Action::Persist(Record::Failed(_))]
    ));
    let records = [
        Record::Begun(Epoch(1)),
        Record::Prepared,
        Record::Granted,
        Record::Released,
        Record::Failed("x".into()),
    ];
    assert_eq!(target::word(&records), Word::FailedBeforeRelease);
}

#[test]
fn a_prepared_target_waits_then_gives_up_with_a_certificate() {
    use target::{Action, Event, Timer};
    let mut target = Target::prepared();
    assert_eq!(target.hears(Event::LinkDown), []);
    assert_eq!(target.hears(Event::Timeout(Timer::Link)), []);
    assert!(target.0.waiting().is_some());
    assert_eq!(
        target.hears(Event::Timeout(Timer::Patience)),
        [Action::Discard]
    );
}

#[test]
fn an_operator_releases_a_target_whose_source_is_fenced() {
    use target::{Action, Event, Record};
    assert_eq!(
        Target::prepared().hears(Event::ReleaseFenced),
        [Action::Persist(Record::Granted)]
    );
    assert_eq!(Target::new().hears(Event::ReleaseFenced), []);
    assert_eq!(Target::prepared().hears(Event::GiveUp), [Action::Discard]);
}

#[test]
fn a_source_that_comes_back_granted_grants_by_its_word() {
    use target::{Action, Event, Record};
    assert_eq!(
        Target::prepared().hears(Event::PeerWord(Word::Granted)),
        [Action::Persist(Record::Granted)]
    );
    assert_eq!(
        Target::prepared().hears(Event::PeerWord(Word::Undecided)),
        [Action::Discard]
    );
    assert_eq!(
        Target::prepared().hears(Event::PeerWord(Word::Kept)),
        [Action::Discard]
    );
}

#[test]
fn the_word_goes_out_before_the_gate_opens_and_the_tasks_run_last() {
    use target::{Action, Event, Record};
    let mut target = Target::released();
    assert_eq!(target.0.word(), Word::Granted);
    assert_eq!(
        target.hears(Event::Persisted(Record::Released)),
        [Action::Send(ToSource::Released), Action::Open]
    );
    assert_eq!(target.0.word(), Word::Released);
    let opened = Event::Opened {
        open_us: 700,
        announce_us: 1,
        warnings: Vec::new(),
    };
    assert_eq!(target.hears(opened), [Action::EngineResume]);
    let said = Action::Send(ToSource::Opened {
        open_us: 700,
        announce_us: 1,
        warnings: Vec::new(),
    });
    assert_eq!(target.hears(Event::EngineRunning), [said]);
    assert_eq!(
        target.hears(Event::Message(ToTarget::Finish)),
        [Action::Persist(Record::Closed)]
    );
    assert_eq!(
        target.hears(Event::Persisted(Record::Closed)),
        [Action::Finish(true)]
    );
}

#[test]
fn a_failure_before_the_release_is_certified_last() {
    use target::{Action, Event, Record};
    for make in [Target::prepared, Target::releasing] {
        let mut target = make();
        assert_eq!(
            target.hears(Event::EngineGone("killed".into())),
            [Action::Discard]
        );
        let discarded = target.hears(Event::Discarded(vec!["/run/crun/c".into()]));
        let [Action::Persist(record @ Record::Failed(why))] = discarded.as_slice() else {
            panic!("{discarded:?}")
        };
        let said = Action::Send(ToSource::Failed {
            why: why.clone(),
            left: vec!["/run/crun/c".into()],
        });
        assert_eq!(
            target.hears(Event::Persisted(record.clone())),
            std::slice::from_ref(&said)
        );
        // A grant that was under way is answered by the certificate.
        assert_eq!(
            target.hears(Event::Message(ToTarget::Grant(Epoch(1)))),
            [said]
        );
        assert_eq!(target.0.word(), Word::FailedBeforeRelease);
        target.hears(Event::Message(ToTarget::Finish));
        assert_eq!(
            target.hears(Event::Persisted(Record::Closed)),
            [Action::Finish(false)]
        );
    }
}

#[test]
fn an_engine_that_dies_after_the_release_is_a_warning() {
    use target::{Action, Event, Record};
    let mut target = Target::released();
    target.hears(Event::Persisted(Record::Released));
    assert_eq!(target.hears(Event::EngineGone("killed".into())), []);
    let said = target.hears(Event::Opened {
        open_us: 700,
        announce_us: 1,
        warnings: Vec::new(),
    });
    let [Action::Send(ToSource::Opened { warnings, .. })] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert!(warnings[0].contains("died at the target"), "{warnings:?}");
    assert_eq!(
        target.hears(Event::Message(ToTarget::Abort { why: "late".into() }))[0],
        Action::Send(ToSource::Released)
    );
}

#[test]
fn a_gate_that_does_not_open_is_tried_again_and_holds_up_nothing() {
    use target::{Action, Event, Record};
    let mut target = Target::released();
    target.hears(Event::Persisted(Record::Released));
    let failed = || Event::Failed("no such map".into());
    assert_eq!(target.hears(failed()), [Action::Open]);
    assert_eq!(target.hears(failed()), [Action::Open]);
    assert_eq!(target.hears(failed()), [Action::EngineResume]);
    let said = target.hears(Event::EngineRunning);
    let [Action::Send(ToSource::Opened { warnings, .. })] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert!(warnings[0].contains("no such map"));
}

#[test]
fn a_target_agent_that_comes_back_goes_on_only_where_the_engine_stands() {
    use target::{Action, Event, Record};
    let begun = || Record::Begun(Epoch(1));
    let again = || Action::Persist(Record::Begun(Epoch(2)));
    let mut target = Target::recovered(&[begun(), Record::Prepared]);
    assert_eq!(target.does(), [again(), Action::Discard]);

    let granted = [begun(), Record::Prepared, Record::Granted];
    let mut target = Target::recovered(&granted);
    assert_eq!(target.does(), [again()]);
    assert_eq!(target.hears(Event::EngineRebuilt), [Action::EngineRelease]);
    assert_eq!(
        target.hears(Event::EngineReady),
        [Action::Persist(Record::Released)]
    );

    let mut target = Target::recovered(&granted);
    target.does();
    assert_eq!(
        target.hears(Event::EngineGone("no hook came".into())),
        [Action::Discard]
    );

    let mut target =
        Target::recovered(&[begun(), Record::Prepared, Record::Granted, Record::Released]);
    assert_eq!(
        target.does(),
        [again(), Action::Send(ToSource::Released), Action::Open]
    );
    assert_eq!(
        target.hears(Event::Opened {
            open_us: 0,
            announce_us: 1,
            warnings: Vec::new()
        }),
        []
    );
    assert_eq!(target.hears(Event::EngineReady), [Action::EngineResume]);

    let mut target = Target::recovered(&[begun(), Record::Prepared, Record::Failed("x".into())]);
    assert_eq!(
        target.does(),
        [
            again(),
            Action::Send(ToSource::Failed {
                why: "x".into(),
                left: Vec::new()
            })
        ]
    );
}

#[test]
fn a_hook_that_comes_again_gets_its_answer_again() {
    use target::{Action, Event};
    let mut target = Target::releasing();
    assert_eq!(target.hears(Event::EngineRebuilt), [Action::EngineRelease]);
}

#[test]
fn a_source_that_comes_back_late_hears_the_end_again() {
    use target::{Action, Event, Record};
    let mut target = Target::released();
    target.hears(Event::Persisted(Record::Released));
    let released = || Action::Send(ToSource::Released);
    let opened = || {
        Action::Send(ToSource::Opened {
            open_us: 700,
            announce_us: 1,
            warnings: Vec::new(),
        })
    };
    assert_eq!(target.hears(Event::PeerWord(Word::Granted)), [released()]);
    target.hears(Event::Opened {
        open_us: 700,
        announce_us: 1,
        warnings: Vec::new(),
    });
    target.hears(Event::EngineRunning);
    assert_eq!(
        target.hears(Event::PeerWord(Word::Granted)),
        [released(), opened()]
    );
    assert_eq!(
        target.hears(Event::Message(ToTarget::Grant(Epoch(2)))),
        [released(), opened()]
    );
    let closed = target.hears(Event::PeerWord(Word::Moved));
    assert_eq!(
        closed,
        [released(), opened(), Action::Persist(Record::Closed)]
    );
}

#[test]
fn an_engine_whose_end_nobody_sees_does_not_hold_up_the_end() {
    use target::{Action, Event, Record, Timer};
    let records = [
        Record::Begun(Epoch(1)),
        Record::Prepared,
        Record::Granted,
        Record::Released,
    ];
    let mut target = Target::recovered(&records);
    target.does();
    assert_eq!(
        target.hears(Event::Opened {
            open_us: 0,
            announce_us: 1,
            warnings: Vec::new()
        }),
        []
    );
    let said = target.hears(Event::Timeout(Timer::Patience));
    let [Action::Send(ToSource::Opened { warnings, .. })] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert!(warnings[0].contains("has not said"), "{warnings:?}");
    assert_eq!(
        target.hears(Event::Message(ToTarget::Finish)),
        [Action::Persist(Record::Closed)]
    );
}

#[test]
fn what_the_source_has_come_to_track_is_stored_up_to_the_grant() {
    use target::{Action, Event};
    let late = || ToTarget::Remembered(Box::default());
    let mut target = Target::prepared();
    let does = target.hears(Event::Message(late()));
    assert_eq!(does, [Action::Store(Box::new(late()))]);
    assert_eq!(Target::releasing().hears(Event::Message(late())), []);
}
