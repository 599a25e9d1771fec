//! What a tenant's endpoint is seen as: one port, whatever it speaks to (RFC 4787 REQ-1, RFC 5382 REQ-1).

use appliance_common::{
    counters::Counter,
    nat::{Mapping, MappingKey, Nat, NatAddress, OUTSIDE, PORT_PROBES},
};
use aya_ebpf::bindings::BPF_NOEXIST;

use super::{Scratch, share};
use crate::maps::{MAPPINGS, NAT_ADDRESSES};

/// EEXIST.
const EXISTS: i32 = -17;

/// What the tenant of `zone` is seen as; `None` if it isn't.
#[inline(always)]
pub fn address(zone: u32, ipv6: bool) -> Option<&'static NatAddress> {
    let slot = zone.wrapping_sub(1).wrapping_mul(2) | u32::from(ipv6);
    NAT_ADDRESSES
        .get(slot)
        .filter(|a| a.last != 0 && a.first <= a.last)
}

/// The port, network byte order, that the packet's source is seen with: the one that it has, or one that is
/// made its own.
///
/// # Errors
/// When none of the ports that were tried is free, or the table is full.
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
    if let Some(there) = unsafe { MAPPINGS.get(&s.endpoint) }.copied() {
        if there.epoch == s.side.epoch && there.address == address.address {
            return Ok(there.port);
        }
        // Of a failover before this one, or of another address: user space takes the other half out.
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
    if !share::has_endpoint(s.side.zone) {
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
            Ok(()) => return keep(s),
            Err(EXISTS) => port = address.first + pick(&mut hash, span),
            Err(_) => return Err(Counter::DropFlowsFull),
        }
    }
    Err(Counter::DropNoPort)
}

/// The next of a sequence of numbers below `span`, which is at most 2^16.
#[inline(always)]
const fn pick(hash: &mut u32, span: u32) -> u16 {
    // The generator of Numerical Recipes, of which the upper bits are the better.
    *hash = hash.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (((*hash >> 16) * span) >> 16) as u16
}

/// The other half of a mapping whose outer half is in place: both or none.
#[inline(always)]
fn keep(s: &mut Scratch) -> Result<u16, Counter> {
    let there = Mapping {
        address: s.outer.address,
        port: s.outer.port,
        zone: OUTSIDE,
        epoch: s.side.epoch,
    };
    s.mapping = there;
    match MAPPINGS.insert(&s.endpoint, &s.mapping, BPF_NOEXIST.into()) {
        Ok(()) => {
            share::took_endpoint(s.side.zone);
            Ok(s.outer.port)
        }
        Err(error) => {
            let _ = MAPPINGS.remove(&s.outer);
            if error != EXISTS {
                return Err(Counter::DropFlowsFull);
            }
            // Another packet of the endpoint was a moment faster.
            // SAFETY: as above.
            match unsafe { MAPPINGS.get(&s.endpoint) } {
                Some(there) => Ok(there.port),
                None => Err(Counter::DropFlowTaken),
            }
        }
    }
}
