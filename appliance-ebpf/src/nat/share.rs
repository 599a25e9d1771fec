//! Shares: what one tenant has of the tables that all share, and no more, so that nobody's flood is another's.

use crate::maps::{SHARES, TALLIES};

/// Whether the tenant of `zone` may have one connection more.
#[inline(never)]
pub fn has_connection(zone: u32) -> bool {
    let slot = zone.wrapping_sub(1);
    match (SHARES.get(slot), TALLIES.get(slot)) {
        (Some(share), Some(tally)) => {
            share.connections == 0 || tally.connections < share.connections.into()
        }
        _ => false,
    }
}

/// Whether it may have one endpoint more that is seen outside.
#[inline(never)]
pub fn has_endpoint(zone: u32) -> bool {
    let slot = zone.wrapping_sub(1);
    match (SHARES.get(slot), TALLIES.get(slot)) {
        (Some(share), Some(tally)) => share.mappings == 0 || tally.mappings < share.mappings.into(),
        _ => false,
    }
}

/// It has one connection more.
#[inline(always)]
pub fn took_connection(zone: u32) {
    if let Some(tally) = TALLIES.get_ptr_mut(zone.wrapping_sub(1)) {
        // SAFETY: array values are always there. Two CPUs that add at once may lose one of two: user space counts anew.
        unsafe { (*tally).connections += 1 };
    }
}

/// It has one endpoint more.
#[inline(always)]
pub fn took_endpoint(zone: u32) {
    if let Some(tally) = TALLIES.get_ptr_mut(zone.wrapping_sub(1)) {
        // SAFETY: as above.
        unsafe { (*tally).mappings += 1 };
    }
}
