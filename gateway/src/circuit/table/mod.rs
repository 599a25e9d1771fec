//! Whose datagram it is, and where it goes: pure, taking the time, the datagram and its source.
//!
//! ```text
//!             bind, its tag right, newer                  bind with the cookie of this source
//!   unbound ───────────────────────────▶ (challenged) ──────────────────────────────────────▶ bound
//!      ▲        from any source            no state:                                          │ ▲ │
//!      │                                   a cookie is a hash                    again, from  │ │ │ tunnel datagrams
//!      └──────────────────────────────────── unbind, or the lifetime without a bind ──────────┘ └─┘ from here, to the
//!                                                                                   anywhere      other side
//! ```
//!
//! - What has no right tag changes nothing and is answered by nothing.
//! - Of messages with a right tag each is answered once at most, to its source, by as many bytes.
//! - Tunnel datagrams go only to an address that has shown within the lifetime that it receives, and only from such a one.
//! - There is an entry for each configured circuit, and none for anybody else: nothing that is received makes it grow.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ahash::RandomState;
use gateway_client::wire::{
    CircuitId, Datagram, Key, Kind, MESSAGE_BYTES, Message, Side, Tag, parse,
};

use super::rate::Bucket;

/// How long a cookie is good at least; and at most twice that.
const COOKIE_WINDOW: Duration = Duration::from_secs(120);
/// Messages with a right tag that a side may send a second, and at once.
const BINDS: u64 = 32;

/// Where a datagram came from, or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The socket, by its place in the worker's list.
    pub socket: u16,
    /// The gateway's own address, where the socket is one of several addresses.
    pub local: Option<IpAddr>,
    /// The end's address.
    pub remote: SocketAddr,
}

/// What is to be done with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes there, as it is.
    Forward(Path),
    /// Its source is sent this instead.
    Answer([u8; MESSAGE_BYTES]),
    /// It was a message and is done with.
    Done,
    /// It goes nowhere.
    Drop(Reason),
}

/// Why a datagram went nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has no form.
    Malformed,
    /// There is no such circuit.
    NoCircuit,
    /// A message whose tag is not its side's.
    Forged,
    /// A message that is not newer than the last one.
    Replayed,
    /// A message that only a gateway sends.
    NotForUs,
    /// More messages of one side than there may be.
    BindRate,
    /// It would be bound to where its other side is bound.
    SameAddress,
    /// A tunnel datagram from where no side is bound.
    NotBound,
    /// A tunnel datagram whose other side is not bound.
    NoPeer,
    /// A tunnel datagram beyond what its tenant may send.
    Rate,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::NoCircuit,
        Self::Forged,
        Self::Replayed,
        Self::NotForUs,
        Self::BindRate,
        Self::SameAddress,
        Self::NotBound,
        Self::NoPeer,
        Self::Rate,
    ];

    /// Whether what it is about is of a known circuit.
    #[must_use]
    pub const fn is_of_a_circuit(self) -> bool {
        !matches!(self, Self::Malformed | Self::NoCircuit)
    }

    /// Its name in status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoCircuit => "no-circuit",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::NotForUs => "not-for-us",
            Self::BindRate => "bind-rate",
            Self::SameAddress => "same-address",
            Self::NotBound => "not-bound",
            Self::NoPeer => "no-peer",
            Self::Rate => "rate",
        }
    }
}

/// Counts by reason.
pub type Drops = [u64; Reason::ALL.len()];

/// What all tables of a gateway are to do. Tables of several threads share it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long a binding lasts without another bind.
    pub lifetime: Duration,
    /// The tenants that circuits are of.
    pub tenants: Vec<TenantPlan>,
    /// The circuits, each id once.
    pub circuits: Vec<CircuitPlan>,
}

/// A tenant.
#[derive(Clone, Debug)]
pub struct TenantPlan {
    /// Its name.
    pub name: Arc<str>,
    /// Datagrams that it may send.
    pub datagrams: Option<Arc<Bucket>>,
    /// Bytes that it may send, with the ids.
    pub bytes: Option<Arc<Bucket>>,
}

