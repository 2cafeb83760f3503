//! The source's.
use crate::{
    id::Epoch,
    image::v1::sock::Sockets,
    machine::{
        source::{self, Done, Outcome},
        tests::question,
    },
    proto::{Answer, ToSource, ToTarget, Word},
};

/// The source's machine and what it did last.
struct Source(source::Machine);

impl Source {
    fn new(options: source::Options) -> Self {
        Self(source::Machine::new(options, Epoch(1)))
    }

    /// What comes out of an event, but for timers and phases.
    fn hears(&mut self, event: source::Event) -> Vec<source::Action> {
        self.0.handle(event);
        self.does()
    }

    fn does(&mut self) -> Vec<source::Action> {
        use source::Action::{ClearTimer, Phase, SetTimer};
        std::iter::from_fn(|| self.0.poll_action())
            .filter(|a| !matches!(a, SetTimer(..) | ClearTimer(_) | Phase(_)))
            .collect()
    }

    /// To the point where the target rebuilds.
    fn rebuilding() -> Self {
        use source::{Event, Record};
        let mut source = Self::new(source::Options::default());
        let dumped = Done::Dumped(Box::new(ToTarget::Sockets(Box::<Sockets>::default())));
        for event in [
            Event::LinkUp,
            Event::PeerWord(Word::Unknown),
            Event::Start,
            Event::Done(Done::Inspected(question(), Vec::new())),
            Event::Message(ToSource::Answer(Box::default())),
            Event::Done(Done::Decided(Vec::new())),
            Event::Persisted(Record::Begun(Epoch(1))),
            Event::Done(Done::Attached),
            Event::Done(Done::Disarmed),
            Event::Message(ToSource::Ready),
            Event::Persisted(Record::Disarmed),
            Event::Done(Done::Round {
                round: 1,
                more: false,
                ms: 1,
                blackout_ms: 0,
            }),
            Event::EngineStarting,
            Event::Done(Done::Drained),
            Event::EngineFrozen,
            Event::Done(Done::Closed),
            Event::EngineDumped,
            Event::Done(dumped),
        ] {
            source.hears(event);
        }
        let sent = source.hears(Event::Done(Done::Sent { files: 1, bytes: 9 }));
        assert_eq!(
            sent,
            [source::Action::Send(ToTarget::Dumped {
                files: 1,
                bytes: 9
            })]
        );
        source
    }

    fn granted() -> Self {
        let mut source = Self::rebuilding();
        source.hears(prepared());
        source.hears(source::Event::Done(Done::Granted));
        let granted = source.hears(source::Event::Persisted(source::Record::Granted));
        assert_eq!(granted, [source::Action::Send(ToTarget::Grant(Epoch(1)))]);
        source
    }
}

fn prepared() -> source::Event {
    source::Event::Message(ToSource::Prepared { rebuild_us: 5 })
}

#[test]
fn the_grant_needs_the_compare_and_set_and_the_disk() {
    use source::{Action, Event, Record};
    let mut source = Source::rebuilding();
    assert_eq!(source.hears(prepared()), [Action::Grant]);
    assert_eq!(source.0.word(), Word::Undecided);
    assert_eq!(
        source.hears(Event::Done(Done::Granted)),
        [Action::Persist(Record::Granted)]
    );
    assert_eq!(source.hears(Event::Cancel("too late".into())), []);
    assert_eq!(
        source.hears(Event::Persisted(Record::Granted)),
        [Action::Send(ToTarget::Grant(Epoch(1)))]
    );
    assert_eq!(source.0.word(), Word::Granted);
}

#[test]
fn an_expired_lease_ends_the_move() {
    use source::{Action, Event};
    let mut source = Source::rebuilding();
    source.hears(prepared());
    let why = "the lease ran out".to_owned();
    assert_eq!(
        source.hears(Event::Failed(why.clone())),
        [Action::Send(ToTarget::Abort { why }), Action::Undo]
    );
}

#[test]
fn an_abort_waits_for_no_disk() {
    use source::{Action, Event, Record};
    let mut source = Source::rebuilding();
    let undone = source.hears(Event::Cancel("^C".into()));
    assert_eq!(
        undone,
        [
            Action::Send(ToTarget::Abort { why: "^C".into() }),
            Action::Undo
        ]
    );
    assert_eq!(
        source.hears(Event::Done(Done::Undone)),
        [Action::Persist(Record::Kept("^C".into()))]
    );
    // The disk is full: the container runs all the same, and the next life would undo once more.
    assert_eq!(
        source.hears(Event::NotPersisted(
            Record::Kept("^C".into()),
            "no space".into()
        )),
        []
    );
    let end = source.hears(Event::Message(ToSource::Failed {
        why: "^C".into(),
        left: Vec::new(),
    }));
    assert_eq!(
        end,
        [
            Action::Send(ToTarget::Finish),
            Action::Persist(Record::Closed)
        ]
    );
    assert_eq!(
        source.hears(Event::NotPersisted(Record::Closed, "no space".into())),
        [Action::Finish(Outcome::Kept("^C".into()))]
    );
}

