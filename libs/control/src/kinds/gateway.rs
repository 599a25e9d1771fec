//! Cloud gateways.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use gateway_client::dial::{MAX_ADDRESSES, ServiceAddress};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{GatewayPool, Tenant, agent::of_agent, kind, uplink::refuse_taken, yes};
use crate::{
    Condition, Conflict, Holds, NO_AGENT, Nothing, Object, Observed, Refusal, State,
    addressing::host_problem,
    draft::{Draft, shown},
    name::{DESCRIPTION_RULE, is_description},
    object::Rules,
    refusal::Problems,
    schema::{AddressText, DnsName, Line},
};

/// Port of gateways unless configured.
const PORT: u16 = 6180;
/// Longest DNS name, characters (RFC 1035 section 2.3.4, without the root).
const DNS_NAME: usize = 253;

/// A cloud gateway: tenants' appliances connect to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Addresses that tenants connect to, public ones where the gateway is behind NAT.
    #[schema(value_type = Vec<AddressText>, min_items = 1, max_items = 8)]
    pub addresses: Vec<IpAddr>,
    /// DNS name of these addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DnsName>)]
    pub dns_name: Option<String>,
    /// TCP and UDP port, 1 to 65535.
    #[serde(default = "default_port")]
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
    /// Whether tenants may use it.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Whether it is drained: circuits that it has go on, and it gets no new ones, so that it can
    /// be maintained.
    #[serde(default)]
    pub drain: bool,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

const fn default_port() -> u16 {
    PORT
}

kind!(Gateway, "gateway", "gateways", Provider, gateways, Nothing);

impl Gateway {
    /// Whether tenants' new circuits may come to it.
    const fn is_open(&self) -> bool {
        self.enabled && !self.drain
    }
}

impl Rules for Gateway {
    fn check(&self, problems: &mut Problems) {
        problems.require(
            !self.addresses.is_empty(),
            "addresses",
            0,
            format_args!("write 1 to {MAX_ADDRESSES} addresses"),
        );
        let mut seen = BTreeSet::new();
        for address in &self.addresses {
            problems.require(
                seen.insert(address),
                "addresses",
                address,
                format_args!("{address} is listed twice: write each address once"),
            );
            if let Some(problem) = host_problem(*address, None) {
                problems.add("addresses", address, problem);
            }
        }
        problems.require(self.port != 0, "port", self.port, "write 1 to 65535");
        if let Some(name) = &self.dns_name {
            problems.require(
                is_dns_name(name),
                "dns_name",
                name,
                "write a DNS name such as gw1.example.net",
            );
        }
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        for address in &object.spec.addresses {
            refuse_taken(state, *address, None, Some(object.name()))?;
        }
        Ok(())
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        // Earlier versions allowed more. Such a gateway can be drained and disabled as it is.
        let count = new.spec.addresses.len();
        if count > MAX_ADDRESSES && old.is_none_or(|old| old.spec.addresses != new.spec.addresses) {
            let mut problems = Problems::new::<Self>(None, new.name());
            let rule = format_args!("write 1 to {MAX_ADDRESSES} addresses");
            problems.add("addresses", count, rule);
            problems.into_result()?;
        }
        Self::check_against(new, draft.state)?;
        if old.is_some_and(|old| old.spec.is_open()) && !new.spec.is_open() {
            let name = new.name().to_owned();
            let done = if new.spec.enabled {
                "drained"
            } else {
                "disabled"
            };
            check_gateways_in_use(
                draft,
                &format!("gateway {name:?} cannot be {done}"),
                |gateways| {
                    gateways.disabled.insert(name.clone());
                },
            )?;
        }
        Ok(())
    }

    fn delete(old: &Object<Self>, draft: &mut Draft<'_>) -> Result<(), Refusal> {
        let name = old.name();
        let pools: Vec<_> = draft
            .state
            .gateway_pools
            .iter()
            .filter(|pool| pool.spec.gateways.iter().any(|gateway| gateway == name))
            .map(|pool| Conflict::new::<GatewayPool>(pool.name(), "gateways", name))
            .collect();
        if let Some(pool) = pools.first() {
            return Err(Refusal::conflict(
                format!(
                    "gateway {name:?} is in pool {:?}: take it out of the pool first",
                    pool.name
                ),
                pools,
            ));
        }
        check_gateways_in_use(
            draft,
            &format!("gateway {name:?} cannot be removed"),
            |gateways| {
                gateways.disabled.insert(name.to_owned());
            },
        )
    }

    fn conditions(object: &Object<Self>, observed: &mut Observed<'_>) -> Vec<Condition> {
        let enabled = Condition::either(
            object,
            "Enabled",
            object.spec.enabled,
            ("Enabled", "tenants may use the gateway"),
            ("Disabled", "no tenant may use the gateway"),
        );
        let mut drained = Condition::new(
            object,
            "Drained",
            false,
            "NotWanted",
            "the gateway is not to be drained",
        );
        drained.is_well = true;
        if object.spec.drain {
            drained.status = Holds::Unknown;
            drained.is_well = false;
            drained.reason = NO_AGENT;
            drained.message = "the gateway is to be drained, and its agent does not tell of \
                               circuits: look at them with `causeway-gateway status`"
                .to_owned();
        }
        let mut all = vec![enabled, drained];
        all.extend(of_agent(object, observed));
        all
    }
}

fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= DNS_NAME && name.split('.').all(is_label)
}

/// Which gateways tenants may use: the state's, with the differences of a change.
pub(crate) struct Gateways<'s> {
    state: &'s State,
    /// Gateways that are not enabled, drained, or removed.
    pub(super) disabled: BTreeSet<String>,
    /// Pools and their gateways.
    pub(super) pools: BTreeMap<String, Vec<String>>,
}

