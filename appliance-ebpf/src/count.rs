//! Counters: a per-CPU add, no lock.

use appliance_common::counters::Counter;

use crate::{
    maps::{COUNTERS, NETWORK_STATS},
    trace,
};

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    trace::note(counter);
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the helper returned this CPU's slot; XDP is not preempted by another XDP program
        // on the same CPU, so nobody else writes it now.
        unsafe { *value += 1 }
    }
}

/// A packet of `bytes` went into the tunnel of the network in `slot`.
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

/// A packet of `bytes` came out of the tunnel of the network in `slot`.
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
