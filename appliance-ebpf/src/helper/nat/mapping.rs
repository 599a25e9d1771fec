//! Mappings: the public port of a tenant's endpoint, the same for all destinations (RFC 4787 REQ-1,
//! RFC 5382 REQ-1).

use appliance_common::{
    counters::Counter,
    nat::{Mapping, MappingKey, Nat, NatAddress, OUTSIDE, PORT_PROBES},
};
use aya_ebpf::bindings::BPF_NOEXIST;

use super::{quota, tables::EEXIST};
use crate::maps::{MAPPINGS, NAT_ADDRESSES, Scratch};

/// The public address and ports of the tenant of `zone`; `None` if it has none.
#[inline(always)]
pub fn address(zone: u32, ipv6: bool) -> Option<&'static NatAddress> {
    let slot = zone.wrapping_sub(1).wrapping_mul(2) | u32::from(ipv6);
    NAT_ADDRESSES
        .get(slot)
        .filter(|a| a.last != 0 && a.first <= a.last)
}

/// The public port, network byte order, of the packet's source: that of its mapping, or of a new
/// one.
///
/// # Errors
/// The drop reason, if no tried port is free, the quota is used up, or the table is full.
#[inline(never)]
pub fn of_source(s: &mut Scratch, nat: &Nat, address: &NatAddress) -> Result<u16, Counter> {
    s.endpoint = MappingKey {
        address: s.key.source,
        port: s.key.source_port,
        zone: s.key.zone,
        protocol: s.key.protocol,
        reserved: [0; 3],
    };
    // SAFETY: read at once; preallocated entries are never unmapped.
    if let Some(mapping) = unsafe { MAPPINGS.get(&s.endpoint) }.copied() {
        if mapping.epoch == s.side.epoch && mapping.address == address.address {
            return Ok(mapping.port);
        }
        // From an earlier failover or of another address. User space deletes the other half.
        let _ = MAPPINGS.remove(&s.endpoint);
    }
    s.outer = MappingKey {
        address: address.address,
        port: 0,
        zone: OUTSIDE,
        protocol: s.key.protocol,
        reserved: [0; 3],
    };
    s.mapping = Mapping {
        address: s.key.source,
        port: s.key.source_port,
        zone: s.key.zone,
        epoch: s.side.epoch,
    };
    if !quota::permits_mapping(s.side.zone) {
        return Err(Counter::DropShare);
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
    let mapping = Mapping {
        address: s.outer.address,
        port: s.outer.port,
        zone: OUTSIDE,
        epoch: s.side.epoch,
    };
    s.mapping = mapping;
    match MAPPINGS.insert(&s.endpoint, &s.mapping, BPF_NOEXIST.into()) {
        Ok(()) => {
            quota::add_mapping(s.side.zone);
            Ok(s.outer.port)
        }
        Err(error) => {
            let _ = MAPPINGS.remove(&s.outer);
            if error != EEXIST {
                return Err(Counter::DropFlowsFull);
            }
            // Another CPU inserted a mapping of the endpoint at the same time.
            // SAFETY: as above.
            match unsafe { MAPPINGS.get(&s.endpoint) } {
                Some(mapping) => Ok(mapping.port),
                None => Err(Counter::DropFlowTaken),
            }
        }
    }
}
