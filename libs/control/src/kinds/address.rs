//! A public address that a tenant has.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AddressPool, Network, Rule, Tenant, kind, network::with_gateway, public_address_limit,
};
use crate::{
    Claim, Conflict, Kind as _, Object, Reason, Refusal,
    addressing::host_problem,
    draft::{Draft, shown},
    name::{NAME_RULE, is_name},
    object::Rules,
    refusal::Problems,
    schema::{AddressText, ObjectName},
    state::address_claim,
};

/// A public address of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The pool. Cannot be changed.
    #[schema(value_type = ObjectName)]
    pub pool: String,
    /// The address; omitted for the pool's next free one. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<AddressText>)]
    pub address: Option<IpAddr>,
}

/// The address that was given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressStatus {
    /// The address that the tenant has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

kind!(
    Address,
    "address",
    "addresses",
    Tenant,
    addresses,
    AddressStatus
);

impl Rules for Address {
    fn check(&self, problems: &mut Problems) {
        problems.require(is_name(&self.pool), "pool", &self.pool, NAME_RULE);
        if let Some(address) = self.address
            && let Some(problem) = host_problem(address, None)
        {
            problems.add("address", address, problem);
        }
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        draft.guard_provider();
        let (tenant, name) = (new.tenant().to_owned(), new.name().to_owned());
        if let Some(old) = old {
            let value = old
                .status
                .address
                .map_or_else(String::new, |a| a.to_string());
            return Err(Refusal::conflict(
                format!(
                    "address {name:?} of tenant {tenant:?} is {value} of pool {:?}: release it and \
                     assign another one",
                    old.spec.pool
                ),
                vec![Conflict::new::<Self>(&name, "address", value).of(&tenant)],
            ));
        }
        within_limit(draft, &tenant)?;
        let pool = &new.spec.pool;
        let Some(pool) = draft.state.address_pools.get("", pool) else {
            let pools: Vec<_> = draft.state.address_pools.iter().map(Object::name).collect();
            return Err(Refusal::conflict(
                format!(
                    "pool: {pool:?} does not exist: create it first, or use one of {}",
                    shown(&pools)
                ),
                vec![Conflict::new::<AddressPool>(pool, "name", pool)],
            ));
        };
        let address = match new.spec.address {
            Some(address) => requested(draft, pool, &tenant, address)?,
            None => next_free(draft, pool, &tenant)?,
        };
        let claim = Claim {
            pool: pool.name().to_owned(),
            tenant,
            owner: name,
        };
        draft.claim(address_claim(address), &claim);
        new.status.address = Some(address);
        Ok(())
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        draft.guard_provider();
        let tenant = old.tenant();
        let rules = draft.state.rules.of_tenant(tenant);
        let conflicts: Vec<_> = rules
            .filter(|rule| Some(rule.spec.public_ip) == old.status.address)
            .map(|rule| {
                Conflict::new::<Rule>(rule.name(), "public_ip", rule.spec.public_ip).of(tenant)
            })
            .collect();
        if conflicts.is_empty() {
            release(draft, old);
            return Ok(());
        }
        let rules: Vec<_> = conflicts.iter().map(|conflict| &conflict.name).collect();
        Err(Refusal::conflict(
            format!(
                "address {:?} of tenant {tenant:?} is used by rules {}: remove them first",
                old.name(),
                shown(&rules)
            ),
            conflicts,
        ))
    }
}

/// Gives the address back. The caller erases the object.
pub(super) fn release(draft: &mut Draft<'_>, address: &Object<Address>) {
    if let Some(address) = address.status.address {
        draft.release(address_claim(address));
    }
}

fn within_limit(draft: &Draft<'_>, tenant: &str) -> Result<(), Refusal> {
    let limit = public_address_limit(draft.state, draft.tenant(tenant)?);
    let count = draft.state.addresses.of_tenant(tenant).count();
    let Some((limit, conflicts)) = limit.filter(|(limit, _)| count >= *limit as usize) else {
        return Ok(());
    };
    let of_tenant = conflicts
        .iter()
        .any(|conflict| conflict.kind == Tenant::KIND);
    let remedy = match of_tenant {
        true => "limits.public_addresses of the tenant",
        false => "public_addresses of a subscription",
    };
    Err(Refusal::new(
        Reason::Exhausted,
        format!(
            "tenant {tenant:?} has {count} public addresses and may have {limit}: release one, or \
             raise {remedy}"
        ),
        conflicts,
    ))
}

