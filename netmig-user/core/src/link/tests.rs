use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

type End = Conversation<u32, u32>;

const MOVE: MoveId = MoveId([3; 16]);

fn life(epoch: u32, nonce: u64) -> Life {
    Life {
        epoch: Epoch(epoch),
        nonce,
    }
}

fn end(epoch: u32, nonce: u64) -> End {
    End::new(MOVE, life(epoch, nonce))
}

fn hello(end: &End) -> Hello {
    end.hello("0.1.0", Channel::Control, Word::Undecided)
}

/// A new connection: the dialler speaks first.
fn connect(dialler: &mut End, acceptor: &mut End) -> (Met, Met) {
    let at_acceptor = acceptor.greet(&hello(dialler)).unwrap();
    (dialler.greet(&hello(acceptor)).unwrap(), at_acceptor)
}

/// Everything that is due crosses.
fn carry(from: &mut End, to: &mut End) -> Vec<u32> {
    std::iter::from_fn(|| from.poll_transmit())
        .filter_map(|m| to.receive(m).unwrap())
        .collect()
}

#[test]
fn messages_arrive_once_and_in_order() {
    let (mut a, mut b) = (end(1, 10), end(1, 20));
    a.send(1);
    assert_eq!(
        a.poll_transmit(),
        None,
        "nothing leaves before a connection"
    );
    assert_eq!(connect(&mut a, &mut b), (Met::First, Met::First));
    a.send(2);
    assert_eq!(carry(&mut a, &mut b), [1, 2]);
    assert!(!a.is_flushed());
    assert_eq!(carry(&mut b, &mut a), [0; 0]);
    assert!(a.is_flushed(), "the bare acknowledgement has come");
    assert_eq!(
        b.poll_transmit(),
        None,
        "an acknowledgement is not acknowledged"
    );
}

#[test]
fn a_connection_beside_the_control_connection_is_of_its_life() {
    let (mut source, mut target) = (end(2, 10), end(1, 20));
    let beside = source.hello("0.1.0", Channel::Bulk, Word::Undecided);
    assert!(
        matches!(
            joins(&beside, MOVE, target.peer()),
            Err(Refused::Stranger { known: None, .. })
        ),
        "nobody has spoken yet"
    );
    connect(&mut source, &mut target);
    assert_eq!(joins(&beside, MOVE, target.peer()), Ok(()));
    let other = |change: fn(&mut Hello)| {
        let mut hello = beside.clone();
        change(&mut hello);
        joins(&hello, MOVE, target.peer()).expect_err("does not belong here")
    };
    assert!(matches!(
        other(|h| h.protocol += 1),
        Refused::Protocol { .. }
    ));
    assert!(matches!(
        other(|h| h.mv = MoveId([4; 16])),
        Refused::Move { .. }
    ));
    assert!(
        matches!(other(|h| h.life = life(1, 9)), Refused::Stranger { .. }),
        "an earlier life"
    );
    assert!(
        matches!(other(|h| h.life = life(3, 11)), Refused::Stranger { .. }),
        "a life that has not spoken"
    );
}

#[test]
fn what_a_broken_connection_lost_is_resent() {
    let (mut a, mut b) = (end(1, 10), end(1, 20));
    connect(&mut a, &mut b);
    for n in 1..=5 {
        a.send(n);
    }
    let first = a.poll_transmit().unwrap();
    assert_eq!(b.receive(first).unwrap(), Some(1));
    // 2 and 3 are written and lost.
    a.poll_transmit();
    a.poll_transmit();
    a.down();
    b.down();
    assert_eq!(connect(&mut a, &mut b), (Met::Again, Met::Again));
    assert_eq!(carry(&mut a, &mut b), [2, 3, 4, 5]);
}

#[test]
fn a_new_life_begins_a_new_conversation() {
    for second in [life(2, 21), life(1, 21)] {
        let (mut a, mut b) = (end(1, 10), end(1, 20));
        connect(&mut a, &mut b);
        a.send(1);
        carry(&mut a, &mut b);
        b.send(100);
        b.send(101);
        carry(&mut b, &mut a);
        a.send(2);
        // The acceptor dies with message 2 on its way; its next life has something to say at once.
        let mut b = End::new(MOVE, second);
        b.send(200);
        assert_eq!(connect(&mut a, &mut b), (Met::Restarted, Met::First));
        assert_eq!(carry(&mut b, &mut a), [200]);
        assert_eq!(
            carry(&mut a, &mut b),
            [0; 0],
            "what was meant for the former life is dropped"
        );
        a.send(3);
        assert_eq!(carry(&mut a, &mut b), [3]);
    }
}

