//! Path MTU errors, made from the packet that was too big.

use appliance_common::{
    counters::Counter,
    limits::ICMP_QUOTE_BYTES,
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, generated::bpf_csum_diff},
    programs::XdpContext,
};

use crate::{
    access::Arrival,
    addr::Words,
    nd::fold,
    packet::{Outcome, Window, frame_len, turn_round},
};

/// An ICMP or ICMPv6 error header, bytes.
const ICMP_LEN: usize = 8;

/// Moves the Ethernet header `BY` bytes forward and turns it round, cuts the frame behind the quoted
/// bytes, and returns whether all that worked. `head` is `L3 + BY`.
#[inline(always)]
fn make_room<const L3: usize, const BY: usize>(ctx: &XdpContext, arrival: &Arrival) -> bool {
    // SAFETY: no pointer into the packet outlives the calls; the verifier sees to it.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(BY as i32)) } != 0 {
        return false;
    }
    let delta = (L3 + BY + ICMP_QUOTE_BYTES) as i32 - frame_len(ctx) as i32;
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 {
        return false;
    }
    let (Some(old), Some(new)) = (Window::<22>::at(ctx, BY), Window::<22>::at(ctx, 0)) else {
        return false;
    };
    // Types and tags; the addresses follow below. With fewer tags this copies bytes that the IP
    // header is then written over.
    new.set::<u16, 12>(old.get::<u16, 12>());
    new.set::<u32, 14>(old.get::<u32, 14>());
    new.set::<u32, 18>(old.get::<u32, 18>());
    let Some(head) = Window::<12>::at(ctx, 0) else {
        return false;
    };
    turn_round(head, arrival.l2.source, arrival.mac);
    true
}

/// The Internet checksum's 32-bit sum of the quoted bytes at `offset`, or `None` where the frame does
/// not reach.
#[inline(always)]
fn quote_sum(ctx: &XdpContext, offset: usize) -> Option<u64> {
    let quote = Window::<ICMP_QUOTE_BYTES>::at(ctx, offset)?;
    // SAFETY: the window covers the bytes; `from` is empty.
    let sum = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            quote.as_ptr().cast(),
            ICMP_QUOTE_BYTES as u32,
            0,
        )
    };
    (sum >= 0).then_some(sum as u64)
}

/// "Fragmentation needed and DF set" with the tunnel's MTU (RFC 792, RFC 1191 section 4), from the
/// address that could not be reached, to the packet's source. Not rate-limited, as in Linux
/// (net/ipv4/icmp.c, icmpv4_mask_allow): it is smaller than what it answers, and a sender that
/// does not hear it stalls.
#[inline(never)]
pub fn frag_needed<const L3: usize>(
    ctx: &XdpContext,
    arrival: &Arrival,
    source: u32,
    destination: u32,
) -> Outcome {
    const BY: usize = IPV4_LEN + ICMP_LEN;
    if !make_room::<L3, BY>(ctx, arrival) {
        return Outcome::Drop(Counter::DropAdjust);
    }
    let Some(sum) = quote_sum(ctx, L3 + BY) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    let Some(w) = Window::<BY>::at(ctx, L3) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    let length = ((BY + ICMP_QUOTE_BYTES) as u16).to_be();
    // Version and header length, DSCP CS6 as routers use (RFC 1812 section 4.3.2.5).
    let first = u16::from_ne_bytes([0x45, 0xc0]);
    let ttl = u16::from_ne_bytes([64, IPPROTO_ICMP]);
    let header = u64::from(first)
        + u64::from(length)
        + u64::from(ttl)
        + u64::from(source)
        + u64::from(destination);
    w.set::<u16, 0>(first);
    w.set::<u16, 2>(length);
    w.set::<u32, 4>(0);
    w.set::<u16, 8>(ttl);
    w.set::<u16, 10>(!fold(header));
    w.set::<u32, 12>(destination);
    w.set::<u32, 16>(source);
    let kind = u32::from_ne_bytes([3, 4, 0, 0]);
    let mtu = u32::from(arrival.network.mtu).to_be();
    let check = !fold(sum + u64::from(kind) + u64::from(mtu));
    w.set::<u32, 20>(kind);
    w.set::<u16, 22>(check);
    w.set::<u32, 24>(mtu);
    Outcome::Send(Counter::FragNeededSent, xdp_action::XDP_TX)
}

/// "Packet too big" with the tunnel's MTU (RFC 4443 section 3.2), from the address that could not be
/// reached, to the packet's source. Not rate-limited, as in Linux, whose default
/// net.ipv6.icmp.ratemask leaves this type out.
#[inline(never)]
pub fn packet_too_big<const L3: usize>(
    ctx: &XdpContext,
    arrival: &Arrival,
    source: &Words,
    destination: &Words,
) -> Outcome {
    const BY: usize = IPV6_LEN + ICMP_LEN;
    if !make_room::<L3, BY>(ctx, arrival) {
        return Outcome::Drop(Counter::DropAdjust);
    }
    let Some(sum) = quote_sum(ctx, L3 + BY) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    let Some(w) = Window::<BY>::at(ctx, L3) else {
        return Outcome::Drop(Counter::DropAdjust);
    };
    let length = (ICMP_LEN + ICMP_QUOTE_BYTES) as u16;
    w.set::<u32, 0>(u32::from_be(0x6000_0000));
    w.set::<u16, 4>(length.to_be());
    w.set::<u16, 6>(u16::from_ne_bytes([IPPROTO_ICMPV6, 64]));
    w.set::<Words, 8>(*destination);
    w.set::<Words, 24>(*source);
    let kind = u32::from_ne_bytes([2, 0, 0, 0]);
    let mtu = u32::from(arrival.network.mtu).to_be();
    let mut total = sum + u64::from(kind) + u64::from(mtu);
    total += u64::from(u32::from(length).to_be());
    total += u64::from(u32::from_ne_bytes([0, 0, 0, IPPROTO_ICMPV6]));
    for i in 0..4 {
        total += u64::from(source[i]) + u64::from(destination[i]);
    }
    w.set::<u32, 40>(kind);
    w.set::<u16, 42>(!fold(total));
    w.set::<u32, 44>(mtu);
    Outcome::Send(Counter::PacketTooBigSent, xdp_action::XDP_TX)
}
