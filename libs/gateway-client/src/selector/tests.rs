//! An end among gateways of a model, which answer as `docs/gateway.md` says.

use std::collections::BTreeMap;

use super::*;
use crate::{
    pool::Candidate,
    wire::{Datagram, Kind, Load, Message, Tag, parse},
};

const MS: Duration = Duration::from_millis(1);
/// Time of day when the model begins, nanoseconds since 1970.
const EPOCH: u64 = 1_700_000_000_000_000_000;

fn key() -> Key {
    Key::new([7; 32])
}

fn circuit() -> CircuitId {
    CircuitId::new(0x0102_0304_0506_0708).expect("an id")
}

fn at(n: u8) -> GatewayAddress {
    GatewayAddress {
        name: format!("gw{n}"),
        address: SocketAddr::from(([192, 0, 2, n], 6180)),
    }
}

/// The second address of a gateway.
fn second(n: u8) -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()], 6180))
}

fn with_addresses(n: u8, addresses: &[SocketAddr], former: &[SocketAddr]) -> Target {
    Target {
        name: at(n).name,
        addresses: addresses.to_vec(),
        former: former.to_vec(),
    }
}

fn single(n: u8) -> Target {
    with_addresses(n, &[at(n).address], &[])
}

/// A gateway: alive or not, with what it knows of the end.
#[derive(Default)]
struct Gateway {
    name: String,
    dead: bool,
    draining: bool,
    bound: bool,
    newest: u64,
    /// Since it was last started; a cookie is of one life.
    life: u8,
    asked: u32,
    /// Load that it reports, thousandths.
    load: Option<u16>,
    /// Every message must be of its key.
    strict: bool,
}

impl Gateway {
    fn named(n: u8) -> Self {
        Self {
            name: at(n).name,
            strict: true,
            ..Self::default()
        }
    }

    fn restart(&mut self) {
        *self = Self {
            name: std::mem::take(&mut self.name),
            strict: true,
            life: self.life + 1,
            ..Self::default()
        };
    }

    fn answer(&mut self, bytes: &[u8]) -> Option<[u8; MESSAGE_BYTES]> {
        let key = key().for_gateway(&self.name);
        if self.dead {
            return None;
        }
        let Ok(Datagram::Message(sealed)) = parse(bytes) else {
            panic!("an end says messages only");
        };
        let message = match sealed.open(&key) {
            None if !self.strict => return None,
            message => message.expect("of this gateway's key"),
        };
        assert!(message.timestamp > self.newest, "timestamps grow");
        self.newest = message.timestamp;
        self.asked += 1;
        let cookie = Tag([self.life + 1; 16]);
        let kind = if message.cookie != cookie {
            Kind::Challenge
        } else if message.kind == Kind::Unbind {
            self.bound = false;
            return None;
        } else if self.draining {
            Kind::Move
        } else {
            self.bound = true;
            Kind::Bound
        };
        let lifetime = if kind == Kind::Bound { 30_000 } else { 0 };
        let answer = Message {
            kind,
            cookie,
            lifetime,
            load: match (kind, self.load) {
                (Kind::Bound | Kind::Move, Some(load)) => Load::from_thousandths(load),
                _ => Load::UNKNOWN,
            },
            ..message
        };
        Some(answer.seal(&key))
    }
}

struct World {
    selector: GatewaySelector,
    gateways: Vec<Gateway>,
    /// The gateway at each address.
    places: BTreeMap<SocketAddr, usize>,
    /// Addresses that messages do not come to.
    blocked: Vec<SocketAddr>,
    now: Duration,
    /// One way.
    delay: Duration,
    /// Of a message, per cent.
    loss: u64,
    random: SplitMix64,
    /// When, address of the gateway, whether to it, and the message.
    flying: BTreeMap<(Duration, u64), (SocketAddr, bool, [u8; MESSAGE_BYTES])>,
    sent: u64,
    /// The actions of the end, and when it took them.
    said: Vec<(Duration, Action)>,
}

