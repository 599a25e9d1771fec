//! Into the tunnel of a network: plain, by the header of its peer; encrypted, by a worker.

use appliance_common::{
    counters::Counter,
    maps::{Network, peer_flags},
};
use aya_ebpf::programs::XdpContext;

use crate::{
    helper::{
        encap::{Inner, over_ipv4, over_ipv6},
        lookup::is_secure,
        packet::{Outcome, trim},
        worker,
    },
    maps::PEERS,
};

/// Puts the packet whose IP header is at `L3` into the tunnel of its network.
#[inline(always)]
pub fn enter<const L3: usize>(ctx: &XdpContext, network: &Network, inner: &Inner) -> Outcome {
    if is_secure(network) {
        return worker::to_seal::<L3>(ctx, network.vni, inner);
    }
    let Some(peer) = PEERS.get(network.peer) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    if peer.flags & peer_flags::RESOLVED == 0 {
        return Outcome::Drop(Counter::DropNoPeer);
    }
    if !trim(ctx, L3 + inner.len) {
        return Outcome::Drop(Counter::DropAdjust);
    }
    if peer.flags & peer_flags::IPV6 == 0 {
        over_ipv4::<L3>(ctx, network.vni, peer, inner)
    } else {
        over_ipv6::<L3>(ctx, network.vni, peer, inner)
    }
}
