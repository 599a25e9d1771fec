//! A tenant's appliance on a host of the provider.

use std::{fmt, net::IpAddr};

use failover::IpPrefix;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AddressPool, Gateway, Subscription, gateway::of_agent, kind, subscription::declaring};
use crate::{
    Condition, Conflict, Object, Observed, Refusal, State,
    addressing::{host_problem, network_and_broadcast},
    draft::Draft,
    name::{DESCRIPTION_RULE, is_description},
    object::Rules,
    refusal::Problems,
    schema::{AddressText, Line},
    tenant_view::TenantView,
};

/// A tenant's appliance on one host of the provider. A subscription makes it; it has the host's
/// name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Appliance {
    /// Address on the provider's production network.
    pub uplink: Uplink,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(value_type = Line)]
    pub description: String,
}

/// How an appliance gets its address on the provider's production network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Uplink {
    /// By DHCP.
    Dhcp,
    /// As written here.
    Static {
        /// The appliance's address.
        #[schema(value_type = AddressText)]
        address: IpAddr,
        /// Prefix length, bits.
        #[schema(maximum = 128)]
        prefix_length: u8,
        /// The next hop of packets to other networks.
        #[schema(value_type = AddressText)]
        router: IpAddr,
    },
}

/// Where an appliance is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplianceStatus {
    /// Name of the provider's host that it runs on.
    pub host: String,
}

kind!(
    Appliance,
    "appliance",
    "appliances",
    Tenant,
    appliances,
    ApplianceStatus
);

impl Uplink {
    /// The static address, if there is one.
    pub(crate) const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Dhcp => None,
            Self::Static { address, .. } => Some(*address),
        }
    }

    /// The static next hop, if there is one.
    pub(crate) const fn router(&self) -> Option<IpAddr> {
        match self {
            Self::Dhcp => None,
            Self::Static { router, .. } => Some(*router),
        }
    }

    /// The prefix of the static address, if there is one and its length fits.
    pub(super) fn prefix(&self) -> Option<IpPrefix> {
        match *self {
            Self::Dhcp => None,
            Self::Static {
                address,
                prefix_length,
                ..
            } => IpPrefix::new_truncated(address, prefix_length),
        }
    }

    /// Collects the problems of an uplink that is this field of an object.
    pub(super) fn check(&self, field: &str, problems: &mut Problems) {
        let Self::Static {
            address,
            prefix_length,
            router,
        } = *self
        else {
            return;
        };
        let of = |part: &str| format!("{field}.{part}");
        let prefix = self.prefix();
        for (part, address) in [("address", address), ("router", router)] {
            if let Some(problem) = host_problem(address, prefix.as_ref()) {
                problems.add(&of(part), address, problem);
            }
        }
        match prefix {
            None => problems.add(
                &of("prefix_length"),
                prefix_length,
                "write at most 32 for IPv4 and 128 for IPv6",
            ),
            Some(prefix) => {
                problems.require(
                    prefix.contains(router) && router != address,
                    &of("router"),
                    router,
                    format_args!("write another address within {prefix}"),
                );
            }
        }
    }
}

/// For people: `static 198.51.100.5/24, router 198.51.100.1`.
impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dhcp => f.write_str("dhcp"),
            Self::Static {
                address,
                prefix_length,
                router,
            } => write!(f, "static {address}/{prefix_length}, router {router}"),
        }
    }
}

impl Rules for Appliance {
    fn check(&self, problems: &mut Problems) {
        self.uplink.check("uplink", problems);
        let text = &self.description;
        problems.require(is_description(text), "description", text, DESCRIPTION_RULE);
    }

    fn check_against(object: &Object<Self>, state: &State) -> Result<(), Refusal> {
        let Some(address) = object.spec.uplink.address() else {
            return Ok(());
        };
        let own = Some((object.tenant(), object.name()));
        refuse_taken(state, address, own, None)?;
        refuse_router(state, object)
    }

    fn put(
        old: Option<&Object<Self>>,
        new: &mut Object<Self>,
        draft: &mut Draft<'_>,
    ) -> Result<(), Refusal> {
        draft.guard_provider();
        let Some(old) = old else {
            return Err(by_subscription(new));
        };
        let declared = declaring(draft.state, new.tenant(), new.name(), None);
        if let Some((subscription, uplink)) = declared
            && old.spec.uplink != new.spec.uplink
        {
            let (name, field) = (subscription.name(), "appliance.uplink");
            return Err(Refusal::conflict(
                format!("uplink: subscription {name:?} declares it: change it there"),
                vec![Conflict::new::<Subscription>(name, field, uplink).of(new.tenant())],
            ));
        }
        Self::check_against(new, draft.state)?;
        refuse_inside(draft.state, new)
    }

