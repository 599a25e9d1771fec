//! The state in force, and the two steps of its change: prepare, which can refuse, and commit,
//! which cannot.

mod difference;
mod page;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use gateway_client::wire::{CircuitId, Key};
use gateway_core::route::{Names, Route};
use serde::{Deserialize, Serialize};
use service::{
    config::{Checker, Problem},
    desired::{Position, Source, UpdateRefusal, Withdrawal},
};

pub use page::DesiredPage;

use crate::{
    check::{self, Bounds},
    checked::{Backend, Circuit, Tenant},
    objects::Objects,
    update::{Delta, Snapshot, Update},
};

/// Numbers of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub tenants: usize,
    pub backends: usize,
    pub routes: usize,
    pub circuits: usize,
}

/// The effect of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Revision in force.
    pub revision: u64,
    /// Objects that were added or replaced by others; equal ones are not counted.
    pub put: Counts,
    pub removed: Counts,
}

/// Objects that differ, by ID; `None`: the object is removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub tenants: Vec<(Arc<str>, Option<Tenant>)>,
    pub backends: Vec<(Arc<str>, Option<Backend>)>,
    pub routes: Vec<(Arc<str>, Option<Arc<Route>>)>,
    pub circuits: Vec<(CircuitId, Option<Circuit>)>,
}

impl Changes {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
            && self.backends.is_empty()
            && self.routes.is_empty()
            && self.circuits.is_empty()
    }

    fn counts(&self) -> (Counts, Counts) {
        fn split<I, T>(all: &[(I, Option<T>)]) -> (usize, usize) {
            let put = all.iter().filter(|(_, object)| object.is_some()).count();
            (put, all.len() - put)
        }
        let tenants = split(&self.tenants);
        let backends = split(&self.backends);
        let routes = split(&self.routes);
        let circuits = split(&self.circuits);
        let put = Counts {
            tenants: tenants.0,
            backends: backends.0,
            routes: routes.0,
            circuits: circuits.0,
        };
        let removed = Counts {
            tenants: tenants.1,
            backends: backends.1,
            routes: routes.1,
            circuits: circuits.1,
        };
        (put, removed)
    }
}

/// A checked update. Dropped, it changes nothing.
#[derive(Debug)]
pub struct Prepared {
    revision: u64,
    source: Source,
    changes: Changes,
    /// Objects that were checked.
    checked: usize,
    /// Numbers of objects afterwards.
    counts: Counts,
}

impl Prepared {
    /// The objects that differ.
    #[must_use]
    pub const fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Objects that were looked at: the work of the check.
    #[must_use]
    pub const fn checked(&self) -> usize {
        self.checked
    }

    /// Numbers of objects afterwards.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct TenantEntry {
    tenant: Tenant,
    circuits: BTreeSet<CircuitId>,
    routes: BTreeSet<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct BackendEntry {
    backend: Backend,
    routes: BTreeSet<Arc<str>>,
}

/// The desired state in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    source: Source,
    revision: u64,
    tenants: BTreeMap<Arc<str>, TenantEntry>,
    backends: BTreeMap<Arc<str>, BackendEntry>,
    routes: BTreeMap<Arc<str>, Arc<Route>>,
    circuits: BTreeMap<CircuitId, Circuit>,
    /// The circuit of each key.
    keys: HashMap<Key, CircuitId>,
    /// The routes of each name.
    names: HashMap<Names, BTreeSet<Arc<str>>>,
}

impl Model {
    /// Revision in force; 0: none was applied.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Where the state comes from.
    #[must_use]
    pub const fn source(&self) -> Source {
        self.source
    }