#[test]
fn late_words_of_the_target_after_an_abort_are_answered() {
    use source::{Action, Event};
    let mut source = Source::rebuilding();
    let abort = || Action::Send(ToTarget::Abort { why: "^C".into() });
    source.hears(Event::Cancel("^C".into()));
    assert_eq!(source.hears(prepared()), [abort()]);
    source.hears(Event::Done(Done::Undone));
    source.hears(Event::Persisted(source::Record::Kept("^C".into())));
    assert_eq!(source.hears(prepared()), [abort()]);
    // The target does not answer in time: the move ends without it ...
    source.hears(Event::Timeout(source::Timer::Ask));
    assert_eq!(
        source.hears(Event::Persisted(source::Record::Closed)),
        [Action::Finish(Outcome::Kept("^C".into()))]
    );
    // ... and it is answered even then.
    assert_eq!(source.hears(prepared()), [abort()]);
    let failed = source.hears(Event::Message(ToSource::Failed {
        why: "^C".into(),
        left: Vec::new(),
    }));
    assert_eq!(failed, [Action::Send(ToTarget::Finish)]);
}

#[test]
fn a_granted_source_takes_nothing_back_by_itself() {
    use source::{Action, Event, Timer};
    let mut source = Source::granted();
    for event in [
        Event::LinkDown,
        Event::Timeout(Timer::Link),
        Event::Timeout(Timer::Blackout),
        Event::Timeout(Timer::Ask),
        Event::EngineGone("killed".into()),
        Event::Failed("late".into()),
        Event::Cancel("^C".into()),
        Event::LinkUp,
        Event::PeerWord(Word::Unknown),
        Event::PeerWord(Word::Granted),
    ] {
        assert_eq!(source.hears(event.clone()), [], "{event:?}");
    }
    assert!(source.0.waiting().is_some());
    // It asks, and grants again to a target that has not heard it.
    assert_eq!(
        source.hears(Event::Timeout(Timer::Ask)),
        [Action::Send(ToTarget::Grant(Epoch(1)))]
    );
    assert_eq!(
        source.hears(Event::PeerWord(Word::Undecided)),
        [Action::Send(ToTarget::Grant(Epoch(1)))]
    );
}

#[test]
fn after_the_grant_kept_is_durable_before_anything_is_undone() {
    use source::{Action, Event, Record};
    for event in [
        Event::Message(ToSource::Failed {
            why: "criu died".into(),
            left: Vec::new(),
        }),
        Event::PeerWord(Word::FailedBeforeRelease),
        Event::Reclaim,
    ] {
        let mut source = Source::granted();
        let first = source.hears(event.clone());
        let [Action::Persist(record @ Record::Kept(_))] = first.as_slice() else {
            panic!("{event:?}: {first:?}")
        };
        let then = source.hears(Event::Persisted(record.clone()));
        assert_eq!(then.last(), Some(&Action::Undo), "{event:?}");
        // Whoever did not certify is told.
        assert_eq!(
            then.len() == 2,
            event == Event::Reclaim,
            "{event:?}: {then:?}"
        );
    }
}

#[test]
fn a_reclaim_that_the_disk_refuses_is_not_one() {
    use source::{Action, Event, Record, Timer};
    let mut source = Source::granted();
    let asked = source.hears(Event::Reclaim);
    let [Action::Persist(kept)] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(
        source.hears(Event::NotPersisted(kept.clone(), "no space".into())),
        []
    );
    assert_eq!(
        source.hears(Event::Timeout(Timer::Ask)),
        [Action::Persist(kept.clone())]
    );
    // The target was not fenced after all.
    assert_eq!(
        source.hears(Event::Message(ToSource::Released)),
        [Action::Persist(Record::Released)]
    );
}

