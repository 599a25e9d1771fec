//! A table and six ends, compared with the model of `docs/gateway.md`.
//!
//! Every datagram goes to the table and to the model, and both must agree on the action. The model
//! cannot compute cookies: a new cookie must differ from all earlier ones.

mod model;

use std::{collections::HashSet, sync::Arc, time::Duration};

use gateway_client::{
    end::EndEvent,
    wire::{Datagram, Kind, Load, MESSAGE_BYTES, Message, Side, Tag, parse},
};
use gateway_core::{
    rate::Bucket,
    table::{Action, Change, CircuitPlan, Path, Reason, Table, Tenant, Traffic},
};

use fuzzing::{Input, mutate};

use self::model::{
    ADDRESSES, BURST_TIME, BYTES, CIRCUITS, DATAGRAMS, Form, Given, Keys, Known, KnownEnd,
    KnownSide, LIFETIME, Leaky, MAX_RECORDED, MAX_TIME, SECOND, WINDOW, Wanted, at, datagram, id,
    is_tagged, read, slot,
};

/// The table, the ends and the model.
#[derive(Debug)]
pub(crate) struct World {
    table: Table,
    keys: Keys,
    /// acme and evil.
    tenants: [Arc<Tenant>; 2],
    now: Duration,
    draining: bool,
    circuits: Vec<Known>,
    /// Dropped datagrams without a circuit.
    drops: [u64; Reason::ALL.len()],
    rates: [Leaky; 2],
    given: Vec<Given>,
    ends: Vec<KnownEnd>,
    /// The clock of the ends: nanoseconds since 1970.
    clock: u64,
    /// Messages and answers that the attacker has recorded.
    kept: Vec<Vec<u8>>,
    /// Messages that ends made.
    sent: Vec<Vec<u8>>,
    /// Messages that have bound or unbound an end, or moved its watermark.
    accepted: HashSet<Vec<u8>>,
    /// Whether the attacker has the keys.
    is_keyed: bool,
    /// The last used epoch of a side.
    epoch: u64,
}

/// An event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Raw,
    Tunnel,
    Nearly,
    Bind,
    Unbind,
    Roam,
    Wait,
    Replay,
    Change,
    Admin,
    Clock,
    Hear,
    Forge,
    ForgeAnswer,
}

impl World {
    /// No side is bound. With `is_keyed` the attacker can seal messages with every key.
    pub(crate) fn new(data: &[u8], is_keyed: bool) -> Self {
        let keys = Keys::of(data);
        let ends = (0..2 * CIRCUITS).map(|n| {
            let (circuit, side) = (n / 2, Side::BOTH[n % 2]);
            KnownEnd::new(keys, circuit, side, n)
        });
        let mut table = Table::new(keys.secret());
        table.set_lifetime(LIFETIME);
        let acme = Tenant {
            datagrams: Bucket::new(DATAGRAMS, BURST_TIME),
            ..Tenant::unlimited("acme")
        };
        let evil = Tenant {
            bytes: Bucket::new(BYTES, BURST_TIME),
            ..Tenant::unlimited("evil")
        };
        let mut this = Self {
            table,
            keys,
            tenants: [acme, evil].map(Arc::new),
            now: Duration::from_secs(1),
            draining: false,
            circuits: Vec::new(),
            drops: [0; Reason::ALL.len()],
            rates: [Leaky::default(); 2],
            given: Vec::new(),
            ends: ends.collect(),
            clock: 1_700_000_000 * SECOND,
            kept: Vec::new(),
            sent: Vec::new(),
            accepted: HashSet::new(),
            is_keyed,
            epoch: 0,
        };
        this.replan(0);
        this
    }

    /// Runs the events of the input, and then checks that all ends can still bind.
    pub(crate) fn run(mut self, input: &mut Input<'_>, acts: &[Act], most: usize) {
        for _ in 0..most {
            if input.is_empty() {
                break;
            }
            let act = acts[input.below(acts.len())];
            self.act(act, input);
            self.check_state();
        }
        self.check_recovery();
    }

