//! Refusals of what an actor may not do, or not know of.

use control::{Kind, Refusal, Tenant};

use crate::{
    people::Actor,
    problem::Problem,
    roles::{AccessScope, ObjectGroup, Verb, access_scope},
};

/// Refuses what the actor may not do. Objects of other tenants are answered as if they, and the
/// tenant, did not exist.
pub(super) fn authorize(
    actor: &Actor,
    group: ObjectGroup,
    verb: Verb,
    tenant: Option<&str>,
) -> Result<(), Problem> {
    let own = actor.tenant.as_deref();
    match (access_scope(actor.role, group, verb), tenant) {
        (AccessScope::All, _) => Ok(()),
        (AccessScope::Own, Some(tenant)) if Some(tenant) == own => Ok(()),
        (AccessScope::Own, None) => Ok(()),
        (AccessScope::Own | AccessScope::Itself | AccessScope::None, Some(tenant))
            if own.is_some() && own != Some(tenant) =>
        {
            Err(no_tenant(tenant))
        }
        (AccessScope::Own | AccessScope::Itself | AccessScope::None, _) => {
            Err(Problem::forbidden(&role(actor)))
        }
    }
}

pub(super) fn role(actor: &Actor) -> String {
    let role = serde_json::to_value(actor.role).unwrap_or_default();
    role.as_str().unwrap_or_default().to_owned()
}

/// As the crate `control` refuses a tenant that does not exist.
pub(super) fn no_tenant(tenant: &str) -> Problem {
    Refusal::not_found::<Tenant>(None, tenant).into()
}

/// As the crate `control` refuses an object that does not exist.
pub(super) fn absent<K: Kind>(tenant: Option<&str>, name: &str) -> Problem {
    Refusal::not_found::<K>(tenant, name).into()
}