    /// Numbers of objects.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            tenants: self.tenants.len(),
            backends: self.backends.len(),
            routes: self.routes.len(),
            circuits: self.circuits.len(),
        }
    }

    /// Tenants in the order of names.
    pub fn tenants(&self) -> impl Iterator<Item = (&Arc<str>, &Tenant)> {
        self.tenants.iter().map(|(id, entry)| (id, &entry.tenant))
    }

    /// Backends in the order of names.
    pub fn backends(&self) -> impl Iterator<Item = (&Arc<str>, &Backend)> {
        self.backends.iter().map(|(id, entry)| (id, &entry.backend))
    }

    /// Routes in the order of IDs.
    pub fn routes(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Route>)> {
        self.routes.iter()
    }

    /// Circuits in the order of IDs.
    pub fn circuits(&self) -> impl Iterator<Item = (CircuitId, &Circuit)> {
        self.circuits.iter().map(|(id, circuit)| (*id, circuit))
    }

    /// The whole state, as a difference from nothing.
    #[must_use]
    pub fn contents(&self) -> Changes {
        let backends = self.backends();
        Changes {
            tenants: self
                .tenants()
                .map(|(id, t)| (Arc::clone(id), Some(*t)))
                .collect(),
            backends: backends
                .map(|(id, b)| (Arc::clone(id), Some(b.clone())))
                .collect(),
            routes: self
                .routes()
                .map(|(id, r)| (Arc::clone(id), Some(Arc::clone(r))))
                .collect(),
            circuits: self
                .circuits()
                .map(|(id, c)| (id, Some(c.clone())))
                .collect(),
        }
    }

    /// The whole state, as it can be applied.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            revision: self.revision,
            withdrawal: Withdrawal::Intended,
            objects: self.objects(),
        }
    }

    /// Checks an update; the state is as before.
    ///
    /// # Errors
    /// [`UpdateRefusal`].
    pub fn prepare(&self, update: &Update, bounds: &Bounds) -> Result<Prepared, UpdateRefusal> {
        match update {
            Update::Snapshot(snapshot) => self.prepare_snapshot(snapshot, bounds),
            Update::Delta(delta) => self.prepare_delta(delta, bounds),
        }
    }

    fn prepare_snapshot(
        &self,
        snapshot: &Snapshot,
        bounds: &Bounds,
    ) -> Result<Prepared, UpdateRefusal> {
        let Snapshot {
            revision,
            withdrawal,
            ref objects,
        } = *snapshot;
        let position = self.position();
        position.check_snapshot(revision)?;
        let mut c = Checker::new();
        let prepared = self.difference(&mut c, (objects, None), bounds);
        let mut prepared = c.finish(prepared).map_err(UpdateRefusal::Invalid)?;
        if position.is_in_force(revision) && !prepared.changes.is_empty() {
            return Err(UpdateRefusal::Differs { revision });
        }
        self.check_withdrawal(withdrawal, &prepared)?;
        prepared.revision = revision;
        Ok(prepared)
    }

    fn prepare_delta(&self, delta: &Delta, bounds: &Bounds) -> Result<Prepared, UpdateRefusal> {
        let Delta {
            base,
            revision,
            withdrawal,
            ref put,
            ref remove,
        } = *delta;
        if !self.position().check_delta(base, revision)? {
            if self.is_applied(delta) {
                return Ok(self.nothing(revision));
            }
            return Err(UpdateRefusal::Differs { revision });
        }
        let mut c = Checker::new();
        let prepared = self.difference(&mut c, (put, Some(remove)), bounds);
        let mut prepared = c.finish(prepared).map_err(UpdateRefusal::Invalid)?;
        self.check_withdrawal(withdrawal, &prepared)?;
        prepared.revision = revision;
        Ok(prepared)
    }

    /// Checks the objects of a configuration file, as a whole state without a revision. Problems
    /// are added to those of the file; with any, the result must not be committed.
    pub fn prepare_file(&self, c: &mut Checker, objects: &Objects, bounds: &Bounds) -> Prepared {
        let mut prepared = self.difference(c, (objects, None), bounds);
        prepared.source = Source::File;
        prepared
    }

    /// Problems of the state with other bounds.
    #[must_use]
    pub fn check(&self, bounds: &Bounds) -> Vec<Problem> {
        let mut c = Checker::new();
        difference::capacity(&mut c, self.counts(), bounds);
        for (id, backend) in self.backends() {
            check::loops(&mut c, id, backend, &bounds.listen);
        }
        c.finish(()).err().unwrap_or_default()
    }

    const fn position(&self) -> Position {
        Position {
            source: self.source,
            revision: self.revision,
        }
    }

    fn nothing(&self, revision: u64) -> Prepared {
        Prepared {
            revision,
            source: Source::Applied,
            changes: Changes::default(),
            checked: 0,
            counts: self.counts(),
        }
    }

    /// Whether the state is as after the delta, as far as that tells.
    fn is_applied(&self, delta: &Delta) -> bool {
        let mut c = Checker::new();
        let bounds = Bounds::none();
        let prepared = self.difference(&mut c, (&delta.put, Some(&Default::default())), &bounds);
        let remove = &delta.remove;
        let ids = |text: &String| check::circuit_id(text);
        c.is_good()
            && prepared.changes.is_empty()
            && !remove
                .tenants
                .iter()
                .any(|id| self.tenants.contains_key(&**id))
            && !remove
                .backends
                .iter()
                .any(|id| self.backends.contains_key(&**id))
            && !remove
                .routes
                .iter()
                .any(|id| self.routes.contains_key(&**id))
            && !remove
                .circuits
                .iter()
                .filter_map(ids)
                .any(|id| self.circuits.contains_key(&id))
    }

    fn check_withdrawal(
        &self,
        withdrawal: Withdrawal,
        prepared: &Prepared,
    ) -> Result<(), UpdateRefusal> {
        let (_, removed) = prepared.changes.counts();
        let present = self.counts();
        let kinds = [
            ("tenants", removed.tenants, present.tenants),
            ("routes", removed.routes, present.routes),
            ("circuits", removed.circuits, present.circuits),
        ];
        self.position().check_withdrawal(withdrawal, kinds)
    }

    /// Puts a prepared update in force. `prepared` must come from this state.
    pub fn commit(&mut self, prepared: Prepared) -> (Applied, Changes) {
        let changes = prepared.changes;
        for (id, route) in &changes.routes {
            self.remove_route(id);
            if let Some(route) = route {
                self.names
                    .entry(route.names.clone())
                    .or_default()
                    .insert(Arc::clone(id));
                self.routes.insert(Arc::clone(id), Arc::clone(route));
            }
        }
        for (id, circuit) in &changes.circuits {
            self.remove_circuit(*id);
            if let Some(circuit) = circuit {
                for key in &circuit.keys {
                    self.keys.insert(key.clone(), *id);
                }
                self.circuits.insert(*id, circuit.clone());
            }
        }
        for (id, tenant) in &changes.tenants {
            match (tenant, self.tenants.get_mut(id)) {
                (Some(tenant), Some(entry)) => entry.tenant = *tenant,
                (Some(tenant), None) => {
                    let entry = TenantEntry {
                        tenant: *tenant,
                        circuits: BTreeSet::new(),
                        routes: BTreeSet::new(),
                    };
                    self.tenants.insert(Arc::clone(id), entry);
                }
                (None, _) => drop(self.tenants.remove(id)),
            }
        }
        for (id, backend) in &changes.backends {
            match (backend, self.backends.get_mut(id)) {
                (Some(backend), Some(entry)) => entry.backend.clone_from(backend),
                (Some(backend), None) => {
                    let entry = BackendEntry {
                        backend: backend.clone(),
                        routes: BTreeSet::new(),
                    };
                    self.backends.insert(Arc::clone(id), entry);
                }
                (None, _) => drop(self.backends.remove(id)),
            }
        }
        self.note_users(&changes);
        self.revision = prepared.revision;
        self.source = prepared.source;
        let (put, removed) = changes.counts();
        let applied = Applied {
            revision: self.revision,
            put,
            removed,
        };
        (applied, changes)
    }

    /// Notes new routes and circuits at their tenants and backends, which are there now.
    fn note_users(&mut self, changes: &Changes) {
        for (id, route) in &changes.routes {
            let Some(route) = route else { continue };
            if let Some(entry) = self.backends.get_mut(&route.backend) {
                entry.routes.insert(Arc::clone(id));
            }
            let tenant = route.tenant.as_ref();
            if let Some(entry) = tenant.and_then(|tenant| self.tenants.get_mut(tenant)) {
                entry.routes.insert(Arc::clone(id));
            }
        }
        for (id, circuit) in &changes.circuits {
            let Some(circuit) = circuit else { continue };
            if let Some(entry) = self.tenants.get_mut(&circuit.tenant) {
                entry.circuits.insert(*id);
            }
        }
    }

    fn remove_route(&mut self, id: &Arc<str>) {
        let Some(old) = self.routes.remove(id) else {
            return;
        };
        if let Some(all) = self.names.get_mut(&old.names) {
            all.remove(id);
            if all.is_empty() {
                self.names.remove(&old.names);
            }
        }
        if let Some(entry) = self.backends.get_mut(&old.backend) {
            entry.routes.remove(id);
        }
        let tenant = old.tenant.as_ref();
        if let Some(entry) = tenant.and_then(|tenant| self.tenants.get_mut(tenant)) {
            entry.routes.remove(id);
        }
    }

    fn remove_circuit(&mut self, id: CircuitId) {
        let Some(old) = self.circuits.remove(&id) else {
            return;
        };
        for key in &old.keys {
            // Another circuit of the same update may have the key already.
            if self.keys.get(key) == Some(&id) {
                self.keys.remove(key);
            }
        }
        if let Some(entry) = self.tenants.get_mut(&old.tenant) {
            entry.circuits.remove(&id);
        }
    }
}
