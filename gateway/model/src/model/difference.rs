//! The difference between the state in force and wanted objects, checked.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use gateway_client::wire::{CircuitId, Key};
use gateway_core::route::{Names, Route};
use service::config::Checker;

use super::{Changes, Counts, Model, Prepared, Source};
use crate::{
    check::{self, Bounds, shown},
    objects::{Ids, Objects},
};

/// Checks numbers of objects.
pub(super) fn capacity(c: &mut Checker, counts: Counts, bounds: &Bounds) {
    for (key, kind, count, most) in [
        (
            "circuits.capacity",
            "circuits",
            counts.circuits,
            bounds.circuits,
        ),
        ("limits.tenants", "tenants", counts.tenants, bounds.tenants),
    ] {
        if count > most {
            c.problem(
                key,
                format!(
                    "{most}: the state has {count} {kind}; raise {key} in the gateway's file and \
                     restart it"
                ),
            );
        }
    }
}

/// IDs that an update removes, and those that it changes.
struct Touched<'a> {
    removed_tenants: HashSet<&'a str>,
    removed_backends: HashSet<&'a str>,
    routes: HashSet<&'a str>,
    circuits: HashSet<CircuitId>,
}

impl Model {
    /// The difference between the state and the objects of `put`: all others are removed, or
    /// those of a list. Adds the problems of changed objects, alone and together with all others.
    pub(super) fn difference(
        &self,
        c: &mut Checker,
        (put, remove): (&Objects, Option<&Ids>),
        bounds: &Bounds,
    ) -> Prepared {
        let mut changes = Changes::default();
        self.put(c, put, &mut changes);
        let before = changes.circuits.len();
        match remove {
            None => self.remove_others(put, &mut changes),
            Some(ids) => self.remove_listed(c, (put, ids), &mut changes),
        }
        let checked = put.tenants.len()
            + put.backends.len()
            + put.routes.len()
            + put.circuits.len()
            + (changes.circuits.len() - before);
        let counts = self.counts_after(&changes);
        capacity(c, counts, bounds);
        for (id, backend) in &changes.backends {
            if let Some(backend) = backend {
                check::loops(c, id, backend, &bounds.listen);
            }
        }
        self.check_together(c, put, &changes);
        Prepared {
            revision: 0,
            source: Source::Applied,
            changes,
            checked,
            counts,
        }
    }

    fn counts_after(&self, changes: &Changes) -> Counts {
        fn after<I, T>(
            present: usize,
            changed: &[(I, Option<T>)],
            is_there: impl Fn(&I) -> bool,
        ) -> usize {
            let new = changed
                .iter()
                .filter(|(id, o)| o.is_some() && !is_there(id));
            let gone = changed.iter().filter(|(_, o)| o.is_none());
            present + new.count() - gone.count()
        }
        let present = self.counts();
        Counts {
            tenants: after(present.tenants, &changes.tenants, |id| {
                self.tenants.contains_key(id)
            }),
            backends: after(present.backends, &changes.backends, |id| {
                self.backends.contains_key(id)
            }),
            routes: after(present.routes, &changes.routes, |id| {
                self.routes.contains_key(id)
            }),
            circuits: after(present.circuits, &changes.circuits, |id| {
                self.circuits.contains_key(id)
            }),
        }
    }

    /// Checks each object alone, and keeps those that differ.
    fn put(&self, c: &mut Checker, put: &Objects, changes: &mut Changes) {
        let mut names: HashMap<&str, Arc<str>> = HashMap::new();
        for (id, spec) in &put.tenants {
            let tenant = check::tenant(c, id, spec);
            let known = self.tenants.get_key_value(&**id);
            let name = known.map_or_else(|| Arc::from(id.as_str()), |(name, _)| Arc::clone(name));
            names.insert(id, Arc::clone(&name));
            if known.is_none_or(|(_, entry)| entry.tenant != tenant) {
                changes.tenants.push((name, Some(tenant)));
            }
        }
        for (id, spec) in &put.backends {
            let backend = check::backend(c, id, spec);
            let known = self.backends.get(&**id);
            if known.is_none_or(|entry| entry.backend != backend) {
                changes.backends.push((id.as_str().into(), Some(backend)));
            }
        }
        for (id, spec) in &put.routes {
            let Some(route) = check::route(c, id, spec) else {
                continue;
            };
            if self.routes.get(&**id).is_none_or(|known| **known != route) {
                changes
                    .routes
                    .push((id.as_str().into(), Some(Arc::new(route))));
            }
        }
        let mut seen = HashSet::new();
        for (id, spec) in &put.circuits {
            let known = names.get(&*spec.tenant).cloned();
            let known = known.or_else(|| {
                let (name, _) = self.tenants.get_key_value(&*spec.tenant)?;
                Some(Arc::clone(name))
            });
            let tenant = known.unwrap_or_else(|| spec.tenant.as_str().into());
            // Upper-case digits are the same.
            let is_twice = check::circuit_id(id).is_some_and(|number| !seen.insert(number));
            if is_twice {
                c.problem(format!("circuit {:?}", shown(id)), "is defined twice");
                continue;
            }
            let Some((number, circuit)) = check::circuit(c, id, spec, tenant) else {
                continue;
            };
            if self.circuits.get(&number) != Some(&circuit) {
                changes.circuits.push((number, Some(circuit)));
            }
        }
    }

