//! Kinds of objects that the API serves, each with its row in the table of roles.

use control::{
    Address, AddressPool, Appliance, Gateway, GatewayPool, HardwarePlan, Host, Kind, Mapping,
    Network, Plan, Policy, Rule, Scope, Subscription, Tenant, VlanPool,
};
use utoipa::ToSchema;

use crate::roles::ObjectGroup;

/// A kind of the API.
pub(super) trait Served: Kind<Status: ToSchema> + ToSchema {
    /// Its row in the table of roles.
    const GROUP: ObjectGroup;
    /// With its article, for summaries: `a VLAN pool`.
    const ONE: &'static str;
}

/// Work on each kind that is served.
pub(super) trait Visitor {
    /// Works on one kind.
    fn kind<K: Served>(&mut self);
}

macro_rules! served {
    ($($type:ident: $group:ident, $one:literal;)*) => {
        $(impl Served for $type {
            const GROUP: ObjectGroup = ObjectGroup::$group;
            const ONE: &'static str = $one;
        })*

        /// Shows all kinds to a visitor.
        pub(super) fn visit(visitor: &mut impl Visitor) {
            $(visitor.kind::<$type>();)*
        }

        /// The row of a kind in the table of roles, and its name space.
        pub(super) fn group_of(kind: &str) -> Option<(ObjectGroup, Scope)> {
            match kind {
                $(<$type as Kind>::KIND => Some((ObjectGroup::$group, <$type as Kind>::SCOPE)),)*
                _ => None,
            }
        }
    };
}

served! {
    Host: Infrastructure, "a virtualization host";
    VlanPool: Infrastructure, "a VLAN pool";
    AddressPool: Infrastructure, "a pool of public addresses";
    HardwarePlan: Infrastructure, "a hardware plan";
    Gateway: Infrastructure, "a cloud gateway";
    GatewayPool: Infrastructure, "a pool of gateways";
    Tenant: Tenants, "a tenant";
    Subscription: Allocations, "a subscription to a hardware plan";
    Appliance: Allocations, "an appliance";
    Address: Allocations, "a public address";
    Network: Networking, "a network";
    Mapping: Networking, "a network mapping";
    Policy: Networking, "a routing policy";
    Rule: Networking, "a public IP rule";
    Plan: Networking, "a failover plan";
}

#[cfg(test)]
mod tests {
    use control::ReasonFor;

    use super::*;

    #[test]
    fn a_tenants_own_objects_are_those_that_it_may_change() {
        for info in control::KINDS {
            let (group, _) = group_of(info.kind).expect("a row");
            let reason = control::reason_for(info.kind, false, true);
            let is_own = reason == Some(ReasonFor::TenantsOwn);
            assert_eq!(is_own, group == ObjectGroup::Networking, "{}", info.kind);
        }
    }
}
