//! The two rewrites of a packet's head: the outer header of a plain tunnel, and the Ethernet header
//! of a host.
//!
//! ```text
//!   [Ethernet | IP packet] ──▶ [Ethernet | outer IP | UDP | VXLAN | inner Ethernet | IP packet]
//!   [anything | IP packet] ──▶ [Ethernet of the host | IP packet]
//! ```
//!
//! Each is one `bpf_xdp_adjust_head` and stores of whole words.

use appliance_common::{
    checksum,
    counters::Counter,
    maps::{Peer, neighbour_flags},
    wire::{
        ETH_LEN, IPV4_LEN, IPV6_LEN, OUTER_V4_LEN, OUTER_V6_LEN, UDP_LEN, VXLAN_LEN, inner_mac,
        source_port,
    },
};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};

use crate::helper::{
    count::sent,
    lookup::Host,
    packet::{Mac, Outcome, Plain, Window, send},
};

/// A packet that enters a tunnel.
pub struct Inner {
    /// Its type, host byte order.
    pub ethertype: u16,
    /// A hash of its flow.
    pub hash: u32,
    /// Its length from the IP header on, bytes.
    pub len: usize,
    pub slot: u32,
    /// First socket in `XSKS` of the interface that it came in on.
    pub xsk: u16,
}

/// Bytes between the outer IP header and the inner packet.
const SHIM: usize = UDP_LEN + VXLAN_LEN + ETH_LEN;

/// Encapsulates the packet at `L3` to an IPv4 peer.
#[inline(always)]
pub fn over_ipv4<const L3: usize>(
    ctx: &XdpContext,
    vni: u32,
    peer: &Peer,
    inner: &Inner,
) -> Outcome {
    // SAFETY: no pointer into the packet outlives this call; the verifier checks it.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, L3 as i32 - (OUTER_V4_LEN + ETH_LEN) as i32) } != 0 {
        return Outcome::Drop(Counter::DropAdjust);
    }
    let Some(w) = Window::<OUTER_V4_LEN>::at(ctx, 0) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    let h = Template(&raw const peer.header);
    w.set::<u64, 0>(h.get::<u64, 0>());
    w.set::<u64, 8>(h.get::<u64, 8>());
    let total = ((IPV4_LEN + SHIM + inner.len) as u16).to_be();
    w.set::<u16, 16>(total);
    w.set::<u16, 18>(h.get::<u16, 18>());
    w.set::<u32, 20>(h.get::<u32, 20>());
    w.set::<u16, 24>(checksum::update(h.get::<u16, 24>(), 0, total));
    w.set::<u64, 26>(h.get::<u64, 26>());
    let Some(w) = Window::<{ SHIM }>::at(ctx, ETH_LEN + IPV4_LEN) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    write_shim(w, h.get::<u16, 36>(), vni, inner);
    sent(inner.slot, inner.len as u64);
    send(ctx, peer.ifindex, Counter::Encapsulated)
}

/// Encapsulates the packet at `L3` to an IPv6 peer.
#[inline(always)]
pub fn over_ipv6<const L3: usize>(
    ctx: &XdpContext,
    vni: u32,
    peer: &Peer,
    inner: &Inner,
) -> Outcome {
    // SAFETY: as in `over_ipv4`.
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
    w.set::<u16, 18>(((SHIM + inner.len) as u16).to_be());
    let Some(w) = Window::<{ SHIM }>::at(ctx, ETH_LEN + IPV6_LEN) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    write_shim(w, h.get::<u16, 56>(), vni, inner);
    sent(inner.slot, inner.len as u64);
    send(ctx, peer.ifindex, Counter::Encapsulated)
}

/// Writes UDP, VXLAN and the inner Ethernet header.
#[inline(always)]
fn write_shim(w: Window<{ SHIM }>, port: u16, vni: u32, inner: &Inner) {
    w.set::<u16, 0>(source_port(inner.hash).to_be());
    w.set::<u16, 2>(port);
    w.set::<u16, 4>(((SHIM + inner.len) as u16).to_be());
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
    fn get<T: Plain, const O: usize>(self) -> T {
        const {
            assert!(O + size_of::<T>() <= N);
        }
        // SAFETY: within the map value, by the assertion. For alignment see `Window::get`.
        unsafe { self.0.cast::<u8>().add(O).cast::<T>().read() }
    }
}

/// Replaces the first `FROM` bytes (an Ethernet header, or a whole outer header) by the Ethernet
/// header of the neighbour entry, and sends the packet to that host.
#[inline(always)]
pub fn deliver<const FROM: usize>(
    ctx: &XdpContext,
    host: Host,
    ethertype: u16,
    counter: Counter,
) -> Outcome {
    if host.is_absent() {
        return Outcome::Drop(Counter::DropHostAbsent);
    }
    let l2_len = host.l2_len();
    let delta = FROM as i32 - l2_len as i32;
    if delta != 0 {
        // SAFETY: as in `over_ipv4`.
        if unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } != 0 {
            return Outcome::Drop(Counter::DropAdjust);
        }
    }
    let Some(resolved) = host.read().filter(|resolved| resolved.l2_len() == l2_len) else {
        return Outcome::Drop(Counter::DropRecycled);
    };
    host.mark(neighbour_flags::USED);
    let [a, b, c] = resolved.header;
    match l2_len {
        14 => {
            let Some(w) = Window::<14>::at(ctx, 0) else {
                return Outcome::Drop(Counter::DropAdjust);
            };
            w.set::<u64, 0>(a);
            w.set::<u32, 8>(first_half(b));
            w.set::<u16, 12>(ethertype.to_be());
        }
        18 => {
            let Some(w) = Window::<18>::at(ctx, 0) else {
                return Outcome::Drop(Counter::DropAdjust);
            };
            w.set::<u64, 0>(a);
            w.set::<u64, 8>(b);
            w.set::<u16, 16>(ethertype.to_be());
        }
        22 => {
            let Some(w) = Window::<22>::at(ctx, 0) else {
                return Outcome::Drop(Counter::DropAdjust);
            };
            w.set::<u64, 0>(a);
            w.set::<u64, 8>(b);
            w.set::<u32, 16>(first_half(c));
            w.set::<u16, 20>(ethertype.to_be());
        }
        // User space writes no other length.
        _ => return Outcome::Drop(Counter::DropInconsistent),
    }
    send(ctx, resolved.ifindex, counter)
}

/// The first four bytes of a word in memory order.
#[inline(always)]
const fn first_half(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