/// A circuit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitPlan {
    /// Its id.
    pub id: CircuitId,
    /// Whose it is: the place in the list of tenants.
    pub tenant: usize,
    /// The keys of its two sides.
    pub keys: [Key; 2],
}

/// Datagrams and their bytes, the ids included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Datagrams.
    pub datagrams: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Traffic {
    fn add(&mut self, length: usize) {
        self.datagrams += 1;
        self.bytes += length as u64;
    }
}

/// What happened to the sides of a circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// A side was bound that was not.
    pub bound: u64,
    /// A side went on at another address.
    pub moved: u64,
    /// A side was told to show that it receives.
    pub challenged: u64,
    /// A side said nothing for its lifetime.
    pub expired: u64,
    /// A side said that it leaves.
    pub left: u64,
    /// A side was told to take another gateway, when it asked.
    pub sent_away: u64,
}

impl Events {
    /// Each with its name in status and metrics.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("bound", self.bound),
            ("moved", self.moved),
            ("challenged", self.challenged),
            ("expired", self.expired),
            ("left", self.left),
            ("sent-away", self.sent_away),
        ]
    }
}

/// What a table counted of a circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CircuitCounts {
    /// Forwarded, by the side that sent it.
    pub from: [Traffic; 2],
    /// Dropped.
    pub drops: Drops,
    /// Of its sides.
    pub events: Events,
}

/// How the sides of a circuit are bound: what another way to carry its datagrams has to know.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// Its id.
    pub id: CircuitId,
    /// Whose it is.
    pub tenant: &'a TenantPlan,
    /// Where its sides are bound, and until when if they are not bound again.
    pub ends: [Option<(Path, Duration)>; 2],
}

/// How a circuit is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitState {
    /// Its id.
    pub id: CircuitId,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// Where its sides are bound.
    pub bound: [Option<SocketAddr>; 2],
    /// What was counted, whatever way it went.
    pub counts: CircuitCounts,
    /// Of what was forwarded: that which another way carried.
    pub fast: [Traffic; 2],
}

#[derive(Clone, Copy, Debug)]
struct Binding {
    path: Path,
    /// When it ends, unless there is another bind.
    until: Duration,
}

#[derive(Debug)]
struct End {
    key: Key,
    binding: Option<Binding>,
    /// The newest timestamp with a right tag.
    newest: u64,
    messages: Bucket,
}

impl End {
    fn new(key: Key) -> Self {
        Self {
            key,
            binding: None,
            newest: 0,
            messages: Bucket::new(BINDS, Duration::from_secs(1)),
        }
    }

    fn live(&self, now: Duration) -> Option<&Path> {
        let binding = self.binding.as_ref()?;
        (now < binding.until).then_some(&binding.path)
    }
}

#[derive(Debug)]
struct Circuit {
    id: CircuitId,
    tenant: usize,
    ends: [End; 2],
    counts: CircuitCounts,
    /// Whether it is among those that have changed.
    changed: bool,
}

/// The circuits of one thread.
#[derive(Debug)]
pub struct Table {
    /// Only configured ids are put in, so nobody chooses which of them collide.
    places: HashMap<CircuitId, usize, RandomState>,
    circuits: Vec<Circuit>,
    tenants: Vec<TenantPlan>,
    lifetime: Duration,
    /// Makes cookies; nobody else's, and new at every start.
    secret: Key,
    draining: bool,
    /// Of datagrams that are no circuit's.
    drops: Drops,
    /// Circuits that were bound otherwise, or again, since somebody asked.
    changed: Vec<usize>,
}

impl Table {
    /// Without a circuit.
    #[must_use]
    pub fn new(secret: Key) -> Self {
        Self {
            places: HashMap::with_hasher(RandomState::with_seed(0)),
            circuits: Vec::new(),
            tenants: Vec::new(),
            lifetime: Duration::ZERO,
            secret,
            draining: false,
            drops: Drops::default(),
            changed: Vec::new(),
        }
    }