    fn act(&mut self, act: Act, input: &mut Input<'_>) {
        match act {
            Act::Raw => {
                let place = input.below(ADDRESSES);
                let length = input.below(97);
                let bytes = input.bytes(length).to_vec();
                self.arrives(&bytes, place);
            }
            Act::Tunnel => {
                let (circuit, place) = (input.below(CIRCUITS + 1), input.below(ADDRESSES));
                let bytes = datagram(circuit, usize::from(input.u16()) % 2048);
                for _ in 0..=input.below(8) {
                    self.arrives(&bytes, place);
                }
            }
            Act::Nearly => {
                let place = input.below(ADDRESSES);
                let mut bytes = vec![0; 8];
                bytes.extend(input.array::<{ MESSAGE_BYTES - 8 }>());
                self.arrives(&bytes, place);
            }
            Act::Bind | Act::Unbind => {
                let n = input.below(self.ends.len());
                let fate = input.u8();
                let message = self.make_message(n, matches!(act, Act::Unbind));
                self.keep(&message);
                if fate & 1 == 0 {
                    self.deliver(n, &message, fate & 2 == 0);
                }
            }
            Act::Roam => {
                let n = input.below(self.ends.len());
                self.ends[n].place = input.below(ADDRESSES);
            }
            Act::Wait => {
                let unit = [1, 1_000_000, 100_000_000, 10 * SECOND][input.below(4)];
                let nanos = unit * (u64::from(input.u8()) + 1);
                self.now += Duration::from_nanos(nanos);
                self.clock += nanos;
            }
            Act::Replay | Act::Change | Act::Hear if self.kept.is_empty() => {}
            Act::Replay => {
                let which = input.below(self.kept.len());
                let bytes = self.kept[which].clone();
                self.arrives(&bytes, input.below(ADDRESSES));
            }
            Act::Change => {
                let which = input.below(self.kept.len());
                let mut bytes = self.kept[which].clone();
                mutate(input, &mut bytes, 64);
                let place = input.below(ADDRESSES);
                if input.flag() {
                    let n = input.below(self.ends.len());
                    self.receive(n, &bytes);
                } else {
                    self.arrives(&bytes, place);
                }
            }
            Act::Hear => {
                let which = input.below(self.kept.len());
                let bytes = self.kept[which].clone();
                let n = input.below(self.ends.len());
                if let Some(message) = self.receive(n, &bytes) {
                    self.keep(&message);
                    self.deliver(n, &message, true);
                }
            }
            Act::Admin => self.admin(input.u8()),
            Act::Clock => {
                let millis = input.u16();
                let by = u64::from(millis) * 1_000_000;
                if input.flag() {
                    self.clock = self.clock.saturating_sub(by);
                    // A long step is that of a machine that is set back to a snapshot: one end
                    // forgets what it has sent.
                    if millis >= 1 << 15 {
                        self.restart(usize::from(millis) % self.ends.len());
                    }
                } else {
                    self.clock = (self.clock + by).min(MAX_TIME);
                }
            }
            Act::Forge => {
                let bytes = self.forged(input);
                self.arrives(&bytes, input.below(ADDRESSES));
            }
            Act::ForgeAnswer => {
                let bytes = self.forged(input);
                let n = input.below(self.ends.len());
                self.receive(n, &bytes);
            }
        }
    }

    /// A message of any fields under any key.
    fn forged(&self, input: &mut Input<'_>) -> Vec<u8> {
        let kinds = [
            Kind::Bind,
            Kind::Challenge,
            Kind::Bound,
            Kind::Move,
            Kind::Unbind,
        ];
        let n = input.below(self.ends.len() + 1);
        let (circuit, side) = (n / 2, Side::BOTH[n % 2]);
        let near = self.ends.get(n).map_or(0, |end| end.newest);
        let message = Message {
            kind: kinds[input.below(kinds.len())],
            side,
            circuit: id(circuit),
            timestamp: match input.below(4) {
                0 => input.u64(),
                _ => near.saturating_add_signed(i64::from(input.u8() as i8)),
            },
            cookie: match input.below(3) {
                0 => Tag::NONE,
                1 => Tag(input.array()),
                _ => match self.given.len() {
                    0 => Tag::NONE,
                    some => self.given[input.below(some)].cookie,
                },
            },
            lifetime: if input.below(4) == 0 {
                u32::from(input.u16())
            } else {
                0
            },
            load: Load::UNKNOWN,
        };
        let other = input.u8();
        let sealing = if other & 3 == 0 {
            self.keys.key(
                usize::from(other >> 4) % 4,
                Side::BOTH[usize::from(other >> 2 & 1)],
                other >> 3 & 1,
            )
        } else {
            self.keys.key(circuit, side, 0)
        };
        message.seal(&sealing).to_vec()
    }