#[test]
fn a_grant_that_the_disk_refuses_needs_the_targets_certificate_or_a_durable_word() {
    use source::{Action, Event, Record};
    let mut source = Source::rebuilding();
    source.hears(prepared());
    source.hears(Event::Done(Done::Granted));
    let refused = source.hears(Event::NotPersisted(Record::Granted, "no space".into()));
    let [
        Action::Send(ToTarget::Abort { .. }),
        Action::Persist(kept @ Record::Kept(_)),
    ] = refused.as_slice()
    else {
        panic!("{refused:?}")
    };
    assert_eq!(
        source.hears(Event::Message(ToSource::Failed {
            why: "aborted".into(),
            left: Vec::new()
        })),
        []
    );
    assert_eq!(
        source.hears(Event::NotPersisted(kept.clone(), "no space".into())),
        [Action::Undo]
    );
    // The target keeps its certificate until our own word is on disk.
    assert_eq!(
        source.hears(Event::Done(Done::Undone)),
        [Action::Persist(kept.clone())]
    );
    assert_eq!(
        source.hears(Event::NotPersisted(kept.clone(), "no space".into())),
        []
    );
    assert_eq!(
        source.hears(Event::Timeout(source::Timer::Ask)),
        [Action::Persist(kept.clone())]
    );
    assert_eq!(
        source.hears(Event::Persisted(kept.clone())),
        [
            Action::Send(ToTarget::Finish),
            Action::Persist(Record::Closed)
        ]
    );
}

#[test]
fn a_source_agent_that_comes_back_reads_its_journal() {
    use source::{Action, Event, Machine, Options, Record};
    let begun = |n| Record::Begun(Epoch(n));
    let recover =
        |records: &[Record]| Source(Machine::recover(Options::default(), Epoch(2), records));
    let mut source = recover(&[begun(1), Record::Disarmed]);
    let does = source.does();
    assert!(
        matches!(
            does.as_slice(),
            [
                Action::Persist(Record::Begun(Epoch(2))),
                Action::Send(ToTarget::Abort { .. }),
                Action::Undo
            ]
        ),
        "{does:?}"
    );
    let mut source = recover(&[begun(1), Record::Disarmed, Record::Granted]);
    assert_eq!(source.does(), [Action::Persist(begun(2))]);
    assert_eq!(source.hears(Event::EngineDumped), []);
    assert_eq!(
        source.hears(Event::PeerWord(Word::Released)),
        [Action::Persist(Record::Released)]
    );
    let mut source = recover(&[begun(1), Record::Granted, Record::Released]);
    assert_eq!(source.does(), [Action::Persist(begun(2)), Action::Clean]);
    let mut source = recover(&[begun(1), Record::Granted, Record::Kept("x".into())]);
    assert_eq!(source.does().last(), Some(&Action::Undo));
    let mut source = recover(&[begun(1), Record::Kept("x".into()), Record::Closed]);
    assert_eq!(source.does(), [Action::Finish(Outcome::Kept("x".into()))]);
    let mut source = recover(&[
        begun(1),
        Record::Granted,
        Record::Released,
        begun(2),
        Record::Closed,
    ]);
    assert_eq!(source.does(), [Action::Finish(Outcome::Moved)]);
}

#[test]
fn a_hook_that_comes_again_gets_its_answer_again() {
    use source::{Action, Event};
    let mut source = Source::rebuilding();
    assert_eq!(source.hears(Event::EngineDumped), []);
    assert_eq!(source.hears(Event::EngineFrozen), []);
    let mut early = Source::new(source::Options {
        drain_limit_ms: 0,
        ..Default::default()
    });
    for event in [
        Event::Start,
        Event::Done(Done::Inspected(question(), Vec::new())),
        Event::Message(ToSource::Answer(Box::default())),
        Event::Done(Done::Decided(Vec::new())),
        Event::Persisted(source::Record::Begun(Epoch(1))),
        Event::Done(Done::Attached),
        Event::Done(Done::Disarmed),
        Event::Persisted(source::Record::Disarmed),
        Event::Message(ToSource::Ready),
        Event::Done(Done::Round {
            round: 1,
            more: false,
            ms: 1,
            blackout_ms: 0,
        }),
    ] {
        early.hears(event);
    }
    assert_eq!(early.hears(Event::EngineStarting), [Action::EngineGoOn]);
    assert_eq!(early.hears(Event::EngineStarting), [Action::EngineGoOn]);
    assert_eq!(early.hears(Event::EngineFrozen), [Action::Close]);
    assert_eq!(early.hears(Event::EngineFrozen), []);
    assert_eq!(early.hears(Event::Done(Done::Closed)), [Action::EngineGoOn]);
    assert_eq!(early.hears(Event::EngineFrozen), [Action::EngineGoOn]);
}

