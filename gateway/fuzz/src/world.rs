//! A gateway's table and six ends, and beside them what `docs/gateway.md` says of both, written down a second time.
//!
//! Every datagram goes to the table and to the model, and both have to agree on what becomes of it. What the model
//! does not know beforehand is a cookie: one that was not given before has to be unlike all that were.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use gateway::circuit::{
    rate::Bucket,
    table::{Action, CircuitPlan, Path, Plan, Reason, Table, TenantPlan, Traffic},
};
use gateway_client::{
    end::{End, Heard},
    wire::{CircuitId, Datagram, Key, Kind, MESSAGE_BYTES, Message, Side, Tag, parse},
};

use fuzzing::{Input, mutate};

const SECOND: u64 = 1_000_000_000;
const LIFETIME: Duration = Duration::from_secs(10);
/// Of cookies, seconds.
const WINDOW: u64 = 120;
/// Messages of a side, at once and in a second.
const BINDS: u64 = 32;
/// Datagrams that tenant acme may send in a second, and bytes that tenant evil may. Both divide a second into whole nanoseconds.
const DATAGRAMS: u64 = 1000;
const BYTES: u64 = 100_000;
/// How much of a second's may come at once.
const DEPTH: Duration = Duration::from_millis(100);
/// Circuits that are ever planned.
const CIRCUITS: usize = 3;
/// Addresses that there are; the ends are at the first six.
const PLACES: usize = 8;
/// Datagrams that the enemy keeps.
const KEPT: usize = 64;
/// A timestamp beyond which an end's clock is not followed.
const LATE: u64 = 1 << 62;

fn id(circuit: usize) -> CircuitId {
    CircuitId::new((circuit as u64 + 1) << 32 | 5).expect("its first bytes are not zero")
}

/// The keys of one run.
#[derive(Clone, Copy, Debug)]
struct Keys(u64);

impl Keys {
    /// Keys that hang on the whole input (FNV-1a): a fuzzer sees what is compared, and could put a true word of one run into the
    /// input of the next.
    fn of(input: &[u8]) -> Self {
        Self(input.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    /// The key of a side; another one in each generation. That of a fourth circuit is nobody's.
    fn key(self, circuit: usize, side: Side, generation: u8) -> Key {
        self.numbered(circuit as u8 * 2 + side as u8 + 1 + 16 * generation)
    }

    /// What makes cookies.
    fn secret(self) -> Key {
        self.numbered(0xee)
    }

    fn numbered(self, number: u8) -> Key {
        let mut bytes = [number; 32];
        bytes[..8].copy_from_slice(&self.0.to_be_bytes());
        Key::new(bytes)
    }
}

/// The source of what comes from a place, as the gateway's sockets tell it at first. The last two are other ports of the first two.
fn at(place: usize) -> Path {
    let host = (place % 6) as u8 + 1;
    let port = 1000 + place as u16;
    let remote = if place.is_multiple_of(2) {
        SocketAddr::from(([192, 0, 2, host], port))
    } else {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host)], port))
    };
    Path {
        socket: (place % 2) as u16,
        local: None,
        remote,
    }
}

fn datagram(circuit: usize, bytes: usize) -> Vec<u8> {
    let mut out = id(circuit).to_bytes().to_vec();
    out.resize(8 + bytes.max(1), 0x5a);
    out
}

/// A bucket in the model: how full it is, counted in the nanoseconds that it takes to run dry.
#[derive(Clone, Copy, Debug, Default)]
struct Leaky {
    level: u64,
    at: u64,
}

impl Leaky {
    fn pour(&mut self, now: Duration, cost: u64, depth: Duration) -> bool {
        let now = now.as_nanos() as u64;
        self.level = self.level.saturating_sub(now - self.at);
        self.at = now;
        let fits = self.level < depth.as_nanos() as u64;
        if fits {
            self.level += cost;
        }
        fits
    }
}

