//! Usage of the provider's pools and plans by tenants, for people who plan for more.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    AddressPool, HardwarePlan, State, Tenant, VlanPool,
    kinds::{objects_of, public_address_limit},
};

/// VLANs or addresses of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Amount {
    /// Those of the pool; `null` for 2^64 or more, as of a prefix of IPv6 of 64 bits or less.
    pub total: Option<u64>,
    /// Those that tenants have.
    pub used: u64,
    /// Those that are left; `null` where `total` is.
    pub free: Option<u64>,
}

impl Amount {
    fn new(total: Option<u64>, used: u64) -> Self {
        Self {
            total,
            used,
            free: total.map(|total| total.saturating_sub(used)),
        }
    }
}

/// A tenant's part of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// Name of the tenant that uses the part.
    pub tenant: String,
    /// The VLANs or addresses that the tenant has.
    pub used: u64,
}

/// The use of a VLAN pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VlanPoolUsage {
    /// VLANs for networks with internet access.
    pub with_internet: Amount,
    /// VLANs for networks without internet access.
    pub without_internet: Amount,
    /// Tenants that have VLANs of the pool, by name.
    pub tenants: Vec<Part>,
}

/// The use of a pool of public addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddressPoolUsage {
    /// Public addresses that tenants may have.
    pub addresses: Amount,
    /// Tenants that have addresses of the pool, by name.
    pub tenants: Vec<Part>,
}

/// A subscription to a hardware plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Subscriber {
    /// Name of the tenant that subscribes.
    pub tenant: String,
    /// Name of the tenant's subscription.
    pub subscription: String,
    /// Number of networks that the tenant has by it.
    pub networks: u64,
}

/// The tenants that are subscribed to a hardware plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HardwarePlanTenants {
    /// The subscriptions, by tenant.
    pub items: Vec<Subscriber>,
}

/// Number of a tenant's objects or addresses, and their limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Allowance {
    /// Number that the tenant has.
    pub used: u64,
    /// Most that it may have; `null` for no limit.
    pub limit: Option<u64>,
}

/// Objects, addresses and networks of a tenant, and its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantUsage {
    /// Mappings, policies, rules and plans together: the objects that the tenant itself makes.
    pub objects: Allowance,
    /// Public addresses that pools have given it.
    pub public_addresses: Allowance,
    /// Networks, which its subscriptions limit.
    pub networks: u64,
}

/// The usage of a tenant; `None` if it does not exist.
#[must_use]
pub fn tenant_usage(state: &State, name: &str) -> Option<TenantUsage> {
    let tenant = state.get::<Tenant>(None, name)?;
    Some(TenantUsage {
        objects: Allowance {
            used: objects_of(state, name) as u64,
            limit: Some(tenant.spec.limits.objects().into()),
        },
        public_addresses: Allowance {
            used: state.addresses.of_tenant(name).count() as u64,
            limit: public_address_limit(state, tenant).map(|(limit, _)| limit.into()),
        },
        networks: state.networks.of_tenant(name).count() as u64,
    })
}

fn parts<'s>(tenants: impl Iterator<Item = &'s str>) -> Vec<Part> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for tenant in tenants {
        *counts.entry(tenant).or_default() += 1;
    }
    let parts = counts.into_iter().map(|(tenant, used)| Part {
        tenant: tenant.to_owned(),
        used,
    });
    parts.collect()
}

/// The use of a VLAN pool; `None` if it does not exist.
#[must_use]
pub fn vlan_pool_usage(state: &State, name: &str) -> Option<VlanPoolUsage> {
    let pool = &state.get::<VlanPool>(None, name)?.spec;
    let networks = || {
        let networks = state.networks.iter();
        networks.filter(|network| network.status.pool == name)
    };
    let amount = |internet: bool| {
        let used = networks().filter(|network| network.status.internet == internet);
        let total = pool.vlans(internet).count() as u64;
        Amount::new(Some(total), used.count() as u64)
    };
    Some(VlanPoolUsage {
        with_internet: amount(true),
        without_internet: amount(false),
        tenants: parts(networks().map(|network| network.tenant())),
    })
}

/// The use of a pool of public addresses; `None` if it does not exist.
#[must_use]
pub fn address_pool_usage(state: &State, name: &str) -> Option<AddressPoolUsage> {
    let pool = &state.get::<AddressPool>(None, name)?.spec;
    let counts = pool.ranges.iter();
    let mut counts = counts.map(|range| count(range.first(), range.last()));
    let total = counts.try_fold(0_u64, |total, count| total.checked_add(count?));
    let addresses = state.addresses.iter();
    let tenants = parts(
        addresses
            .filter(|address| address.spec.pool == name)
            .map(|address| address.tenant()),
    );
    let used = tenants.iter().map(|part| part.used).sum();
    Some(AddressPoolUsage {
        addresses: Amount::new(total, used),
        tenants,
    })
}

/// Number of addresses from a first to a last of the same family; `None` for 2^64 or more.
fn count(first: IpAddr, last: IpAddr) -> Option<u64> {
    let number = |address| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let between = u64::try_from(number(last).saturating_sub(number(first)));
    between.ok()?.checked_add(1)
}

/// The subscriptions to a hardware plan; `None` if it does not exist.
#[must_use]
pub fn hardware_plan_tenants(state: &State, name: &str) -> Option<HardwarePlanTenants> {
    state.get::<HardwarePlan>(None, name)?;
    let subscriptions = state.subscriptions.iter();
    let items = subscriptions
        .filter(|subscription| subscription.spec.hardware_plan == name)
        .map(|subscription| Subscriber {
            tenant: subscription.tenant().to_owned(),
            subscription: subscription.name().to_owned(),
            networks: subscription.status.networks.len() as u64,
        });
    Some(HardwarePlanTenants {
        items: items.collect(),
    })
}
