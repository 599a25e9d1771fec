//! Public addresses of the provider that tenants may have.

use std::net::IpAddr;

use failover::IpPrefix;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Address, Appliance, Gateway, kind};
use crate::{
    AddressRange, Conflict, Nothing, Object, Refusal, State,
    addressing::{host_problem, network_and_broadcast, range_problem},
    draft::Draft,
    name::{DESCRIPTION_RULE, is_description},
    object::Rules,
    refusal::Problems,
    schema::{AddressRangeText, AddressText, Line, PrefixText},
};

/// Most ranges of a pool.
const MAX_RANGES: usize = 256;

/// Public addresses, IPv4 or IPv6, that tenants may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressPool {
    /// The addresses.
    #[schema(value_type = Vec<AddressRangeText>, min_items = 1, max_items = 256)]
    pub ranges: Vec<AddressRange>,
    /// The prefix of the uplink that the addresses are in; omitted for addresses that the
    /// provider's router routes to the appliances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PrefixText>)]
    pub prefix: Option<IpPrefix>,
    /// The provider's router in this prefix. No tenant gets its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<AddressText>)]
    pub router: Option<IpAddr>,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

kind!(
    AddressPool,
    "address-pool",
    "address-pools",
    Provider,
    address_pools,
    Nothing
);

impl Rules for AddressPool {
    fn check(&self, problems: &mut Problems) {
        problems.require(
            (1..=MAX_RANGES).contains(&self.ranges.len()),
            "ranges",
            self.ranges.len(),
            format_args!("write 1 to {MAX_RANGES} addresses, prefixes or ranges"),
        );
        for (place, range) in self.ranges.iter().take(MAX_RANGES).enumerate() {
            let before = &self.ranges[..place];
            if let Some(both) = before.iter().find_map(|other| other.intersection(*range)) {
                problems.add(
                    "ranges",
                    both,
                    format_args!("{both} is in two ranges: write each address once"),
                );
            }
            self.check_range(*range, problems);
        }
        if let Some(router) = self.router
            && let Some(problem) = host_problem(router, self.prefix.as_ref())
        {
            problems.add("router", router, problem);
        }
        if let (Some(prefix), Some(router)) = (self.prefix, self.router) {
            problems.require(
                prefix.contains(router),
                "router",
                router,
                format_args!("{router} is not in {prefix}: write an address of the prefix"),
            );
        }
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        refuse_overlap(state, object)?;
        refuse_own_addresses(state, object)
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        Self::check_against(new, draft.state)?;
        let Some(old) = old else {
            return Ok(());
        };
        let lost: Vec<_> = assigned(draft.state, old.name())
            .filter(|address| !address.status.address.is_some_and(|a| new.spec.contains(a)))
            .map(conflict_with)
            .collect();
        refuse_assigned(old.name(), "would lose addresses", lost)
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        let held = assigned(draft.state, old.name())
            .map(conflict_with)
            .collect();
        refuse_assigned(old.name(), "has addresses", held)
    }
}

impl AddressPool {
    /// Whether the pool has this address.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// Whether the pool, or its router, has this address.
    fn has(&self, address: IpAddr) -> bool {
        self.router == Some(address) || self.contains(address)
    }

    fn check_range(&self, range: AddressRange, problems: &mut Problems) {
        if let Some((part, problem)) = range_problem(range, self.prefix.as_ref()) {
            problems.add("ranges", part, problem);
        }
        if let Some(router) = self.router.filter(|router| range.contains(*router)) {
            problems.add(
                "ranges",
                router,
                format_args!("{range} has the router {router}: leave its address out"),
            );
        }
    }
}

fn assigned<'s>(state: &'s State, pool: &str) -> impl Iterator<Item = &'s Object<Address>> {
    let addresses = state.addresses.iter();
    addresses.filter(move |address| address.spec.pool == pool)
}

fn conflict_with(address: &Object<Address>) -> Conflict {
    let value = address
        .status
        .address
        .map_or_else(String::new, |a| a.to_string());
    Conflict::new::<Address>(address.name(), "address", value).of(address.tenant())
}

