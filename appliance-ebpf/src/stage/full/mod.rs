//! A tenant in full failover: the production site is lost, and the appliance is the router of the
//! tenant's networks.
//!
//! ```text
//!   packet to our MAC ─ from a host of this network? ─ to the gateway itself? ─▶ answered
//!        └─ destination's network ─ allowed by policy? ─ hop limit? ─ MTU? ─▶ host
//!              └─ none ─▶ tail call: nat_out
//! ```
//!
//! A packet that cannot be forwarded is dropped and counted. Its source gets an ICMP error from the
//! gateway's address where one may be sent (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4), at a
//! bounded rate.

mod gateway;

use appliance_common::{
    checksum,
    counters::Counter,
    events::SlowReason,
    maps::Jump,
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6, IPPROTO_TCP, IPV4_LEN, IPV6_LEN, mss_for,
    },
};
use aya_ebpf::programs::XdpContext;

use packet_rules::{
    icmp::{is_discovery, is_v6_error},
    ipv4,
    ipv6::{is_extension, total_len},
};

use crate::helper::{
    addr::{Words, v4_is_host, v4_is_link_local, v4_mapped, v6_is_host, v6_is_link_local},
    bytes,
    encap::deliver,
    frame::{Frame, Port, is_network_or_broadcast, pass_or_drop},
    icmp::{self, Undeliverable},
    lookup::{self, is_allowed, is_host_of, neighbour, network, route},
    mss, nat,
    packet::{Outcome, Window, frame_len},
    slow_path,
};

/// An IP packet that is no neighbour discovery, from the access stage.
#[inline(always)]
pub fn process(ctx: &XdpContext) -> Outcome {
    let frame = match Frame::resume(ctx) {
        Ok(frame) => frame,
        Err(outcome) => return outcome,
    };
    if frame.l2.destination.is_group() {
        return pass_or_drop(frame.port, Counter::DropNotCarried);
    }
    if frame.l2.destination != frame.mac {
        return pass_or_drop(frame.port, Counter::DropForeignMac);
    }
    match (frame.l2.ethertype, frame.l2.tags) {
        (ETHERTYPE_IPV4, 0) => ipv4::<14>(ctx, &frame),
        (ETHERTYPE_IPV4, 1) => ipv4::<18>(ctx, &frame),
        (ETHERTYPE_IPV4, _) => ipv4::<22>(ctx, &frame),
        (_, 0) => ipv6::<14>(ctx, &frame),
        (_, 1) => ipv6::<18>(ctx, &frame),
        (_, _) => ipv6::<22>(ctx, &frame),
    }
}

#[inline(never)]
fn ipv4<const L3: usize>(ctx: &XdpContext, frame: &Frame) -> Outcome {
    let Some(w) = Window::<IPV4_LEN>::at(ctx, L3) else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    let total = u16::from_be(w.get::<u16, 2>());
    let Some(ipv4::Lengths { header, total }) =
        ipv4::lengths(w.get::<u8, 0>(), total, L3, frame_len(ctx))
    else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    let source_word = w.get::<u32, 12>();
    let destination_word = w.get::<u32, 16>();
    if v4_is_link_local(source_word) || v4_is_link_local(destination_word) {
        return pass_or_drop(frame.port, Counter::DropLinkLocal);
    }
    let (source, destination) = (v4_mapped(source_word), v4_mapped(destination_word));
    let from = frame.network;
    if !v4_is_host(destination_word) || is_network_or_broadcast(from, destination_word) {
        return pass_or_drop(frame.port, Counter::DropNotCarried);
    }
    if frame.port == Port::Shared && lookup::is_local(destination) {
        return Outcome::Pass(Counter::Passed);
    }
    if !v4_is_host(source_word)
        || !is_host_of(from, source)
        || is_network_or_broadcast(from, source_word)
    {
        return Outcome::Drop(Counter::DropSourceGuard);
    }
    let fragment = u16::from_be(w.get::<u16, 6>());
    let protocol = w.get::<u8, 9>();
    let error = Undeliverable {
        ipv6: false,
        // No error about a later fragment or about an error (RFC 1812 section 4.3.2.7).
        silent: ipv4::is_later_fragment(fragment) || icmp::is_error(ctx, L3 + header, protocol),
        source,
        header,
        router: lookup::gateway(from, false).unwrap_or_default(),
        outside: false,
    };
    if lookup::gateway(from, false) == Some(destination) {
        let lengths = (header, total);
        return gateway::ipv4::<L3>(ctx, frame, lengths, (fragment, protocol), &error);
    }
    let Some(slot) = route(from.tenant, destination) else {
        if nat::settings().is_some() {
            return Outcome::TailCall(Jump::NatOut);
        }
        return icmp::unreachable::<L3>(ctx, frame, &error, Counter::DropNoRoute);
    };
    let Some(to) = network(slot) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    if slot != frame.slot && !is_allowed(from, to) {
        return icmp::unreachable::<L3>(ctx, frame, &error, Counter::DropPolicy);
    }
    // Addresses of the other network that no host has.
    if !is_host_of(to, destination) || is_network_or_broadcast(to, destination_word) {
        return Outcome::Drop(Counter::DropNotCarried);
    }
    let hops = w.get::<u8, 8>();
    if hops <= 1 {
        return icmp::time_exceeded::<L3>(ctx, frame, &error);
    }
    let too_large = total > to.lan_mtu as usize;
    if too_large && !ipv4::may_fragment(fragment) {
        if error.silent {
            return Outcome::Drop(Counter::DropTooLarge);
        }
        let Some(router) = lookup::gateway(from, false) else {
            return Outcome::Drop(Counter::DropTooLarge);
        };
        return icmp::frag_needed::<L3>(ctx, frame, source_word, router[3], to.lan_mtu);
    }
    if protocol == IPPROTO_TCP && from.lan_mtu != to.lan_mtu && !ipv4::is_later_fragment(fragment) {
        mss::clamp_v4::<L3>(ctx, header, total, from.lan_mtu.min(to.lan_mtu));
    }
    // Decrement the TTL (RFC 1141): the checksum changes by the word of TTL and protocol.
    let old = w.get::<u16, 8>();
    w.set::<u8, 8>(hops - 1);
    let new = w.get::<u16, 8>();
    w.set::<u16, 10>(checksum::update(w.get::<u16, 10>(), old, new));
    if too_large {
        return slow_path::send(ctx, to, L3 as u16, SlowReason::HostSplit, &destination);
    }
    match neighbour(to, destination) {
        Some(host) if host.is_absent() => {
            icmp::unreachable::<L3>(ctx, frame, &error, Counter::DropHostAbsent)
        }
        Some(host) => deliver::<L3>(ctx, host, ETHERTYPE_IPV4, Counter::Routed),
        None => slow_path::send(ctx, to, L3 as u16, SlowReason::Unresolved, &destination),
    }
}