impl World {
    fn new(count: u8, seeks: bool, seed: u64) -> Self {
        let gateways: Vec<_> = (1..=count).map(single).collect();
        Self::with(&gateways, seeks, seed)
    }

    /// Gateways with all their addresses.
    fn with(gateways: &[Target], seeks: bool, seed: u64) -> Self {
        let places = gateways.iter().enumerate().flat_map(|(place, gateway)| {
            let addresses = gateway.addresses.iter();
            addresses.map(move |address| (*address, place))
        });
        let places = places.collect();
        let gateways = gateways.to_vec();
        let list = list(&gateways);
        let now = Duration::from_secs(1000);
        let selector = GatewaySelector::new(
            (circuit(), Side::A, key()),
            Settings::default(),
            seeks.then_some(&list),
            &gateways,
            seed,
            now,
        );
        Self {
            selector,
            gateways: (1..)
                .zip(&gateways)
                .map(|(n, _)| Gateway::named(n))
                .collect(),
            places,
            blocked: Vec::new(),
            now,
            delay: 5 * MS,
            loss: 0,
            random: SplitMix64::new(seed ^ 1),
            flying: BTreeMap::new(),
            sent: 0,
            said: Vec::new(),
        }
    }

    fn fly(&mut self, address: SocketAddr, up: bool, message: [u8; MESSAGE_BYTES]) {
        self.sent += 1;
        if self.random.below(100) >= self.loss && !self.blocked.contains(&address) {
            let arrival = (self.now + self.delay, self.sent);
            self.flying.insert(arrival, (address, up, message));
        }
    }

    fn clock(&self) -> u64 {
        EPOCH + self.now.as_nanos() as u64
    }

    fn actions(&mut self) {
        while let Some(action) = self.selector.poll() {
            match action {
                Action::Send { to, message } => {
                    assert!(self.places.contains_key(&to), "an address of a gateway");
                    self.fly(to, true, message);
                }
                other => self.said.push((self.now, other)),
            }
        }
    }

    fn place(&self, address: SocketAddr) -> usize {
        self.places[&address]
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..1_000_000 {
            self.actions();
            let arrival = self.flying.keys().next().copied();
            let deadline = self.selector.next_deadline();
            let next = arrival.map(|(at, _)| at).into_iter().chain(deadline).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            if let Some((address, up, message)) = arrival
                .filter(|(at, _)| *at <= self.now)
                .and_then(|arrival| self.flying.remove(&arrival))
            {
                if up {
                    let place = self.place(address);
                    if let Some(answer) = self.gateways[place].answer(&message) {
                        self.fly(address, false, answer);
                    }
                } else {
                    let times = (self.now, self.clock());
                    self.selector.receive(address, &message, times);
                }
            } else {
                let clock = self.clock();
                self.selector.timeout(self.now, clock);
            }
        }
        panic!("it never rests: {:?}", self.selector);
    }

    fn used(&self) -> usize {
        self.place(self.selector.used().expect("a gateway in use").address)
    }

    fn uses(&self) -> usize {
        let is_use = |(_, action): &&(Duration, Action)| matches!(action, Action::Use(_));
        self.said.iter().filter(is_use).count()
    }
}

fn list(gateways: &[Target]) -> List {
    let candidate = |at: &Target| Candidate {
        name: at.name.clone(),
        load: 0,
        tier: 0,
    };
    List::received(gateways.iter().map(candidate).collect())
}

#[test]
fn one_gateway_is_used_and_the_end_is_bound_at_all() {
    for seed in 0..20 {
        let mut world = World::new(3, true, seed);
        world.run(100 * MS);
        assert_eq!(world.uses(), 1, "{:?}", world.said);
        world.run(3000 * MS);
        assert_eq!(world.uses(), 1, "it stays: {:?}", world.said);
        assert!(world.gateways.iter().all(|g| g.bound));
        let states = world.selector.states(world.now);
        assert_eq!(states.iter().filter(|s| s.used && s.bound).count(), 1);
        for state in states {
            let time = state.round_trip.expect("it answered");
            assert!(time > 9 * MS && time <= 10 * MS, "{time:?}");
        }
    }
}

