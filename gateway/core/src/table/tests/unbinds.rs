//! Unbinds: what they need, and what a captured one does not do.

use super::*;

const YEAR_2099: u64 = 4_070_908_800_000_000_000;

fn left(table: &Table) -> u64 {
    let state = table.state(Duration::ZERO).next().expect("a circuit");
    state.counts.events.left
}

/// Binds side A of circuit 1 at 4 with a clock. The last answers can be lost: `heard` is how many
/// of the challenge and the answer to the second bind arrive.
#[track_caller]
fn bind_at(table: &mut Table, now: Duration, end: &mut Client, clock: u64, heard: usize) {
    let mut message = end.bind(clock);
    for n in 0..2 {
        let Action::Answer(answer) = table.handle(now, &message, &at(4)) else {
            panic!("no answer: {table:#?}");
        };
        if n < heard {
            match end.receive(&answer, clock) {
                Some(EndEvent::Send(next)) => message = next,
                heard => {
                    assert_eq!(heard, Some(EndEvent::Bound(10_000)));
                    break;
                }
            }
        }
    }
    assert_eq!(
        table.handle(now, &datagram(1), &at(3)),
        Action::Forward(at(4))
    );
}

/// An end was bound with a clock of 2099, and its unbind was captured. Its clock is right now. The
/// captured unbind from its address does not unbind it, however often it comes.
#[test]
fn a_replayed_unbind_unbinds_no_end_whose_clock_was_set_back() {
    for delivered in [false, true] {
        let (mut table, ..) = joined();
        let now = seconds(1);
        let mut wrong = client(1, Side::A);
        bind_at(&mut table, now, &mut wrong, YEAR_2099, 2);
        let captured = wrong.unbind(YEAR_2099);
        if delivered {
            assert_eq!(table.handle(now, &captured, &at(4)), Action::Done);
        }
        let before = left(&table);
        let mut right = client(1, Side::A);
        bind_at(&mut table, now, &mut right, 5 * SECOND, 2);
        for n in 2..6 {
            let now = seconds(n);
            match table.handle(now, &captured, &at(4)) {
                Action::Answer(answer) => {
                    assert_eq!(answer[9], Kind::Challenge as u8);
                    assert_eq!(right.receive(&answer, 0), None, "it did not ask");
                }
                action => panic!("{action:?}: {table:#?}"),
            }
            assert_eq!(
                table.handle(now, &datagram(1), &at(3)),
                Action::Forward(at(4)),
                "replay {n}"
            );
            let renewed = table.handle(now, &right.bind(0), &at(4));
            let Action::Answer(answer) = renewed else {
                panic!("{renewed:?}: {table:#?}");
            };
            assert_eq!(right.receive(&answer, 0), Some(EndEvent::Bound(10_000)));
        }
        // It does not move the watermark either, nor count as one who left.
        assert_eq!(left(&table), before);
        let unbind = right.unbind(0);
        assert_eq!(table.handle(seconds(6), &unbind, &at(4)), Action::Done);
        assert_eq!(left(&table), before + 1);
    }
}

#[test]
fn an_unbind_after_a_bind_works_at_once() {
    let (mut table, mut a, _) = joined();
    let now = seconds(1);
    assert_eq!(table.handle(now, &a.unbind(SECOND), &at(2)), Action::Done);
    assert_eq!(table.bound(now), 1);
    // And after a bind that has set the watermark back.
    let mut wrong = client(1, Side::A);
    bind_at(&mut table, now, &mut wrong, YEAR_2099, 2);
    let mut right = client(1, Side::A);
    bind_at(&mut table, now, &mut right, 5 * SECOND, 2);
    let unbind = right.unbind(5 * SECOND);
    assert_eq!(table.handle(now, &unbind, &at(4)), Action::Done);
    assert_eq!((table.bound(now), left(&table)), (1, 2));
    // It took the timestamp, so that it works once.
    bind_at(&mut table, now, &mut right, 6 * SECOND, 2);
    assert_eq!(
        table.handle(now, &unbind, &at(4)),
        Action::Drop(Reason::Replayed)
    );
}

