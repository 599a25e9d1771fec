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
}

/// All roles.
pub const ROLES: [Role; 5] = [
    Role::ProviderAdmin,
    Role::ProviderOperator,
    Role::ProviderAuditor,
    Role::TenantAdmin,
    Role::TenantOperator,
];

impl Role {
    /// Whether the role belongs to a tenant.
    #[must_use]
    pub const fn is_of_tenant(self) -> bool {
        matches!(self, Self::TenantAdmin | Self::TenantOperator)
    }
}
