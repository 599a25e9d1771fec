//! A transaction in the making.

use std::collections::BTreeMap;

use crate::{
    Claim, Conflict, Difference, Kind, Object, Options, Origin, Precondition, Refusal, State,
    Tenant, Transaction, VlanPool, difference,
    name::NAME,
    state::{provider_guard, tenant_guard, vlan_claims, vlan_domain},
};

/// A transaction in the making, over the state that it is computed from.
pub struct Draft<'s> {
    pub(crate) state: &'s State,
    pub(crate) origin: Origin,
    pub(crate) options: Options,
    transaction: Transaction,
    warnings: Vec<String>,
    /// Differences of objects, by key.
    differences: BTreeMap<String, Difference>,
    /// VLANs that are in use, before or after the change, by domain.
    vlans: BTreeMap<String, Vec<bool>>,
    /// For each pool's VLANs with or without internet access, the number of the first ones that
    /// are in use: none of them becomes free during a change.
    skipped: BTreeMap<(String, bool), usize>,
    /// The last host and switch, and their domain: a change has few, and asks for them often.
    domain: Option<(String, String, Option<String>)>,
}

impl<'s> Draft<'s> {
    pub(crate) fn new(state: &'s State, origin: Origin, options: Options) -> Self {
        Self {
            state,
            origin,
            options,
            transaction: Transaction::default(),
            warnings: Vec::new(),
            differences: BTreeMap::new(),
            vlans: BTreeMap::new(),
            skipped: BTreeMap::new(),
            domain: None,
        }
    }

    /// The transaction, the differences that it makes, and what the person who asked should know.
    pub(crate) fn finish(self) -> (Transaction, Vec<Difference>, Vec<String>) {
        let mut differences: Vec<_> = self.differences.into_values().collect();
        difference::sort(&mut differences);
        (self.transaction, differences, self.warnings)
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
        let before = K::table(self.state).get(object.tenant(), object.name());
        let difference = difference::of_object(before, object);
        self.differences.insert(key.clone(), difference);
        self.transaction.put.insert(key, object.stored());
    }

    /// Deletes an object that is at the revision in its metadata.
    pub(crate) fn erase<K: Kind>(&mut self, object: &Object<K>) {
        let key = object.key();
        self.must_be(&key, object);
        self.transaction.put.remove(&key);
        let before = K::table(self.state).get(object.tenant(), object.name());
        match before {
            Some(before) => {
                let difference = difference::of_removed(before);
                self.differences.insert(key.clone(), difference);
            }
            None => drop(self.differences.remove(&key)),
        }
        self.transaction.delete.insert(key);
    }

    /// The VLANs' domain of a switch, as [`vlan_domain`] finds it.
    pub(crate) fn domain(&mut self, host: &str, switch: &str) -> Option<String> {
        if let Some((of_host, of_switch, domain)) = &self.domain
            && of_host == host
            && of_switch == switch
        {
            return domain.clone();
        }
        let domain = vlan_domain(self.state, host, switch);
        self.domain = Some((host.to_owned(), switch.to_owned(), domain.clone()));
        domain
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

    /// The first VLANs of a pool that are not in use, up to `count`, which then count as used.
    /// VLANs that the change gives back count as used, too.
    pub(crate) fn take_vlans(
        &mut self,
        domain: &str,
        pool: &Object<VlanPool>,
        internet: bool,
        count: usize,
    ) -> Vec<u16> {
        if !self.vlans.contains_key(domain) {
            let used = self.used_vlans(domain);
            self.vlans.insert(domain.to_owned(), used);
        }
        let Some(used) = self.vlans.get_mut(domain) else {
            return Vec::new();
        };
        let place = (pool.name().to_owned(), internet);
        let skipped = self.skipped.entry(place).or_default();
        let mut taken = Vec::new();
        for vlan in pool.spec.vlans(internet).skip(*skipped) {
            if taken.len() == count {
                break;
            }
            *skipped += 1;
            let is_used = &mut used[usize::from(vlan)];
            if !*is_used {
                *is_used = true;
                taken.push(vlan);
            }
        }
        taken
    }

    fn used_vlans(&self, domain: &str) -> Vec<bool> {
        let mut used = vec![false; usize::from(u16::MAX) + 1];
        let prefix = vlan_claims(domain);
        let before = self.state.claims.range(prefix.clone()..);
        let during = self.transaction.put.range(prefix.clone()..);
        let keys = before
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(&prefix));
        for key in keys.chain(during.map(|(key, _)| key)) {
            let Some(vlan) = key.strip_prefix(&prefix) else {
                break;
            };
            if let Ok(vlan) = vlan.parse::<u16>() {
                used[usize::from(vlan)] = true;
            }
        }
        used
    }

    /// Claims a VLAN or an address that is free.
    pub(crate) fn claim(&mut self, key: String, claim: &Claim) {
        let value = serde_json::to_string(claim).unwrap_or_default();
        self.transaction.create(key, value);
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
        self.must_be_active(tenant)?;
        Ok(tenant)
    }

    /// Refuses a change that gives something new to a tenant which may not get it.
    ///
    /// # Errors
    /// A refusal that names the tenant and the reason.
    pub(crate) fn must_be_active(&self, tenant: &Object<Tenant>) -> Result<(), Refusal> {
        let name = tenant.name();
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
        Ok(())
    }

    /// Refuses a change while the tenant's networks are failed over.
    ///
    /// # Errors
    /// A refusal that names the tenant and its mode.
    pub(crate) fn must_be_idle(&self, tenant: &str, change: &str) -> Result<(), Refusal> {
        must_be_idle(self.tenant(tenant)?, change)
    }
}

/// Refuses a change while the tenant's networks are failed over.
///
/// # Errors
/// A refusal that names the tenant and its mode.
pub(crate) fn must_be_idle(tenant: &Object<Tenant>, change: &str) -> Result<(), Refusal> {
    let (name, mode) = (tenant.name(), &tenant.status.mode);
    if !mode.is_failover() {
        return Ok(());
    }
    Err(Refusal::conflict(
        format!("tenant {name:?} is in {mode}: undo the failover before you {change}"),
        vec![Conflict::new::<Tenant>(name, "mode", mode)],
    ))
}

/// The first names of a list, and the number of the others.
pub(crate) fn shown<T: AsRef<str>>(names: &[T]) -> String {
    const MAX_LISTED: usize = 10;
    let joined = |names: &[T]| {
        let names: Vec<_> = names.iter().map(AsRef::as_ref).collect();
        names.join(", ")
    };
    match names {
        [] => "none".to_owned(),
        names if names.len() <= MAX_LISTED => joined(names),
        names => format!(
            "{} and {} more",
            joined(&names[..MAX_LISTED]),
            names.len() - MAX_LISTED
        ),
    }
}

/// Longest name of a subscription: its networks' names have a dash and a number behind it, and
/// numbers are not used again.
pub(crate) const SUBSCRIPTION_NAME: usize = NAME - 7;