fn refuse_assigned(pool: &str, problem: &str, conflicts: Vec<Conflict>) -> Result<(), Refusal> {
    Refusal::of_conflicts(conflicts, |first| {
        format!(
            "address pool {pool:?} {problem} that tenants have, {} of tenant {:?} among them: \
             release them first",
            first.value,
            first.tenant.as_deref().unwrap_or_default()
        )
    })
}

fn refuse_overlap(state: &State, new: &Object<AddressPool>) -> Result<(), Refusal> {
    let mut conflicts = Vec::new();
    for other in state
        .address_pools
        .iter()
        .filter(|other| other.name() != new.name())
    {
        for theirs in &other.spec.ranges {
            for ours in &new.spec.ranges {
                if let Some(both) = ours.intersection(*theirs) {
                    conflicts.push(Conflict::new::<AddressPool>(other.name(), "ranges", both));
                }
            }
            let router = new.spec.router.filter(|router| theirs.contains(*router));
            if let Some(router) = router {
                conflicts.push(Conflict::new::<AddressPool>(other.name(), "ranges", router));
            }
        }
        let router = other
            .spec
            .router
            .filter(|router| new.spec.contains(*router));
        if let Some(router) = router {
            conflicts.push(Conflict::new::<AddressPool>(other.name(), "router", router));
        }
        // Of one link: neither pool gives out the other's network or broadcast address.
        let pairs = [(&new.spec, &other.spec), (&other.spec, &new.spec)];
        for (prefix, pool) in pairs.map(|(a, b)| (a.prefix, b)) {
            let ends = prefix.map_or_else(Vec::new, |prefix| network_and_broadcast(&prefix));
            for end in ends.into_iter().filter(|end| pool.contains(*end)) {
                conflicts.push(Conflict::new::<AddressPool>(other.name(), "prefix", end));
            }
        }
    }
    Refusal::of_conflicts(conflicts, |first| {
        format!(
            "address pool {:?}: {} is in {} of pool {:?}: use other addresses, or remove them from \
             that pool first",
            new.name(),
            first.value,
            first.field,
            first.name
        )
    })
}

/// Refuses addresses that gateways and appliances have themselves, and those of appliances' routers
/// and networks.
fn refuse_own_addresses(state: &State, new: &Object<AddressPool>) -> Result<(), Refusal> {
    let mut conflicts = Vec::new();
    for gateway in state.gateways.iter() {
        for address in gateway.spec.addresses.iter().filter(|a| new.spec.has(**a)) {
            conflicts.push(Conflict::new::<Gateway>(
                gateway.name(),
                "addresses",
                address,
            ));
        }
    }
    for appliance in state.appliances.iter() {
        if let Some(address) = appliance.spec.uplink.address().filter(|a| new.spec.has(*a)) {
            let conflict = Conflict::new::<Appliance>(appliance.name(), "uplink.address", address);
            conflicts.push(conflict.of(appliance.tenant()));
        }
        let prefix = appliance.spec.uplink.prefix();
        let ends = prefix.map_or_else(Vec::new, |prefix| network_and_broadcast(&prefix));
        let fields = ends.into_iter().map(|end| ("uplink.prefix_length", end));
        let router = appliance.spec.uplink.router();
        let fields = fields.chain(router.map(|router| ("uplink.router", router)));
        for (field, address) in fields.filter(|(_, address)| new.spec.contains(*address)) {
            let conflict = Conflict::new::<Appliance>(appliance.name(), field, address);
            conflicts.push(conflict.of(appliance.tenant()));
        }
    }
    Refusal::of_conflicts(conflicts, |first| {
        format!(
            "address pool {:?}: {} is {} of {} {:?}: leave it out",
            new.name(),
            first.value,
            match first.field.as_str() {
                "uplink.router" => "the router",
                "uplink.prefix_length" => "the network or broadcast address",
                _ => "the address",
            },
            first.kind,
            first.name
        )
    })
}