#[test]
fn the_next_gateway_is_used_within_400_ms_when_one_dies() {
    for seed in 0..200 {
        let mut world = World::new(3, true, seed);
        world.run(2000 * MS + MS * (seed as u32 % 80));
        let (dead, died) = (world.used(), world.now);
        world.gateways[dead].dead = true;
        world.run(3000 * MS);
        let (when, _) = world.said.last().expect("a move");
        assert_ne!(world.used(), dead);
        assert_eq!(world.uses(), 2, "{:?}", world.said);
        assert!(*when - died <= 400 * MS, "seed {seed}: {:?}", *when - died);
        // It comes back, and no end returns to it.
        world.gateways[dead].restart();
        let used = world.used();
        world.run(Duration::from_secs(60));
        assert_eq!((world.used(), world.uses()), (used, 2), "seed {seed}");
        assert!(world.gateways[dead].bound, "it is at hand again");
    }
}

#[test]
fn a_draining_gateway_is_left_and_gets_an_unbind() {
    for seed in 0..50 {
        let mut world = World::new(2, true, seed);
        world.run(2000 * MS);
        let old = world.used();
        world.gateways[old].draining = true;
        world.run(1500 * MS + OLD_GATEWAY_GRACE);
        assert_ne!(world.used(), old, "seed {seed}");
        assert!(!world.gateways[old].bound, "seed {seed}: it was told");
        assert!(world.gateways[1 - old].bound);
        world.run(Duration::from_secs(10));
        assert_eq!(world.uses(), 2, "{:?}", world.said);
        assert!(
            !world.gateways[old].bound,
            "the end does not bind there again"
        );
    }
}

#[test]
fn a_draining_gateway_carries_packets_on_their_way_after_it_is_left() {
    for seed in 0..50 {
        let mut world = World::new(2, true, seed);
        world.run(2000 * MS);
        let old = world.used();
        world.gateways[old].draining = true;
        while world.used() == old {
            world.run(10 * MS);
        }
        world.run(OLD_GATEWAY_GRACE - 20 * MS);
        assert!(world.gateways[old].bound, "seed {seed}: it was told early");
        world.run(200 * MS);
        assert!(!world.gateways[old].bound, "seed {seed}: it was told");
    }
}

#[test]
fn the_only_gateway_stays_in_use_while_it_drains() {
    let mut world = World::new(1, true, 1);
    world.run(2000 * MS);
    world.gateways[0].draining = true;
    world.run(Duration::from_secs(60));
    assert_eq!((world.used(), world.uses()), (0, 1), "{:?}", world.said);
    assert!(world.gateways[0].bound);
}

#[test]
fn an_end_binds_within_a_second_after_a_restart() {
    for seeks in [true, false] {
        for seed in 0..100 {
            let mut world = World::new(1, seeks, seed);
            world.run(2000 * MS);
            world.gateways[0].dead = true;
            world.run(MS * (300 + 137 * seed as u32));
            world.gateways[0].restart();
            world.run(1000 * MS);
            assert!(world.gateways[0].bound, "seed {seed}, seeks: {seeks}");
        }
    }
}

#[test]
fn without_a_gateway_the_reason_is_reported_until_one_answers() {
    let mut world = World::new(2, true, 3);
    world.run(2000 * MS);
    for gateway in &mut world.gateways {
        gateway.dead = true;
    }
    world.run(Duration::from_secs(20));
    assert_eq!(world.selector.used(), None);
    let why = world.selector.no_service().expect("no service").to_string();
    assert_eq!(
        why,
        "no gateway works: gw1 is silent, gw2 is silent; each is tried again automatically"
    );
    let lost = |(_, action): &&(Duration, Action)| matches!(action, Action::Lost(_));
    assert_eq!(world.said.iter().filter(lost).count(), 1, "said once");
    world.gateways[1].restart();
    world.run(1000 * MS);
    assert_eq!(world.used(), 1);
    assert_eq!(world.selector.no_service(), None);
}

