//! A transaction in the making.

use std::collections::BTreeMap;

use crate::{
    Claim, Conflict, Kind, Object, Options, Origin, Precondition, Refusal, State, Tenant,
    Transaction,
    name::NAME,
    state::{provider_guard, tenant_guard, vlan_claims},
};

/// A transaction in the making, over the state that it is computed from.
pub struct Draft<'s> {
    pub(crate) state: &'s State,
    pub(crate) origin: Origin,
    pub(crate) options: Options,
    transaction: Transaction,
    warnings: Vec<String>,
    /// VLANs that are in use, before or after the change, by domain.
    vlans: BTreeMap<String, Vec<bool>>,
}

impl<'s> Draft<'s> {
    pub(crate) fn new(state: &'s State, origin: Origin, options: Options) -> Self {
        Self {
            state,
            origin,
            options,
            transaction: Transaction::default(),
            warnings: Vec::new(),
            vlans: BTreeMap::new(),
        }
    }

    /// The transaction, and what the person who asked should know of it.
    pub(crate) fn finish(self) -> (Transaction, Vec<String>) {
        (self.transaction, self.warnings)
    }

    pub(crate) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// No other change of the provider's objects may come between.
    pub(crate) fn guard_provider(&mut self) {
        self.guard(provider_guard());
    }

    /// No other change of the tenant's objects may come between.
    pub(crate) fn guard_tenant(&mut self, tenant: &str) {
        self.guard(tenant_guard(tenant));
    }

    fn guard(&mut self, key: String) {
        let precondition = match self.state.guards.get(&key) {
            Some(revision) => Precondition::At(*revision),
            None => Precondition::Absent,
        };
        self.transaction
            .preconditions
            .insert(key.clone(), precondition);
        if !self.transaction.delete.contains(&key) {
            self.transaction.put.insert(key, "{}".to_owned());
        }
    }

    /// Removes the guard of a tenant that is removed.
    pub(crate) fn remove_tenant_guard(&mut self, tenant: &str) {
        self.guard_tenant(tenant);
        let key = tenant_guard(tenant);
        self.transaction.put.remove(&key);
        self.transaction.delete.insert(key);
    }

    /// Writes an object that is at the revision in its metadata.
    pub(crate) fn write<K: Kind>(&mut self, object: &Object<K>) {
        let key = object.key();
        self.must_be(&key, object);
        let mut stored = object.clone();
        stored.metadata.revision = 0;
        let value = serde_json::to_string(&stored);
        // Keys are texts and numbers finite in every kind, so that there always is a JSON form.
        self.transaction.put.insert(key, value.unwrap_or_default());
    }

    /// Deletes an object that is at the revision in its metadata.
    pub(crate) fn erase<K: Kind>(&mut self, object: &Object<K>) {
        let key = object.key();
        self.must_be(&key, object);
        self.transaction.put.remove(&key);
        self.transaction.delete.insert(key);
    }

    fn must_be<K: Kind>(&mut self, key: &str, object: &Object<K>) {
        let precondition = match object.metadata.revision {
            0 => Precondition::Absent,
            revision => Precondition::At(revision),
        };
        self.transaction
            .preconditions
            .insert(key.to_owned(), precondition);
    }

    /// Whether no claim has this key, neither before nor after the change.
    pub(crate) fn is_free(&self, key: &str) -> bool {
        !self.state.claims.contains_key(key) && !self.transaction.put.contains_key(key)
    }

    /// The first of these VLANs that is not in use, which then counts as used. VLANs that the
    /// change gives back count as used, too.
    pub(crate) fn take_vlan(
        &mut self,
        domain: &str,
        candidates: &mut impl Iterator<Item = u16>,
    ) -> Option<u16> {
        let state = self.state;
        let used = self.vlans.entry(domain.to_owned()).or_insert_with(|| {
            let mut used = vec![false; usize::from(u16::MAX) + 1];
            let prefix = vlan_claims(domain);
            for (key, _) in state.claims.range(prefix.clone()..) {
                let Some(vlan) = key.strip_prefix(&prefix) else {
                    break;
                };
                if let Ok(vlan) = vlan.parse::<u16>() {
                    used[usize::from(vlan)] = true;
                }
            }
            used
        });
        let vlan = candidates.find(|vlan| !used[usize::from(*vlan)])?;
        used[usize::from(vlan)] = true;
        Some(vlan)
    }

    /// Claims a VLAN or an address that is free.
    pub(crate) fn claim(&mut self, key: String, claim: &Claim) {
        let value = serde_json::to_string(claim).unwrap_or_default();
        self.transaction
            .preconditions
            .insert(key.clone(), Precondition::Absent);
        self.transaction.put.insert(key, value);
    }

    /// Gives a VLAN or an address back.
    pub(crate) fn release(&mut self, key: String) {
        self.transaction.delete.insert(key);
    }

    /// The tenant, which must be there.
    ///
    /// # Errors
    /// A refusal that names the tenant.
    pub(crate) fn tenant(&self, name: &str) -> Result<&'s Object<Tenant>, Refusal> {
        let found = self.state.tenants.get("", name);
        found.ok_or_else(|| Refusal::not_found::<Tenant>(None, name))
    }

    /// The tenant, which must be there and may get something new.
    ///
    /// # Errors
    /// A refusal that names the tenant and the reason.
    pub(crate) fn active_tenant(&self, name: &str) -> Result<&'s Object<Tenant>, Refusal> {
        let tenant = self.tenant(name)?;
        if !tenant.spec.enabled {
            return Err(Refusal::conflict(
                format!("tenant {name:?} is disabled: enable it first"),
                vec![Conflict::new::<Tenant>(name, "enabled", false)],
            ));
        }
        if let Some(end) = tenant.spec.lease_ends.filter(|end| *end <= self.origin.now) {
            return Err(Refusal::conflict(
                format!("the lease of tenant {name:?} ended at {end}: extend it first"),
                vec![Conflict::new::<Tenant>(name, "lease_ends", end)],
            ));
        }
        Ok(tenant)
    }

    /// Refuses a change while the tenant's networks are failed over.
    ///
    /// # Errors
    /// A refusal that names the tenant and its mode.
    pub(crate) fn must_be_idle(&self, tenant: &str, change: &str) -> Result<(), Refusal> {
        let found = self.tenant(tenant)?;
        if !found.status.mode.is_failover() {
            return Ok(());
        }
        let mode = &found.status.mode;
        Err(Refusal::conflict(
            format!("tenant {tenant:?} is in {mode}: undo the failover before you {change}"),
            vec![Conflict::new::<Tenant>(tenant, "mode", mode)],
        ))
    }
}

/// The first names of a list, and the number of the others.
pub(crate) fn shown<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 10;
    let joined = |names: &[T]| {
        let names: Vec<_> = names.iter().map(AsRef::as_ref).collect();
        names.join(", ")
    };
    match names {
        [] => "none".to_owned(),
        names if names.len() <= SHOWN => joined(names),
        names => format!(
            "{} and {} more",
            joined(&names[..SHOWN]),
            names.len() - SHOWN
        ),
    }
}

/// Longest name of a subscription: its networks' names have a number behind it.
pub(crate) const SUBSCRIPTION_NAME: usize = NAME - 4;