    /// Takes of a new plan the circuits that are `ours`. A circuit that is in both, of the same tenant, keeps its counts, and each of its sides with the same key
    /// stays bound.
    pub fn replan(&mut self, plan: &Plan, ours: impl Fn(CircuitId) -> bool) {
        let before = std::mem::take(&mut self.circuits);
        let names = |place: usize| self.tenants.get(place).map(|tenant| &tenant.name);
        let mut kept: HashMap<CircuitId, Circuit> = before.into_iter().map(|c| (c.id, c)).collect();
        for wanted in plan.circuits.iter().filter(|wanted| ours(wanted.id)) {
            let kept = kept.remove(&wanted.id).filter(|old| {
                names(old.tenant) == plan.tenants.get(wanted.tenant).map(|tenant| &tenant.name)
            });
            let (old_ends, counts) = match kept {
                Some(old) => (Some(old.ends), old.counts),
                None => (None, CircuitCounts::default()),
            };
            let [mut a, mut b] = wanted.keys.clone().map(End::new);
            for (new, old) in [&mut a, &mut b]
                .into_iter()
                .zip(old_ends.into_iter().flatten())
            {
                if new.key == old.key {
                    *new = old;
                }
            }
            self.circuits.push(Circuit {
                id: wanted.id,
                tenant: wanted.tenant,
                ends: [a, b],
                counts,
                changed: true,
            });
        }
        self.changed.clear();
        self.changed.extend(0..self.circuits.len());
        let circuits = self.circuits.iter().enumerate();
        self.places.clear();
        self.places.extend(circuits.map(|(place, c)| (c.id, place)));
        self.tenants.clone_from(&plan.tenants);
        self.lifetime = plan.lifetime;
    }

    /// What is to be done with a datagram. `now` is the time since an origin that all tables with the same buckets have in common.
    pub fn handle(&mut self, now: Duration, datagram: &[u8], from: &Path) -> Action {
        let action = match parse(datagram) {
            Ok(Datagram::Tunnel(id)) => match self.places.get(&id) {
                Some(&place) => return self.forward(now, place, datagram.len(), from),
                None => Action::Drop(Reason::NoCircuit),
            },
            Ok(Datagram::Message(sealed)) => match self.places.get(&sealed.circuit()) {
                Some(&place) => {
                    let circuit = &mut self.circuits[place];
                    let end = &circuit.ends[sealed.side().index()];
                    let action = match (sealed.kind(), sealed.open(&end.key)) {
                        (_, None) => Action::Drop(Reason::Forged),
                        (Kind::Bind, Some(message)) => {
                            return self.bind(now, place, &message, from);
                        }
                        (Kind::Unbind, Some(message)) => {
                            return self.unbind(now, place, &message, from);
                        }
                        (Kind::Challenge | Kind::Bound | Kind::Move, Some(_)) => {
                            Action::Drop(Reason::NotForUs)
                        }
                    };
                    return circuit.counted(action);
                }
                None => Action::Drop(Reason::NoCircuit),
            },
            Err(_) => Action::Drop(Reason::Malformed),
        };
        if let Action::Drop(reason) = action {
            self.drops[reason as usize] += 1;
        }
        action
    }

    fn forward(&mut self, now: Duration, place: usize, length: usize, from: &Path) -> Action {
        let circuit = &mut self.circuits[place];
        let is_at = |side: &Side| {
            let end = &circuit.ends[side.index()];
            end.live(now).is_some_and(|path| path.remote == from.remote)
        };
        let Some(side) = Side::BOTH.into_iter().find(is_at) else {
            return circuit.counted(Action::Drop(Reason::NotBound));
        };
        let Some(to) = circuit.ends[side.other().index()].live(now).copied() else {
            return circuit.counted(Action::Drop(Reason::NoPeer));
        };
        let tenant = &self.tenants[circuit.tenant];
        let draws = [(&tenant.datagrams, 1), (&tenant.bytes, length as u64)];
        for (bucket, tokens) in draws {
            if bucket.as_ref().is_some_and(|b| !b.take(now, tokens)) {
                return circuit.counted(Action::Drop(Reason::Rate));
            }
        }
        circuit.counts.from[side.index()].add(length);
        Action::Forward(to)
    }

