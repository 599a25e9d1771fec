use std::collections::HashSet;

use proptest::{collection::vec, prelude::*};

use super::*;
use gateway_client::end::{End as Client, EndEvent};

mod unbinds;

const LIFETIME: Duration = Duration::from_secs(10);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn id(n: u64) -> CircuitId {
    CircuitId::new(n << 32 | 5).expect("an id")
}

fn key(circuit: u64, side: Side) -> Key {
    Key::new([circuit as u8 * 2 + side as u8 + 1; 32])
}

fn client(circuit: u64, side: Side) -> Client {
    Client::new(id(circuit), side, key(circuit, side))
}

fn circuit(n: u64, tenant: &Arc<Tenant>) -> CircuitPlan {
    CircuitPlan {
        id: id(n),
        tenant: Arc::clone(tenant),
        keys: Side::BOTH.map(|side| key(n, side)),
    }
}

/// Circuits 1 and 2 of the first tenant, circuit 3 of the second.
fn plan_of(acme: Tenant, evil: Tenant) -> Vec<CircuitPlan> {
    let (acme, evil) = (Arc::new(acme), Arc::new(evil));
    vec![circuit(1, &acme), circuit(2, &acme), circuit(3, &evil)]
}

fn plan() -> Vec<CircuitPlan> {
    plan_of(Tenant::unlimited("acme"), Tenant::unlimited("evil"))
}

fn table() -> Table {
    with(&plan(), 0xee)
}

fn with(plan: &[CircuitPlan], secret: u8) -> Table {
    let mut table = Table::new(Key::new([secret; 32]));
    table.set_lifetime(LIFETIME);
    replan(&mut table, plan, |_| true);
    table
}

/// Changes the table so that it has these circuits and no other.
fn replan(table: &mut Table, plan: &[CircuitPlan], ours: impl Fn(CircuitId) -> bool) {
    let put: Vec<CircuitPlan> = plan.iter().filter(|c| ours(c.id)).cloned().collect();
    let present: Vec<CircuitId> = table.state(Duration::ZERO).map(|c| c.id).collect();
    let is_gone = |id: &CircuitId| put.iter().all(|c| c.id != *id);
    let removed = present.into_iter().filter(is_gone).collect();
    table.change(Change { removed, put });
}

fn at(n: u8) -> Path {
    let remote = match n % 2 {
        0 => ([192, 0, 2, n], 1000 + u16::from(n)).into(),
        _ => (
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)],
            1000 + u16::from(n),
        )
            .into(),
    };
    Path {
        socket: u16::from(n % 2),
        local: None,
        remote,
    }
}

fn datagram(circuit: u64) -> Vec<u8> {
    [&id(circuit).to_bytes()[..], b"opaque"].concat()
}

/// Binds in two round trips, or in one.
#[track_caller]
fn bind(table: &mut Table, now: Duration, client: &mut Client, from: u8) {
    let clock = now.as_nanos() as u64 + 1;
    let mut message = client.bind(clock);
    for _ in 0..2 {
        let Action::Answer(answer) = table.handle(now, &message, &at(from)) else {
            panic!("no answer: {table:#?}");
        };
        match client.receive(&answer, clock) {
            Some(EndEvent::Send(next)) => message = next,
            Some(EndEvent::Bound(10_000)) => return,
            other => panic!("{other:?}: {table:#?}"),
        }
    }
    panic!("challenged twice: {table:#?}");
}

/// Circuit 1 with its sides at 2 and 3.
fn joined() -> (Table, Client, Client) {
    let (mut table, mut a, mut b) = (table(), client(1, Side::A), client(1, Side::B));
    bind(&mut table, seconds(0), &mut a, 2);
    bind(&mut table, seconds(0), &mut b, 3);
    (table, a, b)
}

#[test]
fn datagrams_are_forwarded_between_the_sides() {
    let (mut table, ..) = joined();
    let now = seconds(1);
    assert_eq!(
        table.handle(now, &datagram(1), &at(2)),
        Action::Forward(at(3))
    );
    assert_eq!(
        table.handle(now, &datagram(1), &at(3)),
        Action::Forward(at(2))
    );
    let state: Vec<CircuitState> = table.state(now).collect();
    assert_eq!(
        state[0].bound,
        [at(2), at(3)].map(|path| Some(path.remote)),
        "{state:#?}"
    );
    let one = Traffic {
        datagrams: 1,
        bytes: 14,
    };
    assert_eq!(state[0].counts.from, [one, one]);
    assert_eq!((state[0].counts.events.bound, table.bound(now)), (2, 2));
}