    /// An end starts again.
    fn restart(&mut self, n: usize) {
        let end = &self.ends[n];
        self.ends[n] = KnownEnd::new(self.keys, end.circuit, end.side, end.place);
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.kept.len() < MAX_RECORDED {
            self.kept.push(bytes.to_vec());
        }
    }

    /// An end makes a bind or unbind.
    fn make_message(&mut self, n: usize, leaves: bool) -> Vec<u8> {
        let (clock, end) = (self.clock, &mut self.ends[n]);
        let message = if leaves {
            // Answers to binds from before do not count.
            end.outstanding.clear();
            end.end.unbind(clock)
        } else {
            end.challenged = false;
            end.leaving = None;
            end.end.bind(clock)
        };
        self.record(n, &message);
        if leaves {
            self.ends[n].leaving = Some(self.ends[n].newest);
        }
        message.to_vec()
    }

    /// Records a new message of an end.
    fn record(&mut self, n: usize, message: &[u8]) {
        let (clock, end) = (self.clock, &mut self.ends[n]);
        if end.newest == 0 {
            end.received = clock;
        }
        end.newest = end.newest.max(clock) + 1;
        if message[9] == Kind::Bind as u8 {
            end.outstanding.push(end.newest);
            let most = end.outstanding.len().saturating_sub(64);
            end.outstanding.drain(..most);
        }
        let stamp = message[20..28].try_into().expect("eight bytes");
        assert_eq!(u64::from_be_bytes(stamp), end.newest, "a new timestamp");
        self.sent.push(message.to_vec());
    }

    /// Delivers a message to the gateway, and the answers to the end.
    fn deliver(&mut self, n: usize, message: &[u8], back: bool) {
        let mut message = message.to_vec();
        // A challenge is answered once.
        for _ in 0..2 {
            let Some(answer) = self.arrives(&message, self.ends[n].place) else {
                return;
            };
            if !back {
                return;
            }
            match self.receive(n, &answer) {
                Some(next) => message = next,
                None => return,
            }
        }
        panic!("endless challenges: {self:#?}");
    }

    /// The gateway receives a datagram; returns its answer.
    fn arrives(&mut self, bytes: &[u8], place: usize) -> Option<Vec<u8>> {
        let from = at(place);
        let action = self.table.handle(self.now, bytes, &from);
        let wanted = self.wanted(bytes, &from);
        if !self.is_keyed && matches!(action, Action::Answer(_) | Action::Done) {
            assert!(
                self.sent.iter().any(|message| message == bytes),
                "an answer to a message that no end made: {bytes:02x?}"
            );
        }
        let accepts = match &action {
            Action::Answer(answer) => answer[9] != Kind::Challenge as u8,
            Action::Done => true,
            Action::Forward(_) | Action::Drop(_) => false,
        };
        // Whatever the rules: nothing that was captured has an effect again.
        if !self.is_keyed && accepts {
            let is_first = self.accepted.insert(bytes.to_vec());
            assert!(is_first, "accepted twice: {bytes:02x?}: {self:#?}");
        }
        match (&action, &wanted) {
            (Action::Forward(to), Wanted::Forward(path)) if to == path => None,
            (Action::Done, Wanted::Done) => None,
            (Action::Drop(reason), Wanted::Drop(known)) if reason == known => None,
            (Action::Answer(answer), Wanted::Answer(question, kind, any_time)) => {
                assert!(
                    answer.len() <= bytes.len(),
                    "an answer longer than the message"
                );
                self.answered(answer, question, (*kind, *any_time), &from);
                self.keep(answer);
                Some(answer.to_vec())
            }
            _ => {
                panic!("{action:?}, expected {wanted:?}, for {bytes:02x?} from {from:?}: {self:#?}")
            }
        }
    }