impl<'s> Gateways<'s> {
    pub(crate) fn of(state: &'s State) -> Self {
        let disabled = state
            .gateways
            .iter()
            .filter(|gateway| !gateway.spec.is_open());
        let pools = state.gateway_pools.iter();
        Self {
            state,
            disabled: disabled.map(|gateway| gateway.name().to_owned()).collect(),
            pools: pools
                .map(|pool| (pool.name().to_owned(), pool.spec.gateways.clone()))
                .collect(),
        }
    }

    /// Whether a tenant may use any gateway: those of its pools, and those in no pool if it has no
    /// pool or may fall back to them. A pool that the change removes is taken from its tenants.
    pub(super) fn has_any(&self, tenant: &Tenant) -> bool {
        self.of_tenant(tenant).next().is_some()
    }

    /// Those gateways: of its pools, in their order, and then those in no pool.
    fn of_tenant(&self, tenant: &Tenant) -> impl Iterator<Item = &'s Object<Gateway>> {
        let pools = tenant.gateway_pools.iter();
        let pools: Vec<_> = pools.filter_map(|pool| self.pools.get(pool)).collect();
        let all = pools.is_empty() || tenant.gateway_fallback;
        let of_pools = pools.into_iter().flatten();
        let of_pools = of_pools.filter_map(|name| self.state.gateways.get("", name));
        let pooled = |gateway: &str| self.pools.values().flatten().any(|g| g == gateway);
        let others = self.state.gateways.iter().filter(move |_| all);
        let others = others.filter(move |gateway| !pooled(gateway.name()));
        let found = of_pools.chain(others);
        found.filter(|gateway| !self.disabled.contains(gateway.name()))
    }
}

/// Gateways that a tenant may use, each once: those of its pools, in their order, and then those in
/// no pool if it has no pool or may fall back to them.
#[must_use]
pub fn gateways_of<'s>(state: &'s State, tenant: &Tenant) -> Vec<&'s Object<Gateway>> {
    let mut all: Vec<&Object<Gateway>> = Vec::new();
    for gateway in Gateways::of(state).of_tenant(tenant) {
        if !all.iter().any(|known| known.name() == gateway.name()) {
            all.push(gateway);
        }
    }
    all
}

impl Gateway {
    /// Where tenants connect: its DNS name, if it has one, or else its addresses, each with the
    /// port.
    #[must_use]
    pub fn service_addresses(&self) -> Vec<ServiceAddress> {
        match &self.dns_name {
            Some(name) => vec![ServiceAddress::Name(
                name.to_ascii_lowercase().into(),
                self.port,
            )],
            None => {
                let addresses = self.addresses.iter();
                let of = |address: &IpAddr| SocketAddr::new(*address, self.port);
                addresses
                    .map(|address| ServiceAddress::Address(of(address)))
                    .collect()
            }
        }
    }
}

/// Refuses other pools for a tenant, of which it would have no gateway; warns of it with `force`.
pub(super) fn keep_gateways_of(
    draft: &mut Draft<'_>,
    name: &str,
    old: &Tenant,
    new: &Tenant,
) -> Result<(), Refusal> {
    let gateways = Gateways::of(draft.state);
    if !gateways.has_any(old) || gateways.has_any(new) {
        return Ok(());
    }
    if draft.options.force {
        draft.warn(format!("tenant {name:?} has no gateway left"));
        return Ok(());
    }
    let pools = new.gateway_pools.iter();
    let conflicts: Vec<_> = pools
        .filter_map(|pool| draft.state.gateway_pools.get("", pool))
        .map(|pool| {
            let gateways = pool.spec.gateways.join(", ");
            Conflict::new::<GatewayPool>(pool.name(), "gateways", gateways)
        })
        .collect();
    let conflicts = match conflicts.is_empty() {
        // It would use the gateways that are in no pool, and there are none.
        true => vec![Conflict::new::<Tenant>(name, "gateway_pools", "")],
        false => conflicts,
    };
    Err(Refusal::conflict(
        format!(
            "gateway_pools: tenant {name:?} would have no gateway left: write a pool with a \
             gateway that is enabled, set gateway_fallback, or repeat the request with force"
        ),
        conflicts,
    ))
}

/// Refuses a change that takes the last gateway from tenants; warns of it with `force`.
pub(super) fn check_gateways_in_use(
    draft: &mut Draft<'_>,
    refused: &str,
    change: impl FnOnce(&mut Gateways<'_>),
) -> Result<(), Refusal> {
    let before = Gateways::of(draft.state);
    let mut after = Gateways::of(draft.state);
    change(&mut after);
    let tenants = draft.state.tenants.iter();
    let lost: Vec<_> = tenants
        .filter(|tenant| before.has_any(&tenant.spec) && !after.has_any(&tenant.spec))
        .map(|tenant| tenant.name().to_owned())
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    if draft.options.force {
        draft.warn(format!("tenants {} have no gateway left", shown(&lost)));
        return Ok(());
    }
    let conflicts = lost.iter().map(|tenant| {
        let pools = draft
            .state
            .tenants
            .get("", tenant)
            .map(|t| t.spec.gateway_pools.join(", "));
        Conflict::new::<Tenant>(tenant, "gateway_pools", pools.unwrap_or_default())
    });
    Err(Refusal::conflict(
        format!(
            "{refused}: tenants {} would have no gateway left: give them another one first, or \
             repeat the request with force",
            shown(&lost)
        ),
        conflicts.collect(),
    ))
}