#[test]
fn each_drop_has_its_reason() {
    let (mut table, mut a, _) = joined();
    let now = seconds(1);
    let signed = |kind, side, timestamp| {
        let message = Message {
            kind,
            side,
            circuit: id(1),
            timestamp,
            cookie: Tag::NONE,
            lifetime: 0,
            load: Load::UNKNOWN,
        };
        message.seal(&key(1, side)).to_vec()
    };
    let later = 10_000_000_000;
    let other_key = Client::new(id(1), Side::A, key(3, Side::A)).bind(later);
    let other_side = Client::new(id(1), Side::A, key(1, Side::B)).bind(later);
    let last = a.bind(1);
    assert!(matches!(
        table.handle(now, &last, &at(2)),
        Action::Answer(_)
    ));
    for (what, bytes, from, reason) in [
        ("nothing", vec![], 2, Reason::Malformed),
        (
            "an id alone",
            id(1).to_bytes().to_vec(),
            2,
            Reason::Malformed,
        ),
        ("no message", vec![0; 64], 2, Reason::Malformed),
        ("a guessed id", datagram(77), 2, Reason::NoCircuit),
        (
            "a guessed circuit",
            client(77, Side::A).bind(9).to_vec(),
            2,
            Reason::NoCircuit,
        ),
        (
            "another tenant's key",
            other_key.to_vec(),
            2,
            Reason::Forged,
        ),
        (
            "the other side's key",
            other_side.to_vec(),
            2,
            Reason::Forged,
        ),
        ("the last bind", last.to_vec(), 4, Reason::Replayed),
        (
            "a gateway's word",
            signed(Kind::Move, Side::A, later),
            2,
            Reason::NotForUs,
        ),
        (
            "an unbind from elsewhere",
            signed(Kind::Unbind, Side::A, later),
            4,
            Reason::NotBound,
        ),
        ("a stranger's", datagram(1), 4, Reason::NotBound),
        ("of an unbound circuit", datagram(2), 2, Reason::NotBound),
    ] {
        let action = table.handle(now, &bytes, &at(from));
        assert_eq!(action, Action::Drop(reason), "{what}: {table:#?}");
    }
    assert_eq!(table.bound(now), 2, "and both stay bound");
    let total: u64 = table.drops().iter().sum::<u64>();
    let of_circuits = table.state(now).flat_map(|c| c.counts.drops).sum::<u64>();
    assert_eq!(total + of_circuits, 12, "each is counted once");
}

/// An end that was bound with a clock in 2099, and one whose clock
/// was set back, bind with the right time; and what was captured before binds nothing.
#[test]
fn a_clock_of_2099_locks_no_end_out() {
    const YEAR_2099: u64 = 4_070_908_800_000_000_000;
    let (mut table, ..) = joined();
    let mut wrong = client(1, Side::A);
    let mut now = seconds(1);
    let from = at(4);
    let mut captured = Vec::new();
    let mut message = wrong.bind(YEAR_2099);
    while let Action::Answer(answer) = table.handle(now, &message, &from) {
        captured.push(message);
        match wrong.receive(&answer, YEAR_2099) {
            Some(EndEvent::Send(next)) => message = next,
            heard => {
                assert_eq!(heard, Some(EndEvent::Bound(10_000)));
                break;
            }
        }
    }
    // It starts again, with the right time.
    let mut right = client(1, Side::A);
    bind(&mut table, now, &mut right, 4);
    now += seconds(1);
    bind(&mut table, now, &mut right, 4);
    assert_eq!(
        table.handle(now, &datagram(1), &at(3)),
        Action::Forward(at(4))
    );
    // It moves on; neither a challenge nor a bind of 2099 takes it back, and challenges to repeated
    // captures are few.
    bind(&mut table, now, &mut right, 6);
    let mut challenges = 0;
    for _ in 0..100 {
        for message in &captured {
            match table.handle(now, message, &from) {
                Action::Answer(answer) => {
                    assert_eq!(answer[9], Kind::Challenge as u8);
                    assert_eq!(right.receive(&answer, 0), None, "it did not ask");
                    challenges += 1;
                }
                Action::Drop(Reason::Replayed | Reason::BindRate) => {}
                action => panic!("{action:?}"),
            }
        }
    }
    assert!(challenges <= CHALLENGES, "{challenges}");
    assert_eq!(
        table.handle(now, &datagram(1), &at(3)),
        Action::Forward(at(6))
    );
}

/// A copy of a bind that comes from elsewhere before it takes nothing from it, and
/// neither do captures after a restart of the gateway.
#[test]
fn copies_that_come_first_lock_no_end_out() {
    let (mut table, mut a, _) = joined();
    let now = seconds(1);
    // From an address to which no cookie was sent, every time.
    for n in 0..5u64 {
        let clock = (5 + n) * SECOND;
        let mut again = client(1, Side::A);
        let word = again.bind(clock);
        let now = now + seconds(n);
        for copy in [5, 7] {
            let stolen = table.handle(now, &word, &at(copy));
            assert!(matches!(stolen, Action::Answer(_)), "{stolen:?}");
        }
        let Action::Answer(challenge) = table.handle(now, &word, &at(4)) else {
            panic!("{n}: {table:#?}");
        };
        let Some(EndEvent::Send(word)) = again.receive(&challenge, clock) else {
            panic!("{n}: not a challenge");
        };
        let Action::Answer(bound) = table.handle(now, &word, &at(4)) else {
            panic!("{n}: {table:#?}");
        };
        assert_eq!(again.receive(&bound, clock), Some(EndEvent::Bound(10_000)));
    }
    // After a restart all captures are newer than what the gateway knows.
    let mut table = with(&plan(), 0xdd);
    let captured = (0..40).map(|n| client(1, Side::A).bind(100 + n));
    for word in captured.collect::<Vec<_>>() {
        table.handle(now, &word, &at(5));
    }
    bind(&mut table, now, &mut a, 2);
    assert_eq!(table.state(now).next().expect("one").counts.events.bound, 1);
}