    /// The expected action for a datagram; updates the model.
    fn wanted(&mut self, bytes: &[u8], from: &Path) -> Wanted {
        let unknown = |drops: &mut [u64], reason: Reason| {
            drops[reason as usize] += 1;
            Wanted::Drop(reason)
        };
        let Some(form) = read(bytes) else {
            return unknown(&mut self.drops, Reason::Malformed);
        };
        let circuit = match &form {
            Form::Tunnel(circuit) => *circuit,
            Form::Message(message) => message.circuit,
        };
        let now = self.now;
        let Some(known) = self.circuits.iter_mut().find(|c| id(c.circuit) == circuit) else {
            return unknown(&mut self.drops, Reason::NoCircuit);
        };
        let wanted = match form {
            Form::Tunnel(_) => {
                let live = known.sides.each_ref().map(|side| side.live(now));
                let from_side = live
                    .iter()
                    .position(|path| path.is_some_and(|path| path.remote == from.remote));
                match from_side.map(|side| (side, live[1 - side])) {
                    None => Wanted::Drop(Reason::NotBound),
                    Some((_, None)) => Wanted::Drop(Reason::NoPeer),
                    Some((side, Some(to))) => {
                        let (bucket, cost) = match known.tenant {
                            "acme" => (0, SECOND / DATAGRAMS),
                            _ => (1, bytes.len() as u64 * (SECOND / BYTES)),
                        };
                        if self.rates[bucket].pour(now, cost, BURST_TIME) {
                            known.from[side].datagrams += 1;
                            known.from[side].bytes += bytes.len() as u64;
                            Wanted::Forward(to)
                        } else {
                            Wanted::Drop(Reason::Rate)
                        }
                    }
                }
            }
            Form::Message(message) => {
                let epoch = known.sides[message.side.index()].epoch;
                let proof = self.given.iter().find(|given| {
                    let age = (now.as_secs() / WINDOW).checked_sub(given.window);
                    (given.circuit, given.side, given.remote, given.epoch)
                        == (message.circuit, message.side, from.remote, epoch)
                        && given.cookie == message.cookie
                        && age.is_some_and(|age| age < 2)
                });
                self.epoch += 1;
                let proof = proof.map(|given| given.any_time);
                known.message(
                    now,
                    bytes,
                    &message,
                    from,
                    proof,
                    (self.draining, self.epoch, slot(&self.keys.secret(), from)),
                )
            }
        };
        if let Wanted::Drop(reason) = wanted {
            known.drops[reason as usize] += 1;
        }
        wanted
    }

    /// Checks an answer.
    fn answered(
        &mut self,
        answer: &[u8],
        question: &Message,
        (kind, any_time): (Kind, bool),
        from: &Path,
    ) {
        let known = self
            .circuits
            .iter()
            .find(|c| id(c.circuit) == question.circuit);
        let known = known.expect("a circuit that answers");
        let key = &known.sides[question.side.index()].key;
        let Ok(Datagram::Message(sealed)) = parse(answer) else {
            panic!("not a message: {answer:02x?}");
        };
        let message = sealed.open(key).expect("an answer with the side's key");
        let wanted = Message {
            kind,
            cookie: message.cookie,
            lifetime: match kind {
                Kind::Bound => LIFETIME.as_millis() as u32,
                _ => 0,
            },
            ..*question
        };
        assert_eq!(message, wanted);
        let new = Given {
            circuit: question.circuit,
            side: question.side,
            remote: from.remote,
            window: self.now.as_secs() / WINDOW,
            epoch: known.sides[question.side.index()].epoch,
            any_time,
            cookie: message.cookie,
        };
        let whose = |g: &Given| (g.circuit, g.side, g.remote, g.window, g.epoch, g.any_time);
        match self.given.iter().find(|old| whose(old) == whose(&new)) {
            Some(old) => assert_eq!(old.cookie, new.cookie),
            None => {
                let is_new = self.given.iter().all(|old| old.cookie != new.cookie);
                assert!(
                    is_new && new.cookie != Tag::NONE,
                    "a cookie of two: {new:?}"
                );
                self.given.push(new);
            }
        }
    }

