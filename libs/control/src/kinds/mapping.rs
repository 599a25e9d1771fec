//! Which network at the provider stands for a production network.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Network, kind};
use crate::{
    Conflict, Nothing, Object, Refusal, State,
    draft::{Draft, shown},
    name::{FOREIGN_RULE, NAME_RULE, is_foreign_name, is_name},
    object::Rules,
    refusal::Problems,
    schema::{ForeignName, ObjectName},
};

/// Replicas of machines on a production network are on a network at the provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// The production network, as the tenant's platform names it.
    #[schema(value_type = ForeignName)]
    pub production: String,
    /// The tenant's network at the provider.
    #[schema(value_type = ObjectName)]
    pub replica: String,
}

kind!(Mapping, "mapping", "mappings", Tenant, mappings, Nothing);

impl Rules for Mapping {
    fn check(&self, problems: &mut Problems) {
        let (production, replica) = (&self.production, &self.replica);
        problems.require(
            is_foreign_name(production),
            "production",
            production,
            FOREIGN_RULE,
        );
        problems.require(is_name(replica), "replica", replica, NAME_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        let tenant = object.tenant();
        require_network(state, tenant, "replica", &object.spec.replica)?;
        let mut conflicts = Vec::new();
        for other in state.mappings.of_tenant(tenant) {
            if other.name() == object.name() {
                continue;
            }
            let (theirs, ours) = (&other.spec, &object.spec);
            if theirs.production == ours.production {
                let value = &theirs.production;
                conflicts.push(Conflict::new::<Self>(other.name(), "production", value).of(tenant));
            }
            if theirs.replica == ours.replica {
                let value = &theirs.replica;
                conflicts.push(Conflict::new::<Self>(other.name(), "replica", value).of(tenant));
            }
        }
        Refusal::of_conflicts(conflicts, |first| {
            format!(
                "mapping {:?}: {} {:?} is in mapping {:?}: map each network once",
                object.name(),
                first.field,
                first.value,
                first.name
            )
        })
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        if old.is_some() {
            draft.must_be_idle(new.tenant(), "change a mapping")?;
        }
        Self::check_against(new, draft.state)
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        draft.must_be_idle(old.tenant(), "remove a mapping")
    }
}

/// The tenant's network of this name, which an object's `field` names.
///
/// # Errors
/// A refusal that lists the tenant's networks.
pub(super) fn require_network<'s>(
    state: &'s State,
    tenant: &str,
    field: &str,
    name: &str,
) -> Result<&'s Object<Network>, Refusal> {
    state.networks.get(tenant, name).ok_or_else(|| {
        let networks: Vec<_> = state.networks.of_tenant(tenant).map(Object::name).collect();
        Refusal::conflict(
            format!(
                "{field}: network {name:?} does not exist; tenant {tenant:?}'s networks are {}",
                shown(&networks)
            ),
            vec![Conflict::new::<Network>(name, "name", name).of(tenant)],
        )
    })
}