/// A bind that was kept back or copied has used its cookie up.
#[test]
fn a_cookie_outranks_the_timestamp_once() {
    let (mut table, mut a, _) = joined();
    let now = seconds(1);
    // The clock of A was set back by a start.
    a.bind(1_000_000);
    assert!(matches!(
        table.handle(now, &a.bind(0), &at(2)),
        Action::Answer(_)
    ));
    let mut again = client(1, Side::A);
    let Action::Answer(challenge) = table.handle(now, &again.bind(5), &at(2)) else {
        panic!("{table:#?}");
    };
    let Some(EndEvent::Send(message)) = again.receive(&challenge, 5) else {
        panic!("no challenge");
    };
    let Action::Answer(bound) = table.handle(now, &message, &at(2)) else {
        panic!("{table:#?}");
    };
    assert_eq!(again.receive(&bound, 5), Some(EndEvent::Bound(10_000)));
    bind(&mut table, now, &mut again, 4);
    // Its copy comes late, when the end is elsewhere.
    let late = table.handle(now, &message, &at(2));
    assert!(
        matches!(late, Action::Drop(Reason::Replayed))
            || matches!(late, Action::Answer(answer) if answer[9] == Kind::Challenge as u8)
    );
    assert_eq!(
        table.handle(now, &datagram(1), &at(3)),
        Action::Forward(at(4))
    );
}

#[test]
fn an_address_is_used_only_after_its_cookie_came_back() {
    let (mut table, mut a, _) = joined();
    let now = seconds(1);
    // It roams: its message from 4 moves nothing yet.
    let clock = 5_000_000_000;
    let message = a.bind(clock);
    let Action::Answer(challenge) = table.handle(now, &message, &at(4)) else {
        panic!("{table:#?}");
    };
    let to_a = |table: &mut Table| table.handle(now, &datagram(1), &at(3));
    assert_eq!(to_a(&mut table), Action::Forward(at(2)));
    assert_eq!(
        table.handle(now, &datagram(1), &at(4)),
        Action::Drop(Reason::NotBound)
    );
    let Some(EndEvent::Send(message)) = a.receive(&challenge, clock) else {
        panic!("not a challenge");
    };
    // The cookie is of 4 and for 4.
    let Action::Answer(again) = table.handle(now, &message, &at(6)) else {
        panic!("{table:#?}");
    };
    assert_eq!(to_a(&mut table), Action::Forward(at(2)));
    assert_eq!(a.receive(&again, clock), None, "one challenge a bind");
    bind(&mut table, seconds(6), &mut a, 4);
    assert_eq!(
        table.handle(seconds(6), &datagram(1), &at(3)),
        Action::Forward(at(4))
    );
    let state = table.state(now).next().expect("a circuit");
    assert_eq!(state.counts.events.moved, 1);
    assert_eq!(
        table.handle(now, &datagram(1), &at(2)),
        Action::Drop(Reason::NotBound)
    );
}

#[test]
fn a_binding_expires_without_another_bind() {
    let (mut table, mut a, mut b) = joined();
    bind(&mut table, seconds(8), &mut a, 2);
    let just_before = LIFETIME - Duration::from_nanos(1);
    assert_eq!(
        table.handle(just_before, &datagram(1), &at(2)),
        Action::Forward(at(3))
    );
    // Datagrams of B do not keep it: they prove nothing.
    assert_eq!(
        table.handle(LIFETIME, &datagram(1), &at(3)),
        Action::Drop(Reason::NotBound)
    );
    assert_eq!(
        table.handle(LIFETIME, &datagram(1), &at(2)),
        Action::Drop(Reason::NoPeer)
    );
    table.sweep(LIFETIME);
    table.sweep(LIFETIME);
    let state = table.state(LIFETIME).next().expect("a circuit");
    assert_eq!(state.counts.events.expired, 1);
    assert_eq!(state.bound, [Some(at(2).remote), None]);
    bind(&mut table, seconds(11), &mut b, 3);
    // And who leaves is gone at once.
    assert_eq!(
        table.handle(seconds(12), &a.unbind(0), &at(2)),
        Action::Done
    );
    assert_eq!(
        table.handle(seconds(12), &datagram(1), &at(3)),
        Action::Drop(Reason::NoPeer)
    );
    assert_eq!(table.bound(seconds(12)), 1);
}

