//! Quotas: the part of the shared tables that one tenant may use, so that a flood of one tenant
//! does not affect others.

use crate::maps::{SHARES, TALLIES};

/// Whether the quota of the tenant of `zone` permits another connection.
#[inline(never)]
pub fn permits_connection(zone: u32) -> bool {
    let slot = zone.wrapping_sub(1);
    match (SHARES.get(slot), TALLIES.get(slot)) {
        (Some(quota), Some(usage)) => {
            quota.connections == 0 || usage.connections < quota.connections.into()
        }
        _ => false,
    }
}

/// Whether the quota of the tenant of `zone` permits another mapping.
#[inline(never)]
pub fn permits_mapping(zone: u32) -> bool {
    let slot = zone.wrapping_sub(1);
    match (SHARES.get(slot), TALLIES.get(slot)) {
        (Some(quota), Some(usage)) => quota.mappings == 0 || usage.mappings < quota.mappings.into(),
        _ => false,
    }
}

/// Counts a new connection of the tenant.
#[inline(always)]
pub fn add_connection(zone: u32) {
    if let Some(usage) = TALLIES.get_ptr_mut(zone.wrapping_sub(1)) {
        // SAFETY: array values are never unmapped. Two CPUs that add at once may lose one; user
        // space recounts.
        unsafe { (*usage).connections += 1 };
    }
}

/// Counts a new mapping of the tenant.
#[inline(always)]
pub fn add_mapping(zone: u32) {
    if let Some(usage) = TALLIES.get_ptr_mut(zone.wrapping_sub(1)) {
        // SAFETY: as above.
        unsafe { (*usage).mappings += 1 };
    }
}
