//! Rate limits of tenants: token buckets that all CPUs and the threads of user space share.
//!
//! The state of a bucket is one number, changed by compare and exchange. Rust offers no atomic for
//! BPF, as its target assumes CPUs older than v3. The instruction exists since Linux 5.12 and is
//! written in assembly here.

use gateway_common::maps::Bucket;

use crate::maps::BUCKETS;

/// The bucket had the tokens.
pub const TAKEN: u32 = 0;
/// The bucket does not have the tokens.
pub const EMPTY: u32 = 1;
/// Every attempt lost a race with another CPU or thread.
pub const CONTENDED: u32 = 2;

/// Attempts of one call.
const MAX_ATTEMPTS: usize = 8;

/// Takes tokens from the bucket in a slot, all or none. A rate of 0 is no limit.
#[inline(never)]
pub fn take(slot: u32, now: u64, tokens: u64) -> u32 {
    let Some(bucket) = BUCKETS.get_ptr_mut(slot) else {
        return CONTENDED;
    };
    // SAFETY: the helper returned a whole bucket. Its numbers are stored eight bytes at a time.
    let (rate, depth, full_at) = unsafe {
        let Bucket { rate, depth, .. } = &*bucket;
        (
            core::ptr::read_volatile(rate),
            core::ptr::read_volatile(depth),
            &raw mut (*bucket).full_at,
        )
    };
    if rate == 0 {
        return TAKEN;
    }
    for _ in 0..MAX_ATTEMPTS {
        // SAFETY: as above.
        let seen = unsafe { core::ptr::read_volatile(full_at) };
        let Some(next) = Bucket::after(rate, depth, seen, now, tokens) else {
            return EMPTY;
        };
        // SAFETY: as above.
        if unsafe { compare_exchange(full_at, seen, next) } == seen {
            return TAKEN;
        }
    }
    CONTENDED
}

/// Gives tokens back that were taken from the bucket in a slot, for a datagram that user space pays
/// for again. Under contention they stay taken.
#[inline(never)]
pub fn refund(slot: u32, tokens: u64) {
    let Some(bucket) = BUCKETS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: as in `take`.
    let (rate, full_at) = unsafe {
        let Bucket { rate, .. } = &*bucket;
        (core::ptr::read_volatile(rate), &raw mut (*bucket).full_at)
    };
    if rate == 0 {
        return;
    }
    let cost = tokens * 1_000_000_000 / rate;
    for _ in 0..MAX_ATTEMPTS {
        // SAFETY: as in `take`.
        let seen = unsafe { core::ptr::read_volatile(full_at) };
        // SAFETY: as in `take`.
        if unsafe { compare_exchange(full_at, seen, seen.wrapping_sub(cost)) } == seen {
            return;
        }
    }
}

/// Stores `new` at `at` if that holds `expected`. Returns what it held.
///
/// # Safety
/// `at` must be eight aligned bytes of a map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn compare_exchange(at: *mut u64, expected: u64, new: u64) -> u64 {
    let seen: u64;
    // SAFETY: the caller guarantees it; the verifier checks it.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at, new = in(reg) new, inout("r0") expected => seen,
            options(nostack),
        );
    }
    seen
}

/// # Safety
/// As for BPF.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn compare_exchange(at: *mut u64, expected: u64, new: u64) -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    // SAFETY: the caller guarantees it.
    let at = unsafe { AtomicU64::from_ptr(at) };
    at.compare_exchange(expected, new, Relaxed, Relaxed)
        .unwrap_or_else(|seen| seen)
}