#[test]
fn cookies_expire_and_are_renewed_by_each_bind() {
    let (mut table, mut a, mut b) = joined();
    let answers = |table: &mut Table, now, client: &mut Client, from| {
        let Action::Answer(answer) = table.handle(now, &client.bind(0), &at(from)) else {
            panic!("{table:#?}");
        };
        client.receive(&answer, 0)
    };
    for n in 1..100 {
        let heard = answers(&mut table, seconds(n * 7), &mut a, 2);
        assert_eq!(heard, Some(EndEvent::Bound(10_000)));
    }
    let heard = answers(&mut table, seconds(700), &mut b, 3);
    assert!(matches!(heard, Some(EndEvent::Send(_))), "{heard:?}");
    // Those of a gateway that was started again are none.
    let mut again = with(&plan(), 0xdd);
    let heard = answers(&mut again, seconds(0), &mut a, 2);
    assert!(matches!(heard, Some(EndEvent::Send(_))), "{heard:?}");
}

#[test]
fn both_sides_cannot_bind_to_one_address() {
    let (mut table, _, mut b) = joined();
    let Action::Answer(challenge) = table.handle(seconds(1), &b.bind(0), &at(2)) else {
        panic!("{table:#?}");
    };
    let Some(EndEvent::Send(message)) = b.receive(&challenge, 0) else {
        panic!("not a challenge");
    };
    assert_eq!(
        table.handle(seconds(1), &message, &at(2)),
        Action::Drop(Reason::SameAddress)
    );
}

#[test]
fn valid_messages_are_rate_limited() {
    let (mut table, mut a, _) = joined();
    let answered = (0..1000).filter(|_| {
        let message = a.bind(0);
        matches!(
            table.handle(seconds(5), &message, &at(4)),
            Action::Answer(_)
        )
    });
    assert_eq!(answered.count(), CHALLENGES as usize);
    // Those of proven addresses have a budget of their own.
    bind(&mut table, seconds(5), &mut a, 2);
    let answered = (0..1000).filter(|_| {
        let word = a.bind(0);
        matches!(table.handle(seconds(5), &word, &at(2)), Action::Answer(_))
    });
    assert_eq!(answered.count(), BINDS as usize - 1);
    // The other side's are its own.
    let mut b = client(1, Side::B);
    bind(&mut table, seconds(5), &mut b, 3);
}

#[test]
fn rate_limits_of_tenants_are_independent() {
    let plan = plan_of(
        Tenant {
            datagrams: Bucket::new(100, Duration::from_millis(100)),
            ..Tenant::unlimited("acme")
        },
        Tenant {
            bytes: Bucket::new(1400, Duration::from_millis(100)),
            ..Tenant::unlimited("evil")
        },
    );
    let mut table = with(&plan, 1);
    for (circuit, a, b) in [(1, 2, 3), (2, 4, 5), (3, 6, 7)] {
        bind(&mut table, seconds(0), &mut client(circuit, Side::A), a);
        bind(&mut table, seconds(0), &mut client(circuit, Side::B), b);
    }
    let mut passed = [0; 4];
    for n in 0..2000 {
        let now = seconds(1) + Duration::from_millis(n);
        for (circuit, from) in [(1, 2), (2, 5), (3, 6)] {
            match table.handle(now, &datagram(circuit), &at(from)) {
                Action::Forward(_) => passed[circuit as usize] += 1,
                other => assert_eq!(other, Action::Drop(Reason::Rate)),
            }
        }
        let now = now.min(seconds(9));
        if n % 500 == 0 {
            assert_eq!(table.bound(now), 6);
        }
    }
    // Two circuits share 100 a second; 14 bytes each of 1400 are 100 a second too.
    assert!((205..=215).contains(&(passed[1] + passed[2])), "{passed:?}");
    assert!((205..=215).contains(&passed[3]), "{passed:?}");
}

#[test]
fn answers_carry_the_load_of_the_gateway() {
    let (mut table, mut a, _) = joined();
    assert_eq!(a.load(), None, "the gateway does not tell");
    table.set_load(Load::from_thousandths(400));
    bind(&mut table, seconds(1), &mut a, 2);
    assert_eq!(a.load(), Some(400));
    table.set_load(Load::from_thousandths(800));
    table.drain();
    let (_, told) = table.moves(seconds(1)).next().expect("an order");
    assert_eq!(a.receive(&told, 0), Some(EndEvent::Move));
    assert_eq!(a.load(), Some(800));
    // A challenge has none: it goes to senders that have proved no address.
    let Action::Answer(challenge) = table.handle(seconds(1), &a.bind(0), &at(4)) else {
        panic!("no answer");
    };
    assert_eq!(challenge[11], 0);
}

