//! The circuits of one thread: decides from the time, a datagram and its source where the datagram
//! goes.
//!
//! ```text
//!             bind, its tag right                         bind with the cookie of this source
//!   unbound ───────────────────────────▶ (challenged) ──────────────────────────────────────▶ bound
//!      ▲        from any source            no state:                                          │ ▲ │
//!      │                                   a cookie is a hash                    again, from  │ │ │ tunnel datagrams
//!      └──────────────────── unbind with the cookie, or the lifetime without a bind ──────────┘ └─┘ from here, to the
//!                                                                                   anywhere      other side
//! ```
//!
//! - A message without a valid tag changes nothing and has no answer.
//! - Only a message that repeats a cookie moves the watermark of timestamps that messages are
//!   compared with. A bind without a cookie is challenged whatever its timestamp, within a budget
//!   of its source. If it is older than the watermark, its cookie is good for one bind with any
//!   timestamp. So neither a clock that was wrong once nor a copy that comes first locks an end
//!   out, and a repeated capture binds and unbinds nothing: no cookie from before is valid once the
//!   watermark was set back.
//! - An unbind without a cookie is challenged if it is new and comes from where the side is bound.
//! - A message with a valid tag has at most one answer, of the same length, to its source.
//! - The table forwards tunnel datagrams only between bound addresses: those that repeated a cookie
//!   within the lifetime, and so receive what is sent to them.
//! - Each configured circuit has one entry. No datagram adds an entry.

mod counts;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ahash::RandomState;
use gateway_client::wire::{
    CircuitId, Datagram, Key, Kind, Load, MESSAGE_BYTES, Message, Side, Tag, parse,
};

pub use self::counts::{CircuitCounts, CircuitState, Drops, Events, Reason, TenantCounts, Traffic};
use super::rate::Bucket;

/// Least validity of a cookie; the most is twice this.
const COOKIE_WINDOW: Duration = Duration::from_secs(120);
/// Messages that a side may send a second from proven addresses, and the burst; unbinds too.
const BINDS: u64 = 32;
/// Challenges a second, and the burst, for each side and each of [`SLOTS`] slots of sources.
const CHALLENGES: u64 = 16;
/// Slots of sources that share a budget of challenges. A sender that repeats captures from one
/// address uses up one of them.
const SLOTS: usize = 8;
const SECOND: u64 = 1_000_000_000;

/// The addresses of a datagram that was received or is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Index of the socket in the list of the worker.
    pub socket: u16,
    /// Address of the gateway, where the socket is bound to the wildcard address.
    pub local: Option<IpAddr>,
    /// Address of the end.
    pub remote: SocketAddr,
}

/// The action of the worker for a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send the datagram unchanged.
    Forward(Path),
    /// Send this message to the source.
    Answer([u8; MESSAGE_BYTES]),
    /// Nothing: the message was handled.
    Done,
    /// Drop the datagram.
    Drop(Reason),
}

/// A difference of the configuration of a table.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Circuits that are removed. Unknown IDs are ignored.
    pub removed: Vec<CircuitId>,
    /// Circuits that are added, or replace the one of their ID.
    pub put: Vec<CircuitPlan>,
}

/// A tenant and its limits, which all tables and circuits share. The limits are changed in place.
#[derive(Debug)]
pub struct Tenant {
    pub name: Arc<str>,
    /// Limit of datagrams.
    pub datagrams: Bucket,
    /// Limit of bytes, circuit IDs included.
    pub bytes: Bucket,
}

impl Tenant {
    /// A tenant without limits.
    #[must_use]
    pub fn unlimited(name: &str) -> Self {
        Self {
            name: name.into(),
            datagrams: Bucket::new(0, Duration::ZERO),
            bytes: Bucket::new(0, Duration::ZERO),
        }
    }
}

/// A configured circuit.
#[derive(Clone, Debug)]
pub struct CircuitPlan {
    pub id: CircuitId,
    pub tenant: Arc<Tenant>,
    /// Keys of the sides a and b.
    pub keys: [Key; 2],
}

