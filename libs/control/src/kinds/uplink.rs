//! The address of an appliance on the provider's production network, and its rules: no two objects
//! have one address there.

use std::{fmt, net::IpAddr};

use failover::IpPrefix;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AddressPool, Appliance, Gateway};
use crate::{
    Conflict, Object, Refusal, State,
    addressing::{host_problem, network_and_broadcast},
    refusal::Problems,
    schema::AddressText,
    tenant_view::TenantView,
};

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
