//! Answers echo requests to the gateway's address, so that an operator can see that it is up.

use appliance_common::{
    checksum,
    counters::Counter,
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::{bindings::xdp_action, programs::XdpContext};

use packet_rules::ipv4::is_fragment;

use crate::helper::{
    addr::Words,
    frame::Frame,
    packet::{Outcome, Window, reverse},
};

/// Hop limit of replies (RFC 1700).
const HOPS: u8 = 64;

/// A packet to the gateway's IPv4 address: answers an echo request without IP options (RFC 792).
#[inline(always)]
pub fn ipv4<const L3: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    header: usize,
    total: usize,
) -> Outcome {
    let (Some(ip), Some(icmp)) = (
        Window::<IPV4_LEN>::at(ctx, L3),
        Window::<8>::at(ctx, L3 + IPV4_LEN),
    ) else {
        return Outcome::Drop(Counter::DropToGateway);
    };
    let request = u16::from_ne_bytes([8, 0]);
    if header != IPV4_LEN
        || total < IPV4_LEN + 8
        || ip.get::<u8, 9>() != IPPROTO_ICMP
        || is_fragment(u16::from_be(ip.get::<u16, 6>()))
        || icmp.get::<u16, 0>() != request
    {
        return Outcome::Drop(Counter::DropToGateway);
    }
    let (source, destination) = (ip.get::<u32, 12>(), ip.get::<u32, 16>());
    let old = ip.get::<u16, 8>();
    ip.set::<u8, 8>(HOPS);
    ip.set::<u16, 10>(checksum::update(
        ip.get::<u16, 10>(),
        old,
        ip.get::<u16, 8>(),
    ));
    // Exchanging both addresses does not change the sum.
    ip.set::<u32, 12>(destination);
    ip.set::<u32, 16>(source);
    icmp.set::<u16, 0>(0);
    icmp.set::<u16, 2>(checksum::update(icmp.get::<u16, 2>(), request, 0));
    answer(ctx, frame)
}

/// A packet to the gateway's IPv6 address: answers an echo request (RFC 4443 section 4.1).
#[inline(always)]
pub fn ipv6<const L3: usize>(ctx: &XdpContext, frame: &Frame, next: u8, total: usize) -> Outcome {
    let (Some(ip), Some(icmp)) = (
        Window::<IPV6_LEN>::at(ctx, L3),
        Window::<8>::at(ctx, L3 + IPV6_LEN),
    ) else {
        return Outcome::Drop(Counter::DropToGateway);
    };
    let (request, reply) = (u16::from_ne_bytes([128, 0]), u16::from_ne_bytes([129, 0]));
    if next != IPPROTO_ICMPV6 || total < IPV6_LEN + 8 || icmp.get::<u16, 0>() != request {
        return Outcome::Drop(Counter::DropToGateway);
    }
    let (source, destination) = (ip.get::<Words, 8>(), ip.get::<Words, 24>());
    ip.set::<u8, 7>(HOPS);
    ip.set::<Words, 8>(destination);
    ip.set::<Words, 24>(source);
    icmp.set::<u16, 0>(reply);
    icmp.set::<u16, 2>(checksum::update(icmp.get::<u16, 2>(), request, reply));
    answer(ctx, frame)
}

#[inline(always)]
fn answer(ctx: &XdpContext, frame: &Frame) -> Outcome {
    let Some(head) = Window::<12>::at(ctx, 0) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    reverse(head, frame.l2.source, frame.mac);
    Outcome::Send(Counter::EchoAnswered, xdp_action::XDP_TX)
}
