//! A tenant in full failover: the production site is gone, and we are the router of its networks.
//!
//! ```text
//!   a replica's packet to our MAC ─ of a host of this network? ─ to the gateway itself? ─▶ ping answered
//!        └─ network that has the destination ─ allowed from here? ─ hops left? ─ MTU? ─▶ its host
//! ```
//!
//! What cannot go on is told to its source where an error may be sent (RFC 1812 section 4.3.2.7, RFC 4443
//! section 2.4), at a bounded rate, from the gateway's address; and is dropped and counted.

mod gateway;

use appliance_common::{
    checksum,
    counters::Counter,
    events::SlowReason,
    maps::Jump,
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_LEN, IPV6_LEN},
};
use aya_ebpf::programs::XdpContext;

use crate::{
    access::{Arrival, Port, is_directed_broadcast, leave, resume},
    addr::{Words, is_link_local, v4, v4_is_host, v4_is_link_local, v6_is_host},
    encap::deliver,
    icmp::{self, Problem},
    mss, nat, nd,
    packet::{Outcome, Window, frame_len},
    slow,
    tables::{self, is_host_of, may_send, neighbour, network, route},
};

/// Whether the frame is a packet to be routed, and not for resolving addresses on its link.
#[inline(always)]
pub fn is_routed(ctx: &XdpContext, arrival: &Arrival) -> bool {
    match arrival.l2.ethertype {
        ETHERTYPE_IPV4 => true,
        ETHERTYPE_IPV6 => match arrival.l2.tags {
            0 => !is_discovery::<14>(ctx),
            1 => !is_discovery::<18>(ctx),
            _ => !is_discovery::<22>(ctx),
        },
        _ => false,
    }
}

#[inline(always)]
fn is_discovery<const L3: usize>(ctx: &XdpContext) -> bool {
    Window::<IPV6_LEN>::at(ctx, L3).is_some_and(|ip| ip.get::<u8, 6>() == IPPROTO_ICMPV6)
        && Window::<8>::at(ctx, L3 + IPV6_LEN).is_some_and(|w| nd::is_link_scoped(w.get::<u8, 0>()))
}

/// A packet that [`is_routed`].
#[inline(always)]
pub fn process(ctx: &XdpContext) -> Outcome {
    let arrival = match resume(ctx) {
        Ok(arrival) => arrival,
        Err(outcome) => return outcome,
    };
    if arrival.l2.destination.is_group() {
        return leave(arrival.port, Counter::DropNotCarried);
    }
    if arrival.l2.destination != arrival.mac {
        return leave(arrival.port, Counter::DropForeignMac);
    }
    match (arrival.l2.ethertype, arrival.l2.tags) {
        (ETHERTYPE_IPV4, 0) => ipv4::<14>(ctx, &arrival),
        (ETHERTYPE_IPV4, 1) => ipv4::<18>(ctx, &arrival),
        (ETHERTYPE_IPV4, _) => ipv4::<22>(ctx, &arrival),
        (_, 0) => ipv6::<14>(ctx, &arrival),
        (_, 1) => ipv6::<18>(ctx, &arrival),
        (_, _) => ipv6::<22>(ctx, &arrival),
    }
}

#[inline(never)]
fn ipv4<const L3: usize>(ctx: &XdpContext, arrival: &Arrival) -> Outcome {
    let Some(w) = Window::<IPV4_LEN>::at(ctx, L3) else {
        return leave(arrival.port, Counter::DropMalformed);
    };
    let first = w.get::<u8, 0>();
    let header = ((first & 0x0f) as usize) * 4;
    let total = u16::from_be(w.get::<u16, 2>()) as usize;
    if first >> 4 != 4 || header < IPV4_LEN || total < header || L3 + total > frame_len(ctx) {
        return leave(arrival.port, Counter::DropMalformed);
    }
    let source_word = w.get::<u32, 12>();
    let destination_word = w.get::<u32, 16>();
    if v4_is_link_local(source_word) || v4_is_link_local(destination_word) {
        return leave(arrival.port, Counter::DropLinkLocal);
    }
    let (source, destination) = (v4(source_word), v4(destination_word));
    let from = arrival.network;
    if !v4_is_host(destination_word) || is_directed_broadcast(from, destination_word) {
        return leave(arrival.port, Counter::DropNotCarried);
    }
    if arrival.port == Port::Shared && tables::is_local(destination) {
        return Outcome::Pass(Counter::Passed);
    }
    if !v4_is_host(source_word)
        || !is_host_of(from, source)
        || is_directed_broadcast(from, source_word)
    {
        return Outcome::Drop(Counter::DropSourceGuard);
    }
    if tables::gateway(from, false) == Some(destination) {
        return gateway::ipv4::<L3>(ctx, arrival, header, total);
    }
    let error = Problem {
        ipv6: false,
        // The error is about a first fragment, and about no error (RFC 1812 section 4.3.2.7).
        silent: u16::from_be(w.get::<u16, 6>()) & 0x1fff != 0
            || is_icmp_error(ctx, L3 + header, w.get::<u8, 9>()),
        source,
        header,
        router: tables::gateway(from, false).unwrap_or_default(),
    };
    let Some(slot) = route(from.tenant, destination) else {
        if nat::is_on() {
            return Outcome::Jump(Jump::NatOut);
        }
        return icmp::unreachable::<L3>(ctx, arrival, &error, Counter::DropNoRoute);
    };
    let Some(to) = network(slot) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    if slot != arrival.slot && !may_send(from, to) {
        return icmp::unreachable::<L3>(ctx, arrival, &error, Counter::DropPolicy);
    }
    // The other network's addresses that are no host's.
    if !is_host_of(to, destination) || is_directed_broadcast(to, destination_word) {
        return Outcome::Drop(Counter::DropNotCarried);
    }
    let hops = w.get::<u8, 8>();
    if hops <= 1 {
        return icmp::time_exceeded::<L3>(ctx, arrival, &error);
    }
    if total > to.lan_mtu as usize {
        const DF: u16 = 0x4000;
        if u16::from_be(w.get::<u16, 6>()) & DF == 0 || error.silent {
            return Outcome::Drop(Counter::DropTooLarge);
        }
        let Some(router) = tables::gateway(from, false) else {
            return Outcome::Drop(Counter::DropTooLarge);
        };
        return icmp::frag_needed::<L3>(ctx, arrival, source_word, router[3], to.lan_mtu);
    }
    // One hop less (RFC 1141): the word of hop limit and protocol.
    let old = w.get::<u16, 8>();
    w.set::<u8, 8>(hops - 1);
    let new = w.get::<u16, 8>();
    w.set::<u16, 10>(checksum::update(w.get::<u16, 10>(), old, new));
    match neighbour(to, destination) {
        Some(neighbour) => deliver::<L3>(ctx, neighbour, ETHERTYPE_IPV4, Counter::Routed),
        None => slow::hand_over(ctx, to, L3 as u16, SlowReason::Unresolved, &destination),
    }
}

