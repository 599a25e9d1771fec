//! Counters: an add to this CPU's slot, without a lock.

use appliance_common::counters::Counter;

use crate::{
    helper::trace,
    maps::{COUNTERS, NETWORK_STATS},
};

/// Adds one to `counter`.
#[inline(always)]
pub fn count(counter: Counter) {
    trace::counted(counter);
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the helper returned this CPU's slot. XDP is not preempted by another XDP program
        // on the same CPU, so there is no other writer now.
        unsafe { *value += 1 }
    }
}

/// Counts a packet of `bytes` that entered the tunnel of the network in `slot`.
#[inline(always)]
pub fn sent(slot: u32, bytes: u64) {
    if let Some(stats) = NETWORK_STATS.get_ptr_mut(slot) {
        // SAFETY: as in `count`.
        unsafe {
            (*stats).tx_packets += 1;
            (*stats).tx_bytes += bytes;
        }
    }
}

/// Counts a packet of `bytes` that left the tunnel of the network in `slot`.
#[inline(always)]
pub fn received(slot: u32, bytes: u64) {
    if let Some(stats) = NETWORK_STATS.get_ptr_mut(slot) {
        // SAFETY: as in `count`.
        unsafe {
            (*stats).rx_packets += 1;
            (*stats).rx_bytes += bytes;
        }
    }
}
