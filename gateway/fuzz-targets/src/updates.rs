//! Updates of the desired state in any order, compared with a model that keeps the objects in maps
//! and checks all of them each time.

use std::collections::BTreeSet;

use fuzzing::Input;
use gateway_client::wire::Key;
use gateway_model::{
    BackendSpec, Bounds, CircuitSpec, Delta, Ids, Model, Objects, RouteSpec, Snapshot, Source,
    TenantSpec, Update, Withdrawal,
};
use service::{config::Checker, desired::MAX_REVISION};

/// Updates of one input at most.
const MAX_UPDATES: usize = 24;
/// Objects of one update at most.
const MAX_OBJECTS: usize = 16;
/// Tenants that have a name here; more than half of them go only on purpose.
const TENANTS: usize = 12;
/// The address of the gateway.
const OWN: &str = "192.0.2.1:6180";

/// Runs one input: updates as JSON, a line each, or choices of updates.
pub fn updates(data: &[u8]) {
    let mut input = Input::new(data);
    if input.flag() {
        return text(input.rest());
    }
    let mut world = World::default();
    for _ in 0..MAX_UPDATES {
        if input.is_empty() {
            return;
        }
        world.step(&mut input);
    }
}

/// Capacity of the gateway.
fn bounds() -> Bounds {
    Bounds {
        circuits: 6,
        tenants: 11,
        listen: OWN.parse().into_iter().collect(),
    }
}

/// As the controller of the gateway does.
fn apply(model: &mut Model, update: &Update) -> bool {
    let prepared = update
        .check_revision()
        .and_then(|()| model.prepare(update, &bounds()));
    let Ok(prepared) = prepared else {
        return false;
    };
    drop(model.commit(prepared));
    true
}

/// Updates of any contents: refused ones change nothing, an accepted one changes nothing a second
/// time, no state is larger than its bounds, and each is read again as it was written.
fn text(bytes: &[u8]) {
    let mut model = Model::default();
    for line in bytes.split(|byte| *byte == b'\n').take(MAX_UPDATES) {
        let Ok(update) = serde_json::from_slice::<Update>(line) else {
            continue;
        };
        let before = model.clone();
        if !apply(&mut model, &update) {
            assert_eq!(model, before);
            continue;
        }
        assert!(before.source() != Source::Applied || before.revision() <= model.revision());
        assert!((1..=MAX_REVISION).contains(&model.revision()));
        let counts = model.counts();
        assert!(counts.circuits <= bounds().circuits && counts.tenants <= bounds().tenants);
        let after = model.clone();
        assert!(apply(&mut model, &update), "the same again");
        assert_eq!(model, after);
        let mut copy = Model::default();
        assert!(apply(&mut copy, &Update::Snapshot(model.snapshot())));
        assert_eq!(copy, model);
    }
}

/// The state as maps of objects.
#[derive(Clone, Debug, Default)]
struct Reference {
    source: Source,
    revision: u64,
    objects: Objects,
}

/// Whether the objects fit together and the gateway.
fn is_good(objects: &Objects) -> bool {
    let bounds = bounds();
    let Objects {
        tenants,
        backends,
        routes,
        circuits,
    } = objects;
    let keys = circuits.values().flat_map(|c| &c.keys);
    let keys: Vec<&str> = keys.map(|key| key.expose()).collect();
    let meets = |a: &RouteSpec, b: &RouteSpec| {
        let common = a.protocols.iter().any(|p| b.protocols.contains(p));
        let both_any = a.protocols.is_empty() && b.protocols.is_empty();
        a.name == b.name && a.below == b.below && (common || both_any)
    };
    let routes: Vec<&RouteSpec> = routes.values().collect();
    tenants.len() <= bounds.tenants
        && circuits.len() <= bounds.circuits
        && tenants.values().all(|t| t.connections > Some(0))
        && backends.values().all(|b| b.addresses != [OWN])
        && routes.iter().all(|r| {
            let tenant = r.tenant.as_ref();
            tenant.is_none_or(|t| tenants.contains_key(t)) && backends.contains_key(&r.backend)
        })
        && (1..)
            .zip(&routes)
            .all(|(n, a)| !routes[n..].iter().any(|b| meets(a, b)))
        && circuits.values().all(|c| tenants.contains_key(&c.tenant))
        && keys.iter().collect::<BTreeSet<_>>().len() == keys.len()
}

