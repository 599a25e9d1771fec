//! Into the tunnel, and out to a host: the two rewrites of a packet's head.

use appliance_common::{
    checksum,
    counters::Counter,
    maps::{Neighbour, Network, Peer, peer_flags},
    wire::{
        ETH_LEN, IPV4_LEN, IPV6_LEN, OUTER_V4_LEN, OUTER_V6_LEN, UDP_LEN, VXLAN_LEN, inner_mac,
        source_port,
    },
};
use aya_ebpf::{
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};

use crate::{
    count::sent,
    maps::PEERS,
    packet::{Mac, Outcome, Window, frame_len, send},
    secure,
    tables::is_secure,
};

/// The packet that goes into the tunnel.
pub struct Inner {
    /// Its type, host byte order.
    pub ethertype: u16,
    /// A hash of its flow.
    pub hash: u32,
    /// Its length from the IP header on, bytes.
    pub len: usize,
    /// Its network's slot.
    pub slot: u32,
    /// Where the sockets of the interface it came in on are.
    pub xsk: u16,
}

/// Bytes behind the outer IP header that are not the inner packet.
const WITHIN: usize = UDP_LEN + VXLAN_LEN + ETH_LEN;

/// Cuts whatever follows the first `len` bytes: Ethernet padding, or a trailer that the IP header
/// does not count. Returns whether the frame is now `len` bytes.
#[inline(always)]
pub fn trim(ctx: &XdpContext, len: usize) -> bool {
    let surplus = frame_len(ctx) as i32 - len as i32;
    if surplus == 0 {
        return true;
    }
    // SAFETY: no pointer into the packet outlives this call; the verifier sees to it.
    surplus > 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, -surplus) } == 0
}

/// Puts the packet whose IP header is at `L3` into the tunnel of its network.
#[inline(always)]
pub fn into_tunnel<const L3: usize>(ctx: &XdpContext, network: &Network, inner: &Inner) -> Outcome {
    if is_secure(network) {
        return secure::to_seal::<L3>(ctx, network.vni, inner);
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

#[inline(always)]
fn over_ipv4<const L3: usize>(ctx: &XdpContext, vni: u32, peer: &Peer, inner: &Inner) -> Outcome {
    // SAFETY: as in `trim`.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, L3 as i32 - (OUTER_V4_LEN + ETH_LEN) as i32) } != 0 {
        return Outcome::Drop(Counter::DropAdjust);
    }
    let Some(w) = Window::<OUTER_V4_LEN>::at(ctx, 0) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    let h = Template(&raw const peer.header);
    w.set::<u64, 0>(h.get::<u64, 0>());
    w.set::<u64, 8>(h.get::<u64, 8>());
    let total = ((IPV4_LEN + WITHIN + inner.len) as u16).to_be();
    w.set::<u16, 16>(total);
    w.set::<u16, 18>(h.get::<u16, 18>());
    w.set::<u32, 20>(h.get::<u32, 20>());
    w.set::<u16, 24>(checksum::update(h.get::<u16, 24>(), 0, total));
    w.set::<u64, 26>(h.get::<u64, 26>());
    let Some(w) = Window::<{ WITHIN }>::at(ctx, ETH_LEN + IPV4_LEN) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    within(w, h.get::<u16, 36>(), vni, inner);
    sent(inner.slot, inner.len as u64);
    send(ctx, peer.ifindex, Counter::Encapsulated)
}

#[inline(always)]
fn over_ipv6<const L3: usize>(ctx: &XdpContext, vni: u32, peer: &Peer, inner: &Inner) -> Outcome {
    // SAFETY: as in `trim`.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, L3 as i32 - (OUTER_V6_LEN + ETH_LEN) as i32) } != 0 {
        return Outcome::Drop(Counter::DropAdjust);
    }
    let Some(w) = Window::<OUTER_V6_LEN>::at(ctx, 0) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    let h = Template(&raw const peer.header);
    w.set::<u64, 0>(h.get::<u64, 0>());
    w.set::<u64, 8>(h.get::<u64, 8>());
    w.set::<u64, 16>(h.get::<u64, 16>());
    w.set::<u64, 24>(h.get::<u64, 24>());
    w.set::<u64, 32>(h.get::<u64, 32>());
    w.set::<u64, 40>(h.get::<u64, 40>());
    w.set::<u32, 48>(h.get::<u32, 48>());
    w.set::<u16, 52>(h.get::<u16, 52>());
    w.set::<u16, 18>(((WITHIN + inner.len) as u16).to_be());
    let Some(w) = Window::<{ WITHIN }>::at(ctx, ETH_LEN + IPV6_LEN) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    within(w, h.get::<u16, 56>(), vni, inner);
    sent(inner.slot, inner.len as u64);
    send(ctx, peer.ifindex, Counter::Encapsulated)
}