#[test]
fn what_would_take_too_long_is_given_up_before_the_freeze() {
    use source::{Action, Event};
    let after_the_last_round = |max_blackout_ms, blackout_ms| {
        let mut source = Source::new(source::Options {
            max_blackout_ms,
            ..Default::default()
        });
        for event in [
            Event::Start,
            Event::Done(Done::Inspected(question(), Vec::new())),
            Event::Message(ToSource::Answer(Box::default())),
            Event::Done(Done::Decided(Vec::new())),
            Event::Persisted(source::Record::Begun(Epoch(1))),
            Event::Done(Done::Attached),
            Event::Done(Done::Disarmed),
            Event::Persisted(source::Record::Disarmed),
            Event::Message(ToSource::Ready),
        ] {
            source.hears(event);
        }
        // Another round may make it shorter.
        let first = source.hears(Event::Done(Done::Round {
            round: 1,
            more: true,
            ms: 1,
            blackout_ms: 9_000,
        }));
        assert!(first.contains(&Action::Precopy(2)), "{first:?}");
        source.hears(Event::Done(Done::Round {
            round: 2,
            more: false,
            ms: 1,
            blackout_ms,
        }))
    };
    for (limit, predicted) in [(None, 700), (Some(700), 700)] {
        let goes_on = after_the_last_round(limit, predicted);
        assert!(goes_on.contains(&Action::Freeze), "{goes_on:?}");
    }
    let given_up = after_the_last_round(Some(500), 700);
    assert!(!given_up.contains(&Action::Freeze), "{given_up:?}");
    assert!(given_up.contains(&Action::Undo), "{given_up:?}");
    let told = given_up.iter().any(|action| {
        matches!(action, Action::Send(ToTarget::Abort { why })
            if why.contains("about 700 ms") && why.contains("allows 500 ms"))
    });
    assert!(told, "{given_up:?}");
}

#[test]
fn a_dry_run_and_a_refusal_touch_nothing() {
    use source::{Action, Event};
    let plan = |dry_run, own: Vec<String>, theirs: Vec<String>| {
        let mut source = Source::new(source::Options {
            dry_run,
            ..Default::default()
        });
        source.hears(Event::Start);
        source.hears(Event::Done(Done::Inspected(question(), own)));
        let answer = Answer {
            objections: theirs,
            ..Default::default()
        };
        source.hears(Event::Message(ToSource::Answer(Box::new(answer))));
        source.hears(Event::Done(Done::Decided(vec![
            "device".into(),
            "arch".into(),
        ])))
    };
    let reasons = ["device", "arch", "no bridge"].map(String::from).to_vec();
    let refused = plan(false, vec!["device".into()], vec!["no bridge".into()]);
    assert_eq!(
        refused,
        [
            Action::Send(ToTarget::Finish),
            Action::Finish(Outcome::Refused(reasons.clone()))
        ]
    );
    let planned = plan(true, vec!["device".into()], vec!["no bridge".into()]);
    let answer = Answer {
        objections: reasons,
        ..Default::default()
    };
    assert_eq!(
        planned,
        [
            Action::Send(ToTarget::Finish),
            Action::Finish(Outcome::Planned(Box::new(answer)))
        ]
    );
}

#[test]
fn an_unreachable_host_is_refused() {
    use source::{Action, Event, Timer};
    let mut source = Source::new(source::Options::default());
    source.hears(Event::Start);
    source.hears(Event::Done(Done::Inspected(question(), Vec::new())));
    let end = source.hears(Event::Timeout(Timer::Link));
    assert!(
        matches!(
            end.as_slice(),
            [
                Action::Send(ToTarget::Finish),
                Action::Finish(Outcome::Refused(_))
            ]
        ),
        "{end:?}"
    );
}

#[test]
fn the_first_attempt_at_a_link_has_longer_than_a_lost_one() {
    use source::{Action, Event, Timer};
    let options = source::Options::default();
    let (first, later) = (options.first_link_limit_ms, options.planning_link_limit_ms);
    let limits = |events: &[Event]| {
        let mut source = Source::new(source::Options::default());
        for event in events {
            source.0.handle(event.clone());
        }
        std::iter::from_fn(|| source.0.poll_action())
            .filter_map(|action| match action {
                Action::SetTimer(Timer::Link, ms) => Some(ms),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(limits(&[Event::Start]), [first]);
    // Dialled again and again: the limit runs from the first failure.
    let failing = [Event::Start, Event::LinkDown, Event::LinkDown];
    assert_eq!(limits(&failing), [first, later]);
    let lost = [
        Event::Start,
        Event::LinkUp,
        Event::LinkDown,
        Event::LinkDown,
    ];
    assert_eq!(limits(&lost), [first, later]);
}

#[test]
fn a_link_that_is_lost_when_the_move_has_begun_has_longer_than_one_that_a_plan_needs() {
    use source::{Action, Event, Timer};
    let options = source::Options::default();
    assert!(options.planning_link_limit_ms < options.link_limit_ms);
    let mut source = Source::rebuilding();
    source.0.handle(Event::LinkDown);
    let lost = std::iter::from_fn(|| source.0.poll_action()).collect::<Vec<_>>();
    assert_eq!(lost, [Action::SetTimer(Timer::Link, options.link_limit_ms)]);
}