#[test]
fn draining_orders_ends_to_move_and_drops_no_datagram() {
    let (mut table, mut a, mut b) = joined();
    let now = seconds(1);
    table.drain();
    let told: Vec<_> = table.moves(now).collect();
    assert_eq!(told.len(), 2);
    assert_eq!((told[0].0, told[1].0), (at(2), at(3)));
    assert_eq!(a.receive(&told[0].1, 0), Some(EndEvent::Move));
    assert_eq!(b.receive(&told[0].1, 0), None, "it is A's");
    assert_eq!(b.receive(&told[1].1, 0), Some(EndEvent::Move));
    assert_eq!(
        table.handle(now, &datagram(1), &at(2)),
        Action::Forward(at(3))
    );
    // It may ask, and roam, and goes on.
    let mut message = a.bind(0);
    for heard in [None, Some(EndEvent::Move)] {
        let Action::Answer(answer) = table.handle(now, &message, &at(4)) else {
            panic!("{table:#?}");
        };
        match a.receive(&answer, 0) {
            Some(EndEvent::Send(next)) => message = next,
            other => assert_eq!(other, heard),
        }
    }
    assert_eq!(
        table.handle(now, &datagram(1), &at(3)),
        Action::Forward(at(4))
    );
    // An end that is not bound gets an answer and is not bound.
    let mut late = client(2, Side::A);
    let Action::Answer(challenge) = table.handle(now, &late.bind(0), &at(6)) else {
        panic!("{table:#?}");
    };
    let Some(EndEvent::Send(message)) = late.receive(&challenge, 0) else {
        panic!("not a challenge");
    };
    let Action::Answer(away) = table.handle(now, &message, &at(6)) else {
        panic!("{table:#?}");
    };
    assert_eq!(late.receive(&away, 0), Some(EndEvent::Move));
    assert_eq!(table.bound(now), 2);
}

#[test]
fn a_new_plan_keeps_unchanged_circuits() {
    let (mut table, _, mut b) = joined();
    let now = seconds(1);
    bind(&mut table, now, &mut client(3, Side::A), 6);
    // Circuits in another order; one goes; the tenants are others of the same names.
    let mut new = plan();
    new.reverse();
    new.remove(1);
    replan(&mut table, &new, |_| true);
    assert_eq!(
        table.handle(now, &datagram(1), &at(2)),
        Action::Forward(at(3))
    );
    assert_eq!(table.bound(now), 3);
    let state = table.state(now).find(|circuit| circuit.id == id(1));
    let state = state.expect("a circuit");
    assert_eq!((&*state.tenant, state.counts.events.bound), ("acme", 2));
    new[1].keys[0] = Key::new([99; 32]);
    replan(&mut table, &new, |_| true);
    assert_eq!(
        table.handle(now, &datagram(1), &at(3)),
        Action::Drop(Reason::NoPeer)
    );
    let old = client(1, Side::A).bind(u64::MAX / 2);
    assert_eq!(
        table.handle(now, &old, &at(2)),
        Action::Drop(Reason::Forged)
    );
    bind(&mut table, now, &mut b, 3);
    // Another tenant's now: nothing of the old one is left.
    new[1].tenant = Arc::clone(&new[0].tenant);
    replan(&mut table, &new, |_| true);
    assert_eq!(table.bound(now), 1);
    // A socket goes: who was bound there is not.
    table.renumber_sockets(&[None, Some(0)]);
    assert_eq!(table.bound(now), 0);
}

#[test]
fn a_table_has_only_its_share() {
    let mut table = table();
    replan(&mut table, &plan(), |circuit| circuit != id(1));
    let message = client(1, Side::A).bind(1);
    assert_eq!(
        table.handle(seconds(0), &message, &at(2)),
        Action::Drop(Reason::NoCircuit)
    );
    bind(&mut table, seconds(0), &mut client(2, Side::A), 2);
    assert_eq!(table.state(seconds(0)).count(), 2);
}

/// An action in the model below.
#[derive(Clone, Debug)]
enum Act {
    /// Time passes, milliseconds.
    Wait(u64),
    /// An end goes to another address.
    Roam(usize, u8),
    /// An end binds; the network carries it, or the attacker captures it.
    Bind(usize, bool),
    /// An end sends a datagram.
    Send(usize),
    /// The attacker sends what it captured, from an address of its own or a spoofed one.
    Replay(prop::sample::Index, u8),
    /// And with a bit changed.
    Change(prop::sample::Index, prop::sample::Index, u8),
    /// Datagrams on circuits, of his and others and none.
    Inject(u64, u8),
    /// Messages for any circuit, with the attacker's own keys, and with the cookies that the
    /// attacker has received.
    Forge(u64, bool, bool, prop::sample::Index, u64, u8),
    /// The table is swept.
    Sweep,
}

fn act() -> impl Strategy<Value = Act> {
    let address = 0u8..10;
    prop_oneof![
        1 => (0u64..6000).prop_map(Act::Wait),
        2 => (0usize..6, 0u8..6).prop_map(|(end, to)| Act::Roam(end, to)),
        6 => (0usize..6, prop::bool::weighted(0.8)).prop_map(|(end, sent)| Act::Bind(end, sent)),
        6 => (0usize..6).prop_map(Act::Send),
        4 => (any::<prop::sample::Index>(), address.clone())
            .prop_map(|(n, from)| Act::Replay(n, from)),
        2 => (any::<prop::sample::Index>(), any::<prop::sample::Index>(), address.clone())
            .prop_map(|(n, bit, from)| Act::Change(n, bit, from)),
        4 => (0u64..5, address.clone()).prop_map(|(circuit, from)| Act::Inject(circuit, from)),
        4 => (
            0u64..5,
            any::<bool>(),
            any::<bool>(),
            any::<prop::sample::Index>(),
            0u64..1 << 50,
            address,
        )
            .prop_map(|(c, b, key, cookie, time, from)| Act::Forge(c, b, key, cookie, time, from)),
        1 => Just(Act::Sweep),
    ]
}

