//! Reports hosts that were seen on a tenant's network to user space.

use appliance_common::{
    counters::Counter,
    events::{NeighbourEvent, NeighbourEventKind},
    maps::{Neighbour, Network, neighbour_flags},
    wire::{ETH_LEN, VLAN_TAG_LEN},
};
use aya_ebpf::programs::XdpContext;

use crate::{
    helper::{
        addr::{Words, bytes, key},
        count::count,
        packet::{L2, Mac, ingress},
    },
    maps::{NEIGHBOUR_EVENTS, NEIGHBOURS},
};

/// Reports `address` at `mac`, unless the neighbour table has the same entry already; then only
/// marks the entry as heard. Bounded by the ring: a report that does not fit is counted.
#[inline(always)]
pub fn report(
    ctx: &XdpContext,
    l2: &L2,
    network: &Network,
    address: Words,
    mac: Mac,
    kind: NeighbourEventKind,
) {
    if mac.is_group() || mac.is_zero() {
        return;
    }
    let ifindex = ingress(ctx);
    match NEIGHBOURS.get_ptr_mut(key(network.vni, address)) {
        Some(neighbour) => {
            // SAFETY: the map returned a value; for racing writers see `lookup::neighbour`.
            let known = unsafe { &mut *neighbour };
            if known.ifindex == ifindex && same_host(known, l2, mac) {
                if known.flags & neighbour_flags::HEARD == 0 {
                    known.flags |= neighbour_flags::HEARD;
                }
                return;
            }
        }
        None => {
            if matches!(kind, NeighbourEventKind::RequestToOther) {
                return;
            }
        }
    }
    let Some(mut record) = NEIGHBOUR_EVENTS.reserve::<NeighbourEvent>(0) else {
        count(Counter::NeighbourSeenLost);
        return;
    };
    record.write(NeighbourEvent {
        vni: network.vni,
        ifindex,
        address: bytes(address),
        mac: mac.bytes(),
        outer: l2.outer,
        inner: l2.inner,
        kind: kind as u16,
        reserved: 0,
    });
    record.submit(0);
    count(Counter::NeighbourSeen);
}

/// Whether the entry has this MAC address behind as many tags as the frame has.
#[inline(always)]
fn same_host(known: &Neighbour, l2: &L2, mac: Mac) -> bool {
    let tags = (l2.outer != 0) as usize + (l2.inner != 0) as usize;
    known.mac() == mac.bytes() && known.l2_len as usize == ETH_LEN + tags * VLAN_TAG_LEN
}