/// The bindings of a circuit, for XDP.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    pub id: CircuitId,
    pub tenant: &'a Tenant,
    /// Address of each side and end of its binding.
    pub ends: [Option<(Path, Duration)>; 2],
}

#[derive(Clone, Copy, Debug)]
struct Binding {
    path: Path,
    /// End of the binding, unless another bind comes.
    until: Duration,
}

#[derive(Debug)]
struct End {
    key: Key,
    binding: Option<Binding>,
    /// Timestamp of the last accepted message from a proven address.
    proven: u64,
    /// Number that cookies depend on, unique in the table. It changes when the watermark is set
    /// back, so that no cookie from before is valid.
    epoch: u64,
    messages: Bucket,
    /// By slot of the source: when the budget of challenges is full again, nanoseconds.
    challenges: [u64; SLOTS],
}

/// The rights that a cookie gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// A bind that is newer than the last accepted one.
    Newer = 0,
    /// One bind with any timestamp.
    AnyTime = 1,
}

impl End {
    fn new(key: Key, epoch: u64) -> Self {
        Self {
            key,
            binding: None,
            proven: 0,
            epoch,
            messages: Bucket::new(BINDS, Duration::from_secs(1)),
            challenges: [0; SLOTS],
        }
    }

    /// Accepts a message from a proven address.
    fn accept(&self, now: Duration, timestamp: u64, proof: Proof) -> Result<(), Reason> {
        if proof == Proof::Newer && timestamp <= self.proven {
            return Err(Reason::Replayed);
        }
        if !self.messages.take(now, 1) {
            return Err(Reason::BindRate);
        }
        Ok(())
    }

    /// Which kind of cookie challenges a message from a source of this slot, or why none does.
    fn challenge(&mut self, now: Duration, timestamp: u64, slot: usize) -> Result<Proof, Reason> {
        let (proof, full) = if timestamp > self.proven {
            (Proof::Newer, Reason::BindRate)
        } else {
            (Proof::AnyTime, Reason::Replayed)
        };
        // The end was bound with this very message, and never repeats a timestamp.
        if timestamp == self.proven {
            return Err(Reason::Replayed);
        }
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let full_at = &mut self.challenges[slot % SLOTS];
        let from = (*full_at).max(now);
        if from - now >= SECOND {
            return Err(full);
        }
        *full_at = from.saturating_add(SECOND / CHALLENGES);
        Ok(proof)
    }

    fn live(&self, now: Duration) -> Option<&Path> {
        let binding = self.binding.as_ref()?;
        (now < binding.until).then_some(&binding.path)
    }
}

#[derive(Debug)]
struct Circuit {
    id: CircuitId,
    tenant: Arc<Tenant>,
    ends: [End; 2],
    counts: CircuitCounts,
    /// Whether the circuit is in `Table::changed`.
    changed: bool,
}

/// The circuits of one thread.
#[derive(Debug)]
pub struct Table {
    /// Index in `circuits`. Only configured IDs are inserted, so that no sender can choose
    /// collisions.
    index: HashMap<CircuitId, usize, RandomState>,
    circuits: Vec<Circuit>,
    lifetime: Duration,
    /// Key of the cookies, random at every start.
    secret: Key,
    draining: bool,
    /// The load that answers carry.
    load: Load,
    /// Dropped datagrams without a circuit.
    drops: Drops,
    /// Circuits whose bindings changed or were renewed since the last report.
    changed: Vec<usize>,
    /// Tenants that circuits have left since the last report: until then XDP has their buckets.
    replaced: Vec<Arc<Tenant>>,
    /// The last used [`End::epoch`].
    epoch: u64,
}

impl Table {
    /// A table without circuits. `secret` must be random.
    #[must_use]
    pub fn new(secret: Key) -> Self {
        Self {
            index: HashMap::with_hasher(RandomState::with_seed(0)),
            circuits: Vec::new(),
            lifetime: Duration::ZERO,
            secret,
            draining: false,
            load: Load::UNKNOWN,
            drops: Drops::default(),
            changed: Vec::new(),
            replaced: Vec::new(),
            epoch: 0,
        }
    }