/// The world: addresses 0 to 5 are honest ends' (end n of circuit n / 2 + 1), 6 to 9 the
/// attacker's, who is tenant evil, has the keys of circuit 4, receives a copy of all that is sent,
/// and sends from any address.
struct World {
    table: Table,
    now: Duration,
    ends: Vec<(Client, u8)>,
    /// Where an end has heard a challenge.
    challenged: Vec<HashSet<SocketAddr>>,
    /// Where it was said to be bound, and when.
    proven: Vec<Vec<(SocketAddr, Duration)>>,
    heard: Vec<Vec<u8>>,
    cookies: Vec<Tag>,
    answered: HashSet<Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let mut plan = plan();
        let (acme, evil) = (Arc::clone(&plan[0].tenant), Arc::clone(&plan[2].tenant));
        plan[2].tenant = acme;
        plan.push(circuit(4, &evil));
        let end = |n: usize| (client(n as u64 / 2 + 1, Side::BOTH[n % 2]), n as u8);
        Self {
            table: with(&plan, 0xee),
            now: Duration::ZERO,
            ends: (0..6).map(end).collect(),
            challenged: vec![HashSet::new(); 6],
            proven: vec![Vec::new(); 6],
            heard: Vec::new(),
            cookies: vec![Tag::NONE],
            answered: HashSet::new(),
        }
    }

    fn clock(&self) -> u64 {
        self.now.as_nanos() as u64 + 1
    }

    /// Datagrams from anywhere reach the gateway; the invariants hold.
    fn arrives(&mut self, bytes: &[u8], from: u8) -> Result<(), TestCaseError> {
        self.heard.push(bytes.to_vec());
        let action = self.table.handle(self.now, bytes, &at(from));
        match action {
            Action::Forward(to) => {
                let circuit = number(&bytes[..4]) as usize;
                if circuit < 4 {
                    let is_proven = |remote: SocketAddr, end: usize| {
                        let mut proofs = self.proven[end].iter();
                        proofs.any(|(address, when)| {
                            *address == remote && self.now < *when + LIFETIME
                        })
                    };
                    let (a, b) = (circuit * 2 - 2, circuit * 2 - 1);
                    let ways = [(a, b), (b, a)];
                    let fits = ways.iter().any(|(source, target)| {
                        is_proven(at(from).remote, *source) && is_proven(to.remote, *target)
                    });
                    prop_assert!(fits, "{:?} to {:?}: {:#?}", at(from), to, self.table);
                } else {
                    prop_assert!(circuit == 4, "there is none");
                    prop_assert!(
                        to.remote.port() >= 1006,
                        "the attacker's circuit leads to it only"
                    );
                }
            }
            Action::Answer(answer) => {
                prop_assert!(answer.len() <= bytes.len());
                // A repeated message is challenged at most.
                prop_assert!(
                    answer[9] == Kind::Challenge as u8 || self.answered.insert(bytes.to_vec()),
                    "answered twice: {bytes:?}"
                );
                self.heard.push(answer.to_vec());
                let Ok(Datagram::Message(sealed)) = parse(&answer) else {
                    panic!("an answer is a message");
                };
                if sealed.kind() == Kind::Bound && sealed.circuit() != id(4) {
                    let circuit = number(&sealed.circuit().to_bytes()[..4]) as usize;
                    let end = circuit * 2 - 2 + sealed.side().index();
                    let remote = at(from).remote;
                    // The end receives at the address that the bind came from.
                    prop_assert!(self.challenged[end].contains(&remote), "{:#?}", self.table);
                    self.proven[end].push((remote, self.now));
                }
                let mut cookie = Tag::NONE;
                cookie.0.copy_from_slice(&answer[28..44]);
                if from >= 6 && sealed.circuit() == id(4) {
                    self.cookies.push(cookie);
                }
                self.hears(from, &answer)?;
            }
            Action::Done | Action::Drop(_) => {}
        }
        Ok(())
    }

    /// An answer reaches the end at its destination address.
    fn hears(&mut self, address: u8, answer: &[u8]) -> Result<(), TestCaseError> {
        let clock = self.clock();
        for n in 0..self.ends.len() {
            if self.ends[n].1 != address {
                continue;
            }
            match self.ends[n].0.receive(answer, clock) {
                Some(EndEvent::Send(message)) => {
                    self.challenged[n].insert(at(address).remote);
                    self.arrives(&message, address)?;
                }
                Some(EndEvent::Bound(_)) | None => {}
                Some(EndEvent::Move) => return Err(TestCaseError::fail("it does not drain")),
            }
        }
        Ok(())
    }

    fn act(&mut self, act: Act) -> Result<(), TestCaseError> {
        match act {
            Act::Wait(time) => self.now += Duration::from_millis(time),
            Act::Sweep => self.table.sweep(self.now),
            Act::Roam(end, to) => self.ends[end].1 = to,
            Act::Bind(end, sent) => {
                let clock = self.clock();
                let message = self.ends[end].0.bind(clock);
                let from = self.ends[end].1;
                if sent {
                    self.arrives(&message, from)?;
                } else {
                    self.heard.push(message.to_vec());
                }
            }
            Act::Send(end) => self.arrives(&datagram(end as u64 / 2 + 1), self.ends[end].1)?,
            Act::Replay(which, from) if !self.heard.is_empty() => {
                let bytes = which.get(&self.heard).clone();
                self.arrives(&bytes, from)?;
            }
            Act::Change(which, bit, from) if !self.heard.is_empty() => {
                let mut bytes = which.get(&self.heard).clone();
                let bit = bit.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                self.arrives(&bytes, from)?;
            }
            Act::Replay(..) | Act::Change(..) => {}
            Act::Inject(circuit, from) => {
                self.arrives(&datagram(circuit.max(1)), from)?;
            }
            Act::Forge(circuit, b, key_b, cookie, timestamp, from) => {
                let message = Message {
                    kind: Kind::Bind,
                    side: Side::BOTH[usize::from(b)],
                    circuit: id(circuit.max(1)),
                    timestamp,
                    cookie: *cookie.get(&self.cookies),
                    lifetime: 0,
                    load: Load::UNKNOWN,
                };
                let message = message.seal(&key(4, Side::BOTH[usize::from(key_b)]));
                self.arrives(&message, from)?;
            }
        }
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn an_attacker_without_a_key_changes_nothing(acts in vec(act(), 0..120)) {
        let mut world = World::new();
        for act in acts {
            world.act(act)?;
        }
        // And the others are bound as ever, at addresses of their own.
        world.now += LIFETIME + seconds(2);
        for n in 0..6 {
            world.ends[n].1 = n as u8;
            bind(&mut world.table, world.now, &mut world.ends[n].0, n as u8);
        }
        for n in 0..6u8 {
            let sent = world.table.handle(world.now, &datagram(u64::from(n) / 2 + 1), &at(n));
            prop_assert_eq!(sent, Action::Forward(at(n ^ 1)));
        }
    }

    #[test]
    fn any_bytes_from_anywhere_change_nothing(
        floods in vec((vec(any::<u8>(), 0..100), 0u8..3, 0u8..10), 0..100),
    ) {
        let (mut table, ..) = joined();
        for (mut bytes, form, from) in floods {
            let start: &[u8] = match form {
                0 => &[0; 8],
                1 => &id(1).to_bytes(),
                _ => &[],
            };
            let length = start.len().min(bytes.len());
            bytes[..length].copy_from_slice(&start[..length]);
            match table.handle(seconds(1), &bytes, &at(from)) {
                Action::Drop(_) => {}
                Action::Forward(to) => {
                    prop_assert!(form != 0 && (from == 2 || from == 3));
                    prop_assert_eq!(to, at(5 - from));
                }
                Action::Answer(_) | Action::Done => prop_assert!(false, "the attacker has no key"),
            }
        }
        prop_assert_eq!(table.bound(seconds(1)), 2);
    }
}

