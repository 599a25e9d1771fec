//! Budgets of tenants: what their packets may cause at a bounded rate.
//!
//! For: one look at a token bucket. Never: a decision about the packet.

use appliance_common::maps::{Budget, CLAIMS_PER_NETWORK};
use aya_ebpf::helpers::bpf_ktime_get_ns;

use crate::maps::{BUDGETS, CLAIM_BUDGETS};

/// Takes a token of the budget of `owner`: a tenant's slot plus one, or zero for packets of no
/// single tenant. Returns whether there was one.
#[inline(always)]
pub fn take(budget: Budget, owner: u32) -> bool {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let (per_second, burst) = budget.rate();
    match BUDGETS.get_ptr_mut(budget.index(owner)) {
        // SAFETY: array values are never unmapped. When two CPUs race, one more token is taken.
        Some(bucket) => unsafe { (*bucket).take(now, per_second, burst) },
        None => false,
    }
}

/// Gives a token of the budget of `owner` back.
#[inline(always)]
pub fn give(budget: Budget, owner: u32) {
    let (per_second, _) = budget.rate();
    if let Some(bucket) = BUDGETS.get_ptr_mut(budget.index(owner)) {
        // SAFETY: as in `take`. When two CPUs race, one token less is given.
        unsafe { (*bucket).give(per_second) };
    }
}

/// Takes a token for the report of a host with an address of the appliance, on the network of a
/// slot: that of `NETWORKS` plus one, or zero for the uplink. Returns whether there was one.
#[inline(always)]
pub fn take_claim(slot: u32) -> bool {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let (per_second, burst) = CLAIMS_PER_NETWORK;
    match CLAIM_BUDGETS.get_ptr_mut(slot) {
        // SAFETY: as in `take`.
        Some(bucket) => unsafe { (*bucket).take(now, per_second, burst) },
        None => false,
    }
}
