//! Reports hosts that were seen on a tenant's network, and hosts that use an address of ours, to
//! user space.

use appliance_common::{
    counters::Counter,
    events::{NeighbourEvent, NeighbourEventKind},
    maps::{Budget, NO_VLAN, Network, neighbour_flags},
    wire::{ETH_LEN, VLAN_TAG_LEN},
};
use aya_ebpf::programs::XdpContext;

use crate::{
    helper::{
        addr::{Words, bytes},
        budget,
        count::count,
        frame::Frame,
        lookup::{Host, neighbour},
        packet::{L2, Mac, ingress},
    },
    maps::NEIGHBOUR_EVENTS,
};

/// A host seen, and where it is reported from.
pub struct Seen {
    /// VNI of the network, host byte order; zero on the uplink.
    pub vni: u32,
    pub address: Words,
    /// Its MAC address; may be a group's, which user space names to the operator.
    pub mac: Mac,
    /// How it was seen.
    pub kind: NeighbourEventKind,
    /// [`neighbour_event_flags`](appliance_common::events::neighbour_event_flags).
    pub flags: u32,
}

/// Reports `seen`, unless the neighbour table has the same entry already; then only marks the entry
/// as confirmed. Bounded by the tenant's budget and the ring: a report beyond either is counted.
#[inline(always)]
pub fn report(ctx: &XdpContext, l2: &L2, network: &Network, seen: &Seen) {
    let &Seen {
        address, mac, kind, ..
    } = seen;
    // A group's MAC address is reported where it is of use to the operator: a host that is asked
    // for.
    if mac.is_zero() || (mac.is_group() && matches!(kind, NeighbourEventKind::RequestToOther)) {
        return;
    }
    let ifindex = ingress(ctx);
    match neighbour(network, address) {
        Some(neighbour) => {
            if is_known(neighbour, ifindex, l2, mac) {
                neighbour.mark(neighbour_flags::CONFIRMED);
                return;
            }
        }
        None => {
            if matches!(kind, NeighbourEventKind::RequestToOther) {
                return;
            }
        }
    }
    if !budget::take(Budget::Neighbours, network.tenant + 1) {
        return count(Counter::NeighbourSeenLost);
    }
    write(ctx, l2.outer, l2.inner, seen);
}

/// Reports that a host other than us uses an address that we answer for: on the network of `frame`,
/// or without one on the uplink. The network's budget comes first: what is beyond it takes nothing
/// from the tenant's other networks.
#[inline(always)]
pub fn claimant(ctx: &XdpContext, frame: Option<&Frame>, address: Words, mac: Mac) {
    if mac.is_zero() {
        return;
    }
    let slot = frame.map_or(0, |frame| frame.slot + 1);
    let owner = frame.map_or(0, |frame| frame.network.tenant + 1);
    if !budget::take_claim(slot) || !budget::take(Budget::Claims, owner) {
        return count(Counter::NeighbourSeenLost);
    }
    let (outer, inner) = frame.map_or((NO_VLAN, NO_VLAN), |frame| (frame.l2.outer, frame.l2.inner));
    let seen = Seen {
        vni: frame.map_or(0, |frame| frame.network.vni),
        address,
        mac,
        kind: NeighbourEventKind::Claim,
        flags: 0,
    };
    write(ctx, outer, inner, &seen);
}

/// Writes a record into the ring.
#[inline(always)]
fn write(ctx: &XdpContext, outer: u16, inner: u16, seen: &Seen) {
    let Some(mut record) = NEIGHBOUR_EVENTS.reserve::<NeighbourEvent>(0) else {
        count(Counter::NeighbourSeenLost);
        return;
    };
    record.write(NeighbourEvent {
        vni: seen.vni,
        ifindex: ingress(ctx),
        address: bytes(seen.address),
        mac: seen.mac.bytes(),
        outer,
        inner,
        kind: seen.kind as u16,
        flags: seen.flags,
    });
    record.submit(0);
    count(Counter::NeighbourSeen);
}

/// Whether the entry has this interface and MAC address, behind as many tags as the frame has.
#[inline(always)]
fn is_known(host: Host, ifindex: u32, l2: &L2, mac: Mac) -> bool {
    let tags = (l2.outer != 0) as usize + (l2.inner != 0) as usize;
    let [a, b, c, d] = mac.0.to_ne_bytes();
    let [e, f] = mac.1.to_ne_bytes();
    let len = (ETH_LEN + tags * VLAN_TAG_LEN) as u8;
    has(
        host,
        ifindex,
        u64::from_ne_bytes([a, b, c, d, e, f, 0, len]),
    )
}

/// Whether the entry has this interface, and the MAC address and header length in `expected`: six
/// bytes, zero, one byte. In a function of its own: many places call it, and their frames are the
/// longest.
#[inline(never)]
fn has(host: Host, ifindex: u32, expected: u64) -> bool {
    host.read().is_some_and(|known| {
        let [a, b, c, d, e, f, ..] = known.header[0].to_ne_bytes();
        let found = u64::from_ne_bytes([a, b, c, d, e, f, 0, known.l2_len()]);
        known.ifindex == ifindex && found == expected
    })
}