/// Whether the packet is itself an ICMP error: unreachable, source quench, redirect, time exceeded,
/// parameter problem; or cannot be told.
#[inline(always)]
fn is_icmp_error(ctx: &XdpContext, l4: usize, protocol: u8) -> bool {
    protocol == IPPROTO_ICMP
        && mss::byte(ctx, l4 as u32).is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12))
}

#[inline(never)]
fn ipv6<const L3: usize>(ctx: &XdpContext, arrival: &Arrival) -> Outcome {
    let Some(w) = Window::<IPV6_LEN>::at(ctx, L3) else {
        return leave(arrival.port, Counter::DropMalformed);
    };
    let total = IPV6_LEN + u16::from_be(w.get::<u16, 4>()) as usize;
    if w.get::<u8, 0>() >> 4 != 6 || L3 + total > frame_len(ctx) {
        return leave(arrival.port, Counter::DropMalformed);
    }
    let next = w.get::<u8, 6>();
    let source = w.get::<Words, 8>();
    let destination = w.get::<Words, 24>();
    let from = arrival.network;
    let mut silent = false;
    if next == IPPROTO_ICMPV6 {
        let Some(w) = Window::<8>::at(ctx, L3 + IPV6_LEN) else {
            return leave(arrival.port, Counter::DropMalformed);
        };
        // Types below 128 are errors (RFC 4443 section 2.1).
        silent = w.get::<u8, 0>() < 128;
    }
    if mss::is_extension(next) {
        let found = mss::behind_extensions(ctx, (L3 + IPV6_LEN) as u32, next, (L3 + total) as u32);
        let (protocol, at) = ((found >> 32) as u8, found as u32);
        // Discovery is never routed. What is behind the headers is not looked for further: no error about it.
        if protocol == IPPROTO_ICMPV6 && mss::byte(ctx, at).is_none_or(nd::is_link_scoped) {
            return leave(arrival.port, Counter::DropNotCarried);
        }
        silent = protocol == IPPROTO_ICMPV6 || protocol == 0;
    }
    if arrival.port == Port::Shared && tables::is_local(destination) {
        return Outcome::Pass(Counter::Passed);
    }
    let to_gateway = tables::gateway(from, true) == Some(destination);
    if is_link_local(source) || is_link_local(destination) {
        // Of these, only the gateway's own address, asked by anybody on the link.
        if to_gateway {
            return gateway::ipv6::<L3>(ctx, arrival, next, total);
        }
        return leave(arrival.port, Counter::DropLinkLocal);
    }
    if !v6_is_host(destination) {
        return leave(arrival.port, Counter::DropNotCarried);
    }
    if !v6_is_host(source) || !is_host_of(from, source) {
        return Outcome::Drop(Counter::DropSourceGuard);
    }
    if to_gateway {
        return gateway::ipv6::<L3>(ctx, arrival, next, total);
    }
    let error = Problem {
        ipv6: true,
        silent,
        source,
        header: IPV6_LEN,
        router: tables::gateway(from, true).unwrap_or_default(),
    };
    let Some(slot) = route(from.tenant, destination) else {
        if nat::is_on() {
            return Outcome::Jump(Jump::NatOut);
        }
        return icmp::unreachable::<L3>(ctx, arrival, &error, Counter::DropNoRoute);
    };
    let Some(to) = network(slot) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    if slot != arrival.slot && !may_send(from, to) {
        return icmp::unreachable::<L3>(ctx, arrival, &error, Counter::DropPolicy);
    }
    if !is_host_of(to, destination) {
        return Outcome::Drop(Counter::DropNotCarried);
    }
    let hops = w.get::<u8, 7>();
    if hops <= 1 {
        return icmp::time_exceeded::<L3>(ctx, arrival, &error);
    }
    if total > to.lan_mtu as usize {
        let router = tables::gateway(from, true).filter(|_| !silent);
        let Some(router) = router else {
            return Outcome::Drop(Counter::DropTooLarge);
        };
        return icmp::packet_too_big::<L3>(ctx, arrival, &source, &router, to.lan_mtu);
    }
    w.set::<u8, 7>(hops - 1);
    match neighbour(to, destination) {
        Some(neighbour) => deliver::<L3>(ctx, neighbour, ETHERTYPE_IPV6, Counter::Routed),
        None => slow::hand_over(ctx, to, L3 as u16, SlowReason::Unresolved, &destination),
    }
}
