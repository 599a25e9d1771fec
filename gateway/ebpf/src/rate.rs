//! What a tenant may send: buckets that all processors and the threads of user space draw from.
//!
//! One number each, changed by compare and exchange. Rust has none for BPF (its target says so of processors older than v3); the
//! instruction is there since Linux 5.12 and is written out.

use gateway_common::maps::{Bucket, NO_BUCKET};

use crate::maps::BUCKETS;

/// The tokens were there.
pub const TAKEN: u32 = 0;
/// There are none.
pub const EMPTY: u32 = 1;
/// Others were faster each time.
pub const BUSY: u32 = 2;

/// How often it is tried.
const TRIES: usize = 8;

/// Takes tokens out of the bucket at `place`, all or none; there are always some where there is no bucket.
#[inline(never)]
pub fn take(place: u32, now: u64, tokens: u64) -> u32 {
    if place == NO_BUCKET {
        return TAKEN;
    }
    let Some(bucket) = BUCKETS.get_ptr_mut(place) else {
        return BUSY;
    };
    // SAFETY: the helper returned a whole bucket. Its numbers are stored eight bytes at once.
    let (rate, depth, full_at) = unsafe {
        let Bucket { rate, depth, .. } = &*bucket;
        (
            core::ptr::read_volatile(rate),
            core::ptr::read_volatile(depth),
            &raw mut (*bucket).full_at,
        )
    };
    for _ in 0..TRIES {
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
    BUSY
}

/// Stores `new` where `expected` is; what was there.
///
/// # Safety
/// `at` is eight bytes of a map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn compare_exchange(at: *mut u64, expected: u64, new: u64) -> u64 {
    let seen: u64;
    // SAFETY: the caller's; the verifier checks it.
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
unsafe fn compare_exchange(at: *mut u64, expected: u64, new: u64) -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    // SAFETY: the caller's.
    let at = unsafe { AtomicU64::from_ptr(at) };
    at.compare_exchange(expected, new, Relaxed, Relaxed)
        .unwrap_or_else(|seen| seen)
}