    /// Makes room for this number of circuits, so that later ones need no new memory.
    pub fn reserve(&mut self, circuits: usize) {
        let more = circuits.saturating_sub(self.circuits.len());
        self.circuits.reserve(more);
        self.index.reserve(more);
    }

    /// Sets the time that a side stays bound after its last bind, for binds from now on.
    pub const fn set_lifetime(&mut self, lifetime: Duration) {
        self.lifetime = lifetime;
    }

    /// Sets the load that answers carry from now on.
    pub const fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    /// Removes and adds circuits; does nothing to others. A circuit that stays with a tenant of the
    /// same name keeps its counters, and each of its sides with the same key stays bound.
    pub fn change(&mut self, change: Change) {
        // Removals move circuits to other positions.
        let noted = std::mem::take(&mut self.changed);
        let noted = noted.into_iter().map(|position| {
            let circuit = &mut self.circuits[position];
            circuit.changed = false;
            circuit.id
        });
        let noted: Vec<CircuitId> = noted.collect();
        for id in change.removed {
            self.remove(id);
        }
        for plan in change.put {
            self.put(plan);
        }
        for id in noted {
            self.note(id);
        }
    }

    fn remove(&mut self, id: CircuitId) {
        let Some(position) = self.index.remove(&id) else {
            return;
        };
        self.circuits.swap_remove(position);
        if let Some(moved) = self.circuits.get(position) {
            self.index.insert(moved.id, position);
        }
    }

    fn put(&mut self, plan: CircuitPlan) {
        let CircuitPlan { id, tenant, keys } = plan;
        let ends = keys.map(|key| {
            self.epoch += 1;
            End::new(key, self.epoch)
        });
        let mut new = Circuit {
            id,
            tenant,
            ends,
            counts: CircuitCounts::default(),
            changed: false,
        };
        match self.index.get(&id) {
            Some(&position) => {
                let present = &mut self.circuits[position];
                std::mem::swap(present, &mut new);
                let old = new;
                if !Arc::ptr_eq(&old.tenant, &present.tenant) {
                    self.replaced.push(Arc::clone(&old.tenant));
                }
                if old.tenant.name == present.tenant.name {
                    present.counts = old.counts;
                    for (new, old) in present.ends.iter_mut().zip(old.ends) {
                        if new.key == old.key {
                            *new = old;
                        }
                    }
                }
            }
            None => {
                self.index.insert(id, self.circuits.len());
                self.circuits.push(new);
            }
        }
        self.note(id);
    }

    /// Reports a circuit again, if there is one of this ID.
    fn note(&mut self, id: CircuitId) {
        if let Some(&position) = self.index.get(&id) {
            let changed = &mut self.circuits[position].changed;
            note(changed, position, &mut self.changed);
        }
    }