    /// Gives a datagram to an end. Returns its reply.
    fn receive(&mut self, n: usize, bytes: &[u8]) -> Option<Vec<u8>> {
        let known = &mut self.ends[n];
        let event = known.end.receive(bytes, self.clock);
        let message = match read(bytes) {
            Some(Form::Message(message))
                if (message.circuit, message.side) == (id(known.circuit), known.side) =>
            {
                Some(message)
            }
            _ => None,
        };
        let own = self.keys.key(known.circuit, known.side, 0);
        let message = message.filter(|message| {
            let is_news = known.outstanding.contains(&message.timestamp)
                || message.kind == Kind::Move && message.timestamp == known.received;
            let is_news = is_news || is_asked_again(known, message);
            // Reflected messages of ends are ignored, and do not block the answer.
            let is_gateways = !matches!(message.kind, Kind::Bind | Kind::Unbind);
            is_tagged(bytes, &own) && is_gateways && is_news
        });
        let Some(message) = message else {
            assert_eq!(event, None, "{bytes:02x?}: {self:#?}");
            return None;
        };
        if is_asked_again(known, &message) {
            known.leaving = None;
            let Some(EndEvent::Send(next)) = event else {
                panic!("{event:?} of {message:?}: {self:#?}");
            };
            assert_eq!(
                (next[9], &next[28..44]),
                (Kind::Unbind as u8, &message.cookie.0[..])
            );
            self.record(n, &next);
            return Some(next.to_vec());
        }
        known.received = message.timestamp;
        known.outstanding.retain(|sent| *sent > message.timestamp);
        match (message.kind, event) {
            (Kind::Challenge, Some(EndEvent::Send(next))) if !known.challenged => {
                known.challenged = true;
                assert_eq!(
                    (next[9], &next[28..44]),
                    (Kind::Bind as u8, &message.cookie.0[..])
                );
                self.record(n, &next);
                return Some(next.to_vec());
            }
            (Kind::Challenge, None) if known.challenged => {}
            (Kind::Bound, Some(EndEvent::Bound(lifetime))) => {
                assert_eq!(lifetime, message.lifetime)
            }
            (Kind::Move, Some(EndEvent::Move)) => {}
            (_, event) => panic!("{event:?} of {message:?}: {self:#?}"),
        }
        None
    }

    /// An action of the operator.
    fn admin(&mut self, what: u8) {
        match what % 8 {
            0 | 1 => self.table.sweep(self.now),
            2 => {
                self.table.drain();
                self.draining = true;
                self.check_moves();
            }
            3 => self.renumber_sockets(&[Some(1), Some(0)]),
            4 => self.renumber_sockets(&[None, Some(0)]),
            n => self.replan(n - 5),
        }
    }

    /// Checks that exactly the bound sides are ordered to move.
    fn check_moves(&mut self) {
        let mut moves: Vec<_> = self.table.moves(self.now).collect();
        let mut wanted = Vec::new();
        for known in &self.circuits {
            for (side, known_side) in Side::BOTH.into_iter().zip(&known.sides) {
                if let Some(path) = known_side.live(self.now) {
                    let message = Message {
                        kind: Kind::Move,
                        side,
                        circuit: id(known.circuit),
                        timestamp: known_side.proven,
                        cookie: Tag::NONE,
                        lifetime: 0,
                        load: Load::UNKNOWN,
                    };
                    wanted.push((path, message.seal(&known_side.key)));
                }
            }
        }
        // A plan keeps circuits in their places, so the order is any.
        for list in [&mut moves, &mut wanted] {
            list.sort_by_key(|(_, bytes)| *bytes);
        }
        assert_eq!(moves, wanted);
        for (_, bytes) in moves {
            self.keep(&bytes);
        }
    }

    /// Applies a plan: 0 is the first one; in 1 a circuit is missing and one has another key; in 2
    /// one has another tenant, and the order differs.
    fn replan(&mut self, which: u8) {
        let mut planned: Vec<(usize, &'static str, [u8; 2])> = vec![
            (0, "acme", [0, 0]),
            (1, "acme", [0, 0]),
            (2, "evil", [0, 0]),
        ];
        match which {
            1 => {
                planned.remove(1);
                planned[0].2[0] = 1;
            }
            2 => {
                planned[1].1 = "evil";
                planned.reverse();
            }
            _ => {}
        }
        let own = self.keys;
        let keys = |circuit, generations: [u8; 2]| {
            Side::BOTH.map(|side| own.key(circuit, side, generations[side.index()]))
        };
        let tenant = |name: &str| {
            let tenant = self.tenants.iter().find(|tenant| *tenant.name == *name);
            Arc::clone(tenant.expect("a tenant"))
        };
        let put = planned
            .iter()
            .map(|(circuit, name, generations)| CircuitPlan {
                id: id(*circuit),
                tenant: tenant(name),
                keys: keys(*circuit, *generations),
            });
        let is_configured = |known: &&Known| {
            planned
                .iter()
                .any(|(circuit, ..)| *circuit == known.circuit)
        };
        let gone = self.circuits.iter().filter(|known| !is_configured(known));
        let change = Change {
            removed: gone.map(|known| id(known.circuit)).collect(),
            put: put.collect(),
        };
        self.table.change(change);
        let before = std::mem::take(&mut self.circuits);
        for (circuit, tenant, generations) in planned {
            let old = before
                .iter()
                .find(|old| (old.circuit, old.tenant) == (circuit, tenant));
            let mut known = old.cloned().unwrap_or_else(|| Known {
                circuit,
                tenant,
                sides: keys(circuit, generations).map(|key| {
                    self.epoch += 1;
                    KnownSide::new(key, self.epoch)
                }),
                drops: [0; Reason::ALL.len()],
                from: [Traffic::default(); 2],
            });
            for (side, key) in known.sides.iter_mut().zip(keys(circuit, generations)) {
                if side.key != key {
                    self.epoch += 1;
                    *side = KnownSide::new(key, self.epoch);
                }
            }
            self.circuits.push(known);
        }
    }