    fn delete(old: &Object<Self>, _: &mut Draft<'_>) -> Result<(), Refusal> {
        Err(by_subscription(old))
    }

    fn conditions(object: &Object<Self>, observed: &mut Observed<'_>) -> Vec<Condition> {
        of_agent(object, observed)
    }
}

fn by_subscription(appliance: &Object<Appliance>) -> Refusal {
    let (tenant, name) = (appliance.tenant(), appliance.name());
    Refusal::conflict(
        format!(
            "appliance {name:?} of tenant {tenant:?}: the tenant has one on each host of its \
             subscriptions: subscribe to a hardware plan there, or end the subscriptions there"
        ),
        vec![Conflict::new::<Appliance>(name, "name", name).of(tenant)],
    )
}

/// Refuses an address on the provider's production network that an appliance, its router, a gateway
/// or a pool has, other than the named appliance (tenant, name) or gateway.
pub(super) fn refuse_taken(
    state: &State,
    address: IpAddr,
    appliance: Option<(&str, &str)>,
    gateway: Option<&str>,
) -> Result<(), Refusal> {
    let mut conflicts = Vec::new();
    for other in state.appliances.iter() {
        if appliance == Some((other.tenant(), other.name())) {
            continue;
        }
        for (field, theirs) in [
            ("uplink.address", other.spec.uplink.address()),
            ("uplink.router", other.spec.uplink.router()),
        ] {
            if theirs == Some(address) {
                let conflict = Conflict::new::<Appliance>(other.name(), field, address);
                conflicts.push(conflict.of(other.tenant()));
            }
        }
    }
    for other in state.gateways.iter() {
        if other.spec.addresses.contains(&address) && gateway != Some(other.name()) {
            conflicts.push(Conflict::new::<Gateway>(other.name(), "addresses", address));
        }
    }
    for pool in state.address_pools.iter() {
        if let Some(range) = pool
            .spec
            .ranges
            .iter()
            .find(|range| range.contains(address))
        {
            conflicts.push(Conflict::new::<AddressPool>(pool.name(), "ranges", range));
        } else if pool.spec.router == Some(address) {
            conflicts.push(Conflict::new::<AddressPool>(pool.name(), "router", address));
        }
    }
    Refusal::of_conflicts(conflicts, |first| {
        format!(
            "{address} is taken by {} {:?} ({}): use another address",
            first.kind, first.name, first.field
        )
    })
}

/// Refuses an uplink whose address or router a network of the tenant has as its gateway, or a rule
/// leads to.
pub(super) fn refuse_inside(state: &State, new: &Object<Appliance>) -> Result<(), Refusal> {
    if new.spec.uplink.address().is_none() {
        return Ok(());
    }
    let tenant = new.tenant();
    let mut view = TenantView::of(state, tenant);
    view.set_appliance(new);
    let mut networks = state.networks.of_tenant(tenant);
    networks.try_for_each(|network| view.check_gateways(network))?;
    view.check_all(&format!("appliance {:?} cannot be changed", new.name()))
}

/// Refuses an uplink whose router has the address of another object, or whose prefix has its
/// network or broadcast address in a pool. Several appliances and pools may have the same router.
pub(super) fn refuse_router(state: &State, new: &Object<Appliance>) -> Result<(), Refusal> {
    let Some(router) = new.spec.uplink.router() else {
        return Ok(());
    };
    let mut conflicts = Vec::new();
    for other in state.appliances.iter() {
        if other.spec.uplink.address() == Some(router) {
            let conflict = Conflict::new::<Appliance>(other.name(), "uplink.address", router);
            conflicts.push(conflict.of(other.tenant()));
        }
    }
    for other in state.gateways.iter() {
        if other.spec.addresses.contains(&router) {
            conflicts.push(Conflict::new::<Gateway>(other.name(), "addresses", router));
        }
    }
    let mut none = new
        .spec
        .uplink
        .prefix()
        .map_or_else(Vec::new, |p| network_and_broadcast(&p));
    none.push(router);
    for pool in state.address_pools.iter() {
        let ranges = pool.spec.ranges.iter();
        for range in ranges.filter(|range| none.iter().any(|address| range.contains(*address))) {
            conflicts.push(Conflict::new::<AddressPool>(pool.name(), "ranges", range));
        }
    }
    Refusal::of_conflicts(conflicts, |first| {
        format!(
            "appliance {:?}: {} {:?} has the address of the router {router}, or the network or \
             broadcast address of the uplink, in {}: write the uplink's own router and prefix \
             length, or remove the address there first",
            new.name(),
            first.kind,
            first.name,
            first.field
        )
    })
}
