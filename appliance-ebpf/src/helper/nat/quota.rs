//! Quotas: the part of the shared tables that is a tenant's own, so that a flood of one tenant does
//! not affect others. Tenants may exceed their quotas while others use less than theirs.

use appliance_common::nat::{ALL_TENANTS, Nat};

use crate::maps::{QUOTAS, USAGE};

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