    /// Removes or reorders sockets.
    fn renumber_sockets(&mut self, places: &[Option<u16>]) {
        self.table.renumber_sockets(places);
        for side in self.circuits.iter_mut().flat_map(|c| &mut c.sides) {
            if let Some((path, until)) = side.bound {
                let to = places.get(usize::from(path.socket)).copied().flatten();
                side.bound = to.map(|socket| (Path { socket, ..path }, until));
            }
        }
    }

    /// Checks that table and model agree.
    fn check_state(&self) {
        let mut state: Vec<_> = self.table.state(self.now).collect();
        state.sort_by_key(|circuit| circuit.id);
        assert_eq!(state.len(), self.circuits.len());
        assert_eq!(*self.table.drops(), self.drops);
        let mut bound = 0;
        let mut circuits: Vec<&Known> = self.circuits.iter().collect();
        circuits.sort_by_key(|known| id(known.circuit));
        for (found, known) in state.iter().zip(circuits) {
            let live = known
                .sides
                .each_ref()
                .map(|side| side.live(self.now).map(|path| path.remote));
            bound += live.iter().flatten().count();
            let tenant: &str = &found.tenant;
            assert_eq!(
                (
                    found.id,
                    tenant,
                    found.bound,
                    found.counts.drops,
                    found.counts.from
                ),
                (
                    id(known.circuit),
                    known.tenant,
                    live,
                    known.drops,
                    known.from
                ),
                "{self:#?}"
            );
        }
        assert_eq!(self.table.bound(self.now), bound);
    }

    /// Checks that all ends can bind again and exchange datagrams, even where an attacker with the
    /// key has used up the timestamps.
    fn check_recovery(&mut self) {
        if self.draining {
            return;
        }
        self.replan(0);
        self.now += LIFETIME + Duration::from_secs(3600);
        self.clock = self.clock.max(1_700_000_000 * SECOND);
        let mut bound = [[false; 2]; CIRCUITS];
        for n in 0..self.ends.len() {
            let (circuit, side) = (self.ends[n].circuit, self.ends[n].side.index());
            self.clock = self.clock.max(self.ends[n].newest);
            self.ends[n].place = n;
            // An attacker with the key may have used up two timestamps: that of the last challenge
            // and that of the last accepted message. Each bind has another.
            for _ in 0..3 {
                if self.circuits[circuit].sides[side].live(self.now) != Some(at(n)) {
                    let message = self.make_message(n, false);
                    self.deliver(n, &message, true);
                }
            }
            bound[circuit][side] = true;
            let known = &self.circuits[circuit].sides[side];
            assert_eq!(known.live(self.now), Some(at(n)), "{self:#?}");
        }
        for n in 0..self.ends.len() {
            if bound[n / 2] == [true; 2] {
                let before = self.circuits[n / 2].from[n % 2].datagrams;
                self.arrives(&datagram(n / 2, 1), n);
                let after = self.circuits[n / 2].from[n % 2].datagrams;
                assert_eq!(after, before + 1, "{self:#?}");
            }
        }
        self.check_state();
    }
}

/// Whether a message is the challenge of the end's last unbind.
fn is_asked_again(end: &KnownEnd, message: &Message) -> bool {
    message.kind == Kind::Challenge && end.leaving == Some(message.timestamp)
}