/// What the model knows of a side.
#[derive(Clone, Debug)]
struct KnownSide {
    key: Key,
    newest: u64,
    messages: Leaky,
    bound: Option<(Path, Duration)>,
}

impl KnownSide {
    const fn new(key: Key) -> Self {
        Self {
            key,
            newest: 0,
            messages: Leaky { level: 0, at: 0 },
            bound: None,
        }
    }

    fn live(&self, now: Duration) -> Option<Path> {
        let (path, until) = self.bound?;
        (now < until).then_some(path)
    }
}

/// What the model knows of a circuit.
#[derive(Clone, Debug)]
struct Known {
    circuit: usize,
    tenant: &'static str,
    sides: [KnownSide; 2],
    drops: [u64; Reason::ALL.len()],
    from: [Traffic; 2],
}

/// A cookie, and whose it is.
#[derive(Clone, Copy, Debug)]
struct Given {
    circuit: CircuitId,
    side: Side,
    remote: SocketAddr,
    window: u64,
    cookie: Tag,
}

/// What is to become of a datagram.
#[derive(Debug)]
enum Wanted {
    Forward(Path),
    /// An answer to this message, of this kind.
    Answer(Message, Kind),
    Done,
    Drop(Reason),
}

/// An end, and what the model knows of it.
#[derive(Debug)]
struct KnownEnd {
    end: End,
    circuit: usize,
    side: Side,
    place: usize,
    newest: u64,
    heard: u64,
    challenged: bool,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    table: Table,
    keys: Keys,
    buckets: [Arc<Bucket>; 2],
    now: Duration,
    draining: bool,
    circuits: Vec<Known>,
    /// Of datagrams that are no circuit's.
    drops: [u64; Reason::ALL.len()],
    rates: [Leaky; 2],
    given: Vec<Given>,
    ends: Vec<KnownEnd>,
    /// That of the ends: nanoseconds since 1970.
    clock: u64,
    /// Words of ends and answers of the gateway that the enemy has.
    kept: Vec<Vec<u8>>,
    /// What ends said, as they said it.
    said: Vec<Vec<u8>>,
    /// Whether the enemy has keys.
    is_keyed: bool,
}