    fn remove_others(&self, put: &Objects, changes: &mut Changes) {
        let gone = |is_there: bool, id: &Arc<str>| (!is_there).then(|| Arc::clone(id));
        let tenants = self.tenants.keys();
        let tenants = tenants.filter_map(|id| gone(put.tenants.contains_key(&**id), id));
        changes.tenants.extend(tenants.map(|id| (id, None)));
        let backends = self.backends.keys();
        let backends = backends.filter_map(|id| gone(put.backends.contains_key(&**id), id));
        changes.backends.extend(backends.map(|id| (id, None)));
        let routes = self.routes.keys();
        let routes = routes.filter_map(|id| gone(put.routes.contains_key(&**id), id));
        changes.routes.extend(routes.map(|id| (id, None)));
        let wanted = put.circuits.keys().filter_map(|id| check::circuit_id(id));
        let wanted: HashSet<CircuitId> = wanted.collect();
        let circuits = self.circuits.keys().filter(|id| !wanted.contains(id));
        changes.circuits.extend(circuits.map(|id| (*id, None)));
    }

    fn remove_listed(&self, c: &mut Checker, (put, ids): (&Objects, &Ids), changes: &mut Changes) {
        let mut check = |kind, id: &str, is_there: bool, is_put: bool| {
            let at = format!("{kind} {:?}", shown(id));
            if is_put {
                c.problem(at, "is in put and in remove: leave it out of one of them");
            } else if !is_there {
                c.problem(at, "cannot be removed: it is not there");
            }
            is_there && !is_put
        };
        for id in &ids.tenants {
            let is_there = self.tenants.contains_key(&**id);
            if check("tenant", id, is_there, put.tenants.contains_key(id)) {
                changes.tenants.push((id.as_str().into(), None));
            }
        }
        for id in &ids.backends {
            let is_there = self.backends.contains_key(&**id);
            if check("backend", id, is_there, put.backends.contains_key(id)) {
                changes.backends.push((id.as_str().into(), None));
            }
        }
        for id in &ids.routes {
            let is_there = self.routes.contains_key(&**id);
            if check("route", id, is_there, put.routes.contains_key(id)) {
                changes.routes.push((id.as_str().into(), None));
            }
        }
        let put: HashSet<CircuitId> = if ids.circuits.is_empty() {
            HashSet::new()
        } else {
            let put = put.circuits.keys();
            put.filter_map(|id| check::circuit_id(id)).collect()
        };
        let mut gone = BTreeSet::new();
        for id in &ids.circuits {
            let number = check::circuit_id(id).filter(|n| !gone.contains(n));
            let is_there = number.is_some_and(|number| self.circuits.contains_key(&number));
            let is_put = number.is_some_and(|number| put.contains(&number));
            if check("circuit", id, is_there, is_put)
                && let Some(number) = number
            {
                gone.insert(number);
                changes.circuits.push((number, None));
            }
        }
    }