#[inline(never)]
fn ipv6<const L3: usize>(ctx: &XdpContext, frame: &Frame) -> Outcome {
    let Some(w) = Window::<IPV6_LEN>::at(ctx, L3) else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    let payload = u16::from_be(w.get::<u16, 4>());
    let Some(total) = total_len(w.get::<u8, 0>(), payload, L3, frame_len(ctx)) else {
        return pass_or_drop(frame.port, Counter::DropMalformed);
    };
    let next = w.get::<u8, 6>();
    let source = w.get::<Words, 8>();
    let destination = w.get::<Words, 24>();
    let from = frame.network;
    let mut silent = false;
    if next == IPPROTO_ICMPV6 {
        let Some(w) = Window::<8>::at(ctx, L3 + IPV6_LEN) else {
            return pass_or_drop(frame.port, Counter::DropMalformed);
        };
        silent = is_v6_error(w.get::<u8, 0>());
    }
    if is_extension(next) {
        let found =
            bytes::behind_extensions(ctx, (L3 + IPV6_LEN) as u32, next, (L3 + total) as u32);
        let (protocol, at) = ((found >> 32) as u8, found as u32);
        // Discovery is never routed. No error is sent about an ICMPv6 message behind extension
        // headers, as its type is not checked further.
        if protocol == IPPROTO_ICMPV6 && bytes::byte(ctx, at).is_none_or(is_discovery) {
            return pass_or_drop(frame.port, Counter::DropNotCarried);
        }
        silent = protocol == IPPROTO_ICMPV6 || protocol == 0;
    }
    if frame.port == Port::Shared && lookup::is_local(destination) {
        return Outcome::Pass(Counter::Passed);
    }
    let to_gateway = lookup::gateway(from, true) == Some(destination);
    let mut error = Undeliverable {
        ipv6: true,
        silent,
        source,
        header: IPV6_LEN,
        router: lookup::gateway(from, true).unwrap_or_default(),
        outside: false,
    };
    if v6_is_link_local(source) || v6_is_link_local(destination) {
        // Link-local: only echo requests to the gateway's own address, from any host of the link.
        if to_gateway {
            error.silent = true;
            return gateway::ipv6::<L3>(ctx, frame, next, total, &error);
        }
        return pass_or_drop(frame.port, Counter::DropLinkLocal);
    }
    if !v6_is_host(destination) {
        return pass_or_drop(frame.port, Counter::DropNotCarried);
    }
    if !v6_is_host(source) || !is_host_of(from, source) {
        return Outcome::Drop(Counter::DropSourceGuard);
    }
    if to_gateway {
        return gateway::ipv6::<L3>(ctx, frame, next, total, &error);
    }
    let Some(slot) = route(from.tenant, destination) else {
        if nat::settings().is_some() {
            return Outcome::TailCall(Jump::NatOut);
        }
        return icmp::unreachable::<L3>(ctx, frame, &error, Counter::DropNoRoute);
    };
    let Some(to) = network(slot) else {
        return Outcome::Drop(Counter::DropInconsistent);
    };
    if slot != frame.slot && !is_allowed(from, to) {
        return icmp::unreachable::<L3>(ctx, frame, &error, Counter::DropPolicy);
    }
    if !is_host_of(to, destination) {
        return Outcome::Drop(Counter::DropNotCarried);
    }
    let hops = w.get::<u8, 7>();
    if hops <= 1 {
        return icmp::time_exceeded::<L3>(ctx, frame, &error);
    }
    if total > to.lan_mtu as usize {
        let router = lookup::gateway(from, true).filter(|_| !silent);
        let Some(router) = router else {
            return Outcome::Drop(Counter::DropTooLarge);
        };
        return icmp::packet_too_big::<L3>(ctx, frame, &source, &router, to.lan_mtu);
    }
    if next == IPPROTO_TCP && from.lan_mtu != to.lan_mtu && mss::is_syn(ctx, L3 + IPV6_LEN) {
        let limit = mss_for(from.lan_mtu.min(to.lan_mtu), true);
        mss::clamp(ctx, (L3 + IPV6_LEN) as u32, (L3 + total) as u32, limit);
    }
    w.set::<u8, 7>(hops - 1);
    match neighbour(to, destination) {
        Some(host) if host.is_absent() => {
            icmp::unreachable::<L3>(ctx, frame, &error, Counter::DropHostAbsent)
        }
        Some(host) => deliver::<L3>(ctx, host, ETHERTYPE_IPV6, Counter::Routed),
        None => slow_path::send(ctx, to, L3 as u16, SlowReason::Unresolved, &destination),
    }
}
