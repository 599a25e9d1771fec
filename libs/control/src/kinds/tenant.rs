//! Tenants: the provider's customers.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Address, GatewayPool, Mapping, Plan, Policy, Rule, Subscription, address, gateway, kind,
    subscription, yes,
};
use crate::{
    Condition, Conflict, Kind, Object, Observed, Reason, Refusal, State,
    draft::{Draft, shown},
    name::{DESCRIPTION_RULE, LIST, LIST_RULE, NAME_RULE, is_description, is_name},
    object::Rules,
    refusal::Problems,
    schema::{Line, ObjectName},
};

/// A customer of the provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Whether the tenant may get anything new. A disabled tenant keeps all that it has, and its
    /// failovers go on.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// End of the lease; from then on the tenant counts as disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub lease_ends: Option<Timestamp>,
    /// Limits of bandwidth and of the numbers of objects.
    #[serde(default)]
    pub limits: Limits,
    /// Gateway pools, in the order of preference. Without any, the tenant uses the gateways that
    /// are in no pool.
    #[serde(default)]
    #[schema(value_type = Vec<ObjectName>, max_items = 256)]
    pub gateway_pools: Vec<String>,
    /// Whether the tenant may also use gateways that are in no pool when those of its pools fail.
    #[serde(default)]
    pub gateway_fallback: bool,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

/// Limits of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most public addresses; omitted for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 4294967295_u32)]
    pub public_addresses: Option<u32>,
    /// Bandwidth of the tunnels in each direction, Mbit/s, at least 1; omitted for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4294967295_u32)]
    pub bandwidth_mbit: Option<u32>,
    /// Most objects that the tenant itself makes: mappings, policies, rules and plans together;
    /// omitted for 1 000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 4294967295_u32)]
    pub objects: Option<u32>,
}

/// Most objects of a tenant unless the provider has set another limit.
const OBJECTS: u32 = 1000;

impl Limits {
    /// Most objects that the tenant itself makes.
    #[must_use]
    pub fn objects(&self) -> u32 {
        self.objects.unwrap_or(OBJECTS)
    }
}

/// Number of the objects of a tenant that count against its limit.
pub(crate) fn objects_of(state: &State, tenant: &str) -> usize {
    state.mappings.of_tenant(tenant).count()
        + state.policies.of_tenant(tenant).count()
        + state.rules.of_tenant(tenant).count()
        + state.plans.of_tenant(tenant).count()
}

/// Refuses a new object of a kind that counts, if the tenant has as many as it may have.
pub(crate) fn within_quota<K: Kind>(draft: &Draft<'_>, tenant: &str) -> Result<(), Refusal> {
    if ![Mapping::KIND, Policy::KIND, Rule::KIND, Plan::KIND].contains(&K::KIND) {
        return Ok(());
    }
    let limit = draft.tenant(tenant)?.spec.limits.objects();
    let count = objects_of(draft.state, tenant);
    if count < limit as usize {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::Exhausted,
        format!(
            "tenant {tenant:?} has {count} mappings, policies, rules and plans and may have \
             {limit}: remove one that is not needed, or have the provider raise limits.objects of \
             the tenant"
        ),
        vec![Conflict::new::<Tenant>(tenant, "limits.objects", limit)],
    ))
}

/// Failover mode of a tenant's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Mode {
    /// No failover.
    #[default]
    Idle,
    /// Partial site failover: some machines have failed over.
    Partial,
    /// Full site failover: all machines have failed over.
    Full {
        /// Name of the tenant's failover plan that is in force.
        plan: String,
    },
}

impl Mode {
    /// Whether a failover is active.
    #[must_use]
    pub const fn is_failover(&self) -> bool {
        !matches!(self, Self::Idle)
    }
}

/// For people: `full failover by plan "all"`.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("no failover"),
            Self::Partial => f.write_str("partial failover"),
            Self::Full { plan } => write!(f, "full failover by plan {plan:?}"),
        }
    }
}

/// The state of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantStatus {
    /// Failover mode.
    #[serde(default)]
    pub mode: Mode,
}

kind!(Tenant, "tenant", "tenants", Provider, tenants, TenantStatus);

