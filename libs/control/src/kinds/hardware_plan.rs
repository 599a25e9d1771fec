//! The network part of a hardware plan: how many networks a subscribed tenant gets, and where.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Subscription, Tenant, VlanPool, kind,
    subscription::{add_networks, remove_networks},
};
use crate::{
    Conflict, Nothing, Object, Refusal, State,
    draft::{Draft, shown},
    name::{DESCRIPTION_RULE, NAME_RULE, is_description, is_name},
    object::Rules,
    refusal::Problems,
    schema::{Line, ObjectName},
};

/// Most networks of one plan. A subscription writes two keys for each, and etcd takes 128
/// operations in one transaction.
const MAX_NETWORKS: u16 = 50;

/// Networks that a subscribed tenant gets on one virtual switch. A tenant may subscribe to several
/// plans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HardwarePlan {
    /// The pool that the networks' VLANs are taken from.
    #[schema(value_type = ObjectName)]
    pub vlan_pool: String,
    /// Number of networks with internet access.
    #[serde(default)]
    #[schema(maximum = 50)]
    pub networks_with_internet: u16,
    /// Number of networks without internet access.
    #[serde(default)]
    #[schema(maximum = 50)]
    pub networks_without_internet: u16,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

kind!(
    HardwarePlan,
    "hardware-plan",
    "hardware-plans",
    Provider,
    hardware_plans,
    Nothing
);

impl HardwarePlan {
    /// Number of networks with or without internet access.
    pub(super) const fn networks(&self, internet: bool) -> usize {
        match internet {
            true => self.networks_with_internet as usize,
            false => self.networks_without_internet as usize,
        }
    }
}

impl Rules for HardwarePlan {
    fn check(&self, problems: &mut Problems) {
        let pool = &self.vlan_pool;
        problems.require(is_name(pool), "vlan_pool", pool, NAME_RULE);
        let (with, without) = (self.networks_with_internet, self.networks_without_internet);
        let count = u32::from(with) + u32::from(without);
        problems.require(
            (1..=u32::from(MAX_NETWORKS)).contains(&count),
            "networks_with_internet",
            with,
            format_args!(
                "{with} networks with internet and {without} without: write 1 to {MAX_NETWORKS} \
                 together; a tenant may subscribe to several plans"
            ),
        );
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        pool_of(object, state).map(drop)
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        let name = &new.spec.vlan_pool;
        let pool = pool_of(new, draft.state)?;
        let Some(old) = old else {
            return Ok(());
        };
        let subscriptions: Vec<_> = subscriptions(draft, old.name()).collect();
        if *name != old.spec.vlan_pool && !subscriptions.is_empty() {
            return Err(Refusal::conflict(
                format!(
                    "hardware plan {:?} has {} subscriptions, whose networks keep their VLANs of \
                     pool {:?}: leave vlan_pool as it is, or make another plan",
                    old.name(),
                    subscriptions.len(),
                    old.spec.vlan_pool
                ),
                subscriptions.into_iter().map(subscribed).collect(),
            ));
        }
        let grows = [true, false]
            .into_iter()
            .any(|internet| new.spec.networks(internet) > old.spec.networks(internet));
        let tenants = tenants(draft.state, &subscriptions);
        if grows {
            warn_of_disabled(draft, &subscriptions, &tenants);
        }
        for (subscription, tenant) in subscriptions.into_iter().zip(tenants) {
            draft.guard_tenant(subscription.tenant());
            let mut changed = subscription.clone();
            for internet in [true, false] {
                let (before, after) = (old.spec.networks(internet), new.spec.networks(internet));
                if after > before {
                    add_networks(draft, &mut changed, pool, internet, after - before)?;
                } else {
                    remove_networks(draft, &mut changed, tenant, internet, before - after)?;
                }
            }
            if changed != *subscription {
                draft.write(&changed);
            }
        }
        Ok(())
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        let conflicts: Vec<_> = subscriptions(draft, old.name()).map(subscribed).collect();
        if conflicts.is_empty() {
            return Ok(());
        }
        let tenants: Vec<_> = conflicts
            .iter()
            .filter_map(|c| c.tenant.as_deref())
            .collect();
        Err(Refusal::conflict(
            format!(
                "hardware plan {:?} is subscribed by tenants {}: end these subscriptions first",
                old.name(),
                shown(&tenants)
            ),
            conflicts,
        ))
    }
}

/// A disabled tenant gets nothing new, but a plan is one for all of its tenants.
fn warn_of_disabled(
    draft: &mut Draft<'_>,
    subscriptions: &[&Object<Subscription>],
    tenants: &[Option<&Object<Tenant>>],
) {
    let disabled: Vec<_> = subscriptions
        .iter()
        .zip(tenants)
        .filter(|(_, tenant)| tenant.is_none_or(|tenant| draft.must_be_active(tenant).is_err()))
        .map(|(subscription, _)| subscription.tenant())
        .collect();
    if !disabled.is_empty() {
        draft.warn(format!(
            "tenants {} are disabled, or their lease has ended: they get the new networks, too, \
             as they are subscribed to the plan",
            shown(&disabled)
        ));
    }
}

/// The tenant of each subscription. Both are sorted by the tenant's name: to go through all tenants
/// once takes less time than to look hundreds up.
fn tenants<'s>(
    state: &'s State,
    subscriptions: &[&Object<Subscription>],
) -> Vec<Option<&'s Object<Tenant>>> {
    let mut all = state.tenants.iter().peekable();
    let of = |subscription: &&Object<Subscription>| {
        while all.next_if(|t| t.name() < subscription.tenant()).is_some() {}
        let found = all.peek().copied();
        found.filter(|tenant| tenant.name() == subscription.tenant())
    };
    subscriptions.iter().map(of).collect()
}

fn subscriptions<'s>(
    draft: &Draft<'s>,
    plan: &str,
) -> impl Iterator<Item = &'s Object<Subscription>> {
    let all = draft.state.subscriptions.iter();
    all.filter(move |subscription| subscription.spec.hardware_plan == plan)
}

fn subscribed(subscription: &Object<Subscription>) -> Conflict {
    let plan = &subscription.spec.hardware_plan;
    Conflict::new::<Subscription>(subscription.name(), "hardware_plan", plan)
        .of(subscription.tenant())
}

/// The VLAN pool of a plan.
///
/// # Errors
/// A refusal that lists the pools.
fn pool_of<'s>(
    plan: &Object<HardwarePlan>,
    state: &'s State,
) -> Result<&'s Object<VlanPool>, Refusal> {
    let name = &plan.spec.vlan_pool;
    state.vlan_pools.get("", name).ok_or_else(|| {
        let pools: Vec<_> = state.vlan_pools.iter().map(Object::name).collect();
        Refusal::conflict(
            format!(
                "vlan_pool: {name:?} does not exist: create the pool first, or use one of {}",
                shown(&pools)
            ),
            vec![Conflict::new::<VlanPool>(name, "name", name)],
        )
    })
}
