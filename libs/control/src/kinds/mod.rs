//! The kinds of objects, each with its validation and its rules.

mod address;
mod address_pool;
mod agent;
mod appliance;
mod gateway;
mod gateway_pool;
mod hardware_plan;
mod host;
mod mapping;
mod network;
mod plan;
mod policy;
mod rule;
mod subscription;
mod tenant;
mod uplink;
mod vlan_pool;

pub use address::{Address, AddressStatus};
pub use address_pool::AddressPool;
pub use appliance::{Appliance, ApplianceStatus};
pub use gateway::{Gateway, gateways_of};
pub use gateway_pool::GatewayPool;
pub use hardware_plan::HardwarePlan;
pub use host::{Host, Platform, Switch};
pub use mapping::Mapping;
pub use network::{Network, NetworkStatus};
pub use plan::{HealthCheck, Hooks, Plan, PlanNetwork, PlanVm};
pub use policy::Policy;
pub use rule::Rule;
pub use subscription::{
    AllocatedNetwork, Allocation, SubscribedAppliance, Subscription, SubscriptionStatus,
};
pub use tenant::{Limits, Mode, Tenant, TenantStatus};
pub use uplink::Uplink;
pub use vlan_pool::VlanPool;

pub(crate) use gateway::Gateways;
pub(crate) use network::uses as uses_of_network;
pub(crate) use subscription::public_address_limit;
pub(crate) use tenant::{objects_of, within_quota};

const fn yes() -> bool {
    true
}

/// The parts of [`Kind`](crate::Kind) that are the same for all kinds.
macro_rules! kind {
    ($type:ident, $kind:literal, $plural:literal, $scope:ident, $table:ident, $status:ty) => {
        impl crate::Kind for $type {
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;
            const SCOPE: crate::Scope = crate::Scope::$scope;
            type Status = $status;

            fn table(state: &crate::State) -> &crate::Table<Self> {
                &state.$table
            }

            fn table_mut(state: &mut crate::State) -> &mut crate::Table<Self> {
                &mut state.$table
            }
        }
    };
}
use kind;