    /// Returns the worker's action for a datagram. `now` is the time since an origin that all
    /// tables with the same buckets have in common.
    pub fn handle(&mut self, now: Duration, datagram: &[u8], from: &Path) -> Action {
        let action = match parse(datagram) {
            Ok(Datagram::Tunnel(id)) => match self.index.get(&id) {
                Some(&position) => return self.forward(now, position, datagram.len(), from),
                None => Action::Drop(Reason::NoCircuit),
            },
            Ok(Datagram::Message(sealed)) => match self.index.get(&sealed.circuit()) {
                Some(&position) => {
                    let circuit = &mut self.circuits[position];
                    let end = &circuit.ends[sealed.side().index()];
                    let action = match (sealed.kind(), sealed.open(&end.key)) {
                        (_, None) => Action::Drop(Reason::Forged),
                        (Kind::Bind, Some(message)) => {
                            return self.bind(now, position, &message, from);
                        }
                        (Kind::Unbind, Some(message)) => {
                            return self.unbind(now, position, &message, from);
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

    fn forward(&mut self, now: Duration, position: usize, length: usize, from: &Path) -> Action {
        let circuit = &mut self.circuits[position];
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
        let tenant = &*circuit.tenant;
        let has_tokens = tenant.datagrams.take(now, 1) && tenant.bytes.take(now, length as u64);
        if !has_tokens {
            return circuit.counted(Action::Drop(Reason::Rate));
        }
        circuit.counts.from[side.index()].add(length);
        Action::Forward(to)
    }

    fn bind(&mut self, now: Duration, position: usize, bind: &Message, from: &Path) -> Action {
        let Some(proof) = self.proof(now, position, bind, from) else {
            return self.challenge(now, position, bind, from);
        };
        let circuit = &mut self.circuits[position];
        let end = &mut circuit.ends[bind.side.index()];
        if let Err(reason) = end.accept(now, bind.timestamp, proof) {
            return circuit.counted(Action::Drop(reason));
        }
        let other = circuit.ends[bind.side.other().index()].live(now);
        let is_same = other.is_some_and(|path| path.remote == from.remote);
        let end = &mut circuit.ends[bind.side.index()];
        end.proven = bind.timestamp;
        if proof == Proof::AnyTime {
            // It answers a challenge of this address that was not used before.
            self.epoch += 1;
            end.epoch = self.epoch;
        }
        let (lifetime, draining, load) = (self.lifetime, self.draining, self.load);
        let cookie = self.cookie((window(now), Proof::Newer), position, bind, from);
        let circuit = &mut self.circuits[position];
        let answer = |kind, lifetime| Message {
            kind,
            cookie,
            lifetime,
            load,
            ..*bind
        };
        let end = &mut circuit.ends[bind.side.index()];
        let live = end.live(now).map(|path| path.remote);
        let events = &mut circuit.counts.events;
        if is_same {
            return circuit.counted(Action::Drop(Reason::SameAddress));
        }
        if draining {
            events.sent_away += 1;
        }
        let away = answer(Kind::Move, 0).seal(&end.key);
        if draining && live.is_none() {
            return Action::Answer(away);
        }
        match live {
            None => events.bound += 1,
            Some(remote) if remote != from.remote => events.moved += 1,
            Some(_) => {}
        }
        // The old binding has expired and was not swept yet.
        if live.is_none() && end.binding.is_some() {
            events.expired += 1;
        }
        end.binding = Some(Binding {
            path: *from,
            until: now + lifetime,
        });
        note(&mut circuit.changed, position, &mut self.changed);
        if draining {
            return Action::Answer(away);
        }
        let lifetime = u32::try_from(lifetime.as_millis()).unwrap_or(u32::MAX);
        Action::Answer(answer(Kind::Bound, lifetime).seal(&end.key))
    }

    fn unbind(&mut self, now: Duration, position: usize, unbind: &Message, from: &Path) -> Action {
        let circuit = &mut self.circuits[position];
        let end = &circuit.ends[unbind.side.index()];
        if unbind.timestamp <= end.proven {
            return circuit.counted(Action::Drop(Reason::Replayed));
        }
        if end.live(now).map(|path| path.remote) != Some(from.remote) {
            return circuit.counted(Action::Drop(Reason::NotBound));
        }
        // A timestamp alone proves nothing: the clock of the end may have been set back since.
        if self.proof(now, position, unbind, from) != Some(Proof::Newer) {
            return self.challenge(now, position, unbind, from);
        }
        let circuit = &mut self.circuits[position];
        let end = &mut circuit.ends[unbind.side.index()];
        if let Err(reason) = end.accept(now, unbind.timestamp, Proof::Newer) {
            return circuit.counted(Action::Drop(reason));
        }
        end.proven = unbind.timestamp;
        end.binding = None;
        circuit.counts.events.left += 1;
        note(&mut circuit.changed, position, &mut self.changed);
        Action::Done
    }

    /// Answers a message without a valid cookie with a cookie for its source, within the budget of
    /// the slot of that source.
    fn challenge(
        &mut self,
        now: Duration,
        position: usize,
        message: &Message,
        from: &Path,
    ) -> Action {
        let slot = self.slot(from);
        let circuit = &mut self.circuits[position];
        let end = &mut circuit.ends[message.side.index()];
        let given = match end.challenge(now, message.timestamp, slot) {
            Ok(given) => given,
            Err(reason) => return circuit.counted(Action::Drop(reason)),
        };
        let challenge = Message {
            kind: Kind::Challenge,
            cookie: self.cookie((window(now), given), position, message, from),
            ..*message
        };
        let circuit = &mut self.circuits[position];
        circuit.counts.events.challenged += 1;
        let key = &circuit.ends[message.side.index()].key;
        Action::Answer(challenge.seal(key))
    }

    /// The rights that the cookie of a message gives, if the table sent it to this source.
    fn proof(
        &self,
        now: Duration,
        position: usize,
        message: &Message,
        from: &Path,
    ) -> Option<Proof> {
        if message.cookie == Tag::NONE {
            return None;
        }
        let window = window(now);
        let windows = [Some(window), window.checked_sub(1)];
        let proofs = [Proof::Newer, Proof::AnyTime];
        proofs.into_iter().find(|proof| {
            let mut windows = windows.into_iter().flatten();
            windows.any(|window| {
                self.cookie((window, *proof), position, message, from) == message.cookie
            })
        })
    }

    /// The slot of a source in budgets of challenges: by IPv4 address or IPv6 /64, and by the
    /// secret, so that no sender can choose the slot of another one.
    fn slot(&self, from: &Path) -> usize {
        let address = match from.remote.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => ((u128::from(v6) >> 64) << 64).to_be_bytes(),
        };
        usize::from(self.secret.tag(&[&address]).0[0]) % SLOTS
    }

    fn cookie(
        &self,
        (window, proof): (u64, Proof),
        position: usize,
        message: &Message,
        from: &Path,
    ) -> Tag {
        let epoch = self.circuits[position].ends[message.side.index()].epoch;
        let (ip, scope) = match from.remote {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        self.secret.tag(&[
            &window.to_be_bytes(),
            &epoch.to_be_bytes(),
            &[proof as u8],
            &message.circuit.to_bytes(),
            &[message.side as u8],
            &ip.octets(),
            &from.remote.port().to_be_bytes(),
            &scope.to_be_bytes(),
        ])
    }

    /// Counts and removes expired bindings. Expired bindings are never used, swept or not.
    pub fn sweep(&mut self, now: Duration) {
        for (position, circuit) in self.circuits.iter_mut().enumerate() {
            for end in &mut circuit.ends {
                if end.binding.is_some() && end.live(now).is_none() {
                    end.binding = None;
                    circuit.counts.events.expired += 1;
                    note(&mut circuit.changed, position, &mut self.changed);
                }
            }
        }
    }

    /// Reports each circuit whose bindings changed or were renewed since the last call, or that was
    /// added or replaced. Removed circuits are not reported.
    pub fn report_changes(&mut self, mut report: impl FnMut(&Bound<'_>)) {
        for position in self.changed.drain(..) {
            let circuit = &mut self.circuits[position];
            circuit.changed = false;
            report(&Bound {
                id: circuit.id,
                tenant: &circuit.tenant,
                ends: Side::BOTH.map(|side| {
                    let binding = circuit.ends[side.index()].binding.as_ref()?;
                    Some((binding.path, binding.until))
                }),
            });
        }
        self.replaced.clear();
    }

    /// Whether a circuit has the ID.
    #[must_use]
    pub fn has(&self, id: CircuitId) -> bool {
        self.index.contains_key(&id)
    }

    /// Accepts no new binding from now on, and answers every bind with the order to use another
    /// gateway. Bound sides stay bound.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Accepts bindings again.
    pub const fn undrain(&mut self) {
        self.draining = false;
    }

    /// For each bound side, its address and the message that orders it to use another gateway: an
    /// answer to its last bind.
    pub fn moves(&self, now: Duration) -> impl Iterator<Item = (Path, [u8; MESSAGE_BYTES])> {
        self.circuits.iter().flat_map(move |circuit| {
            Side::BOTH.into_iter().filter_map(move |side| {
                let end = &circuit.ends[side.index()];
                let path = end.live(now)?;
                let message = Message {
                    kind: Kind::Move,
                    side,
                    circuit: circuit.id,
                    timestamp: end.proven,
                    cookie: Tag::NONE,
                    lifetime: 0,
                    load: self.load,
                };
                Some((*path, message.seal(&end.key)))
            })
        })
    }

    /// Number of bound sides.
    #[must_use]
    pub fn bound(&self, now: Duration) -> usize {
        let ends = self.circuits.iter().flat_map(|circuit| &circuit.ends);
        ends.filter(|end| end.live(now).is_some()).count()
    }

    /// Renumbers sockets: `sockets` has the new index for each old one. Sides that were bound
    /// through a removed socket become unbound.
    pub fn renumber_sockets(&mut self, sockets: &[Option<u16>]) {
        for (at, circuit) in self.circuits.iter_mut().enumerate() {
            for end in &mut circuit.ends {
                if let Some(binding) = &mut end.binding {
                    match sockets.get(usize::from(binding.path.socket)) {
                        Some(Some(socket)) => binding.path.socket = *socket,
                        Some(None) | None => end.binding = None,
                    }
                }
            }
            note(&mut circuit.changed, at, &mut self.changed);
        }
    }

    /// The state of all circuits.
    pub fn state(&self, now: Duration) -> impl Iterator<Item = CircuitState> {
        self.circuits
            .iter()
            .map(move |circuit| self.state_of(circuit, now))
    }

    /// The circuits of each tenant together, for tenants with circuits here.
    pub fn tenants(&self, now: Duration) -> Vec<(Arc<str>, TenantCounts)> {
        let mut all: HashMap<*const Tenant, (&Arc<str>, TenantCounts), RandomState> =
            HashMap::with_hasher(RandomState::with_seed(0));
        for circuit in &self.circuits {
            let (_, sum) = all
                .entry(Arc::as_ptr(&circuit.tenant))
                .or_insert_with(|| (&circuit.tenant.name, TenantCounts::default()));
            sum.circuits += 1;
            sum.bound += circuit
                .ends
                .iter()
                .filter(|e| e.live(now).is_some())
                .count();
            sum.counts += &circuit.counts;
        }
        let named = all.into_values();
        named
            .map(|(name, counts)| (Arc::clone(name), counts))
            .collect()
    }

    /// The states of at most `limit` circuits after an ID, of one tenant or of all, in the order of
    /// IDs.
    pub fn page(
        &self,
        now: Duration,
        (after, limit): (Option<CircuitId>, usize),
        tenant: Option<&str>,
    ) -> Vec<CircuitState> {
        let of_tenant =
            |circuit: &&Circuit| tenant.is_none_or(|name| *circuit.tenant.name == *name);
        let circuits = self.circuits.iter().filter(of_tenant);
        let mut found: Vec<&Circuit> = circuits
            .filter(|circuit| after.is_none_or(|after| circuit.id > after))
            .collect();
        if found.len() > limit && limit > 0 {
            found.select_nth_unstable_by_key(limit - 1, |circuit| circuit.id);
        }
        found.truncate(limit);
        found.sort_unstable_by_key(|circuit| circuit.id);
        found
            .into_iter()
            .map(|circuit| self.state_of(circuit, now))
            .collect()
    }

    fn state_of(&self, circuit: &Circuit, now: Duration) -> CircuitState {
        CircuitState {
            id: circuit.id,
            tenant: Arc::clone(&circuit.tenant.name),
            bound: Side::BOTH
                .map(|side| circuit.ends[side.index()].live(now).map(|path| path.remote)),
            counts: circuit.counts,
            fast: [Traffic::default(); 2],
        }
    }

    /// Dropped datagrams without a circuit, by reason.
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
}

/// Adds a circuit to the list of changed ones, once.
fn note(changed: &mut bool, position: usize, all: &mut Vec<usize>) {
    if !*changed {
        *changed = true;
        all.push(position);
    }
}

const fn window(now: Duration) -> u64 {
    now.as_secs() / COOKIE_WINDOW.as_secs()
}

#[cfg(test)]
mod tests;
