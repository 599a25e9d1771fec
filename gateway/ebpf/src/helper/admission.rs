//! Limits the datagrams that reach user space instead of being forwarded: none of unknown circuits,
//! and of sources that are not bound a share for each source at a circuit, one for each circuit,
//! one for each source, and one for all.
//!
//! The kernel gives a datagram to the thread of its circuit. So without a bound, a sender that
//! knows one ID could keep that thread from serving the binds of others. The source at the circuit
//! pays first, from a bucket of the circuit: one source leaves the circuit room for its ends, and
//! no other circuit pays. Then the circuit pays: a sender uses up the budgets of others only with
//! as many IDs as these have room for.

use gateway_common::maps::{
    Address, Admission, BOUND_RATE, Bucket, CIRCUIT_DATAGRAM_RATE, CIRCUIT_RATE, Known,
    PAIR_BUCKETS, PAIR_RATE, Remote, SOURCE_BUCKETS,
};

use crate::{
    helper::{datagram::Datagram, rate::compare_exchange},
    maps::SOURCES,
};

const SECOND: u64 = 1_000_000_000;
/// Attempts to take from a bucket. A datagram that loses them all is dropped: so many others came.
const MAX_ATTEMPTS: usize = 4;

/// In place of a port: every port of the address.
pub const ANY_PORT: u32 = u32::MAX;

/// Whether a datagram to this address and port, network byte order, is to an address of
/// `gateway.listen`. Returns at the first match: a result collected over the loop would double the
/// verifier's states with each entry.
#[inline(never)]
pub fn is_listened(admission: &Admission, family: u32, to: &Address, port: u32) -> bool {
    for entry in &admission.listen {
        if entry.family != family || (port != ANY_PORT && u32::from(entry.port) != port) {
            continue;
        }
        let (mut named, mut differs) = (0, 0);
        for (word, wanted) in entry.address.iter().zip(to) {
            named |= word;
            differs |= word ^ wanted;
        }
        if named == 0 || differs == 0 {
            return true;
        }
    }
    false
}

#[inline(always)]
fn is_at(remote: &Remote, d: &Datagram) -> bool {
    let mut differs = u32::from(remote.port ^ d.source_port);
    for (word, wanted) in remote.address.iter().zip(&d.source) {
        differs |= word ^ wanted;
    }
    differs == 0
}

/// Whether user space gets a datagram of the circuit `id` that is not forwarded: a message, or a
/// tunnel datagram.
#[inline(always)]
pub fn admit(
    admission: &Admission,
    (id, known): (u64, *mut Known),
    d: &Datagram,
    is_message: bool,
    now: u64,
) -> bool {
    // SAFETY: the helper returned the value. It may change meanwhile: then a datagram is taken for
    // one of an unbound source, or not.
    let remotes = unsafe { &(*known).remotes };
    let side = if is_at(&remotes[0], d) {
        0
    } else if is_at(&remotes[1], d) {
        1
    } else {
        // SAFETY: as above; only the address is taken.
        let (circuit, rate) = unsafe {
            if is_message {
                (&raw mut (*known).messages, CIRCUIT_RATE)
            } else {
                (&raw mut (*known).datagrams, CIRCUIT_DATAGRAM_RATE)
            }
        };
        let secret = admission.secret;
        if is_message {
            let pair = Admission::pair(secret, d.family, &d.source, id, now);
            // SAFETY: as above; the mask keeps the index within the array, also for the verifier.
            let full_at = unsafe {
                let pairs: *mut u64 = (&raw mut (*known).pairs).cast();
                pairs.add(pair & (PAIR_BUCKETS - 1))
            };
            if !take(full_at, now, PAIR_RATE) {
                return false;
            }
        }
        let source = Admission::source(secret, d.family, &d.source);
        return take(circuit, now, rate)
            && take_at(source, now, admission.source_rate)
            && take_at(SOURCE_BUCKETS, now, admission.unbound_rate);
    };
    if !is_message {
        return true;
    }
    // SAFETY: as above.
    let bound = unsafe {
        if side == 0 {
            &raw mut (*known).bound[0]
        } else {
            &raw mut (*known).bound[1]
        }
    };
    take(bound, now, BOUND_RATE)
}

/// Takes a datagram from a bucket of `SOURCES`.
#[inline(always)]
fn take_at(slot: u32, now: u64, rate: u64) -> bool {
    SOURCES
        .get_ptr_mut(slot)
        .is_some_and(|full_at| take(full_at, now, rate))
}

/// Takes a datagram from a bucket of a second's depth. `full_at` is part of a map value.
#[inline(never)]
fn take(full_at: *mut u64, now: u64, rate: u64) -> bool {
    for _ in 0..MAX_ATTEMPTS {
        // SAFETY: a helper returned the value, whose numbers are stored eight bytes at a time.
        let seen = unsafe { core::ptr::read_volatile(full_at) };
        let Some(next) = Bucket::after(rate, SECOND, seen, now, 1) else {
            return false;
        };
        // SAFETY: as above.
        if unsafe { compare_exchange(full_at, seen, next) } == seen {
            return true;
        }
    }
    false
}
