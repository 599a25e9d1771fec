//! Which role may do what: one typed table.

pub use control::{ROLES, Role};

/// Groups of objects that have the same rows in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectGroup {
    /// Hosts, pools, hardware plans and gateways.
    Infrastructure,
    Tenants,
    /// A tenant's subscriptions, addresses and appliances.
    Allocations,
    /// A tenant's networks, mappings, policies, rules and plans.
    Networking,
    /// Users, and the tokens of other users.
    People,
    Audit,
}

/// Kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Get, list and watch.
    Read,
    /// Create, replace and remove.
    Write,
}

/// The objects that a role may access in this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessScope {
    All,
    /// Those of the user's own tenant.
    Own,
    /// The object that the machine is.
    Itself,
    None,
}

/// The table.
#[must_use]
pub const fn access_scope(role: Role, group: ObjectGroup, verb: Verb) -> AccessScope {
    use AccessScope::{All, Itself, None, Own};
    match (group, verb) {
        (ObjectGroup::Infrastructure, Verb::Read) => match role {
            Role::ProviderAdmin | Role::ProviderOperator | Role::ProviderAuditor => All,
            Role::Gateway => Itself,
            Role::TenantAdmin | Role::TenantOperator | Role::Appliance => None,
        },
        (ObjectGroup::Infrastructure | ObjectGroup::Tenants, Verb::Write) => match role {
            Role::ProviderAdmin => All,
            Role::ProviderOperator
            | Role::ProviderAuditor
            | Role::TenantAdmin
            | Role::TenantOperator
            | Role::Gateway
            | Role::Appliance => None,
        },
        (ObjectGroup::Tenants | ObjectGroup::Allocations | ObjectGroup::Networking, Verb::Read) => {
            match role {
                Role::ProviderAdmin | Role::ProviderOperator | Role::ProviderAuditor => All,
                Role::TenantAdmin | Role::TenantOperator | Role::Appliance => Own,
                Role::Gateway => None,
            }
        }
        (ObjectGroup::Allocations, Verb::Write) => match role {
            Role::ProviderAdmin | Role::ProviderOperator => All,
            Role::ProviderAuditor
            | Role::TenantAdmin
            | Role::TenantOperator
            | Role::Gateway
            | Role::Appliance => None,
        },
        (ObjectGroup::Networking, Verb::Write) => match role {
            Role::ProviderAdmin | Role::ProviderOperator => All,
            Role::TenantAdmin => Own,
            Role::ProviderAuditor | Role::TenantOperator | Role::Gateway | Role::Appliance => None,
        },
        (ObjectGroup::People | ObjectGroup::Audit, Verb::Read) => match role {
            Role::ProviderAdmin | Role::ProviderAuditor => All,
            Role::TenantAdmin => Own,
            Role::ProviderOperator | Role::TenantOperator | Role::Gateway | Role::Appliance => None,
        },
        (ObjectGroup::People, Verb::Write) => match role {
            Role::ProviderAdmin => All,
            Role::TenantAdmin => Own,
            Role::ProviderOperator
            | Role::ProviderAuditor
            | Role::TenantOperator
            | Role::Gateway
            | Role::Appliance => None,
        },
        (ObjectGroup::Audit, Verb::Write) => None,
    }
}