/// The answer to the bind that set the watermark back was lost, and the end has the cookie of the
/// challenge before it, which is used up.
#[test]
fn an_unbind_with_an_old_cookie_is_challenged_and_the_next_one_works() {
    for lost in [false, true] {
        let (mut table, ..) = joined();
        let now = seconds(1);
        bind_at(&mut table, now, &mut client(1, Side::A), YEAR_2099, 2);
        let mut end = client(1, Side::A);
        bind_at(&mut table, now, &mut end, 5 * SECOND, 1);
        let unbind = end.unbind(6 * SECOND);
        let Action::Answer(challenge) = table.handle(now, &unbind, &at(4)) else {
            panic!("no challenge: {table:#?}");
        };
        assert_eq!(table.bound(now), 2, "not yet");
        if lost {
            // It is unbound after the lifetime.
            assert_eq!(table.bound(now + LIFETIME), 0);
            continue;
        }
        let Some(EndEvent::Send(again)) = end.receive(&challenge, 6 * SECOND) else {
            panic!("no second unbind");
        };
        assert_eq!(table.handle(now, &again, &at(4)), Action::Done);
        assert_eq!((table.bound(now), left(&table)), (1, 1));
    }
}

#[test]
fn an_unbind_after_the_cookie_has_expired_is_challenged_and_the_next_one_works() {
    let mut table = table();
    table.set_lifetime(seconds(1000));
    let mut end = client(1, Side::A);
    let mut message = end.bind(1);
    while let Action::Answer(answer) = table.handle(seconds(0), &message, &at(2)) {
        let Some(EndEvent::Send(next)) = end.receive(&answer, 1) else {
            break;
        };
        message = next;
    }
    let now = COOKIE_WINDOW * 2;
    assert_eq!(table.bound(now), 1);
    let Action::Answer(challenge) = table.handle(now, &end.unbind(2), &at(2)) else {
        panic!("no challenge: {table:#?}");
    };
    let Some(EndEvent::Send(again)) = end.receive(&challenge, 2) else {
        panic!("no second unbind");
    };
    assert_eq!(table.handle(now, &again, &at(2)), Action::Done);
    assert_eq!(table.bound(now), 0);
}

/// Captured unbinds use up challenges of the slot of the source that they have, as captured binds
/// do, and not the messages of proven addresses.
#[test]
fn unbinds_without_a_valid_cookie_use_no_messages_of_the_end() {
    let (mut table, mut a, _) = joined();
    let now = seconds(1);
    let unbind = |n: u64| {
        let message = Message {
            kind: Kind::Unbind,
            side: Side::A,
            circuit: id(1),
            timestamp: YEAR_2099 + n,
            cookie: Tag([7; 16]),
            lifetime: 0,
            load: Load::UNKNOWN,
        };
        message.seal(&key(1, Side::A))
    };
    let mut challenges = 0;
    for n in 0..1000 {
        match table.handle(now, &unbind(n), &at(2)) {
            Action::Answer(answer) => {
                assert_eq!(answer[9], Kind::Challenge as u8);
                challenges += 1;
            }
            action => assert_eq!(action, Action::Drop(Reason::BindRate)),
        }
    }
    assert_eq!(challenges, CHALLENGES);
    // From where the side is not bound they are not answered.
    assert_eq!(
        table.handle(now, &unbind(2000), &at(4)),
        Action::Drop(Reason::NotBound)
    );
    let answered = (0..BINDS).filter(|_| {
        let renewed = table.handle(now, &a.bind(SECOND), &at(2));
        matches!(renewed, Action::Answer(answer) if answer[9] == Kind::Bound as u8)
    });
    assert_eq!(answered.count(), BINDS as usize);
}