#[test]
fn an_empty_list_is_no_service_at_once() {
    let world = World::new(0, true, 3);
    assert_eq!(world.selector.no_service(), Some(&NoService::Nothing));
}

#[test]
fn a_gateway_that_forwards_nothing_is_left() {
    let mut world = World::new(2, true, 5);
    world.run(2000 * MS);
    let first = world.used();
    world.selector.other_end_silent(world.now);
    world.run(100 * MS);
    assert_ne!(world.used(), first);
    // If the other end is what is silent, they take turns ever more slowly.
    for _ in 0..1200 {
        world.selector.other_end_silent(world.now);
        world.run(100 * MS);
    }
    assert!((4..10).contains(&world.uses()), "{}", world.uses());
    assert_eq!(
        world.selector.no_service(),
        None,
        "there is another to take turns with"
    );
}

#[test]
fn the_only_gateway_is_never_left() {
    let mut world = World::new(1, true, 5);
    world.run(2000 * MS);
    for _ in 0..100 {
        world.selector.other_end_silent(world.now);
        world.run(100 * MS);
    }
    assert_eq!((world.used(), world.uses()), (0, 1));
}

#[test]
fn a_long_round_trip_is_no_failure() {
    for delay in [1, 40, 100, 200, 400] {
        let mut world = World::new(2, true, delay.into());
        world.delay = MS * delay;
        world.run(Duration::from_secs(60));
        assert!(world.uses() <= 2, "{delay} ms: {:?}", world.said);
        let uses = world.uses();
        world.run(Duration::from_secs(600));
        assert_eq!(world.uses(), uses, "{delay} ms: {:?}", world.said);
    }
}

#[test]
fn a_lossy_path_causes_few_changes() {
    let mut world = World::new(3, true, 9);
    world.loss = 5;
    world.run(Duration::from_secs(600));
    assert!(world.uses() < 60, "{}", world.uses());
    world.used();
}

#[test]
fn an_end_without_a_list_follows_the_other_end() {
    let mut world = World::new(3, false, 2);
    world.run(2000 * MS);
    assert!(world.gateways.iter().all(|g| g.bound));
    assert_eq!(world.said, []);
    world.selector.peer_received_from(at(1).address);
    world.gateways[0].draining = true;
    world.run(2000 * MS);
    assert!(world.gateways[0].bound, "the other end is there");
    world.selector.peer_received_from(at(2).address);
    world.run(2000 * MS);
    assert!(!world.gateways[0].bound, "it has moved");
    let asked: Vec<u32> = world.gateways.iter().map(|g| g.asked).collect();
    world.run(Duration::from_secs(10));
    for (gateway, before) in world.gateways.iter().zip(asked) {
        let rate = (gateway.asked - before) / 10;
        assert!((1..=4).contains(&rate), "asked {rate} times a second");
    }
}

#[test]
fn a_removed_gateway_is_left() {
    let mut world = World::new(3, true, 4);
    world.run(2000 * MS);
    let old = world.used();
    let mut left: Vec<_> = (1..=3).map(single).collect();
    left.remove(old);
    let list = list(&left);
    world.selector.update(Some(&list), &left, world.now);
    world.run(200 * MS);
    assert_ne!(world.used(), old);
    assert_eq!(world.selector.states(world.now).len(), 2);
    world.run(1000 * MS);
    assert!(!world.gateways[old].bound, "it was told");
}

/// A gateway that does not accept the cookie of the unbind, and removed from the configuration.
#[test]
fn a_removed_gateway_that_challenges_the_unbind_gets_another_one() {
    for back in [false, true] {
        let mut world = World::new(3, true, 4);
        world.run(2000 * MS);
        let old = world.used();
        let all: Vec<_> = (1..=3).map(single).collect();
        let mut left = all.clone();
        left.remove(old);
        world.selector.update(Some(&list(&left)), &left, world.now);
        world.gateways[old].life += 1;
        world.run(OLD_GATEWAY_GRACE + 2 * MS);
        assert!(world.gateways[old].bound, "the unbind is on its way");
        if back {
            world.selector.update(Some(&list(&all)), &all, world.now);
        }
        world.run(1500 * MS);
        assert_eq!(world.gateways[old].bound, back);
        world.run(3000 * MS);
        assert!(world.selector.replaced.is_empty(), "forgotten");
    }
}