#[test]
fn a_restarted_dialler_hears_what_its_new_life_has_not() {
    let (mut a, mut b) = (end(1, 10), end(1, 20));
    connect(&mut a, &mut b);
    b.send(100);
    carry(&mut b, &mut a);
    let mut a = end(2, 11);
    assert_eq!(connect(&mut a, &mut b), (Met::First, Met::Restarted));
    b.send(101);
    assert_eq!(carry(&mut b, &mut a), [101]);
}

#[test]
fn a_lost_answer_to_the_first_hello_loses_nothing() {
    let (mut a, mut b) = (end(1, 10), end(1, 20));
    b.send(100);
    b.greet(&hello(&a)).unwrap();
    // It is written to a connection of which the dialler never learns.
    b.poll_transmit();
    assert_eq!(connect(&mut a, &mut b), (Met::First, Met::Again));
    assert_eq!(carry(&mut b, &mut a), [100]);
}

#[test]
fn strangers_are_refused() {
    let (a, mut b) = (end(1, 10), end(1, 20));
    let other = Hello {
        protocol: 9,
        version: "9.0.0".into(),
        ..hello(&a)
    };
    assert_eq!(
        b.greet(&other),
        Err(Refused::Protocol {
            protocol: 9,
            version: "9.0.0".into()
        })
    );
    let lost = Hello {
        mv: MoveId([4; 16]),
        ..hello(&a)
    };
    assert_eq!(
        b.greet(&lost),
        Err(Refused::Move {
            got: MoveId([4; 16]),
            expected: MOVE
        })
    );
    b.greet(&Hello {
        life: life(3, 12),
        ..hello(&a)
    })
    .unwrap();
    assert_eq!(
        b.greet(&hello(&a)),
        Err(Refused::Stale {
            got: Epoch(1),
            known: Epoch(3)
        })
    );
}

#[test]
fn what_does_not_continue_the_conversation_breaks_it() {
    let (mut a, mut b) = (end(1, 10), end(1, 20));
    let message = |seq, ack| Numbered {
        seq,
        ack,
        body: Some(7),
    };
    assert_eq!(b.receive(message(1, 0)), Err(Broken::Early));
    connect(&mut a, &mut b);
    assert_eq!(
        b.receive(message(2, 0)),
        Err(Broken::Gap {
            got: 2,
            expected: 1
        })
    );
    assert_eq!(
        b.receive(message(1, 4)),
        Err(Broken::Ack { got: 4, sent: 0 })
    );
    assert_eq!(b.receive(message(1, 0)), Ok(Some(7)));
    assert_eq!(b.receive(message(1, 0)), Ok(None));
}

#[derive(Clone, Debug)]
enum Step {
    SendA,
    SendB,
    CarryA,
    CarryB,
    /// The connection breaks with what is in flight; the answer to the next hello is lost, or not.
    Break(bool),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(steps in prop::collection::vec(
        prop_oneof![
            Just(Step::SendA), Just(Step::SendB), Just(Step::CarryA), Just(Step::CarryB), any::<bool>().prop_map(Step::Break)
        ], 0..80))
    {
        let (mut a, mut b) = (end(1, 10), end(1, 20));
        connect(&mut a, &mut b);
        let (mut sent, mut to_a, mut to_b) = ([0u32; 2], Vec::new(), Vec::new());
        let (mut flight_a, mut flight_b) = (VecDeque::new(), VecDeque::new());
        for step in steps {
            match step {
                Step::SendA => { sent[0] += 1; a.send(sent[0]); }
                Step::SendB => { sent[1] += 1; b.send(sent[1]); }
                Step::CarryA => if let Some(m) = flight_a.pop_front() { to_b.extend(b.receive(m).unwrap()); },
                Step::CarryB => if let Some(m) = flight_b.pop_front() { to_a.extend(a.receive(m).unwrap()); },
                Step::Break(lost) => {
                    flight_a.clear();
                    flight_b.clear();
                    if lost {
                        b.greet(&hello(&a)).unwrap();
                        while b.poll_transmit().is_some() {}
                    }
                    connect(&mut a, &mut b);
                }
            }
            flight_a.extend(std::iter::from_fn(|| a.poll_transmit()));
            flight_b.extend(std::iter::from_fn(|| b.poll_transmit()));
        }
        connect(&mut a, &mut b);
        to_b.extend(carry(&mut a, &mut b));
        to_a.extend(carry(&mut b, &mut a));
        prop_assert_eq!(to_b, (1..=sent[0]).collect::<Vec<_>>());
        prop_assert_eq!(to_a, (1..=sent[1]).collect::<Vec<_>>());
    }
}