fn requested(
    draft: &Draft<'_>,
    pool: &Object<AddressPool>,
    tenant: &str,
    address: IpAddr,
) -> Result<IpAddr, Refusal> {
    let key = address_claim(address);
    if let Some(claim) = draft.state.claims.get(&key) {
        let conflict = Conflict::new::<Address>(&claim.owner, "address", address);
        return Err(Refusal::conflict(
            format!(
                "{address} is assigned to tenant {:?} ({:?}): assign another address, or omit it \
                 to take the next free one",
                claim.tenant, claim.owner
            ),
            vec![conflict.of(&claim.tenant)],
        ));
    }
    if !pool.spec.contains(address) {
        return Err(Refusal::conflict(
            format!(
                "{address} is not in address pool {:?} ({}): use one of its addresses, or omit it \
                 to take the next free one",
                pool.name(),
                ranges(pool)
            ),
            vec![Conflict::new::<AddressPool>(
                pool.name(),
                "ranges",
                ranges(pool),
            )],
        ));
    }
    if let Some(problem) = host_problem(address, pool.spec.prefix.as_ref()) {
        let conflict = Conflict::new::<AddressPool>(pool.name(), "ranges", ranges(pool));
        return Err(Refusal::conflict(problem, vec![conflict]));
    }
    if let Some(network) = with_gateway(draft.state, tenant, address) {
        let conflict = Conflict::new::<Network>(network.name(), "gateways", address);
        return Err(Refusal::conflict(
            format!(
                "{address} is the default gateway of network {:?} of tenant {tenant:?}: assign \
                 another address, or omit it to take the next free one",
                network.name()
            ),
            vec![conflict.of(tenant)],
        ));
    }
    if let Some(rule) = leading_to(draft, tenant, address) {
        let conflict = Conflict::new::<Rule>(rule.name(), "internal_ip", address);
        return Err(Refusal::conflict(
            format!(
                "{address} is the machine's address of rule {:?} of tenant {tenant:?}: assign \
                 another address, or omit it to take the next free one",
                rule.name()
            ),
            vec![conflict.of(tenant)],
        ));
    }
    Ok(address)
}

/// The tenant's rule that leads to this address.
fn leading_to<'s>(draft: &Draft<'s>, tenant: &str, address: IpAddr) -> Option<&'s Object<Rule>> {
    let mut rules = draft.state.rules.of_tenant(tenant);
    rules.find(|rule| rule.spec.internal_ip == address)
}

/// The pool's first address that has no claim and that the tenant may have. It looks at some
/// addresses more than there are claims: those of the tenant's default gateways and of its rules'
/// machines, and the network and broadcast address of the pool's prefix.
fn next_free(
    draft: &Draft<'_>,
    pool: &Object<AddressPool>,
    tenant: &str,
) -> Result<IpAddr, Refusal> {
    let mut addresses = pool.spec.ranges.iter().flat_map(|range| range.iter());
    let prefix = pool.spec.prefix.as_ref();
    let free = addresses.find(|address| {
        draft.is_free(&address_claim(*address))
            && host_problem(*address, prefix).is_none()
            && with_gateway(draft.state, tenant, *address).is_none()
            && leading_to(draft, tenant, *address).is_none()
    });
    free.ok_or_else(|| {
        Refusal::new(
            Reason::Exhausted,
            format!(
                "address pool {:?} has no free address: add a range to the pool, or release \
                 addresses",
                pool.name()
            ),
            vec![Conflict::new::<AddressPool>(
                pool.name(),
                "ranges",
                ranges(pool),
            )],
        )
    })
}

fn ranges(pool: &Object<AddressPool>) -> String {
    let ranges: Vec<_> = pool.spec.ranges.iter().map(ToString::to_string).collect();
    ranges.join(", ")
}