/// One thing that happens.
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
    /// Nobody is bound. With `is_keyed` the enemy may seal messages with every key.
    pub(crate) fn new(data: &[u8], is_keyed: bool) -> Self {
        let keys = Keys::of(data);
        let ends = (0..2 * CIRCUITS).map(|n| {
            let (circuit, side) = (n / 2, Side::BOTH[n % 2]);
            KnownEnd {
                end: End::new(id(circuit), side, keys.key(circuit, side, 0)),
                circuit,
                side,
                place: n,
                newest: 0,
                heard: 0,
                challenged: false,
            }
        });
        let mut this = Self {
            table: Table::new(keys.secret()),
            keys,
            buckets: [DATAGRAMS, BYTES].map(|rate| Arc::new(Bucket::new(rate, DEPTH))),
            now: Duration::from_secs(1),
            draining: false,
            circuits: Vec::new(),
            drops: [0; Reason::ALL.len()],
            rates: [Leaky::default(); 2],
            given: Vec::new(),
            ends: ends.collect(),
            clock: 1_700_000_000 * SECOND,
            kept: Vec::new(),
            said: Vec::new(),
            is_keyed,
        };
        this.replan(0);
        this
    }

    /// What the input says, and then whatever it says that others can still be reached.
    pub(crate) fn run(mut self, input: &mut Input<'_>, acts: &[Act], most: usize) {
        for _ in 0..most {
            if input.is_empty() {
                break;
            }
            let act = acts[input.below(acts.len())];
            self.act(act, input);
            self.is_as_known();
        }
        self.goes_on();
    }

    fn act(&mut self, act: Act, input: &mut Input<'_>) {
        match act {
            Act::Raw => {
                let place = input.below(PLACES);
                let length = input.below(97);
                let bytes = input.bytes(length).to_vec();
                self.arrives(&bytes, place);
            }
            Act::Tunnel => {
                let (circuit, place) = (input.below(CIRCUITS + 1), input.below(PLACES));
                let bytes = datagram(circuit, usize::from(input.u16()) % 2048);
                for _ in 0..=input.below(8) {
                    self.arrives(&bytes, place);
                }
            }
            Act::Nearly => {
                let place = input.below(PLACES);
                let mut bytes = vec![0; 8];
                bytes.extend(input.array::<{ MESSAGE_BYTES - 8 }>());
                self.arrives(&bytes, place);
            }
            Act::Bind | Act::Unbind => {
                let n = input.below(self.ends.len());
                let fate = input.u8();
                let word = self.speak(n, matches!(act, Act::Unbind));
                self.keep(&word);
                if fate & 1 == 0 {
                    self.carry(n, &word, fate & 2 == 0);
                }
            }
            Act::Roam => {
                let n = input.below(self.ends.len());
                self.ends[n].place = input.below(PLACES);
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
                self.arrives(&bytes, input.below(PLACES));
            }
            Act::Change => {
                let which = input.below(self.kept.len());
                let mut bytes = self.kept[which].clone();
                mutate(input, &mut bytes, 64);
                let place = input.below(PLACES);
                if input.flag() {
                    let n = input.below(self.ends.len());
                    self.hears(n, &bytes);
                } else {
                    self.arrives(&bytes, place);
                }
            }
            Act::Hear => {
                let which = input.below(self.kept.len());
                let bytes = self.kept[which].clone();
                let n = input.below(self.ends.len());
                if let Some(word) = self.hears(n, &bytes) {
                    self.keep(&word);
                    self.carry(n, &word, true);
                }
            }
            Act::Admin => self.admin(input.u8()),
            Act::Clock => {
                let by = u64::from(input.u16()) * 1_000_000;
                self.clock = if input.flag() {
                    self.clock.saturating_sub(by)
                } else {
                    (self.clock + by).min(LATE)
                };
            }
            Act::Forge => {
                let bytes = self.forged(input);
                self.arrives(&bytes, input.below(PLACES));
            }
            Act::ForgeAnswer => {
                let bytes = self.forged(input);
                let n = input.below(self.ends.len());
                self.hears(n, &bytes);
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

    fn keep(&mut self, bytes: &[u8]) {
        if self.kept.len() < KEPT {
            self.kept.push(bytes.to_vec());
        }
    }

    /// An end says that it is here, or leaves.
    fn speak(&mut self, n: usize, leaves: bool) -> Vec<u8> {
        let (clock, end) = (self.clock, &mut self.ends[n]);
        let word = if leaves {
            end.end.unbind(clock)
        } else {
            end.challenged = false;
            end.end.bind(clock)
        };
        self.spoke(n, &word);
        word.to_vec()
    }

    /// An end's own message, before anybody has it.
    fn spoke(&mut self, n: usize, word: &[u8]) {
        let (clock, end) = (self.clock, &mut self.ends[n]);
        if end.newest == 0 {
            end.heard = clock;
        }
        end.newest = end.newest.max(clock) + 1;
        let stamp = word[20..28].try_into().expect("eight bytes");
        assert_eq!(u64::from_be_bytes(stamp), end.newest, "a new timestamp");
        self.said.push(word.to_vec());
    }

    /// The network carries a word to the gateway, and answers back.
    fn carry(&mut self, n: usize, word: &[u8], back: bool) {
        let mut word = word.to_vec();
        // A challenge is answered once.
        for _ in 0..2 {
            let Some(answer) = self.arrives(&word, self.ends[n].place) else {
                return;
            };
            if !back {
                return;
            }
            match self.hears(n, &answer) {
                Some(next) => word = next,
                None => return,
            }
        }
        panic!("an end goes on for ever: {self:#?}");
    }

    /// A datagram comes to the gateway; what it answers.
    fn arrives(&mut self, bytes: &[u8], place: usize) -> Option<Vec<u8>> {
        let from = at(place);
        let action = self.table.handle(self.now, bytes, &from);
        let wanted = self.wanted(bytes, &from);
        if !self.is_keyed && matches!(action, Action::Answer(_) | Action::Done) {
            assert!(
                self.said.iter().any(|word| word == bytes),
                "nobody said that: {bytes:02x?}"
            );
        }
        match (&action, &wanted) {
            (Action::Forward(to), Wanted::Forward(path)) if to == path => None,
            (Action::Done, Wanted::Done) => None,
            (Action::Drop(reason), Wanted::Drop(known)) if reason == known => None,
            (Action::Answer(answer), Wanted::Answer(question, kind)) => {
                assert!(answer.len() <= bytes.len(), "more than it was asked");
                self.answered(answer, question, *kind, &from);
                self.keep(answer);
                Some(answer.to_vec())
            }
            _ => panic!("{action:?}, not {wanted:?}, of {bytes:02x?} from {from:?}: {self:#?}"),
        }
    }

    /// What is to become of a datagram, and what the model knows after it.
    fn wanted(&mut self, bytes: &[u8], from: &Path) -> Wanted {
        let nobodys = |drops: &mut [u64], reason: Reason| {
            drops[reason as usize] += 1;
            Wanted::Drop(reason)
        };
        let Some(form) = read(bytes) else {
            return nobodys(&mut self.drops, Reason::Malformed);
        };
        let circuit = match &form {
            Form::Tunnel(circuit) => *circuit,
            Form::Message(message) => message.circuit,
        };
        let now = self.now;
        let Some(known) = self.circuits.iter_mut().find(|c| id(c.circuit) == circuit) else {
            return nobodys(&mut self.drops, Reason::NoCircuit);
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
                        if self.rates[bucket].pour(now, cost, DEPTH) {
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
                let proven = self.given.iter().any(|given| {
                    let age = (now.as_secs() / WINDOW).checked_sub(given.window);
                    (given.circuit, given.side, given.remote)
                        == (message.circuit, message.side, from.remote)
                        && given.cookie == message.cookie
                        && age.is_some_and(|age| age < 2)
                });
                known.message(now, bytes, &message, from, proven, self.draining)
            }
        };
        if let Wanted::Drop(reason) = wanted {
            known.drops[reason as usize] += 1;
        }
        wanted
    }

    /// Looks at an answer.
    fn answered(&mut self, answer: &[u8], question: &Message, kind: Kind, from: &Path) {
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
            cookie: message.cookie,
        };
        let whose = |g: &Given| (g.circuit, g.side, g.remote, g.window);
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

    /// A datagram comes to an end; what it sends then.
    fn hears(&mut self, n: usize, bytes: &[u8]) -> Option<Vec<u8>> {
        let known = &mut self.ends[n];
        let heard = known.end.hear(bytes, self.clock);
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
            let is_news = message.timestamp > known.heard
                || message.kind == Kind::Move && message.timestamp == known.heard;
            // What an end says is nothing to it: not even a reason to be deaf to the answer.
            let is_gateways = !matches!(message.kind, Kind::Bind | Kind::Unbind);
            is_tagged(bytes, &own) && is_gateways && is_news && message.timestamp <= known.newest
        });
        let Some(message) = message else {
            assert_eq!(heard, None, "{bytes:02x?}: {self:#?}");
            return None;
        };
        known.heard = message.timestamp;
        match (message.kind, heard) {
            (Kind::Challenge, Some(Heard::Send(word))) if !known.challenged => {
                known.challenged = true;
                assert_eq!(word[28..44], message.cookie.0);
                self.spoke(n, &word);
                return Some(word.to_vec());
            }
            (Kind::Challenge, None) if known.challenged => {}
            (Kind::Bound, Some(Heard::Bound(lifetime))) => assert_eq!(lifetime, message.lifetime),
            (Kind::Move, Some(Heard::Move)) => {}
            (_, heard) => panic!("{heard:?} of {message:?}: {self:#?}"),
        }
        None
    }

    /// What whoever runs the gateway does.
    fn admin(&mut self, what: u8) {
        match what % 8 {
            0 | 1 => self.table.sweep(self.now),
            2 => {
                self.table.drain();
                self.draining = true;
                self.tell();
            }
            3 => self.rearrange(&[Some(1), Some(0)]),
            4 => self.rearrange(&[None, Some(0)]),
            n => self.replan(n - 5),
        }
    }

    /// Tells the bound sides to move, and nobody else.
    fn tell(&mut self) {
        let told: Vec<_> = self.table.moves(self.now).collect();
        let mut wanted = Vec::new();
        for known in &self.circuits {
            for (side, known_side) in Side::BOTH.into_iter().zip(&known.sides) {
                if let Some(path) = known_side.live(self.now) {
                    let message = Message {
                        kind: Kind::Move,
                        side,
                        circuit: id(known.circuit),
                        timestamp: known_side.newest,
                        cookie: Tag::NONE,
                        lifetime: 0,
                    };
                    wanted.push((path, message.seal(&known_side.key)));
                }
            }
        }
        assert_eq!(told, wanted);
        for (_, bytes) in told {
            self.keep(&bytes);
        }
    }

    /// Another plan: 0 is the first one, in 1 a circuit is missing and one has another key, in 2 one is of another tenant, and
    /// all is in another order.
    fn replan(&mut self, which: u8) {
        let tenants = if which == 2 {
            ["evil", "acme"]
        } else {
            ["acme", "evil"]
        };
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
        let [datagrams, bytes] = &self.buckets;
        let plan = Plan {
            lifetime: LIFETIME,
            tenants: tenants
                .iter()
                .map(|name| TenantPlan {
                    name: (*name).into(),
                    datagrams: (*name == "acme").then(|| Arc::clone(datagrams)),
                    bytes: (*name == "evil").then(|| Arc::clone(bytes)),
                })
                .collect(),
            circuits: planned
                .iter()
                .map(|(circuit, tenant, generations)| CircuitPlan {
                    id: id(*circuit),
                    tenant: tenants.iter().position(|t| t == tenant).expect("a tenant"),
                    keys: keys(*circuit, *generations),
                })
                .collect(),
        };
        self.table.replan(&plan, |_| true);
        let before = std::mem::take(&mut self.circuits);
        for (circuit, tenant, generations) in planned {
            let old = before
                .iter()
                .find(|old| (old.circuit, old.tenant) == (circuit, tenant));
            let mut known = old.cloned().unwrap_or_else(|| Known {
                circuit,
                tenant,
                sides: keys(circuit, generations).map(KnownSide::new),
                drops: [0; Reason::ALL.len()],
                from: [Traffic::default(); 2],
            });
            for (side, key) in known.sides.iter_mut().zip(keys(circuit, generations)) {
                if side.key != key {
                    *side = KnownSide::new(key);
                }
            }
            self.circuits.push(known);
        }
    }

    /// Sockets go, or are in another order.
    fn rearrange(&mut self, places: &[Option<u16>]) {
        self.table.rearrange(places);
        for side in self.circuits.iter_mut().flat_map(|c| &mut c.sides) {
            if let Some((path, until)) = side.bound {
                let to = places.get(usize::from(path.socket)).copied().flatten();
                side.bound = to.map(|socket| (Path { socket, ..path }, until));
            }
        }
    }

    /// The table holds what the model does, and not more.
    fn is_as_known(&self) {
        let state: Vec<_> = self.table.state(self.now).collect();
        assert_eq!(state.len(), self.circuits.len());
        assert_eq!(*self.table.drops(), self.drops);
        let mut bound = 0;
        for (found, known) in state.iter().zip(&self.circuits) {
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

    /// Whatever happened: the ends are bound when they ask again, and their datagrams go from side to side. Not where somebody
    /// who has the key has spent its timestamps.
    fn goes_on(&mut self) {
        if self.draining {
            return;
        }
        self.replan(0);
        self.now += LIFETIME + Duration::from_secs(3600);
        self.clock = self.clock.max(1_700_000_000 * SECOND);
        let mut bound = [[false; 2]; CIRCUITS];
        for n in 0..self.ends.len() {
            let (circuit, side) = (self.ends[n].circuit, self.ends[n].side.index());
            let spent = self.circuits[circuit].sides[side].newest;
            self.clock = self.clock.max(self.ends[n].newest);
            if spent > LATE {
                continue;
            }
            self.clock = self.clock.max(spent);
            self.ends[n].place = n;
            let word = self.speak(n, false);
            self.carry(n, &word, true);
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
        self.is_as_known();
    }
}

impl Known {
    /// What is to become of a message about this circuit.
    fn message(
        &mut self,
        now: Duration,
        bytes: &[u8],
        message: &Message,
        from: &Path,
        proven: bool,
        draining: bool,
    ) -> Wanted {
        let other = self.sides[message.side.other().index()].live(now);
        let side = &mut self.sides[message.side.index()];
        if !is_tagged(bytes, &side.key) {
            return Wanted::Drop(Reason::Forged);
        }
        if !matches!(message.kind, Kind::Bind | Kind::Unbind) {
            return Wanted::Drop(Reason::NotForUs);
        }
        if message.timestamp <= side.newest {
            return Wanted::Drop(Reason::Replayed);
        }
        let depth = Duration::from_secs(1);
        if !side.messages.pour(now, SECOND / BINDS, depth) {
            return Wanted::Drop(Reason::BindRate);
        }
        side.newest = message.timestamp;
        let live = side.live(now);
        if message.kind == Kind::Unbind {
            return if live.is_some_and(|path| path.remote == from.remote) {
                side.bound = None;
                Wanted::Done
            } else {
                Wanted::Drop(Reason::NotBound)
            };
        }
        if !proven {
            return Wanted::Answer(*message, Kind::Challenge);
        }
        if other.is_some_and(|path| path.remote == from.remote) {
            return Wanted::Drop(Reason::SameAddress);
        }
        if draining && live.is_none() {
            return Wanted::Answer(*message, Kind::Move);
        }
        side.bound = Some((*from, now + LIFETIME));
        let kind = if draining { Kind::Move } else { Kind::Bound };
        Wanted::Answer(*message, kind)
    }
}

/// A datagram's form.
enum Form {
    Tunnel(CircuitId),
    Message(Message),
}

/// The form of a datagram, by the layout in `docs/gateway.md`.
fn read(bytes: &[u8]) -> Option<Form> {
    let number = |at: usize, length: usize| {
        let mut out = [0; 8];
        out[8 - length..].copy_from_slice(&bytes[at..at + length]);
        u64::from_be_bytes(out)
    };
    if bytes.len() <= 8 {
        return None;
    }
    if number(0, 4) != 0 {
        return Some(Form::Tunnel(CircuitId::new(number(0, 8))?));
    }
    if bytes.len() != 64 || number(4, 5) != 1 || bytes[11] != 0 || number(12, 4) == 0 {
        return None;
    }
    let kind = match bytes[9] {
        1 => Kind::Bind,
        2 => Kind::Challenge,
        3 => Kind::Bound,
        4 => Kind::Move,
        5 => Kind::Unbind,
        _ => return None,
    };
    let side = *Side::BOTH.get(usize::from(bytes[10]))?;
    let lifetime = number(44, 4) as u32;
    if kind != Kind::Bound && lifetime != 0 {
        return None;
    }
    Some(Form::Message(Message {
        kind,
        side,
        circuit: CircuitId::new(number(12, 8))?,
        timestamp: number(20, 8),
        cookie: Tag(bytes[28..44].try_into().ok()?),
        lifetime,
    }))
}

/// Whether who made a message has this key.
fn is_tagged(bytes: &[u8], key: &Key) -> bool {
    key.tag(&[&bytes[..48]]).0 == bytes[48..64]
}
