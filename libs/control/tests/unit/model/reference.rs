//! The reference: hosts, VLANs and addresses as plain sets, and what each operation makes of them.

use std::collections::{BTreeMap, BTreeSet};

use super::Operation;

/// A set of VLANs: a trunk, or a switch of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Domain {
    Trunk(u8),
    Switch(u8, u8),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PoolModel {
    pub(super) host: u8,
    pub(super) switch: u8,
    pub(super) with: BTreeSet<u16>,
    pub(super) without: BTreeSet<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetworkModel {
    pub(super) name: String,
    pub(super) internet: bool,
    pub(super) vlan: u16,
    pub(super) pool: u8,
    pub(super) prefix: bool,
    pub(super) mapped: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SubscriptionModel {
    pub(super) host: u8,
    pub(super) next: u32,
    pub(super) networks: Vec<NetworkModel>,
}

/// The reference: what there must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) hosts: BTreeMap<u8, [Option<u8>; 2]>,
    pub(super) pools: BTreeMap<u8, PoolModel>,
    pub(super) plans: BTreeMap<u8, (u8, u16, u16)>,
    /// Subscriptions of each tenant, by plan.
    pub(super) tenants: BTreeMap<u8, BTreeMap<u8, SubscriptionModel>>,
    pub(super) address_pools: BTreeMap<u8, BTreeSet<u8>>,
    /// Pool and address, by tenant and name.
    pub(super) addresses: BTreeMap<(u8, u8), (u8, u8)>,
}

impl Model {
    pub(super) fn domain(&self, host: u8, switch: u8) -> Option<Domain> {
        let trunk = self.hosts.get(&host)?[usize::from(switch)];
        Some(trunk.map_or(Domain::Switch(host, switch), Domain::Trunk))
    }

    pub(super) fn networks(&self) -> impl Iterator<Item = &NetworkModel> {
        let subscriptions = self.tenants.values().flat_map(BTreeMap::values);
        subscriptions.flat_map(|subscription| &subscription.networks)
    }

    fn used(&self) -> BTreeSet<(Domain, u16)> {
        let used = self.networks().map(|network| {
            let pool = &self.pools[&network.pool];
            let domain = self.domain(pool.host, pool.switch).expect("a switch");
            (domain, network.vlan)
        });
        used.collect()
    }

    /// The tenant's network at a place, if it has any.
    fn network_at(&mut self, tenant: u8, place: u8) -> Option<&mut NetworkModel> {
        let subscriptions = self.tenants.get_mut(&tenant)?.values_mut();
        let mut networks: Vec<_> = subscriptions.flat_map(|s| &mut s.networks).collect();
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        let count = networks.len();
        networks
            .into_iter()
            .nth(usize::from(place).checked_rem(count)?)
    }

    /// Adds networks to a subscription; `taken` has the VLANs that no network may get.
    fn grow(
        &self,
        subscription: &mut SubscriptionModel,
        plan: u8,
        (pool, internet, count): (u8, bool, u16),
        taken: &mut BTreeSet<(Domain, u16)>,
    ) -> Option<()> {
        let of = &self.pools[&pool];
        let domain = self.domain(of.host, of.switch)?;
        let vlans = if internet { &of.with } else { &of.without };
        for _ in 0..count {
            let free = vlans
                .iter()
                .find(|vlan| !taken.contains(&(domain, **vlan)))?;
            taken.insert((domain, *free));
            subscription.networks.push(NetworkModel {
                name: format!("s{plan}-{}", subscription.next),
                internet,
                vlan: *free,
                pool,
                prefix: false,
                mapped: false,
            });
            subscription.next += 1;
        }
        Some(())
    }

    /// The model after an operation; `None` if it must be refused.
    pub(super) fn after(&self, operation: &Operation) -> Option<Self> {
        let mut after = self.clone();
        match *operation {
            Operation::Host { host, trunks } => {
                if let Some(old) = self.hosts.get(&host) {
                    let mut pools = self.pools.values().filter(|pool| pool.host == host);
                    let is_changed = |pool: &PoolModel| {
                        let switch = usize::from(pool.switch);
                        old[switch] != trunks[switch]
                    };
                    if pools.any(is_changed) {
                        return None;
                    }
                }
                after.hosts.insert(host, trunks);
            }
            Operation::RemoveHost { host } => {
                after.hosts.remove(&host)?;
                let mut subscriptions = self.tenants.values().flat_map(BTreeMap::values);
                if self.pools.values().any(|pool| pool.host == host)
                    || subscriptions.any(|subscription| subscription.host == host)
                {
                    return None;
                }
            }
            Operation::Pool {
                pool,
                host,
                switch,
                with,
                without,
            } => {
                let set = |range: Option<(u16, u16)>| {
                    range.map_or_else(BTreeSet::new, |(first, last)| (first..=last).collect())
                };
                let new = PoolModel {
                    host,
                    switch,
                    with: set(with),
                    without: set(without),
                };
                after.put_pool(self, pool, new)?;
            }
            Operation::MovePool { pool, host, switch } => {
                let old = self.pools.get(&pool)?.clone();
                let new = PoolModel {
                    host,
                    switch,
                    ..old
                };
                after.put_pool(self, pool, new)?;
            }
            Operation::RemovePool { pool } => {
                after.pools.remove(&pool)?;
                if self.plans.values().any(|(of, ..)| *of == pool)
                    || self.networks().any(|network| network.pool == pool)
                {
                    return None;
                }
            }
            Operation::Plan {
                plan,
                pool,
                with,
                without,
            } => {
                after.put_plan(self, plan, (pool, with, without))?;
            }
            Operation::RemovePlan { plan } => {
                after.plans.remove(&plan)?;
                if self
                    .tenants
                    .values()
                    .any(|tenant| tenant.contains_key(&plan))
                {
                    return None;
                }
            }
            Operation::Tenant { tenant } => {
                after.tenants.entry(tenant).or_default();
            }
            Operation::RemoveTenant { tenant, force } => {
                let subscriptions = after.tenants.remove(&tenant)?;
                after.addresses.retain(|(of, _), _| *of != tenant);
                let has_any = !subscriptions.is_empty() || after.addresses != self.addresses;
                if has_any && !force {
                    return None;
                }
            }
            Operation::Subscribe { tenant, plan } => {
                if self.tenants.get(&tenant)?.contains_key(&plan) {
                    return None;
                }
                let (pool, with, without) = *self.plans.get(&plan)?;
                let mut new = SubscriptionModel {
                    host: self.pools[&pool].host,
                    next: 1,
                    networks: Vec::new(),
                };
                let mut taken = self.used();
                self.grow(&mut new, plan, (pool, true, with), &mut taken)?;
                self.grow(&mut new, plan, (pool, false, without), &mut taken)?;
                after.tenants.get_mut(&tenant)?.insert(plan, new);
            }
            Operation::Unsubscribe { tenant, plan } => {
                let old = after.tenants.get_mut(&tenant)?.remove(&plan)?;
                if old.networks.iter().any(|network| network.mapped) {
                    return None;
                }
            }
            Operation::Settings {
                tenant,
                place,
                prefix,
            } => {
                after.network_at(tenant, place)?.prefix = prefix;
            }
            Operation::Map { tenant, place } => {
                let network = after.network_at(tenant, place)?;
                if std::mem::replace(&mut network.mapped, true) {
                    return None;
                }
            }
            Operation::Unmap { tenant, place } => {
                let network = after.network_at(tenant, place)?;
                if !std::mem::replace(&mut network.mapped, false) {
                    return None;
                }
            }
            Operation::AddressPool { pool, first, last } => {
                let new: BTreeSet<_> = (first..=last).collect();
                let mut others = self
                    .address_pools
                    .iter()
                    .filter(|(other, _)| **other != pool);
                let mut assigned = self.addresses.values().filter(|(of, _)| *of == pool);
                if others.any(|(_, other)| !other.is_disjoint(&new))
                    || assigned.any(|(_, address)| !new.contains(address))
                {
                    return None;
                }
                after.address_pools.insert(pool, new);
            }
            Operation::RemoveAddressPool { pool } => {
                after.address_pools.remove(&pool)?;
                if self.addresses.values().any(|(of, _)| *of == pool) {
                    return None;
                }
            }
            Operation::Assign {
                tenant,
                name,
                pool,
                address,
            } => {
                self.tenants.get(&tenant)?;
                if self.addresses.contains_key(&(tenant, name)) {
                    return None;
                }
                let addresses = self.address_pools.get(&pool)?;
                let is_free = |address: &&u8| !self.addresses.values().any(|(_, a)| a == *address);
                let address = match address {
                    Some(address) => addresses.get(&address).filter(is_free)?,
                    None => addresses.iter().find(is_free)?,
                };
                after.addresses.insert((tenant, name), (pool, *address));
            }
            Operation::Release { tenant, name } => {
                after.addresses.remove(&(tenant, name))?;
            }
        }
        Some(after)
    }

    fn put_pool(&mut self, before: &Self, pool: u8, new: PoolModel) -> Option<()> {
        if before.pools.get(&pool) == Some(&new) {
            return Some(());
        }
        let all = |pool: &PoolModel| -> BTreeSet<u16> { &pool.with | &pool.without };
        if all(&new).is_empty() || !new.with.is_disjoint(&new.without) {
            return None;
        }
        let domain = before.domain(new.host, new.switch)?;
        for (other, of) in &before.pools {
            let shared = *other != pool && before.domain(of.host, of.switch) == Some(domain);
            if shared && !all(of).is_disjoint(&all(&new)) {
                return None;
            }
        }
        let old = before.pools.get(&pool);
        let is_moved = old.is_some_and(|old| (old.host, old.switch) != (new.host, new.switch));
        for network in before.networks().filter(|network| network.pool == pool) {
            let vlans = if network.internet {
                &new.with
            } else {
                &new.without
            };
            if is_moved || !vlans.contains(&network.vlan) {
                return None;
            }
        }
        self.pools.insert(pool, new);
        Some(())
    }

    fn put_plan(&mut self, before: &Self, plan: u8, new: (u8, u16, u16)) -> Option<()> {
        let old = before.plans.get(&plan).copied();
        if old == Some(new) {
            return Some(());
        }
        let (pool, with, without) = new;
        if with + without == 0 || !before.pools.contains_key(&pool) {
            return None;
        }
        self.plans.insert(plan, new);
        let Some((old_pool, old_with, old_without)) = old else {
            return Some(());
        };
        let mut taken = before.used();
        for tenant in self.tenants.values_mut() {
            let Some(subscription) = tenant.get_mut(&plan) else {
                continue;
            };
            if pool != old_pool {
                return None;
            }
            for (internet, before_count, count) in
                [(true, old_with, with), (false, old_without, without)]
            {
                if count > before_count {
                    let more = (pool, internet, count - before_count);
                    before.grow(subscription, plan, more, &mut taken)?;
                }
                for _ in count..before_count {
                    let is_unused = |network: &NetworkModel| {
                        network.internet == internet && !network.prefix && !network.mapped
                    };
                    let last = subscription.networks.iter().rposition(is_unused)?;
                    subscription.networks.remove(last);
                }
            }
        }
        Some(())
    }
}