#[test]
fn close_sends_unbinds_to_all_gateways() {
    for seeks in [true, false] {
        let mut world = World::new(3, seeks, 8);
        world.run(2000 * MS);
        let clock = world.clock();
        world.selector.close(world.now, clock);
        world.run(20 * MS);
        assert!(world.gateways.iter().all(|gateway| !gateway.bound));
    }
}

#[test]
fn binds_stay_within_the_rate_of_gateways() {
    let mut world = World::new(2, true, 6);
    world.run(2000 * MS);
    let used = world.used();
    let before = world.gateways[used].asked;
    world.run(Duration::from_secs(10));
    let rate = (world.gateways[used].asked - before) / 10;
    assert!((10..=16).contains(&rate), "{rate} a second");
}

#[test]
fn messages_of_strangers_are_ignored() {
    let mut world = World::new(1, true, 6);
    world.run(2000 * MS);
    let clock = world.clock();
    let mut other = End::new(circuit(), Side::A, key());
    let bind = other.bind(clock);
    let stranger = SocketAddr::from(([192, 0, 2, 99], 6180));
    assert!(!world.selector.receive(stranger, &bind, (world.now, clock)));
    assert!(
        !world
            .selector
            .receive(at(1).address, &bind, (world.now, clock))
    );
    assert!(
        !world
            .selector
            .receive(at(1).address, &[], (world.now, clock))
    );
}

/// The end is bound at both families' gateways within a second, whichever family does not work.
#[test]
fn a_family_that_does_not_work_costs_a_delay_and_no_gateway() {
    for seeks in [true, false] {
        let both = [at(1).address, second(1)];
        for (works, blocked) in [(both[0], both[1]), (both[1], both[0])] {
            for seed in 0..50 {
                let gateway = with_addresses(1, &[blocked, works], &[]);
                let mut world = World::with(&[gateway], seeks, seed);
                world.blocked.push(blocked);
                world.run(1500 * MS);
                assert!(world.gateways[0].bound, "{works} seed {seed}");
                assert_eq!(world.selector.no_service(), None, "{:?}", world.said);
                if seeks {
                    let used = world.selector.used().expect("a gateway in use");
                    assert_eq!((used.address, world.uses()), (works, 1));
                    let (when, _) = world.said.last().expect("a use");
                    let took = *when - Duration::from_secs(1000);
                    assert!(took <= 450 * MS, "{works} seed {seed}: {took:?}");
                }
            }
        }
    }
}

#[test]
fn an_end_changes_the_address_when_the_one_in_use_dies() {
    for seed in 0..50 {
        let gateway = with_addresses(1, &[second(1), at(1).address], &[]);
        let mut world = World::with(&[gateway], true, seed);
        world.run(2000 * MS);
        assert_eq!(world.selector.used().expect("used").address, second(1));
        world.blocked.push(second(1));
        let died = world.now;
        world.run(2000 * MS);
        let used = world.selector.used().expect("used");
        assert_eq!(used.address, at(1).address);
        let (when, _) = world.said.last().expect("a use");
        assert!(*when - died <= 1000 * MS, "{:?}", world.said);
        // It stays there, and sees no failure.
        let said = world.said.len();
        world.run(Duration::from_secs(60));
        assert_eq!(world.said.len(), said, "{:?}", world.said);
    }
}

#[test]
fn a_gateway_with_many_dead_addresses_is_left_for_another() {
    for seed in 0..50 {
        let mut world = World::with(
            &[
                with_addresses(1, &[second(1), at(1).address], &[]),
                single(2),
            ],
            true,
            seed,
        );
        world.gateways[0].dead = true;
        world.run(1500 * MS);
        assert_eq!(world.used(), 1, "seed {seed}: {:?}", world.said);
    }
}