/// The objects after a delta; `None`: it removes an object that is not there, or puts it as well.
fn changed(objects: &Objects, put: &Objects, remove: &Ids) -> Option<Objects> {
    let mut out = objects.clone();
    let mut fits = true;
    for id in &remove.tenants {
        fits &= out.tenants.remove(id).is_some() && !put.tenants.contains_key(id);
    }
    for id in &remove.backends {
        fits &= out.backends.remove(id).is_some() && !put.backends.contains_key(id);
    }
    for id in &remove.routes {
        fits &= out.routes.remove(id).is_some() && !put.routes.contains_key(id);
    }
    for id in &remove.circuits {
        fits &= out.circuits.remove(id).is_some() && !put.circuits.contains_key(id);
    }
    out.tenants.extend(put.tenants.clone());
    out.backends.extend(put.backends.clone());
    out.routes.extend(put.routes.clone());
    out.circuits.extend(put.circuits.clone());
    fits.then_some(out)
}

impl Reference {
    /// The state after an update; `None`: it is refused.
    fn after(&self, update: &Update) -> Option<Self> {
        let revision = update.revision();
        let is_applied = self.source == Source::Applied;
        if revision > MAX_REVISION || (is_applied && revision < self.revision) {
            return None;
        }
        let is_again = is_applied && revision == self.revision;
        let (objects, withdrawal) = match update {
            Update::Snapshot(snapshot) => {
                let objects = snapshot.objects.clone();
                (Some(objects).filter(|_| revision > 0), snapshot.withdrawal)
            }
            Update::Delta(delta) if revision <= delta.base => return None,
            Update::Delta(delta) if is_again => {
                let put = changed(&self.objects, &delta.put, &Ids::default())?;
                let has_one = any_in(&delta.remove.tenants, |id| put.tenants.contains_key(id))
                    || any_in(&delta.remove.backends, |id| put.backends.contains_key(id))
                    || any_in(&delta.remove.routes, |id| put.routes.contains_key(id))
                    || any_in(&delta.remove.circuits, |id| put.circuits.contains_key(id));
                (Some(put).filter(|_| !has_one), delta.withdrawal)
            }
            Update::Delta(delta) => {
                let fits = self.source != Source::File && delta.base == self.revision;
                let objects = changed(&self.objects, &delta.put, &delta.remove);
                (objects.filter(|_| fits), delta.withdrawal)
            }
        };
        let objects = objects.filter(is_good)?;
        if is_again {
            return (objects == self.objects).then(|| self.clone());
        }
        let needs_intention = self.source != Source::File && withdrawal == Withdrawal::Unintended;
        let old = &self.objects.tenants;
        let gone = old.keys().filter(|id| !objects.tenants.contains_key(*id));
        // Of no other kind are there so many.
        if needs_intention && old.len() >= 10 && gone.count() * 2 > old.len() {
            return None;
        }
        Some(Self {
            source: Source::Applied,
            revision,
            objects,
        })
    }
}

fn any_in(ids: &BTreeSet<String>, has: impl Fn(&String) -> bool) -> bool {
    ids.iter().any(has)
}

fn circuit_id(n: usize) -> String {
    format!("{:016x}", (n as u64 + 4) << 32)
}

fn put(input: &mut Input<'_>, objects: &mut Objects) {
    let (kind, n) = (input.below(8), usize::from(input.u8()));
    let [a, b, c] = input.array::<3>().map(usize::from);
    let tenant = format!("t{}", a % TENANTS);
    match kind {
        0..=2 => {
            let spec = TenantSpec {
                connections: Some((b % 8) as i64),
                datagrams: (c % 3 > 0).then_some(c as i64),
                datagram_bytes: None,
            };
            objects.tenants.insert(format!("t{}", n % TENANTS), spec);
        }
        3 => {
            let spec = BackendSpec {
                addresses: vec![format!("192.0.2.{}:6180", 1 + b % 8)],
                proxy: a % 2 == 0,
            };
            objects.backends.insert(format!("b{}", n % 3), spec);
        }
        4 | 5 => {
            let name = format!("n{}.example", b % 4);
            let spec = RouteSpec {
                name: (b % 8 < 4).then(|| name.clone()),
                below: (b % 8 >= 4).then_some(name),
                protocols: ["x", "y"][..c % 3]
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                tenant: (a < 128).then_some(tenant),
                backend: format!("b{}", c % 3),
            };
            objects.routes.insert(format!("r{}", n % 5), spec);
        }
        _ => {
            let keys = [b, c].map(|n| Key::new([n as u8 % 24; 32]).to_base64().into());
            let spec = CircuitSpec {
                tenant,
                keys: keys.to_vec(),
            };
            objects.circuits.insert(circuit_id(n % 8), spec);
        }
    }
}

