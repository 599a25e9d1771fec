//! Paired pooling (RFC 4787 REQ-2): all ports of a host get the same one of the tenant's NAT
//! addresses. A host that is new gets one with free ports.

use appliance_common::{
    limits::MAX_NAT_ADDRESSES,
    nat::{MachineKey, Nat, nat_address_slot},
};

use crate::{
    helper::words::{copy, unknown},
    maps::{NAT_ADDRESSES, NAT_FULL, PAIRS, Scratch},
};

/// In place of a slot of `NAT_ADDRESSES`: the tenant has no address of the family.
pub const NONE: u32 = u32::MAX;

/// Whether the slot has an address. Those of a tenant and family are without gaps.
#[inline(always)]
fn is_usable(slot: u32) -> bool {
    NAT_ADDRESSES
        .get(slot)
        .is_some_and(|a| a.last != 0 && a.first <= a.last)
}

/// The slot of `NAT_ADDRESSES` of the packet's source, or [`NONE`].
#[inline(never)]
pub fn of_source(nat: &Nat, s: &mut Scratch) -> u32 {
    s.new_pair = 0;
    let base = nat_address_slot(s.side.zone.wrapping_sub(1), s.packet.ipv6 != 0);
    if !is_usable(base) {
        return NONE;
    }
    if !is_usable(base + 1) {
        return base;
    }
    s.host = MachineKey {
        zone: s.side.zone,
        address: s.key.source,
    };
    // SAFETY: read at once; preallocated entries are never unmapped. A recycled one names another
    // of the tenant's addresses at worst.
    if let Some(pair) = unsafe { PAIRS.get(&s.host) }.copied()
        && pair.epoch == s.side.epoch
        && pair.slot.wrapping_sub(base) < MAX_NAT_ADDRESSES
        && NAT_ADDRESSES
            .get(pair.slot)
            .is_some_and(|a| a.last != 0 && a.address == pair.address)
    {
        return pair.slot;
    }
    let mut usable = 2;
    while usable < MAX_NAT_ADDRESSES && is_usable(base + usable) {
        usable += 1;
    }
    let count = unknown(&mut s.usable, usable);
    let start = first(nat, s, count);
    let mut slot = base + start;
    for i in 0..MAX_NAT_ADDRESSES {
        if i >= count {
            break;
        }
        // Each time from `start`, so that nothing else lives from one round to the next.
        let mut at = start + i;
        if at >= count {
            at -= count;
        }
        if NAT_FULL.get(base + at).is_some_and(|full| *full == 0) {
            slot = base + at;
            break;
        }
    }
    let Some(address) = NAT_ADDRESSES.get(slot) else {
        return NONE;
    };
    // SAFETY: a value of an array, which is never unmapped.
    unsafe { copy(&mut s.pair.address, &raw const address.address) };
    s.pair.slot = slot;
    s.pair.epoch = s.side.epoch;
    s.new_pair = 1;
    let _ = PAIRS.insert(&s.host, &s.pair, 0);
    slot
}

/// Which of `count` addresses a host prefers: spread over all, and not to be guessed.
#[inline(always)]
fn first(nat: &Nat, s: &Scratch, count: u32) -> u32 {
    let mut hash = s.key.source[3]
        ^ s.key.source[2].rotate_left(11)
        ^ s.key.source[1].rotate_left(23)
        ^ s.key.source[0].rotate_left(17)
        ^ nat.seed;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    ((hash >> 16) * count) >> 16
}

/// Notes that the address in the slot has no free port. A host that was paired with it for this
/// packet gets another one with its next.
#[inline(always)]
pub fn mark_full(s: &Scratch, slot: u32) {
    if let Some(full) = NAT_FULL.get_ptr_mut(slot) {
        // SAFETY: array values are never unmapped. User space clears it when ports are free again.
        unsafe { *full = 1 };
    }
    if s.new_pair != 0 {
        let _ = PAIRS.remove(&s.host);
    }
}
