//! Answers echo requests in place: to the gateway's address, so that an operator can see that it is
//! up, and where it is set so to public addresses.

use appliance_common::{
    checksum,
    counters::Counter,
    wire::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::{bindings::xdp_action, programs::XdpContext};

use packet_rules::ipv4::is_fragment;

use crate::helper::{
    addr::Words,
    packet::{Mac, Outcome, Window, reverse},
};

/// Hop limit of replies (RFC 1700).
const HOPS: u8 = 64;

/// Answers the IPv4 packet at `L3`, with lengths `header` and `total`, if it is a whole echo
/// request without IP options (RFC 792): to the MAC address `to`, from `ours`. `None` for another
/// packet.
#[inline(always)]
pub fn ipv4<const L3: usize>(
    ctx: &XdpContext,
    [to, ours]: [Mac; 2],
    header: usize,
    total: usize,
) -> Option<Outcome> {
    let ip = Window::<IPV4_LEN>::at(ctx, L3)?;
    let icmp = Window::<8>::at(ctx, L3 + IPV4_LEN)?;
    let request = u16::from_ne_bytes([8, 0]);
    if header != IPV4_LEN
        || total < IPV4_LEN + 8
        || ip.get::<u8, 9>() != IPPROTO_ICMP
        || is_fragment(u16::from_be(ip.get::<u16, 6>()))
        || icmp.get::<u16, 0>() != request
    {
        return None;
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
    answer(ctx, to, ours)
}

/// Answers the IPv6 packet at `L3`, of `total` bytes and with the next header `next`, if it is an
/// echo request (RFC 4443 section 4.1), as [`ipv4`].
#[inline(always)]
pub fn ipv6<const L3: usize>(
    ctx: &XdpContext,
    [to, ours]: [Mac; 2],
    next: u8,
    total: usize,
) -> Option<Outcome> {
    let ip = Window::<IPV6_LEN>::at(ctx, L3)?;
    let icmp = Window::<8>::at(ctx, L3 + IPV6_LEN)?;
    let (request, reply) = (u16::from_ne_bytes([128, 0]), u16::from_ne_bytes([129, 0]));
    if next != IPPROTO_ICMPV6 || total < IPV6_LEN + 8 || icmp.get::<u16, 0>() != request {
        return None;
    }
    let (source, destination) = (ip.get::<Words, 8>(), ip.get::<Words, 24>());
    ip.set::<u8, 7>(HOPS);
    ip.set::<Words, 8>(destination);
    ip.set::<Words, 24>(source);
    icmp.set::<u16, 0>(reply);
    icmp.set::<u16, 2>(checksum::update(icmp.get::<u16, 2>(), request, reply));
    answer(ctx, to, ours)
}

#[inline(always)]
fn answer(ctx: &XdpContext, to: Mac, ours: Mac) -> Option<Outcome> {
    let head = Window::<12>::at(ctx, 0)?;
    reverse(head, to, ours);
    Some(Outcome::Send(Counter::EchoAnswered, xdp_action::XDP_TX))
}