#[derive(Clone, Debug)]
enum Event {
    Bind(usize, Side, u8),
    Unbind(usize, Side, u8),
    Wait(u64),
    Sweep,
    Rearrange(bool, bool),
    Replan(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let side = prop_oneof![Just(Side::A), Just(Side::B)];
    let event = prop_oneof![
        4 => (0usize..3, side.clone(), 2u8..6).prop_map(|(n, s, at)| Event::Bind(n, s, at)),
        1 => (0usize..3, side, 2u8..6).prop_map(|(n, s, at)| Event::Unbind(n, s, at)),
        2 => (1u64..6).prop_map(Event::Wait),
        1 => Just(Event::Sweep),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(a, b)| Event::Rearrange(a, b)),
        1 => (0u8..8).prop_map(Event::Replan),
    ];
    vec(event, 1..60)
}

proptest! {
    /// A listener that hears of changes only knows at any time where each circuit is bound, and
    /// until when.
    #[test]
    fn a_listener_of_changes_has_the_contents_of_the_table(events in events()) {
        let mut table = table();
        let of_circuit = |n| Side::BOTH.map(|side| client(n, side));
        let mut clients: Vec<[Client; 2]> = (1..=3).map(of_circuit).collect();
        let mut known: HashMap<CircuitId, [Option<(Path, Duration)>; 2]> = HashMap::new();
        let mut now = seconds(1);
        for event in events {
            // So that no timestamp is an old one's.
            now += Duration::from_millis(40);
            let clock = now.as_nanos() as u64;
            match event {
                Event::Bind(n, side, from) => {
                    let end = &mut clients[n][side.index()];
                    let mut message = end.bind(clock);
                    for _ in 0..2 {
                        let Action::Answer(answer) = table.handle(now, &message, &at(from)) else {
                            break;
                        };
                        let Some(EndEvent::Send(next)) = end.receive(&answer, clock) else { break };
                        message = next;
                    }
                }
                Event::Unbind(n, side, from) => {
                    let message = clients[n][side.index()].unbind(clock);
                    table.handle(now, &message, &at(from));
                }
                Event::Wait(n) => now += seconds(n),
                Event::Sweep => table.sweep(now),
                Event::Rearrange(a, b) => {
                    table.renumber_sockets(&[a.then_some(0), b.then_some(u16::from(a))]);
                }
                Event::Replan(which) => {
                    let mut plan = plan();
                    plan.retain(|c| which & (1 << (c.id.get() >> 32 & 3)) == 0);
                    replan(&mut table, &plan, |_| true);
                    known.retain(|id, _| table.has(*id));
                }
            }
            let mut told = HashSet::new();
            table.report_changes(|bound| {
                assert!(told.insert(bound.id), "told twice");
                known.insert(bound.id, bound.ends);
            });
            for state in table.state(now) {
                let known = known[&state.id].map(|end| end.filter(|(_, until)| now < *until));
                prop_assert_eq!(known.map(|end| end.map(|(path, _)| path.remote)), state.bound);
            }
        }
        prop_assert!(known.len() <= 3);
    }
}