#[test]
fn a_binding_stays_at_a_former_address_while_it_is_answered() {
    for seed in 0..20 {
        let (old, new) = (at(1).address, second(1));
        let mut world = World::with(&[with_addresses(1, &[old], &[])], true, seed);
        world.run(2000 * MS);
        // Another machine has the name now.
        world.places.insert(new, 1);
        world.gateways.push(Gateway::named(1));
        let moved = [with_addresses(1, &[new], &[old])];
        let list = list(&moved);
        world.selector.update(Some(&list), &moved, world.now);
        world.run(Duration::from_secs(10));
        assert_eq!((world.used(), world.uses()), (0, 1), "{:?}", world.said);
        assert!(!world.gateways[1].bound);
        if seed % 2 == 0 {
            world.gateways[0].dead = true;
            world.run(1500 * MS);
        } else {
            // It is forgotten: the end is bound at the new one first.
            let moved = [with_addresses(1, &[new], &[])];
            world.selector.update(Some(&list), &moved, world.now);
            assert_eq!(world.used(), 0);
            world.run(500 * MS);
        }
        assert_eq!((world.used(), world.uses()), (1, 2), "{:?}", world.said);
        let lost = |(_, action): &(Duration, Action)| matches!(action, Action::Lost(_));
        assert!(
            seed % 2 == 0 || !world.said.iter().any(lost),
            "{:?}",
            world.said
        );
    }
}

#[test]
fn an_end_that_follows_is_bound_at_the_former_address_and_the_new_one() {
    for seed in 0..20 {
        let (old, new) = (at(1).address, second(1));
        let mut world = World::with(&[with_addresses(1, &[old], &[])], false, seed);
        world.run(2000 * MS);
        world.selector.peer_received_from(old);
        world.places.insert(new, 1);
        world.gateways.push(Gateway::named(1));
        let moved = [with_addresses(1, &[new], &[old])];
        world.selector.update(None, &moved, world.now);
        world.run(2000 * MS);
        assert!(world.gateways.iter().all(|gateway| gateway.bound));
        assert_eq!(world.selector.used().expect("used").address, old);
        assert_eq!(world.selector.at(old), Some("gw1"));
        let asked = world.gateways[0].asked;
        world.run(Duration::from_secs(40));
        assert!(world.gateways[0].asked > asked + 40, "it is kept bound");
        world.selector.peer_received_from(new);
        let moved = [with_addresses(1, &[new], &[])];
        world.selector.update(None, &moved, world.now);
        let asked = world.gateways[0].asked;
        world.run(Duration::from_secs(10));
        assert_eq!(world.gateways[0].asked, asked, "it is forgotten");
        assert_eq!(world.selector.used().expect("used").address, new);
        assert_eq!(world.selector.states(world.now).len(), 1);
    }
}

#[test]
fn two_names_of_one_address_are_two_gateways() {
    let shared = at(1).address;
    let all = [
        with_addresses(1, &[shared], &[]),
        with_addresses(2, &[shared], &[]),
    ];
    let mut world = World::with(&all, false, 1);
    // The machine there is the second one.
    world.places.insert(shared, 1);
    world.gateways[1].strict = false;
    world.run(2000 * MS);
    let bound: Vec<bool> = world
        .selector
        .states(world.now)
        .iter()
        .map(|s| s.bound)
        .collect();
    assert_eq!(bound, [false, true]);
}

#[test]
fn a_reported_load_decides_the_next_choice() {
    let mut chosen = [0; 3];
    for seed in 0..40 {
        let mut world = World::new(3, true, seed);
        for (gateway, load) in world.gateways.iter_mut().zip([500, 900, 100]) {
            gateway.load = Some(load);
        }
        world.run(3000 * MS);
        let first = world.used();
        world.gateways[first].dead = true;
        world.run(3000 * MS);
        chosen[world.used()] += 1;
        if first != 2 {
            assert_eq!(world.used(), 2, "the least loaded");
        }
    }
    assert!(chosen[1] == 0 && chosen[2] > 0, "{chosen:?}");
}
