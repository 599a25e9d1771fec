//! Mappings: the public port of an inside address and port, the same for all destinations (RFC 4787
//! REQ-1, RFC 5382 REQ-1).

use appliance_common::{
    counters::Counter,
    events::MappingEvent,
    nat::{Nat, NatAddress, OUTSIDE, PORT_PROBES},
};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_coarse_ns};

use super::{pair, quota, tables::EEXIST};
use crate::{
    helper::{count::count, words::copy},
    maps::{MAPPINGS, NAT_ADDRESSES, NAT_EVENTS, Scratch},
};

/// Finds the public address and port of the packet's source, by its mapping or a new one, and takes
/// its address, the one in `slot` of `NAT_ADDRESSES`, and port into `s.flow`. Returns the drop
/// reason, if no tried port is free, the quota is used up, or the table is full.
#[inline(never)]
pub fn of_source(s: &mut Scratch, nat: &Nat, slot: u32) -> Option<Counter> {
    let Some(address) = NAT_ADDRESSES.get(slot) else {
        return Some(Counter::DropNoRoute);
    };
    // SAFETY: a value of an array, which is never unmapped.
    unsafe { copy(&mut s.flow.source, &raw const address.address) };
    s.new_mapping = 0;
    match port_of(s, nat, address) {
        Ok(port) => {
            s.flow.source_port = port;
            None
        }
        Err(reason) => {
            if reason as u32 == Counter::DropNoPort as u32 {
                pair::mark_full(s, slot);
            }
            Some(reason)
        }
    }
}

/// The public port, network byte order, of the packet's source at an address.
#[inline(always)]
fn port_of(s: &mut Scratch, nat: &Nat, address: &NatAddress) -> Result<u16, Counter> {
    // Field by field, because whole values would be built on the stack first. The padding is always
    // zero.
    s.endpoint.address = s.key.source;
    s.endpoint.port = s.key.source_port;
    s.endpoint.zone = s.key.zone;
    s.endpoint.protocol = s.key.protocol;
    if let Some(entry) = MAPPINGS.get_ptr_mut(&s.endpoint) {
        // SAFETY: the map returned a value; preallocated entries are never unmapped. If it is
        // recycled meanwhile, another mapping is kept a little longer.
        unsafe {
            let mapping = &mut *entry;
            if mapping.epoch == s.side.epoch && mapping.address == address.address {
                if mapping.last_used != s.side.now {
                    mapping.last_used = s.side.now;
                }
                return Ok(mapping.port);
            }
        }
        // From an earlier failover or of another address. User space deletes the other half.
        let _ = MAPPINGS.remove(&s.endpoint);
    }
    s.outer.address = address.address;
    s.outer.zone = OUTSIDE;
    s.outer.protocol = s.key.protocol;
    s.mapping.address = s.key.source;
    s.mapping.port = s.key.source_port;
    s.mapping.zone = s.key.zone;
    s.mapping.epoch = s.side.epoch;
    s.mapping.last_used = s.side.now;
    if !quota::permits_mapping(nat, s.side.zone) {
        return Err(Counter::DropQuota);
    }
    let span = u32::from(address.last - address.first) + 1;
    let mut hash = s.key.source[3]
        ^ s.key.source[2].rotate_left(11)
        ^ s.key.source[0].rotate_left(17)
        ^ (u32::from(s.key.source_port) << 16 | u32::from(s.key.zone))
        ^ nat.seed;
    let own = u16::from_be(s.key.source_port);
    let mut port = if own >= address.first && own <= address.last {
        own
    } else {
        address.first + pick(&mut hash, span)
    };
    for _ in 0..PORT_PROBES {
        s.outer.port = port.to_be();
        match MAPPINGS.insert(&s.outer, &s.mapping, BPF_NOEXIST.into()) {
            Ok(()) => return insert_inner(s),
            Err(EEXIST) => port = address.first + pick(&mut hash, span),
            Err(_) => return Err(Counter::DropFlowsFull),
        }
    }
    Err(Counter::DropNoPort)
}

/// The next pseudo-random number below `span`, which is at most 2^16.
#[inline(always)]
const fn pick(hash: &mut u32, span: u32) -> u16 {
    // The generator of Numerical Recipes; its upper bits are the better ones.
    *hash = hash.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (((*hash >> 16) * span) >> 16) as u16
}

/// Inserts the inner half of a mapping whose outer half is in place. If that fails, removes the
/// outer half.
#[inline(always)]
fn insert_inner(s: &mut Scratch) -> Result<u16, Counter> {
    // Epoch and time are those of the outer half.
    s.mapping.address = s.outer.address;
    s.mapping.port = s.outer.port;
    s.mapping.zone = OUTSIDE;
    match MAPPINGS.insert(&s.endpoint, &s.mapping, BPF_NOEXIST.into()) {
        Ok(()) => {
            quota::add_mapping(s.side.zone);
            s.new_mapping = 1;
            Ok(s.outer.port)
        }
        Err(error) => {
            let _ = MAPPINGS.remove(&s.outer);
            if error != EEXIST {
                return Err(Counter::DropFlowsFull);
            }
            // Another CPU inserted a mapping of the source at the same time.
            // SAFETY: as above.
            match unsafe { MAPPINGS.get(&s.endpoint) } {
                Some(mapping) => Ok(mapping.port),
                None => Err(Counter::DropFlowTaken),
            }
        }
    }
}

/// Reports a new mapping to user space, for the NAT log.
#[inline(never)]
pub fn log(s: &Scratch) {
    let Some(mut record) = NAT_EVENTS.reserve::<MappingEvent>(0) else {
        count(Counter::NatLogLost);
        return;
    };
    let event = record.as_mut_ptr();
    // SAFETY: the record is of this type; every field is written. Field by field, because a value
    // would be built on the stack first.
    unsafe {
        (&raw mut (*event).at).write(bpf_ktime_get_coarse_ns());
        (&raw mut (*event).inside).write(s.endpoint);
        (&raw mut (*event).outside).write(s.outer);
    }
    record.submit(0);
}