fn put_some(input: &mut Input<'_>, objects: &mut Objects) {
    for _ in 0..input.below(MAX_OBJECTS) {
        put(input, objects);
    }
}

fn removed(input: &mut Input<'_>) -> Ids {
    let mut ids = Ids::default();
    for _ in 0..input.below(MAX_OBJECTS) {
        let (kind, n) = (input.below(4), usize::from(input.u8()));
        match kind {
            0 => ids.tenants.insert(format!("t{}", n % TENANTS)),
            1 => ids.backends.insert(format!("b{}", n % 3)),
            2 => ids.routes.insert(format!("r{}", n % 5)),
            _ => ids.circuits.insert(circuit_id(n % 8)),
        };
    }
    ids
}

/// The state, its reference, and the updates so far.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub model: Model,
    reference: Reference,
    sent: Vec<Update>,
}

impl World {
    /// Sends an update that the input selects, or has the configuration file give the state.
    /// Returns the update if it is accepted.
    pub(crate) fn step(&mut self, input: &mut Input<'_>) -> Option<Update> {
        let kind = input.below(8);
        if kind == 0 {
            self.file(input);
            return None;
        }
        let update = match self.sent.len() {
            count @ 1.. if kind == 1 => self.sent[input.below(count)].clone(),
            _ => self.update(input, kind),
        };
        self.send(&update).then_some(update)
    }

    fn update(&self, input: &mut Input<'_>, kind: usize) -> Update {
        let base = self.reference.revision;
        let revision = match input.below(16) {
            0 => input.u64(),
            1 => base,
            2 => base.wrapping_sub(u64::from(input.u8())),
            _ => base.saturating_add(1),
        };
        let withdrawal = match input.below(4) {
            0 => Withdrawal::Intended,
            _ => Withdrawal::Unintended,
        };
        if kind < 4 {
            let mut objects = self.reference.objects.clone();
            if input.below(4) == 0 {
                objects = Objects::default();
            }
            put_some(input, &mut objects);
            return Update::Snapshot(Snapshot {
                revision,
                withdrawal,
                objects,
            });
        }
        let mut put = Objects::default();
        put_some(input, &mut put);
        let base = match input.below(16) {
            0 => input.u64(),
            1 => base.wrapping_sub(1),
            _ => base,
        };
        Update::Delta(Delta {
            base,
            revision,
            withdrawal,
            put,
            remove: removed(input),
        })
    }

    /// Sends an update; returns whether it is accepted.
    fn send(&mut self, update: &Update) -> bool {
        let before = self.model.clone();
        let wanted = self.reference.after(update);
        let is_accepted = apply(&mut self.model, update);
        assert_eq!(is_accepted, wanted.is_some(), "{before:?}: {update:?}");
        self.sent.push(update.clone());
        let Some(wanted) = wanted else {
            assert_eq!(self.model, before);
            return false;
        };
        self.reference = wanted;
        self.compare();
        let after = self.model.clone();
        assert!(apply(&mut self.model, update), "the same again: {update:?}");
        assert_eq!(self.model, after);
        true
    }

    /// The configuration file gives a state, or has a problem.
    fn file(&mut self, input: &mut Input<'_>) {
        let mut objects = Objects::default();
        put_some(input, &mut objects);
        let mut c = Checker::new();
        let prepared = self.model.prepare_file(&mut c, &objects, &bounds());
        assert_eq!(c.is_good(), is_good(&objects), "{objects:?}");
        if let Ok(prepared) = c.finish(prepared) {
            drop(self.model.commit(prepared));
            self.reference = Reference {
                source: Source::File,
                revision: 0,
                objects,
            };
            self.compare();
        }
    }

    fn compare(&self) {
        let Reference {
            source,
            revision,
            objects,
        } = &self.reference;
        assert_eq!(
            (self.model.source(), self.model.revision()),
            (*source, *revision)
        );
        assert_eq!(&self.model.snapshot().objects, objects);
        let counts = self.model.counts();
        let count = counts.tenants + counts.backends + counts.routes + counts.circuits;
        let known = objects.tenants.len() + objects.backends.len();
        assert_eq!(count, known + objects.routes.len() + objects.circuits.len());
    }
}
