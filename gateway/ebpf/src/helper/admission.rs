//! Limits the datagrams that reach user space instead of being forwarded: none of unknown circuits,
//! and of sources that are not bound a share for each and one for all.
//!
//! The kernel gives a datagram to the thread of its circuit. So without a bound, a sender that
//! knows one ID could keep that thread from serving the binds of others.

use gateway_common::maps::{
    Address, Admission, BOUND_RATE, Bucket, Known, Remote, SOURCE_BUCKETS, SOURCE_RATE,
    UNBOUND_RATE,
};

use crate::{
    helper::{datagram::Datagram, rate::compare_exchange},
    maps::SOURCES,
};

const SECOND: u64 = 1_000_000_000;
/// Attempts to take from a bucket. A datagram that loses them all is dropped: so many others came.
const TRIES: usize = 4;

/// Whether the datagram is to an address of `gateway.listen`. Returns at the first match: a result
/// collected over the loop would double the verifier's states with each entry.
#[inline(always)]
pub fn is_listened(admission: &Admission, d: &Datagram) -> bool {
    for entry in &admission.listen {
        if entry.family != d.family || entry.port != d.destination_port {
            continue;
        }
        let (mut named, mut differs) = (0, 0);
        for n in 0..4 {
            named |= entry.address[n];
            differs |= entry.address[n] ^ d.destination[n];
        }
        if named == 0 || differs == 0 {
            return true;
        }
    }
    false
}

/// Whether a side of the circuit is bound to the source.
#[inline(always)]
pub fn is_bound(known: &Known, d: &Datagram) -> bool {
    is_at(&known.remotes[0], d) || is_at(&known.remotes[1], d)
}

#[inline(always)]
fn is_at(remote: &Remote, d: &Datagram) -> bool {
    let mut differs = u32::from(remote.port ^ d.source_port);
    for n in 0..4 {
        differs |= remote.address[n] ^ d.source[n];
    }
    differs == 0
}

/// The bucket of a source, and of a circuit if `id` is not 0.
#[inline(always)]
pub fn bucket(secret: [u64; 2], family: u32, source: &Address, id: u64) -> u32 {
    let address = if family == 4 {
        u64::from(source[3])
    } else {
        // A /64 belongs to one site.
        u64::from(source[0]) << 32 | u64::from(source[1])
    };
    let mut hash = address ^ secret[0];
    for add in [id, secret[1]] {
        hash = (hash ^ hash >> 32 ^ add).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    (hash >> 40) as u32 & (SOURCE_BUCKETS - 1)
}

/// Whether a bound source may send another message.
#[inline(always)]
pub fn admit_bound(slot: u32, now: u64) -> bool {
    take(slot, now, BOUND_RATE) != 0
}

/// Whether a source that is not bound may send another datagram.
#[inline(always)]
pub fn admit_unbound(slot: u32, now: u64) -> bool {
    take(slot, now, SOURCE_RATE) != 0 && take(SOURCE_BUCKETS, now, UNBOUND_RATE) != 0
}

/// Takes a datagram from a bucket of a second's depth; 0: it has none.
#[inline(never)]
fn take(slot: u32, now: u64, rate: u64) -> u32 {
    let Some(full_at) = SOURCES.get_ptr_mut(slot) else {
        return 0;
    };
    for _ in 0..TRIES {
        // SAFETY: the helper returned a whole number, which is stored eight bytes at a time.
        let seen = unsafe { core::ptr::read_volatile(full_at) };
        let Some(next) = Bucket::after(rate, SECOND, seen, now, 1) else {
            return 0;
        };
        // SAFETY: as above.
        if unsafe { compare_exchange(full_at, seen, next) } == seen {
            return 1;
        }
    }
    0
}
