//! Roles of users and of machines.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Role of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// May do everything at the provider.
    ProviderAdmin,
    /// Serves tenants: subscriptions, addresses and the tenants' own objects.
    ProviderOperator,
    /// Reads everything.
    ProviderAuditor,
    /// Changes the objects of one tenant, and its users.
    TenantAdmin,
    /// Reads the objects of one tenant.
    TenantOperator,
    /// A cloud gateway, as a program: reads its own object.
    Gateway,
    /// An appliance of a tenant, as a program: reads the tenant's objects, which it works by.
    Appliance,
}

/// All roles.
pub const ROLES: [Role; 7] = [
    Role::ProviderAdmin,
    Role::ProviderOperator,
    Role::ProviderAuditor,
    Role::TenantAdmin,
    Role::TenantOperator,
    Role::Gateway,
    Role::Appliance,
];

impl Role {
    /// Whether the role belongs to a tenant.
    #[must_use]
    pub const fn is_of_tenant(self) -> bool {
        matches!(
            self,
            Self::TenantAdmin | Self::TenantOperator | Self::Appliance
        )
    }

    /// The kind of the object that a machine with this role is; `None` for people.
    #[must_use]
    pub const fn machine(self) -> Option<&'static str> {
        match self {
            Self::Gateway => Some("gateway"),
            Self::Appliance => Some("appliance"),
            Self::ProviderAdmin
            | Self::ProviderOperator
            | Self::ProviderAuditor
            | Self::TenantAdmin
            | Self::TenantOperator => None,
        }
    }
}
