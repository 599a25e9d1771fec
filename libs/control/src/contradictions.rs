//! Objects that no change would have made: those of a store that was edited by other programs.
//!
//! A change checks the object that it writes, by itself and with the others. A store, a backup or
//! an export comes from elsewhere, and all of it is checked before it is used.

use crate::{
    Address, AddressPool, Appliance, Gateway, GatewayPool, HardwarePlan, Host, Kind, Mapping,
    Network, Plan, Policy, Refusal, Rule, Scope, State, Subscription, Tenant, VlanPool,
    change::check, state::for_all_kinds, tenant_view::TenantView,
};

impl State {
    /// The refusals of all objects that break the rules by which changes are checked, each with
    /// the object's kind, name and tenant in its text. Objects of the same tenant that are wrong by
    /// themselves hide contradictions between its rules and plans.
    #[must_use]
    pub fn object_errors(&self) -> Vec<Refusal> {
        let mut found = Vec::new();
        macro_rules! kinds {
            ($($kind:ty),*) => { $(errors_of::<$kind>(self, &mut found);)* };
        }
        for_all_kinds!(kinds);
        for tenant in self.tenants.iter() {
            let name = tenant.name();
            let of_tenant = |refusal: &Refusal| {
                let mut conflicts = refusal.conflicts.iter();
                conflicts.any(|conflict| conflict.tenant.as_deref() == Some(name))
            };
            if !found.iter().any(of_tenant) {
                let view = TenantView::of(self, name);
                let mut networks = self.networks.of_tenant(name);
                let gateways = networks.try_for_each(|network| view.check_gateways(network));
                let all = || view.check_all("it would be refused today");
                if let Err(refusal) = gateways.and_then(|()| all()) {
                    found.push(Refusal {
                        detail: format!("tenant {name:?}: {}", refusal.detail),
                        ..refusal
                    });
                }
            }
        }
        found
    }
}

/// The refusals of the objects of a kind.
fn errors_of<K: Kind>(state: &State, found: &mut Vec<Refusal>) {
    for object in K::table(state).iter() {
        let (tenant, name) = (object.metadata.tenant.as_deref(), object.name());
        let owner = object.metadata.owner.as_deref();
        let mut checked = check(tenant, name, owner, &object.spec);
        if let (Scope::Tenant, Some(tenant)) = (K::SCOPE, tenant)
            && state.tenants.get("", tenant).is_none()
        {
            checked = Err(Refusal::not_found::<Tenant>(None, tenant));
        }
        let checked = checked.and_then(|()| K::check_against(object, state));
        if let Err(refusal) = checked {
            let of = tenant.map_or_else(String::new, |tenant| format!(" of tenant {tenant:?}"));
            found.push(Refusal {
                detail: format!("{} {name:?}{of}: {}", K::KIND, refusal.detail),
                ..refusal
            });
        }
    }
}