    fn bind(&mut self, now: Duration, place: usize, bind: &Message, from: &Path) -> Action {
        let circuit = &mut self.circuits[place];
        if let Err(reason) = circuit.is_new(now, bind) {
            return circuit.counted(Action::Drop(reason));
        }
        let (lifetime, draining) = (self.lifetime, self.draining);
        let proven = self.has_proven(now, bind, from);
        let cookie = self.cookie(window(now), bind, from);
        let circuit = &mut self.circuits[place];
        let answer = |kind, cookie, lifetime| Message {
            kind,
            cookie,
            lifetime,
            ..*bind
        };
        let other = circuit.ends[bind.side.other().index()].live(now);
        let is_same = other.is_some_and(|path| path.remote == from.remote);
        let end = &mut circuit.ends[bind.side.index()];
        let live = end.live(now).map(|path| path.remote);
        let events = &mut circuit.counts.events;
        if !proven {
            events.challenged += 1;
            return Action::Answer(answer(Kind::Challenge, cookie, 0).seal(&end.key));
        }
        if is_same {
            return circuit.counted(Action::Drop(Reason::SameAddress));
        }
        if draining {
            events.sent_away += 1;
        }
        let away = answer(Kind::Move, cookie, 0).seal(&end.key);
        if draining && live.is_none() {
            return Action::Answer(away);
        }
        match live {
            None => events.bound += 1,
            Some(remote) if remote != from.remote => events.moved += 1,
            Some(_) => {}
        }
        // One that ended and was not swept yet.
        if live.is_none() && end.binding.is_some() {
            events.expired += 1;
        }
        end.binding = Some(Binding {
            path: *from,
            until: now + lifetime,
        });
        note(&mut circuit.changed, place, &mut self.changed);
        if draining {
            return Action::Answer(away);
        }
        let lifetime = u32::try_from(lifetime.as_millis()).unwrap_or(u32::MAX);
        Action::Answer(answer(Kind::Bound, cookie, lifetime).seal(&end.key))
    }

    fn unbind(&mut self, now: Duration, place: usize, unbind: &Message, from: &Path) -> Action {
        let circuit = &mut self.circuits[place];
        if let Err(reason) = circuit.is_new(now, unbind) {
            return circuit.counted(Action::Drop(reason));
        }
        let end = &mut circuit.ends[unbind.side.index()];
        if end.live(now).map(|path| path.remote) != Some(from.remote) {
            return circuit.counted(Action::Drop(Reason::NotBound));
        }
        end.binding = None;
        circuit.counts.events.left += 1;
        note(&mut circuit.changed, place, &mut self.changed);
        Action::Done
    }

    /// Whether the source has repeated a cookie that was sent to it.
    fn has_proven(&self, now: Duration, bind: &Message, from: &Path) -> bool {
        let window = window(now);
        [Some(window), window.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|window| self.cookie(window, bind, from) == bind.cookie)
    }