#[test]
fn pages_and_sums_have_every_circuit_once() {
    let (mut table, ..) = joined();
    let now = seconds(1);
    table.handle(now, &datagram(1), &at(2));
    bind(&mut table, now, &mut client(3, Side::A), 6);
    let sums: HashMap<Arc<str>, TenantCounts> = table.tenants(now).into_iter().collect();
    assert_eq!((sums["acme"].circuits, sums["acme"].bound), (2, 2));
    assert_eq!((sums["evil"].circuits, sums["evil"].bound), (1, 1));
    assert_eq!(sums["acme"].counts.from[0].datagrams, 1);
    let all: Vec<CircuitState> = table.state(now).collect();
    for limit in 1..5 {
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let page = table.page(now, (after, limit), None);
            let Some(last) = page.last() else { break };
            assert!(page.len() <= limit);
            after = Some(last.id);
            found.extend(page);
        }
        assert_eq!(found, all);
    }
    let of_evil = table.page(now, (None, 9), Some("evil"));
    assert_eq!(of_evil.iter().map(|c| c.id).collect::<Vec<_>>(), [id(3)]);
    table.drain();
    table.undrain();
    let heard = table.handle(now, &client(2, Side::A).bind(9), &at(4));
    assert!(matches!(heard, Action::Answer(_)));
    bind(&mut table, now, &mut client(2, Side::B), 5);
}

/// The buckets of a tenant are released when no circuit in XDP has them any more.
#[test]
fn a_tenant_is_released_when_its_circuits_were_reported() {
    let mut table = table();
    let [old, new] = ["old", "new"].map(|name| Arc::new(Tenant::unlimited(name)));
    let put = |tenant: &Arc<Tenant>| Change {
        put: vec![circuit(1, tenant)],
        ..Change::default()
    };
    table.change(put(&old));
    table.report_changes(|_| {});
    assert_eq!(Arc::strong_count(&old), 2);
    table.change(put(&new));
    assert_eq!(Arc::strong_count(&old), 2, "XDP may still use it");
    table.report_changes(|bound| assert_eq!(&*bound.tenant.name, "new"));
    assert_eq!(Arc::strong_count(&old), 1);
}

/// One more circuit touches no other: positions, bindings and reports of others stay.
#[test]
fn a_change_of_one_circuit_reports_that_one_alone() {
    let (mut table, ..) = joined();
    table.report_changes(|_| {});
    let acme = Arc::new(Tenant::unlimited("acme"));
    let told = |table: &mut Table| {
        let mut told = Vec::new();
        table.report_changes(|bound| told.push(bound.id));
        told
    };
    let put = |n| Change {
        put: vec![circuit(n, &acme)],
        ..Change::default()
    };
    table.change(put(4));
    assert_eq!(told(&mut table), [id(4)]);
    // A removal moves the last circuit to another position; what was noted before stays noted.
    table.change(put(3));
    table.change(Change {
        removed: vec![id(2), id(77)],
        put: Vec::new(),
    });
    assert_eq!(told(&mut table), [id(3)]);
    table.change(put(4));
    table.change(Change {
        removed: vec![id(4)],
        put: Vec::new(),
    });
    assert_eq!(told(&mut table), []);
    let now = seconds(1);
    assert_eq!(
        table.handle(now, &datagram(1), &at(2)),
        Action::Forward(at(3))
    );
    assert_eq!(table.bound(now), 2);
}
