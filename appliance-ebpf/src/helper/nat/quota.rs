//! Quotas: the part of the shared tables that is a tenant's own, so that a flood of one tenant does
//! not affect others. Tenants may exceed their quotas while others use less than theirs.

use appliance_common::{
    maps::Budget,
    nat::{ALL_TENANTS, Nat},
};

use crate::{
    helper::budget,
    maps::{QUOTAS, USAGE},
};

/// Whether the tenant of `zone` may have another connection: within its quota, or over it
/// while all tenants together have fewer than the limit.
#[inline(never)]
pub fn permits_connection(nat: &Nat, zone: u32) -> bool {
    let slot = zone.wrapping_sub(1);
    let (Some(quota), Some(usage)) = (QUOTAS.get(slot), USAGE.get(slot)) else {
        return false;
    };
    quota.connections == 0
        || usage.connections < quota.connections.into()
        || USAGE
            .get(ALL_TENANTS)
            .is_some_and(|all| all.connections < nat.over_quota_connections.into())
}

/// Whether the tenant of `zone` may have another mapping: within its quota, or over it
/// while all tenants together have fewer than the limit.
#[inline(always)]
pub fn permits_mapping(nat: &Nat, zone: u32) -> bool {
    let slot = zone.wrapping_sub(1);
    let (Some(quota), Some(usage)) = (QUOTAS.get(slot), USAGE.get(slot)) else {
        return false;
    };
    quota.mappings == 0
        || usage.mappings < quota.mappings.into()
        || USAGE
            .get(ALL_TENANTS)
            .is_some_and(|all| all.mappings < nat.over_quota_mappings.into())
}

/// Counts a new connection of the tenant.
#[inline(always)]
pub fn add_connection(zone: u32) {
    for slot in [zone.wrapping_sub(1), ALL_TENANTS] {
        if let Some(usage) = USAGE.get_ptr_mut(slot) {
            // SAFETY: array values are never unmapped. Two CPUs that add at once may lose one; user
            // space recounts.
            unsafe { (*usage).connections += 1 };
        }
    }
}

/// Counts a new mapping of the tenant.
#[inline(always)]
pub fn add_mapping(zone: u32) {
    for slot in [zone.wrapping_sub(1), ALL_TENANTS] {
        if let Some(usage) = USAGE.get_ptr_mut(slot) {
            // SAFETY: as above.
            unsafe { (*usage).mappings += 1 };
        }
    }
}

/// Takes a token for a connection that the tenant of `zone` opens, or that is opened from outside
/// to its machines. Returns whether there was one.
#[inline(never)]
pub fn take_opening(zone: u32, from_outside: bool) -> bool {
    if from_outside {
        budget::take(Budget::OutsideOpening, zone)
    } else {
        budget::take(Budget::Opening, zone)
    }
}

/// Gives the token of a connection back that both ends agreed to, and that was in `OPENING`. For
/// one beyond the budget none was taken: given back as well, a tenant whose connections are
/// answered would fill `OPENING`.
#[inline(never)]
pub fn give_opening(zone: u32, from_outside: bool) {
    if from_outside {
        budget::give(Budget::OutsideOpening, zone);
    } else {
        budget::give(Budget::Opening, zone);
    }
}