    fn cookie(&self, window: u64, bind: &Message, from: &Path) -> Tag {
        let (ip, scope) = match from.remote {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        self.secret.tag(&[
            &window.to_be_bytes(),
            &bind.circuit.to_bytes(),
            &[bind.side as u8],
            &ip.octets(),
            &from.remote.port().to_be_bytes(),
            &scope.to_be_bytes(),
        ])
    }

    /// Ends what has had its time. For the counts only: what has ended is not used, swept or not.
    pub fn sweep(&mut self, now: Duration) {
        for (place, circuit) in self.circuits.iter_mut().enumerate() {
            for end in &mut circuit.ends {
                if end.binding.is_some() && end.live(now).is_none() {
                    end.binding = None;
                    circuit.counts.events.expired += 1;
                    note(&mut circuit.changed, place, &mut self.changed);
                }
            }
        }
    }

    /// Tells of each circuit that was bound otherwise or again since the last call, or planned anew. Those that are no more are not told of.
    pub fn tell_changes(&mut self, mut tell: impl FnMut(&Bound<'_>)) {
        for place in self.changed.drain(..) {
            let circuit = &mut self.circuits[place];
            circuit.changed = false;
            tell(&Bound {
                id: circuit.id,
                tenant: &self.tenants[circuit.tenant],
                ends: Side::BOTH.map(|side| {
                    let binding = circuit.ends[side.index()].binding.as_ref()?;
                    Some((binding.path, binding.until))
                }),
            });
        }
    }

    /// Whether there is such a circuit.
    #[must_use]
    pub fn has(&self, id: CircuitId) -> bool {
        self.places.contains_key(&id)
    }

    /// From now on no side is bound that is not, and each that asks is sent away. Those that are bound stay so.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// What tells each bound side to take another gateway, and where it is: an answer to its last bind, which it knows.
    pub fn moves(&self, now: Duration) -> impl Iterator<Item = (Path, [u8; MESSAGE_BYTES])> {
        self.circuits.iter().flat_map(move |circuit| {
            Side::BOTH.into_iter().filter_map(move |side| {
                let end = &circuit.ends[side.index()];
                let path = end.live(now)?;
                let message = Message {
                    kind: Kind::Move,
                    side,
                    circuit: circuit.id,
                    timestamp: end.newest,
                    cookie: Tag::NONE,
                    lifetime: 0,
                };
                Some((*path, message.seal(&end.key)))
            })
        })
    }

    /// Sides that are bound.
    #[must_use]
    pub fn bound(&self, now: Duration) -> usize {
        let ends = self.circuits.iter().flat_map(|circuit| &circuit.ends);
        ends.filter(|end| end.live(now).is_some()).count()
    }

    /// Takes sockets away: what is bound through one of them is bound no more, and the others have new places.
    /// `places` has for each old place the new one.
    pub fn rearrange(&mut self, places: &[Option<u16>]) {
        for (at, circuit) in self.circuits.iter_mut().enumerate() {
            for end in &mut circuit.ends {
                if let Some(binding) = &mut end.binding {
                    match places.get(usize::from(binding.path.socket)) {
                        Some(Some(place)) => binding.path.socket = *place,
                        Some(None) | None => end.binding = None,
                    }
                }
            }
            note(&mut circuit.changed, at, &mut self.changed);
        }
    }

    /// How the circuits are.
    pub fn state(&self, now: Duration) -> impl Iterator<Item = CircuitState> {
        self.circuits.iter().map(move |circuit| CircuitState {
            id: circuit.id,
            tenant: Arc::clone(&self.tenants[circuit.tenant].name),
            bound: Side::BOTH
                .map(|side| circuit.ends[side.index()].live(now).map(|path| path.remote)),
            counts: circuit.counts,
            fast: [Traffic::default(); 2],
        })
    }

    /// Datagrams that were no circuit's, by reason.
    #[must_use]
    pub const fn drops(&self) -> &Drops {
        &self.drops
    }
}

impl Circuit {
    fn counted(&mut self, action: Action) -> Action {
        if let Action::Drop(reason) = action {
            self.counts.drops[reason as usize] += 1;
        }
        action
    }

    /// Whether a message with a right tag is newer than all before it, and not one too many. From then on it is the newest.
    fn is_new(&mut self, now: Duration, message: &Message) -> Result<(), Reason> {
        let end = &mut self.ends[message.side.index()];
        if message.timestamp <= end.newest {
            return Err(Reason::Replayed);
        }
        if !end.messages.take(now, 1) {
            return Err(Reason::BindRate);
        }
        end.newest = message.timestamp;
        Ok(())
    }
}

/// Puts a circuit among those that have changed, once.
fn note(changed: &mut bool, place: usize, all: &mut Vec<usize>) {
    if !*changed {
        *changed = true;
        all.push(place);
    }
}

const fn window(now: Duration) -> u64 {
    now.as_secs() / COOKIE_WINDOW.as_secs()
}

#[cfg(test)]
mod tests;