impl Rules for Tenant {
    fn check(&self, problems: &mut Problems) {
        let count = self.gateway_pools.len();
        problems.require(count <= LIST, "gateway_pools", count, LIST_RULE);
        let mut seen = BTreeSet::new();
        for pool in &self.gateway_pools {
            problems.require(is_name(pool), "gateway_pools", pool, NAME_RULE);
            problems.require(
                seen.insert(pool),
                "gateway_pools",
                pool,
                format_args!("{pool:?} is listed twice: write each pool once"),
            );
        }
        problems.require(
            self.limits.bandwidth_mbit != Some(0),
            "limits.bandwidth_mbit",
            0,
            "write 1 or more Mbit/s, or omit it for no limit",
        );
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        let missing: Vec<_> = object
            .spec
            .gateway_pools
            .iter()
            .filter(|pool| state.gateway_pools.get("", pool).is_none())
            .map(|pool| Conflict::new::<GatewayPool>(pool, "name", pool))
            .collect();
        Refusal::of_conflicts(missing, |first| {
            format!(
                "gateway_pools: {:?} does not exist: create the pool first",
                first.name
            )
        })
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        draft.guard_tenant(new.name());
        Self::check_against(new, draft.state)?;
        if let Some(old) = old {
            let name = new.name().to_owned();
            gateway::keep_gateways_of(draft, &name, &old.spec, &new.spec)?;
        }
        let count = draft.state.addresses.of_tenant(new.name()).count();
        let limit = new.spec.limits.public_addresses;
        if old.is_some() && limit.is_some_and(|limit| (limit as usize) < count) {
            draft.warn(format!(
                "tenant {:?} has {count} public addresses and keeps them",
                new.name()
            ));
        }
        let (count, limit) = (
            objects_of(draft.state, new.name()),
            new.spec.limits.objects(),
        );
        if old.is_some() && (limit as usize) < count {
            draft.warn(format!(
                "tenant {:?} has {count} mappings, policies, rules and plans and keeps them",
                new.name()
            ));
        }
        Ok(())
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        let name = old.name();
        draft.must_be_idle(name, "remove the tenant")?;
        let state = draft.state;
        let mut conflicts = Vec::new();
        for subscription in state.subscriptions.of_tenant(name) {
            let plan = &subscription.spec.hardware_plan;
            let conflict =
                Conflict::new::<Subscription>(subscription.name(), "hardware_plan", plan);
            conflicts.push(conflict.of(name));
        }
        for address in state.addresses.of_tenant(name) {
            let value = address
                .status
                .address
                .map_or_else(String::new, |a| a.to_string());
            conflicts.push(Conflict::new::<Address>(address.name(), "address", value).of(name));
        }
        if !conflicts.is_empty() && !draft.options.force {
            let names: Vec<_> = conflicts.iter().map(Conflict::to_string).collect();
            return Err(Refusal::conflict(
                format!(
                    "tenant {name:?} has {}: end the subscriptions and release the addresses \
                     first, or repeat the request with force, which does so",
                    shown(&names)
                ),
                conflicts,
            ));
        }
        if !conflicts.is_empty() {
            let names: Vec<_> = conflicts.iter().map(Conflict::to_string).collect();
            let networks = state.networks.of_tenant(name).count();
            draft.warn(format!(
                "tenant {name:?} loses {}, with {networks} networks",
                shown(&names)
            ));
        }
        for subscription in state.subscriptions.of_tenant(name) {
            subscription::end(draft, subscription);
            draft.erase(subscription);
        }
        // With several subscriptions on a host, `end` leaves the appliance to the last one.
        for appliance in state.appliances.of_tenant(name) {
            draft.erase(appliance);
        }
        for address in state.addresses.of_tenant(name) {
            address::release(draft, address);
            draft.erase(address);
        }
        erase_all::<Mapping>(draft, name);
        erase_all::<Policy>(draft, name);
        erase_all::<Rule>(draft, name);
        erase_all::<Plan>(draft, name);
        draft.remove_tenant_guard(name);
        Ok(())
    }

    fn conditions(object: &Object<Self>, observed: &mut Observed<'_>) -> Vec<Condition> {
        let spec = &object.spec;
        let enabled = Condition::either(
            object,
            "Enabled",
            spec.enabled,
            ("Enabled", "objects can be created for the tenant"),
            (
                "Disabled",
                "the tenant keeps its objects; none can be created",
            ),
        );
        let (lease, text) = match spec.lease_ends {
            None => ("NoLease", "the tenant has no lease, and no end".to_owned()),
            Some(end) if observed.now < end => ("Leased", format!("the lease ends at {end}")),
            Some(end) => ("LeaseEnded", format!("the lease ended at {end}: extend it")),
        };
        let mut lease = Condition::new(object, "LeaseValid", lease != "LeaseEnded", lease, text);
        lease.since = spec.lease_ends.filter(|_| !lease.is_well);
        let gateway = Condition::either(
            object,
            "GatewayAvailable",
            observed.gateways.has_any(spec),
            (
                "Available",
                "a gateway is enabled and not drained for the tenant",
            ),
            (
                "NoGateway",
                "no gateway is enabled for the tenant: the provider enables one",
            ),
        );
        vec![enabled, lease, gateway]
    }
}

fn erase_all<K: Kind>(draft: &mut Draft<'_>, tenant: &str) {
    for object in K::table(draft.state).of_tenant(tenant) {
        draft.erase(object);
    }
}
