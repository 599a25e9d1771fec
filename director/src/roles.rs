//! Which role may do what: one typed table.

pub use control::{ROLES, Role};

/// Groups of things that have the same rows in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Things {
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
pub enum Reach {
    All,
    /// Those of the user's own tenant.
    Own,
    /// The object that the machine is.
    Itself,
    None,
}

/// The table.
#[must_use]
pub const fn reach(role: Role, things: Things, verb: Verb) -> Reach {
    use Reach::{All, Itself, None, Own};
    match (things, verb) {
        (Things::Infrastructure, Verb::Read) => match role {
            Role::ProviderAdmin | Role::ProviderOperator | Role::ProviderAuditor => All,
            Role::Gateway => Itself,
            Role::TenantAdmin | Role::TenantOperator | Role::Appliance => None,
        },
        (Things::Infrastructure | Things::Tenants, Verb::Write) => match role {
            Role::ProviderAdmin => All,
            Role::ProviderOperator
            | Role::ProviderAuditor
            | Role::TenantAdmin
            | Role::TenantOperator
            | Role::Gateway
            | Role::Appliance => None,
        },
        (Things::Tenants | Things::Allocations | Things::Networking, Verb::Read) => match role {
            Role::ProviderAdmin | Role::ProviderOperator | Role::ProviderAuditor => All,
            Role::TenantAdmin | Role::TenantOperator | Role::Appliance => Own,
            Role::Gateway => None,
        },
        (Things::Allocations, Verb::Write) => match role {
            Role::ProviderAdmin | Role::ProviderOperator => All,
            Role::ProviderAuditor
            | Role::TenantAdmin
            | Role::TenantOperator
            | Role::Gateway
            | Role::Appliance => None,
        },
        (Things::Networking, Verb::Write) => match role {
            Role::ProviderAdmin | Role::ProviderOperator => All,
            Role::TenantAdmin => Own,
            Role::ProviderAuditor | Role::TenantOperator | Role::Gateway | Role::Appliance => None,
        },
        (Things::People | Things::Audit, Verb::Read) => match role {
            Role::ProviderAdmin | Role::ProviderAuditor => All,
            Role::TenantAdmin => Own,
            Role::ProviderOperator | Role::TenantOperator | Role::Gateway | Role::Appliance => None,
        },
        (Things::People, Verb::Write) => match role {
            Role::ProviderAdmin => All,
            Role::TenantAdmin => Own,
            Role::ProviderOperator
            | Role::ProviderAuditor
            | Role::TenantOperator
            | Role::Gateway
            | Role::Appliance => None,
        },
        (Things::Audit, Verb::Write) => None,
    }
}