/// UDP, VXLAN and the inner Ethernet header.
#[inline(always)]
fn within(w: Window<{ WITHIN }>, port: u16, vni: u32, inner: &Inner) {
    w.set::<u16, 0>(source_port(inner.hash).to_be());
    w.set::<u16, 2>(port);
    w.set::<u16, 4>(((WITHIN + inner.len) as u16).to_be());
    w.set::<u16, 6>(0); // RFC 7348 section 4.1; for IPv6 RFC 6935
    w.set::<u32, 8>(u32::from_be(0x0800_0000));
    w.set::<u32, 12>((vni << 8).to_be());
    let mac = Mac::new(inner_mac(vni));
    w.set::<u32, 16>(mac.0);
    w.set::<u16, 20>(mac.1);
    w.set::<u32, 22>(mac.0);
    w.set::<u16, 26>(mac.1);
    w.set::<u16, 28>(inner.ethertype.to_be());
}

/// A header in a map value.
#[derive(Clone, Copy)]
struct Template<const N: usize>(*const [u8; N]);

impl<const N: usize> Template<N> {
    #[inline(always)]
    fn get<T: crate::packet::Plain, const O: usize>(self) -> T {
        const {
            assert!(O + size_of::<T>() <= N);
        }
        // SAFETY: within the map value, by the assertion. For alignment see `Window::get`.
        unsafe { self.0.cast::<u8>().add(O).cast::<T>().read() }
    }
}

/// Sends the packet whose first `FROM` bytes are to go (an Ethernet header, or a whole outer header)
/// to a host, behind the Ethernet header that the neighbour table holds.
#[inline(always)]
pub fn deliver<const FROM: usize>(
    ctx: &XdpContext,
    neighbour: *const Neighbour,
    ethertype: u16,
    counter: Counter,
) -> Outcome {
    // SAFETY: the map returned the value; if user space replaces it meanwhile, what is read is one
    // or the other header of the same host, at worst mixed for one packet.
    let neighbour = unsafe { &*neighbour };
    let l2_len = neighbour.l2_len;
    let delta = FROM as i32 - l2_len as i32;
    if delta != 0 {
        // SAFETY: as in `trim`.
        if unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } != 0 {
            return Outcome::Drop(Counter::DropAdjust);
        }
    }
    let h = Template(&raw const neighbour.l2);
    match l2_len {
        14 => {
            let Some(w) = Window::<14>::at(ctx, 0) else {
                return Outcome::Drop(Counter::DropAdjust);
            };
            w.set::<u64, 0>(h.get::<u64, 0>());
            w.set::<u32, 8>(h.get::<u32, 8>());
            w.set::<u16, 12>(ethertype.to_be());
        }
        18 => {
            let Some(w) = Window::<18>::at(ctx, 0) else {
                return Outcome::Drop(Counter::DropAdjust);
            };
            w.set::<u64, 0>(h.get::<u64, 0>());
            w.set::<u64, 8>(h.get::<u64, 8>());
            w.set::<u16, 16>(ethertype.to_be());
        }
        22 => {
            let Some(w) = Window::<22>::at(ctx, 0) else {
                return Outcome::Drop(Counter::DropAdjust);
            };
            w.set::<u64, 0>(h.get::<u64, 0>());
            w.set::<u64, 8>(h.get::<u64, 8>());
            w.set::<u32, 16>(h.get::<u32, 16>());
            w.set::<u16, 20>(ethertype.to_be());
        }
        // User space writes no other length.
        _ => return Outcome::Drop(Counter::DropInconsistent),
    }
    send(ctx, neighbour.ifindex, counter)
}