    /// Checks what objects mean to each other.
    fn check_together(&self, c: &mut Checker, put: &Objects, changes: &Changes) {
        let touched = Touched {
            removed_tenants: removed(&changes.tenants),
            removed_backends: removed(&changes.backends),
            routes: changes.routes.iter().map(|(id, _)| &**id).collect(),
            circuits: changes.circuits.iter().map(|(id, _)| *id).collect(),
        };
        // An object with a problem of its own is there, too.
        let has_tenant = |id: &str| {
            let kept = self.tenants.contains_key(id) && !touched.removed_tenants.contains(id);
            kept || put.tenants.contains_key(id)
        };
        let has_backend = |id: &str| {
            let kept = self.backends.contains_key(id) && !touched.removed_backends.contains(id);
            kept || put.backends.contains_key(id)
        };
        for (id, spec) in &put.routes {
            let at = format!("route {:?}", shown(id));
            if let Some(tenant) = &spec.tenant
                && !has_tenant(tenant)
            {
                missing(c, &at, "tenant", tenant);
            }
            if !has_backend(&spec.backend) {
                missing(c, &at, "backend", &spec.backend);
            }
        }
        for (id, spec) in &put.circuits {
            if !has_tenant(&spec.tenant) {
                missing(
                    c,
                    &format!("circuit {:?}", shown(id)),
                    "tenant",
                    &spec.tenant,
                );
            }
        }
        self.check_users(c, put, &touched);
        self.check_keys(c, changes, &touched);
        self.check_routes(c, changes, &touched);
    }

    /// Finds objects that use a removed one and are not in the update themselves.
    fn check_users(&self, c: &mut Checker, put: &Objects, touched: &Touched<'_>) {
        let is_unchanged = |route: &&Arc<str>| {
            !touched.routes.contains(&***route) && !put.routes.contains_key(&***route)
        };
        for id in &touched.removed_tenants {
            let Some(entry) = self.tenants.get(*id) else {
                continue;
            };
            for route in entry.routes.iter().filter(is_unchanged) {
                missing(c, &format!("route {:?}", shown(route)), "tenant", id);
            }
            for circuit in &entry.circuits {
                let text = circuit.to_string();
                if !touched.circuits.contains(circuit) && !put.circuits.contains_key(&text) {
                    missing(c, &format!("circuit {text:?}"), "tenant", id);
                }
            }
        }
        for id in &touched.removed_backends {
            let Some(entry) = self.backends.get(*id) else {
                continue;
            };
            for route in entry.routes.iter().filter(is_unchanged) {
                missing(c, &format!("route {:?}", shown(route)), "backend", id);
            }
        }
    }

    /// Each key is that of one side of one circuit.
    fn check_keys(&self, c: &mut Checker, changes: &Changes, touched: &Touched<'_>) {
        let mut new: HashMap<&Key, CircuitId> = HashMap::new();
        for (id, circuit) in &changes.circuits {
            for (n, key) in circuit.iter().flat_map(|circuit| (1..).zip(&circuit.keys)) {
                let kept = self.keys.get(key).copied();
                let kept = kept.filter(|owner| !touched.circuits.contains(owner));
                if let Some(owner) = kept.or_else(|| new.insert(key, *id)) {
                    c.problem(
                        format!("circuit \"{id}\": keys"),
                        format!(
                            "key {n} is used twice, also by circuit \"{owner}\": each side of each \
                             circuit needs its own"
                        ),
                    );
                }
            }
        }
    }

    /// No two routes match the same hello, neither being more specific.
    fn check_routes(&self, c: &mut Checker, changes: &Changes, touched: &Touched<'_>) {
        let mut new: HashMap<&Names, Vec<(&Arc<str>, &Route)>> = HashMap::new();
        for (id, route) in &changes.routes {
            let Some(route) = route else { continue };
            let kept = self.names.get(&route.names).into_iter().flatten();
            let kept = kept.filter(|id| !touched.routes.contains(&***id));
            let kept = kept.filter_map(|id| Some((id, &**self.routes.get(id)?)));
            let before = new.entry(&route.names).or_default();
            for (other, with) in kept.chain(before.iter().copied()) {
                if route.conflicts_with(with) {
                    c.problem(
                        format!("route {:?}", shown(id)),
                        format!(
                            "route {:?} matches the same hellos; remove one, or give them \
                             different protocols",
                            shown(other)
                        ),
                    );
                }
            }
            before.push((id, route));
        }
    }
}

fn removed<T>(changes: &[(Arc<str>, Option<T>)]) -> HashSet<&str> {
    let removed = changes.iter().filter(|(_, object)| object.is_none());
    removed.map(|(id, _)| &**id).collect()
}

fn missing(c: &mut Checker, at: &str, kind: &str, id: &str) {
    c.problem(
        format!("{at}: {kind}"),
        format!(
            "there is no {kind} {:?}: add it, or name another one",
            shown(id)
        ),
    );
}
