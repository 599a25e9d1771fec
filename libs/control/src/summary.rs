//! The state in short: how many objects there are, what is not well, which leases end soon.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    Address, AddressPool, Appliance, Gateway, GatewayPool, HardwarePlan, Holds, Host, Kind,
    Mapping, NO_AGENT, Network, Object, Observed, Plan, Policy, Revision, Rule, Scope,
    Subscription, Tenant, VlanPool, state::for_all_kinds,
};

/// Time before the end of a lease from which it is told.
const LEASE_WARNING: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Most objects that are named for each condition.
const MAX_NAMED: usize = 10;

/// The state in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Summary {
    /// The revision that this is true of.
    pub revision: Revision,
    /// Whether no condition but those that lack an agent is in `conditions`, and no lease in
    /// `leases`.
    pub is_well: bool,
    /// Number of objects by kind.
    pub counts: BTreeMap<String, u64>,
    /// Conditions that are not well, by kind, type and reason.
    pub conditions: Vec<ConditionGroup>,
    /// Leases of tenants that end within 7 days, by their end.
    pub leases: Vec<EndingLease>,
}

/// Objects of a kind that have the same condition for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ConditionGroup {
    /// Kind of the objects.
    pub kind: &'static str,
    /// Type of the condition.
    #[serde(rename = "type")]
    pub condition: &'static str,
    /// Whether it holds.
    pub status: Holds,
    /// Reason of the condition.
    pub reason: &'static str,
    /// Number of the objects.
    pub count: u64,
    /// The first of them, at most 10, those of tenants as `tenant/name`.
    pub objects: Vec<String>,
}

/// A lease that ends soon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct EndingLease {
    /// Name of the tenant whose lease it is.
    pub tenant: String,
    /// End of the lease.
    #[schema(value_type = String, format = DateTime)]
    pub ends: Timestamp,
}

type Groups = BTreeMap<(&'static str, &'static str, Holds, &'static str), (u64, Vec<String>)>;

/// The state at a time in short; with a tenant, that of the tenant and its objects alone.
#[must_use]
pub fn summary(mut observed: Observed<'_>, tenant: Option<&str>) -> Summary {
    let (state, now) = (observed.state, observed.now);
    let (mut counts, mut groups) = (BTreeMap::new(), Groups::new());
    macro_rules! kinds {
        ($($kind:ty),*) => {
            {
                $(count::<$kind>(&mut observed, tenant, &mut counts, &mut groups);)*
            }
        };
    }
    for_all_kinds!(kinds);
    let soon = now + LEASE_WARNING;
    let tenants = state.all::<Tenant>().iter();
    let mut leases: Vec<_> = tenants
        .filter(|found| tenant.is_none_or(|tenant| found.name() == tenant))
        .filter_map(|found| {
            let ends = found.spec.lease_ends?;
            (now < ends && ends <= soon).then(|| EndingLease {
                tenant: found.name().to_owned(),
                ends,
            })
        })
        .collect();
    leases.sort_by_key(|lease| lease.ends);
    let is_well = groups.keys().all(|(.., reason)| *reason == NO_AGENT);
    let conditions =
        groups
            .into_iter()
            .map(
                |((kind, condition, status, reason), (count, objects))| ConditionGroup {
                    kind,
                    condition,
                    status,
                    reason,
                    count,
                    objects,
                },
            );
    Summary {
        revision: state.revision(),
        is_well: is_well && leases.is_empty(),
        counts,
        conditions: conditions.collect(),
        leases,
    }
}

fn count<K: Kind>(
    observed: &mut Observed<'_>,
    tenant: Option<&str>,
    counts: &mut BTreeMap<String, u64>,
    groups: &mut Groups,
) {
    let state = observed.state;
    let all: Box<dyn Iterator<Item = &Object<K>>> = match (tenant, K::SCOPE) {
        (None, _) => Box::new(state.all::<K>().iter()),
        (Some(tenant), Scope::Tenant) => Box::new(state.all::<K>().of_tenant(tenant)),
        (Some(tenant), Scope::Provider) if K::KIND == Tenant::KIND => {
            Box::new(state.get::<K>(None, tenant).into_iter())
        }
        // The provider's objects are none of a tenant's.
        (Some(_), Scope::Provider) => return,
    };
    let mut number = 0;
    for object in all {
        number += 1;
        for condition in observed.conditions(object) {
            if condition.is_well {
                continue;
            }
            let key = (K::KIND, condition.kind, condition.status, condition.reason);
            let (count, named) = groups.entry(key).or_default();
            *count += 1;
            if named.len() < MAX_NAMED {
                named.push(match object.tenant() {
                    "" => object.name().to_owned(),
                    tenant => format!("{tenant}/{}", object.name()),
                });
            }
        }
    }
    counts.insert(K::KIND.to_owned(), number);
}
