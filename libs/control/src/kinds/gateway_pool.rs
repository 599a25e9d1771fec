//! Pools of gateways for certain tenants.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Gateway, Tenant, gateway::check_gateways_in_use, kind};
use crate::{
    Conflict, Nothing, Object, Refusal, State,
    draft::{Draft, shown},
    name::{DESCRIPTION_RULE, LIST, LIST_RULE, NAME_RULE, is_description, is_name},
    object::Rules,
    refusal::Problems,
    schema::{Line, ObjectName},
};

/// Gateways that only those tenants use which the pool is assigned to. A gateway is in at most one
/// pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GatewayPool {
    /// The gateways, at least one.
    #[schema(value_type = Vec<ObjectName>, min_items = 1, max_items = 256)]
    pub gateways: Vec<String>,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

kind!(
    GatewayPool,
    "gateway-pool",
    "gateway-pools",
    Provider,
    gateway_pools,
    Nothing
);

impl Rules for GatewayPool {
    fn check(&self, problems: &mut Problems) {
        problems.require(
            !self.gateways.is_empty(),
            "gateways",
            "",
            "the pool is empty: write at least one gateway",
        );
        let count = self.gateways.len();
        problems.require(count <= LIST, "gateways", count, LIST_RULE);
        let mut seen = BTreeSet::new();
        for gateway in &self.gateways {
            problems.require(is_name(gateway), "gateways", gateway, NAME_RULE);
            problems.require(
                seen.insert(gateway),
                "gateways",
                gateway,
                format_args!("{gateway:?} is listed twice: write each gateway once"),
            );
        }
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        let name = object.name();
        let missing: Vec<_> = object
            .spec
            .gateways
            .iter()
            .filter(|gateway| state.gateways.get("", gateway).is_none())
            .map(|gateway| Conflict::new::<Gateway>(gateway, "name", gateway))
            .collect();
        Refusal::of_conflicts(missing, |first| {
            format!(
                "gateways: {:?} does not exist: create the gateway first",
                first.name
            )
        })?;
        let mut taken = Vec::new();
        for other in state
            .gateway_pools
            .iter()
            .filter(|other| other.name() != name)
        {
            let both = other
                .spec
                .gateways
                .iter()
                .filter(|g| object.spec.gateways.contains(g));
            taken.extend(both.map(|g| Conflict::new::<Self>(other.name(), "gateways", g)));
        }
        Refusal::of_conflicts(taken, |first| {
            format!(
                "gateway {:?} is in pool {:?}, and a gateway is in one pool at most: take it \
                 out of that pool first",
                first.value, first.name
            )
        })
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        Self::check_against(new, draft.state)?;
        let name = new.name().to_owned();
        let done = if old.is_some() { "changed" } else { "created" };
        let gateways = new.spec.gateways.clone();
        check_gateways_in_use(
            draft,
            &format!("gateway pool {name:?} cannot be {done}"),
            |after| {
                after.pools.insert(name.clone(), gateways);
            },
        )
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        let name = old.name();
        let is_assigned =
            |tenant: &&Object<Tenant>| tenant.spec.gateway_pools.contains(&old.metadata.name);
        let assigned: Vec<_> = draft.state.tenants.iter().filter(is_assigned).collect();
        if !assigned.is_empty() && !draft.options.force {
            let tenants: Vec<_> = assigned.iter().map(|tenant| tenant.name()).collect();
            return Err(Refusal::conflict(
                format!(
                    "gateway pool {name:?} is assigned to tenants {}: take it from them first, or \
                     repeat the request with force, which does so",
                    shown(&tenants)
                ),
                tenants
                    .iter()
                    .map(|tenant| Conflict::new::<Tenant>(tenant, "gateway_pools", name))
                    .collect(),
            ));
        }
        check_gateways_in_use(
            draft,
            &format!("gateway pool {name:?} cannot be removed"),
            |after| {
                after.pools.remove(name);
            },
        )?;
        for tenant in assigned {
            draft.guard_tenant(tenant.name());
            let mut changed = tenant.clone();
            changed.spec.gateway_pools.retain(|pool| pool != name);
            changed.metadata.generation += 1;
            draft.write(&changed);
        }
        Ok(())
    }
}
